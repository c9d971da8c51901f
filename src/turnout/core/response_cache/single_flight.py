"""Equal requests at the same time: one leads, a bounded number waits for its stored answer, the rest go alone.

Pure bookkeeping; a shell owns the waiters' timers. No one waits twice: whoever was released without an answer goes on
alone at once.
"""

from __future__ import annotations

import enum
from typing import Generic, TypeVar

from turnout.core.response_cache.key import CacheKey

W = TypeVar("W")


class Role(enum.Enum):
    """What an arriving request does."""

    LEAD = "lead"
    FOLLOW = "follow"
    ALONE = "alone"


class Flights(Generic[W]):
    """Open flights by key. A key holds its tenant, so no one ever waits for another tenant's answer."""

    __slots__ = ("_followers_max", "_waiting")

    def __init__(self, followers_max: int) -> None:
        self._followers_max = followers_max
        self._waiting: dict[CacheKey, list[W]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, key: CacheKey, waiter: W) -> Role:
        """Enter a flight: the first leads, the next ones follow while there is room."""
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = []
            return Role.LEAD
        if len(waiting) >= self._followers_max:
            return Role.ALONE
        waiting.append(waiter)
        return Role.FOLLOW

    def leave(self, key: CacheKey, waiter: W) -> None:
        """Take a follower out: its wait or its client ended."""
        waiting = self._waiting.get(key)
        if waiting is not None and waiter in waiting:
            waiting.remove(waiter)

    def land(self, key: CacheKey) -> list[W]:
        """End a flight, whatever became of its leader; returns who waited."""
        return self._waiting.pop(key, [])
