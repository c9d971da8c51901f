"""What the ledger learnt becomes marks of endpoints, and goes when the ledger no longer says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from turnout.core import options
from turnout.core.facts import RouteKey, RouteStats, StatsSnapshot, Streak
from turnout.core.fleet.registry import Fleet
from turnout.learning import Learning

NOW_S, NOW_MS = 1_000.0, 1_794_000_000_000


@pytest.fixture
def fleet() -> Fleet:
    made = Fleet(options.Scheduling(), options.Prefix(), options.Breaker())
    for name, durable in (("durable", True), ("plain", False)):
        url = "http://127.0.0.1:1"
        made.add(options.Endpoint(name=name, url=url, models=["m"], durable_cooldown=durable), NOW_S)
    return made


@pytest.fixture
def learning(fleet: Fleet) -> Learning:
    gateway: Any = SimpleNamespace(
        fleet=fleet,
        clock=lambda: NOW_S,
        now_ms=lambda: NOW_MS,
        route=lambda endpoint, model: RouteKey("", model, endpoint.name),
    )
    ledger: Any = SimpleNamespace(snapshot=StatsSnapshot)
    return Learning(gateway, ledger)


def _streak(name: str, seconds: int) -> dict[tuple[str, str], Streak]:
    return {("", name): Streak(3, 3, NOW_MS - 1, "server_error", 500, NOW_MS + 1000 * seconds)}


def test_a_streak_keeps_back_only_endpoints_that_are_configured_so(fleet: Fleet, learning: Learning) -> None:
    learning.apply(StatsSnapshot(endpoint_streaks=_streak("durable", 60) | _streak("plain", 60)))
    assert fleet.endpoints["durable"].cooldown_until == NOW_S + 60
    assert fleet.endpoints["plain"].cooldown_until == 0


def test_a_streak_that_ended_keeps_nobody_back(fleet: Fleet, learning: Learning) -> None:
    learning.apply(StatsSnapshot(endpoint_streaks=_streak("durable", 60)))
    learning.apply(StatsSnapshot())
    assert fleet.endpoints["durable"].cooldown_until == 0


def test_a_longer_pause_that_the_endpoint_asked_for_stands(fleet: Fleet, learning: Learning) -> None:
    fleet.endpoints["durable"].cooldown_until = NOW_S + 100
    learning.apply(StatsSnapshot(endpoint_streaks=_streak("durable", 60)))
    learning.apply(StatsSnapshot())
    assert fleet.endpoints["durable"].cooldown_until == NOW_S + 100


def test_endpoints_that_never_call_tools_are_marked_in_their_pool(fleet: Fleet, learning: Learning) -> None:
    pool = fleet.pool("m")
    assert pool is not None
    learning.apply(
        StatsSnapshot(tool_incapable=frozenset({RouteKey("", "m", "plain"), RouteKey("", "other", "durable")}))
    )
    assert pool.tool_weak == {"plain"}
    learning.apply(StatsSnapshot())
    assert pool.tool_weak == frozenset()


GOOD = RouteStats(n=100, counted_n=100, ok_n=99, ttft_n=99, ttft_sum_ms=99 * 50)


def _snapshot(plain: RouteStats) -> StatsSnapshot:
    routes = {RouteKey("", "m", "durable"): GOOD, RouteKey("", "m", "plain"): plain}
    return StatsSnapshot(observed_at_ms=NOW_MS, routes=routes, models={"m": GOOD.plus(plain)})


def _slow(fleet: Fleet) -> list[str]:
    return [name for name, endpoint in fleet.endpoints.items() if endpoint.breaker.share(NOW_S) < 1.0]


@pytest.mark.parametrize(
    "poor",
    [
        RouteStats(n=40, counted_n=40, ok_n=30),
        RouteStats(n=40, counted_n=40, ok_n=40, ttft_n=20, ttft_sum_ms=20 * 100),
    ],
    ids=["failing", "slow"],
)
def test_an_endpoint_that_served_others_poorly_begins_slowly(
    fleet: Fleet, learning: Learning, poor: RouteStats
) -> None:
    learning.apply(_snapshot(poor))
    assert _slow(fleet) == ["plain"]


def test_an_endpoint_is_introduced_once(fleet: Fleet, learning: Learning) -> None:
    learning.apply(_snapshot(GOOD))
    learning.apply(_snapshot(RouteStats(n=40, counted_n=40, ok_n=0)))
    assert _slow(fleet) == []


def test_what_this_process_measured_itself_stands(fleet: Fleet, learning: Learning) -> None:
    fleet.endpoints["plain"].opened(1, 1)
    learning.apply(_snapshot(RouteStats(n=40, counted_n=40, ok_n=0)))
    assert _slow(fleet) == []


@pytest.mark.parametrize("few", [RouteStats(n=19, counted_n=19), RouteStats(n=100, counted_n=19, ok_n=0), RouteStats()])
def test_an_endpoint_without_enough_data_counts_as_good(fleet: Fleet, learning: Learning, few: RouteStats) -> None:
    learning.apply(_snapshot(few))
    learning.apply(StatsSnapshot())
    assert _slow(fleet) == []


def test_a_snapshot_without_an_instant_introduces_nobody(fleet: Fleet, learning: Learning) -> None:
    learning.apply(StatsSnapshot())
    learning.apply(_snapshot(RouteStats(n=40, counted_n=40, ok_n=0)))
    assert _slow(fleet) == ["plain"]
