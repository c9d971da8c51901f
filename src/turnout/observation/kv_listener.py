"""A thread that listens to KV events over ZeroMQ and asks for replays; decoded batches cross to the event loop in lots.

Decoding and sockets stay away from the loop; everything that changes state happens on it. What waits to be applied is
bounded per publisher: beyond, batches are dropped, and their numbers show the gap. The one user of ZeroMQ on this side.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import zmq
from xxhash import xxh3_64_intdigest
from zmq.utils.monitor import recv_monitor_message

from turnout.core.prefix.kv_events import Batch
from turnout.engines.kv_events import decode
from turnout.engines.load_reports import LoadStat, read_load_stat

_FRAMES = 3
_SEQ_BYTES = 8
_END = b"\xff" * _SEQ_BYTES
_RECONNECT_MS, _RECONNECT_MAX_MS = 100, 30_000
_POLL_MS = 500
_PER_SOCKET = 256
_REPLAYED_MAX = 20_000


class Source(msgspec.Struct, frozen=True):
    """Where one rank of an endpoint publishes; `key` names it for the other side."""

    key: tuple[str, int]
    endpoint: str
    replay: str = ""
    topic: str = ""
    bind: bool = False
    load: bool = False
    """It pushes load reports, not KV events."""


class Heard(msgspec.Struct, frozen=True, gc=False):
    """What happened at a source: a batch (None: undecodable), a whole replay, a lost connection, or a load report."""

    key: tuple[str, int]
    seq: int = 0
    digest: int = 0
    batch: Batch | None = None
    replay: list[tuple[int, int, Batch]] | None = None
    lost: bool = False
    load: LoadStat | None = None


class _Subscription:
    """The sockets of one source. Only the thread touches it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], source: Source) -> None:
        self.source = source
        self.socket = context.socket(zmq.SUB)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        self.socket.setsockopt(zmq.SUBSCRIBE, source.topic.encode())
        self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        if source.bind:
            self.socket.bind(source.endpoint)
        else:
            self.socket.connect(source.endpoint)
        self.dealer: zmq.Socket[bytes] | None = None
        self.replayed: list[tuple[int, int, Batch]] = []
        self.deadline = 0.0

    def close(self) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self.socket.disable_monitor()
        for socket in (self.monitor, self.socket, self.dealer):
            if socket is not None:
                socket.close(0)


