"""SIGKILL at any instant: whoever saw a status line has exactly one row after the restart, and none of them lies."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from turnout.core import options
from turnout.ledger.writer import Ledger

ROUNDS = int(os.environ.get("TURNOUT_KILLS", "8"))
"""The promise is proved with 50; a run of the suite looks at some."""

# Prints S before an answer begins and E after its last byte, each in one write, as clients would see them.
ROUTER = """
import os, sys, time
from turnout.core import options
from turnout.core.facts import AttemptFact, CallFact, OpenedCall, RouteKey
from turnout.ledger.writer import Ledger

url, first = sys.argv[1], int(sys.argv[2])
ledger = Ledger(
    options.Ledger(url=url, flush_interval_ms=100, batch_max=50),
    router_id="killed", clock_ms=lambda: time.time_ns() // 1_000_000, open_delay_s=0.0,
)
ledger.start()
route, open_calls, n = RouteKey("", "m", "r"), [], first
while True:
    for _ in range(10):
        now, call_id = time.time_ns() // 1_000_000, f"{n:026d}"
        ledger.accepted(OpenedCall(call_id, "", now, "t", "k", "s", "openai", "/", True, "m", "m", 5))
        os.write(1, f"S{n}\\n".encode())
        open_calls.append((call_id, n, now))
        n += 1
    while len(open_calls) > 30:
        call_id, number, now = open_calls.pop(0)
        ended = time.time_ns() // 1_000_000
        os.write(1, f"E{number}\\n".encode())
        attempt = AttemptFact(1, "solo", route, "first", now, ended, True, True, True)
        ledger.record(CallFact(
            call_id, "", now, ended, ended - now, "t", "k", "openai", "/", True, "m", "completed", "ok", 200, (attempt,),
            session_id="s", route=route,
        ))
    time.sleep(0.002)
"""


@pytest.mark.parametrize("seed", range(2))
def test_every_status_line_has_one_row_after_kills(tmp_path: Path, seed: int) -> None:
    database = tmp_path / "turnout.db"
    url = f"sqlite:///{database}"
    rng = random.Random(seed)
    started: set[int] = set()
    ended: set[int] = set()
    last_ended_at_ms = 0
    for turn in range(ROUNDS // 2):
        arguments = [sys.executable, "-c", ROUTER, url, str(turn * 1_000_000)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        until = time.monotonic() + rng.uniform(0.05, 0.9)
        while time.monotonic() < until:
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        killed_at_ms = time.time_ns() // 1_000_000
        lines += process.stdout.read().splitlines(keepends=True)
        process.wait(10)
        process.stdout.close()
        whole = [line for line in lines if line.endswith(b"\n")]
        started |= {int(line[1:]) for line in whole if line.startswith(b"S")}
        ended |= {int(line[1:]) for line in whole if line.startswith(b"E")}
        last_ended_at_ms = killed_at_ms
    ledger = Ledger(
        options.Ledger(url=url), router_id="next", clock_ms=lambda: time.time_ns() // 1_000_000, open_delay_s=0.0
    )
    ledger.start()
    assert ledger.flush(30.0) == 0
    assert ledger.close() == 0
    with closing(sqlite3.connect(database)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = conn.execute("SELECT call_id, outcome, recovered FROM calls").fetchall()
        newest = conn.execute("SELECT max(ended_at_ms) FROM attempts").fetchone()[0]
        buckets = conn.execute("SELECT coalesce(sum(n), 0) FROM attempt_buckets").fetchone()
        assert buckets == conn.execute("SELECT count(*) FROM attempts").fetchone()
    ids = [int(call_id) for call_id, _, _ in rows]
    assert len(ids) == len(set(ids))
    assert started <= set(ids)
    completed = {int(call_id) for call_id, outcome, _ in rows if outcome == "completed"}
    assert completed <= ended
    assert len(ids) - len(completed) <= 45 * (ROUNDS // 2)
    # Observations: at most the last 200 ms of the last process, and 50 ms for a machine that is busy.
    if newest is not None and len(completed) > 100:
        assert last_ended_at_ms - newest <= 250
    assert [path.name for path in tmp_path.iterdir()] == ["turnout.db"]


def test_row_survives_closing_client_and_cancelled_flush(tmp_path: Path) -> None:
    """SIGTERM: what was recorded up to the last instant is stored, whatever time the flush had."""
    from turnout.core.facts import CallFact, OpenedCall

    url = f"sqlite:///{tmp_path}/turnout.db"
    ledger = Ledger(options.Ledger(url=url), router_id="r", clock_ms=lambda: 1_000, open_delay_s=60.0)
    ledger.start()
    for n in range(300):
        call_id = f"{n:026d}"
        ledger.accepted(OpenedCall(call_id, "", 1, "t", "k", None, "openai", "/", True, "m"))
        if n % 3:
            ledger.record(
                CallFact(call_id, "", 1, 2, 1, "t", "k", "openai", "/", True, "m", "client_cancelled", "client", 499)
            )
    ledger.close(0.0)
    successor = Ledger(options.Ledger(url=url), router_id="r", clock_ms=lambda: 2_000, open_delay_s=0.0)
    successor.start()
    assert successor.flush(30.0) == 0
    assert successor.close() == 0
    with closing(sqlite3.connect(tmp_path / "turnout.db")) as conn:
        found = dict(conn.execute("SELECT outcome, count(*) FROM calls GROUP BY outcome"))
    assert found == {"client_cancelled": 200, "internal_error": 100}
