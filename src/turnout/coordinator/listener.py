"""The door on its ROUTER socket: reads, lets the door decide, sends without ever blocking, keeps the time.

What cannot be sent at once waits in an outbox per peer; a peer that is gone is reported to the door, whose further
messages follow in order. The loop never stops for a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq

from turnout.coordinator.curve import Gatekeeper, arm
from turnout.coordinator.door import Door
from turnout.coordinator.outbox import Outbox
from turnout.coordinator.peers import Send
from turnout.coordinator.records import Report
from turnout.coordinator.snapshot import Keeper
from turnout.coordinator.sockets import Reader
from turnout.coordinator.tokenizers import Tokenizer
from turnout.core.coordinator_options import Affinity, Coordinator

_TICK_S = 0.05
_FLUSH_S = 0.005
_HIGH_WATER = 1000
_MESSAGE_MAX_BYTES = 268_435_456
_HEARTBEATS = 3


def _silent(level: str, event: str, fields: dict[str, Any]) -> None:
    """Take the place of a log."""


def schedule_of(door: Door, *, lines: bool) -> Iterator[bytes]:
    """Where each request went so far, in parts: line by line, or as upstream's document."""
    size = max(door.roster.most, door.options.expected_engines)
    return door.requests.log.lines(size) if lines else door.requests.log.document(size)


