"""The door of the ledger: nothing waits for it, and what went in is in the database or in the spool."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from turnout.core import options
from turnout.core.facts import CallFact, OpenedCall
from turnout.ledger import entry
from turnout.ledger.sink import LedgerRefusedError, Written
from turnout.ledger.writer import Ledger

Make = Callable[..., Any]


class HangingSink:
    """A database that takes a batch and never answers, until it is released."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.released = threading.Event()

    def write(self, frames: Sequence[bytes]) -> Written:
        self.entered.set()
        self.released.wait(30)
        return Written(calls=sum(map(entry.calls_of, frames)), commits=1)

    def prune(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing to let go of."""


@pytest.fixture
def open_ledger(database: Path, clock: Any, events: Any) -> Iterator[Callable[..., Ledger]]:
    opened: list[Ledger] = []

    def make(*, started: bool = True, path: Path = database, queue_max: int = 10_000, **fields: Any) -> Ledger:
        section = options.Ledger(url=f"sqlite:///{path}", queue_max=queue_max, flush_interval_ms=5)
        given = {"router_id": "r1", "clock_ms": clock, "on_event": events, "open_delay_s": 0.0, **fields}
        ledger = Ledger(section, **given)
        opened.append(ledger)
        if started:
            ledger.start()
        return ledger

    yield make
    for ledger in opened:
        ledger.close(1.0)


def _count(database: Path) -> tuple[int, int]:
    with closing(sqlite3.connect(database)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = conn.execute("SELECT (SELECT count(*) FROM calls), (SELECT count(*) FROM attempts)").fetchone()
    return (rows[0], rows[1])


def test_recorded_calls_are_rows(database: Path, open_ledger: Make, call: Make) -> None:
    ledger = open_ledger()
    for n in range(3):
        ledger.record(call(n))
    assert ledger.flush(10.0) == 0
    assert _count(database) == (3, 3)
    stats = ledger.stats()
    assert (stats["rows_calls"], stats["rows_attempts"], stats["rows_routes"], stats["queue_depth"]) == (3, 3, 1, 0)


def test_closing_loses_nothing_even_before_the_database_is_open(database: Path, open_ledger: Make, call: Make) -> None:
    ledger = open_ledger(open_delay_s=60.0)
    for n in range(5_000):
        ledger.record(call(n))
    assert ledger.close(20.0) == 0
    assert _count(database) == (5_000, 5_000)
    assert [path.name for path in database.parent.iterdir()] == ["turnout.db"]


def test_a_writer_that_sees_the_closing_first_still_stores(database: Path, open_ledger: Make, call: Make) -> None:
    """It once found no deadline yet, and left everything to the spool of the next start."""

    def slow_closer() -> float:
        if threading.current_thread() is threading.main_thread():
            for thread in threading.enumerate():
                if thread.name == "ledger-writer":
                    thread.join(0.2)
        return time.monotonic()

    ledger = open_ledger(monotonic=slow_closer)
    ledger.record(call(0))
    assert ledger.close(20.0) == 0
    assert _count(database) == (1, 1)


def test_an_overload_of_50000_calls_arrives_whole(database: Path, open_ledger: Make, call: Make) -> None:
    ledger = open_ledger(queue_max=60_000)
    for n in range(50_000):
        ledger.record(call(n))
    assert ledger.close(60.0) == 0
    assert _count(database) == (50_000, 50_000)


def test_a_full_queue_drops_and_counts(open_ledger: Make, call: Make) -> None:
    ledger = open_ledger(started=False, queue_max=2)
    for n in range(5):
        ledger.record(call(n))
    assert ledger.stats()["dropped_calls_queue_full"] == 3
    assert ledger.close() == 0
    ledger.record(call(9))
    assert ledger.stats()["dropped_calls_closed"] == 1


def test_a_call_that_finds_no_room_is_picked_up_from_its_slot(database: Path, open_ledger: Make, call: Make) -> None:
    sink = HangingSink()
    ledger = open_ledger(open_sink=lambda: sink, queue_max=2)
    facts = [call(n) for n in range(6)]
    for fact in facts:
        ledger.accepted(_opened(fact))
    ledger.record(facts[0])
    assert sink.entered.wait(10)
    for fact in facts[1:]:
        ledger.record(fact)
    assert ledger.stats()["dropped_calls_queue_full"] == 0
    assert ledger.close(0.05) == 0
    successor = open_ledger()
    assert successor.flush(10.0) == 0
    sink.released.set()
    assert _count(database) == (6, 6)


def test_attempts_of_open_exchanges_take_at_most_their_share_of_the_queue(open_ledger: Make, call: Make) -> None:
    ledger = open_ledger(started=False, queue_max=10)
    for n in range(12):
        ledger.record(call(n, outcome=""))
    assert (ledger.stats()["queue_depth"], ledger.stats()["dropped_attempts_queue_full"]) == (8, 4)
    ledger.record(call(99))
    assert ledger.stats()["queue_depth"] == 9


def test_slots_are_free_once_rows_are_safe(database: Path, open_ledger: Make, call: Make) -> None:
    ledger = open_ledger()
    for n in range(50):
        ledger.accepted(_opened(call(n)))
    assert ledger.stats()["slots_taken"] == 50
    for n in range(50):
        ledger.record(call(n))
    assert ledger.flush(10.0) == 0
    assert ledger.stats()["slots_taken"] == 0
    assert ledger.close() == 0
    assert [path.name for path in database.parent.iterdir()] == ["turnout.db"]


def _opened(fact: CallFact) -> OpenedCall:
    given = (fact.request_id, fact.started_at_ms, fact.tenant, fact.key_id, None, fact.dialect, fact.path)
    return OpenedCall(fact.call_id, *given, stream=True, requested_model="m")


def test_flush_is_bounded(open_ledger: Make, call: Make) -> None:
    sink = HangingSink()
    ledger = open_ledger(open_sink=lambda: sink)
    ledger.record(call(0))
    assert sink.entered.wait(10)
    started = time.monotonic()
    assert ledger.flush(0.05) == 1
    assert time.monotonic() - started < 60
    sink.released.set()
    assert ledger.flush(10.0) == 0


def test_closing_while_the_database_hangs_spools_everything(database: Path, open_ledger: Make, call: Make) -> None:
    sink = HangingSink()
    ledger = open_ledger(open_sink=lambda: sink)
    ledger.record(call(0))
    assert sink.entered.wait(10)
    ledger.record(call(1))
    assert ledger.close(0.05) == 0
    sink.released.set()
    successor = open_ledger()
    assert successor.flush(10.0) == 0
    assert _count(database) == (2, 2)


def test_a_spool_left_behind_is_stored_by_the_next_start(database: Path, open_ledger: Make, call: Make) -> None:
    ledger = open_ledger(started=False)
    for n in range(1_200):
        ledger.record(call(n))
    assert ledger.close(0.0) == 0
    assert not database.exists()
    successor = open_ledger()
    assert successor.close(20.0) == 0
    assert _count(database) == (1_200, 1_200)
    assert successor.stats()["spool_replayed"] == 1_200


def test_without_a_directory_serving_goes_on_and_recovers_when_there_is_one(
    tmp_path: Path, open_ledger: Make, call: Make, events: Any
) -> None:
    path = tmp_path / "missing" / "turnout.db"
    ledger = open_ledger(path=path)
    ledger.record(call(0))
    assert ledger.flush(0.3) == 1
    assert events.names == ["ledger_down"]
    path.parent.mkdir()
    assert ledger.flush(15.0) == 0
    assert _count(path) == (1, 1)
    assert events.names == ["ledger_down", "ledger_upgraded", "ledger_up"]


def test_without_a_directory_closing_says_what_is_lost(tmp_path: Path, open_ledger: Make, call: Make) -> None:
    ledger = open_ledger(path=tmp_path / "missing" / "turnout.db")
    ledger.record(call(0))
    ledger.record(call(1))
    assert ledger.close(0.2) == 2


def test_a_corrupt_file_is_moved_aside_and_serving_starts(
    database: Path, open_ledger: Make, call: Make, events: Any
) -> None:
    database.write_bytes(b"\0" * 100_000)
    ledger = open_ledger()
    ledger.record(call(0))
    assert ledger.close(20.0) == 0
    assert _count(database) == (1, 1)
    assert events.names[0] == "ledger_corrupt"


def test_a_newer_schema_refuses_the_start(database: Path, open_ledger: Make) -> None:
    with closing(sqlite3.connect(database)) as conn:
        conn.execute("CREATE TABLE alembic_version (version_num)")
        conn.execute("INSERT INTO alembic_version VALUES ('9999')")
        conn.commit()
    ledger = open_ledger(started=False)
    with pytest.raises(LedgerRefusedError, match="9999"):
        ledger.start()


def test_nothing_of_the_database_is_loaded_by_constructing_and_starting(tmp_path: Path) -> None:
    script = f"""
import sys
from turnout.core import options
from turnout.ledger.writer import Ledger
ledger = Ledger(options.Ledger(url="sqlite:///{tmp_path}/t.db"), router_id="r", clock_ms=lambda: 1, open_delay_s=60.0)
ledger.start()
assert not {{"sqlalchemy", "alembic"}} & sys.modules.keys()
ledger.close(0.0)
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=_environment())


