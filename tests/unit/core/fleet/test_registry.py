import pytest

from turnout.core import options
from turnout.core.fleet.breaker import State
from turnout.core.fleet.registry import Fleet
from turnout.core.prefix.index import MISS


def endpoint(name: str, **settings: object) -> options.Endpoint:
    given = {"name": name, "url": "http://127.0.0.1:1", "models": ["m"], **settings}
    return options.Endpoint(**given)  # type: ignore[arg-type]


def fleet_of(*names: str) -> Fleet:
    fleet = Fleet(options.Scheduling(), options.Prefix(), options.Breaker())
    for name in names:
        fleet.add(endpoint(name), 0.0)
    return fleet


def test_counts_return_to_zero_and_never_below() -> None:
    state = fleet_of("a").endpoints["a"]
    state.opened(100, 60)
    assert (state.in_flight, state.active_tokens, state.pending_prefill_tokens) == (1, 100, 60)
    state.first_byte(60)
    state.ended(100)
    state.ended(100, 60)
    assert (state.in_flight, state.active_tokens, state.pending_prefill_tokens) == (0, 0, 0)
    assert state.attempts_total == 1


def test_end_before_the_first_byte_returns_the_prefill() -> None:
    state = fleet_of("a").endpoints["a"]
    state.opened(100, 60)
    state.ended(100, 60)
    assert state.pending_prefill_tokens == 0


def test_marks_read_and_write_as_attributes() -> None:
    state = fleet_of("a").endpoints["a"]
    assert state.marks == 0
    state.draining = True
    state.unreachable = True
    state.draining = False
    assert (state.draining, state.unreachable, bool(state.marks)) == (False, True, True)


def test_cooldown_and_lost_models_are_marked() -> None:
    state = fleet_of("a").endpoints["a"]
    state.cooldown_until = 5.0
    state.lose("m")
    assert state.marks
    state.cooldown_until = 0.0
    state.listed()
    assert (state.marks, state.lost_models) == (0, set())


def test_precision_follows_reported_cached_tokens() -> None:
    state = fleet_of("a").endpoints["a"]
    assert state.precision == 0.9
    state.cached_reported(real=5_000, predicted=20_000)
    assert state.precision == pytest.approx((5_000 + 18_000) / 40_000)


def test_pool_members_are_sorted_by_name_whatever_the_order_of_joining() -> None:
    pool = fleet_of("c", "a", "b").pool("m")
    assert pool is not None
    assert [member.name for member in pool.members] == ["a", "b", "c"]


def test_models_are_those_that_someone_serves() -> None:
    fleet = fleet_of("a")
    fleet.add(endpoint("b", models=["z", "m"]), 0.0)
    assert fleet.models == ["m", "z"]
    fleet.remove("b")
    assert fleet.models == ["m"]
    assert fleet.pool("z") is not None
    assert fleet.pool("never") is None


def test_same_identity_inherits_nothing() -> None:
    """T51: no affinity, load, breaker or cooldown goes to the next incarnation, and late results stay with the old."""
    fleet = fleet_of("a", "b")
    old = fleet.endpoints["a"]
    old.opened(10, 10)
    epoch = old.breaker.opened(0.0)
    for _ in range(3):
        old.breaker.fault(epoch, 0.0)
    old.cooldown_until = 100.0
    fleet.index.record([1, 2], old.bit, 0.0)
    new = fleet.add(endpoint("a"), 1.0)
    assert new.incarnation != old.incarnation
    assert (new.in_flight, new.cooldown_until, new.breaker.state) == (0, 0.0, State.CLOSED)
    assert fleet.index.match([1, 2], new.bit) is not MISS or new.bit != old.bit
    assert not fleet.index.match([1, 2], new.bit)
    old.ended(10, 10)
    assert new.in_flight == 0


def test_removal_is_idempotent() -> None:
    fleet = fleet_of("a")
    state = fleet.remove("a")
    assert state is not None
    assert state.gone
    assert fleet.remove("a") is None
    pool = fleet.pool("m")
    assert pool is not None
    assert pool.members == []


def test_removal_renumbers_nobody() -> None:
    fleet = fleet_of("a", "b", "c")
    kept = fleet.endpoints["b"]
    bit = kept.bit
    fleet.index.record([1, 2], bit, 0.0)
    kept.opened(5, 5)
    fleet.remove("a")
    assert (kept.bit, kept.in_flight, fleet.index.match([1, 2], bit)) == (bit, 1, {bit: 2})


def test_decisions_keep_the_columns_they_saw() -> None:
    fleet = fleet_of("a", "b")
    pool = fleet.pool("m")
    assert pool is not None
    members = pool.members
    fleet.remove("a")
    fleet.add(endpoint("c"), 0.0)
    assert [member.name for member in members] == ["a", "b"]


def test_first_connect_failure_takes_an_engine_out_until_it_is_reached_again() -> None:
    fleet = fleet_of("a")
    state = fleet.endpoints["a"]
    fleet.on_connect_failure(state, 0.0)
    assert state.unreachable
    fleet.on_probe(state, 1.0, ok=True)
    assert not state.unreachable
    assert state.breaker.share(1.0) == pytest.approx(0.1)


def test_provider_has_its_breaker_only() -> None:
    fleet = fleet_of()
    state = fleet.add(endpoint("p", provider="openai"), 0.0)
    fleet.on_connect_failure(state, 0.0)
    assert not state.unreachable


def test_three_failed_probes_in_a_row_take_out_and_one_success_brings_back() -> None:
    fleet = fleet_of("a")
    state = fleet.endpoints["a"]
    for ok in (False, False, True, False, False):
        fleet.on_probe(state, 0.0, ok=ok)
    assert not state.probe_failing
    fleet.on_probe(state, 0.0, ok=False)
    assert state.probe_failing
    fleet.on_probe(state, 0.0, ok=True)
    assert (state.probe_failing, state.breaker.plain) == (False, True)


def test_joiner_starts_slowly_only_beside_traffic() -> None:
    fleet = fleet_of("a", "b")
    assert all(state.breaker.plain for state in fleet.endpoints.values())
    fleet.endpoints["a"].opened(1, 1)
    assert not fleet.add(endpoint("c"), 0.0).breaker.plain


def test_retry_after_is_the_time_to_the_earliest_return() -> None:
    fleet = fleet_of("a", "b")
    pool = fleet.pool("m")
    assert pool is not None
    assert pool.retry_after_s(0.0) is None
    breaker = fleet.endpoints["a"].breaker
    for _ in range(3):
        breaker.fault(breaker.opened(0.0), 0.0)
    fleet.endpoints["b"].cooldown_until = 9.0
    assert pool.retry_after_s(0.5) == 5
    assert pool.retry_after_s(4.9) == 1


def test_pin_lives_with_its_incarnation_and_for_its_time() -> None:
    fleet = fleet_of("a")
    state = fleet.endpoints["a"]
    fleet.pin(7, state, 0.0)
    assert fleet.pinned(7, 1799.0) is state
    assert fleet.pinned(7, 1800.0) is None
    fleet.remove("a")
    assert fleet.pinned(7, 1.0) is None


def test_model_may_name_its_own_policy() -> None:
    fleet = Fleet(
        options.Scheduling(),
        options.Prefix(),
        options.Breaker(),
        models=(options.Model(id="m", policy="round_robin"),),
    )
    fleet.add(endpoint("a", models=["m", "n"]), 0.0)
    pools = [fleet.pool("m"), fleet.pool("n")]
    assert [pool.policy for pool in pools if pool is not None] == ["round_robin", "turnout"]
