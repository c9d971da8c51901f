"""A decision as a document, and back: the printed inputs give the printed totals and the same pick (scheduling §6).

Rendering reads the decision only, so it can happen long after and changes nothing. `recompute` feeds the document
through the live policies, not through a copy of their formulas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from turnout.core.fleet.precision import Mode
from turnout.core.kit.rotation import Rotation
from turnout.core.scheduling import turnout
from turnout.core.scheduling.decision import COST_NAMES, Costs, Decision, PairDecision
from turnout.core.scheduling.packing import unpacked
from turnout.core.scheduling.policies import COLUMNS, POLICIES, affinity_totals
from turnout.core.scheduling.types import DropReason, Verdict

_VERSION = 1
_STORED_CANDIDATES = 10
# Of these the highest total wins; of the others the lowest.
_UNITS = {
    "affinity_load": "score",
    "longest_prefix": "blocks",
    "first_block": "blocks",
    "consistent_hash": "rank",
    "memory_aware": "tokens",
    "sglang_cache_aware": "share",
    "llm_d_default": "score",
}
_DETAILS = {
    DropReason.MODEL_NOT_SERVED: "it has said that it does not serve this model",
    DropReason.ROLE_MISMATCH: "it serves one leg of a pair only",
    DropReason.DIALECT_NOT_SPOKEN: "it is not asked in the request's dialect",
    DropReason.CONTEXT_TOO_SMALL: "the prompt is longer than its context, however it is counted",
    DropReason.NEVER_FITS: "the prompt is larger than its KV cache",
    DropReason.TRIED: "an attempt of this request was there",
    DropReason.DRAINING: "it is being emptied",
    DropReason.GONE: "it has left",
    DropReason.UNREACHABLE: "no connection can be opened",
    DropReason.SATURATED: "all places that it has for us are taken",
    DropReason.CAPABILITY_MISSING: "it has not shown what the request needs",
    DropReason.BREAKER_OPEN: "its breaker is open",
    DropReason.EJECTED: "it does worse than its pool",
    DropReason.PROBE_FAILING: "its readiness probes fail",
    DropReason.STANDBY: "it is kept for when there is no other",
    DropReason.COOLDOWN: "it has asked to be left alone for a while",
    DropReason.SLOW_START: "it has just come and takes a share only",
}
_LOWEST_UNITS = {"turnout": "s", "least_predicted_ttft": "s", "dynamo_cost": "blocks"}


def explain(decision: Decision, request_id: str) -> dict[str, Any]:
    """Return the document of one decision; JSON types only, floats survive JSON bit for bit."""
    decision = unpacked(decision)
    totals = _totals(decision)
    ranks = _ranks(decision, totals)
    document = {
        "v": _VERSION,
        "request_id": request_id,
        "pool": decision.model,
        "policy": decision.policy,
        "verdict": str(decision.verdict),
        "held": decision.held,
        "retry_at": decision.retry_at,
        "regret": decision.regret,
        "params": {
            "affinity_beta": decision.beta,
            "affinity_form": decision.form,
            "block_tokens": decision.block_tokens,
            **decision.costs.params(),
        },
        "now_s": decision.now,
        "seed": decision.counter,
        **_space(decision),
        "previous": decision.last,
        "draws": list(decision.draws),
        "blocks": decision.blocks,
        "tokens": decision.tokens,
        "candidates": [_candidate(decision, totals, ranks, position) for position in range(len(decision.names))],
        "dropped": [
            {"endpoint": name, "reason": str(reason), "detail": _DETAILS[DropReason(reason)]}
            for name, reason in decision.dropped
        ],
        "relaxed": list(decision.relaxed),
        "tie": decision.tie,
        "fallback": decision.fallback,
        "picked": None if decision.picked is None else decision.picked.name,
        "dp_rank": None if decision.dp_rank < 0 else decision.dp_rank,
        "matched_blocks": decision.matched_blocks,
        "uncached_tokens": decision.uncached,
        "prefix_result": decision.prefix_result,
    }
    return document | _legs(decision) if type(decision) is PairDecision else document


def brief(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document as it is stored: the picked candidate and the nine best, dropped ones as counts by reason."""
    kept = [candidate for candidate in document["candidates"] if candidate["rank"] <= _STORED_CANDIDATES]
    reasons = Counter(drop["reason"] for drop in document["dropped"])
    total = len(document["candidates"])
    return document | {"candidates": kept, "candidates_total": total, "dropped": dict(sorted(reasons.items()))}


def recompute(document: dict[str, Any]) -> tuple[str | None, Sequence[float]]:
    """Run the policy over the printed inputs; returns the picked name and the totals."""
    candidates = document["candidates"]
    result = document["prefix_result"]
    decision = Decision(
        None,
        document["pool"],
        document["policy"],
        [],
        tuple(candidate["endpoint"] for candidate in candidates),
        [candidate["matched_blocks"] for candidate in candidates],
        [candidate["load"]["busy"] for candidate in candidates],
        [candidate["load"]["in_flight"] for candidate in candidates],
        document["blocks"],
        document["tokens"],
        document["params"]["block_tokens"],
        document["params"]["affinity_beta"],
        "match" if result == "declined" else result,
        document["now_s"],
        document["seed"],
        document["previous"],
    )
    decision.recency = [candidate["recency"] for candidate in candidates if "recency" in candidate]
    decision.form = document["params"]["affinity_form"]
    decision.rows = [tuple(candidate["inputs"].values()) for candidate in candidates if "inputs" in candidate]
    decision.costs = Costs(**{name: document["params"][name] for name in COST_NAMES})
    if not candidates:
        return None, []
    if decision.policy in turnout.PRICED:
        decision.totals = _totals(decision)
    if document["verdict"] == Verdict.HELD:
        return None, decision.totals
    position = POLICIES[decision.policy](decision, Rotation(decision.counter), _Replayed(document["draws"]))
    return decision.names[position], _totals(decision)


