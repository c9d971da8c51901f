"""What recording costs: `python benchmarks/bench_ledger.py` (some seconds, in a temporary directory).

Prints the cost of `record`, of spooling and of storing a call, the commit of 500 calls, what SQLAlchemy's own parameter
processing would cost, and how a busy thread that shares its interpreter with the writer keeps up.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path

from sqlalchemy.dialects import sqlite

from turnout.core import options
from turnout.core.facts import AttemptFact, CallFact, RouteKey
from turnout.ledger import rows, schema, upgrade
from turnout.ledger.spool import Spool
from turnout.ledger.sqlite import open_store
from turnout.ledger.writer import Ledger

BATCH = 500
# What 1,000 requests a second bring in one flush interval.
INTERVAL = 100
ROUNDS = 10
BUSY_S = 4.0
BUSY_CALLS_PER_S = 30_000
ROUTES = [RouteKey("", "model-a", f"replica-{n}") for n in range(8)]


def main() -> None:
    """Run every measurement and print its line."""
    gc.disable()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        _record(root / "record.db")
        _spool(root / "spool.db")
        _store(root / "store.db")
        _busy(root / "busy.db")


def _fact(n: int) -> CallFact:
    start = _clock_ms()
    route = ROUTES[n % len(ROUTES)]
    attempt = AttemptFact(
        attempt_no=1,
        phase="solo",
        route=route,
        kind="first",
        started_at_ms=start,
        ended_at_ms=start + 90,
        ok=True,
        counted=True,
        committed=True,
        http_status=200,
        e2e_ms=90,
        ttft_ms=20,
        tokens_in=200,
        tokens_out=30,
        usage_source="engine",
    )
    return CallFact(
        call_id=f"{start:013d}{n:013d}",
        request_id=f"req_{n:016x}",
        started_at_ms=start,
        ended_at_ms=start + 90,
        e2e_ms=90,
        tenant="acme",
        key_id="batch",
        dialect="openai",
        path="/v1/chat/completions",
        stream=True,
        requested_model="model-a",
        selected_model="model-a",
        outcome="completed",
        cls="ok",
        http_status=200,
        attempts=(attempt,),
        decide_us=30,
        ttft_ms=20,
        route=route,
        prefix_blocks=12,
        prefix_matched_blocks=8,
        committed=True,
        est_tokens=210,
        tokens_in=200,
        tokens_out=30,
        usage_source="engine",
    )


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


def _print(name: str, value: float, unit: str) -> None:
    print(f"{name:<58}{value:>12,.2f} {unit}")


def _ledger(path: Path) -> Ledger:
    return Ledger(options.Ledger(url=f"sqlite:///{path}", queue_max=1_000_000), router_id="bench", clock_ms=_clock_ms)


def _record(path: Path) -> None:
    ledger = _ledger(path)
    facts = [_fact(n) for n in range(100_000)]
    started = time.perf_counter()
    for fact in facts:
        ledger.record(fact)
    _print("record()", (time.perf_counter() - started) / len(facts) * 1e9, "ns per call")


def _spool(path: Path) -> None:
    spool = Spool(path, name="bench", max_bytes=2**30)
    batches = [[_fact(BATCH * i + n) for n in range(BATCH)] for i in range(ROUNDS)]
    spent = []
    for batch in batches:
        started = time.perf_counter()
        spool.append(batch)
        spent.append(time.perf_counter() - started)
    _print("spool: append a batch of 500", statistics.median(spent) / BATCH * 1e6, "µs per call")
    _print("spool: size", spool.size_bytes / BATCH / ROUNDS, "bytes per call")
    started = time.perf_counter()
    while spool.read():
        spool.advance()
    _print("spool: read back", (time.perf_counter() - started) / BATCH / ROUNDS * 1e6, "µs per call")
    spool.close()


def _store(path: Path) -> None:
    upgrade.prepare(path, clock_ms=_clock_ms, on_event=lambda _name, /, **_fields: None)
    store = open_store(path, router_id="bench", clock_ms=_clock_ms, retention_days=30, decisions_days=7)
    store.write([_fact(0)])
    wall, cpu = [], []
    for i in range(4 * ROUNDS):
        batch = [_fact(BATCH * (i + 1) + n) for n in range(BATCH)]
        started, cpu_started = time.perf_counter(), time.thread_time()
        store.write(batch)
        wall.append(time.perf_counter() - started)
        cpu.append(time.thread_time() - cpu_started)
    _print("store: transaction of 500 calls and 500 attempts, median", statistics.median(wall) * 1e3, "ms")
    _print("store: the same, worst", max(wall) * 1e3, "ms")
    _print("store: CPU", statistics.median(cpu) / BATCH * 1e6, "µs per call")
    cpu = []
    for i in range(4 * ROUNDS):
        batch = [_fact(10**9 + INTERVAL * i + n) for n in range(INTERVAL)]
        cpu_started = time.thread_time()
        store.write(batch)
        cpu.append(time.thread_time() - cpu_started)
    _print("store: CPU in transactions of 100", statistics.median(cpu) / INTERVAL * 1e6, "µs per call")
    batch = [_fact(n) for n in range(BATCH)]
    stamp = rows.Stamp("bench", 1, 0)
    started = time.perf_counter()
    made = rows.batch(batch, stamp, {None: None, **dict.fromkeys(ROUTES, 1)}, {}, set())
    _print("rows: facts to columns", (time.perf_counter() - started) / BATCH * 1e6, "µs per call")
    _sqlalchemy(list(zip(*made.calls, strict=True)))
    store.close()


def _sqlalchemy(made: list[rows.Row]) -> None:
    """Print what rows would cost as SQLAlchemy parameters, without the database: why the store goes around them."""
    names = [c.name for c in schema.calls.columns if c is not schema.calls.autoincrement_column]
    compiled = sqlite.insert(schema.calls).compile(dialect=sqlite.dialect(), column_keys=names)
    dicts = [dict(zip(names, row, strict=True)) for row in made]
    started = time.perf_counter()
    for row in dicts:
        compiled.construct_params(row)
    _print(
        "SQLAlchemy parameters of a call (not used)", (time.perf_counter() - started) / len(made) * 1e6, "µs per call"
    )


def _busy(path: Path) -> None:
    """Record at a fixed rate from a thread that never idles, as an event loop at its limit does."""
    ledger = _ledger(path)
    ledger.start()
    ledger.record(_fact(0))
    ledger.flush(5.0)
    gaps: deque[float] = deque()
    recorded, depth = 1, 0
    started = last = time.perf_counter()
    while last - started < BUSY_S:
        if recorded < (last - started) * BUSY_CALLS_PER_S:
            ledger.record(_fact(recorded))
            recorded += 1
        now = time.perf_counter()
        if now - last > 0.0005:  # noqa: PLR2004 - half a millisecond away is a visible gap
            gaps.append(now - last)
        last = now
        depth = max(depth, int(ledger.stats()["queue_depth"])) if recorded % 512 == 0 else depth
    waiting = ledger.stats()["queue_depth"]
    spooled = ledger.stats()["spool_bytes"] / 1e6
    _print(f"busy: recorded in {BUSY_S:.0f} s next to the writer", recorded, "calls")
    _print("busy: deepest queue", depth, "calls")
    _print("busy: queue and spool at the end", waiting, f"calls, {spooled:.1f} MB")
    _print("busy: time without the interpreter", sum(gaps) / BUSY_S * 100, "%")
    _print("busy: longest gap", max(gaps, default=0.0) * 1e3, "ms")
    started = time.perf_counter()
    left = ledger.flush(60.0)
    _print("busy: until everything was stored", time.perf_counter() - started, "s")
    stats = ledger.stats()
    print("busy: stored", stats["rows_calls"], "of", recorded, "left", left, "lost", ledger.close())


if __name__ == "__main__":
    main()
