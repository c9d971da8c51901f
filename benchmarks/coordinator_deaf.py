"""Others beside a client that does not read (acceptance 6): real sockets on one loop, rounds of both kinds in turn."""

from __future__ import annotations

import asyncio
import random
import time

import zmq

from turnout.coordinator.client import CoordinatorClient
from turnout.coordinator.engine import Echo, EnginePeer
from turnout.coordinator.listener import CoordinatorListener
from turnout.coordinator.sockets import Reader
from turnout.core.coordinator_options import Affinity, Coordinator
from turnout.engines import megatron as wire

DEAF_ROUND_S = 6.0
DEAF_RATE = 300


class Beside:
    """Acceptance 6: how long others wait beside a client that streams and reads, and beside one that does not read."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        options = Coordinator(bind="tcp://127.0.0.1:*", block_tokens=16, outbox_max=300)
        self.listener = CoordinatorListener(options, Affinity())
        self.backlog = 0
        # Large and many, or the kernel and libzmq would hold everything that is not read.
        self.answer = {"num_tokens_to_generate": 1, "stop_words": ["x" * 20_000]}

    async def ask(self, client: CoordinatorClient, waits: list[float]) -> None:
        """One honest request."""
        started = time.perf_counter()
        await client.submit([self.rng.randrange(1000)] * 32, {"num_tokens_to_generate": 4})
        waits.append(time.perf_counter() - started)

    async def turn(self, client: CoordinatorClient, *, reads: bool) -> list[float]:
        """One round: the same traffic of a stranger, read or left lying, with as many honest requests beside it."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stranger = context.socket(zmq.DEALER)
        stranger.setsockopt(zmq.RCVHWM, 100_000 if reads else 1)
        stranger.setsockopt(zmq.LINGER, 0)
        if not reads:
            stranger.setsockopt(zmq.RCVBUF, 4096)
        stranger.connect(self.listener.address)
        stranger.send(wire.connect())
        reader = Reader(stranger, lambda frames: None)  # noqa: ARG005 - what comes is of no interest
        if reads:
            reader.start()
        loop = asyncio.get_running_loop()
        waits: list[float] = []
        asked: set[asyncio.Task[None]] = set()
        start, sent = loop.time(), 0
        while (passed := loop.time() - start) < DEAF_ROUND_S:
            while sent < passed * DEAF_RATE:
                stranger.send(wire.submit(sent, [sent] * 32, self.answer), zmq.NOBLOCK)
                reader.touch()
                task = loop.create_task(self.ask(client, waits))
                asked.add(task)
                task.add_done_callback(asked.discard)
                sent += 1
            self.backlog = max(self.backlog, *(len(box.waiting) for box in self.listener._outboxes.values()), 0)
            await asyncio.sleep(0.001)
        if asked:
            await asyncio.wait(asked, timeout=15)
        reader.stop()
        context.destroy(linger=0)
        while self.listener.door.requests.open:  # noqa: ASYNC110 - another peer's doing
            await asyncio.sleep(0.01)
        return waits

    async def run(self, rounds: int) -> dict[bool, list[list[float]]]:
        """Rounds of both kinds in turn, so that noise hits both alike."""
        await self.listener.start()
        peers = [EnginePeer(self.listener.address, b"mp-coord-%d" % n, Echo()) for n in range(4)]
        for peer in peers:
            peer.start()
        found: dict[bool, list[list[float]]] = {True: [], False: []}
        async with CoordinatorClient(self.listener.address) as client:
            await self.turn(client, reads=True)
            for number in range(rounds):
                for reads in (True, False) if number % 2 else (False, True):
                    found[reads].append(await self.turn(client, reads=reads))
        for peer in peers:
            peer.close()
        await self.listener.stop()
        return found
