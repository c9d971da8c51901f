"""Connections to engines: one request at a time, kept alive in a pool per endpoint.

The thing that ends a response ends the lease, once. A connection that is not provably clean is closed, never pooled.
A reused connection that dies before any response byte was the engine's idle time-out racing our request: the request
is sent once more on a fresh one, which is no attempt and nobody's fault (resilience §2).
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from typing import Final, Protocol, cast

from turnout.core.errors import ErrorKind
from turnout.core.options import Pool
from turnout.http.chunked import ChunkedDecoder, FramingError, whole_chunks
from turnout.http.dialling import Dialler
from turnout.http.outbox import running_outbox
from turnout.http.response_head import HEAD_MAX_BYTES, BadResponse, ResponseHead, parse
from turnout.http.sockets import connect, running_poller

_INFORMATIONAL_MAX: Final = 8
# Nothing that an endpoint could be blamed for: out of file descriptors, ports or memory (F11, F12).
_OUR_SHORTAGES: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM))
_ANY_FRAMING: Final = 2**64  # an engine may write token by token: L4 is a bound on clients
_HEAD_END: Final = b"\r\n\r\n"


AFTER_LOSS: Final = "the connection was lost with the request on it, and there was no new one"


class Sink(Protocol):
    """Receives one response. After `on_end` or `on_failure` nothing more comes.

    `connection` is set by the pool as soon as there is one, so that the receiver can pause or cancel it.
    """

    connection: EngineConnection | None

    def on_head(self, head: ResponseHead) -> None:
        """Take the final response head."""

    def on_body(self, payload: bytes, framed: bytes | None) -> None:
        """Take payload; `framed` is the same as whole chunks, when it arrived so and may be passed on as it is."""

    def on_end(self) -> None:
        """Hear that the response is complete and its framing was correct."""

    def on_failure(self, kind: ErrorKind, detail: str) -> None:
        """Hear that there will be no complete response."""


class EngineConnection:
    """One connection to one endpoint."""

    __slots__ = (
        "_buffer",
        "_chunks",
        "_head",
        "_informational",
        "_left",
        "_pool",
        "_request",
        "_seen_bytes",
        "_taken_s",
        "_unsent",
        "idle_since",
        "reused",
        "sink",
        "transport",
    )

    def __init__(self, pool: EndpointPool) -> None:
        self._pool = pool
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set before any other call
        self.sink: Sink | None = None
        self.reused = False
        self.idle_since = 0.0
        self._request = b""
        self._seen_bytes = False
        self._head: ResponseHead | None = None
        self._chunks: ChunkedDecoder | None = None
        self._left = 0
        self._buffer = b""
        self._informational = 0
        self._unsent = 0
        self._taken_s = 0.0

    def send(self, request: bytes, sink: Sink) -> None:
        """Send a whole request; the response goes to the sink."""
        self.sink = sink
        sink.connection = self
        self._request = request
        self._seen_bytes = False
        self._head = None
        self._chunks = None
        self._buffer = b""
        self._informational = 0
        self._pool.outbox.write(self.transport, request)

    def cancel(self) -> None:
        """Close now: the engine's sign that nobody waits for the answer."""
        self.sink = None
        self._pool.forget(self)
        self.transport.abort()

    @property
    def stuck_since(self) -> float | None:
        """Since when the engine has taken no byte of a request, on the loop's clock; None when it has them all (D7)."""
        return self._taken_s if self._unsent else None

    def look(self, now: float) -> None:
        """See whether the engine has taken more of a request."""
        left = self.transport.get_write_buffer_size()
        if left != self._unsent:
            self._unsent, self._taken_s = left, now

    def pause(self) -> None:
        """Stop reading from the engine."""
        self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        self.transport.resume_reading()

    # -- what the event loop calls ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(0)  # so that whatever the kernel does not take is told
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Advance the response."""
        self._seen_bytes = True
        sink = self.sink
        if sink is None:  # bytes nobody asked for: the connection cannot be trusted
            self._pool.forget(self)
            self.transport.abort()
            return
        try:
            if self._head is None:
                self._read_head(self._buffer + data if self._buffer else data)
            else:
                self._read_body(sink, data)
        except (BadResponse, FramingError) as error:
            self._fail(ErrorKind.STREAM_CUT if self._chunks else ErrorKind.BAD_RESPONSE, str(error))

    def pause_writing(self) -> None:
        """Hear that the kernel did not take all of a request."""
        self._unsent = self.transport.get_write_buffer_size()
        self._taken_s = self._pool.sending(self)

    def resume_writing(self) -> None:
        """Hear that it has."""
        self._unsent = 0
        self._pool.sent(self)

    def eof_received(self) -> bool:
        """Let the transport close; `connection_lost` tells what it means."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End a response that ends with the connection, or report the loss."""
        self._pool.forget(self)
        sink, self.sink = self.sink, None
        if sink is None:
            return
        if self._head is None and self.reused and not self._seen_bytes:
            self._pool.resend(self._request, sink, lost=True)
        elif self._head is None:
            sink.on_failure(ErrorKind.CONNECTION_RESET, "closed before the response head")
        elif exc is None and self._chunks is None and self._head.length is None:
            sink.on_end()
        else:
            sink.on_failure(ErrorKind.STREAM_CUT, "closed inside the response")

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read_head(self, data: bytes) -> None:
        end = data.find(_HEAD_END)
        if end < 0:
            if len(data) > HEAD_MAX_BYTES or (len(data) >= 5 and not data.startswith(b"HTTP/")):  # noqa: PLR2004
                raise BadResponse("not an HTTP response head")
            self._buffer = data
            return
        if end > HEAD_MAX_BYTES:
            raise BadResponse("response head too large")
        head = parse(data[:end])
        rest = data[end + 4 :]
        self._buffer = b""
        if head.informational:
            self._informational += 1
            if self._informational > _INFORMATIONAL_MAX:
                raise BadResponse("too many informational responses")
            if rest:
                self._read_head(rest)
            return
        self._head = head
        self._chunks = ChunkedDecoder(overhead_max=_ANY_FRAMING) if head.chunked else None
        self._left = head.length or 0
        sink = cast("Sink", self.sink)
        sink.on_head(head)
        if self.sink is sink and (rest or head.length == 0):
            self._read_body(sink, rest)

    def _read_body(self, sink: Sink, data: bytes) -> None:
        chunks = self._chunks
        if chunks is not None:
            if chunks.at_boundary:
                payload = whole_chunks(data)
                if payload is not None:
                    sink.on_body(payload, data)
                    return
            pieces = chunks.feed(data)
            if pieces:
                sink.on_body(pieces[0] if len(pieces) == 1 else b"".join(pieces), None)
            if chunks.done and self.sink is sink:
                self._end(sink, clean=not chunks.rest)
            return
        head = cast("ResponseHead", self._head)
        if head.length is None:
            sink.on_body(data, None)
            return
        payload = data if len(data) <= self._left else data[: self._left]
        self._left -= len(payload)
        if payload:
            sink.on_body(payload, None)
        if not self._left and self.sink is sink:
            self._end(sink, clean=len(payload) == len(data))

    def _end(self, sink: Sink, *, clean: bool) -> None:
        self.sink = None
        self._request = b""
        # An engine that answers before it has read the request may never read the rest.
        if clean and not self._unsent and cast("ResponseHead", self._head).keep_alive:
            self._pool.release(self)
        else:  # bytes after a complete response spoil the connection, not the response
            self._pool.forget(self)
            self.transport.abort()
        sink.on_end()

    def _fail(self, kind: ErrorKind, detail: str) -> None:
        sink, self.sink = self.sink, None
        self._pool.forget(self)
        self.transport.abort()
        if sink is not None:
            sink.on_failure(kind, detail)


