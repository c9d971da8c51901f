"""How many open attempts hold each block at each endpoint: for engines that free blocks at zero references (§2)."""

from __future__ import annotations

from collections import Counter


class OpenCounts:
    """Counts per owner bit. Of a chain, deeper blocks are counted at most as often as those before them."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[int, Counter[int]] = {}

    def add(self, keys: list[int], bit: int) -> None:
        """An attempt opens."""
        self._counts.setdefault(bit, Counter()).update(keys)

    def remove(self, keys: list[int], bit: int) -> list[int]:
        """It ended; returns the blocks that no open attempt holds any more."""
        counts = self._counts.get(bit)
        if counts is None:
            return []
        gone: list[int] = []
        for key in keys:
            left = counts[key] - 1
            if left > 0:
                counts[key] = left
            else:
                del counts[key]
                gone.append(key)
        if not counts:
            del self._counts[bit]
        return gone

    def drop(self, bit: int) -> None:
        """The endpoint is gone."""
        self._counts.pop(bit, None)
