"""A batch is stored whole, once, with every field, and a bad fact spoils no other."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from turnout.core.facts import AttemptFact, CallFact, RouteKey
from turnout.ledger.reader import Reader
from turnout.ledger.sink import SinkDownError, Written
from turnout.ledger.store import Store

Make = Callable[..., Any]


def _rows(database: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as conn:
        return conn.execute(sql).fetchall()


def _filled(kind: type, **given: Any) -> Any:
    """Give every field a value that no other field has, so that two swapped columns show."""
    values: dict[str, Any] = {}
    for n, field in enumerate(msgspec.structs.fields(kind), start=1000):
        flag, text = field.type is bool, "str" in str(field.type)
        values[field.name] = bool(n % 2) if flag else f"{field.name}-{n}" if text else n
    return kind(**{**values, **given})


def test_every_field_survives_the_round_trip(database: Path, store: Store, clock: Any) -> None:
    route, other = RouteKey("prov", "model", "rep"), RouteKey("", "model", "decode-1")
    attempt = _filled(AttemptFact, phase="solo", route=route)
    fact = _filled(CallFact, attempts=(attempt,), route=other, decision=b'{"pick":"rep"}')
    written = store.write([fact])
    assert written == Written(calls=1, attempts=1, routes=2, decisions=1, commits=1)
    stored = Reader(database).call(fact.call_id)
    assert stored is not None
    legs = stored.pop("attempts")
    wanted = msgspec.structs.asdict(fact) | {
        "class": fact.cls,
        "recorded_at_ms": clock(),
        "writer_id": 1,
        "attempts_n": 1,
    }
    for name in ("cls", "attempts", "route", "decision"):
        del wanted[name]
    parts = {"provider": "", "model": "model", "replica": "decode-1"}
    assert {k: v for k, v in stored.items() if k not in {"seq", "route_id"}} == wanted | parts
    leg_wanted = msgspec.structs.asdict(attempt) | {"recorded_at_ms": clock(), "writer_id": 1, "call_id": fact.call_id}
    del leg_wanted["route"]
    leg_parts = {"provider": "prov", "model": "model", "replica": "rep"}
    assert [{k: v for k, v in leg.items() if k not in {"seq", "route_id"}} for leg in legs] == [leg_wanted | leg_parts]
    assert Reader(database).decision(fact.call_id) == {"pick": "rep"}


def test_optional_fields_are_stored_as_null(database: Path, store: Store, call: Make, attempt: Make) -> None:
    store.write([call(0, route=None, attempts=(attempt(route=None, e2e_ms=None, ttft_ms=None),))])
    assert _rows(database, "SELECT route_id, session_id, cost_nusd, queue_ms FROM calls") == [(None,) * 4]
    assert _rows(database, "SELECT route_id, e2e_ms, ttft_ms, http_status FROM attempts") == [(None,) * 4]
    assert _rows(database, "SELECT count(*) FROM attempt_buckets") == [(0,)]


def test_a_batch_written_twice_changes_nothing(database: Path, store: Store, call: Make) -> None:
    batch = [call(n) for n in range(70)]
    assert store.write(batch).calls == 70
    before = [_rows(database, f"SELECT * FROM {table}") for table in ("calls", "attempts", "attempt_buckets", "routes")]
    again = store.write([*batch, call(70), call(70, tenant="late")])
    assert again == Written(calls=1, attempts=1, duplicates=71, commits=1)
    assert [_rows(database, f"SELECT * FROM {t}")[:70] for t in ("calls", "attempts")] == before[:2]
    assert _rows(database, "SELECT n, e2e_sum_ms FROM attempt_buckets") == [(71, 7_100)]
    assert _rows(database, "SELECT tenant FROM calls WHERE call_id LIKE '%70'") == [("acme",)]


def test_row_identity_is_ours(database: Path, store: Store, call: Make) -> None:
    store.write([call(n, request_id=request_id) for n, request_id in enumerate(["", "", "same", "same"])])
    assert _rows(database, "SELECT request_id FROM calls ORDER BY seq") == [("",), ("",), ("same",), ("same",)]


def test_bucket_sums_follow_the_rules_for_failures_and_tools(
    database: Path, store: Store, call: Make, attempt: Make
) -> None:
    legs = [
        attempt(attempt_no=1, ok=False, error_kind="server_error", tools_requested=True),
        attempt(attempt_no=2, ok=False, counted=False, error_kind="cancelled", e2e_ms=9_999),
        attempt(attempt_no=3, tools_requested=True, tools_emitted=True, ttft_ms=None),
        attempt(attempt_no=4, tools_requested=True),
        attempt(attempt_no=5, tools_emitted=True, e2e_ms=None),
        attempt(attempt_no=5, e2e_ms=1),
    ]
    store.write([call(0, attempts=tuple(legs))])
    sums = "n, counted_n, ok_n, e2e_n, e2e_sum_ms, ttft_n, ttft_sum_ms, tools_n, tools_emitted_n"
    assert _rows(database, f"SELECT {sums} FROM attempt_buckets") == [(5, 4, 3, 2, 200, 2, 40, 2, 1)]
    assert _rows(database, "SELECT attempts_n FROM calls") == [(5,)]


def test_a_split_attempt_is_one_attempt_with_two_legs(database: Path, store: Store, call: Make, attempt: Make) -> None:
    legs = (attempt(phase="pair", route=None), attempt(phase="prefill"), attempt(phase="decode"))
    store.write([call(0, attempts=legs)])
    assert _rows(database, "SELECT attempts_n FROM calls") == [(1,)]
    assert _rows(database, "SELECT phase FROM attempts ORDER BY seq") == [("pair",), ("prefill",), ("decode",)]
    assert _rows(database, "SELECT n FROM attempt_buckets") == [(2,)]


@pytest.mark.parametrize(
    "bad", [{"cost_nusd": -1}, {"tokens_in": 2**70}, {"tenant": "\ud800"}, {"tenant": None}, {"call_id": "\ud800"}]
)
def test_a_fact_that_no_table_can_hold_costs_only_itself(
    database: Path, store: Store, call: Make, bad: dict[str, Any]
) -> None:
    written = store.write([call(n, **(bad if n == 3 else {})) for n in range(9)])
    assert (written.calls, written.attempts, written.invalid) == (8, 8, 1)
    assert _rows(database, "SELECT count(*), (SELECT count(*) FROM attempts) FROM calls") == [(8, 8)]
    assert _rows(database, "SELECT n FROM attempt_buckets") == [(8,)]


def test_attempts_without_a_known_price_are_counted_by_provider(store: Store, call: Make, attempt: Make) -> None:
    sold, own = RouteKey("seller", "m", ""), RouteKey("", "m", "replica-1")
    used = {"tokens_in": 5, "usage_source": "engine"}
    legs = [attempt(route=sold, **used), attempt(route=sold, cost_nusd=0, **used), attempt(route=own, **used)]
    legs += [attempt(route=sold, usage_source="none"), attempt(route=sold, **used)]
    written = store.write([call(n, attempts=(leg,)) for n, leg in enumerate(legs)])
    assert written.unpriced == {"seller": 2, "": 1}
    assert store.write([call(0, attempts=legs[:1])]).unpriced == {}


def test_decisions_over_the_limit_are_left_out_and_counted(store: Store, call: Make) -> None:
    written = store.write([call(0, decision=b" " * 16_385), call(1, decision=b" " * 16_384)])
    assert (written.calls, written.decisions, written.decisions_too_large) == (2, 1, 1)


def test_a_locked_database_is_down_and_then_takes_the_same_batch(database: Path, store: Store, call: Make) -> None:
    store.write([call(0)])
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SinkDownError) as caught:
            store.write([call(1)])
        assert caught.value.kind == "locked"
    assert store.write([call(1)]).calls == 1


def test_old_rows_are_pruned_and_new_ones_stay(database: Path, store: Store, clock: Any, call: Make) -> None:
    day = 86_400_000
    old = call(0, call_id="01AAAAAAAA" + "0" * 16, ended_at_ms=clock() - 31 * day, decision=b"{}")
    store.write([old, call(1, call_id="7ZZZZZZZZZ" + "0" * 16, decision=b"{}")])
    while store.prune():
        pass
    assert _rows(database, "SELECT count(*) FROM calls") == [(1,)]
    assert _rows(database, "SELECT call_id FROM decisions") == [("7ZZZZZZZZZ" + "0" * 16,)]
    assert _rows(database, "SELECT count(*) FROM attempts") == [(2,)]
    clock.now_ms += 31 * day
    while store.prune():
        pass
    assert _rows(database, "SELECT (SELECT count(*) FROM attempts), (SELECT count(*) FROM attempt_buckets)") == [(0, 0)]


def test_recent_calls_come_newest_first_and_bounded(database: Path, store: Store, call: Make, clock: Any) -> None:
    store.write([call(n, ended_at_ms=clock() + n) for n in range(5)])
    reader = Reader(database)
    assert [row["request_id"] for row in reader.recent_calls(3)] == ["req_4", "req_3", "req_2"]
    assert reader.recent_calls(-1) == []
    assert reader.call("unknown") is None
    assert reader.decision("unknown") is None
