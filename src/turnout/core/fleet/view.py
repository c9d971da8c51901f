"""One endpoint as people see it: state, load with its age, and what was learnt; JSON types only."""

from __future__ import annotations

from typing import Any

from turnout.core.fleet.endpoint import EndpointState


def view(endpoint: EndpointState, now: float) -> dict[str, Any]:
    """Return the document of one endpoint; None is unknown, never zero."""
    prefill = endpoint.prefill
    precision = endpoint.precisions[endpoint.mode]
    return {
        "endpoint": endpoint.name,
        "url": endpoint.url,
        "incarnation": endpoint.incarnation,
        "models": sorted(endpoint.models),
        "role": endpoint.role,
        "standby": endpoint.standby,
        "in_flight": endpoint.in_flight,
        "places": endpoint.places,
        "attempts": endpoint.attempts_total,
        "pending_prefill_tokens": endpoint.pending_prefill_tokens,
        "active_tokens": endpoint.active_tokens,
        "context_max": endpoint.context_max,
        "unreachable": endpoint.unreachable,
        "probe_failing": endpoint.probe_failing,
        "draining": endpoint.draining,
        "breaker": str(endpoint.breaker.state),
        "cooldown_s": max(0.0, endpoint.cooldown_until - now),
        "queue_s": prefill.queue_s(now),
        "prefill_s_per_token": prefill.a,
        "prefill_s_per_token2": prefill.b,
        "step_s": prefill.step_s,
        "ttft_s": endpoint.ttft_s,
        "match_rate": endpoint.tokens_cached_total / endpoint.tokens_total if endpoint.tokens_total else None,
        "mode": endpoint.mode.name.lower(),
        "precision": precision.estimate,
        "trusted": precision.trusted,
        "exact_blocks": sum(stream.blocks for stream in endpoint.streams) if endpoint.streams else None,
        "running": endpoint.running,
        "waiting": endpoint.waiting,
        "waiting_uncached_tokens": endpoint.waiting_uncached_tokens,
        "kv_usage_ratio": endpoint.kv_usage_ratio,
        "kv_capacity_tokens": endpoint.kv_capacity_tokens,
        "report_age_s": None if endpoint.observed_at is None else now - endpoint.observed_at,
    }
