"""What can happen to a fleet: each scenario is who asks, how often, what breaks when, and what must be true at the end.

Rates are shares of what the fleet can serve, so that a scenario means the same for any number of engines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from turnout.sim.world.engine import Mood
from turnout.sim.world.router import Settings

if TYPE_CHECKING:
    from turnout.sim.world.world import World

Event = tuple[float, Callable[["World"], None]]


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One history to be. `load(t)` is the share of the fleet's capacity that is asked for at an instant."""

    says: str
    load: Callable[[float], float]
    events: Callable[[World], list[Event]] = lambda _: []
    duration_s: float = 40.0
    engines: int = 4
    slots: int = 8
    tenants: dict[str, float] = msgspec.field(default_factory=lambda: {"a": 1.0, "b": 1.0})
    """Share of the requests per tenant; "" asks without a key."""
    settings: Settings = Settings()
    errors_max_share: float = 0.0
    """Requests that may end in an upstream or capacity error."""
    refusals_max_share: float = 0.0
    patience_share: float = 0.02
    """Clients that leave early."""
    fair: bool = False
    """Whether every tenant that asks for more than its share must get it."""


def _set(name: str, mood: Mood) -> Callable[[World], None]:
    return lambda world: world.engine(name).set_mood(mood)


def _crash(_: World) -> list[Event]:
    return [(10.0, _set("e1", Mood.DOWN)), (20.0, _set("e1", Mood.WELL)), (25.0, _set("e3", Mood.DOWN))]


def _flapping(_: World) -> list[Event]:
    instants = [5.0 + number * 2.5 for number in range(12)]
    return [(at, _set("e2", Mood.BROKEN if number % 2 == 0 else Mood.WELL)) for number, at in enumerate(instants)]


def _brown_out(_: World) -> list[Event]:
    def worse(world: World) -> None:
        for engine in world.engines:
            engine.error_share, engine.slowness = 0.15, 2.0

    def better(world: World) -> None:
        for engine in world.engines:
            engine.error_share, engine.slowness = 0.0, 1.0

    return [(10.0, worse), (20.0, better)]


def _slow_middle(_: World) -> list[Event]:
    def slowness(factor: float) -> Callable[[World], None]:
        return lambda world: setattr(world.engine("e2"), "slowness", factor)

    return [(10.0, slowness(10.0)), (25.0, slowness(1.0))]


def _cold_start(_: World) -> list[Event]:
    return [(0.0, lambda world: world.leave("e4")), (10.0, lambda world: world.join_again("e4"))]


def _stale(_: World) -> list[Event]:
    return [(5.0, lambda world: world.router.stale.update({"e1", "e2"}))]


def _frozen(_: World) -> list[Event]:
    return [(10.0, _set("e1", Mood.FROZEN)), (25.0, _set("e1", Mood.WELL))]


def _all_down(world: World) -> list[Event]:
    down = [(10.0, _set(engine.name, Mood.DOWN)) for engine in world.engines]
    return [*down, *[(16.0, _set(engine.name, Mood.WELL)) for engine in world.engines]]


def _cut(_: World) -> list[Event]:
    return [(5.0, lambda world: setattr(world.engine("e2"), "cut_share", 0.02))]


SCENARIOS: dict[str, Scenario] = {
    "steady": Scenario(says="half of the capacity, nothing breaks", load=lambda _: 0.5),
    "burst": Scenario(
        says="three times the capacity for five seconds",
        load=lambda t: 3.0 if t // 5 == 2 else 0.4,  # noqa: PLR2004 - the third five seconds
        refusals_max_share=0.5,
    ),
    "overload": Scenario(
        says="three times the capacity all the time, three tenants",
        load=lambda _: 3.0,
        tenants={"a": 1.0, "b": 1.0, "c": 1.0},
        refusals_max_share=0.9,
        fair=True,
    ),
    "cold_start": Scenario(says="an endpoint joins a fleet under load", load=lambda _: 0.6, events=_cold_start),
    "slow_middle": Scenario(
        says="one engine is ten times slower for a while",
        load=lambda _: 0.5,
        events=_slow_middle,
        refusals_max_share=0.05,
    ),
    "brown_out": Scenario(
        says="all engines are slow and fail every seventh request for ten seconds",
        load=lambda _: 0.5,
        events=_brown_out,
        errors_max_share=0.15,
        refusals_max_share=0.2,
    ),
    "flapping": Scenario(says="one engine fails in every other 2.5 s", load=lambda _: 0.5, events=_flapping),
    "crash": Scenario(says="one engine dies, returns, another one dies", load=lambda _: 0.5, events=_crash),
    "frozen": Scenario(says="one engine accepts everything and answers nothing", load=lambda _: 0.4, events=_frozen),
    "cut_streams": Scenario(
        says="one engine cuts every other stream", load=lambda _: 0.5, events=_cut, errors_max_share=0.01
    ),
    "stale_metrics": Scenario(says="two engines stop to report", load=lambda _: 0.7, events=_stale),
    "noisy_tenant": Scenario(
        says="one tenant asks for twice what there is, another for a little",
        load=lambda _: 2.2,
        tenants={"noisy": 10.0, "quiet": 1.0, "": 0.5},
        refusals_max_share=0.9,
        fair=True,
    ),
    "all_down": Scenario(
        says="every engine is gone for six seconds",
        load=lambda _: 0.4,
        events=_all_down,
        errors_max_share=0.4,
        refusals_max_share=0.4,
    ),
}
