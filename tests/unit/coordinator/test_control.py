"""Every pair of state and signal (coordinator §7), with an engine that joined late: none hears what it would assert on."""

from __future__ import annotations

import pytest

from turnout.coordinator.control import State
from turnout.coordinator.rehearsal import Rehearsal
from turnout.core.coordinator_options import Coordinator
from turnout.engines import megatron as wire
from turnout.engines.megatron import Header

A, B, X = b"mp-coord-0", b"mp-coord-1", b"client"
WAY = {
    State.RUNNING: (),
    State.PAUSED: (Header.PAUSE,),
    State.SUSPENDED: (Header.PAUSE, Header.SUSPEND),
}
# Signal → state before → (state after, told to the engine that was there, told to the one that joined in that state).
TABLE: dict[Header, dict[State, tuple[State, bool, bool]]] = {
    Header.PAUSE: {
        State.RUNNING: (State.PAUSED, True, True),
        State.PAUSED: (State.PAUSED, False, False),
        State.SUSPENDED: (State.SUSPENDED, False, False),
    },
    Header.UNPAUSE: {
        State.RUNNING: (State.RUNNING, False, False),
        State.PAUSED: (State.RUNNING, True, True),
        State.SUSPENDED: (State.SUSPENDED, False, False),
    },
    Header.SUSPEND: {
        State.RUNNING: (State.RUNNING, False, False),
        State.PAUSED: (State.SUSPENDED, True, True),
        State.SUSPENDED: (State.SUSPENDED, False, False),
    },
    Header.RESUME: {
        State.RUNNING: (State.RUNNING, False, False),
        State.PAUSED: (State.PAUSED, False, False),
        State.SUSPENDED: (State.PAUSED, True, False),
    },
    Header.STOP: {
        State.RUNNING: (State.RUNNING, False, False),
        State.PAUSED: (State.RUNNING, True, True),
        State.SUSPENDED: (State.RUNNING, True, True),
    },
    Header.START_CUDA_PROFILER: {state: (state, True, True) for state in WAY},
    Header.STOP_CUDA_PROFILER: {state: (state, True, True) for state in WAY},
    Header.SET_GENERATION_EPOCH: {state: (state, True, True) for state in WAY},
}
SILENT = {(Header.PAUSE, State.PAUSED), (Header.PAUSE, State.SUSPENDED)}
# What an engine asserts on: signal → the states in which it may come. PAUSE may come in any.
ENGINE_TAKES = {
    Header.UNPAUSE: {State.PAUSED},
    Header.SUSPEND: {State.PAUSED},
    Header.RESUME: {State.SUSPENDED},
    Header.STOP: {State.PAUSED, State.SUSPENDED},
}
ENGINE_BECOMES = {
    Header.PAUSE: State.PAUSED,
    Header.UNPAUSE: State.RUNNING,
    Header.SUSPEND: State.SUSPENDED,
    Header.RESUME: State.PAUSED,
    Header.STOP: State.STOPPING,
}


def heard(there: Rehearsal, engine: bytes, before: State) -> State:
    """Play an unmodified engine over all that it was sent."""
    for message in there.read(engine):
        header = Header(message[0])
        if header is Header.PAUSE and before is not State.RUNNING:
            continue
        assert before in ENGINE_TAKES.get(header, set(State)), f"{header.name} in {before}"
        before = ENGINE_BECOMES.get(header, before)
    return before


@pytest.mark.parametrize("state", list(WAY))
@pytest.mark.parametrize("signal", list(TABLE))
def test_every_pair_of_state_and_signal(signal: Header, state: State) -> None:
    there = Rehearsal()
    there.engines(A)
    there.clients(X)
    for step in WAY[state]:
        there.say(X, wire.signal(step))
    there.engines(B)
    first = heard(there, A, State.RUNNING)
    late = heard(there, B, State.RUNNING)
    assert (first, late) == (state, state if state is not State.SUSPENDED else State.PAUSED)
    after, told_first, told_late = TABLE[signal][state]
    payload = wire.signal(signal, 3 if signal is Header.SET_GENERATION_EPOCH else None)
    there.say(X, payload)
    assert there.door.roster.state is after
    assert (there.inbox[A] == [payload], there.inbox[B] == [payload]) == (told_first, told_late)
    heard(there, A, first), heard(there, B, late)
    is_refused = after is state and not told_first and (signal, state) not in SILENT
    assert there.door.tally.invalid[signal.name, "illegal_state"] == is_refused


def test_each_accepted_signal_is_an_audit_record() -> None:
    there = Rehearsal()
    there.engines(A, B)
    there.clients(X)
    there.door.records.take()
    there.say(X, wire.signal(Header.PAUSE))
    there.say(X, wire.signal(Header.PAUSE))
    (record,) = there.door.records.take()
    assert record.event == "coordinator_signal"
    assert record.fields == {"signal": "PAUSE", "peer": X.hex(), "engines": 2, "before": "running", "after": "paused"}


def test_signals_need_permission() -> None:
    there = Rehearsal(Coordinator(allow_control=False))
    there.engines(A)
    there.clients(X)
    there.say(X, wire.signal(Header.PAUSE))
    assert (there.read(A), there.door.roster.state) == ([], State.RUNNING)
    assert there.door.tally.invalid["PAUSE", "not_allowed"] == 1


def test_requests_are_forwarded_while_paused() -> None:
    there = Rehearsal()
    there.engines(A)
    there.clients(X)
    there.say(X, wire.signal(Header.PAUSE))
    there.say(X, wire.submit(0, "p", {}))
    assert [message[0] for message in there.read(A)] == [40, 20]


def test_a_stopping_engine_gets_no_further_request() -> None:
    there = Rehearsal()
    there.engines(A)
    there.clients(X)
    there.say(X, wire.signal(Header.PAUSE))
    there.say(X, wire.signal(Header.STOP))
    there.read(A)
    there.say(X, wire.submit(0, "p", {}))
    assert there.read(A) == []
    there.say(A, wire.DISCONNECT)
    there.engines(B)
    assert [message[0] for message in there.read(B)] == [20]


def test_a_lost_engine_is_brought_to_the_state_of_the_door() -> None:
    there = Rehearsal()
    there.engines(A, B)
    there.clients(X)
    there.gone.add(A)
    there.say(X, wire.signal(Header.PAUSE))  # A is found gone, and never heard it
    there.gone.clear()
    there.wait(1.1)
    assert [message for message in there.read(A) if message[0] == 40] == [[40]]
    there.gone.add(A)
    there.say(X, wire.signal(Header.UNPAUSE))
    there.gone.clear()
    there.wait(1.1)
    assert [message for message in there.read(A) if message[0] != 23] == [[41]]
    assert len(there.door.roster.eligible) == 2


def test_a_new_epoch_changes_every_key() -> None:
    there = Rehearsal(Coordinator(block_tokens=2))
    there.engines(A)
    there.clients(X)
    before = there.door.blocks.keys([1, 2])[0]
    there.say(X, wire.signal(Header.SET_GENERATION_EPOCH, 7))
    assert there.door.blocks.keys([1, 2])[0] != before
