"""What is reserved, open, committed and read is counted once at every instant."""

from collections.abc import Callable
from typing import Any

import pytest

from turnout.core.admission.spending import DAY_MS, OPEN_MAX, Spending
from turnout.core.facts import CallFact

WHO = ("acme", "batch")
NOW_MS = 20_000 * DAY_MS + 5


def ended(call_id: str, cost_nusd: int | None) -> CallFact:
    return CallFact(
        call_id,
        "r",
        NOW_MS,
        NOW_MS,
        0,
        *WHO,
        "openai",
        "/v1/x",
        False,
        "m",
        "completed",
        "ok",
        200,
        cost_nusd=cost_nusd,
    )


@pytest.fixture
def spending() -> Spending:
    made = Spending()
    made.days = 30
    made.publish([], [])
    return made


@pytest.fixture
def spent(spending: Spending) -> Callable[[], int | None]:
    return lambda: spending.spent_nusd(WHO, 30, NOW_MS)


def test_a_call_is_counted_once_on_its_way_into_the_sums(spending: Spending, spent: Any) -> None:
    spending.reserve("c1", WHO, 100)
    assert (spent(), spending.reserved_nusd("c1")) == (100, 100)
    spending.ended(ended("c1", 60))
    assert spent() == 60
    spending.stored(["c1", "of another process"])
    assert spent() == 60
    seen = spending.committed()
    assert (spent(), seen) == (60, ["c1"])
    spending.publish([(*WHO, NOW_MS // DAY_MS * DAY_MS, 60)], seen)
    assert spent() == 60
    spending.publish([(*WHO, NOW_MS // DAY_MS * DAY_MS, 75)], spending.committed())
    assert (spent(), spending.reserved_nusd("c1")) == (75, None)


@pytest.mark.parametrize("cost", [None, 0])
def test_what_cost_nothing_is_let_go_at_its_end(spending: Spending, spent: Any, cost: int | None) -> None:
    spending.reserve("c1", WHO, 100)
    spending.ended(ended("c1", cost))
    assert spent() == 0


def test_a_reading_that_failed_or_that_nobody_took_is_repeated(spending: Spending, spent: Any) -> None:
    spending.reserve("c1", WHO, 100)
    spending.ended(ended("c1", 60))
    spending.stored(["c1"])
    spending.unread(spending.committed())
    day = NOW_MS // DAY_MS * DAY_MS
    # The sums of the start have not been taken yet, so these are told with the next ones.
    spending.publish([(*WHO, day, 60)], spending.committed())
    assert spent() == 60
    spending.publish([(*WHO, day, 60)], spending.committed())
    assert spent() == 60
    assert spending.committed() == []


def test_days_outside_the_window_do_not_count(spending: Spending, spent: Any) -> None:
    today = NOW_MS // DAY_MS * DAY_MS
    assert spent() == 0
    spending.publish([(*WHO, today - 30 * DAY_MS, 1), (*WHO, today - 29 * DAY_MS, 10), (*WHO, today, 100)], [])
    assert spent() == 110
    assert spending.spent_nusd(WHO, 1, NOW_MS) == 100
    assert spending.spent_nusd(("acme", "other"), 30, NOW_MS) == 0


def test_without_sums_nothing_is_known(spent: Any) -> None:
    assert Spending().spent_nusd(WHO, 30, NOW_MS) is None
    assert spent() == 0


def test_a_ledger_that_is_too_far_behind_is_no_authority(spending: Spending, spent: Any) -> None:
    for number in range(OPEN_MAX):
        spending.reserve(f"c{number}", WHO, 1)
    assert spent() is None
    spending.ended(ended("c0", 0))
    assert spent() == OPEN_MAX - 1
