"""What derived statistics cost: `python benchmarks/bench_ledger_stats.py [--postgres] [--rows 1000000] [--routes 500]`.

Fills a window of 15 minutes, refreshes the snapshot while new rows arrive, and compares with the plain query over the
rows: time, ratio, and that the sums are equal. Also the cost of reading the snapshot, of a slot, and rows per second.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from turnout.core import options
from turnout.core.facts import AttemptFact, CallFact, OpenedCall, RouteKey
from turnout.ledger import connection, derived, window
from turnout.ledger.derivation import Derivation
from turnout.ledger.entry import encode
from turnout.ledger.remote import OwnProcess
from turnout.ledger.slots import Slots
from turnout.ledger.snapshot import Refresher
from turnout.ledger.writer import Ledger

WINDOW_MS = 900_000
# All rows stay inside the window for this long: filling it takes real time.
SLACK_MS = 200_000
BATCH = 500
SUSTAINED_S = 10
FILE_ROWS_PER_S, SERVER_ROWS_PER_S = 5_000, 20_000
ROUNDS = 25
SLOTS_AT_ONCE = 16


def main() -> None:
    """Run every measurement and print its line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--routes", type=int, default=500)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server = _server() if asked.postgres else None
        try:
            _run(Path(directory), server, asked.rows, asked.routes)
        finally:
            if server is not None:
                server.remove()