class EndpointPool:
    """The connections to one endpoint: idle ones are reused last-in-first-out, closed when idle for too long."""

    def __init__(
        self, host: str, port: int, options: Pool, connect_timeout_s: float, dialler: Dialler | None = None
    ) -> None:
        self._host, self._port = host, port
        self._dialler = dialler
        self._options = options
        self._connect_timeout_s = connect_timeout_s
        self._loop = asyncio.get_running_loop()
        self._idle: deque[EngineConnection] = deque()
        self._open: set[EngineConnection] = set()
        self._sending: set[EngineConnection] = set()
        self._connecting: dict[Sink, asyncio.Task[None]] = {}
        self._retired = False
        self.outbox = running_outbox()
        self._poller = running_poller()
        self.connects_total = self.connect_failures_total = self.reuses_total = 0

    def request(self, request: bytes, sink: Sink) -> None:
        """Send on an idle connection, or connect first."""
        while self._idle:
            connection = self._idle.pop()
            if connection.transport.is_closing():
                continue
            connection.reused = True
            self.reuses_total += 1
            connection.send(request, sink)
            return
        self.resend(request, sink)

    def resend(self, request: bytes, sink: Sink, *, lost: bool = False) -> None:
        """Send on a fresh connection; `lost`: a first one broke with the request on it."""
        sink.connection = None
        self._connecting[sink] = self._loop.create_task(self._connect(request, sink, lost=lost))

    def cancel(self, sink: Sink) -> None:
        """Give up a request wherever it is: connecting, or on a connection."""
        task = self._connecting.pop(sink, None)
        if task is not None:
            task.cancel()
        if sink.connection is not None and sink.connection.sink is sink:
            sink.connection.cancel()
        sink.connection = None

    def pause(self, sink: Sink) -> bool:
        """Stop reading an answer; False while there is no connection to stop."""
        if sink.connection is None:
            return False
        sink.connection.pause()
        return True

    def resume(self, sink: Sink) -> None:
        """Read on."""
        if sink.connection is not None:
            sink.connection.resume()

    def release(self, connection: EngineConnection) -> None:
        """Keep a clean connection for the next request."""
        if self._retired or len(self._idle) >= self._options.idle_max:
            self.forget(connection)
            connection.transport.close()
            return
        connection.idle_since = self._loop.time()
        self._idle.append(connection)

    def forget(self, connection: EngineConnection) -> None:
        """Drop a connection that is closed or about to be; any number of times."""
        self._open.discard(connection)
        self._sending.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def sending(self, connection: EngineConnection) -> float:
        """Watch a connection whose request is not out yet; return the loop's time."""
        self._sending.add(connection)
        return self._loop.time()

    def sent(self, connection: EngineConnection) -> None:
        """Watch it no longer."""
        self._sending.discard(connection)

    def sweep(self, now: float) -> None:
        """Close connections that were idle for too long, before the engine does (D8), and see who takes its request."""
        for sending in self._sending:
            sending.look(now)
        while self._idle and now - self._idle[0].idle_since > self._options.idle_s:
            connection = self._idle.popleft()
            self._open.discard(connection)
            connection.transport.close()

    def retire(self) -> None:
        """Close what is idle and keep nothing that becomes so; requests in progress end by themselves."""
        self._retired = True
        while self._idle:
            connection = self._idle.popleft()
            self._open.discard(connection)
            connection.transport.close()

    def in_use(self) -> bool:
        """Tell whether a connection is open or being opened."""
        return bool(self._open or self._connecting)

    def close(self) -> None:
        """Close every connection."""
        for task in list(self._connecting.values()):
            task.cancel()
        for connection in list(self._open):
            connection.transport.abort()

    async def _connect(self, request: bytes, sink: Sink, *, lost: bool) -> None:
        self.connects_total += 1
        failure: tuple[ErrorKind, str]
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                if self._dialler is not None:
                    connection = await self._dialler.connect(lambda: EngineConnection(self))
                else:
                    connection = await connect(self._poller, lambda: EngineConnection(self), self._host, self._port)
        except TimeoutError:
            failure = (ErrorKind.TIMEOUT_CONNECT, "no connection in time")
        except OSError as error:
            kind = ErrorKind.INTERNAL if error.errno in _OUR_SHORTAGES else ErrorKind.CONNECT_ERROR
            failure = (kind, error.strerror or type(error).__name__)
        else:
            self._open.add(connection)
            if self._connecting.pop(sink, None) is None:  # cancelled in this very moment
                connection.cancel()
            else:
                connection.send(request, sink)
            return
        self.connect_failures_total += 1
        if self._connecting.pop(sink, None) is not None:
            sink.on_failure(failure[0], AFTER_LOSS if lost else failure[1])
