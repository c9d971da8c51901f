"""What the spool takes it gives back in order, once, and damage costs only what is damaged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from turnout.core.facts import CallFact
from turnout.ledger import entry, messages
from turnout.ledger.segment import Segment
from turnout.ledger.spool import Spool

Make = Callable[..., Any]


def _spool(database: Path, name: str = "1", **options: Any) -> Spool:
    return Spool(database, name=name, **{"max_bytes": 2**20, "frame_calls": 2, **options})


def read(spool: Spool) -> list[CallFact]:
    return messages.FACTS.joined(frame.payload for frame in spool.read())


def _drain(spool: Spool) -> list[CallFact]:
    found: list[CallFact] = []
    while facts := read(spool):
        found += facts
        spool.advance()
    return found


def _files(database: Path) -> list[str]:
    return sorted(path.name for path in database.parent.glob("*.spool-*"))


def test_calls_come_back_equal_and_in_order_and_leave_no_file(database: Path, call: Make) -> None:
    spool = _spool(database, segment_bytes=4_000)
    calls = [call(n, decision=b"{}") for n in range(25)]
    for start in range(0, 25, 5):
        spool.append(calls[start : start + 5])
    assert len(_files(database)) > 1
    assert _drain(spool) == calls
    assert spool.empty
    assert spool.size_bytes == 0
    assert _files(database) == []


def test_reading_twice_without_advancing_gives_the_same_frame(database: Path, call: Make) -> None:
    spool = _spool(database)
    spool.append([call(0), call(1), call(2)])
    assert read(spool) == read(spool) == [call(0), call(1)]


def test_small_frames_are_read_together_up_to_a_batch(database: Path, call: Make) -> None:
    spool = _spool(database, frame_calls=4)
    for n in range(6):
        spool.append([call(n)])
    assert read(spool) == [call(n) for n in range(4)]
    spool.advance()
    assert read(spool) == [call(4), call(5)]


def test_a_frame_of_another_version_is_left_out_and_counted(database: Path, call: Make) -> None:
    before = Segment.create(database.with_name("turnout.db.spool-0-0"))
    before.append([b"\x91\x81\xa3new\x01"])
    before.close()
    spool = _spool(database)
    spool.append([call(0)])
    assert spool.adopt() == 1
    assert _drain(spool) == [call(0)]
    assert spool.unreadable == 1
    assert _files(database) == []


def test_appending_goes_on_while_older_frames_are_read(database: Path, call: Make) -> None:
    spool = _spool(database)
    spool.append([call(0), call(1)])
    assert read(spool) == [call(0), call(1)]
    spool.append([call(2)])
    spool.advance()
    assert _drain(spool) == [call(2)]
    spool.append([call(3)])
    assert _drain(spool) == [call(3)]


def test_files_of_a_process_that_is_gone_are_replayed_first(database: Path, call: Make) -> None:
    before = _spool(database, "1")
    before.append([call(0), call(1), call(2)])
    assert before.close() == 0
    spool = _spool(database, "2")
    spool.append([call(3)])
    assert spool.adopt() == 1
    assert _drain(spool) == [call(n) for n in range(4)]


def test_files_of_a_living_process_are_left_alone(database: Path, call: Make) -> None:
    alive = _spool(database, "1")
    alive.append([call(0)])
    other = _spool(database, "2")
    assert other.adopt() == 0
    assert alive.adopt() == 0
    assert _drain(alive) == [call(0)]


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 500])
def test_a_torn_tail_is_cut_and_counted(database: Path, call: Make, cut: int) -> None:
    before = _spool(database)
    before.append([call(n) for n in range(4)])
    before.close()
    path = database.parent / _files(database)[0]
    path.write_bytes(path.read_bytes()[:-cut])
    spool = _spool(database, "2")
    spool.adopt()
    assert _drain(spool) == [call(0), call(1)]
    assert spool.torn == 1
    assert _files(database) == []


@pytest.mark.parametrize("position", [0, 3, 5, 40])
def test_a_changed_byte_is_noticed_before_anything_is_decoded(database: Path, call: Make, position: int) -> None:
    before = _spool(database)
    before.append([call(0)])
    before.close()
    path = database.parent / _files(database)[0]
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)
    spool = _spool(database, "2")
    spool.adopt()
    assert _drain(spool) == []
    assert spool.torn == 1


def test_without_a_file_calls_wait_in_memory_and_move_to_a_file_when_there_is_one(tmp_path: Path, call: Make) -> None:
    database = tmp_path / "missing" / "turnout.db"
    spool = _spool(database)
    spool.append([call(0), call(1), call(2)])
    assert spool.memory_used_bytes > 0
    assert read(spool) == [call(0), call(1)]
    database.parent.mkdir()
    spool.append([call(3)])
    assert spool.memory_used_bytes == 0
    assert _drain(spool) == [call(n) for n in range(4)]


def test_memory_drops_attempts_first_and_then_calls(tmp_path: Path, call: Make) -> None:
    spool = _spool(tmp_path / "missing" / "turnout.db", memory_bytes=3_000, frame_calls=1)
    spool.append([call(n) for n in range(40)])
    assert spool.calls_stripped > 0
    assert spool.calls_refused > 0
    assert spool.memory_used_bytes <= 3_000
    kept = _drain(spool)
    assert len(kept) == 40 - spool.calls_refused
    assert kept[0].attempts
    assert not kept[-1].attempts


def test_files_stay_below_their_bound(database: Path, call: Make) -> None:
    spool = _spool(database, max_bytes=5_000, memory_bytes=1)
    spool.append([call(n) for n in range(2)])
    spool.append([call(n) for n in range(2, 20)])
    assert spool.size_bytes <= 5_000
    assert spool.calls_refused == 18
    assert _drain(spool) == [call(0), call(1)]


def test_closing_without_any_file_says_how_many_calls_are_lost(tmp_path: Path, call: Make) -> None:
    spool = _spool(tmp_path / "missing" / "turnout.db")
    spool.append([call(0), call(1), call(2)])
    assert spool.close() == 3


def test_a_call_that_cannot_be_encoded_costs_only_itself(database: Path, call: Make) -> None:
    spool = _spool(database, frame_calls=9)
    spool.append([call(0), call(1, tenant="\ud800"), call(2)])
    assert spool.calls_unencodable == 1
    assert _drain(spool) == [call(0), call(2)]


def test_a_frame_that_was_read_is_known_as_well_as_one_that_was_made(call: Make) -> None:
    facts = [call(0), call(1, outcome=""), call(2)]
    [made] = entry.frames([entry.of(fact) for fact in facts], 8)
    assert (made.calls, made.closed) == (3, (facts[0].call_id, facts[2].call_id))
    assert entry.frame_of(made.payload) == made
