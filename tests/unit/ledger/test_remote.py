"""The database in a process of its own: the same rows and figures, and nothing lost whatever becomes of the process."""

import functools
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from turnout.core import options
from turnout.core.facts import RouteKey
from turnout.ledger import connection, messages, prices
from turnout.ledger.backend import Derived
from turnout.ledger.derivation import Derivation
from turnout.ledger.remote import PROGRAM, OwnProcess
from turnout.ledger.sink import LedgerRefusedError, SinkDownError
from turnout.ledger.writer import Ledger

Make = Callable[..., Any]
HANGS_S = 120.0


def _eventually(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + HANGS_S
    while not (value := holds()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return value


@pytest.fixture
def beside(database: Path, events: Any) -> Iterator[Callable[..., OwnProcess]]:
    made: list[OwnProcess] = []

    def make(path: Path = database, prices: str = "", program: Any = PROGRAM, **section: Any) -> OwnProcess:
        given = options.Ledger(url=f"sqlite:///{path}", **section)
        made.append(OwnProcess(given, router_id="r1", on_event=events, prices=prices, program=program))
        return made[-1]

    yield make
    for process in made:
        process.close()


@pytest.fixture
def open_ledger(beside: Make, database: Path, clock: Any, events: Any) -> Iterator[Callable[..., tuple[Any, Any]]]:
    opened: list[Ledger] = []

    def make(**fields: Any) -> tuple[Ledger, OwnProcess]:
        section = options.Ledger(url=f"sqlite:///{database}", flush_interval_ms=5, snapshot_interval_s=0.02)
        process = beside(**fields)
        given: dict[str, Any] = {"router_id": "r1", "clock_ms": clock, "on_event": events, "open_delay_s": 0.0}
        ledger = Ledger(section, **given, backend=process)
        opened.append(ledger)
        ledger.start()
        return ledger, process

    yield make
    for ledger in opened:
        ledger.close(1.0)


def _count(database: Path) -> tuple[int, int]:
    with closing(sqlite3.connect(database)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = conn.execute("SELECT (SELECT count(*) FROM calls), (SELECT count(*) FROM attempts)").fetchone()
    return (rows[0], rows[1])


def _another(process: OwnProcess, pid: int) -> bool:
    return process.pid not in {pid, None}


def _gone(pid: int) -> bool:
    """Neither there nor a zombie that somebody forgot."""
    return not Path(f"/proc/{pid}").exists()


def test_rows_snapshot_prices_and_hot_routes_come_from_the_process(
    database: Path, open_ledger: Make, call: Make, clock: Any, tmp_path: Path, events: Any
) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('[[price]]\nmodel = "model-a"\ninput = 5\noutput = 15\n')
    clock.now_ms = time.time_ns() // 1_000_000  # the process stamps by the system's clock
    ledger, process = open_ledger(prices=str(file))
    for n in range(100):
        ledger.record(call(n, session_id=f"s{n}", ended_at_ms=clock()))
    assert ledger.flush(HANGS_S) == 0
    assert _count(database) == (100, 100)
    assert ledger.stats()["rows_calls"] == 100
    clock.now_ms += 60_000
    assert _eventually(lambda: ledger.prices().version == 1)
    assert ledger.prices().prices["", "model-a"].p_in == 5_000_000
    assert len(ledger.hot_routes()) == 100
    assert ledger.hot_routes()[0][2] == RouteKey("", "model-a", "replica-1")
    assert events.names == ["ledger_upgraded", "prices_imported"]
    assert process.stats() == {"process_restarts": 0}
    pid = process.pid
    assert ledger.close(HANGS_S) == 0
    assert _gone(pid)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prices.toml", "turnout.db"]


def _facts(call: Make, attempt: Make, clock: Any) -> list[Any]:
    routes = [RouteKey("", "m", f"r{n}") for n in range(40)] + [RouteKey("p", "n", "")]
    made = []
    for n in range(300):
        route, ok = routes[n % 41], n % 7 != 0
        leg = attempt(route=route, ended_at_ms=clock() - n, ok=ok, error_kind="" if ok else "connect", e2e_ms=n)
        made.append(call(n, route=route, ended_at_ms=clock() - n, attempts=(leg,), session_id=f"s{n}", cost_nusd=7))
    return made


def test_the_process_answers_what_this_one_would(
    database: Path, beside: Make, call: Make, attempt: Make, clock: Any
) -> None:
    process = beside()
    assert process.open().write(messages.FACTS.cut(_facts(call, attempt, clock))).calls == 300
    engine = connection.writing_engine(database)
    with engine.begin() as conn:
        book = prices.parse([{"model": f"m{n}", "input": n} for n in range(100)])
        prices.add(conn, book, effective_from_ms=0, created_at_ms=0, source="test")
    engine.dispose()
    here, there = Derivation(options.Ledger(url=f"sqlite:///{database}")), process.statistics

    found: Derived = there.derive(clock(), None)
    assert (len(found.routes), len(found.prices or ()), found.health is not None) == (41, 100, True)
    assert found == here.derive(clock(), None)
    assert there.derive(clock() + 1, 1) == here.derive(clock() + 1, 1)
    assert there.derive(clock() + 1, 1).health is None
    assert there.routes() == here.routes()
    numbers = [number for number, _ in here.routes()]
    assert there.percentiles(numbers, clock(), HANGS_S) == here.percentiles(numbers, clock(), HANGS_S)
    assert there.percentiles(numbers, clock(), 0.0) == []
    assert there.spent(clock(), 30) == here.spent(clock(), 30) != []
    here.drop()


def test_a_killed_process_is_started_again_and_nothing_is_lost_or_stored_twice(
    database: Path, open_ledger: Make, call: Make, attempt: Make, events: Any
) -> None:
    ledger, process = open_ledger()
    kills = 0
    # The process prunes by the system's clock: sums of an old day would go with its first look.
    now_ms = time.time_ns() // 1_000_000
    legs = (attempt(ended_at_ms=now_ms),)
    for n in range(3_000):
        ledger.record(call(n, ended_at_ms=now_ms, attempts=legs))
        if n % 1_000 == 500:
            pid = _eventually(lambda: process.pid)
            os.kill(pid, signal.SIGKILL)
            assert _eventually(functools.partial(_another, process, pid))
            kills += 1
    assert ledger.flush(HANGS_S) == 0
    assert _count(database) == (3_000, 3_000)
    with closing(sqlite3.connect(database)) as conn:
        assert conn.execute("SELECT sum(n) FROM attempt_buckets").fetchone() == (3_000,)
    assert ledger.stats()["process_restarts"] == kills
    assert events.names.count("ledger_process_restarted") == kills
    assert {fields["exit_code"] for name, fields in events.seen if name == "ledger_process_restarted"} == {-9}


def test_the_snapshot_alone_starts_a_killed_process_again(open_ledger: Make, clock: Any) -> None:
    ledger, process = open_ledger()
    assert _eventually(lambda: ledger.snapshot().observed_at_ms)
    os.kill(process.pid, signal.SIGKILL)
    clock.now_ms += 1_000
    assert _eventually(lambda: ledger.snapshot().observed_at_ms == clock() and process.stats()["process_restarts"])


@pytest.mark.parametrize(
    "program",
    [
        ("/bin/false",),
        ("/nowhere/to/be/found",),
        (sys.executable, "-c", "import os, sys; os.write(int(sys.argv[1]), b'no message at all')"),
        (
            sys.executable,
            "-c",
            "import os, sys; os.write(int(sys.argv[1]), b'\\xff' * 9); os.read(int(sys.argv[2]), 9)",
        ),
    ],
)
def test_a_program_that_is_no_ledger_costs_no_call(
    database: Path, open_ledger: Make, call: Make, program: Any, events: Any
) -> None:
    ledger, _ = open_ledger(program=program)
    for n in range(10):
        ledger.record(call(n))
    assert _eventually(lambda: "ledger_down" in events.names)
    assert ledger.close(0.5) == 0
    successor, _ = open_ledger()
    assert successor.flush(HANGS_S) == 0
    assert _count(database) == (10, 10)


def test_a_program_that_never_runs_is_not_started_in_a_hurry(beside: Make) -> None:
    process = beside(program=("/bin/false",))
    for _ in range(3):
        with pytest.raises(SinkDownError) as caught:
            process.open()
        assert caught.value.kind == "process_gone"
    assert process.stats() == {"process_restarts": 0}


def test_closing_does_not_wait_for_a_process_that_hangs(database: Path, open_ledger: Make, call: Make) -> None:
    ledger, process = open_ledger()
    ledger.record(call(0))
    assert ledger.flush(HANGS_S) == 0
    pid = process.pid
    os.kill(pid, signal.SIGSTOP)
    for n in range(1, 100):
        ledger.record(call(n))
    assert ledger.close(0.2) == 0
    assert _gone(pid)
    successor, _ = open_ledger()
    assert successor.flush(HANGS_S) == 0
    assert _count(database) == (100, 100)


def test_signals_that_end_a_router_do_not_end_its_ledger(beside: Make, call: Make) -> None:
    process = beside()
    sink = process.open()
    pid = process.pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    assert sink.write(messages.FACTS.cut([call(0)])).calls == 1
    assert process.pid == pid


def test_it_inherits_no_descriptor_and_stands_back(beside: Make) -> None:
    process = beside()
    process.open()
    process.statistics.derive(0, None)
    open_files = [str(path.readlink()) for path in Path(f"/proc/{process.pid}/fd").iterdir()]
    assert sum(name.startswith("socket:") for name in open_files) == 2
    assert not [name for name in open_files if "spool" in name or "slots" in name]
    assert open_files.count("/dev/null") >= 2
    threads = [int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir()]
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {19}


def test_who_hurries_stands_back_after_the_first_answers(beside: Make) -> None:
    process = beside()
    process.hurry()
    process.open()
    process.statistics.derive(0, None)
    threads = [int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir()]
    # An answer is there before the thread that gave it has stood back.
    assert _eventually(lambda: {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {19})


def test_a_newer_schema_is_refused_over_there_too(beside: Make, database: Path) -> None:
    with closing(sqlite3.connect(database)) as conn:
        conn.execute("CREATE TABLE alembic_version (version_num)")
        conn.execute("INSERT INTO alembic_version VALUES ('9999')")
        conn.commit()
    process = beside()
    for ask in (process.check, process.open):
        with pytest.raises(LedgerRefusedError, match="9999"):
            ask()


def test_a_fact_that_no_column_holds_costs_only_itself(beside: Make, call: Make, database: Path) -> None:
    sink = beside().open()
    # What cannot be encoded either never comes so far: it is counted when it is recorded.
    bad: dict[int, dict[str, Any]] = {2: {"cost_nusd": -1}, 4: {"tokens_in": 2**63}, 6: {"tenant": None}}
    written = sink.write(messages.FACTS.cut([call(n, **bad.get(n, {})) for n in range(70)]))
    assert (written.calls, written.invalid) == (67, 3)
    assert _count(database) == (67, 67)
    garbage = sink.write([b"\xc1 no list", *messages.FACTS.cut([call(70)])])
    assert (garbage.calls, garbage.invalid) == (1, 1)


def test_a_batch_longer_than_a_message_is_stored_in_several(beside: Make, call: Make, database: Path) -> None:
    sink = beside().open()
    large = "x" * 9_000_000
    written = sink.write(messages.FACTS.cut([call(n, user_id=large) for n in range(5)] + [call(5, user_id=large * 4)]))
    assert (written.calls, written.invalid) == (5, 1)
    assert _count(database) == (5, 5)


def test_a_locked_database_is_down_by_its_own_kind(beside: Make, call: Make, database: Path) -> None:
    sink = beside().open()
    assert sink.write(messages.FACTS.cut([call(0)])).calls == 1
    with closing(sqlite3.connect(database, isolation_level=None)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        with pytest.raises(SinkDownError) as caught:
            sink.write(messages.FACTS.cut([call(1)]))
        conn.execute("ROLLBACK")
    assert caught.value.kind == "locked"
    assert sink.write(messages.FACTS.cut([call(0), call(1)])).duplicates == 1


def test_the_database_library_stays_out_of_the_router(tmp_path: Path) -> None:
    script = f"""
import sys, time
from turnout.core import options
from turnout.ledger.remote import OwnProcess
from turnout.ledger.writer import Ledger
section = options.Ledger(url="sqlite:///{tmp_path}/t.db", snapshot_interval_s=0.02)
given = dict(router_id="r", on_event=lambda name, /, **fields: None, prices="")
process = OwnProcess(section, **given)
ledger = Ledger(section, clock_ms=lambda: time.time_ns() // 1_000_000, backend=process, open_delay_s=0.0, **given)
ledger.start()
assert ledger.flush({HANGS_S}) == 0
while not ledger.snapshot().observed_at_ms:
    time.sleep(0.01)
assert ledger.hot_routes() == ledger.recent_turns(0, 10) == []
assert ledger.close({HANGS_S}) == 0
assert not {{"sqlalchemy", "alembic"}} & sys.modules.keys()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=HANGS_S)
