"""The attempt loop of resilience §3 as transcripts: (instant, what happens, what must follow)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from turnout.core.errors import RETRY, ErrorKind, Outcome
from turnout.core.usage import Usage

Make = Callable[..., Any]


# -- N1–N4, N7: which attempt comes next ------------------------------------------------------------------------------


def test_a_complete_answer_needs_one_attempt(scene: Make) -> None:
    play = scene("a", "b")
    play.play((100.0, "begin", "open a first"), (100.2, "committed", "-"), (100.9, "completed", "-"))
    assert play.exchange.outcome is Outcome.COMPLETED
    assert play.exchange.attempts[0].usage == Usage(10, 5)


def test_n2_another_endpoint_comes_first_and_at_once(scene: Make) -> None:
    scene("a", "b").play((100.0, "begin", "open a first"), (100.1, "fails server_error 500", "open b other"))


def test_n1_three_attempts_on_one_model(scene: Make) -> None:
    scene("a", "b", "c", "d").play(
        (100.0, "begin", "open a first"),
        (100.1, "fails server_error 500", "open b other"),
        (100.2, "fails server_error 500", "open c other"),
        (100.3, "fails server_error 500", "give up upstream_answered"),
    )


def test_n1_the_limit_of_the_exchange_holds_below_the_limit_of_the_model(scene: Make) -> None:
    scene("a", "b", "c", attempts=2).play(
        (100.0, "begin", "open a first"),
        (100.1, "fails server_error 500", "open b other"),
        (100.2, "fails server_error 500", "give up upstream_answered"),
    )


def test_n4_the_same_endpoint_is_asked_again_after_growing_pauses(scene: Make) -> None:
    scene("a").play(
        (100.0, "begin", "open a first"),
        (101.0, "fails server_error 500", "wait until 101.125"),
        (101.125, "wait_over", "open a same"),
        (102.0, "fails server_error 500", "wait until 102.25"),
        (102.25, "wait_over", "open a same"),
        (103.0, "fails server_error 500", "give up upstream_answered"),
    )


def test_n3_a_tried_endpoint_returns_only_as_the_same_endpoint(scene: Make) -> None:
    scene("a", "b").play(
        (100.0, "begin", "open a first"),
        (101.0, "fails server_error 500", "open b other"),
        (102.0, "fails server_error 500", "wait until 102.125"),
        (102.125, "wait_over", "open b same"),
        (103.0, "fails server_error 500", "give up upstream_answered"),
    )


def test_n2_same_endpoint_once_then_standby(scene: Make) -> None:
    scene("a", "b standby").play(
        (100.0, "begin", "open a first"),
        (101.0, "fails overloaded 503", "wait until 101.125"),
        (101.125, "wait_over", "open a same"),
        (102.0, "fails overloaded 503", "open b standby"),
        (103.0, "completed", "-"),
    )


def test_n2_a_standby_that_cannot_be_reached_is_no_reason_to_stop_asking(scene: Make) -> None:
    scene("a", "b standby").play(
        (99.0, "b is unreachable", "-"),
        (100.0, "begin", "open a first"),
        (101.0, "fails server_error 500", "wait until 101.125"),
        (101.125, "wait_over", "open a same"),
        (102.0, "fails server_error 500", "wait until 102.25"),
        (102.25, "wait_over", "open a same"),
    )


def test_n2_a_silent_endpoint_is_not_asked_twice(scene: Make) -> None:
    scene("a", "b standby").play(
        (100.0, "begin", "open a first"), (110.0, "fails timeout_first_token", "open b standby")
    )


def test_n2_an_endpoint_believed_broken_comes_last(scene: Make) -> None:
    scene("a", "b").play(
        (99.0, "b is probe_failing", "-"),
        (100.0, "begin", "open a first"),
        (110.0, "fails timeout_first_token", "open b relaxed"),
        (111.0, "fails server_error 500", "wait until 111.125"),
    )


AFTER_COMMIT = (ErrorKind.STREAM_CUT, ErrorKind.TIMEOUT_STALL)


@pytest.mark.parametrize("kind", [k for k in ErrorKind if not RETRY[k].other and k not in AFTER_COMMIT])
def test_some_failures_end_the_exchange_at_once(scene: Make, kind: ErrorKind) -> None:
    scene("a", "b").play((100.0, "begin", "open a first"), (100.1, f"fails {kind} 400", "give up upstream_answered"))


@pytest.mark.parametrize("kind", [k for k in ErrorKind if RETRY[k].other])
def test_every_kind_that_may_go_elsewhere_does(scene: Make, kind: ErrorKind) -> None:
    scene("a", "b").play((100.0, "begin", "open a first"), (100.1, f"fails {kind}", "open b other"))


@pytest.mark.parametrize("kind", [k for k in ErrorKind if RETRY[k].other and not RETRY[k].same])
def test_kinds_without_a_second_chance_never_come_back_to_the_endpoint(scene: Make, kind: ErrorKind) -> None:
    play = scene("a")
    play.happens("begin", 100.0)
    assert play.happens(f"fails {kind}", 100.1).startswith("give up")


@pytest.mark.parametrize("change", ["draining", "gone", "unreachable"])
def test_n7_an_endpoint_that_left_during_the_pause_is_not_asked(scene: Make, change: str) -> None:
    scene("a").play(
        (100.0, "begin", "open a first"),
        (101.0, "fails server_error 500", "wait until 101.125"),
        (101.1, f"a is {change}", "-"),
        (101.125, "wait_over", "give up upstream_answered"),
    )


def test_n7_a_breaker_that_opened_during_the_pause_is_respected(scene: Make) -> None:
    scene("a", "b standby").play(
        (100.0, "begin", "open a first"),
        (101.0, "fails server_error 500", "wait until 101.125"),
        (101.1, "opens a", "-"),
        (101.125, "wait_over", "open b standby"),
    )


def test_n7_the_fault_that_opens_the_breaker_is_the_last_one_there(scene: Make) -> None:
    play = scene("a", "b standby")
    breaker = play.endpoint("a").breaker
    for _ in range(2):
        breaker.fault(breaker.opened(99.0), 99.0)
    play.play((100.0, "begin", "open a first"), (101.0, "fails server_error 500", "open b standby"))


# -- Retry-After and cooldown -----------------------------------------------------------------------------------------


def test_y1_the_same_endpoint_is_waited_for_as_long_as_it_asked(scene: Make) -> None:
    scene("a").play(
        (100.0, "begin", "open a first"),
        (101.0, "fails rate_limit 429 2.0", "wait until 103"),
        (103.0, "wait_over", "open a same"),
    )


def test_y1_a_long_retry_after_is_not_waited_for(scene: Make) -> None:
    play = scene("a")
    play.play((100.0, "begin", "open a first"), (101.0, "fails rate_limit 429 10.5", "give up upstream_answered"))
    assert play.exchange.retry_after_s == 10.5


def test_y2_the_shortest_retry_after_of_all_attempts_is_kept(scene: Make) -> None:
    play = scene("a", "b", "c")
    play.play(
        (100.0, "begin", "open a first"),
        (101.0, "fails overloaded 503 30", "open b other"),
        (102.0, "fails overloaded 503 20", "open c other"),
        (103.0, "fails overloaded 503", "give up upstream_answered"),
    )
    assert play.exchange.retry_after_s == 20.0


@pytest.mark.parametrize(
    ("failure", "until"),
    [
        ("rate_limit 429", 103.0),
        ("rate_limit 429 0.1", 102.0),
        ("rate_limit 429 7", 108.0),
        ("rate_limit 429 3600", 161.0),
        ("overloaded 503 7", 108.0),
        ("overloaded 503", 0.0),
        ("server_error 500 7", 0.0),
    ],
)
def test_y3_refusals_put_the_endpoint_in_cooldown(scene: Make, failure: str, until: float) -> None:
    play = scene("a", "b")
    play.play((100.0, "begin", "open a first"), (101.0, f"fails {failure}", "open b other"))
    assert play.endpoint("a").cooldown_until == until


def test_y3_the_next_exchange_avoids_an_endpoint_in_cooldown(scene: Make) -> None:
    play = scene("a", "b")
    play.play(
        (100.0, "begin", "open a first"), (101.0, "fails rate_limit 429", "open b other"), (101.1, "completed", "-")
    )
    assert play.next_picks(101.5) == "open b first"
    assert play.next_picks(103.5) == "open a first"


# -- context, lost models, unreachable --------------------------------------------------------------------------------


def test_context_overflow_goes_to_a_larger_context_only(scene: Make) -> None:
    scene("a context=1000", "b context=1000", "c context=2000").play(
        (100.0, "begin", "open a first"),
        (100.1, "fails context_overflow 400", "open c other"),
        (100.2, "fails context_overflow 400", "give up upstream_answered"),
    )


def test_context_overflow_may_try_an_unknown_context(scene: Make) -> None:
    scene("a context=1000", "b context=900", "c").play(
        (100.0, "begin", "open a first"), (100.1, "fails context_overflow 400", "open c other")
    )


def test_context_overflow_with_nowhere_larger_is_the_answer(scene: Make) -> None:
    scene("a context=1000", "b context=1000").play(
        (100.0, "begin", "open a first"), (100.1, "fails context_overflow 400", "give up upstream_answered")
    )


def test_d3_a_late_answer_of_an_endpoint_that_delivers_to_others_is_no_fault(scene: Make) -> None:
    for busy, state in ((False, "open"), (True, "closed")):
        play = scene("a", attempts_per_model=1)
        for _ in range(3):
            exchange = play.another()
            exchange.begin(100.0)
            exchange.attempt_failed(ErrorKind.TIMEOUT_RESPONSE, 400.0, busy=busy)
        assert play.endpoint("a").breaker.state == state


@pytest.mark.parametrize("kind", ["auth_error", "payment_required"])
def test_an_endpoint_that_refuses_our_credential_is_out_for_a_minute(scene: Make, kind: str) -> None:
    play = scene("a", "b")
    play.play((100.0, "begin", "open a first"), (100.1, f"fails {kind} 401", "open b other"))
    assert play.endpoint("a").refused
    assert {play.next_picks(now) for now in (100.2, 130.0, 160.0)} == {"open b first"}
    play.endpoint("b").in_flight = 100
    assert play.next_picks(160.2) == "open a first"


def test_a_model_that_an_endpoint_denies_is_not_asked_for_there_again(scene: Make) -> None:
    play = scene("a", "b")
    play.play((100.0, "begin", "open a first"), (100.1, "fails model_unavailable 404", "open b other"))
    assert play.next_picks(101.0) == "open b first"


def test_p5_a_refused_connection_takes_the_endpoint_out_at_once(scene: Make) -> None:
    play = scene("a", "b")
    play.play((100.0, "begin", "open a first"), (100.1, "fails connect_error", "open b other"))
    assert [play.next_picks(100.2) for _ in range(3)] == ["open b first"] * 3


def test_n7_a_refused_endpoint_is_asked_again_only_if_something_reached_it_meanwhile(scene: Make) -> None:
    refused = ((100.0, "begin", "open a first"), (101.0, "fails connect_error", "wait until 101.125"))
    scene("a").play(*refused, (101.125, "wait_over", "give up upstream_unreachable"))
    scene("a").play(*refused, (101.1, "answers a", "-"), (101.125, "wait_over", "open a same"))


def test_nobody_there_and_everybody_full_are_different_endings(scene: Make) -> None:
    scene("a").play((99.0, "a is unreachable", "-"), (100.0, "begin", "give up no_endpoint"))
    full = scene("a full=1")
    full.play((100.0, "begin", "open a first"))
    assert full.next_picks(100.1) == "give up shed"


# -- N5: the budget ---------------------------------------------------------------------------------------------------

NONE = {"budget_ratio": 0.0, "budget_floor_per_s": 0.0}
ONE_EACH = {"budget_ratio": 1.0, "budget_floor_per_s": 0.0}


def test_n5_without_budget_the_same_endpoint_is_given_up(scene: Make) -> None:
    scene("a", **NONE).play(
        (100.0, "begin", "open a first"), (101.0, "fails server_error 500", "give up upstream_answered")
    )


@pytest.mark.parametrize("other", ["b", "b standby"])
def test_n5_a_try_elsewhere_waits_for_the_budget(scene: Make, other: str) -> None:
    scene("a", other, **ONE_EACH).play(
        (100.0, "begin", "open a first"),
        (100.5, "spend 1", "-"),
        (100.9, "fails timeout_first_token", "wait until 101"),
        (101.0, "wait_over", "wait until 101.1"),
        (101.05, "earn 1", "-"),
        (101.1, "wait_over", "open b " + ("standby" if "standby" in other else "other")),
    )


def test_n5_the_wait_for_the_budget_ends_when_nobody_is_left_to_ask(scene: Make) -> None:
    scene("a", "b", **NONE).play(
        (100.0, "begin", "open a first"),
        (101.0, "fails server_error 500", "wait until 101.1"),
        (101.1, "b is unreachable", "-"),
        (101.1, "wait_over", "give up upstream_answered"),
    )


def test_n5_the_wait_for_the_budget_ends_with_the_deadline(scene: Make) -> None:
    scene("a", "b", total_s=1.5, **NONE).play(
        (100.0, "begin", "open a first"),
        (101.0, "fails server_error 500", "wait until 101.1"),
        (101.1, "wait_over", "wait until 101.2"),
        (101.2, "wait_over", "give up upstream_answered"),
    )


def test_n5_the_wait_for_the_budget_ends_after_the_longest_queue_wait(scene: Make) -> None:
    scene("a", "b", **NONE).play(
        (100.0, "begin", "open a first"),
        (101.0, "fails server_error 500", "wait until 101.1"),
        (130.9, "wait_over", "wait until 131"),
        (131.0, "wait_over", "give up upstream_answered"),
    )


def test_n5_an_endpoint_believed_broken_is_not_waited_for(scene: Make) -> None:
    scene("a", "b", **NONE).play(
        (99.0, "b is probe_failing", "-"),
        (100.0, "begin", "open a first"),
        (110.0, "fails timeout_first_token", "give up upstream_timeout"),
    )
