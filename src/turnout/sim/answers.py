"""One open generation on its connection: tokens to bytes, and the mid-answer faults made real.

An armed fault always strikes: after its number of tokens, or before the last token when the answer is shorter.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from turnout.sim.wire import usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from turnout.sim.faults import Fault
    from turnout.sim.requests import Generate
    from turnout.sim.sequence import Emitted

EVENT_STREAM = "text/event-stream; charset=utf-8"
WRONG_STREAM_BYTES = 2**40
"""Declared length of a stream under `wrong_length`: more than is ever sent."""
WRONG_EXTRA_BYTES = 64
TRAILING = b'{"trailing":"bytes that nobody announced"}'
_LONG_BEFORE_END = ("no_terminator", "wrong_length", "extra_bytes", "trickle")
"""Kinds that shape the whole answer instead of striking at one token."""


class Line(Protocol):
    """Where an answer is written: a connection, or the place of one of several that share a connection.

    `gone` is called when the client leaves while it is open.
    """

    gone: Callable[[], None] | None

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""

    def reply(
        self, status: int, body: bytes, *, content_type: str = ..., headers: Iterable[tuple[str, str]] = ...
    ) -> None:
        """A whole answer."""

    def open(self, content_type: str, length: int | None = None) -> None:
        """The head of an answer written in pieces."""

    def write(self, data: bytes) -> None:
        """A piece."""

    def end(self, extra: bytes = b"") -> None:
        """The honest end."""

    def half_close(self) -> None:
        """FIN, while the socket stays open for reading."""

    def cut(self) -> None:
        """FIN without terminator."""

    def reset(self) -> None:
        """RST."""

    def kill(self) -> None:
        """RST at once."""


class Answer(Protocol):
    """Receives the tokens of one generation."""

    def emitted(self, event: Emitted, /) -> bool:
        """Take one token; False ends the generation in the model."""


class Shape(Protocol):
    """How one generation is worded: events, their end, the whole, and what faults make of them."""

    @property
    def done(self) -> bytes:
        """The terminator."""

    @property
    def malformed(self) -> bytes:
        """An event that cannot be read."""

    def role(self, usage_now: dict[str, Any] | None, /) -> bytes:
        """What comes before the first token."""

    def chunk(self, text: str, finish: str | None, stop_hit: str | None, usage_now: dict[str, Any] | None, /) -> bytes:
        """One output event."""

    def usage_event(self, usage_now: dict[str, Any], /) -> bytes:
        """The counts at the end."""

    def whole(self, texts: list[str], finish: str, stop_hit: str | None, usage_now: dict[str, Any], /) -> bytes:
        """The complete answer."""

    def error(self, status: int, /) -> bytes:
        """An error object inside a 200."""

    def error_event(self, status: int, /) -> bytes:
        """The same in the middle of a stream."""


class StreamAnswer:
    """Server-sent events: role, deltas, finish, usage on request, `[DONE]`."""

    def __init__(
        self, connection: Line, asked: Generate, shape: Shape, fault: Fault | None, *, cached_tokens: bool
    ) -> None:
        self._connection = connection
        self._asked = asked
        self._shape = shape
        self._fault = fault
        self._reports_cached = cached_tokens
        self._started = False
        self._drip: Drip | None = None
        self._stalled: list[Callable[[], None]] | None = None
        if fault is not None and fault.kind == "trickle":
            self._drip = Drip(connection, fault.factor)
        # The head goes out before the first token, as vLLM's does.
        wrong = fault is not None and fault.kind == "wrong_length"
        connection.open(EVENT_STREAM, WRONG_STREAM_BYTES if wrong else None)

    def emitted(self, event: Emitted) -> bool:
        """Write one token's events."""
        fault = self._fault
        due = (
            fault is not None
            and fault.kind not in _LONG_BEFORE_END
            and (event.finish is not None or event.output_tokens > fault.after_tokens)
        )
        if due and fault is not None and not self._strike(fault):
            return False
        data = self._events(event)
        self._put(lambda: self._write(data) if data else None)
        if event.finish is not None:
            self._put(self._end)
        return True

    def _events(self, event: Emitted) -> bytes:
        prompt_tokens = self._asked.prompt_tokens
        cached = event.cached_tokens if self._reports_cached else None
        running = None
        if self._asked.continuous_usage:
            running = usage(prompt_tokens, event.output_tokens, cached)
        data = b"" if self._started else self._shape.role(running)
        self._started = True
        if event.text or event.finish is not None:
            data += self._shape.chunk(event.text, event.finish, event.stop_hit, running)
        if event.finish is not None:
            if self._asked.include_usage:
                data += self._shape.usage_event(usage(prompt_tokens, event.output_tokens, cached))
            if self._fault is None or self._fault.kind != "no_terminator":
                data += self._shape.done
        return data

    def _write(self, data: bytes) -> None:
        if self._drip is None:
            self._connection.write(data)
        else:
            self._drip.write(data)

    def _strike(self, fault: Fault) -> bool:
        """Carry the fault out, once; False when the connection does not live on."""
        self._fault = None
        if fault.kind == "stall":
            self._stalled = []
            asyncio.get_running_loop().call_later(fault.seconds, self._resume)
        elif fault.kind == "silence":
            asyncio.get_running_loop().call_later(fault.seconds, self._cut_late)
            return False
        elif fault.kind == "half_close":
            self._connection.half_close()
            return False
        elif fault.kind == "error_event":
            self._connection.write(self._shape.error_event(fault.status))
            self._connection.end()
            return False
        elif fault.kind == "bad_sse":
            self._connection.write(self._shape.malformed)
        elif fault.kind == "reset_mid_stream":
            self._connection.reset()
            return False
        elif fault.kind == "cut_mid_stream":
            self._connection.cut()
            return False
        return True

    def _put(self, action: Callable[[], None]) -> None:
        if self._stalled is None:
            action()
        else:
            self._stalled.append(action)

    def _resume(self) -> None:
        waiting, self._stalled = self._stalled or [], None
        if self._connection.busy:
            for action in waiting:
                action()

    def _cut_late(self) -> None:
        if self._connection.busy:
            self._connection.cut()

    def _end(self) -> None:
        if self._drip is not None:
            self._drip.end()
        elif self._fault is None or self._fault.kind == "no_terminator":
            self._connection.end()
        elif self._fault.kind == "extra_bytes":
            self._connection.end(TRAILING)
        else:
            self._connection.cut()


