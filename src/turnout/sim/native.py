"""SGLang's own answers: one object per prompt, a list of them for a batch, or events whose text grows.

The answers of a batch share one connection: each writes to its `Part`, and the `Batch` makes one answer of all.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import msgspec

from turnout.sim.answers import EVENT_STREAM, StreamAnswer, WholeAnswer, send_whole
from turnout.sim.native_requests import MALFORMED, items_of, read_native
from turnout.sim.ranks import HEADER
from turnout.sim.requests import RefusalError
from turnout.sim.text import pack, unpack
from turnout.sim.wire import to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from turnout.sim.faults import Fault
    from turnout.sim.handover import Handovers
    from turnout.sim.http import Connection, HttpRequest
    from turnout.sim.native_requests import Item
    from turnout.sim.options import EngineOptions
    from turnout.sim.ranks import Ranks

PATH = "/generate"
DONE = b"data: [DONE]\n\n"
END_ID = 2
"""Token that SGLang names where a text ends by itself."""
_OK_MAX = 299


class NativeShape:
    """The objects of one generation (`answers.Shape`). The batch writes the terminator: one for all."""

    done = b""
    malformed = b'data: {"text":"half of it","meta_info":{"id"\n\n'

    def __init__(self, identifier: str, index: int | None) -> None:
        self._identifier = identifier
        self._index = {} if index is None else {"index": index}
        self._text = ""

    def role(self, usage_now: dict[str, Any] | None) -> bytes:  # noqa: ARG002 - the protocol's
        """Nothing comes before the first token."""
        return b""

    def chunk(self, text: str, finish: str | None, stop_hit: str | None, usage_now: dict[str, Any] | None) -> bytes:
        """One event: the whole text so far."""
        self._text += text
        document = self._document(self._text, finish, stop_hit, usage_now or {})
        return b"data: %b\n\n" % to_json({**document, **self._index})

    def usage_event(self, usage_now: dict[str, Any]) -> bytes:  # noqa: ARG002 - as above
        """Every event has its counts."""
        return b""

    def whole(self, texts: list[str], finish: str, stop_hit: str | None, usage_now: dict[str, Any]) -> bytes:
        """The complete answer to one prompt."""
        return to_json(self._document("".join(texts), finish, stop_hit, usage_now))

    def error(self, status: int) -> bytes:
        """An error object inside a 200."""
        return error_body(f"injected error {status}")

    def error_event(self, status: int) -> bytes:
        """The same in the middle of a stream."""
        return b"data: %b\n\n" % self.error(status)

    def _document(self, text: str, finish: str | None, stop_hit: str | None, counts: dict[str, Any]) -> dict[str, Any]:
        output = counts.get("completion_tokens", 0)
        meta = {
            "id": self._identifier,
            "finish_reason": _reason(finish, stop_hit, output),
            "prompt_tokens": counts.get("prompt_tokens", 0),
            "completion_tokens": output,
            "cached_tokens": (counts.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        }
        return {"text": text, "output_ids": unpack(pack(text.encode())), "meta_info": meta}


def _reason(finish: str | None, stop_hit: str | None, output: int) -> dict[str, Any] | None:
    if finish == "length":
        return {"type": "length", "length": output}
    return None if finish is None else {"type": "stop", "matched": END_ID if stop_hit is None else stop_hit}


def error_body(message: str) -> bytes:
    """An error that SGLang found itself, as it words it here."""
    return to_json({"error": {"message": message}})


def translated(body: bytes) -> bytes:
    """An error body of the OpenAI dialect in SGLang's; a body that it could not read has another shape."""
    error = msgspec.json.decode(body)["error"]
    if error["type"] != MALFORMED:
        return error_body(error["message"])
    told = {"object": "error", "message": error["message"], "type": MALFORMED, "param": None, "code": error["code"]}
    return to_json(told)


