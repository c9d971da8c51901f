"""Knobs: the bundle's defaults, a preset and a request's overrides, merged on a copy and checked again (selection §8).

The default vector is read-only and shared; whatever a request turns makes new values. A fault that no caller can have
caused (a vector of the wrong length, bad defaults) is ours and never a 4xx.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

import msgspec
import numpy as np

from turnout.core.selection import controls
from turnout.core.selection.arrays import Floats, frozen
from turnout.core.selection.controls import Overrides, shown

QUALITY, BALANCED, COST, SPEED = "quality", "balanced", "cost", "speed"
# Names that bundles of other makers use for the same presets.
ALIASES = {"quality_pareto": QUALITY, "cost_pareto": COST, "speed_pareto": SPEED}
DEFAULT_ALPHA, DEFAULT_TOKENS = 0.53, 2000
SUM_SLACK = 1e-9
_EXTREME_ALPHA, _EXTREME_SUM = 0.9, 0.95


class Knobs(msgspec.Struct, frozen=True):
    """Effective knobs: one alpha per cluster (read-only float64), the rest scalars."""

    alpha: Floats
    speed_weight: float = 0.0
    output_cost_ratio: float = 0.0
    expected_output_tokens: int = DEFAULT_TOKENS
    per_model_verbosity: bool = False


class Preset(msgspec.Struct, frozen=True, gc=False):
    """A named starting point: one alpha for all clusters, weight of speed, weight of output prices."""

    alpha: float
    speed_weight: float
    output_cost_ratio: float


PRESETS: Mapping[str, Preset] = {
    QUALITY: Preset(0.6, 0.1, 0.25),
    BALANCED: Preset(0.5, 0.12, 0.25),
    COST: Preset(0.4, 0.05, 0.4),
    SPEED: Preset(0.3, 0.5, 0.25),
}


class InvalidKnobs(ValueError):
    """Effective knobs outside their ranges. `param` names what the caller sent; "" means the fault is ours (503)."""

    def __init__(self, param: str, message: str) -> None:
        self.param = param
        super().__init__(message)

    @property
    def ours(self) -> bool:
        """Tell whether no caller can have caused it."""
        return not self.param


class Defaults(msgspec.Struct, frozen=True):
    """What a bundle's requests start from: its knobs, the floor per cluster of presets, and its presets."""

    knobs: Knobs
    alpha_floor: Floats | None = None
    presets: Mapping[str, Preset] = msgspec.field(default_factory=lambda: PRESETS)
    ordered: bool = True
    """Whether quality ≥ balanced ≥ cost is kept on every cluster (not when an operator's presets say otherwise)."""


def default_knobs(clusters: int) -> Knobs:
    """Return the knobs of a bundle that names none."""
    return Knobs(frozen(np.full(clusters, DEFAULT_ALPHA)))


def effective(
    defaults: Defaults, preset: str = "", overrides: Overrides = controls.NONE, clusters: int | None = None
) -> Knobs:
    """Merge bundle defaults, then the preset, then the overrides; the defaults stay bit-identical.

    Args:
        defaults: of the bundle.
        preset: its name, "" for none.
        overrides: what the request turned.
        clusters: K, where it is known beside the defaults' own length.

    Raises:
        KeyError: no such preset.
        InvalidKnobs: the result is out of range, or the defaults' length is not K, which no caller can have caused.

    """
    knobs = defaults.knobs
    if preset:
        chosen = defaults.presets[preset]
        alpha = knobs.alpha if overrides.alpha is not None else frozen(_preset_alpha(defaults, preset))
        knobs = Knobs(
            alpha,
            chosen.speed_weight,
            chosen.output_cost_ratio,
            knobs.expected_output_tokens,
            knobs.per_model_verbosity,
        )
    if overrides:
        turned = {name: value for name in controls.KNOBS if (value := getattr(overrides, name)) is not None}
        if controls.ALPHA in turned:
            turned[controls.ALPHA] = frozen(np.full(len(knobs.alpha), overrides.alpha))
        knobs = msgspec.structs.replace(knobs, **turned)
    check(knobs, len(defaults.knobs.alpha) if clusters is None else clusters, preset=preset, overrides=overrides)
    return knobs


