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

_SCALE = 1e9  # scores and similarities are compared by 9 decimals
_KNOBS_KEPT = 256
_SORTED_WHOLE_MAX = 512  # up to here sorting all clusters is cheaper than picking the candidates first
# The knobs' own check lets alpha + speed pass 1 by this much: what is left for the two axes below it is rounding.
_NOTHING_LEFT = knobs.SUM_SLACK
_LEAST_SPAN = 1e-300  # a row without range is 0 divided by it


class NotFinite(ArithmeticError):
    """A score is not a finite number: no model may be picked by it (503 and an alarm)."""


class Nearest(msgspec.Struct, frozen=True):
    """The top P clusters: ascending index for the blend, nearest first for the response cache."""

    ascending: Ints
    nearest_first: tuple[int, ...]
    billionths: tuple[float, ...]
    """Aligned with `nearest_first`: similarities, negative and in billionths, as they were sorted."""
    raised: Floats | None = None
    """What the linear head adds per model, without its part for the length; None: nothing."""

    @property
    def similarities(self) -> tuple[float, ...]:
        """Aligned with `nearest_first`, rounded to 9 decimals."""
        return tuple([value / -_SCALE + 0.0 for value in self.billionths])  # + 0.0: no negative zero


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
    shared: tuple[Floats, Floats, Floats] | None = None
    """Cost, speed and their sum over the top P clusters, where alpha is the same on all: no request changes them."""


class Scores(msgspec.Struct, frozen=True):
    """One request's scores, columns as `Bundle.models`. `order` ranks all of them, best first."""

    score: Floats
    quality: Floats
    cost: Floats
    speed: Floats
    order: Ints
    out_of_domain: bool = False


def nearest(billionths: Floats, top_p: int, raised: Floats | None = None) -> Nearest:
    """Return the P clusters of largest similarity; equal ones in favour of the lower index.

    Args:
        billionths: similarities times -10^9, so that rounding leaves 9 decimals and sorting begins with the largest.
        top_p: how many.
        raised: what goes into the result.

    """
    whole = np.rint(billionths)
    size = len(whole)
    if size <= _SORTED_WHOLE_MAX or top_p >= size:
        ordered = whole.argsort(kind="stable")[:top_p]
    else:
        candidates = np.flatnonzero(whole <= np.partition(whole, top_p - 1)[top_p - 1])
        ordered = candidates[whole[candidates].argsort(kind="stable")][:top_p]
    ascending = ordered.copy()
    ascending.sort()
    return Nearest(ascending, tuple(ordered.tolist()), tuple(whole.take(ordered).tolist()), raised)


def normalise(rows: Floats) -> Floats:
    """Scale each row to [0, 1] over its models, in place; a row without range becomes 0, NaN stays NaN."""
    low = np.minimum.reduce(rows, 1, keepdims=True)
    span = np.maximum.reduce(rows, 1, keepdims=True)
    span -= low
    rows -= low
    rows /= np.maximum(span, _LEAST_SPAN, out=span)
    return rows


