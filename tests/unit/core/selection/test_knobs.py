"""Knobs: presets, the merge, the second check and the hash (selection §8)."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from turnout.core.selection import controls, knobs
from turnout.core.selection.arrays import frozen
from turnout.core.selection.controls import Overrides
from turnout.core.selection.knobs import Defaults, InvalidKnobs, Knobs, Preset, effective, knobs_hash


def turned(**values: float | bool) -> Overrides:
    return Overrides(**values, params=tuple((name, f"turnout.{name}") for name in sorted(values)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("alpha", "rest", "wanted"),
    [
        ([0.5, 0.5], (0.0, 0.0, 2000, False), "d3eea90c3e1bc669"),
        ([0.6] * 16, (0.1, 0.25, 2000, True), "065dd2960283dc87"),
        ([0.53] * 40, (0.0, 0.0, 2000, False), "df34eb6befdedacc"),
    ],
)
def test_golden_hashes(alpha: list[float], rest: tuple[float, float, int, bool], wanted: str) -> None:
    assert knobs.hash_text(knobs_hash(Knobs(frozen(alpha), *rest))) == wanted


def test_a_bundle_without_defaults_has_the_documented_ones() -> None:
    assert knobs.default_knobs(3).alpha.tolist() == [0.53] * 3
    assert knobs_hash(knobs.default_knobs(40)) == 0xDF34EB6BEFDEDACC


def test_the_documented_presets() -> None:
    assert dict(knobs.PRESETS) == {
        "quality": Preset(0.6, 0.1, 0.25),
        "balanced": Preset(0.5, 0.12, 0.25),
        "cost": Preset(0.4, 0.05, 0.4),
        "speed": Preset(0.3, 0.5, 0.25),
    }


def test_quality_never_lowers_the_bundles_own_alpha() -> None:
    defaults = Defaults(Knobs(frozen([0.96, 0.2])))
    assert effective(defaults, "quality").alpha.tolist() == pytest.approx([0.9, 0.6])


def test_floors_lift_the_other_presets_and_a_scalar_ignores_them() -> None:
    defaults = Defaults(Knobs(frozen([0.7, 0.7])), alpha_floor=frozen([0.3, 0.55]))
    assert effective(defaults, "balanced").alpha.tolist() == [0.5, 0.55]
    assert effective(defaults, "cost").alpha.tolist() == [0.4, 0.55]
    assert effective(defaults, "cost", turned(alpha=0.1)).alpha.tolist() == [0.1, 0.1]


@pytest.mark.parametrize("floor", [0.0, 0.3, 0.86, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("base", [0.0, 0.5, 0.9, 1.0])
def test_on_every_cluster_quality_is_above_balanced_above_cost(floor: float, base: float) -> None:
    defaults = Defaults(Knobs(frozen([base])), alpha_floor=frozen([floor]))
    quality, balanced, cost = (float(effective(defaults, name).alpha[0]) for name in ("quality", "balanced", "cost"))
    assert quality >= balanced >= cost


def test_merge_order_is_defaults_preset_overrides() -> None:
    defaults = Defaults(Knobs(frozen([0.2]), 0.0, 0.0, 777, per_model_verbosity=True))
    merged = effective(defaults, "cost", turned(output_cost_ratio=2.0))
    assert (merged.alpha.tolist(), merged.speed_weight, merged.output_cost_ratio) == ([0.4], 0.05, 2.0)
    assert (merged.expected_output_tokens, merged.per_model_verbosity) == (777, True)


def test_InvalidEffectiveKnobs() -> None:
    defaults = Defaults(Knobs(frozen([0.5, 0.96])))
    with pytest.raises(
        InvalidKnobs, match=r"alpha 0\.96 of cluster 1 and speed_weight 0\.1 make 1\.06, expected at most 1"
    ) as refused:
        effective(defaults, "", turned(speed_weight=0.1))
    assert (refused.value.param, refused.value.ours) == ("turnout.speed_weight", False)


def test_bundle_fault_is_ours() -> None:
    for bad in (Knobs(frozen([0.5])), Knobs(frozen([0.5, 1.1])), Knobs(frozen([0.5, 0.5]), 0.6)):
        with pytest.raises(InvalidKnobs) as refused:
            knobs.check(bad, 2)
        assert refused.value.ours
    with pytest.raises(InvalidKnobs) as refused:  # the vector's length: nobody's knob can have caused it
        knobs.check(Knobs(frozen([0.5])), 2, preset="cost", overrides=turned(alpha=0.5))
    assert refused.value.ours


def test_checks_come_in_the_documented_order() -> None:
    worst = Knobs(frozen([2.0, 0.5]), 3.0, 99.0, -1)
    good = {"speed_weight": 0.1, "alpha": frozen([0.5, 0.5]), "output_cost_ratio": 1.0, "expected_output_tokens": 1}
    order = []
    for fix in ("", *good):
        if fix:
            worst = msgspec.structs.replace(worst, **{fix: good[fix]})
        try:
            knobs.check(worst, 2)
        except InvalidKnobs as error:
            order.append(str(error).split()[0])
    assert order == ["speed_weight", "alpha", "output_cost_ratio", "expected_output_tokens"]


def test_nan_in_effective_knobs_is_refused() -> None:
    for bad in (Knobs(frozen([np.nan])), Knobs(frozen([0.5]), np.nan), Knobs(frozen([0.5]), 0.0, np.nan)):
        with pytest.raises(InvalidKnobs):
            knobs.check(bad, 1)


def test_ExtremeRoutingKnobWarnOnlyOnOverride() -> None:
    high = Knobs(frozen([0.97, 0.99]))
    assert knobs.extreme(high, controls.NONE) == ""
    assert knobs.extreme(high, turned(output_cost_ratio=1.0)) == ""
    merged = effective(Defaults(high), "", turned(alpha=0.95))
    assert knobs.extreme(merged, turned(alpha=0.95)) == "alpha 0.95 is above 0.9"
    merged = effective(Defaults(high), "", turned(alpha=0.92, speed_weight=0.05))
    assert knobs.extreme(merged, turned(alpha=0.92, speed_weight=0.05)).count(";") == 1


def test_unknown_preset_is_no_preset() -> None:
    with pytest.raises(KeyError):
        effective(Defaults(Knobs(frozen([0.5]))), "typo")
