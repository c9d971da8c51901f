"""One try on one endpoint, and what it holds while it is open: given back by the exchange, exactly once."""

from __future__ import annotations

from turnout.core.errors import RETRY, UNCOUNTED, ErrorKind
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.seat import Seat
from turnout.core.pricing import PriceBook
from turnout.core.recovery.poison import COINCIDES_S
from turnout.core.scheduling.legs import Legs
from turnout.core.usage import Usage


class Attempt:
    """Mutable; `is_open` until its one end, after which the other fields are facts."""

    __slots__ = (
        "book",
        "committed",
        "died",
        "ended_s",
        "endpoint",
        "epoch",
        "error_kind",
        "events",
        "first_byte_s",
        "first_output_s",
        "http_status",
        "is_open",
        "kind",
        "legs",
        "model",
        "no",
        "seat",
        "started_s",
        "tools",
        "usage",
    )

    def __init__(self, no: int, endpoint: EndpointState, kind: str, started_s: float) -> None:
        self.no = no
        self.endpoint = endpoint
        self.kind = kind
        self.started_s = started_s
        self.model = ""
        self.is_open = True
        self.ended_s = 0.0
        self.first_byte_s: float | None = None
        self.error_kind: ErrorKind | None = None
        self.http_status: int | None = None
        self.committed = False
        self.died = False
        """Whether its connection was lost with the request on it (N8)."""
        self.usage: Usage | None = None
        self.epoch = 0
        self.seat: Seat | None = None
        self.legs: Legs | None = None
        self.first_output_s: float | None = None
        self.events = 0
        self.tools = False
        self.book: PriceBook | None = None

    def note(self, first_output_s: float | None, events: int, *, tools: bool) -> None:
        """Keep what is told of an attempt whose response is not the last one."""
        self.first_output_s = first_output_s
        self.events = events
        self.tools = tools

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

    @property
    def coincided(self) -> bool:
        """Tell whether its endpoint died of it, for all that is known (N8)."""
        kind = self.error_kind
        if self.died or kind is None or RETRY[kind].unreachable:  # the last: it never arrived
            return self.died
        return self.started_s <= self.endpoint.lost_at <= self.ended_s + COINCIDES_S


def end_attempt(
    attempt: Attempt,
    now: float,
    kind: ErrorKind | None = None,
    status: int | None = None,
    open_s: float | None = None,
    *,
    busy: bool = False,
) -> None:
    """Give everything back, exactly once, and tell the breaker what the result says; kind None is a complete answer."""
    attempt.is_open = False
    attempt.ended_s = now
    attempt.error_kind = kind
    attempt.http_status = status
    endpoint, seat, usage = attempt.endpoint, attempt.seat, attempt.usage
    if seat is not None:
        if usage is None:
            seat.ended(now, failed=kind is not None, reports=False)
        else:
            seat.ended(
                now,
                failed=kind is not None,
                tokens_out=usage.tokens_out,
                cached=usage.tokens_cached,
                prompt=usage.tokens_in,
            )
    if attempt.legs is not None:
        attempt.legs.ended(now, kind)
    if kind is None:
        endpoint.last_byte_at = now
        endpoint.breaker.success(attempt.epoch, now)
    elif RETRY[kind].fault and not busy:
        endpoint.breaker.fault(attempt.epoch, now, open_s)
    else:
        endpoint.breaker.neutral(attempt.epoch, now)
