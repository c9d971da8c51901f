"""P7 on virtual time: the real router and simulated engines, asked for three times what they can do."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from turnout.sim.options import EngineOptions
from turnout.sim.server import SimEngineServer

if TYPE_CHECKING:
    from tests.support.router import Router

pytestmark = pytest.mark.parametrize("place", ["virtual"])

Routers = Callable[..., "Router"]
ENGINES, SLOTS, TOKENS, SPEED = 2, 4, 20, 4.0
TENANTS = ("a", "b", "c")
PHASE_S, SETTLE_S, QUEUE_WAIT_S = 20.0, 5.0, 2.5
GOODPUT, REFUSED_WITHIN_S, FAIR = 0.90, 0.05, 0.95  # the page's bars


class Asked(asyncio.Protocol):
    """One client with one request; notes when what came."""

    def __init__(self, clock: Callable[[], float], request: bytes, tenant: str) -> None:
        self._clock, self._request = clock, request
        self.tenant = tenant
        self.data = b""
        self.ended_s = 0.0
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.began_s = self._clock()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - ended is ended
        self.ended_s = self._clock()
        self.over.set_result(None)

    @property
    def status(self) -> int:
        return int(self.data.split(b" ", 2)[1])

    @property
    def done(self) -> bool:
        return self.data.endswith(b"0\r\n\r\n") and b"data: [DONE]" in self.data

    @property
    def retry_after(self) -> bytes:
        lines = self.data.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
        return next((line[13:] for line in lines if line.startswith(b"retry-after: ")), b"")


@pytest.fixture
def engines(loop: Any, wire: Any) -> Iterator[list[str]]:
    """The addresses of simulated engines with few places."""

    async def make(number: int) -> SimEngineServer:
        options = EngineOptions(name=f"e{number}", model=wire.MODEL, max_num_seqs=SLOTS, speed=SPEED)
        return SimEngineServer(options, clock=loop.clock)

    servers = [loop.run(make(number)) for number in range(1, ENGINES + 1)]
    yield ["http://{}:{}".format(*loop.run(server.start())) for server in servers]
    for server in servers:
        loop.run(server.stop())


def _ask(up: Router, wire: Any, tenant: str, number: int) -> Any:
    body = wire.chat(
        messages=[{"role": "user", "content": f"{tenant} {number}"}], max_tokens=TOKENS, ignore_eos=True, stream=True
    )
    return up.request(body, b"Connection: close", key=f"key-{tenant}")


async def at_capacity(up: Router, wire: Any, clock: Callable[[], float]) -> list[Asked]:
    """As many clients as places, each asking again at once."""
    ends, seen = clock() + PHASE_S, []

    async def client(number: int) -> None:
        turn = 0
        while clock() < ends:
            turn += 1
            tenant = TENANTS[number % len(TENANTS)]
            seen.append(await one(up, clock, _ask(up, wire, tenant, 1000 * number + turn), tenant))

    await asyncio.gather(*[client(number) for number in range(ENGINES * SLOTS)])
    return seen


async def overloaded(up: Router, wire: Any, clock: Callable[[], float], per_s: float) -> list[Asked]:
    """Arrivals that do not care whether anybody keeps up."""
    rng, ends, number = random.Random(0), clock() + PHASE_S, 0
    open_ones: list[asyncio.Task[Asked]] = []
    while clock() < ends:
        number += 1
        tenant = TENANTS[number % len(TENANTS)]
        open_ones.append(asyncio.create_task(one(up, clock, _ask(up, wire, tenant, 10**6 + number), tenant)))
        await asyncio.sleep(rng.expovariate(per_s))
    return await asyncio.gather(*open_ones)


async def one(up: Router, clock: Callable[[], float], request: bytes, tenant: str) -> Asked:
    make = lambda: Asked(clock, request, tenant)  # noqa: E731 - a factory
    _, asked = await asyncio.get_running_loop().create_connection(make, "127.0.0.1", up.port)
    await asked.over
    return asked


def per_second(seen: list[Asked], began_s: float) -> float:
    """Whole answers per second, without the time in which places and queue fill."""
    counted = [a for a in seen if a.done and began_s + SETTLE_S <= a.ended_s < began_s + PHASE_S]
    return len(counted) / (PHASE_S - SETTLE_S)


def test_P7_three_times_the_capacity_costs_little_is_refused_at_once_and_shared_fairly(
    loop: Any, router: Routers, engines: list[str], wire: Any, rests: Any
) -> None:
    table = [
        {"name": f"e{number}", "url": url, "models": [wire.MODEL], "max_in_flight": SLOTS}
        for number, url in enumerate(engines, 1)
    ]
    keys = [
        {"name": t, "tenant": t, "digest": "sha256:" + hashlib.sha256(f"key-{t}".encode()).hexdigest()} for t in TENANTS
    ]
    up = router(endpoint=table, key=keys, admission={"queue_wait_s": QUEUE_WAIT_S})
    began_s = loop.clock()
    most = per_second(loop.run(at_capacity(up, wire, loop.clock)), began_s)
    assert most > ENGINES  # they do something
    loop.run(asyncio.sleep(1.0))
    began_s = loop.clock()
    seen = loop.run(overloaded(up, wire, loop.clock, 3 * most))

    assert per_second(seen, began_s) >= GOODPUT * most
    served, refused = [a for a in seen if a.status == 200], [a for a in seen if a.status != 200]
    assert all(a.done for a in served)
    assert {a.status for a in refused} <= {429, 503}
    assert len(refused) > len(seen) / 2  # two thirds cannot be served, less what waits at the end
    assert [a.data for a in refused if int(a.retry_after) < 1] == []
    late = [a for a in refused if a.ended_s - a.began_s > REFUSED_WITHIN_S]
    assert late == []
    done = Counter(a.tenant for a in served)
    assert min(done.values()) >= FAIR * sum(done.values()) / len(TENANTS), done
    assert rests(up)
