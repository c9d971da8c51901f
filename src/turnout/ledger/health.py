"""Failure streaks and their cooldowns: a function of the newest results of one identity, nothing else (ledger §6)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from turnout.core.facts import Streak

SAMPLE: Final = 64
_MINUTE_MS: Final = 60_000
_DOUBLINGS_MAX: Final = 10
_CAPACITY: Final = frozenset({"rate_limit", "overloaded"})
# What a failure says nothing about: the route, or the endpoint behind it.
_NOT_THE_ROUTE: Final = frozenset(
    {
        *("bad_request", "content_filter", "context_overflow", "cancelled", "deadline", "hedge_lost", "endpoint_gone"),
        *("internal", "payment_required", "upstream_408"),
    }
)
_NOT_THE_ENDPOINT: Final = _NOT_THE_ROUTE | {"model_unavailable", "stream_cut"}
# First cooldown and its cap, in minutes.
_BY_CAPACITY: Final = (1, 60)
_OF_ROUTE: Final = (15, 60)
_OF_ROUTE_WITHOUT_MODEL: Final = (30, 360)
_OF_ENDPOINT: Final = (5, 60)
HEALTHY: Final = Streak(0, 0)


class Result(msgspec.Struct, frozen=True, gc=False):
    """How one attempt ended."""

    ended_at_ms: int
    seq: int
    ok: bool
    error_kind: str
    http_status: int | None


def streak(newest_first: Iterable[Result], now_ms: int, *, endpoint: bool = False) -> Streak | None:
    """Count failures until a success, over at most 64 results; None without any evidence.

    Args:
        newest_first: by instant and sequence, descending.
        now_ms: decides whether the cooldown is over.
        endpoint: for an endpoint with all its models instead of one route.

    """
    skipped = _NOT_THE_ENDPOINT if endpoint else _NOT_THE_ROUTE
    failures, latest, succeeded = 0, None, False
    for seen, result in enumerate(newest_first):
        if seen == SAMPLE:
            break
        if result.ok:
            succeeded = True
            break
        if result.error_kind not in skipped:
            failures += 1
            latest = latest or result
    if latest is None:
        return HEALTHY if succeeded else None
    until = latest.ended_at_ms + cooldown_ms(failures, latest.error_kind, endpoint=endpoint)
    tier = 3 if now_ms < until else 2
    return Streak(failures, tier, latest.ended_at_ms, latest.error_kind, latest.http_status, until)


def cooldown_ms(failures: int, kind: str, *, endpoint: bool) -> int:
    """Give min(cap, base · 2^min(failures − 1, 10)) for the scope and the latest kind."""
    if kind in _CAPACITY:
        base, cap = _BY_CAPACITY
    elif endpoint:
        base, cap = _OF_ENDPOINT
    elif kind == "model_unavailable":
        base, cap = _OF_ROUTE_WITHOUT_MODEL
    else:
        base, cap = _OF_ROUTE
    return min(cap, base << min(failures - 1, _DOUBLINGS_MAX)) * _MINUTE_MS
