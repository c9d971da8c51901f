"""The public listener: accepts connections, keeps what they share, and sweeps their deadlines with one timer."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import resource
import socket
from collections.abc import Callable
from typing import Any, Final

from turnout.core.options import Server
from turnout.http.handler import Handler
from turnout.http.head import HeadParser
from turnout.http.outbox import running_outbox
from turnout.http.server import Connection
from turnout.http.sockets import Acceptor, listen, running_poller

SWEEP_S: Final = 0.25
_SNDBUF_BYTES: Final = 262_144  # L9: loopback would swallow 3.9 MB per stalled client
_BACKLOG: Final = 4096
_RESERVE: Final = 32  # F11: descriptors that are left to engines, files and the admin listener
_SUSPENDED_S: Final = 5.0
_CROWDED: Final = 0.8  # F34: from this share of the connections on, those idle for longest make room
_IPV4_IN_IPV6: Final = "::ffff:"


class Listener:
    """Accepts connections and keeps their common limits."""

    def __init__(
        self, options: Server, handler: Handler, clock: Callable[[], float], total_s: float = float("inf")
    ) -> None:
        self.options = options
        # What every request asks for is read from here: an attribute of a compiled class.
        self.idle_s, self.bodies_max_bytes = options.idle_s, options.bodies_max_bytes
        self.body_max_bytes = options.body_max_bytes
        self.total_s = total_s  # L5: a body that trickles ends with the deadline of its exchange
        self.handler = handler
        self.clock = clock
        self.parser = HeadParser(options)
        self.outbox = running_outbox()
        self.connections: set[Connection] = set()
        self.connections_total = 0
        self._by_address: dict[str, int] = {}
        self._uncapped = [ipaddress.ip_network(one, strict=False) for one in options.uncapped_addresses]
        self.body_bytes = 0
        self.draining = False
        self.now = clock()
        self.pauses_total = 0
        """How often accepting paused for want of file descriptors."""
        self._scarce_from = _scarce_from()
        self._acceptors: list[Acceptor] = []
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port."""
        loop = asyncio.get_running_loop()
        poller = running_poller()
        if poller is not None:
            self._acceptors = await listen(poller, lambda: Connection(self), host, port, _BACKLOG, _has_descriptors)
            bound = self._acceptors[0].port
        else:
            factory: Callable[[], Any] = lambda: Connection(self)  # noqa: E731 - the loop wants a subclass, by name
            self._server = await loop.create_server(factory, host, port, backlog=_BACKLOG, reuse_address=True)
            bound = int(self._server.sockets[0].getsockname()[1])
        self._sweep(loop)
        return bound

    def took(self, sock: socket.socket) -> None:
        """Set up a connection's socket, and leave the next ones in the backlog while descriptors are scarce (L7)."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SNDBUF_BYTES)
        # The kernel hands out the lowest number that is free, so a number tells how many are taken.
        if sock.fileno() >= self._scarce_from and self._acceptors:
            self.pauses_total += 1
            for acceptor in self._acceptors:
                acceptor.pause()

    def came_from(self, transport: asyncio.BaseTransport) -> str:
        """Count a connection at its address and return that; "" where nobody counts."""
        peer = transport.get_extra_info("peername")
        if not self.options.connections_per_address_max or not isinstance(peer, tuple):
            return ""
        address = str(peer[0]).removeprefix(_IPV4_IN_IPV6)
        if address not in self._by_address:
            parsed = ipaddress.ip_address(address)
            if any(parsed in network for network in self._uncapped):
                return ""
        self._by_address[address] = self._by_address.get(address, 0) + 1
        return address

    def is_full(self, address: str) -> bool:
        """Tell whether the newest connection is one too many, in all or from its address."""
        if len(self.connections) > self.options.connections_max:
            return True
        return self._by_address.get(address, 0) > self.options.connections_per_address_max

    def left(self, connection: Connection, address: str) -> None:
        """Forget a connection."""
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        if address:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def drain(self) -> None:
        """Close idle connections and let every further response close its own (X1).

        The first request of a new connection is on its way: closed before it is read, it would be answered by a reset.
        """
        self.draining = True
        for connection in list(self.connections):
            if not connection.fresh:
                connection.close_if_idle()

    async def stop(self) -> None:
        """Stop accepting and close what is left."""
        for acceptor in self._acceptors:
            acceptor.close()
        if self._server is not None:
            self._server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = self.clock()
        slept_s = now - self.now if now - self.now > _SUSPENDED_S else 0.0  # we did: no client was late (F70)
        self.now = now
        for connection in list(self.connections):
            connection.deadline += slept_s
            if connection.deadline <= now:
                connection.expired(now)
        spare = len(self.connections) - int(_CROWDED * self.options.connections_max)
        if spare > 0:
            self._make_room(spare)
        self._scarce_from = _scarce_from()
        self._sweeper = loop.call_later(SWEEP_S, self._sweep, loop)

    def _make_room(self, spare: int) -> None:
        """Close idle connections, those first that have been idle for longest: all have the same time to live."""
        idle = sorted([one for one in self.connections if one.idle], key=lambda one: one.deadline)
        for connection in idle[:spare]:
            connection.close_if_idle()


def _scarce_from() -> int:
    """The first descriptor number of the reserve; the limit may be changed while we run."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(_RESERVE, most - _RESERVE) if most != resource.RLIM_INFINITY else 2**31


def _has_descriptors() -> bool:
    """Tell whether more are free than the reserve."""
    try:
        free = os.dup(0)
    except OSError:
        return False
    os.close(free)
    return free < _scarce_from()
