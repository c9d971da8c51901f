"""How full an endpoint is, in four levels, and how many places that leaves for us (resilience §9).

Capacity is what the engine reports, else the endpoint's `max_in_flight`, else what its role usually holds. Unknown is
never Critical: a stale report tells of no foreign requests and of no full memory. The path of a request looks at
`places` only, which is settled when a report comes and once a second. Critical means: takes nothing more; High means:
takes its normal traffic, but no duplicates.
"""

from __future__ import annotations

import enum
import math

from turnout.core.fleet.endpoint import EndpointState
from turnout.core.options import Admission


class Level(enum.IntEnum):
    """Higher is fuller."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


def capacity(endpoint: EndpointState) -> int:
    """Requests that the endpoint holds at once, whoever sent them; never more than it was configured to get from us."""
    reported = endpoint.max_running
    if reported is None:
        return endpoint.max_in_flight
    return reported if endpoint.limit is None else min(endpoint.limit, reported)


def active(endpoint: EndpointState, now: float) -> int:
    """Requests on the endpoint: our own, and those that a fresh report tells of beside them."""
    return endpoint.in_flight + _foreign(endpoint, now)


def settle(endpoint: EndpointState, now: float, options: Admission) -> None:
    """Work out how many of our own attempts fit, and from how many on the endpoint is High."""
    held, foreign, memory = capacity(endpoint), _foreign(endpoint, now), _memory(endpoint, now)
    critical = 0 if memory >= options.critical_memory else _share(held, options.critical_ratio)
    high = 0 if memory >= options.high_memory else _share(held, options.high_ratio)
    endpoint.places = max(0, critical - foreign)
    endpoint.high_places = max(0, high - foreign)


def level(endpoint: EndpointState, now: float, options: Admission) -> Level:
    """The level of an endpoint; a stale or missing report says nothing about its memory."""
    requests, memory, held = active(endpoint, now), _memory(endpoint, now), capacity(endpoint)
    if requests >= _share(held, options.critical_ratio) or memory >= options.critical_memory:
        return Level.CRITICAL
    if requests >= _share(held, options.high_ratio) or memory >= options.high_memory:
        return Level.HIGH
    return Level.NORMAL if requests else Level.LOW


def never_fits(floor: int, members: list[EndpointState]) -> bool:
    """Tell whether a prompt is larger than the whole KV cache of every endpoint, all known (Q3)."""
    return bool(members) and all(m.kv_capacity_tokens is not None and floor > m.kv_capacity_tokens for m in members)


def _share(held: int, ratio: float) -> int:
    return max(1, math.ceil(held * ratio))


def _fresh(endpoint: EndpointState, now: float) -> bool:
    return now <= endpoint.prefill.heard_until


def _foreign(endpoint: EndpointState, now: float) -> int:
    """Requests of others, at least: what the report told beyond everything that could have been ours."""
    if not _fresh(endpoint, now) or endpoint.running is None or endpoint.waiting is None:
        return 0
    return max(0, endpoint.running + endpoint.waiting - endpoint.own_at_report)


def _memory(endpoint: EndpointState, now: float) -> float:
    return endpoint.kv_usage_ratio or 0.0 if _fresh(endpoint, now) else 0.0
