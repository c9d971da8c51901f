"""A network in memory around one door: the fake that tests, fuzzers and benchmarks share. Time is given to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import msgspec

from turnout.coordinator.door import Door
from turnout.coordinator.peers import Send
from turnout.core.coordinator_options import Affinity, Coordinator
from turnout.engines import megatron as wire
from turnout.engines.megatron import Header

_START_S = 100.0
_WALL_S = 1_700_000_000.0


class Rehearsal:
    """Peers are names of bytes with an inbox; those in `gone` cannot be reached."""

    def __init__(
        self,
        options: Coordinator | None = None,
        affinity: Affinity | None = None,
        *,
        timer: Callable[[], float] = lambda: 0.0,
        tokenize: Callable[[str], list[int]] | None = None,
        detokenize: Callable[[list[int]], str] | None = None,
    ) -> None:
        self.now = _START_S
        self.inbox: dict[bytes, list[bytes]] = defaultdict(list)
        self.bodies: dict[bytes, list[tuple[bytes, ...]]] = defaultdict(list)
        """Further frames of the messages that had some, in the same order."""
        self.gone: set[bytes] = set()
        self.door = Door(
            options or Coordinator(),
            affinity or Affinity(),
            self.now,
            first_id=1000,
            timer=timer,
            wall_s=lambda: _WALL_S,
            tokenize=tokenize,
            detokenize=detokenize,
        )

    def say(self, identity: bytes, *frames: bytes) -> None:
        """A peer sends one message."""
        self.carry(self.door.on_message([identity, *frames], self.now))

    def wait(self, seconds: float, step_s: float = 0.05) -> None:
        """Time passes, with ticks."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + step_s)
            self.carry(self.door.tick(self.now))

    def carry(self, sends: list[Send]) -> None:
        """Do what the shell does with a list of messages."""
        for send in sends:
            if send.identity in self.gone:
                self.carry(self.door.unreachable(send, self.now))
                continue
            self.inbox[send.identity].append(send.payload)
            if send.bodies:
                self.bodies[send.identity].append(send.bodies)
            if send.adopts:
                self.carry(self.door.reached(send.identity, self.now))

    def read(self, identity: bytes) -> list[Any]:
        """Take what a peer was sent, decoded."""
        return [msgspec.msgpack.decode(payload) for payload in self.inbox.pop(identity, [])]

    def engines(self, *identities: bytes) -> None:
        """Register engines."""
        for identity in identities:
            self.say(identity, wire.REGISTRATION)

    def clients(self, *identities: bytes, ours: bool = False) -> None:
        """Connect clients; their acknowledgements are taken."""
        for identity in identities:
            self.say(identity, wire.connect(ours=ours))
            assert self.read(identity) == [[Header.CONNECT_ACK.value]]

    def finish(self, engine: bytes, *server_ids: int, **fields: Any) -> None:
        """An engine finishes requests in one message."""
        items = [
            {"request_id": number, "status": "COMPLETED", "generated_tokens": [1], **fields} for number in server_ids
        ]
        self.say(engine, wire.replied(items))

    def progress(self, engine: bytes, *server_ids: int) -> None:
        """An engine sends one token for each."""
        self.say(engine, wire.progressed([{"request_id": number, "new_tokens": [1]} for number in server_ids]))

    def leftovers(self) -> dict[str, int]:
        """Whatever of an open request is still held anywhere; empty when nothing is open."""
        door = self.door
        requests = door.requests
        held = {
            "attempts": len(requests.open),
            "pending": len(requests.pending),
            "aborting": len(requests._aborting),
            "timed": len(requests._timed),
            "clients": sum(len(client.open) for client in door.clients.known.values()),
            "engines": sum(len(engine.open) for engine in door.roster.live.values()),
            "departed": sum(len(entry.engine.open) for entry in door.roster.departed.values()),
        }
        return {name: count for name, count in held.items() if count}
