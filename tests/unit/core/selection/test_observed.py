"""Figures from the ledger: only with enough samples, only while they are young, always with their age."""

from __future__ import annotations

import numpy as np
import pytest

from turnout.core.facts import RouteKey, RouteStats, StatsSnapshot
from turnout.core.selection.arrays import frozen
from turnout.core.selection.blend import Blend
from turnout.core.selection.bundle import Axes, Bundle
from turnout.core.selection.controls import Overrides
from turnout.core.selection.knobs import Defaults, default_knobs
from turnout.core.selection.observed import Observations, observed

R1, R2 = RouteKey("p", "big", ""), RouteKey("", "small", "e1")
ROUTES = {"big": [R1], "small": [R2, RouteKey("", "small", "e2")], "idle": []}
STATS = {
    "big": RouteStats(n=30, counted_n=20, ok_n=15, ttft_n=20, ttft_sum_ms=20_000),
    "small": RouteStats(n=30, counted_n=19, ok_n=0, ttft_n=19, ttft_sum_ms=1),
}
SNAPSHOT = StatsSnapshot(observed_at_ms=1_000_000, models=STATS, tool_incapable=frozenset((R1, R2)))


def test_too_few_samples_are_no_figure() -> None:
    seen = observed(SNAPSHOT, ROUTES, ROUTES.__getitem__)
    assert (seen.success_rate, seen.ttft_s, seen.at_ms) == ({"big": 0.75}, {"big": 1.0}, 1_000_000)
    assert seen.tool_weak == {"big"}  # of small one route may still emit calls; idle has none


def test_derived_statistics_carry_their_age() -> None:
    now, snapshot, made = [1_030_000], [SNAPSHOT], []

    def routes_of(model: str) -> list[RouteKey]:
        made.append(model)
        return ROUTES[model]

    observations = Observations(lambda: snapshot[0], lambda: now[0], lambda: ROUTES, routes_of, max_age_s=30)
    assert observations.now().at_ms == 1_000_000
    assert observations.now() is observations.now()
    assert len(made) == 3  # derived once per snapshot
    now[0] += 1
    assert observations.now().at_ms == 0
    assert observations.now().success_rate == {}
    snapshot[0] = StatsSnapshot(observed_at_ms=1_020_000, models={})
    assert (observations.now().at_ms, observations.now().ttft_s) == (1_020_000, {})
    snapshot[0] = StatsSnapshot()
    assert observations.now().at_ms == 0


def test_observed_timings_move_the_speed_axis_only() -> None:
    nothing = frozen([np.nan, np.nan])
    axes = Axes(frozen([1.0, 1.0]), frozen([1.0, 1.0]), frozen([0.1, 0.5]), frozen([100.0, 100.0]), nothing)
    bundle = Bundle(
        version="v", digest="d", embedder_id="e", centroids=frozen([[1.0, 0.0]]), models=("big", "small"), top_p=1,
        quality=frozen([[0.5, 0.5]]), axes=axes, defaults=Defaults(default_knobs(1)),
    )  # fmt: skip
    blend, fast = Blend(bundle), Overrides(alpha=0.1, speed_weight=0.5, params=(("alpha", "a"), ("speed_weight", "s")))
    assert blend.weigh("", fast).quickness == pytest.approx([1, 0])
    times = {"big": 2.0}
    timed = blend.timed(times)
    assert timed is blend.timed(times)
    assert timed.weigh("", fast).quickness == pytest.approx([0, 1])
    assert timed.weigh("", fast).hash == blend.weigh("", fast).hash
    assert blend.timed({}) is blend
    assert blend.weigh("", fast).quickness == pytest.approx([1, 0])
