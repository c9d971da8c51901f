"""The cost–quality curve of a weak and a strong model, and what is read off it: APGR, CPT, with confidence intervals.

Prompts go to the strong model in the order of their gain. Points stand after whole tie groups only, straight lines lie
between them, so an order that knows nothing (one tie group) is exactly the diagonal.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from turnout.core.selection.arrays import Floats

CONFIDENCE = 0.95
RESAMPLES = 400


class Curve(msgspec.Struct, frozen=True):
    """Share of strong calls and mean score at each point, and the two ends."""

    share: Floats
    score: Floats
    weak: float
    strong: float

    @property
    def apgr(self) -> float:
        """Average share of the gap between weak and strong that is recovered; NaN without a gap."""
        area = float(np.sum(np.diff(self.share) * (self.score[1:] + self.score[:-1]) / 2.0))
        gap = self.strong - self.weak
        return (area - self.weak) / gap if gap else float("nan")

    def cpt(self, part: float) -> float:
        """Return the least share of strong calls that recovers a part of the gap; NaN when nothing does."""
        wanted = self.weak + part * (self.strong - self.weak)
        reached = np.flatnonzero(self.score >= wanted - 1e-12)
        if len(reached) == 0:
            return float("nan")
        at = int(reached[0])
        if at == 0:
            return float(self.share[0])
        low, high = self.score[at - 1], self.score[at]
        x0, x1 = self.share[at - 1], self.share[at]
        return float(x0 + (wanted - low) / (high - low) * (x1 - x0))


class Interval(msgspec.Struct, frozen=True, gc=False):
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class Reading(msgspec.Struct, frozen=True):
    """What is published of one order of prompts."""

    apgr: Interval
    cpt50: Interval
    cpt80: Interval


def curve(gain: Floats, weak: Floats, strong: Floats) -> Curve:
    """Return the curve of sending prompts to the strong model by descending gain."""
    order = np.argsort(-gain, kind="stable")
    count = len(gain)
    score = np.concatenate([[0.0], np.cumsum((strong - weak)[order])]) / count + weak.mean()
    ends = np.concatenate([[0], np.flatnonzero(np.diff(gain[order]) != 0.0) + 1, [count]])
    return Curve(ends / count, score[ends], float(weak.mean()), float(strong.mean()))


def read_off(gain: Floats, weak: Floats, strong: Floats, *, seed: int, resamples: int = RESAMPLES) -> Reading:
    """Return APGR, CPT50 and CPT80 with intervals over resampled prompts."""
    whole = curve(gain, weak, strong)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        rows = rng.integers(len(gain), size=len(gain))
        drawn.append(curve(gain[rows], weak[rows], strong[rows]))
    return Reading(
        _interval(lambda c: c.apgr, whole, drawn),
        _interval(lambda c: c.cpt(0.5), whole, drawn),
        _interval(lambda c: c.cpt(0.8), whole, drawn),
    )


def oracle_gain(weak: Floats, strong: Floats) -> Floats:
    """Return the order that knows the labels: the most that any selection could reach."""
    return strong - weak


def _interval(figure: Callable[[Curve], float], whole: Curve, drawn: list[Curve]) -> Interval:
    values = np.array([figure(one) for one in drawn])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return Interval(figure(whole), float("nan"), float("nan"))
    edge = (1.0 - CONFIDENCE) / 2.0
    return Interval(figure(whole), float(np.quantile(values, edge)), float(np.quantile(values, 1.0 - edge)))


def calibration(gain: Floats, weak: Floats, strong: Floats, bins: int = 10) -> list[tuple[float, float, int]]:
    """Return per decile of gain: its mean predicted gain, the mean gain that came true, and how many prompts."""
    order = np.argsort(gain, kind="stable")
    rows = [part for part in np.array_split(order, bins) if len(part)]
    return [(float(gain[part].mean()), float((strong - weak)[part].mean()), len(part)) for part in rows]
