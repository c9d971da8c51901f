"""Replays of pools with roles: every request ends once, nothing stays taken, and the ratio of roles matters little."""

from __future__ import annotations

import random

import pytest

from turnout.core.disagg_options import Disagg
from turnout.sim.replay.options import ReplayOptions
from turnout.sim.replay.trace import Trace, TraceRequest
from turnout.sim.replay.work import Run, perform
from turnout.sim.replay.world import World


def chat(requests: int = 250, per_s: float = 12.0) -> Trace:
    rng = random.Random(3)
    rows, at = [], 0.0
    for number in range(requests):
        at += rng.expovariate(per_s)
        blocks = rng.randrange(1, 24)
        shared = rng.randrange(6) * 100
        keys = [shared + place for place in range(min(4, blocks))] + [
            10_000 + number * 100 + place for place in range(4, blocks)
        ]
        rows.append(
            TraceRequest(at_s=at, prompt_tokens=blocks * 512 + 7, output_tokens=rng.randrange(1, 120), keys=keys)
        )
    return Trace(name="made", format="mooncake", block_tokens=512, requests=rows)


def options(prefills: int, **disagg: object) -> ReplayOptions:
    return ReplayOptions(
        endpoints=6,
        profile="70b",
        cache_multiple=4,
        prefill_endpoints=prefills,
        disagg=Disagg(transfer_bytes_per_s=50e9, **disagg),  # type: ignore[arg-type]  # names of fields
    )


@pytest.mark.parametrize("decider", ["seconds", "always", "threshold", "conditional"])
@pytest.mark.parametrize("policy", ["turnout", "round_robin", "affinity_load"])
def test_every_request_ends_once_and_every_leg_is_given_back(policy: str, decider: str) -> None:
    world = World(chat(), options(3, decider=decider), policy, 0)
    record = world.run()
    assert all(seconds > 0 for seconds in record.e2e_s)
    for router in world.routers:
        for endpoint in router.fleet.endpoints.values():
            assert (endpoint.in_flight, endpoint.active_tokens, endpoint.pending_prefill_tokens) == (0, 0, 0)
    assert all(not engine.load for engine in world.engines)


def test_the_adaptive_choice_makes_the_ratio_matter_little() -> None:
    shares = [
        perform(chat(), Run(options=options(prefills), policy="turnout", seed=0)).figures["slo_share"]
        for prefills in (2, 3, 4)
    ]
    assert min(shares) >= 0.8 * max(shares), shares


def test_equal_runs_with_roles_are_equal() -> None:
    run = Run(options=options(3), policy="turnout", seed=4)
    assert perform(chat(), run).figures == perform(chat(), run).figures