class Part:
    """The place of one answer in a batch (`answers.Line`)."""

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self._index = index
        self.over = False
        self.gone: Callable[[], None] | None = None

    @property
    def busy(self) -> bool:
        """Whether it is being answered."""
        return not self.over and self._batch.connection.busy

    def reply(
        self, status: int, body: bytes, *, content_type: str = "", headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Its whole answer, or what ends the batch: the engine gives no other part then."""
        del content_type, headers  # the batch has its own
        self._ended()
        if status > _OK_MAX:
            self._batch.failed(status, msgspec.json.decode(body)["error"]["message"])
        else:
            self._batch.collected(self._index, body)

    def open(self, content_type: str, length: int | None = None) -> None:
        """Its events begin."""
        self._batch.open(content_type, length)

    def write(self, data: bytes) -> None:
        """A piece of them."""
        self._batch.connection.write(data)

    def end(self, extra: bytes = b"") -> None:
        """Its events have ended."""
        self._ended()
        self._batch.streamed(extra)

    def half_close(self) -> None:
        """As of the connection that it shares, like the next three."""
        self._batch.connection.half_close()

    def cut(self) -> None:
        """FIN without terminator."""
        self._batch.connection.cut()

    def reset(self) -> None:
        """RST, after everything written so far."""
        self._batch.connection.reset()

    def kill(self) -> None:
        """RST at once."""
        self._batch.connection.kill()

    def _ended(self) -> None:
        self.over = True
        self.gone = None


class Batch:
    """One or several answers on one connection. A client that leaves ends all of them."""

    def __init__(self, connection: Connection, count: int, fault: Fault | None, *, stream: bool, single: bool) -> None:
        self.connection = connection
        self.parts = [Part(self, index) for index in range(count)]
        self._fault = fault
        self._stream = stream
        self._single = single
        self._bodies = [b""] * count
        self._left = count
        self._opened = False
        self._extra = b""
        connection.gone = self.leave

    def leave(self) -> None:
        """End every generation that has not ended."""
        for part in self.parts:
            gone, part.gone, part.over = part.gone, None, True
            if gone is not None:
                gone()

    def fault_of(self, index: int) -> Fault | None:
        """What befalls an answer as it is written: the first of a stream; a whole batch is struck as one."""
        return self._fault if self._stream and not index else None

    def open(self, content_type: str, length: int | None) -> None:
        """The head of all events, once."""
        if not self._opened:
            self._opened = True
            self.connection.open(content_type, length)

    def streamed(self, extra: bytes) -> None:
        """The events of one part have ended; the last one brings the terminator."""
        self._left -= 1
        self._extra += extra
        if self._left:
            return
        if self._fault is None or self._fault.kind != "no_terminator":
            self.connection.write(DONE)
        self.connection.end(self._extra)

    def collected(self, index: int, body: bytes) -> None:
        """One part is answered; the last one makes the answer."""
        self._bodies[index] = body
        self._left -= 1
        if not self._left:
            whole = self._bodies[0] if self._single else b"[%b]" % b",".join(self._bodies)
            send_whole(self.connection, NativeShape("", None), whole, self._fault)

    def failed(self, status: int, message: str) -> None:
        """One part cannot be answered, so none is: SGLang raises out of the whole request."""
        self.leave()
        if self._stream:
            self.refused(message)
            return
        told = {"object": "error", "message": message, "type": str(status), "param": None, "code": status}
        self.connection.reply(status, to_json(told))

    def refused(self, message: str) -> None:
        """What SGLang finds wrong with values: a stream has begun by then, and tells it in its first event."""
        self.leave()
        if not self._stream:
            self.connection.reply(400, error_body(message))
            return
        self.open(EVENT_STREAM, None)
        self.connection.write(b"data: %b\n\n" % error_body(message) + DONE)
        self.connection.end()


def serve(
    connection: Connection,
    request: HttpRequest,
    options: EngineOptions,
    ranks: Ranks,
    handovers: Handovers,
    *,
    fault: Callable[[], Fault | None],
    identifier: str,
) -> None:
    """`POST /generate`. Raises RefusalError for a body that cannot be read; what else is wrong is told here."""
    native = read_native(request.body)
    try:
        items = items_of(native, identifier, options.context_tokens)
    except RefusalError as refusal:
        Batch(connection, 0, None, stream=native.stream, single=True).refused(refusal.message)
        return
    batch = Batch(connection, len(items), fault(), stream=native.stream, single=not native.batch)
    try:
        for index, item in enumerate(items):
            shape = NativeShape(item.identifier, index if native.batch else None)
            _begin(batch, index, item, shape, ranks, handovers, request.headers.get(HEADER))
            if item.rid is not None:  # only now: a request refused for its room must not take another's name
                handovers.named(item.rid, batch.parts[index])
    except RefusalError as refusal:
        batch.refused(refusal.message)


def _begin(
    batch: Batch, index: int, item: Item, shape: NativeShape, ranks: Ranks, handovers: Handovers, header: str | None
) -> None:
    part, asked = batch.parts[index], item.asked
    fault = batch.fault_of(index)
    if item.legs.bootstrap_room is not None:
        handovers.serve(part, item.legs, asked, shape, lambda: fault)
        return
    pump = ranks.pick(asked.rank, header)
    make = StreamAnswer if asked.stream else WholeAnswer
    # SGLang tells of cached tokens without being asked.
    answer = make(part, asked, shape, fault, cached_tokens=True)
    part.gone = functools.partial(pump.abort, pump.run(asked.work, answer))
