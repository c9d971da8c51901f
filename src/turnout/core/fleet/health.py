"""Busy is not dead, and alive is not working: what progress says about an endpoint (resilience O4, O5, R9, D3).

Progress is a response byte in the last five seconds. While there is some, nobody needs to probe, and a probe that
times out counts nothing. An endpoint that is unreachable or failing its probes gets one second of patience for each
open response, instead of the minutes that a silent socket could take. One that was removed is asked while attempts on
it are open: as long as its process answers they run on, however silent (I3).
"""

from __future__ import annotations

from turnout.core.fleet.breaker import State
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.marks import DRAINING, EJECTED, PROBE_FAILING, REFUSED, UNREACHABLE

PROGRESS_S = 5.0
PATIENCE_S = 1.0
ONLINE = "online"
_LOST = UNREACHABLE | PROBE_FAILING
# The weightiest first: of several only that one is told.
_CONDITIONS = (
    (DRAINING, "draining"),
    (UNREACHABLE, "unreachable"),
    (PROBE_FAILING, "probe_failing"),
    (REFUSED, "credential_refused"),
    (EJECTED, "ejected"),
)


def makes_progress(endpoint: EndpointState, last_byte_s: float | None, now: float) -> bool:
    """Tell whether the endpoint delivered lately.

    Args:
        endpoint: the endpoint; its own note of the last byte is taken from ended attempts.
        last_byte_s: the latest byte of its open responses, None when there is none.
        now: the present.

    """
    latest = max(endpoint.last_byte_at or float("-inf"), last_byte_s if last_byte_s is not None else float("-inf"))
    return now - latest <= PROGRESS_S


def is_lost(endpoint: EndpointState) -> bool:
    """Tell whether waiting for this endpoint is probably in vain; one look at its marks."""
    return bool(endpoint.marks & _LOST)


def condition(endpoint: EndpointState) -> str:
    """Name what keeps traffic away from an endpoint."""
    if endpoint.marks:
        for bit, name in _CONDITIONS:
            if endpoint.marks & bit:
                return name
    state = endpoint.breaker.state
    return ONLINE if state is State.CLOSED else f"breaker_{state}"


def counts_as_failure(*, ok: bool, timed_out: bool, progress: bool) -> bool:
    """Tell whether a readiness probe counts: a refusal always does, silence only without progress."""
    return not ok and not (timed_out and progress)