def _space(decision: Decision) -> dict[str, Any]:
    """In which keys the prompt was matched in our own history; beside `credit_tokens`, in those of the engines, too."""
    text_bytes = decision.text_block_bytes
    if not decision.blocks:
        return {"key_space": None, "block_size": None, "bytes_per_token": None}
    return {
        "key_space": "text" if text_bytes else "tok",
        "block_size": text_bytes or decision.block_tokens,
        "bytes_per_token": text_bytes / decision.block_tokens if text_bytes else None,
    }


def _legs(decision: PairDecision) -> dict[str, Any]:
    """What a pool with roles decided: both legs, and why the request was split or not."""
    facts, prefill = decision.pair, decision.prefill
    finite = {} if facts is None else {"pair_s": facts.pair_s, "solo_s": facts.solo_s}
    return {
        "legs": None
        if prefill is None
        else {"prefill": prefill.name, "decode": decision.picked and decision.picked.name},
        "prefill_uncached_tokens": None if prefill is None else decision.prefill_uncached,
        "split": None
        if facts is None
        else {
            "decider": facts.decider,
            "reason": facts.reason,
            "uncached_tokens": facts.uncached,
            "tokens": facts.tokens,
            "transfer_s": facts.transfer_s,
            **{name: value if value != float("inf") else None for name, value in finite.items()},
        },
    }


class _Replayed:
    """The rng of a document: hands out what was drawn then."""

    def __init__(self, draws: list[int]) -> None:
        self._draws = iter(draws)

    def random(self) -> float:
        return 0.0

    def randrange(self, stop: int, /) -> int:
        return next(self._draws) % stop


def _totals(decision: Decision) -> Sequence[float]:
    if decision.totals or not decision.names:
        return decision.totals
    if decision.policy == "turnout":
        return turnout.totals(decision)
    if decision.policy == "least_predicted_ttft":
        return turnout.predicted_ttft(decision)
    if decision.policy == "affinity_load" and not decision.rows:
        return affinity_totals(decision.depths, decision.busy, decision.blocks, decision.beta)
    if decision.policy in {"longest_prefix", "first_block"}:
        return [float(depth) for depth in decision.depths]
    return [float(load) for load in decision.busy]


def _ranks(decision: Decision, totals: Sequence[float]) -> list[int]:
    """1 for the picked one, then by total, then by name."""
    picked = None if decision.picked is None else decision.picked.name
    sign = -1.0 if decision.policy in _UNITS else 1.0
    names = decision.names
    order = sorted(range(len(totals)), key=lambda position: (names[position] != picked, sign * totals[position]))
    ranks = [0] * len(order)
    for rank, position in enumerate(order, 1):
        ranks[position] = rank
    return ranks


def _candidate(decision: Decision, totals: Sequence[float], ranks: list[int], position: int) -> dict[str, Any]:
    depth = decision.depths[position]
    member = decision.members[position]
    load: dict[str, Any] = {"busy": decision.busy[position], "in_flight": decision.in_flight[position]}
    if decision.reports:
        running, waiting, age_s = decision.reports[position]
        load |= {"running": running, "waiting": waiting, "age_s": age_s, "estimated": age_s is None}
    candidate: dict[str, Any] = {
        "endpoint": decision.names[position],
        "incarnation": member.incarnation,
        "mode": (decision.modes[position] if decision.modes else Mode.APPROXIMATE).name.lower(),
        "matched_blocks": depth,
        "matched_tokens": min(int(depth * decision.block_tokens), decision.tokens),
        "load": load,
        "terms": _terms(decision, position),
        "unit": _UNITS.get(decision.policy) or _LOWEST_UNITS.get(decision.policy, "requests"),
        "total": totals[position],
        "rank": ranks[position],
    }
    if decision.cached:
        # The endpoint has learnt since; what counted then is what the columns say.
        credit = decision.credits[position] if decision.credits else min(depth * decision.block_tokens, decision.tokens)
        candidate["precision"] = decision.cached[position] / credit if credit else None
        candidate["expected_cached_tokens"] = decision.cached[position]
    if decision.credits:
        candidate["credit_tokens"] = decision.credits[position]
    if decision.rows:
        candidate["inputs"] = dict(zip(COLUMNS[decision.policy], decision.rows[position], strict=True))
    if decision.recency:
        candidate["recency"] = decision.recency[position]
    return candidate


def _terms(decision: Decision, position: int) -> dict[str, float]:
    """The parts of the total: for affinity_load `affinity − load`, else the one column the policy reads."""
    if decision.policy in turnout.PRICED:
        return turnout.terms(decision, position)
    if decision.policy == "affinity_load" and not decision.rows:
        mean = sum(decision.busy) / len(decision.busy)
        share = decision.depths[position] * (1.0 / (decision.blocks or 1))
        return {"affinity": share, "load": (decision.busy[position] - mean) * (decision.beta / max(1.0, mean))}
    if decision.policy in {"longest_prefix", "first_block"}:
        return {"blocks": decision.depths[position]}
    if decision.rows:
        return dict(zip(COLUMNS[decision.policy], decision.rows[position], strict=True))
    return {"busy": decision.busy[position]}
