"""The blend (selection §4, §5): nearest clusters, then quality, cost and speed of every deployed model, in float64.

Minima and maxima run over all deployed models, never over the eligible ones, so a filter changes no score. What depends
on knobs alone is computed once per knobs and kept (256 of them); a request then adds up the rows of its clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from turnout.core.kit.lru import LruMap
from turnout.core.selection import controls, knobs
from turnout.core.selection.arrays import Bools, Floats, Floats32, Ints, frozen
from turnout.core.selection.bundle import Axes, Bundle, with_timings
from turnout.core.selection.controls import Overrides
from turnout.core.selection.knobs import Knobs

DECIMALS = 9
_SCALE = 10.0**DECIMALS
_KNOBS_KEPT = 256
_SORTED_WHOLE_MAX = 512  # up to here sorting all clusters is cheaper than picking the candidates first
# The knobs' own check lets alpha + speed pass 1 by this much: what is left for the two axes below it is rounding.
_NOTHING_LEFT = knobs.SUM_SLACK


class NotFinite(ArithmeticError):
    """A score is not a finite number: no model may be picked by it (503 and an alarm)."""


class Nearest(msgspec.Struct, frozen=True):
    """The top P clusters: ascending index for the blend, nearest first for the response cache."""

    ascending: Ints
    nearest_first: Ints
    similarities: Floats
    """Aligned with `nearest_first`, rounded to 9 decimals."""


class Weighted(msgspec.Struct, frozen=True):
    """Effective knobs of one bundle and all that follows from them alone."""

    knobs: Knobs
    hash: int
    preset: str
    warning: str
    quality: Floats
    """Weight of quality per cluster."""
    cost: Floats
    """Weight of cost per cluster."""
    speed: float
    cheapness: Floats
    """1 minus the cost norm, per model."""
    quickness: Floats
    """1 minus the speed norm, per model; 0 for every untimed one."""
    untimed: tuple[bool, ...] = ()
    unpriced: tuple[bool, ...] = ()


class Scores(msgspec.Struct, frozen=True):
    """One request's scores, columns as `Bundle.models`. `order` ranks all of them, best first."""

    score: Floats
    quality: Floats
    cost: Floats
    speed: Floats
    order: Ints
    out_of_domain: bool = False


def nearest(centroids: Floats, vector: Floats32, top_p: int) -> Nearest:
    """Return the P clusters of largest similarity; equal ones in favour of the lower index."""
    # What np.round does, without its detour through Python.
    whole = np.rint((centroids @ vector.astype(np.float64)) * _SCALE)
    size = len(whole)
    if size <= _SORTED_WHOLE_MAX:
        ordered = (-whole).argsort(kind="stable")[:top_p]
        ascending = ordered.copy()
        ascending.sort()
        return Nearest(ascending, ordered, whole.take(ordered) / _SCALE)
    similarity = whole / _SCALE
    if top_p < size:
        least = np.partition(similarity, size - top_p)[size - top_p]
        candidates = np.flatnonzero(similarity >= least)
    else:
        candidates = np.arange(size)
    ordered = candidates[np.argsort(-similarity[candidates], kind="stable")][:top_p]
    return Nearest(np.sort(ordered), ordered, similarity[ordered])


def normalised(rows: Floats) -> Floats:
    """Return each row scaled to [0, 1] over its models; a row without range becomes 0, NaN stays NaN."""
    low = np.minimum.reduce(rows, axis=-1, keepdims=True)
    span = np.maximum.reduce(rows, axis=-1, keepdims=True) - low
    span[span <= 0.0] = 1.0  # the differences are 0, too
    scaled: Floats = (rows - low) / span
    return scaled


