"""Client connections that read one request at a time and hand it over whole.

A connection owns framing, limits, timeouts and lingering close; what a request means is the handler's business. Its
deadline is checked by the listener's sweep, so a request costs no timer.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final, cast

from turnout.core.types import Refusal
from turnout.http.chunked import ChunkedDecoder, FramingError, PayloadTooLargeError
from turnout.http.head import Head

if TYPE_CHECKING:
    from turnout.http.handler import Exchanged
    from turnout.http.listener import Listener

_LINGER_S: Final = 2.0
_IGNORED_BODY_MAX_BYTES: Final = 65_536
_LINE_ENDS_MAX: Final = 2
_HEAD_END: Final = b"\r\n\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_CR: Final = 0x0D
# States of a connection, in this order; the first two are those before a body.
_IDLE: Final = 0
_HEAD: Final = 1
_BODY: Final = 2
_BUSY: Final = 3
_LINGER: Final = 4
_CLOSED: Final = 5


class Connection:
    """One client connection: reads a request, waits for its answer, reads the next."""

    __slots__ = (
        "_address",
        "_body",
        "_body_due",
        "_body_held",
        "_buffer",
        "_chunks",
        "_exchange",
        "_head",
        "_line_ends",
        "_listener",
        "_outbox",
        "_paused_reading",
        "_state",
        "_transport",
        "_unsent_bytes",
        "deadline",
        "fresh",
        "keep_alive",
    )

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._outbox = listener.outbox
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set before any other call
        self._address = ""
        self._state = _IDLE
        self._buffer = b""
        self._head: Head | None = None
        self._body: list[bytes] = []
        self._body_held = 0
        self._body_due = float("inf")
        self._chunks: ChunkedDecoder | None = None
        self._exchange: Exchanged | None = None
        self._paused_reading = False
        self._unsent_bytes = 0
        self._line_ends = 0
        self.keep_alive = True
        self.fresh = True
        self.deadline = listener.now + listener.idle_s

    # -- what the gateway uses ----------------------------------------------------------------------------------------

    def attach(self, exchange: Exchanged) -> None:
        """Tell this exchange about the client from here on."""
        self._exchange = exchange

    def write(self, data: bytes) -> None:
        """Send bytes of the current answer."""
        self._outbox.write(self._transport, data)

    def finish(self, *, close: bool = False) -> None:
        """End the current answer; the next request of the connection may begin."""
        if self._state != _BUSY:
            return
        self.fresh = False
        self._exchange = None
        self._listener.body_bytes -= self._body_held
        self._body_held = 0
        if close or not self.keep_alive or self._listener.draining:
            self._linger()
            return
        self._state = _IDLE
        self.deadline = self._listener.now + self._listener.idle_s
        if not self._buffer:
            self._resume_reading()
        else:  # pipelined: from the loop, so that many small requests cannot grow the stack
            asyncio.get_running_loop().call_soon(self._next)

    def abort(self) -> None:
        """Close at once, without a word more."""
        self._outbox.flush()
        self._transport.abort()

    def close_without_terminator(self) -> None:
        """Flush what was written and close, so that a cut chunked answer reads as cut (request-path W3)."""
        self._exchange = None
        self._listener.body_bytes -= self._body_held
        self._body_held = 0
        if self._state != _CLOSED:
            self._linger()

    # -- what the event loop calls ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport, or refuse at once when there are too many connections (L7, F34)."""
        self._transport = cast("asyncio.Transport", transport)
        listener = self._listener
        listener.connections.add(self)
        self._address = listener.came_from(transport)
        listener.connections_total += 1
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            listener.took(sock)
        self._transport.set_write_buffer_limits(high=listener.options.write_buffer_bytes)
        if listener.is_full(self._address):
            self._refuse(
                b"", Refusal(503, "too_many_connections", "Too many connections.", None, "overloaded", 1, close=True)
            )

    def data_received(self, data: bytes) -> None:
        """Advance the request that is being read."""
        state = self._state
        if state <= _HEAD:
            self._read_head(self._buffer + data if self._buffer else data)
        elif state == _BODY:
            self._read_body(data)
        elif state == _BUSY:
            self._buffer += data
            if len(self._buffer) > self._listener.options.pipeline_max_bytes and not self._paused_reading:
                self._paused_reading = True
                self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Treat a half-close as gone: nobody can be told apart from one who left (W7)."""
        self._gone()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the cause changes nothing
        """Give everything back."""
        self._listener.left(self, self._address)
        self._listener.body_bytes -= self._body_held
        self._body_held = 0
        self._gone()
        self._state = _CLOSED

    def pause_writing(self) -> None:
        """Pass the client's slowness on (L9)."""
        if self._state != _BUSY:
            return
        self._unsent_bytes = self._transport.get_write_buffer_size()
        self.deadline = self._listener.now + self._listener.options.write_idle_s
        if self._exchange is not None:
            self._exchange.client_paused()

    def resume_writing(self) -> None:
        """Pass on that the client caught up."""
        if self._state != _BUSY:
            return
        self._unsent_bytes = 0
        self.deadline = float("inf")
        if self._exchange is not None:
            self._exchange.client_resumed()

    def expired(self, now: float) -> None:
        """Act on the deadline of the state the connection is in (L5, L6, L9)."""
        options = self._listener.options
        if self._state in (_HEAD, _BODY):
            what = "head" if self._state == _HEAD else "body"
            path = self._head.path if self._head is not None else b""
            self._refuse(
                path, Refusal(408, "request_timeout", f"The request {what} did not arrive in time.", close=True)
            )
        elif self._state == _BUSY and self._unsent_bytes:
            unsent = self._transport.get_write_buffer_size()
            if unsent >= self._unsent_bytes:
                self._gone()
                self.abort()
                return
            self._unsent_bytes = unsent
            self.deadline = now + options.write_idle_s
        elif self._state == _BUSY:
            self.deadline = float("inf")
        elif self._state == _LINGER:
            unsent = self._transport.get_write_buffer_size()
            if unsent and unsent != self._unsent_bytes:  # the answer is still on its way
                self._unsent_bytes = unsent
                self.deadline = now + options.write_idle_s
                return
            self.abort()
        else:
            self._transport.close()

    @property
    def idle(self) -> bool:
        """Whether no request is being read or served."""
        return self._state == _IDLE

    def close_if_idle(self) -> None:
        """Close unless a request is being read or served."""
        if self._state == _IDLE:
            self._outbox.flush()  # the answer that made it idle may be of this very round
            self._transport.close()

    def _next(self) -> None:
        if self._state == _IDLE and self._buffer:
            data, self._buffer = self._buffer, b""
            self._read_head(data)
        if self._state != _BUSY:  # what was read ahead is used up, as far as it goes
            self._resume_reading()

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read_head(self, data: bytes) -> None:
        end = data.find(_HEAD_END)
        listener = self._listener
        if end < 0 or data[0] == _CR:
            data = self._without_leading_line_ends(data)
            end = data.find(_HEAD_END)
            if end < 0:
                self._wait_for_head(data)
                return
        parsed = listener.parser.parse(data[:end])
        if type(parsed) is not Head:
            self._refuse(_path_of(data), cast("Refusal", parsed))
            return
        head = parsed
        self.keep_alive = head.keep_alive
        refusal = listener.handler.on_head(head)
        if refusal is not None or head.content_length or head.chunked:
            self._begin_body(head, refusal, data[end + 4 :])
            return
        self._complete(head, b"", data[end + 4 :])

    def _without_leading_line_ends(self, data: bytes) -> bytes:
        """H21: clients of the nineties sent one after a POST body; two are skipped, however they arrive."""
        while self._line_ends < _LINE_ENDS_MAX and data.startswith(b"\r\n"):
            self._line_ends += 1
            data = data[2:]
        return data

    def _wait_for_head(self, data: bytes) -> None:
        refusal = self._listener.parser.incomplete(data) if data else None
        if refusal is not None:
            self._refuse(_path_of(data), refusal)
            return
        self._buffer = data
        if data and self._state == _IDLE:
            self._state = _HEAD
            self.deadline = self._listener.clock() + self._listener.options.head_timeout_s

    def _begin_body(self, head: Head, refusal: Refusal | None, rest: bytes) -> None:
        listener = self._listener
        self._head = head
        limit = listener.body_max_bytes if head.method == b"POST" else _IGNORED_BODY_MAX_BYTES
        length = head.content_length
        if refusal is None and length > limit:
            refusal = _too_large(limit)
        if refusal is None and listener.body_bytes + length > listener.bodies_max_bytes:
            refusal = _SHED
        if refusal is not None:
            # The unread body would be taken for the next request: unless it is all here, the connection ends.
            unread = head.chunked or length > len(rest)
            self._buffer = b"" if unread else rest[length:]
            self._refuse(head.path, refusal, close=unread)
            return
        if length and length == len(rest):  # the usual case: a slice of everything would be a copy
            self._complete(head, rest, b"")
            return
        if 0 < length < len(rest):
            self._complete(head, rest[:length], rest[length:])
            return
        self._body = []
        self._buffer = b""
        self._chunks = ChunkedDecoder(limit) if head.chunked else None
        self._state = _BODY
        self._body_due = listener.clock() + listener.total_s
        if head.expect_continue and not rest:
            self.write(_CONTINUE)
        self._read_body(rest)

    def _read_body(self, data: bytes) -> None:
        listener = self._listener
        head = cast("Head", self._head)
        self.deadline = min(listener.now + listener.options.body_idle_s, self._body_due)
        chunks = self._chunks
        try:
            for piece in (data,) if chunks is None else chunks.feed(data):
                self._hold(piece)
        except PayloadTooLargeError:
            self._refuse(head.path, _too_large(chunks.payload_max))  # type: ignore[union-attr]  # only a decoder raises
            return
        except FramingError as error:
            self._refuse(
                head.path, Refusal(400, "bad_http", f"The request body has {error}; expected valid chunks.", close=True)
            )
            return
        if chunks is None:
            if self._body_held >= head.content_length:
                whole = b"".join(self._body)
                self._complete(head, whole[: head.content_length], whole[head.content_length :])
                return
        elif chunks.done:
            self._complete(head, b"".join(self._body), chunks.rest)
            return
        # Heads that announce bodies hold nothing yet, so many of them may pass the check of L8 together.
        if listener.body_bytes > listener.bodies_max_bytes:
            self._refuse(head.path, _SHED)

    def _hold(self, piece: bytes) -> None:
        self._body.append(piece)
        self._body_held += len(piece)
        self._listener.body_bytes += len(piece)

    def _complete(self, head: Head, body: bytes, rest: bytes) -> None:
        listener = self._listener
        listener.body_bytes += len(body) - self._body_held
        self._body_held = len(body)
        self._body = []
        self._head = self._chunks = None
        self._buffer = rest
        self._line_ends = 0
        self._state = _BUSY
        self.deadline = float("inf")
        listener.handler.on_request(self, head, body)

    # -- ending -------------------------------------------------------------------------------------------------------

    def _refuse(self, path: bytes, refusal: Refusal, *, close: bool = False) -> None:
        head = self._head
        closing = close or refusal.close or not self.keep_alive or self._listener.draining
        answer = self._listener.handler.refusal(path, refusal, head)
        if closing:
            answer = answer.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
        if head is not None and head.method == b"HEAD":  # a body would be taken for the next answer
            answer = answer[: answer.index(_HEAD_END) + 4]
        self.write(answer)
        self._line_ends = 0
        self._state = _BUSY
        self._head = self._chunks = None
        self._body = []
        self.finish(close=closing)

    def _linger(self) -> None:
        """Say that we are done, and keep reading a moment: a reset now would destroy the answer on its way."""
        self._state = _LINGER
        self._buffer = b""
        self._outbox.flush()
        self.deadline = self._listener.now + _LINGER_S
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._resume_reading()

    def _resume_reading(self) -> None:
        if self._paused_reading:
            self._paused_reading = False
            self._transport.resume_reading()

    def _gone(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()


_SHED: Final = Refusal(503, "shed", "Too many request bodies are held.", None, "overloaded", 1, close=True)


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "request_too_large", f"The body is too large; expected at most {limit} bytes.", close=True)


def _path_of(data: bytes) -> bytes:
    """Return the path of a request that may be malformed, to choose the dialect of the refusal."""
    parts = data[:8192].split(b"\r\n", 1)[0].split(b" ")
    return parts[1].partition(b"?")[0] if len(parts) > 1 else b""
