"""How much of the system each principal holds, and how fast the pool gives places back (resilience Q8 to Q10).

Counts exist only while they are not zero, so memory is bounded by what is open.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

_WINDOW_S: Final = 30
_KNOWN_FROM: Final = 5
_RETRY_MIN_S: Final = 1
_RETRY_MAX_S: Final = 120


class Shares:
    """Places held per principal: taken once, given back once."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def take(self, principal: str) -> None:
        """Hold one more place."""
        self._held[principal] = self._held.get(principal, 0) + 1

    def give(self, principal: str) -> None:
        """Give one place back. Raises KeyError when none is held: a lease was returned twice."""
        held = self._held[principal] - 1
        if held:
            self._held[principal] = held
        else:
            del self._held[principal]

    def of(self, principal: str) -> int:
        """Places held."""
        return self._held.get(principal, 0)


class DrainRate:
    """Places given back in the last 30 s, in slices of one second."""

    __slots__ = ("_slices", "_total")

    def __init__(self) -> None:
        self._slices: deque[tuple[int, int]] = deque()
        self._total = 0

    def gave_back(self, count: int, now: float) -> None:
        """Count places that became free."""
        if count <= 0:
            return
        second = int(now)
        self._total += count
        if self._slices and self._slices[-1][0] == second:
            count += self._slices.pop()[1]
        self._slices.append((second, count))
        self._forget(now)

    def per_s(self, now: float) -> float | None:
        """Places per second; None while fewer than five were given back."""
        self._forget(now)
        return self._total / _WINDOW_S if self._total >= _KNOWN_FROM else None

    def _forget(self, now: float) -> None:
        while self._slices and self._slices[0][0] <= now - _WINDOW_S:
            self._total -= self._slices.popleft()[1]


def retry_after_s(ahead: int, rate: float | None, pending: int, max_in_flight: int) -> int:
    """Seconds after which a refused client should come back (Q8).

    Args:
        ahead: who waits before it.
        rate: places per second, None when unknown.
        pending: requests in flight and waiting.
        max_in_flight: places in all.

    """
    wait = math.ceil((ahead + 1) / rate) if rate else (max(0, pending - max_in_flight) + 1) * 2
    return min(max(wait, _RETRY_MIN_S), _RETRY_MAX_S)
