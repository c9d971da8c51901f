"""PostgreSQL holds the same rows as SQLite, through outages too; the server is a real one."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from turnout.core import options
from turnout.core.facts import RouteKey
from turnout.ledger import connection, schema, server_upgrade, upgrade
from turnout.ledger.remote import OwnProcess
from turnout.ledger.sink import LedgerRefusedError, SinkDownError
from turnout.ledger.writer import Ledger

Make = Callable[..., Any]


def _rows(url: str, sql: str) -> list[Any]:
    engine = connection.reading(url)
    with engine.connect() as conn:
        found = [tuple(row) for row in conn.execute(sa.text(sql))]
    engine.dispose()
    return found


def test_both_databases_hold_the_same_rows(any_store: Any, call: Make, attempt: Make) -> None:
    store, url = any_store
    other = RouteKey("prov", "m", "")
    legs = (attempt(route=other, ok=False, error_kind="server_error"), attempt(attempt_no=2))
    first = [call(n) for n in range(600)]
    assert store.write([*first, call(600, attempts=legs, session_id="s|\\\t\n", decision=b"{}")]).calls == 601
    again = store.write([*first, call(601, attempts=(attempt(e2e_ms=None),))])
    assert (again.calls, again.duplicates, again.invalid) == (1, 600, 0)
    assert _rows(url, "SELECT count(*), count(DISTINCT call_id), sum(e2e_ms) FROM calls") == [(602, 602, 60_200)]
    assert _rows(url, "SELECT session_id FROM calls WHERE session_id IS NOT NULL") == [("s|\\\t\n",)]
    sums = "sum(n), sum(counted_n), sum(ok_n), sum(e2e_n), sum(e2e_sum_ms), sum(ttft_n)"
    assert [tuple(map(int, row)) for row in _rows(url, f"SELECT {sums} FROM attempt_buckets")] == [
        (603, 603, 602, 601, 60_100, 602)
    ]
    assert _rows(url, "SELECT provider, model, replica FROM routes ORDER BY provider") == [
        ("", "model-a", "replica-1"),
        ("prov", "m", ""),
    ]


def test_an_attempt_recorded_before_its_call_is_stored_once(any_store: Any, call: Make, attempt: Make) -> None:
    store, url = any_store
    failed = attempt(ok=False, error_kind="overloaded")
    assert store.write([call(0, outcome="", attempts=(failed,))]).attempts == 1
    assert store.write([call(0, outcome="", attempts=(failed,))]).attempts == 0
    written = store.write([call(0, attempts=(failed, attempt(attempt_no=2)))])
    assert (written.calls, written.attempts) == (1, 1)
    assert store.write([call(0, outcome="", attempts=(failed,))]).attempts == 0
    assert _rows(url, "SELECT attempts_n FROM calls") == [(2,)]
    assert _rows(url, "SELECT attempt_no, ok FROM attempts ORDER BY attempt_no") == [(1, False), (2, True)]
    assert [int(n) for (n,) in _rows(url, "SELECT sum(n) FROM attempt_buckets")] == [2]


def test_late_buckets_and_covered_hours_are_marked(any_store: Any, call: Make, attempt: Make, clock: Any) -> None:
    store, url = any_store
    real_ms = time.time_ns() // 1_000_000  # PostgreSQL stamps with its own clock
    clock.now_ms = real_ms
    old = real_ms - 7_200_000
    store.write([call(0, ended_at_ms=real_ms, attempts=(attempt(ended_at_ms=real_ms),))])
    assert _rows(url, "SELECT count(*) FROM late_buckets") == [(0,)]
    store.write([call(1, ended_at_ms=old, attempts=(attempt(ended_at_ms=old),))])
    assert _rows(url, "SELECT bucket_ms FROM late_buckets") == [(old // 10_000 * 10_000,)]
    assert _rows(url, "SELECT hour_ms FROM dirty_hours") == [(old // 3_600_000 * 3_600_000,)]


def test_stamps_never_go_backwards(any_store: Any, call: Make, clock: Any) -> None:
    store, url = any_store
    store.write([call(0)])
    clock.now_ms -= 3_600_000
    store.write([call(1)])
    stamps = [stamp for (stamp,) in _rows(url, "SELECT recorded_at_ms FROM calls ORDER BY seq")]
    assert stamps == sorted(stamps)


def test_the_migrations_make_the_schema(upgraded_url: str) -> None:
    engine = connection.reading(upgraded_url)
    found = sa.MetaData()
    found.reflect(engine)
    engine.dispose()
    wanted = schema.metadata.tables
    assert set(found.tables) == {*wanted, "alembic_version"}
    for name, table in wanted.items():
        columns = [(c.name, bool(c.nullable)) for c in table.columns]
        assert [(c.name, bool(c.nullable)) for c in found.tables[name].columns] == columns
        indexes = {index.name for index in table.indexes}
        assert {index.name for index in found.tables[name].indexes} == indexes, name


def test_an_older_or_missing_schema_refuses_the_start_and_names_the_command(server_url: str, tmp_path: Path) -> None:
    section = options.Ledger(url=server_url, spool_path=str(tmp_path / "spool"))
    ledger = Ledger(section, router_id="r", clock_ms=lambda: 1)
    with pytest.raises(LedgerRefusedError, match="turnout ledger upgrade"):
        ledger.start()
    assert server_upgrade.run(server_url) is None
    assert server_upgrade.run(server_url) == upgrade.HEAD
    server_upgrade.check(server_url)


def test_a_newer_schema_is_refused(upgraded_url: str) -> None:
    engine = connection.postgres_engine(upgraded_url)
    with engine.connect() as conn, conn.begin():
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    for refused in (server_upgrade.check, server_upgrade.run):
        with pytest.raises(LedgerRefusedError, match="9999"):
            refused(upgraded_url)


def test_a_bad_fact_costs_only_itself_on_postgresql(upgraded_url: str, clock: Any, call: Make) -> None:
    from turnout.ledger import postgres

    store = postgres.open_store(upgraded_url, router_id="r", clock_ms=clock, retention_days=30, decisions_days=7)
    bad: dict[int, dict[str, Any]] = {2: {"cost_nusd": -1}, 4: {"tokens_in": 2**70}, 6: {"tenant": None}}
    written = store.write([call(n, **bad.get(n, {})) for n in range(9)])
    store.close()
    assert (written.calls, written.invalid) == (6, 3)


def test_readers_cannot_write(upgraded_url: str) -> None:
    engine = connection.reading(upgraded_url)
    with engine.connect() as conn, pytest.raises(sa.exc.DBAPIError, match="read-only"):
        conn.execute(sa.text("DELETE FROM calls"))
    engine.dispose()


def test_a_connection_that_the_server_cut_is_replaced(upgraded_url: str, clock: Any, call: Make) -> None:
    from turnout.ledger import postgres

    store = postgres.open_store(upgraded_url, router_id="r", clock_ms=clock, retention_days=30, decisions_days=7)
    store.write([call(0)])
    engine = connection.postgres_engine(upgraded_url)
    with engine.connect() as conn:
        conn.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        )
    engine.dispose()
    with pytest.raises(SinkDownError) as caught:
        store.write([call(1)])
    assert caught.value.kind == "unreachable"
    assert store.write([call(0), call(1)]).calls == 1
    store.close()


@pytest.fixture
def frozen(postgres: Any) -> Iterator[Any]:
    yield postgres
    postgres.signal_all(signal.SIGCONT)


def test_a_server_that_hangs_loses_nothing(
    upgraded_url: str, frozen: Any, tmp_path: Path, call: Make, clock: Any, events: Any
) -> None:
    section = options.Ledger(url=upgraded_url, spool_path=str(tmp_path / "spool"), flush_interval_ms=10)
    ledger = Ledger(section, router_id="r", clock_ms=clock, on_event=events, open_delay_s=0.0)
    ledger.start()
    ledger.record(call(0))
    assert ledger.flush(10.0) == 0
    frozen.signal_all(signal.SIGSTOP)
    for n in range(1, 2_000):
        ledger.record(call(n))
    assert ledger.flush(0.3) > 0
    frozen.signal_all(signal.SIGCONT)
    assert ledger.flush(30.0) == 0
    assert ledger.close() == 0
    assert _rows(upgraded_url, "SELECT count(*), count(DISTINCT call_id) FROM calls") == [(2_000, 2_000)]


def test_a_server_that_is_down_at_boot_and_later_loses_nothing(
    upgraded_url: str, postgres: Any, tmp_path: Path, call: Make, clock: Any, events: Any
) -> None:
    section = options.Ledger(url=upgraded_url, spool_path=str(tmp_path / "spool"), flush_interval_ms=10)
    postgres.stop()
    ledger = Ledger(section, router_id="r", clock_ms=clock, on_event=events, open_delay_s=0.0)
    try:
        ledger.start()
        for n in range(100):
            ledger.record(call(n))
        assert ledger.flush(0.3) > 0
    finally:
        postgres.start()
    assert ledger.flush(30.0) == 0
    postgres.stop()
    try:
        for n in range(100, 200):
            ledger.record(call(n))
        assert ledger.flush(0.3) > 0
    finally:
        postgres.start()
    assert ledger.flush(30.0) == 0
    assert ledger.close() == 0
    assert events.names == ["ledger_down", "ledger_up"] * 2
    assert _rows(upgraded_url, "SELECT count(*), count(DISTINCT call_id) FROM calls") == [(200, 200)]


def test_the_process_of_the_ledger_keeps_what_a_server_cannot_take(
    upgraded_url: str, server_url: str, postgres: Any, tmp_path: Path, call: Make, clock: Any, events: Any
) -> None:
    def beside(url: str) -> Ledger:
        section = options.Ledger(url=url, spool_path=str(tmp_path / "spool"), flush_interval_ms=10)
        given: dict[str, Any] = {"router_id": "r", "on_event": events, "prices": ""}
        return Ledger(section, clock_ms=clock, open_delay_s=0.0, backend=OwnProcess(section, **given), **given)

    refused = beside(server_url)
    with pytest.raises(LedgerRefusedError, match="turnout ledger upgrade"):
        refused.start()
    assert refused.close() == 0
    ledger = beside(upgraded_url)
    ledger.start()
    ledger.record(call(0))
    assert ledger.flush(60.0) == 0
    postgres.stop()
    try:
        for n in range(1, 100):
            ledger.record(call(n))
        assert ledger.flush(0.3) > 0
    finally:
        postgres.start()
    assert ledger.flush(60.0) == 0
    assert ledger.close() == 0
    assert events.names == ["ledger_down", "ledger_up"]
    assert _rows(upgraded_url, "SELECT count(*), count(DISTINCT call_id) FROM calls") == [(100, 100)]
