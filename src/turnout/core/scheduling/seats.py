"""From a decision to an open attempt: the one call that both drivers, gateway and replay, make to bind a request."""

from __future__ import annotations

from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.fleet.seat import Seat
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import Decision


def take_seat(decision: Decision, ask: Ask, pool: Pool, fleet: Fleet, now: float) -> Seat:
    """Bind the request to the endpoint that was picked; give everything back through the seat."""
    picked = decision.picked
    if picked is None:
        raise ValueError(f"the verdict of this decision is {decision.verdict}, expected {decision.verdict.PICKED}")
    for stream in picked.streams:
        stream.used_at = now
    return Seat(
        fleet,
        pool,
        picked,
        keys=ask.keys,
        depth=decision.matched_blocks,
        tokens=ask.tokens,
        uncached=decision.uncached,
        predicted=decision.predicted,
        block_tokens=ask.block_tokens,
        now=now,
        streams=ask.streams,
        chain=ask.chains.get(picked.block_tokens) if picked.streams else None,
        mode=decision.mode,
        dp_rank=decision.dp_rank,
        affinity=ask.affinity if decision.dp_rank >= 0 else 0,
    )


def take_seat_again(endpoint: EndpointState, ask: Ask, pool: Pool, fleet: Fleet, now: float) -> Seat:
    """Bind a request to an endpoint without a new decision: another try at the same one, nothing believed cached."""
    return Seat(
        fleet,
        pool,
        endpoint,
        keys=ask.keys,
        depth=0,
        tokens=ask.tokens,
        uncached=ask.tokens,
        predicted=0,
        block_tokens=ask.block_tokens,
        now=now,
        streams=ask.streams,
    )
