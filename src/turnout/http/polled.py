"""Plain TCP sockets of one event loop, in one epoll set that the loop watches as a single descriptor (docs/adr/0014).

An event loop's own transports cost a few microseconds per read and per write, which is most of what relaying an event
costs outside the kernel. A `PolledTransport` reads and writes its socket itself, and does nothing else: names, TLS and
systems without epoll are served by the loop's transports, with the same protocols on top.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from turnout.http.outbox import Outbox

# Plain integers: attributes of modules are looked up by name each time. The kernel's numbers, on every Linux.
_IN: Final = 0x001
_OUT: Final = 0x004
# What is read at once grows with what comes: a buffer is allocated for each read, and most reads are one event.
_READ_BYTES: Final = 4_096
_READ_MAX_BYTES: Final = 262_144
_READ_GROWS: Final = 4
# So many sockets are served before timers and everything else of the loop have a turn.
_BATCH: Final = 256
_LOW_SHARE: Final = 4

_EMPTY: Final[deque[bytes | memoryview]] = deque(maxlen=0)


class Wire(Protocol):
    """The calls of `asyncio.Protocol`, whose words these are."""

    def connection_made(self, transport: asyncio.BaseTransport, /) -> None:
        """Take the transport."""

    def data_received(self, data: bytes, /) -> None:
        """Take bytes."""

    def eof_received(self) -> bool | None:
        """Hear that no more bytes will come; False: close."""

    def connection_lost(self, exc: Exception | None, /) -> None:
        """Hear that the transport is closed."""

    def pause_writing(self) -> None:
        """Hear that more waits than it should."""

    def resume_writing(self) -> None:
        """Hear that it does not any more."""


class Listening(Protocol):
    """A listening socket."""

    def ready(self) -> None:
        """Accept who waits."""


class Poller:
    """The sockets of one event loop that are ready are served in rounds."""

    __slots__ = ("_acceptors", "_epoll", "_loop", "_outbox", "_poll", "_transports")

    def __init__(self, loop: asyncio.AbstractEventLoop, outbox: Outbox) -> None:
        self._loop = loop
        self._outbox = outbox
        self._epoll = select.epoll()
        self._poll: Callable[[float, int], list[tuple[int, int]]] = self._epoll.poll
        self._transports: dict[int, PolledTransport] = {}
        self._acceptors: dict[int, Listening] = {}
        loop.add_reader(self._epoll.fileno(), self._round)

    def watch(self, transport: PolledTransport, events: int, before: int) -> None:
        """Change what is waited for: `_IN`, `_OUT`, both, or nothing, for which a socket must leave the set."""
        fd = transport.fd
        if not events:
            del self._transports[fd]
            self._epoll.unregister(fd)
        elif before:
            self._epoll.modify(fd, events)
        else:
            self._transports[fd] = transport
            self._epoll.register(fd, events)

    def accept(self, acceptor: Listening, fd: int) -> None:
        """Wait for connections to a listening socket."""
        self._acceptors[fd] = acceptor
        self._epoll.register(fd, _IN)

    def accept_no_more(self, fd: int) -> None:
        """Leave connections in the backlog."""
        if self._acceptors.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def soon(self, callback: Callable[[Exception | None], None], failure: Exception | None) -> None:
        """Call after what runs now."""
        self._loop.call_soon(callback, failure)

    def later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call in a while."""
        return self._loop.call_later(seconds, callback)

    def _round(self) -> None:
        outbox = self._outbox
        outbox.begin_round()
        try:
            for fd, events in self._poll(0, _BATCH):
                transport = self._transports.get(fd)
                # Closed by somebody in this very round, or its number taken by a newer one, which then finds nothing.
                if transport is None:
                    acceptor = self._acceptors.get(fd)
                    if acceptor is not None:
                        acceptor.ready()
                    continue
                try:
                    if events & _OUT:
                        transport.writable()
                    if events != _OUT:  # errors and hang-ups are found by reading
                        transport.readable()
                except Exception as error:  # noqa: BLE001 - what one protocol raises must not cost the others their turn
                    self._loop.call_exception_handler({"message": "a protocol failed", "exception": error})
                    transport.abort()
        finally:
            outbox.end_round()


