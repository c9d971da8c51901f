"""How an exchange ends: deadline, outcome, illegal transitions, and every permit back where it came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from turnout.core import options
from turnout.core.errors import IllegalTransition
from turnout.core.lifecycle import State

Make = Callable[..., Any]
Row = tuple[float, str, str]


def test_no_attempt_opens_within_the_last_quarter_of_a_second(scene: Make) -> None:
    scene("a", "b", total_s=10.0).play(
        (100.0, "begin", "open a first"), (109.76, "fails server_error 500", "give up upstream_answered")
    )
    scene("a", "b", total_s=10.0).play(
        (100.0, "begin", "open a first"), (109.74, "fails server_error 500", "open b other")
    )


def test_a_pause_that_would_end_too_late_is_not_begun(scene: Make) -> None:
    scene("a", total_s=10.0).play(
        (100.0, "begin", "open a first"), (108.0, "fails rate_limit 429 1.9", "give up upstream_answered")
    )


def test_a_pause_that_ended_too_late_opens_nothing(scene: Make) -> None:
    scene("a", total_s=10.0).play(
        (100.0, "begin", "open a first"),
        (108.0, "fails rate_limit 429 1.0", "wait until 109"),
        (109.8, "wait_over", "give up upstream_answered"),
    )


# -- N9: what the client hears ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "ending"),
    [
        (["timeout_first_token"], "upstream_timeout"),
        (["timeout_response"], "upstream_timeout"),
        (["timeout_connect"], "upstream_timeout"),
        (["timeout_send"], "upstream_timeout"),
        (["bad_response 200"], "upstream_invalid"),
        (["endpoint_gone"], "upstream_unreachable"),
        (["auth_error 401"], "upstream_credential"),
        (["payment_required 402"], "upstream_credential"),
        (["server_error 500", "timeout_first_token"], "upstream_answered"),
        (["server_error 500", "bad_response 200"], "upstream_answered"),
        (["server_error 500", "auth_error 401"], "upstream_credential"),
        (["auth_error 401", "timeout_first_token"], "upstream_timeout"),
        (["bad_response 301", "timeout_first_token"], "upstream_timeout"),
        (["timeout_first_token", "bad_response 502"], "upstream_invalid"),
    ],
)
def test_n9_the_ending_follows_from_the_last_answer_or_the_last_kind(
    scene: Make, failures: list[str], ending: str
) -> None:
    play = scene(*"abc"[: len(failures)])
    heard = [play.happens("begin", 100.0)]
    heard += [play.happens(f"fails {failure}", 101.0 + number) for number, failure in enumerate(failures)]
    assert heard[-1] == f"give up {ending}"


def test_n9_an_error_inside_a_200_is_no_answer_that_could_be_relayed(scene: Make) -> None:
    scene("a", "b", attempts=2).play(
        (100.0, "begin", "open a first"),
        (100.1, "fails overloaded 200", "open b other"),
        (100.2, "fails server_error 200", "give up upstream_invalid"),
    )


def test_after_the_commit_point_a_failure_interrupts(scene: Make) -> None:
    play = scene("a", "b")
    play.play(
        (100.0, "begin", "open a first"),
        (100.1, "first_byte", "-"),
        (100.1, "committed", "-"),
        (100.2, "fails stream_cut 200", "give up stream_interrupted"),
        (100.2, "closes stream_interrupted", "-"),
    )
    assert play.exchange.attempts[0].committed


def test_n10_every_opened_attempt_is_numbered_and_says_why_it_was_opened(scene: Make) -> None:
    play = scene("a", "b", "c standby")
    play.play(
        (100.0, "begin", "open a first"),
        (100.1, "fails timeout_first_token", "open b other"),
        (100.2, "fails timeout_first_token", "open c standby"),
    )
    assert [(a.no, a.kind) for a in play.exchange.attempts] == [(1, "first"), (2, "other"), (3, "standby")]


# -- illegal transitions ----------------------------------------------------------------------------------------------

REACH: dict[State, tuple[Row, ...]] = {
    State.OPENED: (),
    State.ATTEMPTING: ((100.0, "begin", "open a first"),),
    State.WAITING: ((100.0, "begin", "open a first"), (101.0, "fails server_error 500", "wait until 101.125")),
    State.COMMITTED: ((100.0, "begin", "open a first"), (100.1, "committed", "-")),
    State.CLOSED: ((100.0, "begin", "open a first"), (100.1, "committed", "-"), (100.2, "completed", "-")),
    State.QUEUED: ((99.0, "others 1", "-"), (100.0, "begin", "queue")),
}
LEGAL: dict[State, set[str]] = {
    State.OPENED: {"begin", "closes"},
    State.ATTEMPTING: {"first_byte", "committed", "fails", "completed", "closes"},
    State.WAITING: {"wait_over", "closes"},
    State.COMMITTED: {"first_byte", "fails", "completed", "closes"},
    State.CLOSED: set(),
    State.QUEUED: {"turn", "expires", "closes"},
}
EVENTS = (
    "begin",
    "first_byte",
    "committed",
    "fails server_error 500",
    "completed",
    "wait_over",
    "closes client_gone",
    "turn",
    "expires",
)


def everything(play: Any) -> object:
    exchange, endpoint, budget = play.exchange, play.endpoint("a"), play.budget
    return (
        exchange.state,
        exchange.outcome,
        exchange.ask.tried,
        [(a.is_open, a.ended_s, a.error_kind, a.first_byte_s, a.committed, a.http_status) for a in exchange.attempts],
        (endpoint.in_flight, endpoint.pending_prefill_tokens, endpoint.active_tokens, endpoint.attempts_total),
        endpoint.breaker.state,
        (budget._started, budget._extra),
    )


def test_the_table_of_this_test_knows_every_state() -> None:
    assert set(REACH) == set(State) == set(LEGAL)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", State)
def test_an_illegal_transition_raises_and_changes_nothing(scene: Make, state: State, event: str) -> None:
    play = scene("a full=1", admission=options.Admission())
    play.play(*REACH[state])
    assert play.exchange.state is state
    if event.split(maxsplit=1)[0] in LEGAL[state]:
        play.happens(event, 101.125)
        return
    before = everything(play)
    with pytest.raises(IllegalTransition):
        play.happens(event, 101.125)
    assert everything(play) == before


@pytest.mark.parametrize("event", ["first_byte", "committed", "fails server_error 500", "completed"])
def test_an_attempt_that_has_failed_takes_no_more_events(scene: Make, event: str) -> None:
    play = scene("a")
    play.play((100.0, "begin", "open a first"), (100.1, "fails bad_request 400", "give up upstream_answered"))
    before = everything(play)
    with pytest.raises(IllegalTransition):
        play.happens(event, 101.0)
    assert everything(play) == before


# -- T15: permits -----------------------------------------------------------------------------------------------------

STREAMING: tuple[Row, ...] = (
    (100.0, "begin", "open a first"),
    (100.1, "first_byte", "-"),
    (100.1, "committed", "-"),
)
EXITS: dict[str, tuple[Row, ...]] = {
    "reply": (*STREAMING, (100.2, "completed", "-")),
    "reply without a first byte": ((100.0, "begin", "open a first"), (100.2, "completed", "-")),
    "client gone before the first byte": ((100.0, "begin", "open a first"), (100.1, "closes client_gone", "-")),
    "client gone in the stream": (*STREAMING, (100.2, "closes client_gone", "-")),
    "client gone in a pause": (
        (100.0, "begin", "open a first"),
        (100.1, "fails timeout_first_token", "open b other"),
        (100.2, "fails server_error 500", "wait until 100.325"),
        (100.3, "closes client_gone", "-"),
    ),
    "the client's own fault": (
        (100.0, "begin", "open a first"),
        (100.1, "fails bad_request 400", "give up upstream_answered"),
        (100.1, "closes upstream_answered", "-"),
    ),
    "everything fails": (
        (100.0, "begin", "open a first"),
        (100.1, "fails connection_reset", "open b other"),
        (100.2, "fails timeout_first_token", "give up upstream_timeout"),
        (100.2, "closes upstream_timeout", "-"),
    ),
    "cut stream": (
        *STREAMING,
        (100.2, "fails stream_cut 200", "give up stream_interrupted"),
        (100.2, "closes stream_interrupted", "-"),
    ),
    "deadline": ((100.0, "begin", "open a first"), (700.0, "closes deadline_exceeded deadline", "-")),
    "an exception of ours": (*STREAMING, (100.2, "closes internal_error internal", "-")),
    "endpoint removed before the answer": (
        (100.0, "begin", "open a first"),
        (100.1, "leaves a", "-"),
        (100.2, "completed", "-"),
    ),
    "endpoint removed before the failure": (
        (100.0, "begin", "open a first"),
        (100.1, "leaves a", "-"),
        (100.2, "fails endpoint_gone", "open b other"),
        (100.3, "completed", "-"),
    ),
    "never scheduled": ((100.0, "closes client_gone", "-"),),
}


@pytest.mark.parametrize("name", EXITS)
def test_permits_return_on_every_exit(scene: Make, name: str) -> None:
    play = scene("a", "b")
    endpoints = list(play.fleet.endpoints.values())
    play.play(*EXITS[name])
    assert [(e.in_flight, e.pending_prefill_tokens, e.active_tokens) for e in endpoints] == [(0, 0, 0)] * 2


def test_permits_of_a_replaced_endpoint_return_to_its_own_incarnation(scene: Make) -> None:
    play = scene("a")
    play.play((100.0, "begin", "open a first"))
    old = play.endpoint("a")
    play.join("a", 100.1)
    new = play.endpoint("a")
    assert (old.in_flight, new.in_flight) == (1, 0)
    play.play((100.2, "completed", "-"))
    assert (old.in_flight, new.in_flight) == (0, 0)


def test_one_exchange_gives_back_only_its_own(scene: Make) -> None:
    play = scene("a")
    other = play.another()
    other.begin(100.0)
    play.play(*STREAMING, (100.2, "completed", "-"))
    endpoint = play.endpoint("a")
    assert (endpoint.in_flight, endpoint.active_tokens) == (1, 300)
    assert endpoint.pending_prefill_tokens == other.current.uncached


@pytest.mark.parametrize("ending", ["closes client_gone", "fails bad_request 400", "fails rate_limit 429"])
def test_a_half_open_slot_comes_back_from_every_neutral_end(scene: Make, ending: str) -> None:
    play = scene("a")
    play.play((90.0, "opens a", "-"), (100.0, "begin", "open a first"))
    breaker = play.endpoint("a").breaker
    assert not breaker.allow(100.1)
    play.happens(ending, 100.2)
    assert breaker.allow(100.3)


def test_a_failure_before_the_first_byte_takes_its_prediction_back(scene: Make) -> None:
    play = scene("a", "b")
    play.play((100.0, "begin", "open a first"), (100.1, "fails connection_reset", "open b other"))
    a, b = play.endpoint("a"), play.endpoint("b")
    assert play.fleet.index.match(play.exchange.ask.keys, a.bit | b.bit) == {b.bit: 3}


def test_what_an_engine_has_read_stays_predicted_after_a_cancel(scene: Make) -> None:
    play = scene("a")
    play.play((100.0, "begin", "open a first"), (100.1, "first_byte", "-"), (100.2, "closes client_gone", "-"))
    bit = play.endpoint("a").bit
    assert play.fleet.index.match(play.exchange.ask.keys, bit) == {bit: 3}


def test_an_attempt_that_ended_at_instant_zero_has_ended(scene: Make) -> None:
    play = scene("a", "b")
    play.play((-1.0, "begin", "open a first"), (0.0, "fails server_error 500", "open b other"))
    play.play((0.0, "closes client_gone", "-"))
    assert [play.endpoint(name).in_flight for name in "ab"] == [0, 0]
