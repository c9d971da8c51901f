"""A client of the door, or of Megatron's own coordinator: asks, streams, aborts, signals, on the caller's loop.

Errors that the door speaks of are raised as `RequestFailed`; an engine's own failed reply is returned as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq

from turnout.coordinator.sockets import Reader
from turnout.engines import megatron as wire
from turnout.engines import megatron_framed as framed_wire
from turnout.engines.megatron import Header

_HIGH_WATER = 100_000
_LINGER_MS = 200
_OURS = "turnout: "


class RequestFailed(Exception):
    """The door ended a request; `reason` is one of its closed set."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"request failed: {reason}")
        self.reason = reason


class _Open:
    """One open request; `updates` is there for streams only."""

    __slots__ = ("final", "updates")

    def __init__(
        self, final: asyncio.Future[dict[str, Any]], updates: asyncio.Queue[dict[str, Any] | None] | None
    ) -> None:
        self.final = final
        self.updates = updates


class CoordinatorClient:
    """Connects on `connect`; also an async context manager. `server_key` (Z85) is a CURVE door's public key.

    `framed` speaks the second dialect, which the door must speak too (`coordinator.dialect`).
    """

    def __init__(
        self,
        address: str,
        *,
        ours: bool = True,
        framed: bool = False,
        identity: bytes | None = None,
        server_key: bytes | None = None,
        keys: tuple[bytes, bytes] | None = None,
    ) -> None:
        self.address = address
        self.errors: list[str] = []
        """Refusals that name no request, the newest 100."""
        self._ours = ours
        self._framed = framed
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        self._socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        if identity is not None:
            self._socket.setsockopt(zmq.IDENTITY, identity)
        if server_key is not None:
            self._socket.curve_serverkey = server_key
            self._socket.curve_publickey, self._socket.curve_secretkey = keys or zmq.curve_keypair()
        self._reader = Reader(self._socket, self._received)
        self._open: dict[int, _Open] = {}
        self._next = 0
        self._welcome: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def connect(self, timeout_s: float = 5.0) -> None:
        """Greet the door. Raises TimeoutError when it does not answer."""
        self._socket.connect(self.address)
        self._reader.start()
        self._welcome = asyncio.get_running_loop().create_future()
        self.send(wire.connect(ours=self._ours))
        async with asyncio.timeout(timeout_s):
            await self._welcome

    def submit(
        self, prompt: str | list[int], sampling: Mapping[str, Any] | None = None, multimodal: Any = None
    ) -> asyncio.Future[dict[str, Any]]:
        """Ask; the future holds the finished map. Cancelling it aborts the request."""
        number, opened = self._begin(None)
        self._ask(number, prompt, sampling or {}, multimodal)
        opened.final.add_done_callback(lambda future: self._cancelled(number) if future.cancelled() else None)
        return opened.final

    async def stream(
        self, prompt: str | list[int], sampling: Mapping[str, Any] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Ask and yield each partial map, then the finished one. Leaving the loop early aborts the request."""
        updates: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        number, opened = self._begin(updates)
        self._ask(number, prompt, {**(sampling or {}), "streaming": True}, None)
        try:
            while (partial := await updates.get()) is not None:
                yield partial
            yield await opened.final
        finally:
            if number in self._open:
                self._cancelled(number)
            elif opened.final.done() and not opened.final.cancelled():
                opened.final.exception()  # taken, so that the loop does not complain of an error nobody saw

    def signal(self, header: Header, epoch: int | None = None) -> None:
        """Send a control or lifecycle signal; the door does not answer."""
        self.send(wire.signal(header, epoch))

    def send(self, *frames: bytes) -> None:
        """Send one message as it is. Raises zmq.Again when the door has not read for very long."""
        self._socket.send_multipart(frames, zmq.NOBLOCK)
        self._reader.touch()

    def close(self, *, goodbye: bool = True) -> None:
        """Say goodbye and close; open requests are cancelled."""
        if goodbye and self._welcome is not None:
            self._socket.send(wire.DISCONNECT, zmq.NOBLOCK)
        self._reader.stop()
        opened, self._open = self._open, {}
        for entry in opened.values():
            entry.final.cancel()
            if entry.updates is not None:
                entry.updates.put_nowait(None)
        self._socket.close(linger=_LINGER_MS if goodbye else 0)
        self._context.term()

    def _ask(self, number: int, prompt: str | list[int], sampling: Mapping[str, Any], multimodal: Any) -> None:
        if not self._framed:
            self.send(wire.submit(number, prompt, sampling, multimodal))
        elif multimodal is None:
            self.send(*framed_wire.submit(number, prompt, sampling))
        else:
            del self._open[number]
            raise ValueError("multimodal is given, expected none: framed messages have no place for it")

    def _begin(self, updates: asyncio.Queue[dict[str, Any] | None] | None) -> tuple[int, _Open]:
        number = self._next
        self._next += 1
        opened = self._open[number] = _Open(asyncio.get_running_loop().create_future(), updates)
        return number, opened

    def _cancelled(self, number: int) -> None:
        if self._open.pop(number, None) is not None:
            self.send(wire.abort(number))

    def _received(self, frames: list[bytes]) -> None:
        message = [*msgspec.msgpack.decode(frames[0]), *map(msgspec.msgpack.decode, frames[1:])]
        header = message[0]
        if header == Header.CONNECT_ACK:
            if self._welcome is not None and not self._welcome.done():
                self._welcome.set_result(None)
        elif header == Header.ENGINE_REPLY_PARTIAL:
            opened = self._open.get(message[1])
            if opened is not None and opened.updates is not None:
                opened.updates.put_nowait(message[2])
        elif header == Header.ENGINE_REPLY:
            self._ended(message[1], message[2], _failure_of(message[2]))
        elif header == Header.REQUEST_ERROR:
            if message[1] is None:
                self.errors = [*self.errors[-99:], message[2]]
            else:
                self._ended(message[1], {}, message[2])

    def _ended(self, number: int, finished: dict[str, Any], failure: str | None) -> None:
        opened = self._open.pop(number, None)
        if opened is None:
            return
        if not opened.final.done():
            if failure is None:
                opened.final.set_result(finished)
            else:
                opened.final.set_exception(RequestFailed(failure))
        if opened.updates is not None:
            opened.updates.put_nowait(None)


def _failure_of(finished: dict[str, Any]) -> str | None:
    """The door's reason in a failed reply of its own; an engine's failures are answers."""
    if finished.get("status") != "FAILED":
        return None
    for event in finished.get("events") or ():
        message = (event.get("payload") or {}).get("message") if isinstance(event, dict) else None
        if isinstance(message, str) and message.startswith(_OURS):
            return message.removeprefix(_OURS)
    return None
