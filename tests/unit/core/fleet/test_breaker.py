from collections.abc import Callable

import pytest

from turnout.core import options
from turnout.core.fleet.breaker import Breaker, State


def breaker_of(**settings: object) -> Breaker:
    return Breaker(options.Breaker(**settings))  # type: ignore[arg-type]


def opened_breaker(now: float = 0.0) -> Breaker:
    breaker = breaker_of()
    for _ in range(3):
        breaker.fault(breaker.opened(now), now)
    assert breaker.state is State.OPEN
    return breaker


def test_three_faults_in_a_row_open_it() -> None:
    breaker = breaker_of()
    for _ in range(2):
        breaker.fault(breaker.opened(0.0), 0.0)
    assert breaker.allow(0.0)
    breaker.fault(breaker.opened(0.0), 0.0)
    assert not breaker.allow(4.9)
    assert breaker.allow(5.0)


def test_success_resets_the_row() -> None:
    breaker = breaker_of()
    for _ in range(20):
        for _ in range(2):
            breaker.success(breaker.opened(0.0), 0.0)
        for _ in range(2):
            breaker.success(breaker.opened(0.0), 0.0)
            breaker.fault(breaker.opened(0.0), 0.0)
    assert breaker.state is State.CLOSED


def test_half_of_ten_results_open_it() -> None:
    breaker = breaker_of()
    for number in range(9):
        result = breaker.fault if number % 2 else breaker.success
        result(breaker.opened(0.0), 0.0)
    assert breaker.state is State.CLOSED
    breaker.fault(breaker.opened(1.0), 1.0)
    assert breaker.state is State.OPEN


def test_old_results_leave_the_window() -> None:
    breaker = breaker_of()
    for number in range(9):
        result = breaker.fault if number % 2 else breaker.success
        result(breaker.opened(0.0), 0.0)
    breaker.fault(breaker.opened(11.0), 11.0)
    assert breaker.state is State.CLOSED


def test_open_time_doubles_up_to_its_cap() -> None:
    breaker = opened_breaker()
    now, lengths = 0.0, []
    for _ in range(4):
        lengths.append(breaker.reopen_at - now)
        now = breaker.reopen_at
        breaker.fault(breaker.opened(now), now)
    assert lengths == [5.0, 10.0, 20.0, 20.0]


@pytest.mark.parametrize(("asked", "expected"), [(2.0, 5.0), (30.0, 30.0), (500.0, 60.0), (None, 5.0)])
def test_open_duration_is_honoured(asked: float | None, expected: float) -> None:
    """T34: a Retry-After or explicit time longer than ours is used, up to a minute."""
    breaker = breaker_of(consecutive=1)
    breaker.fault(breaker.opened(0.0), 0.0, open_s=asked)
    assert breaker.reopen_at == expected


@pytest.mark.parametrize(("closed_for", "expected"), [(59.0, 10.0), (60.0, 5.0)])
def test_openings_are_forgotten_after_a_minute_closed(closed_for: float, expected: float) -> None:
    breaker = opened_breaker()
    breaker.success(breaker.opened(5.0), 5.0)
    now = 5.0 + closed_for
    for _ in range(3):
        breaker.fault(breaker.opened(now), now)
    assert breaker.reopen_at - now == expected


RESULTS: dict[str, Callable[[Breaker, int, float], None]] = {
    "cancel": lambda breaker, epoch, now: breaker.neutral(epoch, now),
    "4xx": lambda breaker, epoch, now: breaker.neutral(epoch, now),
    "429": lambda breaker, epoch, now: breaker.neutral(epoch, now),
    "local error": lambda breaker, epoch, now: breaker.neutral(epoch, now),
}


@pytest.mark.parametrize("ending", RESULTS)
def test_bt1_neutral_end_gives_the_probe_slot_back(ending: str) -> None:
    breaker = opened_breaker()
    epoch = breaker.opened(5.0)
    assert not breaker.allow(5.0)
    RESULTS[ending](breaker, epoch, 6.0)
    assert (breaker.state, breaker.allow(6.0)) == (State.HALF_OPEN, True)


