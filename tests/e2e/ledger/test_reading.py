"""Pages, exports and commands over both databases."""

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from turnout.cli import ledger as ledger_cli
from turnout.console import ledger_pages
from turnout.core import options
from turnout.core.facts import RouteKey, RouteStats, StatsSnapshot
from turnout.core.pricing import usd
from turnout.ledger import connection
from turnout.ledger.pages import Pages
from turnout.ledger.reader import HOLD_BACK_MS, CursorError, Reader

Make = Callable[..., Any]
ROUTE = RouteKey("", "model-a", "replica-1")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _age(url: str, ms: int) -> None:
    """Let every row have been recorded earlier: the server stamps with its own clock."""
    if url.startswith("sqlite"):
        from turnout.ledger.upgrade import path_of

        engine = connection.writing_engine(path_of(url))
    else:
        engine = connection.postgres_engine(url)
    with engine.begin() as conn:
        for table in ("calls", "attempts"):
            conn.execute(sa.text(f"UPDATE {table} SET recorded_at_ms = recorded_at_ms - :ms"), {"ms": ms})
    engine.dispose()


@pytest.fixture
def filled(any_store: Any, call: Make, attempt: Make, clock: Any) -> tuple[Any, str]:
    store, url = any_store
    clock.now_ms = now_ms = _now_ms()
    for n in range(25):
        leg = attempt(ended_at_ms=now_ms - n, cost_nusd=2 * 10**9, cost_basis="reported", list_nusd=10**9, tokens_in=5)
        given = {"session_id": f"s{n % 3}", "tenant": "acme" if n % 2 else "other", "cost_nusd": 2 * 10**9}
        store.write(
            [call(n, ended_at_ms=now_ms - n, started_at_ms=now_ms - n - 9, attempts=(leg,), tokens_in=5, **given)]
        )
    return store, url


@pytest.fixture
def client(filled: Any) -> Any:
    snapshot = StatsSnapshot(1, 2, 3, {ROUTE: RouteStats(4, 4, 2, 2, 300)})
    pages = Pages(
        options.Ledger(url=filled[1]), clock_ms=_now_ms, snapshot=lambda: snapshot, stats=lambda: {"queue_depth": 3}
    )
    with TestClient(Starlette(routes=list(ledger_pages.routes(pages)))) as made:
        yield made
    pages.close()


def test_calls_come_page_by_page_without_gap_or_repetition(client: TestClient) -> None:
    seen: list[str] = []
    cursor = ""
    while True:
        page = client.get("/x/calls", params={"limit": 7, "cursor": cursor}).json()
        seen += [row["request_id"] for row in page["calls"]]
        cursor = page["cursor"]
        if not cursor:
            break
    assert seen == [f"req_{n}" for n in range(25)]
    row = client.get("/x/calls", params={"limit": 1}).json()["calls"][0]
    assert (row["cost_usd"], row["stream"], row["replica"]) == ("2.000000000", True, "replica-1")
    assert not {"seq", "route_id", "cost_nusd"} & row.keys()


def test_filters_are_an_allow_list(client: TestClient) -> None:
    assert len(client.get("/x/calls", params={"tenant": "acme", "session": "s1"}).json()["calls"]) == 4
    assert len(client.get("/x/attempts", params={"route": "|model-a|replica-1", "limit": 5}).json()["attempts"]) == 5
    assert client.get("/x/attempts", params={"route": "|x%7C|"}).json()["attempts"] == []
    for path, name in [
        ("/x/calls?evil=1", "evil"),
        ("/x/calls?limit=0", "limit"),
        ("/x/calls?limit=1001", "limit"),
        ("/x/calls?cursor=AAAA", "cursor"),
        ("/x/calls?cursor=é", "cursor"),
        ("/x/calls?tenant=a%00", "tenant"),
        ("/x/attempts?route=a", "route"),
        ("/x/sessions?window=0m", "window"),
        ("/x/sessions?window=9y", "window"),
        ("/x/cost-accuracy?window_s=1.5", "window_s"),
        ("/x/export/calls?limit=10001", "limit"),
    ]:
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name), path