class Drip:
    """Bytes that leave one at a time, as over a very bad line."""

    def __init__(self, connection: Line, bytes_per_s: float) -> None:
        self._connection = connection
        self._gap_s = 1 / bytes_per_s
        self._waiting = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    def write(self, data: bytes) -> None:
        """Put bytes in line."""
        self._waiting += data
        self._go()

    def end(self) -> None:
        """End the answer after the last byte."""
        self._ended = True
        self._go()

    def _go(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._gap_s, self._one)

    def _one(self) -> None:
        self._timer = None
        if not self._connection.busy:
            return
        if self._waiting:
            self._connection.write(bytes(self._waiting[:1]))
            del self._waiting[:1]
        if self._waiting:
            self._go()
        elif self._ended:
            self._connection.end()


class WholeAnswer:
    """One JSON object when the generation ends."""

    def __init__(
        self, connection: Line, asked: Generate, shape: Shape, fault: Fault | None, *, cached_tokens: bool
    ) -> None:
        self._connection = connection
        self._asked = asked
        self._shape = shape
        self._fault = fault
        self._reports_cached = cached_tokens
        self._texts: list[str] = []

    def emitted(self, event: Emitted) -> bool:
        """Collect one token; the last one writes the answer."""
        if event.text:
            self._texts.append(event.text)
        if event.finish is not None:
            cached = event.cached_tokens if self._reports_cached else None
            counts = usage(self._asked.prompt_tokens, event.output_tokens, cached)
            body = self._shape.whole(self._texts, event.finish, event.stop_hit, counts)
            send_whole(self._connection, self._shape, body, self._fault)
        return True


def send_whole(connection: Line, shape: Shape, body: bytes, fault: Fault | None) -> None:
    """Write a whole answer, or what a fault makes of it."""
    if fault is None or fault.kind == "no_terminator":  # a whole answer has none
        connection.reply(200, body)
    elif fault.kind == "bad_sse":
        connection.reply(200, body[:-1])
    elif fault.kind == "error_event":
        connection.reply(200, shape.error(fault.status))
    else:
        _broken(connection, body, fault)


def _broken(connection: Line, body: bytes, fault: Fault) -> None:
    half = len(body) // 2
    if fault.kind == "extra_bytes":
        connection.open("application/json", len(body))
        connection.write(body + TRAILING)
        connection.end()
        return
    connection.open("application/json", len(body) + (WRONG_EXTRA_BYTES if fault.kind == "wrong_length" else 0))
    if fault.kind == "trickle":
        drip = Drip(connection, fault.factor)
        drip.write(body)
        drip.end()
    elif fault.kind == "stall":
        connection.write(body[:half])
        asyncio.get_running_loop().call_later(fault.seconds, _rest, connection, body[half:])
    elif fault.kind == "silence":
        connection.write(body[:half])
        asyncio.get_running_loop().call_later(fault.seconds, connection.cut)
    elif fault.kind == "half_close":
        connection.write(body[:half])
        connection.half_close()
    elif fault.kind == "wrong_length":
        connection.write(body)
        connection.cut()
    else:
        connection.write(body[:half])
        if fault.kind == "reset_mid_stream":
            connection.reset()
        else:
            connection.cut()


def _rest(connection: Line, rest: bytes) -> None:
    if connection.busy:
        connection.write(rest)
        connection.end()