def test_bt2_half_open_lets_one_attempt_of_a_thousand_through() -> None:
    breaker = opened_breaker()
    through = 0
    for _ in range(1000):
        if breaker.allow(5.0):
            breaker.opened(5.0)
            through += 1
    assert through == 1


def test_bt3_client_aborts_count_nowhere() -> None:
    breaker = breaker_of(consecutive=1)
    for _ in range(100):
        breaker.neutral(breaker.opened(0.0), 0.0)
    assert breaker.state is State.CLOSED
    assert breaker.plain


def test_bt4_rate_limits_neither_trip_nor_clear_it() -> None:
    breaker = breaker_of()
    for _ in range(100):
        breaker.neutral(breaker.opened(0.0), 0.0)
    assert breaker.state is State.CLOSED
    for result in (breaker.fault, breaker.fault, breaker.neutral, breaker.fault):
        result(breaker.opened(0.0), 0.0)
    assert breaker.state is State.OPEN


def test_bt5_success_closes_it() -> None:
    breaker = opened_breaker()
    breaker.success(breaker.opened(5.0), 6.0)
    assert (breaker.state, breaker.allow(6.0)) == (State.CLOSED, True)


def test_bt6_malformed_answer_does_not_reset_the_row() -> None:
    breaker = breaker_of()
    breaker.fault(breaker.opened(0.0), 0.0)
    breaker.fault(breaker.opened(0.0), 0.0)
    # A malformed 2xx is classified as bad_response, which is a fault: there is no half of a success to report.
    breaker.fault(breaker.opened(0.0), 0.0)
    assert breaker.state is State.OPEN


def test_bt7_late_failures_do_not_move_the_reopening() -> None:
    breaker = breaker_of()
    epochs = [breaker.opened(0.0) for _ in range(53)]
    for epoch in epochs[:3]:
        breaker.fault(epoch, 0.0)
    before = breaker.reopen_at
    for epoch in epochs[3:]:
        breaker.fault(epoch, 4.0, open_s=60.0)
    assert (breaker.reopen_at, breaker.openings) == (before, 1)


def test_late_results_of_older_attempts_change_nothing_in_half_open_and_after() -> None:
    breaker = breaker_of()
    late = breaker.opened(0.0)
    for _ in range(3):
        breaker.fault(breaker.opened(0.0), 0.0)
    probe = breaker.opened(5.0)
    breaker.fault(late, 5.0)
    breaker.success(late, 5.0)
    breaker.neutral(late, 5.0)
    assert (breaker.state, breaker.allow(5.0)) == (State.HALF_OPEN, False)
    breaker.success(probe, 5.0)
    for _ in range(10):
        breaker.fault(late, 6.0)
    assert breaker.state is State.CLOSED


def test_lost_lease_returns_with_the_deadline() -> None:
    breaker = opened_breaker()
    lost = breaker.opened(5.0)
    assert not breaker.allow(604.0)
    assert breaker.allow(605.0)
    breaker.opened(605.0)
    breaker.success(lost, 606.0)
    assert breaker.state is State.HALF_OPEN


def test_fault_in_half_open_opens_it_again_for_longer() -> None:
    breaker = opened_breaker()
    breaker.fault(breaker.opened(5.0), 6.0)
    assert (breaker.state, breaker.reopen_at) == (State.OPEN, 16.0)


def test_good_probe_brings_half_open_forward_and_closes_nothing() -> None:
    breaker = breaker_of(consecutive=1)
    breaker.fault(breaker.opened(0.0), 0.0, open_s=60.0)
    breaker.probe_answered(1.0)
    assert (breaker.state, breaker.reopen_at) == (State.OPEN, 5.0)


def test_share_grows_from_a_tenth_after_closing() -> None:
    breaker = opened_breaker()
    breaker.success(breaker.opened(5.0), 10.0)
    assert not breaker.plain
    assert [breaker.share(now) for now in (10.0, 25.0, 40.0)] == pytest.approx([0.1, 0.55, 1.0])
    assert breaker.plain


def test_opening_ends_slow_start() -> None:
    breaker = breaker_of(consecutive=1)
    breaker.start_slowly(0.0)
    breaker.fault(breaker.opened(0.0), 0.0)
    assert breaker.share(0.0) == 1.0
    assert not breaker.plain