class KvListener:
    """`deliver` is called on the loop with what was heard, in order per source."""

    def __init__(self, deliver: Callable[[list[Heard]], None], *, queue_max: int, replay_timeout_s: float) -> None:
        self._deliver = deliver
        self._queue_max = queue_max
        self._replay_timeout_s = replay_timeout_s
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._waiting: list[Heard] = []
        self._counts: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._wake: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self._wake.bind("inproc://wake")
        self._thread = threading.Thread(target=self._run, name="kv-events", daemon=True)
        self.dropped = 0
        self.refused: dict[tuple[str, int], str] = {}
        """Sources whose address could not be used, with the reason."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(self, source: Source) -> None:
        """Subscribe; a source of the same key is replaced."""
        self._command("add", source)

    def remove(self, key: tuple[str, int]) -> None:
        """Hear no more of a source; unknown is fine."""
        self._command("remove", key)

    def replay(self, key: tuple[str, int], start: int) -> None:
        """Ask for everything from `start`; a `Heard` with `replay` follows in any case."""
        self._command("replay", (key, start))

    def stop(self) -> None:
        """End the thread and close every socket."""
        self._command("stop", None)
        self._thread.join()
        self._wake.close(0)
        self._context.destroy(0)

    def _command(self, name: str, argument: object) -> None:
        self._commands.put((name, argument))
        self._wake.send(b"")

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        inbox = self._context.socket(zmq.PAIR)
        inbox.connect("inproc://wake")
        poller = zmq.Poller()
        poller.register(inbox, zmq.POLLIN)
        known: dict[tuple[str, int], _Subscription] = {}
        try:
            while self._obey(inbox, poller, known):
                for subscription in list(known.values()):
                    self._read(subscription, poller)
                poller.poll(_POLL_MS)
        finally:
            for subscription in known.values():
                subscription.close()
            inbox.close(0)

    def _obey(self, inbox: zmq.Socket[bytes], poller: zmq.Poller, known: dict[tuple[str, int], _Subscription]) -> bool:
        while _received(inbox) is not None:
            pass
        while True:
            try:
                name, argument = self._commands.get_nowait()
            except queue.Empty:
                return True
            if name == "stop":
                return False
            if name == "add":
                self._drop(argument.key, poller, known)
                self._subscribe(argument, poller, known)
            elif name == "remove":
                self._drop(argument, poller, known)
            else:
                self._ask(known.get(argument[0]), argument[0], argument[1], poller)

    def _subscribe(self, source: Source, poller: zmq.Poller, known: dict[tuple[str, int], _Subscription]) -> None:
        try:
            subscription = known[source.key] = _Subscription(self._context, source)
        except zmq.ZMQError as error:
            self.refused[source.key] = f"{source.endpoint}: {error}"
            return
        self.refused.pop(source.key, None)
        poller.register(subscription.socket, zmq.POLLIN)
        poller.register(subscription.monitor, zmq.POLLIN)

    def _drop(self, key: tuple[str, int], poller: zmq.Poller, known: dict[tuple[str, int], _Subscription]) -> None:
        subscription = known.pop(key, None)
        if subscription is None:
            return
        for socket in (subscription.socket, subscription.monitor, subscription.dealer):
            if socket is not None:
                poller.unregister(socket)
        subscription.close()

    def _ask(self, subscription: _Subscription | None, key: tuple[str, int], start: int, poller: zmq.Poller) -> None:
        if subscription is None or not subscription.source.replay or subscription.dealer is not None:
            self._hand_over(Heard(key, replay=[]))
            return
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        try:
            dealer.connect(subscription.source.replay)
        except zmq.ZMQError as error:
            self.refused[key] = f"{subscription.source.replay}: {error}"
            dealer.close(0)
            self._hand_over(Heard(key, replay=[]))
            return
        dealer.send_multipart([b"", start.to_bytes(_SEQ_BYTES, "big")])
        subscription.dealer = dealer
        subscription.replayed = []
        subscription.deadline = time.monotonic() + self._replay_timeout_s
        poller.register(dealer, zmq.POLLIN)

    def _read(self, subscription: _Subscription, poller: zmq.Poller) -> None:
        key = subscription.source.key
        if subscription.dealer is not None:
            self._read_replay(subscription, poller)
        for _ in range(_PER_SOCKET):
            frames = _received(subscription.socket)
            if frames is None:
                break
            if len(frames) != _FRAMES or len(frames[1]) != _SEQ_BYTES:
                continue
            payload = frames[2]
            if subscription.source.load:
                self._hand_over(Heard(key, load=read_load_stat(payload) or LoadStat()))
                continue
            seq = int.from_bytes(frames[1], "big")
            self._hand_over(Heard(key, seq, xxh3_64_intdigest(payload), decode(payload)))
        while _monitored(subscription.monitor):
            if not subscription.source.load:  # what is not repeated grows old by itself
                self._hand_over(Heard(key, lost=True))

    def _read_replay(self, subscription: _Subscription, poller: zmq.Poller) -> None:
        dealer = subscription.dealer
        assert dealer is not None
        ended = time.monotonic() > subscription.deadline or len(subscription.replayed) > _REPLAYED_MAX
        while not ended:
            frames = _received(dealer)
            if frames is None:
                return
            seq, payload = frames[-2:] if len(frames) > 1 else (_END, b"")
            if seq == _END or not payload:
                ended = True
            elif len(seq) == _SEQ_BYTES:
                batch = decode(payload)
                if batch is not None:
                    number = int.from_bytes(seq, "big")
                    subscription.replayed.append((number, xxh3_64_intdigest(payload), batch))
        poller.unregister(dealer)
        dealer.close(0)
        subscription.dealer = None
        replayed, subscription.replayed = subscription.replayed, []
        self._hand_over(Heard(subscription.source.key, replay=replayed))

    def _hand_over(self, heard: Heard) -> None:
        with self._lock:
            count = self._counts.get(heard.key, 0)
            if count >= self._queue_max and heard.replay is None:
                self.dropped += 1
                return
            self._counts[heard.key] = count + 1
            self._waiting.append(heard)
            first = len(self._waiting) == 1
        if first:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        with self._lock:
            lot, self._waiting = self._waiting, []
            self._counts.clear()
        self._deliver(lot)


def _received(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    try:
        return socket.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None


def _monitored(socket: zmq.Socket[bytes]) -> bool:
    try:
        recv_monitor_message(socket, zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True
