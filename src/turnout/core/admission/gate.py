"""May it enter: admit, queue or reject with a reason, decided at once and without waiting (resilience Q1 to Q10).

One gate per model. It knows who waits and how much each principal holds; whether an endpoint can take the request is a
fact that scheduling has and hands in. A split request needs room in every role before anything is spent on it (Q4).
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from turnout.core.admission.limits import DrainRate, Shares, retry_after_s
from turnout.core.admission.queue import NORMAL, FairQueue, Ticket
from turnout.core.errors import Outcome
from turnout.core.options import Admission

_DRAINING_RETRY_S: Final = 15
_NO_ENDPOINT_RETRY_S: Final = 5
_COST_TOKENS_DEFAULT: Final = 512
_COST_TOKENS_MAX: Final = 4096


class Applicant(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One request at the gate. `roles` are those it needs an endpoint of; `deadline_s` is its D5."""

    tenant: str
    cost: float
    deadline_s: float
    anonymous: bool = False
    priority: int = NORMAL
    body_bytes: int = 0
    roles: tuple[str, ...] = ("both",)


class Room(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What the fleet says about this request: facts of one instant.

    `routable` has, per needed role, whether an endpoint below Critical could take it. `fits` is False when no endpoint
    could ever hold it. `returns_in_s` is when the first endpoint that is out comes back, None when nobody is expected.
    `held`: scheduling would rather decide later; `binds`: that is a favour, and without a slot it is bound at once.
    """

    routable: tuple[bool, ...] = (True,)
    fits: bool = True
    anybody: bool = True
    in_flight: int = 0
    capacity: int = 0
    draining: bool = False
    returns_in_s: int | None = None
    held: bool = False
    binds: bool = False


class Entry(enum.Enum):
    """A verdict that is no refusal."""

    ADMIT = "admit"
    QUEUE = "queue"


class Reject(msgspec.Struct, frozen=True, gc=False):
    """Refused before anything was spent; every reason but a client's own fault says when to come back."""

    outcome: Outcome
    retry_after_s: int | None = None


Verdict = Entry | Reject


def request_cost(estimate_floor: int, max_tokens: int | None) -> float:
    """Work that a request stands for in the fair order (Q5)."""
    wanted = max_tokens or _COST_TOKENS_DEFAULT
    return float(estimate_floor + min(wanted, _COST_TOKENS_MAX))


class Gate:
    """The door of one model. `queue.size` is zero in good times, and then nothing here is on anybody's way."""

    __slots__ = (
        "_bodies",
        "_options",
        "_queued",
        "_roles",
        "anonymous",
        "anonymous_max",
        "capacity",
        "drained",
        "held",
        "holding",
        "limited",
        "queue",
        "wait_s",
    )

    def __init__(self, options: Admission) -> None:
        self._options = options
        self.queue = FairQueue(options.tenant_weights, options.promote_s)
        self.drained = DrainRate()
        self.held = Shares()
        self._queued = Shares()
        self._roles = Shares()
        self._bodies = 0
        self.limited = options.tenant_max_in_flight > 0
        self.wait_s = options.queue_wait_s
        """D6."""
        self.anonymous = 0
        """Places held by the anonymous principal."""
        self.holding = 0
        """Who waits only because scheduling would rather decide later."""
        self.resize(0)

    def resize(self, capacity: int) -> None:
        """Hear how many places there are in all; once a tenth of a second is often enough."""
        self.capacity = capacity
        self.anonymous_max = max(capacity - 1, 1)

    def reconfigure(self, options: Admission) -> None:
        """Take new limits; those who wait keep their place and the time they were given."""
        self._options = options
        self.limited = options.tenant_max_in_flight > 0
        self.wait_s = options.queue_wait_s
        self.queue.reconfigure(options.tenant_weights, options.promote_s)

    def may_serve(self, who: Applicant | Ticket) -> bool:
        """Tell whether the principal of an admitted or waiting request may hold one more place (Q10)."""
        if who.anonymous:
            return self.anonymous < self.anonymous_max
        return not self.limited or self.held.of(who.tenant) < self._options.tenant_max_in_flight

    def verdict(self, applicant: Applicant, room: Room, now: float) -> Verdict:
        """Decide, in the order of Q2."""
        options = self._options
        if room.draining:
            return Reject(Outcome.DRAINING, _DRAINING_RETRY_S)
        limit = options.tenant_max_in_flight
        if limit and self.held.of(applicant.tenant) >= limit:
            return self._reject(Outcome.PRINCIPAL_OVER_SHARE, applicant, room, now)
        if not room.fits:
            return Reject(Outcome.UNSERVABLE)
        if all(room.routable) and not self.queue.waits(applicant.priority, now) and self._yields(applicant, room):
            return Entry.ADMIT
        if not room.anybody and not options.wait_for_endpoint:
            return Reject(Outcome.NO_ENDPOINT, room.returns_in_s or _NO_ENDPOINT_RETRY_S)
        over_share = self._over_queue_share(applicant)
        if over_share or not self._has_room(applicant):
            if room.binds and self._yields(applicant, room):
                return Entry.ADMIT
            reason = Outcome.PRINCIPAL_OVER_SHARE if over_share else Outcome.QUEUE_FULL
            return self._reject(reason, applicant, room, now)
        # Who is held does not wait for a place to be given back.
        rate = None if room.held or room.binds else self.drained.per_s(now)
        if rate is not None:
            wait_s = (self.queue.ahead(applicant.priority) + 1) / rate
            if wait_s > min(options.queue_wait_s, applicant.deadline_s - now):
                return self._reject(Outcome.SHED, applicant, room, now)
        return Entry.QUEUE

    def enter(
        self, applicant: Applicant, owner: object, now: float, *, held: bool = False, behind_s: float = 0.0
    ) -> Ticket:
        """Let an applicant with the verdict `queue` wait."""
        ticket = Ticket(
            owner,
            tenant=applicant.tenant,
            cost=applicant.cost,
            now=now,
            expires_s=min(now + self._options.queue_wait_s, applicant.deadline_s),
            priority=applicant.priority,
            anonymous=applicant.anonymous,
            body_bytes=applicant.body_bytes,
            roles=applicant.roles,
            held=held,
            behind_s=behind_s,
        )
        self.queue.put(ticket)
        self.holding += held
        self._queued.take(ticket.tenant)
        for role in ticket.roles:
            self._roles.take(role)
        self._bodies += ticket.body_bytes
        return ticket

    def leave(self, ticket: Ticket) -> bool:
        """Give a queue slot back without being served; False when it was given back before."""
        if not self.queue.leave(ticket):
            return False
        self._give_slot(ticket)
        return True

    def serve(self, ticket: Ticket) -> None:
        """Give a queue slot back because the request goes to an endpoint."""
        self.queue.serve(ticket)
        self._give_slot(ticket)

    def retry_after_s(self, priority: int, room: Room, now: float) -> int:
        """When a request of this class could be served (Q8)."""
        pending = room.in_flight + self.queue.size
        return retry_after_s(self.queue.ahead(priority), self.drained.per_s(now), pending, room.capacity)

    @property
    def queued_bytes(self) -> int:
        """Bodies of everybody who waits."""
        return self._bodies

    def queued(self, role: str = "both") -> int:
        """How many wait for an endpoint of this role."""
        return self._roles.of(role)

    def _reject(self, outcome: Outcome, applicant: Applicant, room: Room, now: float) -> Reject:
        return Reject(outcome, self.retry_after_s(applicant.priority, room, now))

    def _yields(self, applicant: Applicant, room: Room) -> bool:
        """Q10: all anonymous requests together leave one place to the others."""
        if not applicant.anonymous:
            return True
        return self.anonymous < max(room.capacity - 1, 1)

    def _over_queue_share(self, applicant: Applicant) -> bool:
        mine = self._queued.of(applicant.tenant)
        most = self._options.queue_max
        return mine >= (max(most - 1, 1) if applicant.anonymous else self._options.tenant_max_queued)

    def _has_room(self, applicant: Applicant) -> bool:
        if self._bodies + applicant.body_bytes > self._options.queue_bodies_max_bytes:
            return False
        free = self._options.queue_max - max(map(self._roles.of, applicant.roles))
        # While others wait, too, nobody holds more than is still free: two tenants must not fill it for a third.
        shared = len(self._queued) > 1
        return free > 0 and not (shared and self._queued.of(applicant.tenant) > free)

    def _give_slot(self, ticket: Ticket) -> None:
        self.holding -= ticket.held
        self._queued.give(ticket.tenant)
        for role in ticket.roles:
            self._roles.give(role)
        self._bodies -= ticket.body_bytes
