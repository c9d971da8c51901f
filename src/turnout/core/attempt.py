"""One try on one endpoint, and what it holds while it is open: given back by the exchange, exactly once."""

from __future__ import annotations

from turnout.core.errors import UNCOUNTED, ErrorKind
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.seat import Seat
from turnout.core.types import Usage


class Attempt:
    """Mutable; `is_open` until its one end, after which the other fields are facts."""

    __slots__ = (
        "committed",
        "ended_s",
        "endpoint",
        "epoch",
        "error_kind",
        "first_byte_s",
        "http_status",
        "is_open",
        "kind",
        "no",
        "seat",
        "started_s",
        "usage",
    )

    def __init__(self, no: int, endpoint: EndpointState, kind: str, started_s: float) -> None:
        self.no = no
        self.endpoint = endpoint
        self.kind = kind
        self.started_s = started_s
        self.is_open = True
        self.ended_s = 0.0
        self.first_byte_s: float | None = None
        self.error_kind: ErrorKind | None = None
        self.http_status: int | None = None
        self.committed = False
        self.usage: Usage | None = None
        self.epoch = 0
        self.seat: Seat | None = None

    @property
    def tokens(self) -> int:
        """The estimate T it was opened with."""
        return self.seat.tokens if self.seat is not None else 0

    @property
    def uncached(self) -> int:
        """What the engine had to prefill of it, as far as was known."""
        return self.seat.uncached if self.seat is not None else 0

    @property
    def counted(self) -> bool:
        """Tell whether the result says something about the route (ledger §3)."""
        return self.error_kind not in UNCOUNTED
