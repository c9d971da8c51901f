"""The blend against the golden table of selection §5, its degenerate cases, and the rules that carry names elsewhere."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest

from turnout.core.selection import controls, knobs
from turnout.core.selection.arrays import frozen
from turnout.core.selection.blend import Blend, NotFinite
from turnout.core.selection.bundle import Axes, Bundle, Price, with_prices, with_timings
from turnout.core.selection.clusters import Nearest, nearest
from turnout.core.selection.controls import Overrides
from turnout.core.selection.eligibility import Eligible
from turnout.core.selection.knobs import Defaults, Knobs
from turnout.core.selection.selection import Reason, select

NAN = math.nan
MODELS = ("a-big", "b-mid", "c-small", "d-free")
AXES: dict[str, list[float]] = {
    "price_in": [5e6, 1e6, 0.2e6, 0],
    "price_out": [25e6, 5e6, 0.8e6, 0],
    "ttft_s": [1, 0.5, 0.2, NAN],
    "tps": [50, 100, 200, NAN],
    "verbosity": [3000, 2000, 1000, NAN],
}
QUALITY = [[0.9, 0.7, 0.4, 0.2], [0.6, 0.6, 0.6, 0.6], [0.5, 0.8, 0.3, 0.5]]
NOBODY_TIMED: dict[str, list[float]] = {"ttft_s": [NAN] * 4, "tps": [NAN] * 4}


def bundle(alpha: float = 0.5, *, axes: dict[str, list[float]] | None = None, **more: Any) -> Bundle:
    columns = AXES | (axes or {})
    fields: dict[str, Any] = {
        "version": "golden",
        "digest": "",
        "embedder_id": "three-axes",
        "centroids": frozen(np.eye(3)),
        "models": MODELS,
        "quality": frozen(QUALITY),
        "axes": Axes(*[frozen(columns[name]) for name in Axes.__struct_fields__]),
        "defaults": Defaults(Knobs(frozen([alpha] * 3))),
        "top_p": 2,
    }
    return Bundle(**(fields | more))


def near(*clusters: int, similarity: float = 1.0) -> Nearest:
    return Nearest(np.array(clusters), np.full(len(clusters), -1e9 * similarity))


def turned(**values: float | bool) -> Overrides:
    return Overrides(**values, params=tuple((name, f"turnout.{name}") for name in sorted(values)))  # type: ignore[arg-type]


def table(blend: Blend, clusters: Nearest, overrides: Overrides = controls.NONE) -> list[tuple[str, float]]:
    scores = blend.score(blend.weigh("", overrides), clusters)
    return [(blend.bundle.models[column], round(float(scores.score[column]), 9)) for column in scores.order]


GOLDEN: list[tuple[str, tuple[int, ...], float, dict[str, Any], dict[str, list[float]], str]] = [
    ("G1", (0, 1), 0.5, {}, {}, "b-mid 1.157142857 c-small 1.102857143 d-free 1 a-big .5"),
    (
        "G2",
        (0, 2),
        0.6,
        {"speed_weight": 0.1, "output_cost_ratio": 0.25},
        {},
        "b-mid 1.641688312 c-small .950095238 a-big .84 d-free .84",
    ),
    (
        "G3",
        (0, 2),
        0.6,
        {"speed_weight": 0.1, "output_cost_ratio": 0.25, "per_model_verbosity": True},
        {},
        "b-mid 1.667775268 c-small .958906832 a-big .84 d-free .84",
    ),
    (
        "G4",
        (0, 1),
        0.5,
        {},
        {"price_in": [5e6, 1e6, 0.2e6, NAN], "price_out": [25e6, 5e6, 0.8e6, NAN]},
        "b-mid 1.19047619 c-small 1.142857143 a-big .5 d-free 0",
    ),
    (
        "G5",
        (0,),
        0.5,
        {"speed_weight": 0.3},
        NOBODY_TIMED,
        "b-mid .73877551 a-big .714285714 c-small .478367347 d-free .285714286",
    ),
    ("G6", (0,), 0.0, {"speed_weight": 1.0}, NOBODY_TIMED, "a-big 1 b-mid .714285714 c-small .285714286 d-free 0"),
    (
        "G7",
        (0,),
        0.5,
        {"speed_weight": 0.3},
        {"ttft_s": [NAN, 0.5, NAN, NAN], "tps": [NAN, 100, NAN, NAN]},
        "b-mid .73877551 a-big .714285714 c-small .478367347 d-free .285714286",
    ),
    ("G8", (0,), 0.0, {"speed_weight": 1.0}, {}, "c-small 1 b-mid .665584416 a-big 0 d-free 0"),
    ("G9", (1,), 0.5, {"output_cost_ratio": 1.0}, {}, "d-free .5 c-small .483333333 b-mid .4 a-big 0"),
]


@pytest.mark.parametrize(
    ("clusters", "alpha", "turn", "axes", "wanted"), [g[1:] for g in GOLDEN], ids=[g[0] for g in GOLDEN]
)
def test_golden_vectors(
    clusters: tuple[int, ...], alpha: float, turn: dict[str, Any], axes: dict[str, list[float]], wanted: str
) -> None:
    words = wanted.split()
    expected = [(words[at], float(words[at + 1])) for at in range(0, len(words), 2)]
    assert (
        table(Blend(bundle(alpha, axes=axes)), near(*clusters), turned(**turn) if turn else controls.NONE) == expected
    )


G2 = turned(speed_weight=0.1, output_cost_ratio=0.25)


def test_G2_terms_of_the_winner() -> None:
    blend = Blend(bundle(0.6))
    scores = blend.score(blend.weigh("", G2), near(0, 2))
    terms = [round(float(part[1]), 9) for part in (scores.quality, scores.cost, scores.speed)]
    assert terms == [1.028571429, 0.48, 0.133116883]


def test_G10_a_filter_changes_no_score() -> None:
    blend = Blend(bundle(0.6, centroids=frozen([[1, 0, 0], [0, 0, 1], [0, 1, 0]])))
    vector = np.array([0.8, 0.6, 0.0], dtype=np.float32)
    chosen = select(blend, blend.weigh("", G2), vector, 0.0, Eligible(("c-small", "b-mid")))
    assert chosen.reason is Reason.SELECTED
    assert [(row.model, round(row.score, 9)) for row in chosen.ranked] == [
        ("b-mid", 1.641688312),
        ("c-small", 0.950095238),
    ]


def test_the_choice_names_untimed_and_unpriced_models() -> None:
    axes = {"price_out": [25e6, NAN, 0.8e6, 0.0]}
    blend = Blend(bundle(0.6, axes=axes))
    vector = np.array([1, 0, 0], dtype=np.float32)
    chosen = select(blend, blend.weigh("", G2), vector, 0.0, Eligible(MODELS))
    assert {row.model: (row.untimed, row.unpriced) for row in chosen.ranked} == {
        "a-big": (False, False),
        "b-mid": (False, True),
        "c-small": (False, False),
        "d-free": (True, False),
    }


def test_untimed_model_keeps_its_weights() -> None:
    blend = Blend(bundle(0.6))
    weighted = blend.weigh("", G2)
    scores = blend.score(weighted, near(0, 2))
    slowest, untimed = 0, 3
    assert scores.speed[untimed] == scores.speed[slowest] == 0.0
    quality = [[1, 5 / 7, 2 / 7, 0], [0.4, 1, 0, 0.4]]
    assert scores.quality[untimed] == pytest.approx(0.6 * (quality[0][3] + quality[1][3]))
    assert scores.cost[untimed] == pytest.approx(2 * 0.3 * 1.0)


def test_DegenerateRangeFallthrough() -> None:
    same = {"price_in": [1e6] * 4, "price_out": [1e6] * 4}
    assert table(Blend(bundle(0.5, axes=same)), near(1)) == [(model, 0.5) for model in MODELS]


def test_SpeedRangeZeroFallsBackToTwoAxis() -> None:
    equal = {"ttft_s": [1, 1, 1, 1.0], "tps": [50, 50, 50, 50.0]}
    fast = turned(speed_weight=0.3)
    assert table(Blend(bundle(0.5, axes=equal)), near(0), fast) == table(
        Blend(bundle(0.5, axes=NOBODY_TIMED)), near(0), fast
    )


def test_ZeroAATimingFallback() -> None:
    zero = {"tps": [0, 0, 0, 0.0]}
    fast = turned(speed_weight=0.3)
    assert table(Blend(bundle(0.5, axes=zero)), near(0), fast)[0] == ("b-mid", 0.73877551)


def test_PureSpeedMissingTimingFallsBackToQuality() -> None:
    blend = Blend(bundle(0.0, axes=NOBODY_TIMED))
    scores = blend.score(blend.weigh("", turned(speed_weight=1.0)), near(0))
    assert scores.score.tolist() == scores.quality.tolist()
    assert scores.order.tolist() == [0, 1, 2, 3]


def test_what_is_left_by_rounding_is_no_weight() -> None:
    blend = Blend(bundle(0.0, axes=NOBODY_TIMED))
    scores = blend.score(blend.weigh("", turned(alpha=1e-9, speed_weight=1.0)), near(0))
    assert scores.score.max() == pytest.approx(1.0)


def test_KnobOverrideOnlyReweights() -> None:
    blend = Blend(bundle(0.5))
    before = blend.score(blend.weigh(), near(0))
    after = blend.score(blend.weigh("", turned(alpha=0.9)), near(0))
    assert (after.quality / 0.9).tolist() == pytest.approx((before.quality / 0.5).tolist())
    assert (after.cost / 0.1).tolist() == pytest.approx((before.cost / 0.5).tolist())


def test_AlphaScalarReplacesVector() -> None:
    blend = Blend(bundle(defaults=Defaults(Knobs(frozen([0.1, 0.9, 0.5])))))
    assert blend.weigh("", turned(alpha=0.7)).knobs.alpha.tolist() == [0.7, 0.7, 0.7]


def test_override_leaves_default_vector_untouched() -> None:
    blend = Blend(bundle(defaults=Defaults(Knobs(frozen([0.1, 0.9, 0.5])))))
    before = blend.bundle.defaults.knobs.alpha.tobytes()
    before_hash = knobs.knobs_hash(blend.bundle.defaults.knobs)

    def ask(number: int) -> float:
        weighted = blend.weigh("", turned(alpha=number / 1000))
        assert weighted.knobs.alpha.tolist() == [number / 1000] * 3
        return float(blend.score(weighted, near(0, 1)).score[0])

    with ThreadPoolExecutor(16) as pool:
        asked = list(pool.map(ask, range(1000)))
    assert len(set(asked)) > 900
    assert blend.bundle.defaults.knobs.alpha.tobytes() == before
    assert knobs.knobs_hash(blend.bundle.defaults.knobs) == before_hash
    with pytest.raises(ValueError, match="read-only"):
        blend.bundle.defaults.knobs.alpha[0] = 0.0


def test_V2DynamicScoring() -> None:
    blend = Blend(bundle(0.5))
    winners = {alpha: table(blend, near(0), turned(alpha=alpha))[0][0] for alpha in (0.0, 0.5, 1.0)}
    assert winners == {0.0: "d-free", 0.5: "b-mid", 1.0: "a-big"}


def test_TopPSumsAcrossClusters() -> None:
    blend = Blend(bundle(0.6))
    one, other, both = (blend.score(blend.weigh("", G2), near(*c)).score for c in ((0,), (2,), (0, 2)))
    assert both.tolist() == pytest.approx((one + other).tolist())


@pytest.mark.parametrize(("top_p", "wanted"), [(3, [1, 2, 4]), (2, [1, 2]), (5, [0, 1, 2, 3, 4])])
def test_TopPNearest_DeterministicOnTies(top_p: int, wanted: list[int]) -> None:
    found = nearest(frozen([-0.2e9, -0.9e9, -0.9e9, -0.5e9, -0.9e9]), top_p)
    assert found.ascending.tolist() == wanted
    assert found.nearest_first[:3] == (1, 2, 4)[: min(top_p, 3)]
    assert found.similarities == (0.9, 0.9, 0.9, 0.5, 0.2)[:top_p]


@pytest.mark.parametrize("top_p", [1, 4, 700])
def test_many_clusters_are_ordered_as_few_are(top_p: int) -> None:
    similarity = np.random.default_rng(top_p).integers(-50, 50, size=700) / 50
    found = nearest(frozen(similarity * -1e9), top_p)
    wanted = sorted(range(700), key=lambda k: (-similarity[k], k))[:top_p]
    assert list(found.nearest_first) == wanted
    assert found.ascending.tolist() == sorted(wanted)
    assert found.similarities == pytest.approx([similarity[k] for k in wanted])
    assert all(math.copysign(1.0, value) > 0 for value in found.similarities if value == 0.0)


def test_Argmax_TiebreakUsesOrderSlice() -> None:
    tied = bundle(0.5, quality=frozen([[0.5] * 4] * 3), axes={"price_in": [1e6] * 4, "price_out": [1e6] * 4})
    assert [name for name, _ in table(Blend(tied), near(0))] == sorted(MODELS)


def test_v1_adds_up_its_rankings_and_takes_no_knob() -> None:
    old = Blend(
        bundle(
            quality=None, axes=None, rankings=frozen([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0], [9.0, 2.0, 0.0, 0.5]])
        )
    )
    assert table(old, near(0, 2)) == [("a-big", 10.0), ("d-free", 4.5), ("b-mid", 4.0), ("c-small", 3.0)]
    assert old.weigh().hash == 0
    for preset, overrides, param in (("cost", controls.NONE, "model"), ("", turned(alpha=0.5), "turnout.alpha")):
        with pytest.raises(knobs.InvalidKnobs) as refused:
            old.weigh(preset, overrides)
        assert refused.value.param == param


def test_a_linear_head_is_added_before_the_norms() -> None:
    head = np.zeros((4, 4))
    head[3] = [2.0, 0.0, 0.0, 1.0]  # d-free: +2 on the first axis, +1 per unit of length
    blend = Blend(bundle(1.0, head=frozen(head)))
    weighted = blend.weigh()
    plain = blend.score(weighted, near(0))
    looked = blend.nearest(np.array([1, 0, 0], dtype=np.float32), 0.5)
    raised = blend.score(weighted, msgspec.structs.replace(near(0), raised=looked.raised))
    assert plain.order.tolist()[0] == 0
    assert raised.order.tolist() == [3, 0, 1, 2]
    assert raised.score[3] == 1.0
    assert raised.score[2] == pytest.approx(0.0)


def test_a_prompt_unlike_all_centroids_is_scored_by_the_mean_of_all_clusters() -> None:
    head = np.full((4, 4), 5.0)
    blend = Blend(bundle(1.0, abstain_similarity=0.3, head=frozen(head)))

    def at(*clusters: int, similarity: float, length: float = 0.0) -> Nearest:
        raised = blend.nearest(np.array([1, 0, 0], dtype=np.float32), length).raised
        return msgspec.structs.replace(near(*clusters, similarity=similarity), raised=raised)

    inside = blend.score(blend.weigh(), at(0, 1, similarity=0.3))
    outside = blend.score(blend.weigh(), at(0, 1, similarity=0.299999999))
    elsewhere = blend.score(blend.weigh(), at(1, 2, similarity=0.1, length=7.0))
    assert (inside.out_of_domain, outside.out_of_domain) == (False, True)
    assert outside.score.tolist() == elsewhere.score.tolist()
    means = np.mean(QUALITY, axis=0)
    assert outside.order.tolist() == np.argsort(-means, kind="stable").tolist()


def test_a_score_that_is_no_number_picks_nobody() -> None:
    blend = Blend(bundle(0.5, quality=frozen([[NAN, 0.0, 0.0, 0.0]] * 3)))
    with pytest.raises(NotFinite):
        blend.score(blend.weigh(), near(0))


def test_the_price_book_and_observed_timings_replace_the_bundles_own() -> None:
    priced = with_prices(bundle(), {"a-big": Price(0, 0), "d-free": Price(None, 7), "stranger": Price(1, 1)})
    assert priced.axes is not None
    assert priced.axes.price_in.tolist()[:3] == [0, 1e6, 0.2e6]
    assert math.isnan(priced.axes.price_in[3])
    timed = with_timings(bundle(), {"d-free": 0.1})
    assert timed.axes is not None
    assert timed.axes.ttft_s.tolist() == [1, 0.5, 0.2, 0.1]


def test_undeployed_models_are_not_in_any_range() -> None:
    two = bundle(
        1.0,
        models=MODELS[1:3],
        quality=frozen([row[1:3] for row in QUALITY]),
        axes={name: column[1:3] for name, column in AXES.items()},
    )
    assert table(Blend(two), near(0)) == [("b-mid", 1.0), ("c-small", 0.0)]


def test_median_verbosity_is_the_upper_one() -> None:
    axes = bundle(axes={"verbosity": [1000, NAN, 3000, NAN]}).axes
    assert axes is not None
    assert axes.median_verbosity() == 3000
    assert msgspec.structs.replace(axes, verbosity=frozen([NAN] * 4)).median_verbosity() == 1.0


def test_knob_churn_keeps_a_bounded_number_of_weights() -> None:
    blend = Blend(bundle())
    for number in range(600):
        blend.weigh("", turned(alpha=number / 1000))
    assert len(blend._kept) == 256


def test_pick_ignores_insertion_order() -> None:
    rows = bundle(0.6)
    assert rows.axes is not None
    assert rows.quality is not None
    order = [2, 0, 3, 1]
    shuffled = msgspec.structs.replace(
        rows,
        models=tuple(MODELS[at] for at in order),
        quality=frozen(rows.quality[:, order]),
        axes=Axes(*[frozen(getattr(rows.axes, name)[order]) for name in Axes.__struct_fields__]),
    )
    before, after = dict(table(Blend(rows), near(0, 2), G2)), dict(table(Blend(shuffled), near(0, 2), G2))
    assert before == after
    vector = np.array([1, 0, 0], dtype=np.float32)
    blend = Blend(rows)
    for names in (MODELS, tuple(reversed(MODELS))):
        chosen = select(blend, blend.weigh("", G2), vector, 0.0, Eligible(names))
        assert chosen.models[0] == "b-mid"
