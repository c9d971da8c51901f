"""An exponentially weighted mean that stays inside stated bounds and ignores what is no number."""

from __future__ import annotations

import math


class Ewma:
    """`value ← (1 − weight) · value + weight · sample`, both clamped to [low, high]."""

    __slots__ = ("high", "low", "value", "weight")

    def __init__(self, value: float, weight: float, low: float = -math.inf, high: float = math.inf) -> None:
        self.value = value
        self.weight = weight
        self.low = low
        self.high = high

    def add(self, sample: float) -> float:
        """Take one sample in and return the mean; NaN changes nothing."""
        if sample == sample:  # noqa: PLR0124 - the one comparison that NaN fails
            if sample < self.low:
                sample = self.low
            elif sample > self.high:
                sample = self.high
            self.value += self.weight * (sample - self.value)
        return self.value
