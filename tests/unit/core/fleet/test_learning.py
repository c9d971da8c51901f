"""What an endpoint's own times and reports teach: prefill model, precision, load of others."""

from __future__ import annotations

import random

import pytest

from turnout.core import options
from turnout.core.fleet.precision import Mode, Precision
from turnout.core.fleet.prefill import Prefill, settle
from turnout.core.fleet.registry import Fleet
from turnout.core.fleet.report import Report
from turnout.core.fleet.seat import Seat


def learnt(a: float, b: float, *, samples: int = 60, noise: float = 0.0) -> Prefill:
    rng = random.Random(4)
    prefill = Prefill(8000.0)
    for _ in range(samples):
        tokens = rng.choice([512, 2048, 8192, 16_384])
        seconds = a * tokens + b * tokens * tokens / 2 + prefill.step_s
        prefill.learn(tokens, tokens, seconds * (1.0 + noise * rng.random()))
        settle([prefill])
    return prefill


@pytest.mark.parametrize(("a", "b"), [(71e-6, 1.66e-9), (32e-6, 0.0), (1e-3, 0.0)])
def test_prefill_model_finds_linear_and_quadratic_part(a: float, b: float) -> None:
    prefill = learnt(a, b)
    for tokens in (1000, 16_000):
        expected = a * tokens + b * tokens * tokens / 2
        assert prefill.work_of(tokens, tokens) == pytest.approx(expected, rel=0.1)


def test_one_outlier_moves_the_estimate_by_little() -> None:
    prefill = learnt(1e-4, 0.0)
    before = prefill.work_of(4096, 4096)
    prefill.learn(4096, 4096, 600.0)
    settle([prefill])
    assert prefill.work_of(4096, 4096) < 1.2 * before


def test_short_prompts_measure_the_step_and_teach_nothing() -> None:
    assert Prefill(8000.0).learn(100, 100, 5.0) is False


def test_replica_at_half_speed_is_believed_slow_and_its_peers_are_not() -> None:
    rng = random.Random(1)
    models = [Prefill(8000.0) for _ in range(4)]
    for _ in range(100):
        tokens = rng.choice([1024, 4096, 8192])
        for number, model in enumerate(models):
            model.learn(tokens, tokens, (2e-4 if number == 0 else 1e-4) * tokens + model.step_s)
        settle(models)
    assert models[0].a == pytest.approx(2 * models[1].a, rel=0.15)
    assert {model.a for model in models[1:]} == {models[1].a}


def test_endpoint_that_learns_nothing_for_a_while_is_not_believed_faster_and_faster() -> None:
    """Its queue is never short, because it is the one in trouble: belief in its speed would send it still more."""
    rng = random.Random(2)
    models = [Prefill(8000.0) for _ in range(4)]
    for turn in range(600):
        tokens = rng.choice([1024, 4096, 8192])
        for model in models[: 4 if turn < 50 else 3]:
            # Slower than at first, so that the others' speeds keep moving.
            model.learn(tokens, tokens, (1e-4 if turn < 60 else 1.5e-4) * tokens + model.step_s)
        settle(models)
    assert models[3].a == models[0].a


def test_early_samples_that_met_the_prior_do_not_make_an_endpoint_slow() -> None:
    rng = random.Random(3)
    models = [Prefill(80_000.0) for _ in range(4)]
    for turn in range(100):
        tokens = rng.choice([1024, 4096, 8192])
        for model in models[: 4 if turn < 10 else 3]:
            model.learn(tokens, tokens, 1e-4 * tokens + model.step_s)
        settle(models)
    assert models[3].a == pytest.approx(models[0].a)


def test_precision_learns_from_reported_cached_tokens() -> None:
    precision = Precision(Mode.APPROXIMATE)
    assert precision.value == 0.9
    for _ in range(30):
        precision.reported(2000, 4000)
    assert 0.5 < precision.value < 0.7


def test_null_is_unknown_until_the_endpoint_reported_a_number_once() -> None:
    precision = Precision(Mode.APPROXIMATE)
    for _ in range(100):
        precision.reported(None, 4000)
    assert (precision.value, precision.reports) == (0.9, 0)
    precision.reported(4000, 4000)
    for _ in range(60):
        precision.reported(None, 4000)
    assert precision.estimate < 0.5


def test_lost_affinity_raises_alarm() -> None:
    """T67: predicted without realised tokens is noticed: the match counts nothing until it proves itself again."""
    precision = Precision(Mode.APPROXIMATE)
    precision.reported(1, 1)
    for _ in range(60):
        precision.reported(0, 8000)
    assert (precision.trusted, precision.value) == (False, 0.0)
    for _ in range(60):
        precision.reported(8000, 8000)
    assert precision.trusted
    assert precision.value >= 0.4


