"""Publishes the journal over ZeroMQ as vLLM does: PUB with numbered batches, ROUTER that replays the last ones.

The faults of the KV stream strike here, between the numbering and the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque

import zmq

from turnout.sim.faults import FaultPlan

_KEPT = 10_000
_SEQ_BYTES = 8
_END = b"\xff" * _SEQ_BYTES
_POLL_MS = 100


class KvPublisher:
    """One incarnation of an engine's publisher; sequence numbers count from 0."""

    def __init__(self, address: str, replay: str, topic: str, delay_s: float, faults: FaultPlan) -> None:
        self._topic = topic.encode()
        self._delay_s = delay_s
        self._faults = faults
        self._seq = 0
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()
        self._late: list[bytes] | None = None
        self._silent = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pub: zmq.Socket[bytes] = self._context.socket(zmq.PUB)
        self._pub.setsockopt(zmq.LINGER, 0)
        self._pub.setsockopt(zmq.SNDHWM, 0)
        self._pub.bind(address)
        self.address = self._pub.getsockopt_string(zmq.LAST_ENDPOINT)
        self.replay_address = ""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if replay:
            router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
            router.setsockopt(zmq.LINGER, 0)
            router.bind(replay)
            self.replay_address = router.getsockopt_string(zmq.LAST_ENDPOINT)
            self._thread = threading.Thread(target=self._answer, args=(router,), name="kv-replay", daemon=True)
            self._thread.start()

    def publish(self, payload: bytes) -> None:
        """Number a batch, keep it for replays and send it, after the delay if there is one."""
        if self._faults.draw("event_restart") is not None:
            with self._lock:
                self._seq = 0
                self._kept.clear()
        with self._lock:
            number, self._seq = self._seq, self._seq + 1
            self._kept.append((number, payload))
        if self._delay_s:
            asyncio.get_running_loop().call_later(self._delay_s, self._send, number, payload)
        else:
            self._send(number, payload)

    def close(self) -> None:
        """Close the sockets; batches under way are lost, as in a crash."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._pub.close(0)
        self._context.destroy(0)

    def _send(self, number: int, payload: bytes) -> None:
        if self._ended.is_set() or self._silent:
            return
        self._silent = self._faults.draw("event_stop") is not None
        if self._silent or self._faults.draw("event_drop") is not None:
            return
        if self._faults.draw("event_garbage") is not None:
            payload = b"\xc1" + payload
        frames = [self._topic, number.to_bytes(_SEQ_BYTES, "big"), payload]
        if self._late is None and self._faults.draw("event_reorder") is not None:
            self._late = frames
            return
        self._pub.send_multipart(frames)
        if self._faults.draw("event_dup") is not None:
            self._pub.send_multipart(frames)
        if self._late is not None:
            late, self._late = self._late, None
            self._pub.send_multipart(late)

    def _answer(self, router: zmq.Socket[bytes]) -> None:
        """Serve replays until closed: each request gets what is kept from its number on, then the end marker."""
        while not self._ended.is_set():
            if not router.poll(_POLL_MS):
                continue
            frames = router.recv_multipart()
            with self._lock:
                kept = list(self._kept)
            start = int.from_bytes(frames[-1], "big")
            with contextlib.suppress(zmq.ZMQError):
                for number, payload in kept:
                    if number >= start:
                        router.send_multipart([frames[0], b"", number.to_bytes(_SEQ_BYTES, "big"), payload])
                router.send_multipart([frames[0], b"", _END, b""])
        router.close(0)