def test_sessions_come_newest_first(client: TestClient) -> None:
    first = client.get("/x/sessions", params={"limit": 4}).json()
    rest = client.get("/x/sessions", params={"limit": 4, "cursor": first["cursor"]}).json()
    found = [(row["tenant"], row["session_id"], row["calls"]) for row in first["sessions"] + rest["sessions"]]
    assert sorted(found) == [
        ("acme", "s0", 4),
        ("acme", "s1", 4),
        ("acme", "s2", 4),
        ("other", "s0", 5),
        ("other", "s1", 4),
        ("other", "s2", 4),
    ]
    assert found[0][:2] == ("other", "s0")
    assert rest["cursor"] == ""


def test_market_accuracy_and_state(client: TestClient) -> None:
    [row] = client.get("/x/market").json()["rows"]
    assert (row["model"], row["success_rate"], row["e2e_mean_ms"], row["price_version"]) == ("model-a", 0.5, 150, None)
    [off] = client.get("/x/cost-accuracy", params={"window_s": 1}).json()["rows"]
    assert (off["deviation"], off["warn"], off["measured_usd"]) == (2.0, True, "50.000000000")
    assert client.get("/x/cost-accuracy", params={"window_s": 1}).json()["window_s"] == 3_600
    assert client.get("/x/cost-accuracy").json()["window_s"] == 86_400
    assert client.get("/x/ledger").json()["queue_depth"] == 3


def test_foreign_session_is_404(filled: Any) -> None:
    pages = Pages(options.Ledger(url=filled[1]), clock_ms=_now_ms)
    mine = pages.session("acme", "s1")
    assert mine is not None
    assert (mine["calls"], mine["cost_usd"], mine["in_flight"]) == (4, "8.000000000", 0)
    assert [warm["route"] for warm in mine["warm"]] == ["|model-a|replica-1"]
    assert pages.session("stranger", "s1") is pages.session("acme", "unknown") is None
    pages.close()


def test_usage_of_a_tenant_and_of_a_key(filled: Any) -> None:
    pages = Pages(options.Ledger(url=filled[1]), clock_ms=_now_ms)
    window: dict[str, Any] = {"since_ms": _now_ms() - 60_000, "until_ms": _now_ms() + 60_000, "limit": 5, "cursor": ""}
    usage = pages.usage("acme", None, **window)
    assert (usage["totals"]["calls"], usage["totals"]["cost_usd"], len(usage["recent"])) == (12, "24.000000000", 5)
    assert [row["calls"] for row in usage["by_day"]] == [12] or sum(row["calls"] for row in usage["by_day"]) == 12
    assert pages.usage("acme", "other-key", **window)["totals"]["calls"] == 0
    assert pages.usage("acme", "batch", **window)["by_model"][0]["calls"] == 12
    pages.close()


def test_an_export_holds_back_the_last_minute_and_then_gives_every_row_once(client: TestClient, filled: Any) -> None:
    _, url = filled
    answer = client.get("/x/export/calls")
    assert (answer.content, answer.headers["x-turnout-has-more"]) == (b"", "false")
    _age(url, HOLD_BACK_MS + 1_000)
    cursor, ids, pages = answer.headers["x-turnout-next-cursor"], [], 0
    more = "true"
    while more == "true":
        answer = client.get("/x/export/calls", params={"cursor": cursor, "limit": 10})
        ids += [json.loads(line)["call_id"] for line in answer.content.splitlines()]
        cursor, more, pages = answer.headers["x-turnout-next-cursor"], answer.headers["x-turnout-has-more"], pages + 1
    assert (len(ids), len(set(ids)), pages) == (25, 25, 3)
    assert client.get("/x/export/calls", params={"cursor": cursor}).content == b""
    assert "cost_nusd" in json.loads(client.get("/x/export/attempts", params={"limit": 1}).content)
    assert client.get("/x/export/other").status_code == 404
    whole = client.get("/x/export/calls", headers={"accept-encoding": "gzip"})
    assert whole.headers["content-encoding"] == "gzip"
    assert len(whole.content.splitlines()) == 25
    assert gzip.decompress(gzip.compress(whole.content)) == whole.content


