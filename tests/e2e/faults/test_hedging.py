"""Hedging on virtual time: what a duplicate costs, and how soon the slower one of two is let go (resilience §6)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.router import Router

CANCEL_S = 0.05


@pytest.mark.parametrize("place", ["virtual"])
def test_Z3_the_loser_is_cancelled_at_once_and_hedges_stay_a_twentieth(
    loop: Any, router: Callable[..., Router], raw_engine: Any, wire: Any, rests: Any
) -> None:
    """One first token of twenty-five takes two seconds instead of a twentieth of one."""
    draw = random.Random(4)
    answer = b"".join(wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE))
    gone: list[float] = []
    begun: list[float] = []

    def slowly(transport: asyncio.Transport, _: bytes) -> None:
        late = draw.random() < 0.04
        asyncio.get_running_loop().call_later(2.0 if late else draw.uniform(0.04, 0.06), speak, transport)

    def speak(transport: asyncio.Transport) -> None:
        if not transport.is_closing():
            begun.append(loop.clock())
            transport.write(answer)

    engines = [raw_engine(slowly) for _ in range(2)]
    for engine in engines:
        engine.lost = type("Lost", (list,), {"append": lambda _, __: gone.append(loop.clock())})()
    up = router(*engines, model=[{"id": wire.MODEL, "hedge": True}])
    clients = []
    for _ in range(600):
        clients.append(up.client())
        clients[-1].send(up.request(wire.chat(stream=True)))
        loop.run(asyncio.sleep(0.1))
    assert up.eventually(lambda: len(up.records.facts) == len(clients), 30.0)
    facts = up.records.facts
    assert {fact.outcome for fact in facts} == {"completed"}
    attempts = [attempt for fact in facts for attempt in fact.attempts]
    hedges = [attempt for attempt in attempts if attempt.kind == "hedge"]
    assert 10 < len(hedges) <= 0.05 * len(attempts)
    lost = [attempt for attempt in attempts if attempt.error_kind == "hedge_lost"]
    assert len(lost) == len(hedges)
    for fact in facts:
        for attempt in fact.attempts:
            if attempt.error_kind == "hedge_lost":
                assert attempt.ended_at_ms - fact.started_at_ms - (fact.ttft_ms or 0) <= CANCEL_S * 1000
                assert not attempt.counted
    # So it is at the engines: as many connections were closed within 50 ms of somebody's first output.
    cancels = [at for at in gone if any(abs(at - first) <= CANCEL_S for first in begun)]
    assert len(cancels) >= len(lost)
    won = [fact for fact in facts if fact.attempts[-1].kind == "hedge" and fact.attempts[-1].ok]
    assert won
    assert min(fact.ttft_ms or 0 for fact in won) < 1000
    assert rests(up)
