"""An endpoint is asked only in dialects it speaks; a pool knows what all of its members speak."""

from __future__ import annotations

import random

import pytest

from turnout.core import options
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.pipeline import schedule
from turnout.core.scheduling.types import DropReason

BOTH = {"openai", "anthropic"}


def fleet_of(**endpoints: dict[str, object]) -> tuple[Fleet, Pool]:
    fleet = Fleet(options.Scheduling(), options.Prefix(), options.Breaker())
    for name, settings in endpoints.items():
        given = {"name": name, "url": "http://127.0.0.1:1", "models": ["m"], **settings}
        fleet.add(options.Endpoint(**given), 0.0)  # type: ignore[arg-type]
    pool = fleet.pool("m")
    assert pool is not None
    return fleet, pool


@pytest.mark.parametrize(
    ("settings", "spoken"),
    [
        ({}, BOTH),
        ({"family": "vllm"}, BOTH),
        ({"family": "sglang"}, BOTH),
        ({"family": "llamacpp"}, {"openai"}),
        ({"family": "megatron"}, {"openai"}),
        ({"family": "openai"}, {"openai"}),
        ({"family": "llamacpp", "dialects": ["openai", "anthropic"]}, BOTH),
        ({"dialects": ["anthropic"]}, {"anthropic"}),
    ],
)
def test_what_an_endpoint_speaks(settings: dict[str, object], spoken: set[str]) -> None:
    fleet, pool = fleet_of(a=settings)
    assert fleet.endpoints["a"].dialects == pool.dialects == spoken


def test_a_pool_follows_its_members() -> None:
    fleet, pool = fleet_of(a={}, b={"family": "llamacpp"})
    assert pool.dialects == {"openai"}
    fleet.remove("b")
    assert pool.dialects == BOTH
    fleet.remove("a")
    assert pool.dialects == set()


def test_who_does_not_speak_a_dialect_is_dropped_for_it() -> None:
    fleet, pool = fleet_of(a={"dialects": ["openai"]}, b={}, c={"dialects": ["openai"]})
    for tried in ((), ("a",)):
        ask = Ask("m", [], 10, 1, tried, dialect="anthropic")
        decision = schedule(ask, pool, fleet, 0.0, random.Random(0))
        assert decision.names == ("b",)
        assert dict(decision.dropped)["c"] == DropReason.DIALECT_NOT_SPOKEN
    nobody = schedule(Ask("m", [], 10, 1, ("b",), dialect="anthropic", relax=True), pool, fleet, 0.0, random.Random(0))
    assert nobody.picked is None  # a hard filter: nothing relaxes it


def test_a_dialect_that_all_speak_drops_nobody() -> None:
    fleet, pool = fleet_of(a={}, b={"dialects": ["openai"]})
    assert schedule(Ask("m", [], 10, 1), pool, fleet, 0.0, random.Random(0)).names == ("a", "b")
