"""HTTP answers from coordinator engines: requests of this process at the door, as text (coordinator §6).

One client of the door that never crosses the wire. A request goes to the engine that the gateway scheduled and is not
resent from here: another attempt is the gateway's choice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from turnout.coordinator.listener import CoordinatorListener
from turnout.coordinator.peers import Client, Engine, Request, Send
from turnout.coordinator.tokenizers import Detokenizer, Tokenizer
from turnout.engines import megatron_openai as openai
from turnout.engines.megatron import Header

IDENTITY = b"\0turnout/http"  # a peer cannot have it: identities that begin with zero are libzmq's own, of five bytes
_encode = msgspec.msgpack.encode
_EVENTS = "text/event-stream; charset=utf-8"
_JSON = "application/json"
_BAD_REQUEST, _SERVER_ERROR = 400, 500


class Receiver(Protocol):
    """Who waits for one answer. After `ended` or `lost` nothing more comes."""

    def opened(self, status: int, content_type: str) -> None:
        """The answer begins."""
        ...

    def body(self, payload: bytes) -> None:
        """A part of it."""
        ...

    def ended(self) -> None:
        """It is complete."""
        ...

    def lost(self, reason: str) -> None:
        """It will never be complete; `reason` is one of the door's."""
        ...


class _Generation:
    __slots__ = ("ask", "detokenizer", "is_open", "is_paused", "kept", "prompt_tokens", "receiver", "sent", "writer")

    def __init__(self, ask: openai.Ask, receiver: Receiver, detokenizer: Detokenizer, prompt_tokens: int) -> None:
        self.ask = ask
        self.receiver = receiver
        self.detokenizer = detokenizer
        self.prompt_tokens = prompt_tokens
        self.writer = openai.AnswerWriter(ask, os.urandom(12).hex(), int(time.time()))
        self.sent = 0
        self.is_open = False
        self.is_paused = False
        self.kept: list[int] = []


class TextEngines:
    """The engines of one door for requests that are text. `clock` is the listener's."""

    def __init__(
        self, listener: CoordinatorListener, tokenizer: Tokenizer, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._listener = listener
        self._tokenizer = tokenizer
        self._clock = clock
        self._client = Client(IDENTITY, clock(), ours=True)
        self._generations: dict[int, _Generation] = {}
        self._next = 0
        listener.attach(IDENTITY, self._delivered)

    def begin(self, engine: Engine, path: str, body: bytes, receiver: Receiver) -> int | None:
        """Start an answer; None when it has ended already. The receiver hears of it after this returns, or at once."""
        try:
            ask = openai.read_ask(path, body)
            tokens = self._tokens(ask)
        except openai.Unsupported as refusal:
            error = openai.error_body(str(refusal), param=refusal.param, kind="invalid_request_error")
            _answer(receiver, _BAD_REQUEST, error)
            return None
        number = self._next
        self._next += 1
        self._generations[number] = _Generation(ask, receiver, self._tokenizer.detokenizer(), len(tokens))
        door, now = self._listener.door, self._clock()
        parts = (_encode(tokens), _encode(ask.sampling), _encode(None))
        request = Request(self._client, number, Header.SUBMIT_REQUEST, parts, now)
        request.pinned = engine
        request.keys, request.tokens = door.blocks.keys(tokens)
        request.root = door.blocks.root
        door.requests.accept(request, now)
        self._listener.carry(door.take())
        return number if number in self._generations else None

    def cancel(self, number: int) -> None:
        """Nobody waits any more: the engine is told."""
        if self._generations.pop(number, None) is not None:
            self._listener.door.requests.abandon(self._client, number)
            self._listener.carry(self._listener.door.take())

    def pause(self, number: int) -> None:
        """The client reads slowly: keep tokens, which are a fraction of the events made of them."""
        generation = self._generations.get(number)
        if generation is not None:
            generation.is_paused = True

    def resume(self, number: int) -> None:
        """Write what was kept, as one event."""
        generation = self._generations.get(number)
        if generation is not None and generation.is_paused:
            generation.is_paused = False
            kept, generation.kept = generation.kept, []
            self._write(generation, kept)

    def _tokens(self, ask: openai.Ask) -> Sequence[int]:
        if ask.messages is not None:
            try:
                tokens = self._tokenizer.encode(self._tokenizer.render(ask.messages))
            except ValueError as error:
                raise openai.Unsupported("messages", str(error)) from None
        elif isinstance(ask.prompt, list):
            return ask.prompt
        else:
            tokens = self._tokenizer.begin(ask.prompt)
        if not tokens:
            raise openai.Unsupported("prompt", "the prompt has no tokens")
        return tokens

    def _delivered(self, send: Send) -> None:
        header, number, *rest = msgspec.msgpack.decode(send.payload)
        content = msgspec.msgpack.decode(send.bodies[0]) if send.bodies else rest[0]
        generation = self._generations.get(number)
        if generation is None:
            return
        if header == Header.ENGINE_REPLY_PARTIAL:
            self._progressed(generation, content["new_tokens"])
            return
        del self._generations[number]
        if header == Header.REQUEST_ERROR:
            generation.receiver.lost(content)
        else:
            self._finished(generation, content)

    def _progressed(self, generation: _Generation, tokens: list[int]) -> None:
        if not generation.ask.stream:
            return
        if generation.is_paused:
            generation.kept += tokens
        else:
            self._write(generation, tokens)

    def _write(self, generation: _Generation, tokens: list[int]) -> None:
        generation.sent += len(tokens)
        text = generation.detokenizer.feed(tokens)
        if text:
            self._open(generation)
            generation.receiver.body(generation.writer.text(text))

    def _finished(self, generation: _Generation, finished: dict[str, Any]) -> None:
        failure = openai.failure_of(finished)
        receiver, writer, ask = generation.receiver, generation.writer, generation.ask
        if failure is not None:
            is_transient, message = failure
            if generation.is_open:
                receiver.lost("engine_lost")
                return
            kind = "server_error" if is_transient else "invalid_request_error"
            _answer(receiver, _SERVER_ERROR if is_transient else _BAD_REQUEST, openai.error_body(message, kind=kind))
            return
        tokens = finished.get("generated_tokens")
        tokens = tokens if isinstance(tokens, list) else []
        cached = finished.get("num_cached_tokens")
        usage = openai.usage_of(generation.prompt_tokens, len(tokens), cached if isinstance(cached, int) else 0)
        reason = "length" if ask.max_tokens is not None and len(tokens) >= ask.max_tokens else "stop"
        if not ask.stream:
            _answer(receiver, 200, writer.whole(self._tokenizer.decode(tokens), reason, usage))
            return
        self._open(generation)
        rest = generation.detokenizer.feed(tokens[generation.sent :]) + generation.detokenizer.flush()
        last = writer.text(rest) if rest else b""
        last += writer.finish(reason)
        if ask.include_usage:
            last += writer.usage(usage)
        receiver.body(last + openai.DONE)
        receiver.ended()

    def _open(self, generation: _Generation) -> None:
        if not generation.is_open:
            generation.is_open = True
            generation.receiver.opened(200, _EVENTS)
            role = generation.writer.role()
            if role:
                generation.receiver.body(role)


def _answer(receiver: Receiver, status: int, body: bytes) -> None:
    receiver.opened(status, _JSON)
    receiver.body(body)
    receiver.ended()
