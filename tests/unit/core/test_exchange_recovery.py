"""Waiting for a place, and what follows when a retry alone does not help: transcripts of an exchange."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from turnout.core import options
from turnout.core.errors import ErrorKind, Outcome
from turnout.core.lifecycle import GiveUp, State

Make = Callable[..., Any]
GATE = options.Admission()


# -- admission --------------------------------------------------------------------------------------------------------


def test_queue_verdict_has_a_queue(scene: Make) -> None:
    """What waits is served when a place is free, or ends by its time."""
    play = scene("a full=1", admission=GATE)
    play.play(
        (100.0, "others 1", "-"),
        (100.0, "begin", "queue"),
        (101.0, "turn", "-"),
        (102.0, "another_ends", "-"),
        (102.0, "turn", "open a first"),
        (103.0, "completed", "-"),
    )
    assert (play.gate.queue.size, play.gate.queued(), play.endpoint("a").in_flight) == (0, 0, 0)
    play = scene("a full=1", admission=GATE)
    play.play((100.0, "others 1", "-"), (100.0, "begin", "queue"), (130.0, "expires", "give up queue_expired"))
    assert play.gate.queue.size == 0


def test_leaving_client_frees_capacity(scene: Make) -> None:
    play = scene("a full=1", admission=GATE)
    play.play((100.0, "others 1", "-"), (100.0, "begin", "queue"), (101.0, "closes client_gone", "-"))
    assert (play.gate.queue.size, play.gate.queued(), play.gate.queued_bytes) == (0, 0, 0)
    play = scene("a full=1", admission=GATE)
    play.play((100.0, "begin", "open a first"), (101.0, "closes client_gone", "-"))
    assert play.endpoint("a").in_flight == 0


def test_nobody_overtakes_those_who_wait(scene: Make) -> None:
    play = scene("a full=1", admission=GATE)
    play.play((100.0, "others 1", "-"), (100.0, "begin", "queue"), (101.0, "another_ends", "-"))
    late = play.another()
    assert type(late.begin(101.0)).__name__ == "Queued"
    assert play.gate.queue.head(101.0).owner is play


def test_an_empty_pool_refuses_or_waits_as_configured(scene: Make) -> None:
    scene("a", admission=GATE).play((99.0, "a is unreachable", "-"), (100.0, "begin", "give up no_endpoint"))
    waits = options.Admission(wait_for_endpoint=True)
    play = scene("a", admission=waits)
    play.play((99.0, "a is unreachable", "-"), (100.0, "begin", "queue"), (101.0, "answers a", "-"))
    # Slow start lets a tenth of the traffic through, and alone it is relaxed.
    play.play((101.0, "turn", "open a first"))


def test_a_refusal_says_when_to_come_back(scene: Make) -> None:
    play = scene("a full=1", admission=options.Admission(queue_max=1))
    play.play((100.0, "others 2", "-"))
    refused = play.exchange.begin(100.0)
    assert isinstance(refused, GiveUp)
    assert (refused.outcome, refused.retry_after_s) == (Outcome.QUEUE_FULL, 4)


def test_q10_anonymous_requests_leave_one_place(scene: Make) -> None:
    play = scene("a full=3", admission=GATE)
    exchanges = [play.another() for _ in range(3)]
    kinds = [type(exchange.begin(100.0, anonymous=True)).__name__ for exchange in exchanges]
    # The third one asks at the gate; its applicant is a named one here, and so it gets the place.
    assert kinds == ["Open", "Open", "Open"]
    assert play.gate.anonymous == 2
    for exchange in exchanges:
        exchange.close(Outcome.CLIENT_GONE, 101.0)
    assert play.gate.anonymous == 0


def test_q10_a_limited_tenant_holds_its_share_until_the_end(scene: Make) -> None:
    play = scene("a", admission=options.Admission(tenant_max_in_flight=1))
    assert type(play.exchange.begin(100.0, limited=True)).__name__ == "Open"
    second = play.another()
    refused = second.begin(100.1, limited=True)
    assert (refused.outcome, refused.retry_after_s) == (Outcome.PRINCIPAL_OVER_SHARE, 2)
    second.close(refused.outcome, 100.1)
    play.play((101.0, "completed", "-"))
    assert len(play.gate.held) == 0
    assert type(play.another().begin(101.0, limited=True)).__name__ == "Open"


def test_a_retry_waits_for_a_place_before_everybody_else(scene: Make) -> None:
    play = scene("a full=1", "b full=1", admission=GATE)
    play.play((100.0, "begin", "open a first"), (100.0, "others 2", "-"))
    assert play.gate.queue.size == 1
    play.play((101.0, "fails timeout_first_token", "queue"))
    assert play.gate.queue.head(101.0).owner is play
    assert play.gate.queue.size == 2
    play.open_others[0].completed(None, 102.0, 200)
    play.play((102.0, "turn", "open b other"), (103.0, "completed", "-"))


def test_a_retry_that_waits_in_vain_ends_with_what_it_knows(scene: Make) -> None:
    play = scene("a full=1", "b full=1", admission=GATE)
    play.play(
        (100.0, "begin", "open a first"),
        (100.0, "others 1", "-"),
        (101.0, "fails timeout_first_token", "queue"),
        (131.0, "expires", "give up upstream_timeout"),
    )


# -- poison -----------------------------------------------------------------------------------------------------------


def test_poison_kills_at_most_two(scene: Make) -> None:
    play = scene("a", "b", "c")
    play.play((100.0, "begin", "open a first"), (100.1, "fails connection_reset", "open b other"))
    last = play.exchange.attempt_failed(ErrorKind.CONNECTION_RESET, 100.2)
    assert (last.outcome, last.code) == (Outcome.UPSTREAM_UNREACHABLE, "poison_suspected")


def test_two_resets_of_one_endpoint_are_one_death(scene: Make) -> None:
    scene("a").play(
        (100.0, "begin", "open a first"),
        (100.1, "fails connection_reset", "wait until 100.225"),
        (100.225, "wait_over", "open a same"),
        (100.3, "fails connection_reset", "wait until 100.55"),
    )


def test_refused_connections_are_nobody_s_poison(scene: Make) -> None:
    play = scene("a", "b", "c")
    play.exchange.begin(100.0)
    for now in (100.1, 100.2):
        following = play.exchange.attempt_failed(ErrorKind.CONNECT_ERROR, now)
        assert type(following).__name__ == "Open"


@pytest.mark.parametrize("gone_at", [100.0, 105.0, 110.0])
def test_n8_an_endpoint_that_cannot_be_reached_any_more_died_of_what_timed_out_there(
    scene: Make, gone_at: float
) -> None:
    play = scene("a", "b", "c")
    play.play((100.0, "begin", "open a first"), (gone_at, "refuses a", "-"))
    play.play((110.0, "fails timeout_first_token", "open b other"), (119.0, "refuses b", "-"))
    last = play.exchange.attempt_failed(ErrorKind.TIMEOUT_FIRST_TOKEN, 120.0)
    assert (last.outcome, last.code) == (Outcome.UPSTREAM_UNREACHABLE, "poison_suspected")


def test_n8_a_death_is_noticed_within_a_second_of_the_end_and_not_later(scene: Make) -> None:
    for gone_at, following in ((110.9, "give up upstream_unreachable"), (111.1, "open c other")):
        play = scene("a", "b", "c")
        play.play((100.0, "begin", "open a first"), (110.0, "fails timeout_first_token", "open b other"))
        play.play((gone_at, "refuses a", "-"), (112.0, "fails connection_reset", following))


def test_n8_an_endpoint_that_was_gone_before_did_not_die_of_it(scene: Make) -> None:
    play = scene("a", "b", "c")
    play.play((99.0, "refuses b", "-"), (99.5, "answers b", "-"), (100.0, "begin", "open a first"))
    play.play((100.1, "fails connection_reset", "open c other"), (110.0, "fails timeout_first_token", "open b other"))


def test_n8_a_death_that_is_noticed_while_the_next_attempt_waits_ends_it(scene: Make) -> None:
    play = scene("a", "b")
    play.play((100.0, "begin", "open a first"), (100.1, "fails connection_reset", "open b other"))
    play.play((100.2, "fails upstream_408 408", "wait until 100.325"), (100.3, "refuses b", "-"))
    last = play.exchange.wait_over(100.325)
    assert (last.outcome, last.code) == (Outcome.UPSTREAM_UNREACHABLE, "poison_suspected")


def test_n8_a_death_that_is_noticed_in_the_queue_ends_it_and_gives_the_slot_back(scene: Make) -> None:
    play = scene("a full=1", "b full=1", "c full=1", admission=GATE)
    play.play((100.0, "begin", "open a first"), (100.0, "others 2", "-"))
    play.open_others[1].completed(None, 100.1, 200)
    play.play((100.2, "fails connection_reset", "open c other"), (100.3, "fails timeout_first_token", "queue"))
    play.play((100.4, "refuses c", "-"), (100.5, "turn", "give up upstream_unreachable"))
    assert (play.gate.queue.size, play.gate.queued()) == (0, 0)


# -- rescue -----------------------------------------------------------------------------------------------------------

BROKEN = (
    (100.0, "begin", "open a first"),
    (100.1, "first_byte", "-"),
    (100.1, "committed", "-"),
    (101.0, "fails stream_cut 200", "give up stream_interrupted"),
)


def test_r1_a_broken_stream_is_joined_once_by_an_untried_endpoint(scene: Make) -> None:
    play = scene("a", "b", "c")
    play.play(
        *BROKEN, (101.0, "rescue", "open b resume"), (102.0, "fails stream_cut 200", "give up upstream_unreachable")
    )
    play = scene("a", "b", "c")
    play.play(
        *BROKEN, (101.0, "rescue", "open b resume"), (102.0, "fails timeout_stall 200", "give up stream_interrupted")
    )
    play.play((102.0, "rescue", "-"))
    play.play((103.0, "closes stream_interrupted", "-"))
    assert [play.endpoint(name).in_flight for name in "abc"] == [0, 0, 0]


def test_r1_a_standby_endpoint_may_help(scene: Make) -> None:
    scene("a", "b standby").play(*BROKEN, (101.0, "rescue", "open b resume"), (102.0, "completed", "-"))


def test_r1_when_those_who_could_help_are_full_the_stream_waits_for_a_place(scene: Make) -> None:
    play = scene("a full=1", "b full=1", admission=GATE)
    play.play(BROKEN[0], (100.0, "others 1", "-"), *BROKEN[1:], (101.0, "rescue", "queue"))
    play.play((102.0, "another_ends", "-"), (102.0, "turn", "open b resume"), (103.0, "completed", "-"))
    play = scene("a full=1", "b full=1", admission=GATE)
    play.play(BROKEN[0], (100.0, "others 1", "-"), *BROKEN[1:], (101.0, "rescue", "queue"))
    play.play((131.0, "expires", "give up stream_interrupted"))
    assert play.gate.queue.size == 0


def test_r1_attempts_and_budget_hold_for_a_rescue(scene: Make) -> None:
    none = {"budget_ratio": 0.0, "budget_floor_per_s": 0.0}
    scene("a", "b", **none).play(*BROKEN, (101.0, "rescue", "-"))
    scene("a", "b", attempts=1).play(*BROKEN, (101.0, "rescue", "-"))
    scene("a", "b", total_s=1.1).play(*BROKEN, (101.0, "rescue", "-"))
    scene("a").play(*BROKEN, (101.0, "rescue", "-"))


def test_r1_a_fallback_model_may_join_when_no_replica_can(scene: Make) -> None:
    for endpoints, event, following in (
        (("a", "b"), "rescue models", "open b resume"),
        (("a", "b"), "rescue models b", "open z resume"),
        (("a",), "rescue models", "open z resume"),
        (("a",), "rescue models z", "-"),
        (("a",), "rescue", "-"),
    ):
        play = scene(*endpoints, "z model=n", fallback=("n",), admission=GATE)
        play.play(*BROKEN, (101.0, event, following))
        if following == "open z resume":
            assert play.exchange.ask.model == "n"
            play.play((102.0, "completed", "-"))
            assert [attempt.model for attempt in play.exchange.attempts] == ["m", "n"]
            assert play.endpoint("z").in_flight == 0


def test_r1_a_fallback_model_may_join_when_the_first_one_has_used_up_its_attempts(scene: Make) -> None:
    play = scene("a", "b", "z model=n", fallback=("n",), attempts_per_model=1)
    play.play(*BROKEN, (101.0, "rescue models", "open z resume"))
    play = scene("a", "b", "z model=n", fallback=("n",), models=1)
    play.play(*BROKEN, (101.0, "rescue models a b", "-"))


def test_r3_a_refused_continuation_falls_through_on_the_same_endpoint(scene: Make) -> None:
    play = scene("a", "b")
    play.play(
        *BROKEN, (101.0, "rescue", "open b resume"), (101.1, "fails bad_request 400", "give up stream_interrupted")
    )
    play.play((101.1, "rejoin", "open b resume"), (102.0, "completed", "-"))
    assert [attempt.kind for attempt in play.exchange.attempts] == ["first", "resume", "resume"]


def test_a_held_stream_that_breaks_is_tried_elsewhere(scene: Make) -> None:
    """`guarded` and `buffered`: what the client has not seen can be replaced."""
    for kind in ("stream_cut", "timeout_stall"):
        scene("a", "b").play((100.0, "begin", "open a first"), (101.0, f"fails {kind} 200", "open b other"))


# -- hedging ----------------------------------------------------------------------------------------------------------


def test_z1_one_duplicate_before_the_commit_point(scene: Make) -> None:
    play = scene("a", "b", "c")
    play.play((100.0, "begin", "open a first"), (100.5, "hedge", "open b hedge"), (100.6, "hedge", "-"))
    first, hedge = play.exchange.attempts
    play.exchange.first_byte(100.7, hedge)
    play.exchange.committed(hedge)
    play.exchange.hedge_lost(first, 100.7)
    play.play((101.0, "completed", "-"))
    assert (first.error_kind, first.counted, hedge.error_kind) == (ErrorKind.HEDGE_LOST, False, None)
    assert [play.endpoint(name).in_flight for name in "abc"] == [0, 0, 0]
    assert play.endpoint("a").breaker.plain


def test_z1_when_one_of_two_fails_the_other_goes_on(scene: Make) -> None:
    play = scene("a", "b", "c")
    play.play(
        (100.0, "begin", "open a first"),
        (100.5, "hedge", "open b hedge"),
        (100.6, "fails at a server_error 500", "go on"),
        (100.7, "fails at b server_error 500", "open c other"),
    )


def test_z2_not_after_the_commit_point_and_not_to_a_busy_endpoint(scene: Make) -> None:
    scene("a", "b").play((100.0, "begin", "open a first"), (100.1, "committed", "-"), (100.5, "hedge", "-"))
    busy = scene("a", "b full=2")
    busy.endpoint("b").in_flight = 1
    busy.play((100.0, "begin", "open a first"), (100.5, "hedge", "-"))


# -- other models -----------------------------------------------------------------------------------------------------


def test_n6_another_model_is_asked_when_no_endpoint_of_the_first_is_left(scene: Make) -> None:
    play = scene("a", "z model=n", fallback=("n",))
    play.play((100.0, "begin", "open a first"), (110.0, "fails timeout_first_token", "open z model"))
    assert play.exchange.ask.model == "n"
    play.play((111.0, "completed", "-"))


def test_n2_the_same_endpoint_is_asked_once_more_before_another_model(scene: Make) -> None:
    scene("a", "z model=n", fallback=("n",)).play(
        (100.0, "begin", "open a first"),
        (100.1, "fails server_error 500", "wait until 100.225"),
        (100.225, "wait_over", "open a same"),
        (100.3, "fails server_error 500", "open z model"),
    )


def test_n6_the_anonymous_principal_moves_its_place_to_the_other_model(scene: Make) -> None:
    play = scene("a", "z model=n", fallback=("n",), admission=GATE, anonymous=True)
    assert type(play.exchange.begin(100.0, anonymous=True)).__name__ == "Open"
    play.play((110.0, "fails timeout_first_token", "open z model"))
    other = play.exchange.gate
    assert other is not play.gate
    assert (play.gate.anonymous, other.anonymous) == (0, 1)
    play.play((111.0, "completed", "-"))
    assert (play.gate.anonymous, other.anonymous) == (0, 0)


def test_n6_a_limited_tenant_moves_its_place_to_the_other_model(scene: Make) -> None:
    play = scene("a", "z model=n", fallback=("n",), admission=options.Admission(tenant_max_in_flight=1))
    assert type(play.exchange.begin(100.0, limited=True)).__name__ == "Open"
    play.play((110.0, "fails timeout_first_token", "open z model"))
    other = play.exchange.gate
    assert (len(play.gate.held), other.held.of("t")) == (0, 1)
    play.play((111.0, "completed", "-"))
    assert (len(play.gate.held), len(other.held)) == (0, 0)


def test_n6_a_tenant_that_holds_its_share_of_the_other_model_gets_no_more_of_it(scene: Make) -> None:
    play = scene("a", "z model=n", fallback=("n",), admission=options.Admission(tenant_max_in_flight=1))
    play.other_gate.held.take("t")
    assert type(play.exchange.begin(100.0, limited=True)).__name__ == "Open"
    play.play((110.0, "fails timeout_first_token", "give up upstream_timeout"))


def test_n6_a_plain_refusal_goes_nowhere(scene: Make) -> None:
    play = scene("a", "z model=n", fallback=("n",))
    play.play((100.0, "begin", "open a first"), (100.1, "fails bad_request 400", "give up upstream_answered"))


def test_n1_three_models_and_six_attempts_at_most(scene: Make) -> None:
    play = scene("a", "x model=n1", "y model=n2", "z model=n3", fallback=("n1", "n2", "n3"))
    opened = [play.exchange.begin(100.0)]
    for number in range(10):
        opened.append(play.exchange.attempt_failed(ErrorKind.TIMEOUT_FIRST_TOKEN, 101.0 + number))
        if isinstance(opened[-1], GiveUp):
            break
    assert [attempt.endpoint.name for attempt in play.exchange.attempts] == ["a", "x", "y"]
    assert play.exchange.state is State.ATTEMPTING


@pytest.mark.parametrize("ending", [Outcome.CLIENT_GONE, Outcome.SHUTDOWN, Outcome.DEADLINE_EXCEEDED])
def test_permits_return_on_every_exit(scene: Make, ending: Outcome) -> None:
    """From every state that holds something."""
    ways = {
        "queued": ("others 1", "begin"),
        "attempting": ("begin",),
        "hedged": ("begin", "hedge"),
        "committed": ("begin", "committed"),
        "resumed": ("begin", "committed", "fails stream_cut 200", "rescue"),
        "waiting": ("begin", "fails server_error 500"),
    }
    for way, events in ways.items():
        endpoints = ("a full=1",) if way in {"queued", "waiting"} else ("a", "b", "c")
        play = scene(*endpoints, admission=options.Admission(tenant_max_in_flight=5))
        for event in events:
            play.happens(event, 100.0)
        play.exchange.close(ending, 101.0)
        others = len(getattr(play, "open_others", ()))
        assert sum(e.in_flight for e in play.fleet.endpoints.values()) == others, way
        assert (play.gate.queue.size, len(play.gate.held), play.gate.anonymous) == (0, 0, 0), way
