"""The two legs of one attempt: what the decision says of them, and what the second leg holds while it is open.

The attempt itself is the decode leg; `Legs` is the prefill leg beside it. A failure that is the prefill's fault swaps
the two, so that everything that ends an attempt (breaker, cooldown, `tried`, ledger) meets the endpoint to blame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.fleet.seat import Seat
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import PairDecision

if TYPE_CHECKING:
    from turnout.core.errors import ErrorKind
    from turnout.core.scheduling.pairing import Pairing


class Front(Protocol):
    """The leg that an attempt ends as."""

    endpoint: EndpointState
    seat: Seat | None
    epoch: int


class Legs:
    """The leg beside the attempt: endpoint, seat and breaker epoch, given back exactly once."""

    __slots__ = ("decode", "driver", "endpoint", "epoch", "handle", "is_open", "opened_s", "pairing", "prefill",
                 "prefilled_s", "seat", "transfer_s", "transport", "uncached")  # fmt: skip

    def __init__(self, pairing: Pairing, decision: PairDecision, seat: Seat, now: float) -> None:
        assert decision.prefill is not None  # the caller has looked
        assert decision.picked is not None
        self.pairing = pairing
        self.endpoint = self.prefill = decision.prefill
        self.decode = decision.picked
        self.transport = pairing.facts[decision.prefill.name].transport
        self.seat: Seat | None = seat
        self.epoch = self.endpoint.breaker.opened(now)
        self.is_open = True
        self.opened_s = now
        self.driver: Any = None
        """Whoever sends the requests of both legs."""
        self.handle: object = None
        """What a prefill that succeeded left for another decode leg; the driver's own."""
        self.prefilled_s: float | None = None
        self.uncached = decision.prefill_uncached
        self.transfer_s = decision.pair.transfer_s if decision.pair is not None else 0.0

    def prefilled(self, now: float, cached: int | None) -> None:
        """The prefill leg has answered: its places are free, whatever the decode leg comes to."""
        if not self.is_open or self.prefilled_s is not None:
            return
        self.prefilled_s = now
        self.is_open = False
        if self.seat is not None:
            self.seat.first_byte(now)
            self.seat.ended(now, failed=False, cached=cached)
        self.endpoint.last_byte_at = now
        self.endpoint.breaker.success(self.epoch, now)

    def blame_prefill(self, attempt: Front) -> None:
        """Let the attempt end as the prefill leg; the decode leg becomes the one beside it."""
        if self.endpoint is not self.prefill or not self.is_open:
            return
        self.endpoint, attempt.endpoint = attempt.endpoint, self.endpoint
        self.seat, attempt.seat = attempt.seat, self.seat
        self.epoch, attempt.epoch = attempt.epoch, self.epoch

    def ended(self, now: float, kind: ErrorKind | None) -> None:
        """The attempt has ended: so has the leg beside it, which says nothing about its endpoint."""
        if not self.is_open:
            return
        self.is_open = False
        if self.seat is not None:
            self.seat.ended(now, failed=kind is not None, reports=False)
        self.endpoint.breaker.neutral(self.epoch, now)


def prefill_seat(decision: PairDecision, ask: Ask, pool: Pool, fleet: Fleet, now: float) -> Seat:
    """Bind the prefill leg, as `take_seat` binds the attempt's own."""
    endpoint = decision.prefill
    assert endpoint is not None  # the caller has looked
    return Seat(
        fleet,
        pool,
        endpoint,
        keys=ask.keys,
        depth=decision.prefill_depth,
        tokens=ask.tokens,
        uncached=decision.prefill_uncached,
        predicted=decision.prefill_predicted,
        block_tokens=ask.block_tokens,
        now=now,
        chain=ask.chains.get(endpoint.block_tokens) if endpoint.streams else None,
        mode=decision.mode,
    )
