"""Publishes one rank's load over ZeroMQ as SGLang does: topic, number, `["LoadStat", running, waiting, …]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import zmq

from turnout.sim.options import LOAD_TOPIC

if TYPE_CHECKING:
    from turnout.sim.engine import EngineModel

_SEQ_BYTES = 8


class LoadPublisher:
    """One rank of one incarnation; what nobody hears is lost, since the next report replaces it."""

    def __init__(self, address: str, rank: int) -> None:
        self._rank = rank
        self._seq = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pub: zmq.Socket[bytes] = self._context.socket(zmq.PUB)
        self._pub.setsockopt(zmq.LINGER, 0)
        self._pub.bind(address)

    def publish(self, model: EngineModel) -> None:
        """Say what the step that has just ended left."""
        size, store = model.options.block_tokens, model.store
        report = (
            "LoadStat",
            model.running,
            model.waiting,
            store.used * size,
            store.capacity * size,
            self._rank,
            model.waiting_uncached_tokens,
        )
        number = self._seq.to_bytes(_SEQ_BYTES, "big")
        self._pub.send_multipart([LOAD_TOPIC.encode(), number, msgspec.msgpack.encode(report)])
        self._seq += 1

    def close(self) -> None:
        """Close the socket."""
        self._pub.close(0)
        self._context.destroy(0)
