"""Whole replays of small made-up traffic: what must hold whatever the policy, and what faults may cost."""

from __future__ import annotations

import random
from typing import get_args

import msgspec
import pytest

from turnout.core.options import PolicyName
from turnout.sim.replay.options import Fault, ReplayOptions
from turnout.sim.replay.report import as_json, document
from turnout.sim.replay.summary import summary
from turnout.sim.replay.trace import Keys, Session, Trace, TraceRequest
from turnout.sim.replay.work import Done, Run, perform
from turnout.sim.replay.world import World

SMALL = ReplayOptions(endpoints=3, profile="8b", load=1.0, sessions_per_s=2.0, kv_tokens=65_536)


def chat(requests: int = 300, per_s: float = 20.0) -> Trace:
    """Conversations that go on: each turn repeats what was said and adds to it."""
    rng = random.Random(7)
    keys = Keys()
    rows: list[TraceRequest] = []
    lengths: dict[int, int] = {}
    for number in range(requests):
        talk = rng.randrange(40)
        blocks = lengths[talk] = min(lengths.get(talk, 0) + rng.randrange(1, 6), 40)
        chain: list[int] = []
        keys.extend(chain, talk, 0, blocks)
        rows.append(
            TraceRequest(
                prompt_tokens=blocks * 512 + rng.randrange(1, 512),
                output_tokens=rng.randrange(1, 120),
                keys=chain,
                at_s=number / per_s,
                session=talk + 1,
            )
        )
    return Trace(name="made", format="mooncake", block_tokens=512, requests=rows)


def talks(count: int = 12, turns: int = 8) -> Trace:
    """The same as sessions."""
    keys = Keys()
    sessions = []
    for talk in range(count):
        rows = []
        for turn in range(turns):
            chain: list[int] = []
            keys.extend(chain, talk, 0, 4 + 3 * turn)
            rows.append(TraceRequest((4 + 3 * turn) * 512 + 9, 30 + turn, chain, think_s=0.7 * turn, session=talk + 1))
        sessions.append(Session(talk, rows))
    return Trace(name="talks", format="sessions", block_tokens=512, sessions=sessions)


@pytest.mark.parametrize("policy", get_args(PolicyName))
def test_every_request_ends_once_and_everything_is_given_back(policy: str) -> None:
    world = World(chat(), SMALL, policy, 0)
    record = world.run()
    assert all(value >= 0 for value in record.e2e_s)
    assert record.gaps.total + len(record.e2e_s) == sum(record.output_tokens)
    for engine in world.engines:
        assert (engine.load, engine.store.used) == (0, 0)
    for endpoint in world.routers[0].fleet.endpoints.values():
        assert (endpoint.in_flight, endpoint.pending_prefill_tokens, endpoint.active_tokens) == (0, 0, 0)


@pytest.mark.parametrize("options", [SMALL, msgspec.structs.replace(SMALL, routers=3), msgspec.structs.replace(SMALL, routers=2, bus=True)])  # fmt: skip
def test_equal_runs_are_equal_to_the_byte(options: ReplayOptions) -> None:
    texts = []
    for _ in range(2):
        trace = talks()
        done = [_perform(trace, options, policy) for policy in ("turnout", "least_busy")]
        texts.append(as_json(document(trace, options, done)))
    assert texts[0] == texts[1]


def test_sessions_wait_for_answers() -> None:
    world = World(talks(count=1), SMALL, "turnout", 0)
    record = world.run()
    ends = [arrived + e2e for arrived, e2e in zip(record.arrived_s, record.e2e_s, strict=True)]
    for turn in range(1, 8):
        assert record.arrived_s[turn] == pytest.approx(ends[turn - 1] + 0.7 * turn)


def test_exact_knowledge_equals_what_the_engines_hold() -> None:
    world = World(chat(), msgspec.structs.replace(SMALL, kv_tokens=32_768), "turnout", 0)
    world.run()
    exact = world.routers[0].fleet.exact
    for place, endpoint in enumerate(world.routers[0].fleet.endpoints.values()):
        held = {key for key in (*world.engines[place].store._refs, *world.engines[place].store._idle) if key >= 0}
        assert set(endpoint.streams[0].hashes.values()) == held
    assert exact.evicted["event_removed"] > 0


