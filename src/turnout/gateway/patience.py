"""How long an attempt may stay without its first output (D2, D2a, D3, D7): less while somebody else can be asked.

A whole answer has none before its end, so once it has begun it must also come at a pace (F28).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout.core.errors import ErrorKind
from turnout.core.fleet.breaker import State
from turnout.core.options import Timeout

if TYPE_CHECKING:
    from turnout.core.attempt import Attempt
    from turnout.gateway.legs import LegPair
    from turnout.gateway.run import Run
    from turnout.http.client import EngineConnection

_NEVER: Final = float("inf")
_RESPONSE_BASE_S: Final = 10.0
_RESPONSE_TOKENS_PER_S: Final = 30.0
_PREDICTED_TIMES: Final = 3.0


def unanswered(run: Run, attempt: Attempt, unsent: EngineConnection | None, asked_s: float) -> tuple[ErrorKind, float]:
    """Return which limit of an attempt without output passes first, and when.

    Args:
        run: whose attempt it is.
        attempt: the attempt.
        unsent: the connection that the request may not have left yet; None when the engine has begun to answer.
        asked_s: when the request was sent.

    """
    kind = ErrorKind.TIMEOUT_FIRST_TOKEN if run.request.stream else ErrorKind.TIMEOUT_RESPONSE
    due = asked_s + _first_answer_limit_s(run, attempt)
    stuck_s = None if unsent is None else unsent.stuck_since
    if stuck_s is None:
        return kind, due
    send_due = stuck_s + run.timeouts.send_s
    return (ErrorKind.TIMEOUT_SEND, send_due) if send_due < due else (kind, due)


def whole_by(run: Run, began_s: float, received: int) -> float:
    """Return when a whole answer that has come so far is too slow to wait for (F28)."""
    timeouts: Timeout = run.timeouts
    if not timeouts.body_min_bytes_per_s:
        return _NEVER
    return began_s + max(timeouts.body_min_after_s, received / timeouts.body_min_bytes_per_s)


def _first_answer_limit_s(run: Run, attempt: Attempt) -> float:
    """Return the limit of one attempt, counted from the instant its request was sent."""
    if attempt.legs is not None:
        driver: LegPair = attempt.legs.driver
        return driver.limit_s(lambda: _limit_s(run, attempt))
    return _limit_s(run, attempt)


def _limit_s(run: Run, attempt: Attempt) -> float:
    timeouts: Timeout = run.timeouts
    elsewhere = could_go_elsewhere(run, attempt)
    if run.request.stream:
        if not elsewhere:
            return timeouts.first_token_s
        # A long cold prefill is no silence: what is predicted for it here counts three times, within D2.
        predicted_s = attempt.seat.predicted_s if attempt.seat is not None else 0.0
        return max(timeouts.first_token_failover_s, min(timeouts.first_token_s, _PREDICTED_TIMES * predicted_s))
    if not elsewhere:
        return _NEVER
    if run.gateway.recovery.health.progress(attempt.endpoint, run.clock()):
        return timeouts.response_max_s
    if run.request.max_tokens is None:
        return timeouts.response_unknown_s
    tokens_s = _RESPONSE_BASE_S + run.request.max_tokens / _RESPONSE_TOKENS_PER_S
    return min(max(tokens_s, timeouts.response_min_s), timeouts.response_max_s)


def could_go_elsewhere(run: Run, attempt: Attempt) -> bool:
    """Tell whether a next attempt on another endpoint, or on another model, is possible now."""
    exchange = run.exchange
    if exchange is None or exchange.attempts_left() < 1 or not exchange.budget_left(run.clock()):
        return False
    if run.has_next_model():
        return True
    pool = run.gateway.fleet.pool(run.model)
    if pool is None:
        return False
    tried = exchange.ask.tried
    return any(
        member is not attempt.endpoint
        and member.name not in tried
        and not (member.gone or member.draining or member.unreachable)
        and member.in_flight < member.places
        and member.breaker.state is not State.OPEN
        for member in pool.members
    )
