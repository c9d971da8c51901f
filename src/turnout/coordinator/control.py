"""Which control signal is legal when, and which engines may hear it (coordinator §7): one table, no other rule.

An engine asserts on a signal it cannot take and exits, so the door tracks the state of each engine apart from its own.
"""

from __future__ import annotations

import enum

import msgspec

from turnout.engines.megatron import Header


class State(enum.StrEnum):
    """Of the door, and of each engine as far as it was told."""

    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    STOPPING = "stopping"


class Transition(msgspec.Struct, frozen=True, gc=False):
    """One signal. `becomes` None leaves the state; `after` is the door's own state once everybody has been told."""

    allowed: frozenset[State]
    becomes: State | None = None
    silent: frozenset[State] = frozenset()
    told: frozenset[State] = frozenset()
    after: State | None = None


_ANY = frozenset(State)
_ALL_ENGINES = Transition(_ANY, told=_ANY)

TRANSITIONS: dict[Header, Transition] = {
    Header.PAUSE: Transition(
        frozenset({State.RUNNING}),
        State.PAUSED,
        silent=frozenset({State.PAUSED, State.SUSPENDED}),
        told=frozenset({State.RUNNING}),
    ),
    Header.UNPAUSE: Transition(frozenset({State.PAUSED}), State.RUNNING, told=frozenset({State.PAUSED})),
    Header.SUSPEND: Transition(frozenset({State.PAUSED}), State.SUSPENDED, told=frozenset({State.PAUSED})),
    Header.RESUME: Transition(frozenset({State.SUSPENDED}), State.PAUSED, told=frozenset({State.SUSPENDED})),
    Header.STOP: Transition(
        frozenset({State.PAUSED, State.SUSPENDED}),
        State.STOPPING,
        told=frozenset({State.PAUSED, State.SUSPENDED}),
        # The engines stop, the door does not: the next ones to register find it running.
        after=State.RUNNING,
    ),
    Header.SET_GENERATION_EPOCH: _ALL_ENGINES,
    Header.START_CUDA_PROFILER: _ALL_ENGINES,
    Header.STOP_CUDA_PROFILER: _ALL_ENGINES,
}


def takes_requests(door: State, engine: State) -> bool:
    """Say whether an engine gets requests: one that is paused with its door queues them, one left behind would not."""
    if engine is State.STOPPING:
        return False
    return engine is State.RUNNING or door is not State.RUNNING
