"""Distinct KV blocks of the requests an endpoint works on: shared prefixes count once (the load of `dynamo_cost`)."""

from __future__ import annotations

from collections import Counter


class ActiveBlocks:
    """Reference counts per key; blocks beyond the keys (an incomplete tail, generated tokens) are private."""

    __slots__ = ("_counts", "_private")

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._private = 0.0

    @property
    def distinct(self) -> float:
        """Blocks in use."""
        return len(self._counts) + self._private

    def add(self, keys: list[int], private: float) -> None:
        """An attempt opens; `private` blocks are its alone."""
        self._counts.update(keys)
        self._private += private

    def grow(self, blocks: float) -> None:
        """Generated tokens fill blocks."""
        self._private += blocks

    def remove(self, keys: list[int], private: float) -> None:
        """Give back what `add` and `grow` took."""
        counts = self._counts
        for key in keys:
            left = counts[key] - 1
            if left > 0:
                counts[key] = left
            else:
                del counts[key]
        self._private = max(0.0, self._private - private)