def test_a_kill_loses_only_what_was_not_yet_flushed(database: Path, open_ledger: Make) -> None:
    facts = Path(__file__).with_name("conftest.py")
    script = f"""
import importlib.util, time
spec = importlib.util.spec_from_file_location("facts", {str(facts)!r})
facts = importlib.util.module_from_spec(spec); spec.loader.exec_module(facts)
from turnout.core import options
from turnout.ledger.writer import Ledger
section = options.Ledger(url="sqlite:///{database}", flush_interval_ms=5)
ledger = Ledger(section, router_id="killed", clock_ms=facts.Clock(), open_delay_s=0.0)
ledger.start()
for n in range(100_000):
    ledger.record(facts._call(n))
    if n % 100 == 0:
        if n % 1_000 == 0:
            time.sleep(0.02)
        if not ledger.stats()["queue_depth"]:
            print(n, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=_environment())
    assert process.stdout is not None
    seen = [int(process.stdout.readline()) for _ in range(8)]
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    successor = open_ledger()
    assert successor.close(30.0) == 0
    calls, attempts = _count(database)
    assert calls == attempts
    # An empty queue means that all but the batch in the writer's hands is stored or spooled.
    assert calls >= seen[-2]
    with closing(sqlite3.connect(database)) as conn:
        assert conn.execute("SELECT count(DISTINCT call_id) FROM calls").fetchone() == (calls,)
        assert conn.execute("SELECT sum(n) FROM attempt_buckets").fetchone() == (calls,)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
