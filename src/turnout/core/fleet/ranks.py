"""The data-parallel ranks behind one endpoint, where it lets us choose among them (scheduling §3.1).

Each rank has a cache of its own, so a match is worth something on the rank that holds it only. Where none is known,
prompts that begin alike follow each other, as long as that rank is not busier than its share.
"""

from __future__ import annotations

import math
from typing import Final

from turnout.core.kit.lru import LruMap

_FOLLOWED_MAX: Final = 16_384
_BOUND: Final = 1.25  # as consistent_hash bounds its endpoints


class Ranks:
    """Mutable; one per endpoint incarnation."""

    __slots__ = ("_followed", "in_flight")

    def __init__(self, count: int) -> None:
        self.in_flight = [0] * count
        """Our own attempts by rank."""
        self._followed: LruMap[int, int] = LruMap(_FOLLOWED_MAX)

    def pick(self, depths: list[float], key: int) -> int:
        """Return the rank that holds most blocks; `key` names what prompts have in common that should stay together."""
        in_flight = self.in_flight
        deepest = max(depths, default=0.0)
        if deepest > 0.0:
            near = [rank for rank, depth in enumerate(depths) if depth == deepest]
            return min(near, key=in_flight.__getitem__)
        followed = self._followed.peek(key) if key else None
        if followed is not None and in_flight[followed] < math.ceil(_BOUND * (sum(in_flight) + 1) / len(in_flight)):
            return followed
        return in_flight.index(min(in_flight))

    def opened(self, rank: int, key: int) -> None:
        """An attempt opens there."""
        self.in_flight[rank] += 1
        if key:
            self._followed.put(key, rank)

    def ended(self, rank: int) -> None:
        """An attempt ended."""
        self.in_flight[rank] -= 1
