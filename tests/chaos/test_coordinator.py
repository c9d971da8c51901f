"""Engines and clients of the coordinator door as processes that are killed, frozen and restarted under load."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from turnout.coordinator.client import CoordinatorClient, RequestFailed
from turnout.coordinator.listener import CoordinatorListener
from turnout.core.coordinator_options import Affinity, Coordinator

PATIENCE_S = 60.0


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(240):
            await body()

    uvloop.run(bounded())


async def eventually(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - a condition of another process has no event
            await asyncio.sleep(0.01)


def spawned(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)


# The engine's side of the wire alone: what `turnout engine` loads beside it takes a second, and is run by the e2e tests.
ENGINE = """
import asyncio, sys
from turnout.coordinator.engine import Echo, EnginePeer
async def main():
    EnginePeer(sys.argv[1], sys.argv[2].encode(), Echo(0.005)).start()
    await asyncio.Event().wait()
asyncio.run(main())
"""


class World:
    def __init__(self, listener: CoordinatorListener) -> None:
        self.listener = listener
        self.door = listener.door
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.endings: Counter[str] = Counter()

    async def start(self, *names: str) -> None:
        for name in names:
            self.processes[name] = spawned("-c", ENGINE, self.listener.address, name)
        await eventually(lambda: {name.encode() for name in names} <= self.door.roster.live.keys())

    async def ask(self, client: CoordinatorClient, words: int) -> None:
        try:
            answer = await client.submit("question", {"num_tokens_to_generate": words})
            self.endings["whole" if answer["generated_length"] == words else "short"] += 1
        except RequestFailed as failure:
            self.endings[failure.reason] += 1


@contextlib.asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    listener = CoordinatorListener(Coordinator(bind="tcp://127.0.0.1:*", **options), Affinity())
    await listener.start()
    there = World(listener)
    try:
        yield there
        assert not there.door.requests.open
        assert not there.door.requests.pending
    finally:
        for process in there.processes.values():
            process.kill()
            process.wait()
        await listener.stop()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_frozen_engine_costs_no_request(how: signal.Signals) -> None:
    async def script() -> None:
        async with world(heartbeat_s=0.5, late_grace_s=0.1) as there:
            await there.start("mp-coord-0", "mp-coord-1")
            async with CoordinatorClient(there.listener.address) as client:
                asked = [asyncio.create_task(there.ask(client, 60)) for _ in range(30)]
                await eventually(lambda: len(there.door.requests.open) == 30)
                there.processes["mp-coord-0"].send_signal(how)
                await asyncio.wait_for(asyncio.gather(*asked), PATIENCE_S)
                assert set(there.door.roster.live) == {b"mp-coord-1"}
                resent = there.door.tally.resent
                assert resent >= 10
                await asyncio.wait_for(asyncio.gather(*[there.ask(client, 3) for _ in range(8)]), PATIENCE_S)
            assert there.endings == {"whole": 38}
            assert there.door.tally.resent == resent  # nothing new went to the one that is silent

    run(script)


def test_an_engine_that_thaws_is_taken_back() -> None:
    async def script() -> None:
        async with world(heartbeat_s=0.5, late_grace_s=0.1) as there:
            await there.start("mp-coord-0")
            async with CoordinatorClient(there.listener.address) as client:
                frozen = there.processes["mp-coord-0"]
                asked = asyncio.create_task(there.ask(client, 60))
                await eventually(lambda: there.door.requests.open)
                frozen.send_signal(signal.SIGSTOP)
                await eventually(lambda: not there.door.ready)
                frozen.send_signal(signal.SIGCONT)
                await asyncio.wait_for(asked, PATIENCE_S)
            # Its reply may have come within the grace; the engine itself is back with the next probe.
            await eventually(lambda: there.door.ready)
            assert there.endings == {"whole": 1}
            assert there.door.tally.registrations["adopted"] == 1

    run(script)


def test_engines_restarted_under_their_identities_lose_nothing() -> None:
    async def script() -> None:
        async with world(late_grace_s=0.2) as there:
            names = ("mp-coord-0", "mp-coord-1")
            await there.start(*names)
            async with CoordinatorClient(there.listener.address) as client:
                asked = [asyncio.create_task(there.ask(client, 40)) for _ in range(20)]
                await eventually(lambda: len(there.door.requests.open) == 20)
                for name in names:
                    there.processes[name].kill()
                    there.processes[name].wait()
                    await there.start(name)
                    asked += [asyncio.create_task(there.ask(client, 5)) for _ in range(5)]
                await asyncio.wait_for(asyncio.gather(*asked), PATIENCE_S)
            assert there.endings == {"whole": 30}

    run(script)


CLIENT = """
import asyncio, sys
from turnout.coordinator.client import CoordinatorClient
async def main():
    client = CoordinatorClient(sys.argv[1])
    await client.connect()
    await asyncio.gather(*(client.submit("x", {"num_tokens_to_generate": 5000}) for _ in range(8)))
asyncio.run(main())
"""


def test_a_killed_client_leaves_no_work_behind() -> None:
    async def script() -> None:
        async with world() as there:
            await there.start("mp-coord-0")
            victim = spawned("-c", CLIENT, there.listener.address)
            await eventually(lambda: len(there.door.requests.open) == 8)
            victim.kill()
            victim.wait()
            # Nobody answers an unmodified client's silence but the next thing that is sent to it: here, its probe.
            for held in there.door.clients.known.values():
                held.heard_at = held.probed_at = -1e9
            await eventually(lambda: not there.door.requests.open)
            async with CoordinatorClient(there.listener.address) as client:
                await there.ask(client, 3)
            assert there.endings == {"whole": 1}

    run(script)
