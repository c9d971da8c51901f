"""F42: a replica that is ten times slower is left alone soon, by what its answers took, and is nobody's fault."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from turnout.sim.faults import Fault
from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

if TYPE_CHECKING:
    from tests.support.router import Router

NAMES = ("e1", "e2", "e3", "e4")


def engines(loop: Any) -> tuple[dict[str, SimEngineServer], list[dict[str, Any]]]:
    servers: dict[str, SimEngineServer] = {}
    table = []
    for name in NAMES:

        async def make(name: str = name) -> SimEngineServer:
            return SimEngineServer(EngineOptions(name=name, profile="8b"), clock=loop.clock)

        servers[name] = loop.run(make())
        host, port = loop.run(servers[name].start())
        table.append({"name": name, "url": f"http://{host}:{port}", "models": ["sim"]})
    return servers, table


def question(number: int) -> bytes:
    """A prompt of about 2,000 tokens that no other begins with."""
    words = random.Random(number)
    text = " ".join(f"{words.randrange(10**6)}" for _ in range(1200))
    return json.dumps(
        {"model": "sim", "messages": [{"role": "user", "content": text}], "max_tokens": 16, "stream": True}
    ).encode()


@pytest.mark.parametrize("place", ["virtual"])
def test_F42_a_replica_at_a_tenth_of_the_speed_is_left_alone_within_twenty_requests_and_not_ejected(
    loop: Any, router: Callable[..., Router]
) -> None:
    servers, table = engines(loop)
    up = router(endpoint=table, auth={"mode": "open"})
    loop.call(lambda: servers["e1"].inject(Fault(kind="slow", factor=10.0)))
    draw = random.Random(7)
    clients: list[Any] = []
    for number in range(220):
        clients.append(up.client())
        clients[-1].send(up.request(question(number)))
        loop.run(asyncio.sleep(draw.expovariate(8.0)))
    assert up.eventually(lambda: len(up.records.facts) == len(clients), 120.0)
    picked: list[str] = []
    for fact in sorted(up.records.facts, key=lambda fact: fact.call_id):
        assert fact.outcome == "completed"
        picked += [attempt.route.replica for attempt in fact.attempts if attempt.route is not None]
    assert len(picked) == 220
    assert picked[:20].count("e1") > 0  # that is how it is found out
    assert picked[20:].count("e1") < 0.05 * 200
    endpoint = up.app.gateway.fleet.endpoints["e1"]
    assert (endpoint.ejected, endpoint.breaker.state) == (False, "closed")
    for server in servers.values():
        loop.run(server.stop())
