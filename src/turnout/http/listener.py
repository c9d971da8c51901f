"""The public listener: accepts connections, keeps what they share, and sweeps their deadlines with one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from turnout.core.options import Server
from turnout.http.head import HeadParser
from turnout.http.outbox import running_outbox
from turnout.http.server import Connection, Handler

SWEEP_S = 0.25


class Listener:
    """Accepts connections and keeps their common limits."""

    def __init__(
        self, options: Server, handler: Handler, clock: Callable[[], float], total_s: float = float("inf")
    ) -> None:
        self.options = options
        self.total_s = total_s  # L5: a body that trickles ends with the deadline of its exchange
        self.handler = handler
        self.clock = clock
        self.parser = HeadParser(options)
        self.outbox = running_outbox()
        self.connections: set[Connection] = set()
        self.connections_total = 0
        self.body_bytes = 0
        self.draining = False
        self.now = clock()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), host, port, backlog=4096, reuse_address=True)
        self._sweep(loop)
        return int(self._server.sockets[0].getsockname()[1])

    def drain(self) -> None:
        """Close idle connections and let every further response close its own (X1)."""
        self.draining = True
        for connection in list(self.connections):
            connection.close_if_idle()

    async def stop(self) -> None:
        """Stop accepting and close what is left."""
        if self._server is not None:
            self._server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = now = self.clock()
        for connection in list(self.connections):
            if connection.deadline <= now:
                connection.expired(now)
        self._sweeper = loop.call_later(SWEEP_S, self._sweep, loop)
