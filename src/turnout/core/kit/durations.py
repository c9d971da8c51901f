"""Counts of durations by upper bound, as metrics pages want them: `counts[i]` values were at most `bounds[i]`."""

from __future__ import annotations

from bisect import bisect_left

BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


class Durations:
    """One count per bound, one above all, and the sum in seconds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self) -> None:
        self.bounds = BOUNDS_S
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value; a negative one is no measurement."""
        if seconds >= 0.0:
            self.counts[bisect_left(self.bounds, seconds)] += 1
            self.sum += seconds

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)