class Blend:
    """Scores the deployed models of one bundle snapshot. Holds no state of requests but the kept knobs."""

    __slots__ = ("_head", "_kept", "_mean_row", "_quality", "_timed", "bundle")

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._timed: tuple[Mapping[str, float], Blend] | None = None
        self._kept: LruMap[tuple[str, Overrides], Weighted] = LruMap(_KNOBS_KEPT)
        head = bundle.head
        # Rows of their own, without the length at their end: the product over them is twice as quick.
        self._head = None if head is None else (frozen(head[:, :-1]), frozen(head[:, -1]))
        table = bundle.quality
        self._quality = None if table is None else frozen(normalised(table))
        self._mean_row = None if table is None else frozen(normalised(table.mean(axis=0, keepdims=True)))

    def timed(self, ttft_s: Mapping[str, float]) -> Blend:
        """Return this blend at observed times to first token; the latest one is kept, so ask with the same mapping."""
        if self.bundle.axes is None or not ttft_s:
            return self
        if self._timed is None or self._timed[0] is not ttft_s:
            found = Blend.__new__(Blend)
            found.bundle, found._timed = with_timings(self.bundle, ttft_s), None
            found._kept, found._quality, found._mean_row = LruMap(_KNOBS_KEPT), self._quality, self._mean_row
            found._head = self._head
            self._timed = ttft_s, found
        return self._timed[1]

    def weigh(self, preset: str = "", overrides: Overrides = controls.NONE) -> Weighted:
        """Return the effective knobs with their weights and norms.

        Raises:
            KeyError: no such preset.
            InvalidKnobs: out of range, or any knob on a v1 bundle.

        """
        key = (preset, overrides)
        found = self._kept.use(key)
        if found is None:
            found = self._weigh(preset, overrides)
            self._kept.put(key, found)
        return found

    def score(self, weighted: Weighted, near: Nearest, vector: Floats32 | None = None, length: float = 0.0) -> Scores:
        """Score every deployed model.

        Args:
            weighted: from `weigh` of this very blend.
            near: the request's clusters.
            vector: its embedding; read when the bundle has a linear head.
            length: its length feature (`embedder.length_feature`).

        Raises:
            NotFinite: a score is no finite number.

        """
        bundle = self.bundle
        if bundle.quality is None:
            return self._baked_in(near)
        chosen = near.ascending
        out_of_domain = (
            bundle.abstain_similarity is not None and float(near.similarities[0]) < bundle.abstain_similarity
        )
        if out_of_domain:
            rows = np.repeat(self._mean_row, len(chosen), axis=0)  # type: ignore[arg-type]
        elif bundle.head is not None and vector is not None:
            rows = normalised(bundle.quality.take(chosen, axis=0) + self._raised(vector, length))
        else:
            rows = self._quality.take(chosen, axis=0)  # type: ignore[union-attr]
        quality = weighted.quality.take(chosen) @ rows
        cost = float(np.add.reduce(weighted.cost.take(chosen))) * weighted.cheapness
        speed = (len(chosen) * weighted.speed) * weighted.quickness
        return _ranked(quality, cost, speed, out_of_domain=out_of_domain)

    def _raised(self, vector: Floats32, length: float) -> Floats:
        assert self._head is not None
        weights, per_length = self._head
        raised: Floats = weights @ vector.astype(np.float64) + per_length * length
        return raised

    def _baked_in(self, near: Nearest) -> Scores:
        """v1: the sum of the ranking rows; which axis earned it cannot be told apart any more."""
        table = self.bundle.rankings
        assert table is not None
        quality = table[near.ascending].sum(axis=0)
        nothing = np.zeros_like(quality)
        return _ranked(quality, nothing, nothing, out_of_domain=False)

    def _weigh(self, preset: str, overrides: Overrides) -> Weighted:
        bundle = self.bundle
        if not bundle.is_v2:
            if preset or overrides:
                param = overrides.params[0][1] if overrides else "model"
                raise knobs.InvalidKnobs(
                    param, f"the bundle {bundle.version} is of format 1: its knobs are baked in, expected none"
                )
            nothing = frozen(np.zeros(bundle.clusters))
            none = frozen(np.zeros(len(bundle.models)))
            return Weighted(bundle.defaults.knobs, 0, "", "", nothing, nothing, 0.0, none, none)
        effective = knobs.effective(bundle.defaults, preset, overrides)
        axes = bundle.axes
        assert axes is not None
        quickness, timed = _quickness(axes, effective)
        alpha, speed = effective.alpha, effective.speed_weight
        for_cost = 1.0 - alpha - speed
        if timed:
            quality_weight, cost_weight = alpha, for_cost
        else:
            left = alpha + for_cost
            some = left > _NOTHING_LEFT
            quality_weight = np.divide(alpha, left, out=np.ones_like(left), where=some)
            cost_weight = np.divide(for_cost, left, out=np.zeros_like(left), where=some)
        return Weighted(
            effective,
            knobs.knobs_hash(effective),
            preset,
            knobs.extreme(effective, overrides),
            frozen(quality_weight),
            frozen(cost_weight),
            speed if timed else 0.0,
            frozen(1.0 - cost_norm(axes, effective)),
            frozen(quickness),
            tuple(np.isnan(seconds(axes, effective)).tolist()),
            tuple(unpriced(axes, effective).tolist()),
        )