def test_since_is_inclusive_on_the_first_page(filled: Any) -> None:
    _, url = filled
    _age(url, HOLD_BACK_MS + 1_000)
    reader = Reader(url)
    stamps = [
        row["recorded_at_ms"]
        for row in reader.export("calls", since_ms=0, cursor="", limit=100, now_ms=_now_ms())[0].rows
    ]
    assert stamps == sorted(stamps)
    for since in {stamps[0], stamps[-1], stamps[-1] + 1, stamps[len(stamps) // 2]}:
        page, _ = reader.export("calls", since_ms=since, cursor="", limit=100, now_ms=_now_ms())
        assert len(page.rows) == sum(stamp >= since for stamp in stamps)
    with pytest.raises(CursorError):
        reader.export("calls", since_ms=0, cursor="x", limit=1, now_ms=0)
    reader.close()


def test_exports_are_limited_per_minute(filled: Any) -> None:
    pages = Pages(options.Ledger(url=filled[1]), clock_ms=_now_ms)
    clock = [0.0]
    with TestClient(Starlette(routes=list(ledger_pages.routes(pages, monotonic=lambda: clock[0])))) as client:
        statuses = [client.get("/x/export/calls").status_code for _ in range(61)]
        assert statuses == [200] * 60 + [429]
        clock[0] = 60.0
        assert client.get("/x/export/calls").status_code == 200
    pages.close()


def test_amounts_are_exact() -> None:
    assert (usd(0), usd(1), usd(38), usd(10**9 + 5)) == ("0.000000000", "0.000000001", "0.000000038", "1.000000005")


def _turnout(*arguments: str) -> Result:
    return CliRunner().invoke(ledger_cli.app, list(arguments), catch_exceptions=False)


def test_the_commands_upgrade_check_price_rerate_export_and_prune(
    any_store: Any, call: Make, attempt: Make, tmp_path: Path, clock: Any
) -> None:
    store, url = any_store
    clock.now_ms = now_ms = _now_ms()
    leg = attempt(
        ended_at_ms=now_ms, cost_nusd=1_000, cost_basis="computed", list_nusd=1_000, tokens_in=1_000, tokens_out=0
    )
    store.write(
        [
            call(0, ended_at_ms=now_ms, attempts=(leg,), cost_nusd=1_000),
            call(1, ended_at_ms=now_ms - 31 * 86_400_000, attempts=()),
        ]
    )
    _age(url, HOLD_BACK_MS + 1_000)
    assert "0004" in _turnout("upgrade", "--url", url).stdout
    checked = _turnout("check", "--url", url)
    assert (checked.exit_code, checked.stdout) == (0, "calls 2, attempts 1, routes 1\n"), checked.stderr
    book = tmp_path / "prices.json"
    book.write_text(json.dumps([{"model": "model-a", "input": 2.5, "output": "10"}, {"model": "x", "input": -1}]))
    assert _turnout("prices", str(book), "--url", url).exit_code == 1
    book.write_text(json.dumps([{"model": "model-a", "input": 2.5, "output": "10"}]))
    assert _turnout("prices", str(book), "--url", url, "--effective", "1h").stdout == "version 1, 1 prices\n"
    for extra in (["--dry-run"], [], ["--dry-run"]):
        rated = _turnout("rerate", "--url", url, "--from", "1h", "--to", "2100-01-01", "--version", "1", *extra)
        assert "acme -: 1 attempts, 0.000001000 → 0.002500000 USD" in rated.stdout, rated.stderr
    exported = _turnout("export", "calls", "--url", url)
    assert [json.loads(line)["request_id"] for line in exported.stdout.splitlines()] == ["req_0", "req_1"]
    assert exported.stderr.startswith("cursor ")
    store.close()
    assert _turnout("prune", "--url", url).exit_code == 0
    assert "calls 1" in _turnout("check", "--url", url).stdout


def test_check_names_what_does_not_hold(any_store: Any, call: Make, attempt: Make, clock: Any) -> None:
    store, url = any_store
    clock.now_ms = now_ms = _now_ms()
    store.write([call(0, ended_at_ms=now_ms, attempts=(attempt(ended_at_ms=now_ms, cost_nusd=1),), cost_nusd=2)])
    if url.startswith("sqlite"):
        from turnout.ledger.upgrade import path_of

        engine = connection.writing_engine(path_of(url))
    else:
        engine = connection.postgres_engine(url)
    with engine.begin() as conn:
        conn.execute(sa.text("UPDATE attempt_buckets SET n = n + 1"))
    engine.dispose()
    checked = _turnout("check", "--url", url)
    assert checked.exit_code == 1
    assert "differs from its rows by (1, 0, 0, 0, 0)" in checked.stderr
    assert "its cost is not the sum of its attempts" in checked.stderr