class CoordinatorListener:
    """One open door. `report` takes level, event and fields of each log record."""

    def __init__(
        self,
        options: Coordinator,
        affinity: Affinity,
        *,
        report: Report = _silent,
        tokenizer: Tokenizer | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_shutdown: Callable[[], object] = bool,
    ) -> None:
        self.options = options
        self.address = ""
        self.unsent = 0
        self.on_sweep: Callable[[], object] = bool
        """Called with every tick, for whoever mirrors the engines of the door."""
        self.clock = clock
        first_id = random.SystemRandom().randrange(2**31)
        self.door = Door(
            options,
            affinity,
            clock(),
            first_id=first_id,
            tokenize=None if tokenizer is None else tokenizer.encode,
            detokenize=None if tokenizer is None else tokenizer.decode,
        )
        self._report = report
        self._on_shutdown = on_shutdown
        self._outboxes: dict[bytes, Outbox] = {}
        self._local: dict[bytes, Callable[[Send], object]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._reader: Reader | None = None
        self._gatekeeper: Gatekeeper | None = None
        self._is_stopping = False
        self._keeper = Keeper(options.snapshot_path, self.door.roster, report) if options.snapshot_path else None

    async def start(self) -> str:
        """Bind and begin to serve; returns the address in use. Raises OSError when it cannot be had."""
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        self._reader = Reader(self._socket, self._received)
        try:
            self._configure()
            self.address = self._bind()
        except BaseException:
            self._close()
            raise
        if self._keeper is not None:
            await self._keeper.restore(self.clock())
        self._reader.start()
        self._tick()
        return self.address

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take nothing more, give open requests their grace, write the schedule, close; once."""
        if self._context is None or self._is_stopping:
            return
        self._is_stopping = True
        self.carry(self.door.drain())
        for _ in range(int(grace_s / _TICK_S)):
            if not self.door.requests.open:
                break
            await asyncio.sleep(_TICK_S)
        for attempt in list(self.door.requests.open.values()):
            self.door.requests.fail(attempt.request, "draining")
        self.carry(self.door.tick(self.clock()))
        await self._emptied()
        await asyncio.get_running_loop().run_in_executor(None, self.write_schedule)
        if self._keeper is not None:
            await self._keeper.finish()
        self._close()

    def carry(self, sends: list[Send]) -> None:
        """Send messages in order, and what the door says to those that cannot be sent."""
        work = deque(sends)
        while work:
            send = work.popleft()
            local = self._local.get(send.identity)
            if local is not None:
                self._guarded(local, send)
                continue
            outbox = self._outboxes.get(send.identity)
            if outbox is not None:
                work.extend(self._queued(outbox, send))
            else:
                work.extend(self._sent(send))
        self._touch()

    def attach(self, identity: bytes, deliver: Callable[[Send], object]) -> None:
        """Messages to this identity go to a function of this process instead of the wire."""
        self._local[identity] = deliver

    def write_schedule(self) -> None:
        """Write the schedule where the options say; a failure is reported, never raised."""
        path = self.options.schedule_path
        if not path:
            return
        try:
            with Path(path).open("wb") as file:
                file.writelines(schedule_of(self.door, lines=path.endswith(".jsonl")))
        except OSError as error:
            self._report("error", "coordinator_schedule_unwritten", {"path": path, "reason": str(error)})

    # -- inside -------------------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        socket, options = self._socket, self.options
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        socket.setsockopt(zmq.MAXMSGSIZE, _MESSAGE_MAX_BYTES)
        socket.setsockopt(zmq.LINGER, 0)
        heartbeat_ms = max(1, int(options.heartbeat_s * 1000))
        socket.setsockopt(zmq.HEARTBEAT_IVL, heartbeat_ms)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEATS * heartbeat_ms)
        if options.curve_secret_file:
            arm(socket, options.curve_secret_file)
            if options.curve_clients:
                assert self._context is not None
                self._gatekeeper = Gatekeeper(self._context, options.curve_clients)
                self._gatekeeper.start()
                # Without a domain libzmq would not ask the gatekeeper at all.
                socket.setsockopt(zmq.ZAP_DOMAIN, b"turnout")

    def _bind(self) -> str:
        bind = self.options.bind
        try:
            self._socket.bind(bind)
        except zmq.ZMQError as error:
            if not (self.options.port_fallback and error.errno == zmq.EADDRINUSE):
                raise OSError(error.errno, f"coordinator.bind = {bind}: {error.strerror}") from error
            self._socket.bind(f"{bind.rpartition(':')[0]}:*")
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _received(self, frames: list[bytes]) -> None:
        started = time.perf_counter()
        sends = self.door.on_message(frames, self.clock())
        if sends:
            self.carry(sends)
        self.door.tally.took(self.door.kind, time.perf_counter() - started)

    def _sent(self, send: Send) -> list[Send]:
        try:
            self._socket.send_multipart((send.identity, send.payload, *send.bodies), zmq.NOBLOCK)
        except zmq.Again:
            outbox = self._outboxes[send.identity] = Outbox()
            self._at("flush", _FLUSH_S, self._flush)
            return self._queued(outbox, send)
        except zmq.ZMQError:
            # EHOSTUNREACH: nobody has this identity. Whatever else libzmq may say, the message is not away.
            self.unsent += 1
            return self.door.unreachable(send, self.clock())
        return self.door.reached(send.identity, self.clock()) if send.adopts else []

    def _queued(self, outbox: Outbox, send: Send) -> list[Send]:
        options = self.options
        if not outbox.is_full(options.outbox_max, options.outbox_max_bytes):
            outbox.put(send)
            return []
        if send.identity not in self.door.roster.live:
            del self._outboxes[send.identity]
            return self.door.client_gone(send.identity)
        if not outbox.is_full(2 * options.outbox_max, 2 * options.outbox_max_bytes):
            # Full for requests; what concerns requests that it has already must still get through.
            outbox.put(send)
            return self.door.saturated(send.identity, self.clock(), full=True)
        return self._dropped(send.identity)

    def _flush(self) -> None:
        """Try again for every peer with unsent messages."""
        for identity in list(self._outboxes):
            outbox = self._outboxes.get(identity)
            if outbox is None:
                continue
            try:
                while outbox.waiting:
                    first = outbox.waiting[0]
                    self._socket.send_multipart((identity, first.payload, *first.bodies), zmq.NOBLOCK)
                    outbox.sent()
            except zmq.Again:
                pass
            except zmq.ZMQError:
                self.carry(self._dropped(identity))
                continue
            if not outbox.waiting:
                del self._outboxes[identity]
            if not outbox.is_full(self.options.outbox_max, self.options.outbox_max_bytes):
                self.carry(self.door.saturated(identity, self.clock(), full=False))
        self._touch()
        if self._outboxes:
            self._at("flush", _FLUSH_S, self._flush)

    def _dropped(self, identity: bytes) -> list[Send]:
        """Report everything that a peer will never get, oldest first."""
        sends: list[Send] = []
        for send in self._outboxes.pop(identity).waiting:
            self.unsent += 1
            sends += self.door.unreachable(send, self.clock())
        return sends

    def _tick(self) -> None:
        self._at("tick", _TICK_S, self._tick)  # first: whatever happens below, time goes on
        self._guarded(self._pass, self.clock())
        for record in self.door.records.take():
            self._report(record.level, record.event, record.fields)

    def _pass(self, now: float) -> None:
        self.carry(self.door.tick(now))
        self.on_sweep()
        if self._keeper is not None:
            self._keeper.keep(now)
        if self.door.closing and not self._is_stopping:
            self._on_shutdown()

    def _guarded(self, callback: Callable[[Any], object], argument: Any) -> None:
        """Call what must not end the loop: a bug there is ours, and is recorded."""
        try:
            callback(argument)
        except Exception as error:  # noqa: BLE001 - see above
            self.door.tally.internal_errors["listener"] += 1
            reason = f"{type(error).__name__}: {error}"[:200]
            self.door.records.add("error", "coordinator_internal_error", self.clock(), reason=reason)

    def _touch(self) -> None:
        if self._reader is not None:
            self._reader.touch()

    def _at(self, name: str, delay_s: float, callback: Callable[[], None]) -> None:
        self._timers[name] = asyncio.get_running_loop().call_later(delay_s, callback)

    async def _emptied(self) -> None:
        """Give libzmq and slow peers a moment for the last messages."""
        for _ in range(20):
            if not self._outboxes:
                break
            await asyncio.sleep(_FLUSH_S)
        await asyncio.sleep(_FLUSH_S)

    def _close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        if self._reader is not None:
            self._reader.stop()
            self._reader = None
        with contextlib.suppress(zmq.ZMQError):
            self._socket.close(linger=100)
        if self._gatekeeper is not None:
            self._gatekeeper.stop()
        if self._context is not None:
            self._context.term()
            self._context = None
