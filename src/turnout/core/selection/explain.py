"""A selection as a document of JSON types, rendered long after it was made, from the value alone."""

from __future__ import annotations

from typing import Any

from turnout.core.selection.blend import Blend, Weighted
from turnout.core.selection.clusters import Nearest
from turnout.core.selection.knobs import hash_text
from turnout.core.selection.selection import Selection

_VERSION = 1


def explain(selection: Selection, ranked_max: int | None = None) -> dict[str, Any]:
    """Return everything that a selection rests on; `ranked_max` cuts the list of models."""
    weighted = selection.weighted
    document: dict[str, Any] = {
        "v": _VERSION,
        "reason": str(selection.reason),
        "model": selection.models[0] if selection.models else None,
        "bundle": {"version": selection.bundle_version, "digest": selection.bundle_digest},
        "preset": selection.preset,
        "knobs_hash": hash_text(selection.knobs_hash),
        "clusters": [
            {"cluster": cluster, "similarity": similarity}
            for cluster, similarity in zip(selection.clusters, selection.similarities, strict=True)
        ],
        "ranked": [
            {
                "model": row.model,
                "score": row.score,
                "terms": {"quality": row.quality, "cost": row.cost, "speed": row.speed},
                "untimed": row.untimed,
                "unpriced": row.unpriced,
            }
            for row in selection.ranked[:ranked_max]
        ],
        "dropped": [{"model": model, "reason": str(reason)} for model, reason in selection.dropped],
        "yielded": [str(reason) for reason in selection.yielded],
        "out_of_domain": selection.out_of_domain,
        "observed_at_ms": selection.observed_at_ms or None,
        "timing_source": selection.timing_source,
        "pin": None,
        "failure": None if selection.failure is None else str(selection.failure),
    }
    if weighted is not None:
        knobs = weighted.knobs
        document["knobs"] = {
            "alpha": knobs.alpha.tolist(),
            "speed_weight": knobs.speed_weight,
            "output_cost_ratio": knobs.output_cost_ratio,
            "expected_output_tokens": knobs.expected_output_tokens,
            "per_model_verbosity": knobs.per_model_verbosity,
        }
    if selection.pin is not None:
        pin = selection.pin
        document["pin"] = {
            "reason": str(pin.reason),
            "stays": pin.stays,
            "pinned": pin.pinned,
            "savings_usd": pin.savings_usd,
            "cache_loss_usd": pin.cache_loss_usd,
        }
    return document


def norms(blend: Blend, weighted: Weighted, near: Nearest) -> dict[str, Any] | None:
    """Return what the terms were summed up from, in [0, 1]: quality per cluster and model, cost and speed per model.

    The best quality is 1, the best cost and speed are 0. None for a bundle of format 1, whose axes are baked in.
    """
    models = blend.bundle.models
    if not blend.bundle.is_v2:
        return None
    timed = weighted.speed > 0.0
    return {
        "quality": {
            str(cluster): dict(zip(models, row, strict=True))
            for cluster, row in zip(near.ascending.tolist(), blend.quality_norms(near).tolist(), strict=True)
        },
        "cost": dict(zip(models, (1.0 - weighted.cheapness).tolist(), strict=True)),
        "speed": dict(zip(models, (1.0 - weighted.quickness).tolist(), strict=True)) if timed else None,
    }
