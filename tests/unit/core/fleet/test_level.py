"""How full endpoints are, and how many places that leaves (resilience §9)."""

from __future__ import annotations

import pytest

from turnout.core import options
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.level import Level, capacity, level, never_fits, settle
from turnout.core.fleet.report import Report

ADMISSION = options.Admission()


def member(**given: object) -> EndpointState:
    endpoint = options.Endpoint(name="a", url="http://127.0.0.1:1", models=["m"], **given)  # type: ignore[arg-type]
    return EndpointState(endpoint, options.Breaker(), 1, 1)


def told(endpoint: EndpointState, now: float, **report: object) -> None:
    endpoint.observed(endpoint.sent(now), Report(**report), 5.0, 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "reported", "expected"),
    [
        ({}, None, 256),
        ({"role": "decode"}, None, 256),
        ({"role": "prefill"}, None, 16),
        ({"role": "prefill", "max_in_flight": 64}, None, 64),
        ({}, 1024, 1024),
        ({}, 32, 32),
        ({"max_in_flight": 8}, 32, 8),
        ({"max_in_flight": 64}, 32, 32),
    ],
)
def test_capacity_is_reported_or_configured_or_taken_by_role(
    given: dict[str, object], reported: int | None, expected: int
) -> None:
    endpoint = member(**given)
    told(endpoint, 100.0, max_running=reported)
    settle(endpoint, 100.0, ADMISSION)
    assert (capacity(endpoint), endpoint.places, endpoint.high_places) == (expected, expected, expected // 2)


def test_an_endpoint_that_never_reported_has_the_places_it_began_with() -> None:
    endpoint = member(max_in_flight=7)
    assert (endpoint.places, endpoint.high_places) == (7, 4)
    settle(endpoint, 100.0, ADMISSION)
    assert (endpoint.places, endpoint.high_places) == (7, 4)


def test_requests_of_others_take_places_until_the_report_is_old() -> None:
    endpoint = member()
    endpoint.in_flight = 4
    told(endpoint, 100.0, running=12, waiting=2, max_running=16)
    settle(endpoint, 105.0, ADMISSION)
    assert endpoint.places == 6
    assert level(endpoint, 105.0, ADMISSION) is Level.HIGH
    settle(endpoint, 105.1, ADMISSION)
    assert endpoint.places == 16
    assert level(endpoint, 105.1, ADMISSION) is Level.NORMAL


def test_what_was_opened_while_a_report_was_under_way_is_not_taken_for_others() -> None:
    endpoint = member(max_in_flight=16)
    endpoint.in_flight = 2
    sent = endpoint.sent(100.0)
    for _ in range(10):
        endpoint.opened(1, 1)
    endpoint.observed(sent, Report(running=12, waiting=0), 5.0, 0.0)
    settle(endpoint, 100.2, ADMISSION)
    assert endpoint.places == 16
    endpoint.observed(sent, Report(running=15, waiting=0), 5.0, 0.0)
    settle(endpoint, 100.2, ADMISSION)
    assert endpoint.places == 13


def test_full_memory_takes_nothing_more_until_it_is_reported_otherwise_or_not_at_all() -> None:
    endpoint = member()
    told(endpoint, 100.0, running=0, waiting=0, kv_usage_ratio=0.96)
    settle(endpoint, 100.0, ADMISSION)
    assert (endpoint.places, level(endpoint, 100.0, ADMISSION)) == (0, Level.CRITICAL)
    settle(endpoint, 105.1, ADMISSION)
    assert (endpoint.places, level(endpoint, 105.1, ADMISSION)) == (256, Level.LOW)
    told(endpoint, 106.0, running=0, waiting=0, kv_usage_ratio=0.85)
    settle(endpoint, 106.0, ADMISSION)
    assert (endpoint.places, endpoint.high_places) == (256, 0)


def test_ratios_are_configured() -> None:
    endpoint = member(max_in_flight=10)
    settle(endpoint, 0.0, options.Admission(critical_ratio=0.8, high_ratio=0.3))
    assert (endpoint.places, endpoint.high_places) == (8, 3)


def test_Q3_never_fits_only_when_every_cache_is_known_and_too_small() -> None:
    small, unknown, large = member(), member(), member()
    small.kv_capacity_tokens, large.kv_capacity_tokens = 1000, 2000
    assert never_fits(1001, [small])
    assert not never_fits(1000, [small])
    assert not never_fits(1001, [small, unknown])
    assert not never_fits(1001, [small, large])
    assert not never_fits(1001, [])


@pytest.mark.parametrize(
    ("in_flight", "expected"),
    [(0, Level.LOW), (1, Level.NORMAL), (3, Level.NORMAL), (4, Level.HIGH), (8, Level.CRITICAL)],
)
def test_levels_follow_the_places_taken(in_flight: int, expected: Level) -> None:
    endpoint = member(max_in_flight=8)
    endpoint.in_flight = in_flight
    assert level(endpoint, 0.0, ADMISSION) is expected


@pytest.mark.parametrize(
    ("memory", "age_s", "expected"),
    [
        (0.95, 1.0, Level.CRITICAL),
        (0.8, 1.0, Level.HIGH),
        (0.79, 1.0, Level.LOW),
        (0.99, 6.0, Level.LOW),
        (None, 1.0, Level.LOW),
    ],
)
def test_q11_full_memory_is_full_but_an_old_report_never_is(
    memory: float | None, age_s: float, expected: Level
) -> None:
    endpoint = member()
    endpoint.reported(100.0 - age_s, 0, 0, 0, memory)
    assert level(endpoint, 100.0, ADMISSION) is expected


def test_foreign_requests_fill_an_endpoint_too() -> None:
    endpoint = member(max_in_flight=8)
    endpoint.in_flight = 1
    endpoint.reported(100.0, 1, 7, 1)
    assert level(endpoint, 101.0, ADMISSION) is Level.CRITICAL
