"""Keys that may spend so much and no more, through a real router, and the sums that the ledger keeps of it."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import sqlalchemy as sa

from turnout.core.pricing import Price, PriceBook
from turnout.ledger import audit, connection, derived, server_upgrade, upgrade

Make = Callable[..., Any]
# One token in and out of the script engine's answer: 3 · 5 + 1 · 15 USD per million.
COST_NUSD = 30_000
BOOK = PriceBook.of(7, [Price(model="model-a", p_in=5_000_000, p_out=15_000_000)])
DAY_MS = 86_400_000


def _one(router: Any, engine: Any, budget_usd: float, **tables: Any) -> Any:
    digest = "sha256:" + hashlib.sha256(b"key-c").hexdigest()
    key = {"name": "c", "tenant": "t1", "digest": digest, "budget_usd": budget_usd}
    one = router(engine, key=[key], **tables)
    one.records.book = BOOK
    return one


def test_budget_race_overspends_one_reservation(router: Any, script_engine: Any, wire: Any) -> None:
    engine = script_engine()
    one = _one(router, engine, COST_NUSD / 1e9)
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: one.ask(wire.chat(max_tokens=2), key="key-c"), range(100)))
    served = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 429]
    assert (len(served), len(refused), len(engine.requests)) == (1, 99, 1)
    assert {answer.code for answer in refused} == {"insufficient_quota"}
    facts = [one.records.fact(number) for number in range(100)]
    assert sorted(fact.outcome for fact in facts) == ["completed"] + ["quota_exhausted"] * 99
    assert sum(fact.cost_nusd or 0 for fact in facts) == COST_NUSD
    [reserved] = [fact.reserved_nusd for fact in facts if fact.reserved_nusd is not None]
    assert reserved >= COST_NUSD


def test_a_refusal_tells_budget_and_spending(router: Any, script_engine: Any, wire: Any) -> None:
    one = _one(router, script_engine(), COST_NUSD / 1e9, budget={"status": 402})
    assert one.ask(wire.chat(), key="key-c").status == 200
    seen = one.ask(wire.chat(), key="key-c")
    error = seen.json["error"]
    assert (seen.status, error["budget"], error["spent"]) == (402, "0.000030000", "0.000030000")
    assert one.records.fact(1).http_status == 402


def test_what_failed_gives_its_reservation_back(router: Any, script_engine: Any, wire: Any) -> None:
    bad = [b"HTTP/1.1 400 Bad\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"]
    engine = script_engine(bad, [wire.answer(wire.ANSWER)])
    one = _one(router, engine, COST_NUSD / 1e9)
    assert one.ask(wire.chat(), key="key-c").status == 400
    assert one.ask(wire.chat(), key="key-c").status == 200
    assert one.ask(wire.chat(), key="key-c").status == 429


def test_budgets_move_with_the_rows_and_only_once(any_store: tuple[Any, str], call: Make, clock: Any) -> None:
    store, url = any_store
    calls = [
        call(n, cost_nusd=n, cost_basis="reported", attempts=(), ended_at_ms=clock() - (n % 2) * DAY_MS)
        for n in range(6)
    ]
    store.write(calls)
    store.write(calls)
    store.write([call(9, cost_nusd=5, attempts=(), tenant="other"), *calls[:2]])
    engine = connection.reading(url)
    with engine.connect() as conn:
        today = clock() // DAY_MS * DAY_MS
        rows = conn.execute(sa.text("SELECT tenant, day_ms, spent_nusd FROM budgets ORDER BY tenant, day_ms")).all()
    engine.dispose()
    assert rows == [("acme", today - DAY_MS, 9), ("acme", today, 6), ("other", today, 5)]


def test_an_older_schema_is_upgraded_with_what_was_spent(any_store: tuple[Any, str], call: Make, clock: Any) -> None:
    store, url = any_store
    store.write([call(n, cost_nusd=n, cost_basis="reported", attempts=()) for n in range(4)])
    store.close()
    file = url.startswith("sqlite")
    engine = connection.writing_engine(upgrade.path_of(url)) if file else connection.postgres_engine(url)
    with engine.begin() as conn:
        conn.exec_driver_sql("DROP INDEX ix_rerated_call")
        for table in ("budget_moves", "budgets"):
            conn.exec_driver_sql(f"DROP TABLE {table}")
        conn.exec_driver_sql("UPDATE alembic_version SET version_num = '0002'")
    engine.dispose()
    if file:
        upgrade.prepare(upgrade.path_of(url), clock_ms=clock, on_event=lambda _name, /, **_fields: None)
    else:
        server_upgrade.run(url)
    reading = connection.reading(url)
    with reading.connect() as conn:
        assert derived.spent(conn, clock(), 1) == [("acme", "batch", clock() // DAY_MS * DAY_MS, 6)]
        assert derived.spent(conn, clock() + DAY_MS, 1) == []
    reading.dispose()


def test_check_compares_budgets_with_calls(any_store: tuple[Any, str], call: Make, clock: Any) -> None:
    store, url = any_store
    store.write([call(0, cost_nusd=7, attempts=())])
    assert [problem for problem in audit.run(url, clock()).problems if "budget" in problem] == []
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as conn:
            conn.execute("UPDATE budgets SET spent_nusd = 5")
            conn.commit()
        [problem] = [problem for problem in audit.run(url, clock()).problems if "budget" in problem]
        assert "differs from its calls by 2 nano-USD" in problem


def test_check_asks_no_budget_for_calls_that_are_too_old_to_be_kept(
    any_store: tuple[Any, str], call: Make, clock: Any
) -> None:
    store, url = any_store
    store.write([call(0, cost_nusd=7, attempts=())])
    clock.now_ms += 31 * DAY_MS
    while store.prune():
        pass
    assert audit.run(url, clock()) == audit.Report(0, 0, 1, [])
