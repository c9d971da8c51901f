"""Seeds × scenarios on virtual time: no promise is broken, and a broken one could be seen."""

from __future__ import annotations

import pytest

from turnout.core import options
from turnout.core.errors import ErrorKind
from turnout.sim.world.clock import VirtualClock
from turnout.sim.world.engine import Mood
from turnout.sim.world.router import Settings
from turnout.sim.world.scenarios import SCENARIOS, Scenario
from turnout.sim.world.world import World, play

SEEDS = 2


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_promise_is_broken(scenario: str, seed: int) -> None:
    report = play(scenario, seed)
    assert report.violations == [], f"turnout sim --scenario {scenario} --seed {seed}"


def test_the_same_seed_gives_the_same_history() -> None:
    first, again, other = play("crash", 5), play("crash", 5), play("crash", 6)
    assert first == again
    assert first.digest != other.digest


def test_every_scenario_does_what_its_name_says() -> None:
    reports = {name: play(name, 1) for name in ("overload", "crash", "cut_streams", "frozen", "flapping", "all_down")}
    assert reports["overload"].queue_peak > 100
    assert reports["crash"].resumed > 0
    assert reports["cut_streams"].resumed > 0
    assert reports["frozen"].rerouted > 0
    assert reports["flapping"].rerouted > 0
    assert "no_endpoint" in reports["all_down"].outcomes


def broken(scenario: Scenario, sabotage: str = "") -> list[str]:
    """The violations of a play in which one thing is deliberately wrong."""
    world = World(scenario, 1)
    router = world.router
    if sabotage == "leaked permit":
        world.clock.at(5.0, lambda: router.pool.members[0].opened(10, 10))
    elif sabotage == "leaked slot":
        world.clock.at(5.0, lambda: router.gate.held.take("a"))
    elif sabotage == "broken engine":
        world.clock.at(0.0, lambda: world.engine("e1").set_mood(Mood.BROKEN))
    world.play()
    return router.violations


def test_leaks_are_noticed() -> None:
    steady = SCENARIOS["steady"]
    assert any("is left with" in text for text in broken(steady, "leaked permit"))
    assert any("the gate is left" in text for text in broken(steady, "leaked slot"))


def test_errors_that_a_retry_would_have_hidden_are_noticed() -> None:
    alone = Scenario(
        says="no second attempt", load=lambda _: 0.5, settings=Settings(retry=options.Retry(attempts_per_model=1))
    )
    assert any("ended as upstream" in text for text in broken(alone, "broken engine"))


def test_an_unfair_queue_is_noticed() -> None:
    weights = options.Admission(tenant_weights={"a": 1000.0}, tenant_max_queued=80)
    unfair = Scenario(
        says="one tenant is preferred",
        load=lambda _: 3.0,
        tenants={"a": 1.0, "b": 1.0, "c": 1.0},
        settings=Settings(admission=weights),
        refusals_max_share=0.9,
        fair=True,
    )
    assert any("of its fair" in text for text in broken(unfair))


def test_time_passes_from_event_to_event_in_order() -> None:
    clock = VirtualClock()
    seen: list[tuple[float, float]] = []
    for at in (3.0, 1.0, 2.0, 1.0):
        clock.at(at, lambda at=at: seen.append((clock.now, at)))  # type: ignore[misc]
    cancelled = clock.at(1.5, lambda: seen.append((0.0, 0.0)))
    cancelled.cancel()
    assert clock.pending == 4
    assert clock.run(10.0, 100)
    assert seen == [(1.0, 1.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    assert clock.now == 10.0


def test_too_many_events_are_an_error_not_a_hang() -> None:
    clock = VirtualClock()

    def again() -> None:
        clock.after(0.0, again)

    again()
    assert not clock.run(1.0, 1000)


class Seen:
    """Notes how answers end."""

    def __init__(self) -> None:
        self.kinds: list[ErrorKind] = []

    def first_token(self) -> None: ...
    def token(self) -> None: ...
    def completed(self) -> None: ...
    def failed(self, kind: ErrorKind, status: int | None) -> None:  # noqa: ARG002 - the listener's signature
        self.kinds.append(kind)


def test_an_engine_that_dies_resets_what_it_holds() -> None:
    world = World(SCENARIOS["steady"], 0)
    engine, clock = world.engines[0], world.clock
    early, late, refused = Seen(), Seen(), Seen()
    engine.request(early, 100)
    clock.run(0.2, 1000)
    engine.request(late, 100)
    engine.set_mood(Mood.DOWN)
    engine.request(refused, 100)
    clock.run(1.0, 1000)
    kinds = (early.kinds, late.kinds, refused.kinds)
    assert kinds == ([ErrorKind.STREAM_CUT], [ErrorKind.CONNECTION_RESET], [ErrorKind.CONNECT_ERROR])
    assert engine.load == 0