def _run(root: Path, server: Any, rows: int, routes: int) -> None:
    store, url = _open(root, server)
    now_ms = _now_ms()
    keys = [RouteKey("", f"model-{n % 20}", f"replica-{n}") for n in range(routes)]
    rng = random.Random(1)
    started = time.perf_counter()
    first, span_ms = now_ms - WINDOW_MS + SLACK_MS, WINDOW_MS - SLACK_MS
    for start in range(0, rows, BATCH):
        facts = [_fact(n, first + n * span_ms // rows, keys, rng) for n in range(start, min(rows, start + BATCH))]
        store.write(facts)
    spent = time.perf_counter() - started
    _print("rows stored, calls and attempts", 2 * rows / spent, "rows/s")
    if server is not None:
        with connection.postgres_engine(url, "-c statement_timeout=0").begin() as conn:
            conn.execute(sa.text("ANALYZE"))
    refresher = _refreshes(store, url, rows, keys, rng)
    store.close()
    _sustained(root, url, SERVER_ROWS_PER_S if server is not None else FILE_ROWS_PER_S, keys, rng)
    _reading(refresher, keys, _now_ms())
    _slots(root, keys)


def _refreshes(store: Any, url: str, rows: int, keys: list[RouteKey], rng: random.Random) -> Refresher:
    section = options.Ledger(url=url)
    refresher = Refresher(section, Derivation(section), clock_ms=_now_ms)
    started = time.perf_counter()
    refresher.refresh()
    _print("first refresh (sums every bucket, streaks, tools)", (time.perf_counter() - started) * 1e3, "ms")
    window_of_routes = window.Window(WINDOW_MS)
    engine = connection.reading(url)
    spent_route, spent_all, raw, cpu = [], [], [], []
    for n in range(ROUNDS):
        time.sleep(0.8)  # a second between refreshes, with the work below
        at = _now_ms()
        store.write([_fact(rows + n * BATCH + i, at - i, keys, rng) for i in range(BATCH)])
        with engine.connect() as conn, conn.begin():
            started, started_cpu = time.perf_counter(), time.thread_time()
            sums = window_of_routes.refresh(conn, at)
            spent_route.append((time.perf_counter() - started) * 1e3)
            cpu.append((time.thread_time() - started_cpu) * 1e3)
            if n % 10 == 0:
                started = time.perf_counter()
                wanted = window.raw(conn, at, WINDOW_MS)
                raw.append((time.perf_counter() - started) * 1e3)
                assert sums == wanted, "the sums differ from the rows"
        started = time.perf_counter()
        refresher.refresh()
        spent_all.append((time.perf_counter() - started) * 1e3)
    spent_route.pop(0)
    _print("plain query over the rows", statistics.median(raw), "ms")
    _print("route statistics, refresh, median", statistics.median(spent_route), "ms")
    _print("route statistics, refresh, p95", sorted(spent_route)[int(0.95 * len(spent_route))], "ms")
    _print("the same, own CPU (SQLite: all of it), median", statistics.median(cpu), "ms")
    _print("plain query / refresh", statistics.median(raw) / statistics.median(spent_route), "times")
    _print("whole snapshot, median", statistics.median(spent_all), "ms")
    _print("whole snapshot, worst (with streaks and tools)", max(spent_all), "ms")
    with engine.connect() as conn:
        started = time.perf_counter()
        derived.failure_streaks(conn, _now_ms())
        _print("failure streaks", (time.perf_counter() - started) * 1e3, "ms")
    started = time.perf_counter()
    refresher.rank()
    _print("percentiles of all routes (at most 5 % of the time)", (time.perf_counter() - started) * 1e3, "ms")
    engine.dispose()
    return refresher


def _reading(refresher: Refresher, keys: list[RouteKey], now_ms: int) -> None:
    gc.disable()
    key, reads = keys[3], 200_000
    started = time.perf_counter()
    for _ in range(reads):
        refresher.fresh(now_ms).routes.get(key)
    _print("reading the snapshot", (time.perf_counter() - started) / reads * 1e9, "ns")


def _slots(root: Path, keys: list[RouteKey]) -> None:
    slots, rng = Slots(root / "t.slots-1", 16_384), random.Random(1)
    spent: dict[str, list[float]] = {"claim": [], "end": [], "free": []}
    for start in range(0, 16_000, SLOTS_AT_ONCE):
        # As in service: a record is made right before it is claimed, few requests are open, and few pages are touched.
        facts = [_fact(start + n, 1_794_000_000_000, keys, rng) for n in range(SLOTS_AT_ONCE)]
        payloads = [encode(fact) for fact in facts]
        opened = [_opened(fact) for fact in facts]
        t0 = time.perf_counter()
        for one in opened:
            slots.claim(one)
        t1 = time.perf_counter()
        for fact, payload in zip(facts, payloads, strict=True):
            slots.end(fact, payload)
        t2 = time.perf_counter()
        slots.free([fact.call_id for fact in facts])
        t3 = time.perf_counter()
        for name, seconds in (("claim", t1 - t0), ("end", t2 - t1), ("free", t3 - t2)):
            spent[name].append(seconds / SLOTS_AT_ONCE * 1e9)
    for name, each in spent.items():
        _print(f"slot: {name}, median of batches of {SLOTS_AT_ONCE}", statistics.median(each), "ns")
    slots.remove()


def _opened(f: CallFact) -> OpenedCall:
    who = (f.tenant, f.key_id, None)
    return OpenedCall(f.call_id, f.request_id, f.started_at_ms, *who, f.dialect, f.path, f.stream, "m", "m")


def _sustained(root: Path, url: str, rows_per_s: int, keys: list[RouteKey], rng: random.Random) -> None:
    """Record at a fixed rate through the writer, as in service: two rows a call; look at what waits."""
    section = options.Ledger(url=url, spool_path=str(root / "sustained"))  # nobody's spool but this run's
    process = OwnProcess(section, router_id="bench", on_event=lambda _name, /, **_fields: None, prices="")
    ledger = Ledger(section, router_id="bench", clock_ms=_now_ms, open_delay_s=0.0, backend=process)
    ledger.start()
    ledger.record(_fact(10**8, _now_ms(), keys, rng))
    ledger.flush(30.0)
    facts = [_fact(10**8 + 1 + n, _now_ms(), keys, rng) for n in range(int(SUSTAINED_S * rows_per_s / 2))]
    depths: list[float] = []
    began, done = time.perf_counter(), 0
    while done < len(facts):
        due = min(len(facts), int((time.perf_counter() - began) * rows_per_s / 2))
        for fact in facts[done:due]:
            ledger.record(fact)
        done = due
        depths.append(ledger.stats()["queue_depth"])
        time.sleep(0.004)
    stats = ledger.stats()
    _print(f"sustained {rows_per_s} rows/s for {SUSTAINED_S} s: deepest queue", max(depths), "calls")
    _print("the same, second half", max(depths[len(depths) // 2 :]), "calls")
    _print("at the end: in the spool", stats["spool_bytes"] / 1e6, "MB")
    began = time.perf_counter()
    left = ledger.flush(60.0)
    _print("until everything was stored", time.perf_counter() - began, "s")
    print("stored", ledger.stats()["rows_calls"], "of", len(facts) + 1, "left", left, "lost", ledger.close())


def _open(root: Path, server: Any) -> tuple[Any, str]:
    given: dict[str, Any] = {
        "router_id": "bench",
        "clock_ms": _now_ms,
        "retention_days": 30,
        "decisions_days": 7,
    }
    if server is None:
        from turnout.ledger import sqlite, upgrade

        path = root / "turnout.db"
        upgrade.prepare(path, clock_ms=given["clock_ms"], on_event=lambda _name, /, **_fields: None)
        return sqlite.open_store(path, **given), f"sqlite:///{path}"
    from turnout.ledger import postgres, server_upgrade

    url = server.new_database()
    server_upgrade.run(url)
    return postgres.open_store(url, **given), url


def _server() -> Any:
    path = Path(__file__).parents[1] / "tests" / "local_postgres.py"
    spec = importlib.util.spec_from_file_location("local_postgres", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.LocalPostgres()
    server.start()
    return server


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _fact(n: int, at_ms: int, keys: list[RouteKey], rng: random.Random) -> CallFact:
    key, ok = keys[n % len(keys)], rng.random() < 0.98  # noqa: PLR2004 - two in a hundred fail
    attempt = AttemptFact(
        attempt_no=1,
        phase="solo",
        route=key,
        kind="first",
        started_at_ms=at_ms - 90,
        ended_at_ms=at_ms,
        ok=ok,
        counted=True,
        committed=True,
        error_kind="" if ok else "server_error",
        http_status=200 if ok else 500,
        e2e_ms=rng.randrange(50, 5_000),
        ttft_ms=rng.randrange(5, 500),
        tokens_in=200,
        tokens_out=30,
        usage_source="engine",
        tools_requested=n % 5 == 0,
        tools_emitted=n % 10 == 0,
    )
    return CallFact(
        call_id=f"{at_ms:013d}{n:013d}",
        request_id=f"req_{n:016x}",
        started_at_ms=at_ms - 90,
        ended_at_ms=at_ms,
        e2e_ms=90,
        tenant="acme",
        key_id="batch",
        dialect="openai",
        path="/v1/chat/completions",
        stream=True,
        requested_model=key.model,
        selected_model=key.model,
        outcome="completed" if ok else "upstream_exhausted",
        cls="ok",
        http_status=200,
        attempts=(attempt,),
        route=key,
        tokens_in=200,
        tokens_out=30,
        usage_source="engine",
    )


def _print(name: str, value: float, unit: str) -> None:
    print(f"{name:<58}{value:>14,.2f} {unit}")


if __name__ == "__main__":
    main()
