"""Who stands at the door and what they have open. Plain records: the rules are in `requests` and `door`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from turnout.coordinator.control import State
from turnout.core.prefix.index import Placement
from turnout.engines.megatron import Header


class Send(msgspec.Struct, frozen=True, gc=False):
    """One message to carry out. `server_id` names the attempt that it opens; `adopts` asks to hear of success too.

    `control` is what a signal's engine was told before it, which holds again when the signal could not be sent.
    `bodies` are the further frames of the framed dialect.
    """

    identity: bytes
    payload: bytes
    server_id: int = 0
    adopts: bool = False
    control: State | None = None
    bodies: tuple[bytes, ...] = ()

    @property
    def size_bytes(self) -> int:
        """All frames but the identity."""
        return len(self.payload) + sum(map(len, self.bodies))


class Engine:
    """One incarnation of an engine. `open` holds its attempts by server id; their number is its load."""

    __slots__ = (
        "bit",
        "control",
        "heard_at",
        "identity",
        "incarnation",
        "joined_at",
        "name",
        "open",
        "parity_known",
        "probed_at",
        "saturated",
    )

    def __init__(self, identity: bytes, incarnation: int, bit: int, control: State, now: float) -> None:
        self.identity = identity
        self.name = shown(identity)
        self.incarnation = incarnation
        self.bit = bit
        self.control = control
        self.open: dict[int, Attempt] = {}
        self.joined_at = now
        self.heard_at = now
        self.probed_at = now
        self.saturated = False
        self.parity_known = False

    def __repr__(self) -> str:
        return f"Engine({self.name!r}, incarnation={self.incarnation}, open={len(self.open)})"


class Client:
    """One client. `open` holds its requests by its own number; `ours` takes errors as messages of their own."""

    __slots__ = ("heard_at", "identity", "open", "ours", "probed_at")

    def __init__(self, identity: bytes, now: float, *, ours: bool) -> None:
        self.identity = identity
        self.ours = ours
        self.open: dict[int, Request] = {}
        self.heard_at = now
        self.probed_at = now


class Request:
    """One accepted request. `parts` are its elements from the prompt on, as received, kept while it may be resent."""

    __slots__ = (
        "aborted",
        "accepted_at",
        "attempt",
        "client",
        "header",
        "keys",
        "number",
        "parts",
        "pending_at",
        "pinned",
        "root",
        "scheduled",
        "tokens",
        "tries",
    )

    def __init__(
        self, client: Client, number: int, header: Header, parts: Sequence[msgspec.Raw | bytes], now: float
    ) -> None:
        self.client = client
        self.number = number
        self.header = header
        self.parts = parts
        self.accepted_at = now
        self.keys: list[int] = []
        self.root = 0
        self.tokens = 0
        self.attempt: Attempt | None = None
        self.pending_at = 0.0
        self.pinned: Engine | None = None
        self.scheduled = False
        self.tries = 0
        self.aborted = False


class Attempt:
    """One try of a request on one engine incarnation."""

    __slots__ = ("engine", "first_partial", "matched_tokens", "placement", "request", "sent_at", "server_id")

    def __init__(self, server_id: int, request: Request, engine: Engine, now: float) -> None:
        self.server_id = server_id
        self.request = request
        self.engine = engine
        self.sent_at = now
        self.first_partial = False
        self.placement: Placement | None = None
        self.matched_tokens = 0


def shown(identity: bytes) -> str:
    """An identity as a name: itself when it is plain ASCII of the kind endpoints are named with, else hex."""
    text = identity.decode("ascii", "replace")
    if text.isascii() and all(letter.isalnum() or letter in "._-" for letter in text):
        return text
    return "0x" + identity.hex()
