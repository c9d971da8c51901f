"""The blend (selection §5): quality, cost and speed of every deployed model by the nearest clusters, in float64.

What depends on knobs alone is computed once per knobs and kept (256 of them); a request then adds up the rows of its
clusters. The calls of numpy are what a selection takes, so the path of a request makes as few of them as will do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from turnout.core.kit.lru import LruMap
from turnout.core.selection import controls, knobs, norms
from turnout.core.selection.arrays import Floats, Floats32, Ints, frozen
from turnout.core.selection.bundle import Bundle, with_timings
from turnout.core.selection.clusters import BILLION, Nearest, at_centroid, nearest
from turnout.core.selection.controls import Overrides
from turnout.core.selection.knobs import Knobs

_KNOBS_KEPT = 256
# The knobs' own check lets alpha + speed pass 1 by this much: what is left for the two axes below it is rounding.
_NOTHING_LEFT = knobs.SUM_SLACK


class NotFinite(ArithmeticError):
    """A score is not a finite number: no model may be picked by it (503 and an alarm)."""


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


class Blend:
    """Scores the deployed models of one bundle snapshot. Holds no state of requests but the kept knobs."""

    __slots__ = ("_kept", "_mean_row", "_quality", "_rows", "_starts", "_timed", "bundle")

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._timed: tuple[Mapping[str, float], Blend] | None = None
        self._kept: LruMap[tuple[str, Overrides], Weighted] = LruMap(_KNOBS_KEPT)
        # Centroids, scaled for `nearest`, and head in one matrix: one product over both is quicker than two. The
        # head's column for the length is nothing to the centroids.
        rows = bundle.centroids * -BILLION
        head = bundle.head
        self._rows = frozen(rows if head is None else np.vstack((np.pad(rows, ((0, 0), (0, 1))), head)))
        self._starts = norms.row_starts(bundle.top_p, len(bundle.models))
        table = bundle.quality
        self._quality = None if table is None else frozen(norms.normalise(table.copy()))
        self._mean_row = None if table is None else frozen(norms.normalise(table.mean(axis=0, keepdims=True))[0])

    def timed(self, ttft_s: Mapping[str, float]) -> Blend:
        """Return this blend at observed times to first token; the latest one is kept, so ask with the same mapping."""
        if self.bundle.axes is None or not ttft_s:
            return self
        if self._timed is None or self._timed[0] is not ttft_s:
            found = Blend.__new__(Blend)
            found.bundle, found._timed = with_timings(self.bundle, ttft_s), None
            found._kept, found._quality, found._mean_row = LruMap(_KNOBS_KEPT), self._quality, self._mean_row
            found._rows, found._starts = self._rows, self._starts
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

    def nearest(self, vector: Floats32, length: float) -> Nearest:
        """Return a request's clusters, and what the linear head makes of it.

        Args:
            vector: its embedding.
            length: its length feature (`embedder.length_feature`), which a linear head reads.

        """
        bundle = self.bundle
        if bundle.head is None:
            return nearest(self._rows.dot(vector.astype(np.float64)), bundle.top_p)
        seen = np.empty(bundle.dim + 1)
        seen[:-1] = vector
        seen[-1] = length
        products = self._rows.dot(seen)
        return nearest(products[: bundle.clusters], bundle.top_p, products[bundle.clusters :])

    def score(self, weighted: Weighted, near: Nearest) -> Scores:
        """Score every deployed model, at knobs from `weigh` of this very blend.

        Raises:
            NotFinite: a score is no finite number.

        """
        bundle = self.bundle
        if bundle.quality is None:
            return self._baked_in(near)
        chosen = near.ascending
        weights = weighted.quality.take(chosen)
        out_of_domain = self._is_far(near)
        if out_of_domain:
            quality = np.add.reduce(weights) * self._mean_row
        elif near.raised is None:
            quality = weights.dot(self._quality.take(chosen, 0))  # type: ignore[union-attr]
        else:
            rows, span = self._raised(near.raised, chosen)
            weights /= span
            quality = weights.dot(rows)
        if weighted.shared is not None and len(chosen) == bundle.top_p:
            cost, speed, both = weighted.shared
        else:
            cost, speed, both = _beside_quality(weighted, weighted.cost.take(chosen))
        return _ranked(quality, cost, speed, quality + both, out_of_domain=out_of_domain)

    def quality_norms(self, near: Nearest) -> Floats:
        """Return the quality norms of a request's clusters, ascending, as `score` weighs them."""
        chosen = near.ascending
        if self._is_far(near):
            return np.tile(self._mean_row, (len(chosen), 1))  # type: ignore[arg-type]
        if near.raised is None:
            return self._quality.take(chosen, 0)  # type: ignore[union-attr]
        rows, span = self._raised(near.raised, chosen)
        return rows / span[:, None]

    def _is_far(self, near: Nearest) -> bool:
        """Tell whether a text is out of domain: all clusters' mean judges it then."""
        least = self.bundle.abstain_similarity
        return least is not None and near.billionths.item(0) / -BILLION < least

    def _raised(self, raised: Floats, chosen: Ints) -> tuple[Floats, Floats]:
        """Return the quality of some clusters with the head's part: each row from 0, and its span."""
        rows = self.bundle.quality.take(chosen, 0)  # type: ignore[union-attr]
        rows += raised
        return norms.shifted(rows, self._starts[: len(chosen)])

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
        quick, timed = norms.quickness(axes, effective)
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
            frozen(1.0 - norms.cost_norm(axes, effective)),
            frozen(quick),
            tuple(np.isnan(norms.seconds(axes, effective)).tolist()),
            tuple(norms.unpriced(axes, effective).tolist()),
        )
        if (alpha != alpha[0]).any():
            return found
        return msgspec.structs.replace(found, shared=_beside_quality(found, found.cost[: bundle.top_p]))


def winners(blend: Blend, weighted: Weighted) -> list[str]:
    """Return the first choice for a prompt that lies exactly on a centroid, one per cluster."""
    bundle = blend.bundle
    firsts = [blend.score(weighted, at_centroid(cluster)).order[0] for cluster in range(bundle.clusters)]
    return [bundle.models[first] for first in firsts]


def shares(blend: Blend, weighted: Weighted) -> dict[str, float]:
    """Return the share of each model among the winners of all clusters."""
    first = winners(blend, weighted)
    return {model: first.count(model) / len(first) for model in blend.bundle.models}


def _beside_quality(weighted: Weighted, cost_weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Return cost, speed and their sum over some clusters, given their weights of cost."""
    cost = float(np.add.reduce(cost_weights)) * weighted.cheapness
    speed = (len(cost_weights) * weighted.speed) * weighted.quickness
    return frozen(cost), frozen(speed), frozen(cost + speed)


def _ranked(quality: Floats, cost: Floats, speed: Floats, score: Floats, *, out_of_domain: bool) -> Scores:
    order = np.rint(score * -BILLION).argsort(kind="stable")
    # Infinities are sorted to the ends and NaN behind everything, so the ends tell of all.
    if not (math.isfinite(score.item(order.item(0))) and math.isfinite(score.item(order.item(-1)))):
        raise NotFinite("a score is not finite")
    return Scores(score, quality, cost, speed, order, out_of_domain)
