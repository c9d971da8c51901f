"""One run in figures: what the record says under an objective. Keys keep their order: equal runs print equal bytes."""

from __future__ import annotations

import math
from typing import Any

from turnout.sim.replay.bounds import pooled_lru, unlimited
from turnout.sim.replay.options import ReplayOptions, cold_prefill_s
from turnout.sim.replay.record import Record

_DIGITS = 6
Verdicts = list[bool]


def verdicts(record: Record, options: ReplayOptions, block_tokens: int) -> Verdicts:
    """Whether each request met the objective: TTFT ≤ max(ttft_s, cold_multiple × cold prefill), TPOT ≤ tpot_s."""
    slo = options.slo
    colds = _Colds(options, block_tokens)
    met: Verdicts = []
    for ttft, e2e, prompt, output in zip(
        record.ttft_s, record.e2e_s, record.prompt_tokens, record.output_tokens, strict=True
    ):
        good = 0.0 <= ttft <= max(slo.ttft_s, slo.cold_multiple * colds.of(prompt)) and e2e >= 0.0
        met.append(good and (output < 2 or (e2e - ttft) / (output - 1) <= slo.tpot_s))  # noqa: PLR2004 - one gap
    return met


def slowdowns(record: Record, options: ReplayOptions, block_tokens: int) -> list[float]:
    """TTFT over the cold prefill of the same prompt, per request that got a first token; cached ones are below 1."""
    colds = _Colds(options, block_tokens)
    return [
        ttft / colds.of(prompt) for ttft, prompt in zip(record.ttft_s, record.prompt_tokens, strict=True) if ttft >= 0.0
    ]


def summary(record: Record, options: ReplayOptions, block_tokens: int) -> dict[str, Any]:
    """Return the figures of one run. Seconds, tokens and shares; None where there is nothing to measure."""
    met = verdicts(record, options, block_tokens)
    count = len(met)
    ttft = sorted(value for value in record.ttft_s if value >= 0.0)
    e2e = sorted(value for value in record.e2e_s if value >= 0.0)
    tpot = sorted(
        (whole - first) / (output - 1)
        for first, whole, output in zip(record.ttft_s, record.e2e_s, record.output_tokens, strict=True)
        if whole >= 0.0 and output > 1
    )
    slow = sorted(slowdowns(record, options, block_tokens))
    prompt = sum(record.prompt_tokens)
    span_s = max(record.ended_s, 1e-9)
    busy = sum(record.busy_s)
    capacity = options.shape(block_tokens).cache_blocks * options.endpoints
    served = [0] * options.endpoints
    for place in record.engine:
        if place >= 0:
            served[place] += 1
    predicted, realised = sum(record.predicted_tokens), sum(record.realised_tokens)
    figures = {} if not options.prefill_endpoints else {"split": record.split}
    return {
        "requests": count,
        **figures,
        "refused": record.refused,
        "failed": sum(value < 0.0 for value in record.e2e_s),
        "retried": sum(value > 1 for value in record.attempts),
        "slo_share": _round(sum(met) / count if count else None),
        "goodput_per_s": _round(sum(met) / span_s),
        "goodput_tokens_per_s": _round(
            sum(output for output, good in zip(record.output_tokens, met, strict=True) if good) / span_s
        ),
        "ttft_s": _spread(ttft),
        "slowdown": _spread(slow),
        "tpot_s": _spread(tpot),
        "itl_s": {
            name: _round(record.gaps.quantile(share)) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        },
        "e2e_s": _spread(e2e),
        "held_s": _spread(sorted(record.held_s)),
        "held": dict(sorted(record.held.items())),
        "hit_rate": _round(realised / prompt if prompt else None),
        "hit_rate_pooled_lru": _round(pooled_lru(record.order, block_tokens, capacity)),
        "hit_rate_unlimited": _round(unlimited(record.order, block_tokens)),
        "cached_tokens": {
            "predicted": predicted,
            "realised": realised,
            "error": _round(_prediction_error(record)),
        },
        "load_cov": _round(record.spread),
        "served_share_max": _round(max(served) * options.endpoints / count if count else None),
        "busy_share": _round(busy / (span_s * options.endpoints)),
        "steps": record.steps,
        "preemptions": record.preemptions,
        "fallbacks": dict(sorted(record.fallbacks.items())),
        "drops": dict(sorted(record.drops.items())),
        "ended_s": _round(record.ended_s),
    }


class _Colds:
    """Cold prefill by prompt length, each computed once."""

    def __init__(self, options: ReplayOptions, block_tokens: int) -> None:
        self._shape = options.shape(block_tokens)
        self._known: dict[int, float] = {}

    def of(self, prompt: int) -> float:
        """Seconds of prefill alone on an idle engine."""
        known = self._known.get(prompt)
        if known is None:
            known = self._known[prompt] = cold_prefill_s(self._shape, prompt)
        return known


def _prediction_error(record: Record) -> float | None:
    """Mean distance between predicted and realised cached tokens, as a share of the prompt."""
    shares = [
        abs(predicted - realised) / prompt
        for predicted, realised, prompt in zip(
            record.predicted_tokens, record.realised_tokens, record.prompt_tokens, strict=True
        )
    ]
    return sum(shares) / len(shares) if shares else None


def _spread(ordered: list[float]) -> dict[str, float | None]:
    if not ordered:
        return dict.fromkeys(("mean", "p50", "p90", "p95", "p99"))
    out: dict[str, float | None] = {"mean": _round(math.fsum(ordered) / len(ordered))}
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        out[name] = _round(ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)])
    return out


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
