"""The ledger's process and the router's: whichever is killed, no request fails, no row is missing, nobody stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from turnout.ledger import audit

CLIENTS = 20
KILLS = int(os.environ.get("TURNOUT_LEDGER_KILLS", "3"))
HANGS_S = 120.0


def _children(pid: int) -> list[int]:
    """The processes that a process has started and that run."""
    told = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [child for text in told for child in map(int, text.split()) if _runs(child)]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _loaded(pid: int, library: str) -> bool:
    return library in Path(f"/proc/{pid}/maps").read_text()


def test_a_killed_ledger_process_costs_no_request_and_no_row(processes: Any, chaos: Any) -> None:
    router = processes.serve(processes.engines(2))

    def another(than: list[int]) -> list[int]:
        found = _children(router.child.pid)
        return found if found and found != than else []

    async def story(load: Any) -> None:
        killed: list[int] = []
        for _ in range(KILLS):
            killed = await asyncio.to_thread(processes.eventually, lambda before=killed: another(before), HANGS_S)
            assert len(killed) == 1
            enough = len(load.seen) + CLIENTS
            assert await asyncio.to_thread(processes.eventually, lambda n=enough: len(load.seen) > n, HANGS_S)
            os.kill(killed[0], signal.SIGKILL)
        assert await asyncio.to_thread(processes.eventually, lambda: another(killed), HANGS_S)

    load = chaos.Load(router.url, CLIENTS)
    asyncio.run(load.run(story))
    assert [repr(seen.error) for seen in load.seen if seen.error is not None] == []
    assert processes.eventually(lambda: len(router.rows("SELECT seq FROM calls")) >= len(load.seen), HANGS_S)
    assert f"turnout_ledger_process_restarts_total {KILLS}" in router.admin("/metrics")
    assert router.words().count("ledger_process_restarted") == KILLS
    beside = _children(router.child.pid)
    # Who serves from a file needs no more than the driver; 25 MB each.
    assert [_loaded(pid, "sqlalchemy") for pid in (router.child.pid, *beside)] == [False, False]
    assert [_loaded(pid, "sqlite3") for pid in beside] == [True]
    assert router.stop() == 0
    assert [pid for pid in beside if _runs(pid)] == []

    with closing(sqlite3.connect(router.database)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = [call_id for (call_id,) in conn.execute("SELECT call_id FROM calls")]
    assert sorted(rows) == sorted(seen.decision for seen in load.seen)
    assert audit.run(f"sqlite:///{router.database}", time.time_ns() // 1_000_000).problems == []


def test_a_killed_router_leaves_no_process_behind(processes: Any, chaos: Any) -> None:
    router = processes.serve(processes.engines(1))
    beside: list[int] = []

    async def story(load: Any) -> None:
        assert await asyncio.to_thread(processes.eventually, lambda: len(load.seen) > CLIENTS, HANGS_S)
        beside.extend(await asyncio.to_thread(processes.eventually, lambda: _children(router.child.pid), HANGS_S))
        router.signal(signal.SIGKILL)
        router.child.wait()

    asyncio.run(chaos.Load(router.url, CLIENTS).run(story))
    assert len(beside) == 1
    assert processes.eventually(lambda: not _runs(beside[0]), HANGS_S)
    with closing(sqlite3.connect(router.database)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_signals_to_the_whole_group_end_the_ledger_after_the_router(processes: Any, chaos: Any) -> None:
    """Ctrl-C and service managers mean every process of a group: what is answered last is stored all the same."""
    router = processes.serve(processes.engines(1))
    (beside,) = processes.eventually(lambda: _children(router.child.pid), HANGS_S)
    seen = [chaos.one(router.url, stream=True, number=number) for number in range(5)]
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(beside, number)
    assert router.stop() == 0
    assert not _runs(beside)
    with closing(sqlite3.connect(router.database)) as conn:
        rows = [call_id for (call_id,) in conn.execute("SELECT call_id FROM calls")]
    assert sorted(rows) == sorted(one.decision for one in seen)
