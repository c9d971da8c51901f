"""When a duplicate is sent, and how many (resilience Z1 to Z3)."""

from __future__ import annotations

import pytest

from turnout.core.options import Hedge
from turnout.core.recovery.hedging import HedgeTrigger


def trigger_with(*ttfts: float, **settings: float) -> HedgeTrigger:
    trigger = HedgeTrigger(Hedge(**settings))  # type: ignore[arg-type]
    for ttft in ttfts:
        trigger.first_token(ttft, 0.0)
    return trigger


def test_z2_nothing_is_known_before_fifty_first_tokens() -> None:
    assert trigger_with(*[0.1] * 49).due_after_s(1.0) is None
    assert trigger_with(*[0.1] * 50).due_after_s(1.0) == 0.1


def test_z2_it_is_the_95th_percentile_but_never_below_50_ms() -> None:
    assert trigger_with(*[number / 100 for number in range(1, 101)]).due_after_s(1.0) == 0.95
    assert trigger_with(*[0.001] * 60).due_after_s(1.0) == 0.05


def test_z2_ten_minutes_are_remembered() -> None:
    trigger = trigger_with(*[9.0] * 60)
    for _ in range(60):
        trigger.first_token(0.2, 599.0)
    assert trigger.due_after_s(599.0) == 9.0
    assert trigger.due_after_s(600.0) == 0.2
    assert trigger.due_after_s(1199.0) is None


@pytest.mark.parametrize(("attempts", "granted"), [(0, 0), (18, 0), (19, 1), (100, 5), (1000, 52)])
def test_z3_hedges_are_a_twentieth_of_the_attempts_of_a_minute(attempts: int, granted: int) -> None:
    trigger = HedgeTrigger(Hedge())
    for number in range(attempts):
        trigger.attempted(number * 50 / max(attempts, 1))
    assert sum(trigger.take(55.0) for _ in range(100)) == granted


def test_z3_the_minute_slides() -> None:
    trigger = HedgeTrigger(Hedge())
    for _ in range(19):
        trigger.attempted(0.0)
    assert trigger.take(1.0)
    assert not trigger.take(30.0)
    assert not trigger.take(70.0)