def check(knobs: Knobs, clusters: int, *, preset: str = "", overrides: Overrides = controls.NONE) -> None:
    """Check knobs as a whole, in the order of selection §8.

    Raises:
        InvalidKnobs: names the first knob out of range, with values and limit.

    """
    alpha, speed = knobs.alpha, knobs.speed_weight
    if len(alpha) != clusters:
        raise InvalidKnobs("", f"alpha has {len(alpha)} values, expected one for each of {clusters} clusters")
    sent = dict(overrides.params)

    def blamed(*names: str) -> str:
        named = next((sent[name] for name in names if name in sent), "")
        return named or ("model" if preset else next(iter(sent.values()), ""))

    if not 0.0 <= speed <= 1.0:
        raise InvalidKnobs(blamed("speed_weight"), f"speed_weight is {shown(speed)}, expected [0, 1]")
    bad = ~((alpha >= 0.0) & (alpha <= 1.0) & (alpha + speed <= 1.0 + SUM_SLACK))
    if bad.any():
        k = int(bad.argmax())
        value = float(alpha[k])
        if not 0.0 <= value <= 1.0:
            raise InvalidKnobs(blamed("alpha"), f"alpha of cluster {k} is {shown(value)}, expected [0, 1]")
        raise InvalidKnobs(
            blamed("speed_weight", "alpha"),
            f"alpha {value:g} of cluster {k} and speed_weight {speed:g} make {value + speed:g}, expected at most 1",
        )
    if not 0.0 <= knobs.output_cost_ratio <= 10.0:  # noqa: PLR2004 - the range of the page
        seen = shown(knobs.output_cost_ratio)
        raise InvalidKnobs(blamed("output_cost_ratio"), f"output_cost_ratio is {seen}, expected [0, 10]")
    if not 0 <= knobs.expected_output_tokens <= 100_000:  # noqa: PLR2004 - the range of the page
        seen = shown(knobs.expected_output_tokens)
        raise InvalidKnobs(blamed("expected_output_tokens"), f"expected_output_tokens is {seen}, expected [0, 100000]")


def extreme(knobs: Knobs, overrides: Overrides) -> str:
    """Return the one warning about knobs that a request itself pushed to the edge; "" without any."""
    if overrides.alpha is None and overrides.speed_weight is None:
        return ""
    said = []
    if overrides.alpha is not None and overrides.alpha > _EXTREME_ALPHA:
        said.append(f"alpha {overrides.alpha:g} is above {_EXTREME_ALPHA}")
    most = float(knobs.alpha.max()) + knobs.speed_weight
    if most > _EXTREME_SUM:
        said.append(f"alpha + speed_weight reaches {most:g}, above {_EXTREME_SUM}")
    return "; ".join(said)


def knobs_hash(knobs: Knobs) -> int:
    """Return the 64-bit hash that names these knobs in pins, response-cache keys and the ledger."""
    alpha = np.ascontiguousarray(knobs.alpha, dtype="<f8")
    raw = struct.pack("<I", len(alpha)) + alpha.tobytes()
    raw += struct.pack("<ddIB", knobs.speed_weight, knobs.output_cost_ratio, knobs.expected_output_tokens, _bit(knobs))
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "little")


def hash_text(value: int) -> str:
    """Return a knobs hash as headers and ledger show it; the hash 0 of a v1 bundle is shown too."""
    return f"{value:016x}"


def _bit(knobs: Knobs) -> int:
    return 1 if knobs.per_model_verbosity else 0


def _preset_alpha(defaults: Defaults, name: str) -> Floats:
    preset, base = defaults.presets[name], defaults.knobs.alpha
    if name == QUALITY:
        wanted = np.maximum(preset.alpha, base)  # a preset never lowers quality below the bundle's own
    elif defaults.alpha_floor is not None:
        wanted = np.maximum(preset.alpha, defaults.alpha_floor)
    else:
        wanted = np.full(len(base), preset.alpha)
    alpha: Floats = np.minimum(1.0 - preset.speed_weight, wanted)
    # Floors meet the room that each preset's speed leaves, so they alone could turn the presets' order around.
    above = {BALANCED: QUALITY, COST: BALANCED}.get(name) if defaults.ordered else None
    return alpha if above is None else np.minimum(alpha, _preset_alpha(defaults, above))
