"""How long an attempt may stay without its first output: less when another endpoint could be asked (D2, D2a, D3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnout.core.attempt import Attempt
    from turnout.gateway.run import Run

_NEVER = float("inf")
_RESPONSE_BASE_S, _RESPONSE_TOKENS_PER_S, _RESPONSE_MIN_S, _RESPONSE_MAX_S = 10.0, 30.0, 60.0, 300.0
_RESPONSE_UNKNOWN_S = 90.0


def first_answer_limit_s(run: Run, attempt: Attempt) -> float:
    """Return the limit of the current attempt in seconds."""
    timeouts = run.gateway.timeout_options
    elsewhere = _could_go_elsewhere(run, attempt)
    if run.request.stream:
        return timeouts.first_token_failover_s if elsewhere else timeouts.first_token_s
    if not elsewhere:
        return _NEVER
    if run.request.max_tokens is None:
        return _RESPONSE_UNKNOWN_S
    tokens_s = _RESPONSE_BASE_S + run.request.max_tokens / _RESPONSE_TOKENS_PER_S
    return min(max(tokens_s, _RESPONSE_MIN_S), _RESPONSE_MAX_S)


def _could_go_elsewhere(run: Run, attempt: Attempt) -> bool:
    exchange, options = run.exchange, run.gateway.retry_options
    if exchange is None or len(exchange.attempts) >= min(options.attempts, options.attempts_per_model):
        return False
    pool = run.gateway.fleet.pool(run.model)
    tried = exchange.ask.tried
    return pool is not None and any(
        member is not attempt.endpoint and member.name not in tried and not member.unreachable
        for member in pool.members
    )
