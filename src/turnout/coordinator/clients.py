"""Which clients are known, how many there may be, and which of them still live (coordinator §5).

Unmodified clients never say goodbye, so a full house is made sure of before anybody is turned away.
"""

from __future__ import annotations

from collections import OrderedDict

from turnout.coordinator.peers import Client, Send
from turnout.engines import megatron as wire

PROBE_S = 30.0
_PROBED_AT_ONCE = 4
_WAITING_MAX = 64


class Clients:
    """The clients of one door, longest silent first as of their last request."""

    def __init__(self, maximum: int, out: list[Send]) -> None:
        self.known: OrderedDict[bytes, Client] = OrderedDict()
        self._maximum = maximum
        self._out = out
        self._waiting: OrderedDict[bytes, bool] = OrderedDict()

    def get(self, identity: bytes) -> Client | None:
        """The client of this identity."""
        return self.known.get(identity)

    def connect(self, identity: bytes, now: float, *, ours: bool) -> bool:
        """Welcome a client; False when the house is full: it is let in when one of the idle turns out to be gone."""
        if len(self.known) < self._maximum:
            self._welcome(identity, now, ours=ours)
            return True
        self._waiting[identity] = ours
        if len(self._waiting) > _WAITING_MAX:
            self._waiting.popitem(last=False)
        idle = sorted((client for client in self.known.values() if not client.open), key=lambda client: client.heard_at)
        for client in idle[:_PROBED_AT_ONCE]:
            self._out.append(Send(client.identity, wire.CONNECT_ACK))
        return False

    def remove(self, identity: bytes) -> Client | None:
        """Forget a client, and let in one that waits."""
        client = self.known.pop(identity, None)
        self._waiting.pop(identity, None)
        if client is not None and self._waiting and len(self.known) < self._maximum:
            waiting, ours = self._waiting.popitem(last=False)
            self._welcome(waiting, client.heard_at, ours=ours)
        return client

    def probe(self, now: float) -> None:
        """Make sure of clients that have requests open and have been silent."""
        for client in self.known.values():
            if client.open and now - client.heard_at >= PROBE_S and now - client.probed_at >= PROBE_S:
                client.probed_at = now
                self._out.append(Send(client.identity, wire.CONNECT_ACK))

    def _welcome(self, identity: bytes, now: float, *, ours: bool) -> None:
        self.known[identity] = Client(identity, now, ours=ours)
        self._out.append(Send(identity, wire.CONNECT_ACK))
