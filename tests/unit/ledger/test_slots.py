"""An accepted request has a row whatever happens to its process: the slot file outlives it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from turnout.core.facts import CallFact, OpenedCall
from turnout.ledger.entry import encode
from turnout.ledger.slots import RECORD_BYTES, SLOT_BYTES, Slots, recover

Make = Callable[..., Any]
NOW_MS = 1_794_000_005_000


def opened(n: int = 0, **fields: Any) -> OpenedCall:
    given: dict[str, Any] = {
        "call_id": f"01JCALL{n:019d}",
        "request_id": "req",
        "started_at_ms": 1_794_000_000_000,
        "tenant": "acme",
        "key_id": "k",
        "session_id": "s",
        "dialect": "openai",
        "path": "/v1/chat/completions",
        "stream": True,
        "requested_model": "m",
        "est_tokens": 7,
        "reserved_nusd": 11,
    }
    return OpenedCall(**{**given, **fields})


def end(slots: Slots, call: CallFact) -> None:
    slots.end(call, encode(call))


@pytest.fixture
def path(database: Path) -> Path:
    return database.with_name(f"{database.name}.slots-1")


@pytest.fixture
def slots(path: Path) -> Iterator[Slots]:
    made = Slots(path, 4)
    yield made
    made.remove()


def _recovered(database: Path, path: Path) -> tuple[list[CallFact], int]:
    """Recover from a copy, as after a kill: the owner's lock is not on it."""
    copy = path.with_name(f"{database.name}.slots-0")
    copy.write_bytes(path.read_bytes())
    found: list[CallFact] = []
    _, unreadable = recover(database, found.extend, NOW_MS)
    assert not copy.exists()
    return found, unreadable


def test_an_open_request_is_recovered_with_what_is_known(database: Path, path: Path, slots: Slots) -> None:
    assert slots.claim(opened())
    [call], unreadable = _recovered(database, path)
    assert unreadable == 0
    assert (call.outcome, call.cls, call.error_kind, call.recovered) == ("internal_error", "internal", "internal", True)
    assert (call.tenant, call.session_id, call.e2e_ms, call.est_tokens, call.reserved_nusd) == (
        "acme",
        "s",
        5_000,
        7,
        11,
    )
    assert call.attempts == ()


def test_an_ended_request_is_recovered_as_it_ended(database: Path, path: Path, slots: Slots, call: Make) -> None:
    slots.claim(opened(3))
    end(slots, call(3, cost_nusd=5))
    [found], _ = _recovered(database, path)
    assert found == call(3, cost_nusd=5, recovered=True)


def test_an_end_too_large_for_its_record_keeps_what_is_billed(
    database: Path, path: Path, slots: Slots, call: Make, attempt: Make
) -> None:
    slots.claim(opened(3, request_id="r" * 500, session_id="é" * 500))
    long = "x" * 400
    end(
        slots,
        call(
            3,
            attempts=tuple(attempt(attempt_no=n) for n in range(9)),
            user_id=long,
            requested_model=long,
            tokens_out=9,
            decision=b"d" * 900,
        ),
    )
    [found], _ = _recovered(database, path)
    assert (found.tokens_out, found.outcome, found.attempts) == (9, "completed", ())


def test_freed_slots_leave_nothing_and_are_used_again(database: Path, path: Path, slots: Slots, call: Make) -> None:
    for turn in range(3):
        for n in range(4):
            assert slots.claim(opened(4 * turn + n))
        end(slots, call(4 * turn))
        slots.free([f"01JCALL{4 * turn + n:019d}" for n in range(4)])
    assert slots.taken == 0
    assert _recovered(database, path) == ([], 0)


def test_without_a_free_slot_the_request_is_served_and_counted(slots: Slots, call: Make) -> None:
    assert [slots.claim(opened(n)) for n in range(6)] == [True] * 4 + [False] * 2
    assert slots.missed == 2
    end(slots, call(5))
    slots.free(["unknown", f"01JCALL{5:019d}"])


def test_a_kill_while_the_end_was_written_leaves_the_beginning(
    database: Path, path: Path, slots: Slots, call: Make
) -> None:
    slots.claim(opened(0))
    end(slots, call(0))
    content = bytearray(path.read_bytes())
    at = next(at for at in range(0, len(content), SLOT_BYTES) if content[at])
    content[at + RECORD_BYTES + 100] ^= 1
    (database.parent / f"{database.name}.slots-0").write_bytes(content)
    found: list[CallFact] = []
    recover(database, found.extend, NOW_MS)
    assert [call.outcome for call in found] == ["internal_error"]


def test_damage_is_counted_and_costs_only_itself(database: Path, path: Path, slots: Slots) -> None:
    for n in range(2):
        slots.claim(opened(n))
    content = bytearray(path.read_bytes())
    first = next(at for at in range(0, len(content), SLOT_BYTES) if content[at])
    content[first + 50] ^= 1
    (database.parent / f"{database.name}.slots-0").write_bytes(bytes(content) + b"torn")
    found: list[CallFact] = []
    assert recover(database, found.extend, NOW_MS) == (1, 1)


def test_the_file_of_a_living_process_is_left_alone(database: Path, path: Path, slots: Slots) -> None:
    slots.claim(opened())
    assert recover(database, lambda calls: None, NOW_MS) == (0, 0)
    assert path.exists()


def test_a_file_stays_until_its_calls_are_safe(database: Path, path: Path, slots: Slots) -> None:
    slots.claim(opened())
    copy = path.with_name(f"{database.name}.slots-0")
    copy.write_bytes(path.read_bytes())

    def fails(_: list[CallFact]) -> None:
        raise OSError

    assert recover(database, fails, NOW_MS) == (0, 0)
    assert copy.exists()
