"""`turnout ledger rerate --apply-budgets`: on both databases, killed in the middle, and beside a running router."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from turnout.cli import ledger as ledger_cli
from turnout.core.pricing import Price, PriceBook
from turnout.ledger import connection, prices, rerating
from turnout.ledger.sink import LedgerRefusedError

Make = Callable[..., Any]
PERIOD = ["--from", "2026-01-01", "--to", "2100-01-01"]
BILLED = 3_500_000


def _turnout(*arguments: str) -> list[str]:
    """Run a command of the ledger, and give its lines without the one that names the rerate."""
    seen = CliRunner().invoke(ledger_cli.app, list(arguments), catch_exceptions=False)
    assert seen.exit_code == 0, seen.stderr
    return [line for line in seen.stdout.splitlines() if not line.startswith("rerate ")]


def _rows(url: str, sql: str) -> list[tuple[Any, ...]]:
    engine = connection.reading(url)
    with engine.connect() as conn:
        found = [tuple(row) for row in conn.execute(sa.text(sql))]
    engine.dispose()
    return found


def _spent(url: str) -> dict[tuple[str, str], int]:
    return {(row[0], row[1]): row[2] for row in _rows(url, "SELECT tenant, key_id, spent_nusd FROM budgets")}


def _add(url: str, *dollars: str) -> None:
    """Append versions; input and output cost the same."""
    engine = connection.writing(url)
    for price in dollars:
        rows = prices.parse([{"model": "model-a", "input": price, "output": price}])
        with engine.begin() as conn:
            prices.add(conn, rows, effective_from_ms=1, created_at_ms=1, source="test")
    engine.dispose()


@pytest.fixture
def billed(any_store: tuple[Any, str], call: Make, attempt: Make) -> str:
    """Two keys of two tenants, each with a call of 1,100 tokens that cost 3,500,000 nano-USD."""
    store, url = any_store
    leg = attempt(tokens_in=1_000, tokens_out=100, cost_nusd=BILLED, cost_basis="computed")
    store.write([call(n, tenant=name, attempts=(leg,), cost_nusd=BILLED) for n, name in enumerate(("acme", "other"))])
    _add(url, "1", "2")
    return url


def test_the_command_names_what_moves_then_moves_it_once(billed: str) -> None:
    def rerate(version: int, *more: str) -> list[str]:
        return _turnout("rerate", "--url", billed, *PERIOD, "--version", str(version), *more)

    sums = [f"{name} -: 1 attempts, 0.003500000 → 0.001100000 USD" for name in ("acme", "other")]
    moves = [f"budget of {name}, key batch, 2026-11-06: -0.002400000 USD" for name in ("acme", "other")]
    assert rerate(1) == sums
    assert rerate(1, "--apply-budgets", "--dry-run") == sums + moves
    assert set(_spent(billed).values()) == {BILLED}
    assert rerate(1, "--apply-budgets") == sums + moves
    assert _spent(billed) == {("acme", "batch"): 1_100_000, ("other", "batch"): 1_100_000}
    assert rerate(1, "--apply-budgets") == [*sums, "no budget moves"]
    assert rerate(2, "--apply-budgets")[2:] == [
        f"budget of {name}, key batch, 2026-11-06: +0.001100000 USD" for name in ("acme", "other")
    ]
    assert _spent(billed) == {("acme", "batch"): 2_200_000, ("other", "batch"): 2_200_000}
    assert _rows(billed, "SELECT DISTINCT cost_nusd FROM calls") == [(BILLED,)]
    assert _turnout("check", "--url", billed) == ["calls 2, attempts 2, routes 1"]


def test_a_dry_run_waits_for_nobody_who_writes(billed: str) -> None:
    engine = connection.writing(billed)
    with engine.begin() as conn:
        conn.execute(sa.text("UPDATE budgets SET spent_nusd = spent_nusd"))
        told = _turnout("rerate", "--url", billed, *PERIOD, "--version", "1", "--apply-budgets", "--dry-run")
    engine.dispose()
    assert len(told) == 4


def test_who_moves_budgets_is_alone(billed: str) -> None:
    engines = [connection.writing(billed), connection.writing(billed)]
    book = PriceBook.of(1, [Price(model="model-a", p_in=1, p_out=1)])
    given: dict[str, Any] = {"from_ms": 0, "until_ms": 2**60, "dry_run": False, "apply_budgets": True}
    refused = LedgerRefusedError if billed.startswith("postgresql") else sa.exc.OperationalError
    with engines[0].begin() as first:
        rerating.rerate(first, book, rerate_id=1, **given)
        with pytest.raises(refused, match=r"another re-rating|locked"), engines[1].begin() as second:
            rerating.rerate(second, book, rerate_id=2, **given)
    with engines[1].begin() as second:
        assert rerating.rerate(second, book, rerate_id=2, **given).moves == []
    for engine in engines:
        engine.dispose()


# A sum that never ends, so that a command stands still between what it remembers and what it moves.
_ENDLESS = (
    "CREATE TRIGGER endless BEFORE UPDATE ON budgets BEGIN SELECT count(*) FROM"
    " (WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n); END"
)


@contextlib.contextmanager
def _held_file(url: str) -> Iterator[Callable[[], bool]]:
    path = url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as conn:
        conn.execute(_ENDLESS)

        def locked() -> bool:
            try:
                conn.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            conn.execute("ROLLBACK")
            return False

        yield locked
        conn.execute("PRAGMA busy_timeout = 30000")
        conn.execute("DROP TRIGGER endless")


@contextlib.contextmanager
def _held_server(url: str) -> Iterator[Callable[[], bool]]:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as looker:
        holder.execute("SELECT * FROM budgets FOR UPDATE")
        yield lambda: looker.execute(waiting).fetchone() != (0,)
        holder.rollback()


def test_killed_in_the_middle_nothing_has_moved_and_then_all_of_it_once(billed: str) -> None:
    command = ["ledger", "rerate", "--url", billed, *PERIOD, "--version", "1", "--apply-budgets"]
    held = _held_server if billed.startswith("postgresql") else _held_file
    with held(billed) as stands:
        killed = subprocess.Popen([sys.executable, "-m", "turnout", *command])
        while killed.poll() is None and not stands():
            time.sleep(0.01)
        killed.kill()
        assert killed.wait(30) == -signal.SIGKILL
    for table in ("budget_moves", "rerated"):
        assert _rows(billed, f"SELECT * FROM {table}") == []
    assert set(_spent(billed).values()) == {BILLED}
    assert len(_turnout(*command[1:])) == 4
    assert set(_spent(billed).values()) == {1_100_000}
    assert _turnout("check", "--url", billed) == ["calls 2, attempts 2, routes 1"]


def _ask(url: str) -> int:
    body = {"model": "sim", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    headers = {"authorization": "Bearer key-c", "content-type": "application/json"}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answered:
            status: int = answered.status
            return status
    except urllib.error.HTTPError as refused:
        return refused.code


def test_a_running_router_sees_what_was_moved(processes: Any, tmp_path: Path) -> None:
    dear = tmp_path / "dear.toml"
    dear.write_text('[[price]]\nmodel = "sim"\ninput = 1000\noutput = 1000\n')
    key = {"digest": "sha256:" + hashlib.sha256(b"key-c").hexdigest(), "budget_usd": 0.001}
    router = processes.serve(processes.engines(1), key=key, prices={"file": str(dear)})
    url = f"sqlite:///{router.database}"
    cheap = tmp_path / "cheap.toml"
    cheap.write_text('[[price]]\nmodel = "sim"\ninput = 0\noutput = 0\n')
    assert _ask(router.url) == 200
    assert processes.eventually(lambda: router.rows("SELECT 1 FROM budgets"))
    assert _ask(router.url) == 429
    _turnout("prices", str(cheap), "--url", url, "--effective", "2100-01-01")
    for version, sign, status in ((2, "-", 200), (1, "+", 429)):
        *_, moved = _turnout("rerate", "--url", url, *PERIOD, "--version", str(version), "--apply-budgets")
        assert f": {sign}0." in moved
        assert processes.eventually(lambda status=status: _ask(router.url) == status)
    _turnout("check", "--url", url)
