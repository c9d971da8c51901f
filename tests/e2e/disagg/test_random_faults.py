"""Minutes of traffic over engines that fail at random, on virtual time: every request ends, and nothing is left over.

`TURNOUT_DISAGG_FULL=1` plays ten minutes for each of fifty seeds (a few minutes of processor time); without it a part.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from typing import Any

import pytest

FULL = bool(os.environ.get("TURNOUT_DISAGG_FULL"))
SEEDS = range(50 if FULL else 6)
MINUTES = 10.0 if FULL else 1.0
FLOWS = ("nixl", "bootstrap", "mooncake")
PROMPTS = 12
ARRIVALS_PER_S = 2.0
FAULTS_EVERY_S = 4.0
BOTH: tuple[dict[str, Any], ...] = (
    {"kind": "status", "status": 429, "count": 2},
    {"kind": "status", "status": 503, "count": 3},
    {"kind": "status", "status": 500, "count": 1},
    {"kind": "reset", "count": 2},
    {"kind": "garbage", "count": 1},
    {"kind": "accept_hang", "count": 1},
    {"kind": "slow", "factor": 20.0, "count": 100},
)
OF_PREFILL: tuple[dict[str, Any], ...] = (
    {"kind": "transfer_fail", "count": 2},
    {"kind": "transfer_slow", "factor": 1e6, "count": 1},
    {"kind": "lease_expire", "count": 1},
    {"kind": "no_kv_params", "count": 1},
    {"kind": "room_conflict", "count": 1},
)
OF_DECODE: tuple[dict[str, Any], ...] = (
    {"kind": "cut_mid_stream", "after_tokens": 4, "count": 1},
    {"kind": "reset_mid_stream", "after_tokens": 7, "count": 1},
    {"kind": "stall", "after_tokens": 3, "seconds": 1000.0, "count": 1},
    {"kind": "wrong_length", "count": 1},
)


class Play:
    """One history: clients, troubles, and what came of it."""

    def __init__(self, seed: int, router: Any, fleet: Any, wire: Any, expected: list[str], loop: Any) -> None:
        self.rng = random.Random(seed)
        self.router, self.fleet, self.wire, self.expected, self.loop = router, fleet, wire, expected, loop
        self.tasks: list[asyncio.Task[str]] = []
        self.deaths: list[asyncio.Task[None]] = []
        self.dead: set[str] = set()

    def body(self, number: int, **members: Any) -> dict[str, Any]:
        return chat(self.wire, number, **members)

    async def play(self, seconds: float) -> None:
        until = self.loop.clock() + seconds
        troubles = asyncio.create_task(self.troubles(until))
        while self.loop.clock() < until:
            await asyncio.sleep(self.rng.expovariate(ARRIVALS_PER_S))
            self.tasks.append(asyncio.create_task(self.ask(self.rng.randrange(PROMPTS))))
        await troubles
        await asyncio.gather(*self.deaths)
        for server in self.fleet.engines.values():
            server.clear_faults()
        done, pending = await asyncio.wait(self.tasks, timeout=1000.0)
        assert not pending, f"{len(pending)} of {len(self.tasks)} requests never ended"
        for task in done:
            task.result()

    async def troubles(self, until: float) -> None:
        rng = self.rng
        while self.loop.clock() < until:
            await asyncio.sleep(rng.expovariate(1 / FAULTS_EVERY_S))
            name = rng.choice(sorted(self.fleet.engines))
            server = self.fleet.engines[name]
            sibling = name[0] + ("1" if name[1] == "0" else "0")
            if rng.random() < 0.15:
                if name not in self.dead and sibling not in self.dead:  # with a whole role dead nobody can serve
                    self.deaths.append(asyncio.create_task(self.die(name, rng.uniform(1.0, 10.0))))
            elif rng.random() < 0.1:
                server.clear_faults()
            elif name not in self.dead:
                own = OF_PREFILL if name[0] == "p" else OF_DECODE
                self.fleet.inject_here(name, **rng.choice((*BOTH, *own)))

    async def die(self, name: str, seconds: float) -> None:
        server = self.fleet.engines[name]
        self.dead.add(name)
        await server.stop()
        await asyncio.sleep(seconds)
        await server.start()
        self.dead.discard(name)

    async def ask(self, number: int) -> str:
        """Ask one thing; the client may leave. Returns how it ended; an answer that is wrong is an error."""
        rng = self.rng
        stream = rng.random() < 0.6
        leaves_s = rng.uniform(0.0, 0.6) if rng.random() < 0.08 else None
        reader, writer = await asyncio.open_connection("127.0.0.1", self.router.port)
        writer.write(self.router.request(self.body(number, stream=stream), b"connection: close"))
        try:
            async with asyncio.timeout(leaves_s):
                answer = await reader.read(-1)
        except TimeoutError:
            return "left"
        finally:
            writer.transport.abort()
        head, _, content = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status != 200:
            assert b'"error"' in content, answer
            return str(status)
        if not stream:
            assert json.loads(content)["choices"][0]["message"]["content"] == self.expected[number]
            return "whole"
        text = "".join(
            choice["delta"].get("content", "")
            for line in content.split(b"\n")
            if line.startswith(b"data: {") and b'"choices"' in line
            for choice in json.loads(line[6:])["choices"]
        )
        if b"data: [DONE]" in content:
            assert text == self.expected[number], content
            return "streamed"
        assert b'"error"' in content, content[-300:]
        assert self.expected[number].startswith(text), "nothing is doubled, nothing made up"
        return "in band"


def chat(wire: Any, number: int, **members: Any) -> dict[str, Any]:
    text = f"question {number}: " + "tell me more about trains and points " * (4 + number % 5)
    asked: dict[str, Any] = wire.chat(messages=[{"role": "user", "content": text}], max_tokens=24)
    return asked | members


@pytest.mark.parametrize("place", ["virtual"], indirect=True)
@pytest.mark.parametrize("seed", SEEDS)
def test_no_exchange_without_an_end_and_nothing_left(
    start_router: Any, fleet_of: Any, wire: Any, loop: Any, seed: int
) -> None:
    flow = FLOWS[seed % 3]
    fleet = fleet_of(flow, kv_lease_s=5.0)
    solo = bool(seed % 2) and flow != "bootstrap"
    router = start_router(
        endpoint=[table | {"solo": solo, "continuation": True} for table in fleet.tables],
        disagg={
            "decider": ("always", "seconds")[seed // 2 % 2],
            "quarantine_s": 2.0,
            "prefill_timeout_s": 4.0,
            "first_byte_after_prefill_s": 4.0,
            "drain_s": 2.0,
        },
        timeout={"stall_s": 10.0},
        resume={"scope": "replicas"},
    )
    alone = start_router(endpoint=[fleet.tables[-1] | {"role": "both"}])
    expected = [alone.ask(chat(wire, n)).json["choices"][0]["message"]["content"] for n in range(PROMPTS)]
    play = Play(seed, router, fleet, wire, expected, loop)
    loop.run(play.play(MINUTES * 60.0))

    ends = [task.result() for task in play.tasks]
    assert len(ends) > MINUTES * 60.0
    gateway = router.app.gateway
    pairing = gateway.fleet.pairing

    def at_rest() -> bool:
        open_ones = sum(
            e.in_flight + e.pending_prefill_tokens + e.active_tokens for e in gateway.fleet.endpoints.values()
        )
        return not (open_ones or gateway.runs or len(pairing.rooms))

    assert loop.eventually(at_rest, 60.0)
    for _ in range(60):
        loop.run(asyncio.sleep(1.0))
        if fleet.idle():
            break
    assert fleet.idle(), fleet.states()
    assert all(not gate.queue.size for _, gate in gateway.recovery.doors)
    assert len(router.records.facts) == len(ends), "each request has one outcome"
    good = sum(end in ("whole", "streamed") for end in ends)
    assert good > 0.5 * len(ends), {end: ends.count(end) for end in set(ends)}
    failures = sum(n for labels, n in pairing.counts.items() if labels[0] == "failures")
    assert failures > 0 or pairing.options.decider == "seconds"


@pytest.mark.parametrize("place", ["virtual"], indirect=True)
def test_the_survivors_serve_within_a_second_and_the_dead_return(
    start_router: Any, fleet_of: Any, flow: str, wire: Any, loop: Any
) -> None:
    """One prefill, then one decode engine die under load; later both come back under their old address."""
    fleet = fleet_of(flow)
    router = start_router(endpoint=[t | {"solo": False} for t in fleet.tables], disagg={"decider": "always"})
    ends: list[tuple[float, int, bool]] = []

    async def ask(number: int) -> None:
        begun = loop.clock()
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(router.request(chat(wire, number % PROMPTS, stream=True), b"connection: close"))
        async with asyncio.timeout(30.0):
            answer = await reader.read(-1)
        writer.transport.abort()
        whole = b"data: [DONE]" in answer or b'"error"' in answer
        ends.append((begun, int(answer.split(b" ", 2)[1]), whole))

    async def play() -> tuple[float, float, dict[str, int]]:
        tasks: list[asyncio.Task[None]] = []

        async def traffic(seconds: float) -> None:
            until = loop.clock() + seconds
            while loop.clock() < until:
                tasks.append(asyncio.create_task(ask(len(tasks))))
                await asyncio.sleep(0.02)

        await traffic(1.0)
        first = loop.clock()
        await fleet.engines["p0"].stop()
        await traffic(2.0)
        second = loop.clock()
        await fleet.engines["d0"].stop()
        await traffic(2.0)
        for name in ("p0", "d0"):
            await fleet.engines[name].start()
        back = {name: fleet.engines[name].state()["requests_total"] for name in ("p0", "d0")}
        await traffic(6.0)
        await asyncio.gather(*tasks)
        return first, second, back

    first, second, back = loop.run(play())
    assert all(whole for _, _, whole in ends), "every request ends in an answer or one clean error"
    late = [status for begun, status, _ in ends if first + 1.0 < begun < second or begun > second + 1.0]
    assert len(late) > 300
    assert set(late) == {200}, "the survivors serve all that comes a second later"
    assert all(fleet.served()[name] > back[name] for name in ("p0", "d0")), "they are used again"
