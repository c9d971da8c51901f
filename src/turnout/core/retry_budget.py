"""How many attempts beyond the first a model may cost: a share of its exchanges plus a floor (resilience N5)."""

from __future__ import annotations

from collections import deque
from typing import Final

from turnout.core.options import Retry

_WINDOW_S: Final = 10.0


class RetryBudget:
    """Counts exchanges and extra attempts by the second, whatever fails.

    Seconds are cut off whole, so that the promise holds for any ten seconds: an exchange counts for the last nine whole
    ones and the current one, an extra attempt for one more.
    """

    __slots__ = ("_buckets", "_extra", "_floor", "_ratio", "_started", "_taken", "refused_total")

    def __init__(self, options: Retry) -> None:
        self._ratio = options.budget_ratio
        self._floor = options.budget_floor_per_s * _WINDOW_S
        self._buckets: deque[list[float]] = deque()  # [second, exchanges]
        self._taken: deque[list[float]] = deque()  # [second, extra attempts]
        self._started = 0
        self._extra = 0
        self.refused_total = 0

    def exchange_started(self, now: float) -> None:
        """Count an exchange as active in this window."""
        second = now // 1
        buckets = self._buckets
        if buckets and buckets[-1][0] == second:
            buckets[-1][1] += 1
        else:
            self._bucket(second)[1] += 1
        self._started += 1

    def has(self, now: float) -> bool:
        """Tell whether `take` would succeed."""
        second = now // 1
        self._bucket(second)
        taken = self._taken
        while taken and taken[0][0] < second - _WINDOW_S:
            self._extra -= int(taken.popleft()[1])
        return self._extra + 1 <= self._ratio * self._started + self._floor

    def take(self, now: float) -> bool:
        """Take one extra attempt if the budget has one."""
        if not self.has(now):
            self.refused_total += 1
            return False
        second, taken = now // 1, self._taken
        if taken and taken[-1][0] == second:
            taken[-1][1] += 1
        else:
            taken.append([second, 1])
        self._extra += 1
        return True

    def _bucket(self, second: float) -> list[float]:
        buckets = self._buckets
        while buckets and buckets[0][0] <= second - _WINDOW_S:
            self._started -= int(buckets.popleft()[1])
        if not buckets or buckets[-1][0] != second:
            buckets.append([second, 0])
        return buckets[-1]
