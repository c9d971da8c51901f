"""Facts become rows: tuples in the order of the tables' columns (without `seq`), and the sums of their buckets.

A row is glued from a few attrgetter slices because one C call per slice costs half of what naming each field in
Python does; a test compares the slices with the columns of the schema.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from turnout.core.facts import AttemptFact, CallFact, RouteKey

Row = tuple[Any, ...]
AttemptId = tuple[str, int, str]
"""call_id, attempt_no, phase."""

BUCKET_MS = 10_000
DECISION_MAX_BYTES = 16_384

CALL_SLICES: tuple[tuple[str, ...], ...] = (
    ("call_id", "request_id"),
    ("started_at_ms", "ended_at_ms"),
    (
        *("queue_ms", "decide_us", "ttft_ms", "e2e_ms", "tenant", "key_id", "session_id", "user_id", "dialect", "path"),
        *("stream", "requested_model", "selected_model", "reason", "bundle_version", "knobs_hash", "clusters"),
        "score_e9",
    ),
    (
        *("prefix_blocks", "prefix_matched_blocks", "outcome", "cls", "http_status", "error_kind"),
        *("committed", "resumed", "hedged", "recovered", "est_tokens", "tokens_in", "tokens_out", "tokens_cached"),
        *("tokens_cache_write", "tokens_reasoning", "usage_source", "tools_requested", "tools_emitted"),
        *("cache_match", "cache_similarity_e3", "cache_source", "saved_nusd", "cost_nusd", "cost_basis"),
        "reserved_nusd",
    ),
)
ATTEMPT_SLICES: tuple[tuple[str, ...], ...] = (
    ("attempt_no", "phase"),
    ("started_at_ms", "ended_at_ms"),
    (
        *("e2e_ms", "ttft_ms", "ok", "counted", "error_kind", "http_status", "committed"),
        *("tokens_in", "tokens_out", "tokens_cached", "tokens_cache_write", "usage_source"),
        *("tools_requested", "tools_emitted", "cost_nusd", "cost_basis", "list_nusd", "price_version"),
    ),
)
_call_identity, _call_times, _call_who_what, _call_end = (attrgetter(*names) for names in CALL_SLICES)
_attempt_identity, _attempt_times, _attempt_end = (attrgetter(*names) for names in ATTEMPT_SLICES)


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """What every row of one transaction shares."""

    router_id: str
    writer_id: int
    recorded_at_ms: int


class Batch(msgspec.Struct, frozen=True):
    """The rows of some calls. `too_large` counts explanations that were left out."""

    calls: list[Row]
    attempts: list[Row]
    decisions: list[Row]
    too_large: int


Sums = dict[tuple[int, int], list[int]]
"""Per (bucket_ms, route_id) what its bucket row grows by, in column order."""


def route_keys(facts: Iterable[CallFact]) -> set[RouteKey]:
    """Every route that the facts name."""
    keys = {attempt.route for fact in facts for attempt in fact.attempts}
    keys.update(fact.route for fact in facts)
    return {key for key in keys if key is not None}


def batch(
    facts: Iterable[CallFact],
    stamp: Stamp,
    route_ids: Mapping[RouteKey | None, int | None],
    sums: Sums,
    stored: set[AttemptId],
) -> Batch:
    """Turn facts into rows and add their route facts to `sums`.

    Args:
        facts: calls, or attempts of calls that are still open (`outcome` empty).
        stamp: what the rows share.
        route_ids: the id of each route, and None for None.
        sums: grows.
        stored: attempts that have a row already; those of calls with several attempts are added.

    """
    calls: list[Row] = []
    attempts: list[Row] = []
    decisions: list[Row] = []
    too_large = 0
    for fact in facts:
        if fact.outcome:
            calls.append(_call_row(fact, stamp, route_ids[fact.route]))
        for leg in fact.attempts if plain(fact) else _new(fact, stored):
            route_id = route_ids[leg.route]
            attempts.append(
                (
                    *(fact.call_id, *_attempt_identity(leg), route_id, leg.kind, stamp.writer_id),
                    *(*_attempt_times(leg), stamp.recorded_at_ms, *_attempt_end(leg)),
                )
            )
            if route_id is not None:
                _add(sums, leg, route_id)
        if fact.decision is not None:
            if len(fact.decision) > DECISION_MAX_BYTES:
                too_large += 1
            else:
                decisions.append((fact.call_id, fact.decision.decode("utf-8", "replace")))
    return Batch(calls, attempts, decisions, too_large)


def plain(fact: CallFact) -> bool:
    """Tell a call that was stored never or whole: attempts are recorded early only when others follow."""
    return len(fact.attempts) <= 1 and bool(fact.outcome) and not fact.recovered


def bucket_rows(sums: Sums, writer_id: int) -> list[Row]:
    """Give the bucket rows (bucket_ms, route_id, writer_id, sums…), sorted: transactions lock them in one order."""
    return [(bucket, route_id, writer_id, *sums[bucket, route_id]) for bucket, route_id in sorted(sums)]


def _call_row(fact: CallFact, stamp: Stamp, route_id: int | None) -> Row:
    legs = fact.attempts
    attempts_n = len(legs) if len(legs) <= 1 else len({leg.attempt_no for leg in legs if leg.phase in {"solo", "pair"}})
    return (
        *_call_identity(fact),
        fact.router_id or stamp.router_id,
        stamp.writer_id,
        *_call_times(fact),
        stamp.recorded_at_ms,
        *_call_who_what(fact),
        route_id,
        attempts_n,
        *_call_end(fact),
    )


def _new(fact: CallFact, stored: set[AttemptId]) -> list[AttemptFact]:
    new: list[AttemptFact] = []
    for leg in fact.attempts:
        key = (fact.call_id, leg.attempt_no, leg.phase)
        if key not in stored:
            stored.add(key)
            new.append(leg)
    return new


def _add(sums: Sums, leg: AttemptFact, route_id: int) -> None:
    """Add one route fact; durations and tools of failed attempts say nothing about the route (ledger §6)."""
    key = (leg.ended_at_ms // BUCKET_MS * BUCKET_MS, route_id)
    total = sums.get(key)
    if total is None:
        total = sums[key] = [0] * 9
    total[0] += 1
    total[1] += leg.counted
    if not leg.ok:
        return
    total[2] += 1
    if leg.e2e_ms is not None:
        total[3] += 1
        total[4] += leg.e2e_ms
    if leg.ttft_ms is not None:
        total[5] += 1
        total[6] += leg.ttft_ms
    if leg.tools_requested:
        total[7] += 1
        total[8] += leg.tools_emitted