def centroid_shares(blend: Blend, weighted: Weighted) -> dict[str, float]:
    """Return the share of each model among the first choices for prompts that lie exactly on a centroid."""
    bundle = blend.bundle
    counts = dict.fromkeys(bundle.models, 0)
    for cluster in range(bundle.clusters):
        one = np.array([cluster])
        scores = blend.score(weighted, Nearest(one, one, np.ones(1)))
        counts[bundle.models[int(scores.order[0])]] += 1
    return {model: count / bundle.clusters for model, count in counts.items()}


def cost_norm(axes: Axes, chosen: Knobs) -> Floats:
    """Return cost in [0, 1] over deployed models. Unknown is the dearest when anything is known; an explicit 0 is free.

    Raises nothing: unknown prices are NaN, and no comparison with one decides anything here.
    """
    ratio = chosen.output_cost_ratio
    verbosity = np.ones_like(axes.price_in)
    median = axes.median_verbosity()
    if chosen.per_model_verbosity and median > 0.0:
        verbosity = np.where(np.isnan(axes.verbosity), 1.0, axes.verbosity / median)
    cost = axes.price_in + (ratio * axes.price_out * verbosity if ratio > 0.0 else 0.0)
    known = ~np.isnan(cost)
    if not known.any():
        return np.zeros_like(cost)
    low, high = cost[known].min(), cost[known].max()
    norm = (cost - low) / (high - low) if high > low else np.zeros_like(cost)
    return np.where(known, norm, 1.0)


def seconds(axes: Axes, chosen: Knobs) -> Floats:
    """Return the expected seconds of an answer per model; NaN for an untimed one."""
    timed = ~np.isnan(axes.ttft_s) & (axes.tps > 0.0)
    out = np.full_like(axes.ttft_s, np.nan)
    return np.add(axes.ttft_s, np.divide(chosen.expected_output_tokens, axes.tps, out=out, where=timed))


def unpriced(axes: Axes, chosen: Knobs) -> Bools:
    """Tell per model whether its cost is unknown at these knobs, as a boolean column."""
    missing = np.isnan(axes.price_in)
    return missing | np.isnan(axes.price_out) if chosen.output_cost_ratio > 0.0 else missing


def _quickness(axes: Axes, chosen: Knobs) -> tuple[Floats, bool]:
    took = seconds(axes, chosen)
    known = ~np.isnan(took)
    if chosen.speed_weight <= 0.0 or not known.any():
        return np.zeros_like(took), False
    low, high = took[known].min(), took[known].max()
    if high <= low:
        return np.zeros_like(took), False
    return np.where(known, 1.0 - (took - low) / (high - low), 0.0), True


def _ranked(quality: Floats, cost: Floats, speed: Floats, *, out_of_domain: bool) -> Scores:
    score = quality + cost + speed
    if not math.isfinite(np.add.reduce(score)):  # one that is not makes the sum infinite or NaN
        raise NotFinite("a score is not finite")
    order = (-np.rint(score * _SCALE)).argsort(kind="stable")
    return Scores(score, quality, cost, speed, order, out_of_domain)