def test_predictions_with_events_come_true() -> None:
    trace = chat(per_s=3.0)
    exact = summary(World(trace, SMALL, "turnout", 0).run(), SMALL, 512)
    assert exact["cached_tokens"]["error"] < 0.01
    assert exact["hit_rate"] <= exact["hit_rate_unlimited"]


@pytest.mark.parametrize("policy", ["turnout", "least_busy", "sglang_cache_aware"])
def test_a_dead_engine_costs_only_what_it_was_answering(policy: str) -> None:
    options = msgspec.structs.replace(SMALL, faults=(Fault(kind="dead", engine=1, from_s=5.0, until_s=9.0),))
    world = World(chat(), options, policy, 0)
    record = world.run()
    # Whoever had no token yet was served elsewhere.
    failed = [place for place, value in enumerate(record.e2e_s) if value < 0]
    assert all(record.ttft_s[place] >= 0 for place in failed)
    served = [place for place, engine in enumerate(record.engine) if engine == 1]
    gone = [place for place in served if 5.2 < record.arrived_s[place] < 8.9 and record.e2e_s[place] >= 0]
    assert all(record.arrived_s[place] + record.ttft_s[place] > 9.0 for place in gone)
    assert any(record.arrived_s[place] > 9.0 for place in served)
    for endpoint in world.routers[0].fleet.endpoints.values():
        assert endpoint.in_flight == 0


def test_whoever_meets_a_dead_engine_goes_elsewhere() -> None:
    options = msgspec.structs.replace(SMALL, faults=(Fault(kind="dead", engine=0, from_s=0.0),))
    record = World(chat(), options, "round_robin", 0).run()
    assert all(value >= 0 for value in record.e2e_s)
    assert max(record.attempts) == 2
    assert 0 not in record.engine


def test_all_engines_dead_for_a_while_only_delays() -> None:
    faults = tuple(Fault(kind="dead", engine=place, from_s=4.0, until_s=6.0) for place in range(3))
    record = World(chat(), msgspec.structs.replace(SMALL, faults=faults), "turnout", 0).run()
    assert all(record.ttft_s[place] >= 0 for place, at in enumerate(record.arrived_s) if at > 4.0)


def test_a_slow_engine_gets_less() -> None:
    options = msgspec.structs.replace(SMALL, faults=(Fault(kind="slow", engine=0, factor=4.0),))
    record = World(chat(requests=400), options, "turnout", 0).run()
    served = [list(record.engine).count(place) for place in range(3)]
    assert served[0] < 0.6 * min(served[1:])


@pytest.mark.parametrize(
    "change",
    [
        {"knowledge": "approximate"},
        {"event_delay_s": 5.0},
        {"event_loss": 0.2},
        {"report_delay_s": 1.0},
        {"reports": "none"},
        {"reports": "counts"},
        {"reports": "waiting"},
        {"estimate_sigma": 0.5},
        {"routers": 4},
        {"routers": 4, "bus": True},
        {"cache_multiple": 4.0},
        {"context_max": 8192},
    ],
)
def test_poor_knowledge_loses_no_request(change: dict[str, object]) -> None:
    options = msgspec.structs.replace(SMALL, **change)
    world = World(chat(), options, "turnout", 1)
    record = world.run()
    assert len(record.e2e_s) + record.refused == 300
    assert all(value >= 0 for value in record.e2e_s)
    for router in world.routers:
        for endpoint in router.fleet.endpoints.values():
            assert (endpoint.in_flight, endpoint.pending_prefill_tokens) == (0, 0)


def test_lost_events_are_owned_up_to() -> None:
    options = msgspec.structs.replace(SMALL, event_loss=0.2)
    world = World(chat(), options, "turnout", 1)
    world.run()
    assert {str(endpoint.mode.name) for endpoint in world.routers[0].fleet.endpoints.values()} == {"DEGRADED"}


def _perform(trace: Trace, options: ReplayOptions, policy: str) -> Done:
    return perform(trace, Run(options=options, policy=policy, seed=3))
