"""When a slow first token is worth a duplicate, and how many duplicates a model may cost (resilience Z1 to Z3).

Per model: the 95th percentile of the first tokens of ten minutes, and a window of one minute that counts attempts and
hedges. Nothing here runs for a model that has not opted in.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from turnout.core.options import Hedge

_KEEP_S: Final = 600.0
_KEEP_MAX: Final = 4096
_QUANTILE: Final = 0.95
_WINDOW_S: Final = 60.0
_REFRESH_S: Final = 1.0


class HedgeTrigger:
    """The first tokens of one model, and what hedging has cost lately."""

    __slots__ = ("_attempts", "_options", "_p95_s", "_refreshed_at", "_ttfts")

    def __init__(self, options: Hedge) -> None:
        self._options = options
        self._ttfts: deque[tuple[float, float]] = deque(maxlen=_KEEP_MAX)
        self._attempts: deque[list[float]] = deque()  # [second, attempts, hedges]
        self._p95_s: float | None = None
        self._refreshed_at = -math.inf

    def first_token(self, ttft_s: float, now: float) -> None:
        """Learn how long a first token took."""
        self._ttfts.append((now, ttft_s))

    def attempted(self, now: float) -> None:
        """Count one attempt."""
        self._slice(now)[1] += 1

    def due_after_s(self, now: float) -> float | None:
        """How long an attempt may go without its first token before a hedge; None while too little is known."""
        first = self._p95_s is None and len(self._ttfts) >= self._options.samples_min
        if first or now - self._refreshed_at >= _REFRESH_S:
            self._refreshed_at = now
            while self._ttfts and self._ttfts[0][0] <= now - _KEEP_S:
                self._ttfts.popleft()
            known = sorted(ttft_s for _, ttft_s in self._ttfts)
            enough = len(known) >= self._options.samples_min
            self._p95_s = known[math.ceil(_QUANTILE * len(known)) - 1] if enough else None
        return None if self._p95_s is None else max(self._p95_s, self._options.wait_min_s)

    def take(self, now: float) -> bool:
        """Take one hedge if the minute has one left; a hedge is an attempt, too."""
        newest = self._slice(now)
        attempts = sum(number for _, number, _ in self._attempts)
        hedges = sum(number for _, _, number in self._attempts)
        if hedges + 1 > self._options.ratio * (attempts + 1):
            return False
        newest[1] += 1
        newest[2] += 1
        return True

    def _slice(self, now: float) -> list[float]:
        second = now // 1
        slices = self._attempts
        while slices and slices[0][0] <= second - _WINDOW_S:
            slices.popleft()
        if not slices or slices[-1][0] != second:
            slices.append([second, 0, 0])
        return slices[-1]
