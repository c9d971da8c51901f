"""Facts become columns of rows, in the order of the tables' columns (without `seq`), and the sums of their buckets.

Columns rather than rows, because turning whole structs into columns costs a few C calls for a chunk of calls, and
because the database is told only once what all rows of a chunk share. A test compares the names with the schema.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import astuple

from turnout.core.facts import AttemptFact, CallFact

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from turnout.core.facts import RouteKey

Row = tuple[Any, ...]
Columns = list["Sequence[Any]"]
"""Per column the values of all rows; an empty list for no rows."""
AttemptId = tuple[str, int, str]
"""call_id, attempt_no, phase."""

BUCKET_MS = 10_000
DAY_MS = 86_400_000
DECISION_MAX_BYTES = 16_384

# Names of the structs' fields; those that stand in brackets are made here.
CALL_COLUMNS: Final = (
    *("call_id", "request_id", "router_id", "(writer_id)", "started_at_ms", "ended_at_ms", "(recorded_at_ms)"),
    *("queue_ms", "decide_us", "ttft_ms", "e2e_ms", "tenant", "key_id", "session_id", "user_id", "dialect", "path"),
    *("stream", "requested_model", "selected_model", "reason", "bundle_version", "knobs_hash", "clusters", "score_e9"),
    *("(route_id)", "(attempts_n)", "prefix_blocks", "prefix_matched_blocks", "outcome", "cls", "http_status"),
    *("error_kind", "committed", "resumed", "hedged", "recovered", "est_tokens", "tokens_in", "tokens_out"),
    *("tokens_cached", "tokens_cache_write", "tokens_reasoning", "usage_source", "tools_requested", "tools_emitted"),
    *("cache_match", "cache_similarity_e3", "cache_source", "saved_nusd", "cost_nusd", "cost_basis", "reserved_nusd"),
)
ATTEMPT_COLUMNS: Final = (
    *("(call_id)", "attempt_no", "phase", "(route_id)", "kind", "(writer_id)", "started_at_ms", "ended_at_ms"),
    *("(recorded_at_ms)", "e2e_ms", "ttft_ms", "ok", "counted", "error_kind", "http_status", "committed"),
    *("tokens_in", "tokens_out", "tokens_cached", "tokens_cache_write", "usage_source"),
    *("tools_requested", "tools_emitted", "cost_nusd", "cost_basis", "list_nusd", "price_version"),
)

_RENAMED: Final = {"cls": "class"}
INSERTED: Final = {
    "decisions": ("call_id", "json"),
    "attempt_buckets": (
        *("bucket_ms", "route_id", "writer_id", "n", "counted_n", "ok_n", "e2e_n", "e2e_sum_ms", "ttft_n"),
        *("ttft_sum_ms", "tools_n", "tools_emitted_n"),
    ),
    "late_buckets": ("recorded_at_ms", "bucket_ms", "writer_id"),
    "dirty_hours": ("hour_ms",),
    "budgets": ("tenant", "key_id", "day_ms", "spent_nusd"),
}
"""The columns of the other tables that a batch goes to."""
SUM_KEYS: Final = {"attempt_buckets": 3, "budgets": 3}
"""Tables of sums: so many columns in front are the key, and the others are added up."""


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """What every row of one transaction shares."""

    router_id: str
    writer_id: int
    recorded_at_ms: int


class Batch(msgspec.Struct, frozen=True):
    """The rows of some calls. `too_large` counts explanations that were left out, `unpriced` attempts per provider."""

    calls: Columns
    attempts: Columns
    decisions: list[Row]
    too_large: int
    unpriced: Counter[str]


Sums = dict[tuple[int, int], list[int]]
"""Per (bucket_ms, route_id) what its bucket row grows by, in column order."""


def inserted_columns(table: str) -> tuple[str, ...]:
    """Name the columns that an insertion gives, in order: all but an identity."""
    named = {"calls": CALL_COLUMNS, "attempts": ATTEMPT_COLUMNS}.get(table)
    return INSERTED[table] if named is None else tuple([_RENAMED.get(name, name.strip("()")) for name in named])


def addition(table: str) -> str:
    """Write what an insertion into a table of sums does where there is a row already, the same for both databases."""
    columns, keys = INSERTED[table], SUM_KEYS[table]
    sums = ", ".join([f"{name} = ({table}.{name} + excluded.{name})" for name in columns[keys:]])
    return f" ON CONFLICT ({', '.join(columns[:keys])}) DO UPDATE SET {sums}"


def route_keys(facts: Iterable[CallFact]) -> set[RouteKey]:
    """Every route that the facts name."""
    keys = {attempt.route for fact in facts for attempt in fact.attempts}
    keys.update(fact.route for fact in facts)
    return {key for key in keys if key is not None}


def batch(
    facts: Sequence[CallFact],
    stamp: Stamp,
    route_ids: Mapping[RouteKey | None, int | None],
    sums: Sums,
    stored: set[AttemptId],
    apart: Collection[str] = (),
) -> Batch:
    """Turn facts into rows and add their route facts to `sums`.

    Args:
        facts: calls, or attempts of calls that are still open (`outcome` empty).
        stamp: what the rows share.
        route_ids: the id of each route, and None for None.
        sums: grows.
        stored: attempts of the calls in `apart` that have a row already; grows.
        apart: calls whose attempts may have been recorded before.

    """
    closed = [fact for fact in facts if fact.outcome] if apart else facts
    legs: list[AttemptFact] = []
    owners: list[str] = []
    for fact in facts:
        attempts = fact.attempts if fact.call_id not in apart else _new(fact, stored)
        legs += attempts
        owners += (fact.call_id,) * len(attempts)
    ids = [route_ids[leg.route] for leg in legs]
    for leg, route_id in zip(legs, ids, strict=True):
        if route_id is not None:
            _add(sums, leg, route_id)
    decisions = [
        (fact.call_id, fact.decision.decode("utf-8", "replace"))
        for fact in facts
        if fact.decision is not None and len(fact.decision) <= DECISION_MAX_BYTES
    ]
    too_large = sum(fact.decision is not None for fact in facts) - len(decisions)
    unpriced = Counter(
        [leg.route.provider for leg in legs if leg.cost_nusd is None and leg.usage_source != "none" and leg.route]
    )
    return Batch(
        _calls(closed, stamp, route_ids) if closed else [],
        _attempts(legs, owners, ids, stamp) if legs else [],
        decisions,
        too_large,
        unpriced,
    )


def plain(fact: CallFact) -> bool:
    """Tell a call that was stored never or whole: attempts are recorded early only when others follow."""
    return len(fact.attempts) <= 1 and bool(fact.outcome) and not fact.recovered


def bucket_rows(sums: Sums, writer_id: int) -> list[Row]:
    """Give the bucket rows (bucket_ms, route_id, writer_id, sums…), sorted: transactions lock them in one order."""
    return [(bucket, route_id, writer_id, *sums[bucket, route_id]) for bucket, route_id in sorted(sums)]


def spent_rows(facts: Iterable[CallFact]) -> list[Row]:
    """Give what calls cost (tenant, key_id, day_ms, nano-USD), sorted: transactions lock them in one order."""
    sums: dict[tuple[str, str, int], int] = {}
    for fact in facts:
        if fact.outcome and fact.cost_nusd:
            key = (fact.tenant, fact.key_id, fact.ended_at_ms // DAY_MS * DAY_MS)
            sums[key] = sums.get(key, 0) + fact.cost_nusd
    return [(*key, sums[key]) for key in sorted(sums)]


def _calls(closed: Sequence[CallFact], stamp: Stamp, route_ids: Mapping[RouteKey | None, int | None]) -> Columns:
    found: dict[str, Sequence[Any]] = dict(
        zip(CallFact.__struct_fields__, zip(*map(astuple, closed), strict=True), strict=True)
    )
    n = len(closed)
    found["router_id"] = [name or stamp.router_id for name in found["router_id"]]
    found["(writer_id)"] = (stamp.writer_id,) * n
    found["(recorded_at_ms)"] = (stamp.recorded_at_ms,) * n
    found["(route_id)"] = [route_ids[key] for key in found["route"]]
    found["(attempts_n)"] = [len(legs) if len(legs) <= 1 else _attempts_n(legs) for legs in found["attempts"]]
    return [found[name] for name in CALL_COLUMNS]


def _attempts(
    legs: Sequence[AttemptFact], owners: Sequence[str], route_ids: Sequence[int | None], stamp: Stamp
) -> Columns:
    found: dict[str, Sequence[Any]] = dict(
        zip(AttemptFact.__struct_fields__, zip(*map(astuple, legs), strict=True), strict=True)
    )
    n = len(legs)
    found["(call_id)"] = owners
    found["(route_id)"] = route_ids
    found["(writer_id)"] = (stamp.writer_id,) * n
    found["(recorded_at_ms)"] = (stamp.recorded_at_ms,) * n
    return [found[name] for name in ATTEMPT_COLUMNS]


def _attempts_n(legs: Sequence[AttemptFact]) -> int:
    return len({leg.attempt_no for leg in legs if leg.phase in {"solo", "pair"}})


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
