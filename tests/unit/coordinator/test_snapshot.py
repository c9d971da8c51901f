"""The file that carries a door's engines over its restart."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from turnout.coordinator.control import State
from turnout.coordinator.records import Report
from turnout.coordinator.rehearsal import Rehearsal
from turnout.coordinator.snapshot import Keeper, load, restore, save, snapshot_of
from turnout.core.coordinator_options import Coordinator
from turnout.engines import megatron as wire
from turnout.engines.megatron import Header

A, B, X = b"any\xffname", b"mp-coord-1", b"client"


def handed_over(before: Rehearsal, **options: Any) -> Rehearsal:
    after = Rehearsal(Coordinator(**options))
    restore(snapshot_of(before.door.roster), after.door.roster, after.now)
    return after


def test_a_new_door_finds_engines_of_any_name_and_drops_replies_to_old_numbers(tmp_path: Path) -> None:
    before = Rehearsal()
    before.engines(A, B)
    save(snapshot_of(before.door.roster), tmp_path / "engines.json")
    found = load(tmp_path / "engines.json")
    assert found is not None
    after = Rehearsal()
    after.gone.add(B)
    restore(found, after.door.roster, after.now)
    after.wait(1.1)
    assert set(after.door.roster.live) == {A}
    assert after.read(A) == [[Header.ABORT_REQUEST.value, wire.PROBE_ID]]
    after.finish(A, 77)
    assert after.door.tally.dropped == {"unknown": 1}
    after.gone.clear()
    after.wait(1.1)
    assert after.door.tally.registrations == {"adopted": 2}


def test_a_paused_door_stays_paused_and_its_engines_are_told_nothing_twice() -> None:
    before = Rehearsal()
    before.engines(A)
    before.clients(X)
    before.say(X, wire.signal(Header.PAUSE))
    after = handed_over(before)
    after.wait(1.1)
    assert [message[0] for message in after.read(A)] == [Header.ABORT_REQUEST]
    assert (after.door.roster.state, after.door.roster.live[A].control) == (State.PAUSED, State.PAUSED)
    after.clients(X)
    after.say(X, wire.signal(Header.UNPAUSE))
    assert after.read(A) == [[Header.UNPAUSE.value]]


def test_those_that_said_goodbye_or_were_stopped_are_not_looked_for() -> None:
    before = Rehearsal()
    before.engines(A, B)
    before.clients(X)
    before.say(A, wire.DISCONNECT)
    before.say(X, wire.signal(Header.PAUSE))
    before.say(X, wire.signal(Header.STOP))
    after = handed_over(before)
    after.wait(1.1)
    assert not after.door.roster.live
    assert after.door.roster.state is State.RUNNING


def test_expected_engines_are_looked_for_without_end() -> None:
    before = Rehearsal()
    before.engines(A, B)
    after = handed_over(before, expected_engines=2)
    after.gone |= {A, B}
    after.wait(700.0, step_s=1.0)
    after.gone.clear()
    after.wait(2.0)
    assert set(after.door.roster.live) == {b"mp-coord-0", B}


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"v":2,"state":"running","engines":[]}', b'{"v":1,"state":"gone","engines":[]}',
     b'{"v":1,"state":"running","engines":[{"identity":"zz","control":"running"}]}', b"\xff" * 4_194_305],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_reported_and_changes_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "engines.json"
    path.write_bytes(content)
    there = Rehearsal()
    heard = _restored(path, there)
    assert [event for _, event, _ in heard] == ["coordinator_snapshot_unusable"]
    assert (there.door.roster.lost, there.door.roster.state) == ({}, State.RUNNING)


def test_no_file_is_no_error(tmp_path: Path) -> None:
    assert _restored(tmp_path / "none.json", Rehearsal()) == []


def _restored(path: Path, there: Rehearsal) -> list[tuple[str, str, dict[str, Any]]]:
    heard: list[tuple[str, str, dict[str, Any]]] = []
    asyncio.run(Keeper(str(path), there.door.roster, lambda *record: heard.append(record)).restore(there.now))
    return heard


def test_the_file_follows_the_engines_at_most_once_a_second_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "engines.json"
    silent: Report = print

    def names() -> list[bytes]:
        return [bytes.fromhex(known["identity"]) for known in json.loads(path.read_bytes())["engines"]]

    async def script() -> None:
        there = Rehearsal()
        keeper = Keeper(str(path), there.door.roster, silent)
        there.engines(A)
        keeper.keep(10.0)
        there.engines(B)
        keeper.keep(10.5)
        await keeper.finish()
        assert names() == [A, B]
        there.say(A, wire.DISCONNECT)
        await keeper.finish()
        assert names() == [B]

    asyncio.run(script())


def test_a_disk_that_takes_nothing_is_reported(tmp_path: Path) -> None:
    heard: list[str] = []
    there = Rehearsal()

    async def script() -> None:
        keeper = Keeper(str(tmp_path / "no" / "such"), there.door.roster, lambda _, event, __: heard.append(event))
        await keeper.finish()

    asyncio.run(script())
    assert heard == ["coordinator_snapshot_unwritten"]