class PolledTransport:
    """One connected socket; the part of `asyncio.Transport` that the protocols here use, with its meaning."""

    __slots__ = (
        "_buffer",
        "_buffered",
        "_closing",
        "_eof",
        "_high",
        "_lost",
        "_paused_writing",
        "_peer",
        "_poller",
        "_read_bytes",
        "_reading",
        "_recv",
        "_send",
        "_sock",
        "_wire",
        "fd",
        "watched",
    )

    def __init__(self, poller: Poller, sock: socket.socket, wire: Wire, peer: object = None) -> None:
        """Take a connected socket that does not block, and let its protocol have it."""
        self._poller = poller
        self._sock = sock
        self._peer = peer
        self._recv: Callable[[int], bytes] = sock.recv
        self._send: Callable[[bytes | memoryview], int] = sock.send
        self._wire = wire
        self.fd = sock.fileno()
        self.watched = 0
        self._reading = True
        self._read_bytes = _READ_BYTES
        self._closing = self._lost = self._eof = self._paused_writing = False
        self._buffer: deque[bytes | memoryview] = _EMPTY  # most transports never need one of their own
        self._buffered = 0
        self._high = 65_536
        self._watch()
        wire.connection_made(self)  # type: ignore[arg-type]  # the part of a transport that is used

    # -- what protocols call ------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send, or buffer what the kernel does not take."""
        if self._lost or self._eof or not data:
            return
        rest: bytes | memoryview = data
        if not self._buffered:
            try:
                sent = self._send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._lose(error)
                return
            if sent == len(data):
                return
            if sent:
                rest = memoryview(data)[sent:]
        if self._buffer is _EMPTY:
            self._buffer = deque()
        self._buffer.append(rest)
        self._buffered += len(rest)
        self._watch()
        if self._buffered > self._high and not self._paused_writing:
            self._paused_writing = True
            self._wire.pause_writing()

    def set_write_buffer_limits(self, high: int) -> None:
        """Set from how many buffered bytes on the protocol is told to pause; a quarter of it resumes."""
        self._high = high

    def get_write_buffer_size(self) -> int:
        """Return the bytes that the kernel has not taken."""
        return self._buffered

    def can_write_eof(self) -> bool:
        """Tell that half of a connection can be closed."""
        return True

    def write_eof(self) -> None:
        """Say that nothing more will be written, after what is buffered."""
        if self._eof or self._lost:
            return
        self._eof = True
        if not self._buffered:
            self._shut()

    def pause_reading(self) -> None:
        """Leave bytes in the kernel."""
        self._reading = False
        self._watch()

    def resume_reading(self) -> None:
        """Read again."""
        self._reading = True
        self._watch()

    def is_closing(self) -> bool:
        """Tell whether it is closed, or closes."""
        return self._closing

    def close(self) -> None:
        """Read no more, and close as soon as everything is written."""
        if self._closing:
            return
        self._closing = True
        self._watch()
        if not self._buffered:
            self._lose(None)

    def abort(self) -> None:
        """Close now."""
        self._lose(None)

    def get_extra_info(self, name: str) -> object:
        """Return the socket, or the peer's address."""
        return self._sock if name == "socket" else self._peer if name == "peername" else None

    # -- what the poller calls ----------------------------------------------------------------------------------------

    def readable(self) -> None:
        """Pass on what has come."""
        if not self._reading or self._closing:
            return
        try:
            data = self._recv(self._read_bytes)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        if data:
            if len(data) == self._read_bytes:
                self._read_bytes = min(_READ_MAX_BYTES, len(data) * _READ_GROWS)
            self._wire.data_received(data)
        elif not self._wire.eof_received():
            self.close()
        else:
            self.pause_reading()

    def writable(self) -> None:
        """Send what is buffered, as far as the kernel takes it."""
        buffer = self._buffer
        try:
            while buffer:
                first = buffer[0]
                sent = self._send(first)
                self._buffered -= sent
                if sent < len(first):
                    buffer[0] = memoryview(first)[sent:]
                    break
                buffer.popleft()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._lose(error)
            return
        if self._paused_writing and self._buffered <= self._high // _LOW_SHARE:
            self._paused_writing = False
            self._wire.resume_writing()
        if self._buffered or self._lost:
            return
        if self._closing:
            self._lose(None)
            return
        self._watch()
        if self._eof:
            self._shut()

    def _watch(self) -> None:
        if self._lost:
            return
        events = (_IN if self._reading and not self._closing else 0) | (_OUT if self._buffered else 0)
        if events != self.watched:
            self._poller.watch(self, events, self.watched)
            self.watched = events

    def _shut(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._lose(error)

    def _lose(self, failure: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        if self.watched:
            self._poller.watch(self, 0, self.watched)
            self.watched = 0
        self._buffer = _EMPTY
        self._buffered = 0
        self._poller.soon(self._end, failure)

    def _end(self, failure: Exception | None) -> None:
        try:
            self._wire.connection_lost(failure)
        finally:
            self._sock.close()
