"""What the ledger learnt becomes marks of endpoints, and goes when the ledger no longer says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from turnout.core import options
from turnout.core.facts import RouteKey, StatsSnapshot, Streak
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
    gateway: Any = SimpleNamespace(fleet=fleet, clock=lambda: NOW_S, now_ms=lambda: NOW_MS)
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