class Blend:
    """Scores the deployed models of one bundle snapshot. Holds no state of requests but the kept knobs."""

    __slots__ = ("_kept", "_mean_row", "_per_length", "_quality", "_rows", "_timed", "bundle")

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._timed: tuple[Mapping[str, float], Blend] | None = None
        self._kept: LruMap[tuple[str, Overrides], Weighted] = LruMap(_KNOBS_KEPT)
        head = bundle.head
        # Centroids and head in one matrix: one product over both is quicker than two. The embedding comes scaled for
        # `nearest`, which the head's rows take back.
        self._rows = bundle.centroids if head is None else frozen(np.vstack((bundle.centroids, head[:, :-1] / -_SCALE)))
        self._per_length = None if head is None else frozen(head[:, -1])
        table = bundle.quality
        self._quality = None if table is None else frozen(normalise(table.copy()))
        self._mean_row = None if table is None else frozen(normalise(table.mean(axis=0, keepdims=True)))

    def timed(self, ttft_s: Mapping[str, float]) -> Blend:
        """Return this blend at observed times to first token; the latest one is kept, so ask with the same mapping."""
        if self.bundle.axes is None or not ttft_s:
            return self
        if self._timed is None or self._timed[0] is not ttft_s:
            found = Blend.__new__(Blend)
            found.bundle, found._timed = with_timings(self.bundle, ttft_s), None
            found._kept, found._quality, found._mean_row = LruMap(_KNOBS_KEPT), self._quality, self._mean_row
            found._rows, found._per_length = self._rows, self._per_length
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

    def nearest(self, vector: Floats32) -> Nearest:
        """Return a request's clusters, and what the linear head makes of its embedding."""
        products = self._rows.dot(np.multiply(vector, -_SCALE, dtype=np.float64))
        bundle = self.bundle
        if bundle.head is None:
            return nearest(products, bundle.top_p)
        return nearest(products[: bundle.clusters], bundle.top_p, products[bundle.clusters :])

    def score(self, weighted: Weighted, near: Nearest, length: float = 0.0) -> Scores:
        """Score every deployed model.

        Args:
            weighted: from `weigh` of this very blend.
            near: the request's clusters.
            length: its length feature (`embedder.length_feature`), which a linear head reads.

        Raises:
            NotFinite: a score is no finite number.

        """
        bundle = self.bundle
        if bundle.quality is None:
            return self._baked_in(near)
        chosen = near.ascending
        rows, out_of_domain = self.quality_rows(near, length)
        quality = weighted.quality.take(chosen).dot(rows)
        if weighted.shared is not None and len(chosen) == bundle.top_p:
            cost, speed, both = weighted.shared
        else:
            cost, speed, both = _beside_quality(weighted, weighted.cost.take(chosen))
        return _ranked(quality, cost, speed, quality + both, out_of_domain=out_of_domain)

    def quality_rows(self, near: Nearest, length: float) -> tuple[Floats, bool]:
        """Return the quality norms of a request's clusters, ascending, and whether it is out of domain."""
        bundle, least = self.bundle, self.bundle.abstain_similarity
        if least is not None and near.billionths[0] / -_SCALE < least:
            return np.repeat(self._mean_row, len(near.ascending), axis=0), True  # type: ignore[arg-type]
        if near.raised is None:
            return self._quality.take(near.ascending, 0), False  # type: ignore[union-attr]
        assert self._per_length is not None  # a head raised it
        assert bundle.quality is not None  # and only tables of quality have one
        raised = self._per_length * length
        raised += near.raised
        rows = bundle.quality.take(near.ascending, 0)
        rows += raised
        return normalise(rows), False

    def _baked_in(self, near: Nearest) -> Scores:
        """v1: the sum of the ranking rows; which axis earned it cannot be told apart any more."""
        table = self.bundle.rankings
        assert table is not None
        quality = table[near.ascending].sum(axis=0)
        nothing = np.zeros_like(quality)
        return _ranked(quality, nothing, nothing, quality, out_of_domain=False)

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
        effective = knobs.effective(bundle.defaults, preset, overrides, bundle.clusters)
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
        found = Weighted(
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
        if (alpha != alpha[0]).any():
            return found
        return msgspec.structs.replace(found, shared=_beside_quality(found, found.cost[: bundle.top_p]))


def at_centroid(cluster: int) -> Nearest:
    """Return what is nearest to a prompt that lies exactly on a centroid: that cluster alone."""
    return Nearest(np.array([cluster]), (cluster,), (-_SCALE,))


def centroid_shares(blend: Blend, weighted: Weighted) -> dict[str, float]:
    """Return the share of each model among the first choices for prompts that lie exactly on a centroid."""
    bundle = blend.bundle
    counts = dict.fromkeys(bundle.models, 0)
    for cluster in range(bundle.clusters):
        scores = blend.score(weighted, at_centroid(cluster))
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


def _beside_quality(weighted: Weighted, cost_weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Return cost, speed and their sum over some clusters, given their weights of cost."""
    cost = float(np.add.reduce(cost_weights)) * weighted.cheapness
    speed = (len(cost_weights) * weighted.speed) * weighted.quickness
    return frozen(cost), frozen(speed), frozen(cost + speed)


def _ranked(quality: Floats, cost: Floats, speed: Floats, score: Floats, *, out_of_domain: bool) -> Scores:
    order = np.rint(score * -_SCALE).argsort(kind="stable")
    # Infinities are sorted to the ends and NaN behind everything, so the ends tell of all.
    if not (math.isfinite(score.item(order.item(0))) and math.isfinite(score.item(order.item(-1)))):
        raise NotFinite("a score is not finite")
    return Scores(score, quality, cost, speed, order, out_of_domain)
