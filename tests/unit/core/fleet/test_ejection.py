"""Relative ejection (resilience O2, O3), levels (§9) and progress (O4, O5)."""

from __future__ import annotations

import pytest

from turnout.core import options
from turnout.core.fleet.ejection import Ejections
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.health import counts_as_failure, is_lost, makes_progress

BREAKER = options.Breaker(consecutive=1000, ratio_min=100_000)


def member(name: str, **facts: object) -> EndpointState:
    given: dict[str, object] = {"name": name, "url": "http://127.0.0.1:1", "models": ["m"], **facts}
    return EndpointState(options.Endpoint(**given), BREAKER, 1, 1)  # type: ignore[arg-type]


def results(endpoint: EndpointState, bad: int, good: int, now: float) -> None:
    # Interleaved, as a failing share of traffic is.
    for number in range(bad + good):
        epoch = endpoint.breaker.opened(now)
        (endpoint.breaker.fault if number < bad else endpoint.breaker.success)(epoch, now)


def pool_of(*faults: int, now: float = 0.0) -> list[EndpointState]:
    """Endpoints with so many faults of ten results each."""
    members = [member(f"e{number}") for number in range(len(faults))]
    for endpoint, bad in zip(members, faults, strict=True):
        results(endpoint, bad, 10 - bad, now)
    return members


def ejected(members: list[EndpointState], now: float, ejections: Ejections | None = None) -> list[str]:
    return [endpoint.name for endpoint in (ejections or Ejections(options.Ejection())).review(members, now)]


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ((3, 0, 0), ["e0"]),
        ((2, 0, 0), ["e0"]),
        ((1, 0, 0), []),
        ((3, 3, 3), []),
        ((5, 3, 3), ["e0"]),
        ((4, 3, 3), []),
        ((9, 0), []),
        ((3, 0, 9, 0), ["e2"]),
    ],
)
def test_o2_twenty_points_above_the_median_of_the_others(faults: tuple[int, ...], expected: list[str]) -> None:
    assert ejected(pool_of(*faults), 1.0) == expected


def test_o2_too_few_results_mean_nothing() -> None:
    members = pool_of(0, 0)
    members.append(member("new"))
    results(members[2], 9, 0, 0.0)
    assert ejected(members, 1.0) == []


def test_o2_out_for_half_a_minute_times_the_ejections_then_slowly_back() -> None:
    ejections = Ejections(options.Ejection())
    members = pool_of(3, 0, 0)
    assert ejected(members, 0.0, ejections) == ["e0"]
    assert ejected(members, 29.9, ejections) == []
    assert members[0].ejected
    ejections.review(members, 30.0)
    assert not members[0].ejected
    assert members[0].breaker.share(30.0) == pytest.approx(0.1)
    for endpoint, bad in zip(members, (3, 0, 0), strict=True):
        results(endpoint, bad, 10 - bad, 31.0)
    assert ejected(members, 32.0, ejections) == ["e0"]
    ejections.review(members, 91.9)
    assert members[0].ejected
    ejections.review(members, 92.0)
    assert not members[0].ejected


def test_f40_earlier_ejections_are_forgotten_after_ten_quiet_minutes() -> None:
    ejections = Ejections(options.Ejection())
    members = pool_of(3, 0, 0)
    ejections.review(members, 0.0)
    ejections.review(members, 30.0)
    ejections.review(members, 600.0)
    for endpoint, bad in zip(members, (3, 0, 0), strict=True):
        results(endpoint, bad, 10 - bad, 601.0)
    ejections.review(members, 601.0)
    assert members[0].ejected
    ejections.review(members, 631.0)
    assert not members[0].ejected


def test_o3_at_most_half_of_a_pool_is_out() -> None:
    ejections = Ejections(options.Ejection())
    members = pool_of(9, 8, 7, 0, 0, 0, 0)
    assert [ejected(members, now, ejections) for now in (1.0, 2.0, 3.0, 4.0)] == [["e0"], ["e1"], ["e2"], []]


def test_o3_unreachable_ones_count_first() -> None:
    members = pool_of(5, 0, 0)
    members[1].unreachable = True
    assert ejected(members, 1.0) == []


def test_removed_endpoints_are_forgotten() -> None:
    ejections = Ejections(options.Ejection())
    members = pool_of(3, 0, 0)
    ejections.review(members, 0.0)
    members[0].gone = True
    ejections.review(members[1:], 1.0)
    assert len(ejections._records) == 0


def test_busy_is_not_dead() -> None:
    endpoint = member("a")
    assert not makes_progress(endpoint, None, 100.0)
    assert makes_progress(endpoint, 95.0, 100.0)
    assert not makes_progress(endpoint, 94.9, 100.0)
    endpoint.last_byte_at = 96.0
    assert makes_progress(endpoint, 10.0, 100.0)
    assert not counts_as_failure(ok=False, timed_out=True, progress=True)
    assert counts_as_failure(ok=False, timed_out=True, progress=False)
    assert counts_as_failure(ok=False, timed_out=False, progress=True)
    assert not counts_as_failure(ok=True, timed_out=False, progress=False)


@pytest.mark.parametrize("mark", ["unreachable", "probe_failing"])
def test_r9_lost_endpoints_are_known_by_one_look(mark: str) -> None:
    endpoint = member("a")
    assert not is_lost(endpoint)
    setattr(endpoint, mark, True)
    assert is_lost(endpoint)


def test_i3_a_removed_endpoint_is_not_lost_by_being_removed() -> None:
    endpoint = member("a")
    endpoint.gone = True
    assert not is_lost(endpoint)
