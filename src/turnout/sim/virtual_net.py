"""An event loop whose time passes only when nothing is left to do, and whose network is memory.

Production code runs on it unchanged: the real gateway and the engines' HTTP skin, minutes of their life in a moment,
every history the same again for the same seeds. Bytes arrive in order, `LATENCY_S` after they were written.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

LATENCY_S = 0.0002
_FIRST_PORT = 20_000
_HIGH_BYTES = 65_536
_PIECE_BYTES = 65_536
_STUCK_S = 5.0
"""Real seconds that a loop with nothing planned waits for a thread before it says so."""
_HERE = frozenset(("127.0.0.1", "localhost", "::1"))

_Factory = Callable[[], asyncio.BaseProtocol]


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` is virtual; `create_server` and `create_connection` know the servers of this loop only."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._servers: dict[int, VirtualServer] = {}
        self._next_port = _FIRST_PORT
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Virtual seconds."""
        return self.now

    def add_reader(self, *_: object) -> None:
        """Watch no descriptor: the network has none."""
        raise NotImplementedError

    async def create_server(  # type: ignore[override]  # the part of it that routers and engines use
        self, protocol_factory: _Factory, host: str | None = None, port: int = 0, **_: Any
    ) -> VirtualServer:
        """Listen. Raises OSError when the port is taken."""
        del host
        if not port:
            self._next_port += 1
            port = self._next_port
        if port in self._servers:
            raise OSError(98, f"port {port} is in use")
        server = self._servers[port] = VirtualServer(self, protocol_factory, port)
        return server

    async def create_connection(  # type: ignore[override]  # the part of it that routers and engines use
        self, protocol_factory: _Factory, host: str | None = None, port: int | None = None, **_: Any
    ) -> tuple[VirtualTransport, asyncio.BaseProtocol]:
        """Connect. Raises ConnectionRefusedError where nobody listens."""
        await asyncio.sleep(LATENCY_S)
        server = self._servers.get(port or 0) if host in _HERE else None
        if server is None:
            raise ConnectionRefusedError(111, "Connection refused")
        return self.join(protocol_factory(), server.factory())

    def join(
        self, client: asyncio.BaseProtocol, server: asyncio.BaseProtocol
    ) -> tuple[VirtualTransport, asyncio.BaseProtocol]:
        """Connect two protocols with one another."""
        near, far = VirtualTransport(self, client), VirtualTransport(self, server)
        near.peer, far.peer = far, near
        far.protocol.connection_made(far)
        near.protocol.connection_made(near)
        return near, client

    def released(self, port: int) -> None:
        """Nobody listens there from now on."""
        self._servers.pop(port, None)


class _Jumping(selectors.DefaultSelector):
    """Waits by moving the loop's time."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return at once what threads have sent; else let the time pass."""
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            ready = super().select(_STUCK_S)
            if not ready:
                raise RuntimeError("nothing is planned and nobody can change that: what is awaited never happens")
            return ready
        self._loop.now += timeout
        return ready


class VirtualServer:
    """What `create_server` returns."""

    def __init__(self, loop: VirtualLoop, factory: _Factory, port: int) -> None:
        self.factory = factory
        self._loop, self._port = loop, port
        self.sockets = (_Socket(port),)

    def close(self) -> None:
        """Listen no longer; connections live on."""
        self._loop.released(self._port)

    async def wait_closed(self) -> None:
        """It is."""


class _Socket:
    """As much of a socket as protocols ask for."""

    family = socket.AF_INET

    def __init__(self, port: int) -> None:
        self._port = port
        self.resets = False

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", self._port)

    def fileno(self) -> int:
        return -1

    def setsockopt(self, level: int, option: int, value: object) -> None:  # noqa: ARG002 - only one option matters
        if (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER):
            self.resets = True


_END, _RESET = object(), object()


class VirtualTransport(asyncio.Transport):
    """One end of a connection. What was written before a close still arrives, as from a kernel's buffer."""

    def __init__(self, loop: VirtualLoop, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.protocol: Any = protocol
        self.peer: VirtualTransport | None = None
        self._loop = loop
        self._inbox: deque[Any] = deque()
        self._held: deque[Any] = deque()
        self._paused = self._closing = self._lost = self._ended = False
        self._unread_bytes = 0
        self._high = _HIGH_BYTES
        self._stopped = False
        self._socket = _Socket(0)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        if self._lost or self._ended or not data:
            return
        peer = self.peer
        assert peer is not None  # joined before it is handed out
        for at in range(0, len(data), _PIECE_BYTES):  # a reader may stop in the middle of what was one write
            peer.post(bytes(data[at : at + _PIECE_BYTES]))
        if peer._unread_bytes > self._high and not self._stopped:
            self._stopped = True
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        """Send all of it."""
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        """Send no more."""
        if not self._ended and self.peer is not None:
            self._ended = True
            self.peer.post(_END)

    def can_write_eof(self) -> bool:
        """It can."""
        return True

    def close(self) -> None:
        """End in order."""
        if self._closing:
            return
        self._closing = True
        self.write_eof()
        self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        """End now: with a reset if the socket was told so."""
        if self._lost:
            return
        self._closing = True
        if self.peer is not None and not self._ended:
            self._ended = True
            self.peer.post(_RESET if self._socket.resets else _END)
        self._loop.call_soon(self._lose, None)

    def is_closing(self) -> bool:
        """Whether this end was closed."""
        return self._closing

    def pause_reading(self) -> None:
        """Let bytes wait."""
        self._paused = True

    def resume_reading(self) -> None:
        """Take what waited."""
        self._paused = False
        held, self._held = self._held, deque()
        for item in held:
            self._loop.call_soon(self._take, item)

    def is_reading(self) -> bool:
        """Whether bytes are taken."""
        return not self._paused

    def get_write_buffer_size(self) -> int:
        """Bytes that the other end has not taken."""
        return 0 if self.peer is None else self.peer._unread_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the bound beyond which the protocol is to pause."""
        del low
        self._high = _HIGH_BYTES if high is None else high

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Know the socket and the addresses."""
        known = {"socket": self._socket, "peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 0)}
        return known.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Go on with another protocol."""
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol in charge."""
        protocol: asyncio.BaseProtocol = self.protocol
        return protocol

    def post(self, item: Any) -> None:
        """Take something from the other end; it arrives later, in order."""
        if isinstance(item, bytes):
            self._unread_bytes += len(item)
        self._inbox.append(item)
        self._loop.call_later(LATENCY_S, self._arrived)

    def _arrived(self) -> None:
        self._take(self._inbox.popleft())  # timers of one instant come in any order: the queue keeps the bytes' own

    def _take(self, item: Any) -> None:
        if self._lost:
            self._unread_bytes = 0
            return
        if self._paused and item is not _RESET:
            self._held.append(item)
            return
        if item is _RESET:
            self._closing = True
            self._lose(ConnectionResetError(104, "Connection reset by peer"))
        elif item is _END:
            if not self.protocol.eof_received():
                self.close()
        else:
            self._unread_bytes -= len(item)
            self.protocol.data_received(item)
            peer = self.peer
            if peer is not None and peer._stopped and self._unread_bytes <= peer._high // 4:
                peer._stopped = False
                peer.protocol.resume_writing()

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self.protocol.connection_lost(error)
