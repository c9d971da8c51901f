"""How full an endpoint is, in four levels (resilience §9). Unknown is never Critical.

Capacity is what the engine reports, else the endpoint's `max_in_flight`; a prefill endpoint that says nothing is taken
to hold 16. Full means: takes nothing more; High means: takes its normal traffic, but no duplicates.
"""

from __future__ import annotations

import enum

from turnout.core.fleet.endpoint import EndpointState
from turnout.core.options import Admission

_REPORT_MAX_AGE_S = 5.0  # load.max_age_s
_PREFILL_CAPACITY = 16


class Level(enum.IntEnum):
    """Higher is fuller."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


def capacity(endpoint: EndpointState) -> int:
    """Attempts that the endpoint holds at once."""
    if endpoint.role == "prefill":
        return min(endpoint.max_in_flight, _PREFILL_CAPACITY)
    return endpoint.max_in_flight


def active(endpoint: EndpointState, now: float) -> int:
    """Requests on the endpoint: our own, or more when a fresh report tells of foreign ones."""
    observed_at = endpoint.observed_at
    if observed_at is None or now - observed_at > _REPORT_MAX_AGE_S:
        return endpoint.in_flight
    reported = (endpoint.running or 0) + (endpoint.waiting or 0)
    return max(endpoint.in_flight, reported + endpoint.in_flight - endpoint.in_flight_at_report)


def level(endpoint: EndpointState, now: float, options: Admission) -> Level:
    """The level of an endpoint; a stale or missing report says nothing about its memory."""
    room = capacity(endpoint)
    requests = active(endpoint, now)
    memory = endpoint.kv_usage_ratio
    if memory is None or endpoint.observed_at is None or now - endpoint.observed_at > _REPORT_MAX_AGE_S:
        memory = 0.0
    if requests >= room or memory >= options.critical_memory:
        return Level.CRITICAL
    if requests >= room * options.high_ratio or memory >= options.high_memory:
        return Level.HIGH
    return Level.NORMAL if requests else Level.LOW
