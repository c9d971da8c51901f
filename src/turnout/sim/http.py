"""The engine's side of one HTTP/1.1 connection: requests in order, one answer at a time, and honest or broken endings.

The protocol knows framing only; what to answer is the handler's business. `reset`, `cut` and `kill` exist because an
engine that dies must look dead on the wire.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING

import httptools
import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BODY_MAX_BYTES = 64 * 2**20
HEAD_MAX_BYTES = 64 * 2**10
PIPELINE_MAX = 32
RESET_DELAY_S = 0.002
"""Lets bytes written before a reset leave the process, since an abort discards what is still buffered."""
_JSON = "application/json"
_NO_LINGER = struct.pack("ii", 1, 0)


class HttpRequest(msgspec.Struct, frozen=True):
    """One complete request. Header names are lower-case; of a repeated one the last counts."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool
    http_1_0: bool


class Connection(asyncio.Protocol):
    """One client connection. `gone` is called when the client leaves while an answer is open."""

    def __init__(self, handler: Callable[[Connection, HttpRequest], None], connections: set[Connection]) -> None:
        self._handler = handler
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._pending: deque[HttpRequest] = deque()
        self._current: HttpRequest | None = None
        self._chunked = False
        self._transport: asyncio.Transport
        self.gone: Callable[[], None] | None = None
        self.beside: Callable[[], tuple[str, str]] | None = None
        """A header that goes out with the next whole answer, written when that is."""
        self.control = False
        """Whether it carried a control request; such a connection outlives the fault `refuse`."""
        self._start_message()

    # The asyncio side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection; small writes leave at once."""
        self._transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Tell the open answer."""
        self._connections.discard(self)
        self._pending.clear()
        self._current = None
        gone, self.gone = self.gone, None
        if gone is not None:
            gone()

    def data_received(self, data: bytes) -> None:
        """Parse; malformed input is answered once and the connection closed."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(501)
        except httptools.HttpParserError:
            self._refuse(400)
        # Answered outside the parser, which would turn a fault of the handler into a fault of the client.
        if self._pending and self._current is None:
            self._next()

    # The parser side.

    def on_message_begin(self) -> None:
        """Forget the previous message."""
        self._start_message()

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header line."""
        self._headers[name.lower().decode("latin-1")] = value.decode("latin-1")
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Invite a body that waits for it."""
        if self._headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Collect the body up to its limit."""
        self._body += body
        if len(self._body) > BODY_MAX_BYTES:
            message = f"body over {BODY_MAX_BYTES} bytes"
            raise ValueError(message)

    def on_message_complete(self) -> None:
        """Queue the request, in order."""
        request = HttpRequest(
            method=self._parser.get_method().decode("latin-1"),
            path=self._url.partition(b"?")[0].decode("latin-1"),
            headers=self._headers,
            body=bytes(self._body),
            keep_alive=self._parser.should_keep_alive(),
            http_1_0=self._parser.get_http_version() == "1.0",
        )
        self._pending.append(request)
        if len(self._pending) > PIPELINE_MAX:
            message = f"more than {PIPELINE_MAX} requests in advance"
            raise ValueError(message)

    # The answering side.

    def reply(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = _JSON,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """A whole answer with its true length."""
        told = () if self.beside is None or status >= HTTPStatus.MULTIPLE_CHOICES else (self.beside(),)
        lines = [*headers, *told, ("content-length", str(len(body)))]
        self._transport.write(self._head(status, content_type, lines) + body)
        self.done()

    def open(self, content_type: str, length: int | None = None) -> None:
        """The head of an answer written in pieces; without a length it is chunked."""
        headers: list[tuple[str, str]] = []
        http_1_0 = self._current is not None and self._current.http_1_0
        self._chunked = length is None and not http_1_0
        if self._chunked:
            headers.append(("transfer-encoding", "chunked"))
        elif length is not None:
            headers.append(("content-length", str(length)))
        self._transport.write(self._head(200, content_type, headers))

    def write(self, data: bytes) -> None:
        """A piece of an open answer."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self, extra: bytes = b"") -> None:
        """The honest end of an open answer; `extra` follows it. One that has no framing of its own ends by close."""
        if self._chunked:
            self._transport.write(b"0\r\n\r\n" + extra)
        elif self._current is not None and self._current.http_1_0:
            self._transport.close()
        self.done()

    def done(self) -> None:
        """The answer is written: the next request, or close."""
        self.gone = self.beside = None
        current, self._current = self._current, None
        if current is not None and not current.keep_alive:
            self._transport.close()
        elif self._pending:
            self._next()

    def raw(self, data: bytes) -> None:
        """Bytes that are no HTTP, and the end."""
        self._transport.write(data)
        self._transport.close()

    def half_close(self) -> None:
        """FIN, while the socket stays open for reading, as a proxy does that has lost its own upstream."""
        self._transport.write_eof()

    def cut(self) -> None:
        """FIN without terminator, after everything written so far."""
        self._transport.close()

    def reset(self) -> None:
        """RST: the client sees the connection reset, after everything written so far."""
        asyncio.get_running_loop().call_later(RESET_DELAY_S, self.kill)

    def kill(self) -> None:
        """What the kernel does to the connections of a process that dies: RST, and unsent bytes are lost."""
        if not self._transport.is_closing():
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._transport.abort()

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._current is not None

    def _next(self) -> None:
        self._current = self._pending.popleft()
        self._handler(self, self._current)

    def _start_message(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._head_bytes = 0

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_MAX_BYTES:
            message = f"head over {HEAD_MAX_BYTES} bytes"
            raise ValueError(message)

    def _refuse(self, status: int) -> None:
        if self._current is None:
            self._transport.write(self._head(status, _JSON, [("content-length", "0"), ("connection", "close")]))
        self._transport.close()

    def _head(self, status: int, content_type: str, headers: Iterable[tuple[str, str]]) -> bytes:
        lines = [
            f"HTTP/1.1 {status} {_REASON.get(status, 'Unknown')}",
            "server: turnout-engine",
            f"content-type: {content_type}",
            *(f"{name}: {value}" for name, value in headers),
        ]
        if self._current is not None and not self._current.keep_alive:
            lines.append("connection: close")
        return "\r\n".join((*lines, "\r\n")).encode("latin-1")


_REASON = {status.value: status.phrase for status in HTTPStatus}
