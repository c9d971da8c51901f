"""Requests of native clients have one row each: opened before their first attempt, closed by whatever ends them."""

from __future__ import annotations

import pytest

from turnout.coordinator.books import Books
from turnout.coordinator.rehearsal import Rehearsal
from turnout.core.coordinator_options import Coordinator
from turnout.core.facts import CallFact, OpenedCall
from turnout.engines import megatron as wire
from turnout.engines.megatron import Header

A, B, X = b"mp-coord-0", b"mp-coord-1", b"client"


class Ledger:
    def __init__(self) -> None:
        self.opened: list[OpenedCall] = []
        self.facts: list[CallFact] = []
        self.there = Rehearsal(Coordinator(block_tokens=2))
        self.there.door.requests.books = Books(
            accepted=self.opened.append,
            record=self.facts.append,
            model="m",
            router_id="r",
            clock=lambda: self.there.now,
            now_ms=lambda: 1_000_000 + int(self.there.now * 1000),
            entropy=lambda: 7,
        )

    def sent(self, engine: bytes) -> list[int]:
        return [message[1] for message in self.there.read(engine) if message[0] == Header.SUBMIT_REQUEST]


@pytest.fixture
def ledger() -> Ledger:
    made = Ledger()
    made.there.engines(A)
    made.there.clients(X)
    return made


def test_completed_request_is_one_ok_row(ledger: Ledger) -> None:
    ledger.there.say(X, wire.submit(5, [1, 2, 3, 4], {}))
    (opened,) = ledger.opened
    assert (opened.request_id, opened.selected_model, opened.est_tokens) == ("5", "m", 4)
    ledger.there.finish(A, *ledger.sent(A))
    (fact,) = ledger.facts
    assert (fact.call_id, fact.outcome, fact.cls, fact.http_status) == (opened.call_id, "completed", "ok", 200)
    (attempt,) = fact.attempts
    assert attempt.ok
    assert attempt.route == fact.route
    assert attempt.route is not None
    assert attempt.route.replica == "mp-coord-0"


def test_request_that_is_sent_again_has_both_attempts(ledger: Ledger) -> None:
    ledger.there.say(X, wire.submit(0, [1, 2], {}))
    ledger.there.engines(B)
    ledger.there.say(A, wire.DISCONNECT)
    ledger.there.finish(B, *ledger.sent(B))
    (fact,) = ledger.facts
    assert [(a.attempt_no, a.ok, a.error_kind) for a in fact.attempts] == [(1, False, "endpoint_gone"), (2, True, "")]
    assert fact.outcome == "completed"


def test_every_end_is_recorded_once(ledger: Ledger) -> None:
    for number in range(2):
        ledger.there.say(X, wire.submit(number, [1, 2], {}))
    ledger.there.say(X, wire.DISCONNECT)
    assert [fact.outcome for fact in ledger.facts] == ["client_gone", "client_gone"]
    assert [fact.call_id for fact in ledger.facts] == [opened.call_id for opened in ledger.opened]
    ledger.there.say(A, wire.DISCONNECT)
    assert len(ledger.facts) == 2


def test_request_without_an_engine_ends_as_such(ledger: Ledger) -> None:
    ledger.there.say(A, wire.DISCONNECT)
    ledger.there.say(X, wire.submit(0, [1, 2], {}))
    ledger.there.wait(90.0, step_s=1.0)
    assert [(fact.outcome, fact.attempts) for fact in ledger.facts] == [("no_endpoint", ())]
