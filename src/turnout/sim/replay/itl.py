"""Gaps between tokens as a histogram with one per cent wide buckets: every token counts, none is stored."""

from __future__ import annotations

import math

_FLOOR_S = 1e-4
_WIDTH = math.log(1.01)


class GapHistogram:
    """Counts of gaps in seconds by logarithm; quantiles are right to one per cent."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def add_series(self, first_s: float, growth_s: float, steps: int, each: int) -> None:
        """Take in `steps` gaps of `each` sequences, the first `first_s` long and each `growth_s` longer."""
        counts = self.counts
        last_s = first_s + growth_s * (steps - 1)
        if first_s > 0.0 and last_s <= first_s * 1.01:
            bucket = _bucket((first_s + last_s) / 2)
            counts[bucket] = counts.get(bucket, 0) + steps * each
            return
        done = 0
        while done < steps:
            gap_s = first_s + growth_s * done
            reach = max(1, min(steps - done, int(gap_s * 0.01 / growth_s) if growth_s > 0.0 else steps))
            bucket = _bucket(gap_s + growth_s * (reach - 1) / 2)
            counts[bucket] = counts.get(bucket, 0) + reach * each
            done += reach

    def merge(self, other: GapHistogram) -> None:
        """Add the counts of another histogram."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count

    @property
    def total(self) -> int:
        """Gaps in all."""
        return sum(self.counts.values())

    def quantile(self, share: float) -> float | None:
        """Return the gap that `share` of all do not exceed; None without gaps."""
        total = self.total
        if not total:
            return None
        rank = math.ceil(share * total)
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return _FLOOR_S * math.exp((bucket + 0.5) * _WIDTH)
        return None


def _bucket(gap_s: float) -> int:
    return int(math.log(gap_s / _FLOOR_S) / _WIDTH) if gap_s > _FLOOR_S else 0
