"""An endpoint that is no HTTP server: answers written in this process that look to the gateway like any other's.

Whatever makes the text stands behind `TextSource`; app.py joins the two. A client that reads slowly pauses
the source, which then keeps what is shortest.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from turnout.core.errors import ErrorKind
from turnout.http.client import Sink
from turnout.http.response_head import parse

_HEAD_END = b"\r\n\r\n"
_REASONS = {200: b"OK", 400: b"Bad Request", 500: b"Internal Server Error"}
# What the source says of an answer it lost, as the gateway counts it; anything else is a broken stream.
_KINDS = {
    "engine_lost": ErrorKind.CONNECTION_RESET,
    "no_engine": ErrorKind.ENDPOINT_GONE,
    "saturated": ErrorKind.OVERLOADED,
    "draining": ErrorKind.ENDPOINT_GONE,
    "deadline": ErrorKind.TIMEOUT_RESPONSE,
}


class TextSource(Protocol):
    """Writes answers for one endpoint."""

    def begin(self, path: str, body: bytes, receiver: TextAnswer) -> int | None:
        """Start; returns what `cancel` takes, or None when the answer has ended already."""
        ...

    def cancel(self, number: int) -> None:
        """Nobody waits any more."""
        ...

    def pause(self, number: int) -> None:
        """Write nothing until `resume`, but for the end."""
        ...

    def resume(self, number: int) -> None:
        """Write what came since."""
        ...


class TextAnswer:
    """One answer on its way from the source to the gateway's sink."""

    def __init__(self, pool: TextPool, sink: Sink) -> None:
        self._pool = pool
        self._sink: Sink | None = sink
        self._is_open = False

    def opened(self, status: int, content_type: str) -> None:
        """Begin with a head."""
        if self._sink is not None:
            self._is_open = True
            line = b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\n" % (status, _REASONS[status], content_type.encode())
            self._sink.on_head(parse(line + b"transfer-encoding: chunked"))

    def body(self, payload: bytes) -> None:
        """Go on."""
        if self._sink is not None:
            self._sink.on_body(payload, None)

    def ended(self) -> None:
        """End complete."""
        sink = self._release()
        if sink is not None:
            sink.on_end()

    def lost(self, reason: str) -> None:
        """End without completion."""
        sink = self._release()
        if sink is not None:
            kind = ErrorKind.STREAM_CUT if self._is_open else _KINDS.get(reason, ErrorKind.SERVER_ERROR)
            sink.on_failure(kind, reason)

    def drop(self) -> None:
        """Deliver nothing more: the sink gave up."""
        self._sink = None

    def _release(self) -> Sink | None:
        sink, self._sink = self._sink, None
        if sink is not None:
            self._pool.forget(sink)
        return sink


class TextPool:
    """Answers under way at one endpoint; takes the place of `http.client.EndpointPool`."""

    def __init__(self, source: TextSource) -> None:
        self._source = source
        self._answers: dict[Sink, tuple[TextAnswer, int | None]] = {}
        self._loop = asyncio.get_running_loop()
        self.connects_total = self.connect_failures_total = self.reuses_total = 0

    def request(self, request: bytes, sink: Sink) -> None:
        """Take a request as it would go on a connection: the answer comes later, as from one."""
        head, _, body = request.partition(_HEAD_END)
        path = head.split(b" ", 2)[1].decode()
        answer = TextAnswer(self, sink)
        self._answers[sink] = (answer, None)
        self._loop.call_soon(self._begin, path, body, answer, sink)

    def cancel(self, sink: Sink) -> None:
        """Give up an answer."""
        entry = self._answers.pop(sink, None)
        if entry is not None:
            answer, number = entry
            answer.drop()
            if number is not None:
                self._source.cancel(number)

    def pause(self, sink: Sink) -> bool:
        """Let the source write nothing for now."""
        _, number = self._answers.get(sink, (None, None))
        if number is not None:
            self._source.pause(number)
        return number is not None

    def resume(self, sink: Sink) -> None:
        """Let it go on."""
        _, number = self._answers.get(sink, (None, None))
        if number is not None:
            self._source.resume(number)

    def forget(self, sink: Sink) -> None:
        """The answer has ended."""
        self._answers.pop(sink, None)

    def sweep(self, now: float) -> None:
        """Nothing is idle here."""

    def close(self) -> None:
        """Give up every answer."""
        for sink in list(self._answers):
            self.cancel(sink)

    def _begin(self, path: str, body: bytes, answer: TextAnswer, sink: Sink) -> None:
        if sink in self._answers:
            number = self._source.begin(path, body, answer)
            if sink in self._answers:
                self._answers[sink] = (answer, number)


class TextUpstream:
    """What the gateway keeps of such an endpoint; takes the place of `gateway.upstream.Upstream`."""

    stream_usage = True
    asks_load = False

    def __init__(self, source: TextSource) -> None:
        self.pool = TextPool(source)

    def refused_usage(self) -> bool:
        """Usage is always understood."""
        return False

    def head(self, path: str, method: str = "POST") -> bytes:
        """Return the first line alone: no header is read."""
        return f"{method} {path} HTTP/1.1\r\n".encode()

    def whole_head(self, path: str) -> bytes:
        """Return the same."""
        return self.head(path)
