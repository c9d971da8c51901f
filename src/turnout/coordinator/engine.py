"""An engine's side of the wire, as an unmodified Megatron engine speaks it; the tokens come from a `Generator`.

One message may carry the tokens of many requests: what is emitted within one turn of the loop leaves together. A
signal that a real engine would assert on ends this one too, with a reason, so that tests notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
import zmq

from turnout.coordinator.control import State
from turnout.coordinator.sockets import Reader
from turnout.engines import megatron as wire
from turnout.engines import megatron_framed as framed_wire
from turnout.engines.megatron import Header

_HIGH_WATER = 100_000
_LINGER_MS = 200
# Signal → (states it may come in, state after). PAUSE is ignored where it is not taken; the others are asserted.
_TAKEN: dict[Header, tuple[frozenset[State], State]] = {
    Header.UNPAUSE: (frozenset({State.PAUSED}), State.RUNNING),
    Header.SUSPEND: (frozenset({State.PAUSED}), State.SUSPENDED),
    Header.RESUME: (frozenset({State.SUSPENDED}), State.PAUSED),
    Header.STOP: (frozenset({State.PAUSED, State.SUSPENDED}), State.STOPPING),
}


class Generator(Protocol):
    """What computes. `emit(number, tokens, finished)`: new tokens; a map of further fields with the last ones."""

    def begin(self, number: int, prompt: str | list[int], sampling: Mapping[str, Any], emit: Emit) -> None:
        """Start a generation; may emit at once."""
        ...

    def abort(self, number: int) -> None:
        """End it with its next emission; unknown numbers are ignored."""
        ...


Emit = Callable[[int, list[int], Mapping[str, Any] | None], None]


class _Generation:
    __slots__ = ("prompt_length", "sampling", "sent", "tokens")

    def __init__(self, prompt: str | list[int], sampling: Mapping[str, Any]) -> None:
        self.prompt_length = len(prompt)
        self.sampling = sampling
        self.tokens: list[int] = []
        self.sent = 0


class EnginePeer:
    """One engine that registers at a door. `on_end` hears why it ended: stopped, or the signal it could not take."""

    def __init__(
        self,
        address: str,
        identity: bytes,
        generator: Generator,
        *,
        on_end: Callable[[str], object] = bool,
        framed: bool = False,
        server_key: bytes | None = None,
        keys: tuple[bytes, bytes] | None = None,
    ) -> None:
        self.state = State.RUNNING
        self.epoch: int | None = None
        self.received: list[Header] = []
        """Control and lifecycle headers in order of arrival, the newest 1000."""
        self.requests = 0
        self.aborts = 0
        self._address = address
        self._generator = generator
        self._on_end = on_end
        self._framed = framed
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, identity)
        self._socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        self._socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        if server_key is not None:
            self._socket.curve_serverkey = server_key
            self._socket.curve_publickey, self._socket.curve_secretkey = keys or zmq.curve_keypair()
        self._reader = Reader(self._socket, self._received)
        self._live: dict[int, _Generation] = {}
        self._waiting: list[list[Any]] = []
        self._finished: list[dict[str, Any]] = []
        self._progressed: dict[int, _Generation] = {}
        self._is_due = False
        self._is_closed = False

    def start(self) -> None:
        """Connect and register: one empty payload, once."""
        self._socket.connect(self._address)
        self._socket.send(wire.REGISTRATION)
        self._reader.start()

    def close(self, *, goodbye: bool = True) -> None:
        """Leave; without goodbye as a process does that is killed."""
        if self._is_closed:
            return
        self._is_closed = True
        self._flush()
        if goodbye:
            self._socket.send(wire.DISCONNECT, zmq.NOBLOCK)
        self._reader.stop()
        for number in list(self._live):
            self._generator.abort(number)
        self._live.clear()
        self._socket.close(linger=_LINGER_MS if goodbye else 0)
        self._context.term()

    def emit(self, number: int, tokens: list[int], finished: Mapping[str, Any] | None) -> None:
        """New tokens of one request; with the last ones what the finished map should hold beside the usual."""
        generation = self._live.get(number)
        if generation is None:
            return
        generation.tokens += tokens
        if generation.sampling.get("streaming"):
            self._progressed[number] = generation
        if finished is not None:
            del self._live[number]
            self._finished.append(self._whole(number, generation, finished))
        if not self._is_due and not self._is_closed:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _received(self, frames: list[bytes]) -> None:
        messages = [msgspec.msgpack.decode(frame) for frame in frames]  # a real engine reads frame by frame
        if self._framed:
            first, *bodies = messages
            # As the packed form has it: the prompt stands before the sampling.
            messages = [[*first[:2], *bodies, *first[2:]]]
        for message in messages:
            header = Header(message[0])
            if header in {Header.SUBMIT_REQUEST, Header.SUBMIT_REQUEST_WITH_KV}:
                if self.state is State.RUNNING:
                    self._begin(message)
                else:
                    self._waiting.append(message)
            elif header is Header.ABORT_REQUEST:
                if message[1] in self._live:
                    self.aborts += 1
                    self._generator.abort(message[1])
            else:
                self._signalled(header, message)
            if self._is_closed:
                return

    def _begin(self, message: list[Any]) -> None:
        _, number, prompt, sampling = message[:4]
        self.requests += 1
        self._live[number] = _Generation(prompt, sampling)
        self._generator.begin(number, prompt, sampling, self.emit)

    def _signalled(self, header: Header, message: list[Any]) -> None:
        self.received = [*self.received[-999:], header]
        if header is Header.SET_GENERATION_EPOCH:
            self.epoch = message[1]
        elif header is Header.PAUSE:
            self.state = State.PAUSED if self.state is State.RUNNING else self.state
        elif header in _TAKEN:
            allowed, after = _TAKEN[header]
            if self.state not in allowed:
                self._end(f"{header.name} in state {self.state}")
                return
            self.state = after
        if self.state is State.STOPPING:
            self._end("stopped")
        elif self.state is State.RUNNING:
            waiting, self._waiting = self._waiting, []
            for held in waiting:
                self._begin(held)

    def _end(self, why: str) -> None:
        self.close(goodbye=why == "stopped")
        self._on_end(why)

    def _flush(self) -> None:
        self._is_due = False
        partials = []
        for number, generation in self._progressed.items():
            interval = generation.sampling.get("streaming_interval", 1)
            if len(generation.tokens) - generation.sent >= interval:
                partials.append({"request_id": number, "new_tokens": generation.tokens[generation.sent :]})
                generation.sent = len(generation.tokens)
        self._progressed.clear()
        finished, self._finished = self._finished, []
        if self._socket.closed:
            return
        if partials:
            self._say(framed_wire.progressed(partials) if self._framed else (wire.progressed(partials),))
        if finished:
            self._say(framed_wire.replied(finished) if self._framed else (wire.replied(finished),))
        self._reader.touch()

    def _say(self, frames: tuple[bytes, ...]) -> None:
        self._socket.send_multipart(frames, zmq.NOBLOCK)

    def _whole(self, number: int, generation: _Generation, finished: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "request_id": number,
            "uid": f"chatcmpl-{number:032x}",
            "status": "COMPLETED",
            "prompt": None,
            "prompt_tokens": None,
            "prompt_length": generation.prompt_length,
            "generated_tokens": generation.tokens,
            "generated_text": None,
            "generated_length": len(generation.tokens),
            "num_cached_tokens": 0,
            "sampling_params": dict(generation.sampling),
            "inference_parameters": None,
            "routing_indices": None,
            "events": [],
            **finished,
        }


class Echo:
    """A generator without a model: answers with the prompt's own tokens, over and over, one per step."""

    def __init__(self, step_s: float = 0.0, tokens: int = 8) -> None:
        self._step_s = step_s
        self._tokens = tokens
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._aborted: set[int] = set()

    def begin(self, number: int, prompt: str | list[int], sampling: Mapping[str, Any], emit: Emit) -> None:
        """Start to echo."""
        text = list(prompt.encode()) if isinstance(prompt, str) else prompt
        wanted = sampling.get("num_tokens_to_generate")
        count = self._tokens if wanted is None else wanted
        if not self._step_s:
            emit(number, [text[at % len(text)] for at in range(count)], {})
            return
        self._step(number, text, 0, count, emit)

    def abort(self, number: int) -> None:
        """End with the next step."""
        if number in self._timers:
            self._aborted.add(number)

    def _step(self, number: int, text: list[int], done: int, count: int, emit: Emit) -> None:
        self._timers.pop(number, None)
        is_last = done + 1 >= count or number in self._aborted
        self._aborted.discard(number)
        if not is_last:
            loop = asyncio.get_running_loop()
            self._timers[number] = loop.call_later(self._step_s, self._step, number, text, done + 1, count, emit)
        emit(number, [text[done % len(text)]] if count else [], {} if is_last else None)
