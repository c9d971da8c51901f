"""N5: in any 10 s, extra attempts ≤ ratio · exchanges + 10 · floor, whatever fails."""

from turnout.core import options
from turnout.core.retry_budget import RetryBudget


def budget_of(ratio: float = 0.2, floor_per_s: float = 3.0) -> RetryBudget:
    return RetryBudget(options.Retry(budget_ratio=ratio, budget_floor_per_s=floor_per_s))


def taken(budget: RetryBudget, now: float, tries: int = 1000) -> int:
    return sum(budget.take(now) for _ in range(tries))


def test_an_idle_model_has_the_floor() -> None:
    assert taken(budget_of(), 100.0) == 30


def test_exchanges_of_the_window_add_their_share() -> None:
    budget = budget_of()
    for number in range(100):
        budget.exchange_started(100.0 + number / 20)
    assert taken(budget, 105.0) == 50


def test_without_a_floor_nothing_is_granted_before_the_first_exchanges() -> None:
    budget = budget_of(floor_per_s=0.0)
    assert not budget.take(100.0)
    for _ in range(5):
        budget.exchange_started(100.0)
    assert taken(budget, 100.0) == 1


def test_what_was_taken_comes_back_when_its_second_leaves_the_window() -> None:
    budget = budget_of()
    assert taken(budget, 100.0, 10) == 10
    assert taken(budget, 101.0) == 20
    assert taken(budget, 110.99) == 0  # ten seconds after the last of its second
    assert taken(budget, 111.0) == 10
    assert taken(budget, 112.0) == 20


def test_old_exchanges_leave_the_window_with_their_share() -> None:
    budget = budget_of()
    for _ in range(100):
        budget.exchange_started(100.0)
    assert taken(budget, 111.0) == 30


def test_a_long_pause_leaves_a_clean_window() -> None:
    budget = budget_of()
    taken(budget, 100.0)
    assert taken(budget, 100_000.0) == 30


def test_any_ten_seconds_stay_within_the_promise() -> None:
    budget = budget_of()
    exchanges: list[float] = []
    extras: list[float] = []
    for step in range(2_000):
        now = 50.0 + step * 0.025
        if step % 3 == 0:
            budget.exchange_started(now)
            exchanges.append(now)
        extras += [now] * taken(budget, now, 3)
    for step in range(2_000):  # wherever the ten seconds begin
        begin = 45.0 + step * 0.025
        window = [at for at in extras if begin <= at < begin + 10.0]
        active = [at for at in exchanges if begin <= at < begin + 10.0]
        assert len(window) <= 0.2 * len(active) + 30
