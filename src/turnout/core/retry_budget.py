"""How many attempts beyond the first a model may cost: a share of its exchanges plus a floor (resilience N5)."""

from __future__ import annotations

from collections import deque

from turnout.core.options import Retry

_WINDOW_S = 10.0


class RetryBudget:
    """Counts exchanges and extra attempts over ten one-second buckets, whatever fails."""

    __slots__ = ("_buckets", "_extra", "_floor", "_ratio", "_started", "refused_total")

    def __init__(self, options: Retry) -> None:
        self._ratio = options.budget_ratio
        self._floor = options.budget_floor_per_s * _WINDOW_S
        self._buckets: deque[list[float]] = deque()  # [second, exchanges, extra attempts]
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
        self._bucket(now // 1)
        return self._extra + 1 <= self._ratio * self._started + self._floor

    def take(self, now: float) -> bool:
        """Take one extra attempt if the budget has one."""
        if not self.has(now):
            self.refused_total += 1
            return False
        self._buckets[-1][2] += 1
        self._extra += 1
        return True

    def _bucket(self, second: float) -> list[float]:
        buckets = self._buckets
        while buckets and buckets[0][0] <= second - _WINDOW_S:
            _, started, extra = buckets.popleft()
            self._started -= int(started)
            self._extra -= int(extra)
        if not buckets or buckets[-1][0] != second:
            buckets.append([second, 0, 0])
        return buckets[-1]
