"""Acceptance 5 and 7: every way an engine goes, in every phase of its request, and a pool that is empty for a while."""

from __future__ import annotations

from typing import Any

import pytest

from turnout.coordinator.rehearsal import Rehearsal
from turnout.core.coordinator_options import Affinity, Coordinator
from turnout.engines import megatron as wire
from turnout.engines.megatron import Header

A, B, X = b"mp-coord-0", b"mp-coord-1", b"client"
PROMPT = [1, 2, 3, 4]


def submitted(there: Rehearsal, engine: bytes) -> list[int]:
    return [message[1] for message in there.read(engine) if message[0] == Header.SUBMIT_REQUEST]


def reasons(messages: list[Any]) -> list[str]:
    return [
        message[2]["events"][0]["payload"]["message"] if message[2]["status"] == "FAILED" else message[2]["status"]
        for message in messages
        if message[0] == Header.ENGINE_REPLY
    ]


def go(there: Rehearsal, how: str) -> None:
    if how == "disconnect":
        there.say(A, wire.DISCONNECT)
    elif how == "restart":
        there.engines(A)
    else:
        there.gone.add(A)
        there.wait(6.0)  # nobody says so; the probe of a silent engine finds it


@pytest.mark.parametrize("how", ["killed", "restart", "disconnect"])
@pytest.mark.parametrize("phase", ["before partial", "after partial", "after abort"])
def test_each_open_request_is_settled_and_the_engine_returns_with_nothing(how: str, phase: str) -> None:
    there = Rehearsal(Coordinator(block_tokens=2), Affinity(policy="longest_prefix"))
    there.engines(A)
    there.clients(X)
    there.say(X, wire.submit(0, PROMPT, {}))
    (number,) = submitted(there, A)
    there.engines(B)
    if phase == "after partial":
        there.progress(A, number)
    elif phase == "after abort":
        there.say(X, wire.abort(0))
    there.read(X)
    go(there, how)
    there.wait(0.5 + 1.0)
    resent = [(name, again) for name in (A, B) if name not in there.gone for again in submitted(there, name)]
    if phase == "before partial":
        ((name, again),) = resent
        there.finish(name, again)
        assert reasons(there.read(X)) == ["COMPLETED"]
    else:
        assert resent == []
        assert reasons(there.read(X)) == ["turnout: engine_lost" if phase == "after partial" else "turnout: aborted"]
    assert there.leftovers() == {}
    there.gone.clear()
    if how != "restart":
        there.engines(A)
    engine = there.door.roster.live[A]
    assert (len(engine.open), engine.incarnation > 1) == (0, True)
    there.say(X, wire.submit(1, PROMPT, {}))
    (attempt,) = there.door.requests.open.values()
    is_held_anew = phase == "before partial"
    assert (attempt.matched_tokens > 0) == is_held_anew, "only an engine that got the prompt in this life holds it"
    there.finish(attempt.engine.identity, attempt.server_id, request_id=attempt.server_id)
    # A word of the old life meets nothing of the new one.
    there.read(X)
    there.finish(A, number)
    assert there.read(X) == []
    assert there.leftovers() == {}


@pytest.mark.parametrize(("away_s", "ending"), [(5.0, "COMPLETED"), (60.0, "turnout: no_engine")])
def test_a_pool_that_is_empty_for_a_while_serves_what_still_waits(away_s: float, ending: str) -> None:
    there = Rehearsal()
    there.engines(A, B)
    there.clients(X)
    for number in range(20):
        there.say(X, wire.submit(number, "p", {}))
    there.gone |= {A, B}
    there.say(X, wire.submit(20, "p", {}))
    there.wait(away_s, step_s=0.25)
    there.gone.clear()
    there.inbox.pop(A, None), there.inbox.pop(B, None)
    there.engines(A, B)
    for name in (A, B):
        there.finish(name, *submitted(there, name))
    assert reasons(there.read(X)) == [ending] * 21
    there.say(X, wire.submit(99, "p", {}))
    assert len(submitted(there, A) + submitted(there, B)) == 1
    assert there.door.tally.internal_errors == {}