def fleet_of(*names: str) -> Fleet:
    fleet = Fleet(options.Scheduling(), options.Prefix(), options.Breaker())
    for name in names:
        fleet.add(options.Endpoint(name=name, url="http://h:1", models=["m"]), 0.0)
    return fleet


def test_waiting_of_others_is_queued_work() -> None:
    fleet = fleet_of("a")
    state = fleet.endpoints["a"]
    fleet.observed(state, state.sent(1.0), Report(running=1, waiting=4))
    pool = fleet.pool("m")
    assert pool is not None
    assert state.prefill.queue_s(2.0) == pytest.approx(4 * pool.mean_uncached / 8000)
    assert state.prefill.queue_s(7.0) == 0.0


def test_reported_tokens_replace_the_guess_and_own_dispatches_since_are_added() -> None:
    state = fleet_of("a").endpoints["a"]
    sent = state.sent(1.0)
    state.prefill.opened(0.5, 1.1)
    state.observed(sent, Report(waiting=3, waiting_uncached_tokens=16_000), 5.0, 512.0)
    assert state.prefill.queue_s(1.1) == pytest.approx(2.0 + 0.5)


def test_reported_tokens_cost_what_attention_over_their_context_costs() -> None:
    fleet = fleet_of("a")
    endpoint = fleet.endpoints["a"]
    pool = fleet.pool("m")
    assert pool is not None
    endpoint.prefill.a, endpoint.prefill.b = 1e-5, 1e-9
    for _ in range(2000):
        pool.scheduled(90_000, 2000)
    fleet.observed(endpoint, endpoint.sent(1.0), Report(waiting_uncached_tokens=100_000))
    assert endpoint.prefill.queue_s(1.0) == pytest.approx(100_000 * (1e-5 + 1e-9 * 89_000), rel=0.01)


def test_engine_that_began_a_new_life_keeps_its_context_only() -> None:
    fleet = fleet_of("a", "b")
    old = fleet.endpoints["a"]
    old.context_max = 4096
    old.opened(10, 10)
    new = fleet.restarted(old, 5.0)
    assert new is fleet.endpoints["a"]
    assert new is not old
    assert (new.context_max, new.in_flight, old.gone) == (4096, 0, True)
    assert fleet.restarted(old, 6.0) is None


def test_bytes_per_token_follow_what_engines_count() -> None:
    pool = fleet_of("a").pool("m")
    assert pool is not None
    for _ in range(200):
        pool.measured(3000, 1000)
    assert pool.bytes_per_token.value == pytest.approx(3.0, abs=0.01)
    pool.measured(0, 10)
    pool.measured(10**9, 1)
    assert 1.0 <= pool.bytes_per_token.value <= 8.0


def seat_of(fleet: Fleet, *, tokens: int, uncached: int, predicted: int) -> Seat:
    pool = fleet.pool("m")
    assert pool is not None
    return Seat(
        fleet,
        pool,
        fleet.endpoints["a"],
        keys=[],
        depth=0,
        tokens=tokens,
        uncached=uncached,
        predicted=predicted,
        block_tokens=64.0,
        now=0.0,
    )


def test_speed_is_learnt_from_what_was_cached_not_from_what_was_believed() -> None:
    """Predictions that fail half of the time must not make an endpoint look faster when they hold, slower when not."""
    fleet = fleet_of("a")
    prefill = fleet.endpoints["a"].prefill
    for turn in range(400):
        cached = 0 if turn % 2 else 7000
        seat = seat_of(fleet, tokens=8000, uncached=4500, predicted=7000)
        seat.first_byte((8000 - cached) * 1e-4 + prefill.step_s)
        seat.ended(2.0, failed=False, tokens_out=1, cached=cached or None, prompt=8000)
    assert prefill.a == pytest.approx(1e-4, rel=0.05)


def test_cached_tokens_are_compared_in_tokens_as_estimated() -> None:
    """A prompt believed to be twice as long as it is holds twice the tokens of a match: that is no broken promise."""
    fleet = fleet_of("a")
    for _ in range(60):
        seat = seat_of(fleet, tokens=16_000, uncached=2000, predicted=14_000)
        seat.first_byte(0.1)
        seat.ended(1.0, failed=False, tokens_out=10, cached=7000, prompt=8000)
    assert fleet.endpoints["a"].precision == pytest.approx(1.0, abs=0.02)
