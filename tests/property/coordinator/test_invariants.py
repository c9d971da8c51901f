"""Any order of arrivals, replies, departures and returns: one answer per request, and nothing left behind."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.coordinator.control import State
from turnout.coordinator.rehearsal import Rehearsal
from turnout.core.coordinator_options import Affinity, Coordinator
from turnout.engines import megatron as wire
from turnout.engines.megatron import Header

ENGINES = [b"mp-coord-%d" % number for number in range(3)]
CLIENTS = [b"\0cli%d" % number for number in range(3)]
SIGNALS = [Header.PAUSE, Header.UNPAUSE, Header.SUSPEND, Header.RESUME, Header.STOP]
# What an engine asserts on: signal → states in which it may come.
TAKES = {
    Header.UNPAUSE: {State.PAUSED},
    Header.SUSPEND: {State.PAUSED},
    Header.RESUME: {State.SUSPENDED},
    Header.STOP: {State.PAUSED, State.SUSPENDED},
}
BECOMES = {
    Header.UNPAUSE: State.RUNNING,
    Header.SUSPEND: State.SUSPENDED,
    Header.RESUME: State.PAUSED,
    Header.STOP: State.STOPPING,
}

engine = st.integers(0, 2)
step = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("submit"), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("abort"), st.integers(0, 2), st.integers(0, 9)),
    st.tuples(st.sampled_from(["partial", "final", "twice", "foreign"]), engine, st.integers(0, 9)),
    st.tuples(st.sampled_from(["register", "kill", "return", "goodbye", "full", "room"]), engine, st.just(0)),
    st.tuples(st.sampled_from(["vanish", "leave"]), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("signal"), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("signal"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("blip"), engine, st.integers(0, 3)),
    st.tuples(st.just("wait"), st.integers(1, 40), st.just(0)),
)


class Play:
    """The world with a model of what each client may expect."""

    def __init__(self) -> None:
        options = Coordinator(block_tokens=2, empty_wait_s=3.0, abort_wait_s=2.0, pending_max=4, request_timeout_s=20.0)
        self.there = Rehearsal(options, Affinity())
        self.accepted: Counter[tuple[bytes, int]] = Counter()
        self.answered: Counter[tuple[bytes, int]] = Counter()
        self.numbers = dict.fromkeys(CLIENTS, 0)
        self.vanished: set[bytes] = set()
        self.states = dict.fromkeys(ENGINES, State.RUNNING)
        self.there.clients(*CLIENTS)
        self.there.engines(*ENGINES)

    def act(self, what: str, who: int, which: int) -> None:
        there = self.there
        name = ENGINES[who % 3]
        client = CLIENTS[who % 3]
        if what == "submit" and client not in self.vanished:
            number = self.numbers[client]
            self.numbers[client] += 1
            self.accepted[client, number] += 1
            there.say(client, wire.submit(number, [which] * 4, {}))
        elif what == "abort" and client not in self.vanished:
            there.say(client, wire.abort(which))
        elif what in {"partial", "final", "twice", "foreign"}:
            self._reply(what, name, which)
        elif what == "wait":
            there.wait(who / 10)
        elif what == "signal":
            there.say(CLIENTS[0], wire.signal(SIGNALS[who]))
        elif what == "blip":
            # The connection is gone while a signal is sent, and back before anybody despairs.
            there.gone.add(name)
            there.say(CLIENTS[0], wire.signal(SIGNALS[which]))
            there.gone.discard(name)
            there.wait(1.2)
        elif what in {"vanish", "leave"} and client != CLIENTS[0] and client not in self.vanished:
            self.vanished.add(client)
            if what == "vanish":
                there.gone.add(client)
            else:
                there.say(client, wire.DISCONNECT)
        else:
            self._engine(what, name)
        self._read()

    def _reply(self, what: str, name: bytes, which: int) -> None:
        there = self.there
        if name in there.gone or there.door.roster.speaker(name) is None:
            return
        opened = [number for number, attempt in there.door.requests.open.items() if attempt.engine.identity == name]
        others = [number for number in there.door.requests.open if number not in opened]
        pool = others if what == "foreign" else opened
        if not pool:
            return
        number = pool[which % len(pool)]
        if what == "partial":
            there.progress(name, number)
        else:
            there.finish(name, *([number, number] if what == "twice" else [number]))

    def _engine(self, what: str, name: bytes) -> None:
        there = self.there
        if what == "register":
            there.gone.discard(name)
            there.inbox.pop(name, None)
            self.states[name] = State.RUNNING  # a fresh process
            there.engines(name)
        elif what == "kill":
            there.gone.add(name)
        elif what == "return":
            there.gone.discard(name)
        elif what == "goodbye" and name in there.door.roster.live:
            there.say(name, wire.DISCONNECT)
        elif what in {"full", "room"}:
            there.carry(there.door.saturated(name, there.now, full=what == "full"))

    def _read(self) -> None:
        for client in CLIENTS:
            for message in self.there.read(client):
                if message[0] == Header.ENGINE_REPLY:
                    self.answered[client, message[1]] += 1
        for name in ENGINES:
            for message in self.there.read(name):
                header = Header(message[0])
                state = self.states[name]
                assert state in TAKES.get(header, set(State)), f"{name!r} asserts on {header.name} in {state}"
                if header is Header.PAUSE:
                    self.states[name] = State.PAUSED if state is State.RUNNING else state
                else:
                    self.states[name] = BECOMES.get(header, state)

    def finish(self) -> None:
        """Let everything end: engines answer what they hold, waits run out."""
        there = self.there
        for _ in range(3):
            for name in ENGINES:
                current = there.door.roster.live.get(name)
                if current is not None and name not in there.gone:
                    there.finish(name, *list(current.open))
            self._read()
            there.wait(21.0, step_s=0.5)
            self._read()


@settings(max_examples=100, deadline=None)
@given(st.lists(step, max_size=60))
def test_each_request_is_answered_once_and_nothing_is_left(steps: list[tuple[str, int, int]]) -> None:
    play = Play()
    for what, who, which in steps:
        play.act(what, who, which)
        # An engine's load is what it has open, at any moment.
        engines = [*play.there.door.roster.live.values()]
        engines += [entry.engine for entry in play.there.door.roster.departed.values()]
        assert sum(len(each.open) for each in engines) == len(play.there.door.requests.open)
    play.finish()
    expected = {key: count for key, count in play.accepted.items() if key[0] not in play.vanished}
    answered = {key: count for key, count in play.answered.items() if key[0] not in play.vanished}
    assert answered == expected
    assert play.there.leftovers() == {}
    assert max(play.answered.values(), default=0) <= 1
    assert set(play.there.door.tally.internal_errors) <= {"ENGINE_REPLY", "ENGINE_REPLY_PARTIAL"}
