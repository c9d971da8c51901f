"""How many of the last results were bad: counts in ten slices of a sliding window, constant in time and memory."""

from __future__ import annotations

from typing import Final

_SLICES: Final = 10


class RatioWindow:
    """Good and bad results of the last `window_s` seconds; results leave a tenth of the window at a time."""

    __slots__ = ("_bad", "_good", "_newest", "_width_s")

    def __init__(self, window_s: float) -> None:
        self._width_s = window_s / _SLICES
        self._newest = -_SLICES
        self._good = [0] * _SLICES
        self._bad = [0] * _SLICES

    def add_good(self, now: float) -> None:
        """Count one good result."""
        self._good[self._slice(now)] += 1

    def add_bad(self, now: float) -> None:
        """Count one bad result."""
        self._bad[self._slice(now)] += 1

    def totals(self, now: float) -> tuple[int, int]:
        """Return (bad, all) of the window."""
        self._slice(now)
        bad = sum(self._bad)
        return bad, bad + sum(self._good)

    def clear(self) -> None:
        """Forget everything."""
        self._good = [0] * _SLICES
        self._bad = [0] * _SLICES

    def _slice(self, now: float) -> int:
        number = int(now / self._width_s)
        # A clock that steps back counts into the newest slice rather than into one that holds other results.
        if number > self._newest:
            for stale in range(max(self._newest + 1, number - _SLICES + 1), number + 1):
                self._good[stale % _SLICES] = 0
                self._bad[stale % _SLICES] = 0
            self._newest = number
        return self._newest % _SLICES
