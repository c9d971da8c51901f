"""The blend against an oracle written from selection §5 alone, one number at a time; and what must change nothing."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from turnout.core.selection import controls
from turnout.core.selection.arrays import Floats32, frozen
from turnout.core.selection.blend import Blend
from turnout.core.selection.bundle import Axes, Bundle
from turnout.core.selection.clusters import Nearest
from turnout.core.selection.eligibility import Eligible
from turnout.core.selection.knobs import Defaults, InvalidKnobs, Knobs
from turnout.core.selection.selection import select

UNKNOWN = None
BUNDLES = int(os.environ.get("TURNOUT_BUNDLES", "100"))
"""Random bundles x knobs that are compared with the oracle; the bar is 10,000, which take some minutes."""
Number = float | None


def oracle(
    quality: list[list[float]],
    prices: list[tuple[Number, Number]],
    timing: list[tuple[Number, Number]],
    verbosity: list[Number],
    knobs: Knobs,
    clusters: list[int],
) -> list[float]:
    """Selection §5, read row by row with plain floats."""
    models = range(len(prices))
    known_verbosity = sorted(v for v in verbosity if v is not None)
    median = known_verbosity[len(known_verbosity) // 2] if known_verbosity else 1.0
    costs: list[Number] = []
    for m in models:
        v = 1.0
        tokens = verbosity[m]
        if knobs.per_model_verbosity and tokens is not None and median > 0:
            v = tokens / median
        price_in, price_out = prices[m]
        if price_in is None or (knobs.output_cost_ratio > 0 and price_out is None):
            costs.append(UNKNOWN)
        else:
            costs.append(price_in + knobs.output_cost_ratio * (price_out or 0.0) * v)
    known_costs = [c for c in costs if c is not None]
    times: list[Number] = []
    for ttft, tps in timing:
        timed = ttft is not None and tps is not None and tps > 0
        times.append(ttft + knobs.expected_output_tokens / tps if timed else UNKNOWN)  # type: ignore[operator]
    known_times = [t for t in times if t is not None]
    speed_range = max(known_times) - min(known_times) if knobs.speed_weight > 0 and known_times else 0.0
    totals = []
    for m in models:
        cost = costs[m]
        if cost is None:
            c = 1.0 if known_costs else 0.0
        else:
            width = max(known_costs) - min(known_costs)
            c = (cost - min(known_costs)) / width if width > 0 else 0.0
        total = 0.0
        for k in clusters:
            row = quality[k]
            width = max(row) - min(row)
            q = (row[m] - min(row)) / width if width > 0 else 0.0
            w_quality, w_speed = float(knobs.alpha[k]), knobs.speed_weight
            w_cost = 1 - w_quality - w_speed
            if speed_range > 0:
                taken = times[m]
                s = 1.0 if taken is None else (taken - min(known_times)) / speed_range
                total += w_quality * q + w_cost * (1 - c) + w_speed * (1 - s)
            else:
                t = w_quality + w_cost
                total += (w_quality / t) * q + (w_cost / t) * (1 - c) if t > 1e-9 else q
        totals.append(total)
    return totals


grid = st.integers(-2000, 3000).map(lambda value: value / 1000)
maybe = st.one_of(st.none(), st.sampled_from([0.0, 1.0]), st.integers(0, 10**8).map(lambda value: value / 1000))
share = st.integers(0, 1000).map(lambda value: value / 1000)


class Case(NamedTuple):
    """A bundle at its own knobs, the clusters and the embedding of a request, and what the oracle says of it."""

    bundle: Bundle
    clusters: list[int]
    vector: Floats32
    length: float
    wanted: list[float]
    order: list[int]

    def near(self, blend: Blend) -> Nearest:
        """The clusters as a look-up returns them, with what a linear head makes of the embedding."""
        looked = blend.nearest(self.vector, self.length)
        return Nearest(np.array(self.clusters), np.full(len(self.clusters), -1e9), looked.raised)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    size, models = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    quality = [[draw(grid) for _ in range(models)] for _ in range(size)]
    prices = [(draw(maybe), draw(maybe)) for _ in range(models)]
    timing = [(draw(maybe), draw(maybe)) for _ in range(models)]
    verbosity = [draw(maybe) for _ in range(models)]
    speed = draw(share)
    # A scalar turned by a request is the same on every cluster, a bundle's own vector need not be.
    alpha = [draw(share)] * size if draw(st.booleans()) else [draw(share) for _ in range(size)]
    alpha = [min(one, 1 - speed) for one in alpha]
    ratio, tokens, verbose = (
        draw(st.sampled_from([0.0, 0.25, 1.0, 10.0])),
        draw(st.integers(0, 100_000)),
        draw(st.booleans()),
    )
    clusters = sorted(draw(st.sets(st.integers(0, size - 1), min_size=1)))
    knobs = Knobs(frozen(alpha), speed, ratio, tokens, verbose)
    vector = np.array([draw(share) for _ in range(size)], dtype=np.float32)
    length = float(draw(st.integers(-8, 8)))
    head = [[draw(grid) for _ in range(size + 1)] for _ in range(models)] if draw(st.booleans()) else None

    def column(values: list[Number]) -> list[float]:
        return [math.nan if value is None else value for value in values]

    axes = Axes(
        frozen(column([p for p, _ in prices])),
        frozen(column([p for _, p in prices])),
        frozen(column([t for t, _ in timing])),
        frozen(column([t for _, t in timing])),
        frozen(column(verbosity)),
    )
    bundle = Bundle(
        version="v", digest="", embedder_id="x", centroids=frozen(np.eye(size)),
        models=tuple(f"m{at}" for at in range(models)), quality=frozen(quality), axes=axes, defaults=Defaults(knobs),
        top_p=draw(st.sampled_from([len(clusters), size])), head=None if head is None else frozen(head),
    )  # fmt: skip
    raised = [0.0] * models
    if head is not None:
        raised = [sum(weight * float(x) for weight, x in zip(row, [*vector, length], strict=True)) for row in head]
    table = [[value + raised[m] for m, value in enumerate(row)] for row in quality]
    if head is not None:  # sums that are equal but for rounding have a range, and nobody can say which is the least
        assume(all(max(row) - min(row) > 1e-6 for row in table))
    wanted = oracle(table, prices, timing, verbosity, knobs, clusters)
    return Case(bundle, clusters, vector, length, wanted, draw(st.permutations(range(models))))


@settings(max_examples=BUNDLES, deadline=None)
@given(cases())
def test_the_blend_agrees_with_the_oracle(case: Case) -> None:
    blend = Blend(case.bundle)
    scores = blend.score(blend.weigh(), case.near(blend))
    assert np.abs(scores.score - case.wanted).max() <= 1e-9
    assert np.abs(scores.quality + scores.cost + scores.speed - scores.score).max() <= 1e-9
    rounded = np.round(scores.score, 9).tolist()
    assert scores.order.tolist() == sorted(range(len(rounded)), key=lambda column: (-rounded[column], column))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_order_of_models_and_the_unit_of_money_change_nothing(case: Case) -> None:
    bundle, order = case.bundle, case.order
    assert bundle.axes is not None
    assert bundle.quality is not None
    a = bundle.axes
    shuffled = Bundle(
        version="v", digest="", embedder_id="x", centroids=bundle.centroids,
        models=tuple(bundle.models[at] for at in order), quality=frozen(bundle.quality[:, order]),
        axes=Axes(
            frozen(a.price_in[order] * 8), frozen(a.price_out[order] * 8), frozen(a.ttft_s[order]),
            frozen(a.tps[order]), frozen(a.verbosity[order]),
        ),
        defaults=bundle.defaults, top_p=bundle.top_p, head=None if bundle.head is None else frozen(bundle.head[order]),
    )  # fmt: skip
    plain, other = Blend(bundle), Blend(shuffled)
    before = plain.score(plain.weigh(), case.near(plain)).score
    after = other.score(other.weigh(), case.near(other)).score
    assert np.abs(before[order] - after).max() <= 1e-9


@settings(max_examples=100, deadline=None)
@given(cases(), st.data())
def test_who_is_not_eligible_changes_nobodys_score(case: Case, data: st.DataObject) -> None:
    blend = Blend(case.bundle)
    names = case.bundle.models
    kept = data.draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
    weighted = blend.weigh()
    everyone = select(blend, weighted, case.vector, case.length, Eligible(names))
    some = select(blend, weighted, case.vector, case.length, Eligible(tuple(kept)))
    assert everyone.scores is not None
    assert some.scores is not None
    assert everyone.scores.score.tolist() == some.scores.score.tolist()
    assert some.models == tuple(name for name in everyone.models if name in kept)
    assert sorted(everyone.models) == sorted(names)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(controls.HEADERS)),
    st.one_of(
        st.binary(max_size=30), st.text(max_size=30).map(str.encode), st.floats().map(lambda x: repr(x).encode())
    ),
)
def test_any_control_text_is_accepted_in_range_or_refused_by_name(name: bytes, text: bytes) -> None:
    turned = _turned(name, text)
    if turned is None:
        return
    knob = controls.HEADERS[name]
    value = getattr(turned, knob)
    assert (
        value is None
        or value is True
        or value is False
        or controls.RANGES[knob][0] <= value <= controls.RANGES[knob][1]
    )
    assert value is not None or not text.strip(b" \t")
    blamed = name.decode()
    try:
        Blend(_one()).weigh("", turned)
    except InvalidKnobs as refused:
        blamed = refused.param
    assert blamed == name.decode()


def _turned(name: bytes, text: bytes) -> controls.Overrides | None:
    """None: refused, and the refusal names the header."""
    try:
        return controls.overrides([(name, text)])
    except controls.InvalidControl as refused:
        blamed = refused.param
    assert blamed == name.decode()
    return None


def _one() -> Bundle:
    unknown = frozen([math.nan])
    return Bundle(
        version="v", digest="", embedder_id="x", centroids=frozen([[1.0]]), models=("m",), quality=frozen([[1.0]]),
        axes=Axes(unknown, unknown, unknown, unknown, unknown), defaults=Defaults(Knobs(frozen([0.5]))),
    )  # fmt: skip
