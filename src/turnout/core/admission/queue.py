"""Who waits, and who is next: a bounded order that is fair between tenants (resilience Q5, Q6).

Priority class first, one class up per `promote_s` waited; named tenants before the anonymous one; then start-time fair
queueing: `start = max(V, finish of the tenant)`, `finish = start + cost / weight`, V = start of the last one served;
ties by arrival. Within one tenant and class the order is that of arrival, moved back by `behind_s` for what scheduling
holds. A start is assigned when a ticket becomes the first of its lane, which equals assigning it on arrival, but one
that leaves has cost its tenant nothing. Whoever stands aside waits for a reason of its own and holds nobody up.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from typing import Any, Final

FIRST: Final = -1
HIGH: Final = 0
NORMAL: Final = 1
LOW: Final = 2
CLASSES: Final = {"high": HIGH, "normal": NORMAL, "low": LOW}


class Ticket:
    """One waiting request; `owner` is whatever the caller wants back when its turn comes.

    `held`: it waits because scheduling would rather decide later, not because there is no place.
    """

    __slots__ = (
        "anonymous",
        "aside_s",
        "behind_s",
        "body_bytes",
        "cost",
        "expires_s",
        "held",
        "lane",
        "owner",
        "priority",
        "queued_s",
        "roles",
        "serial",
        "tenant",
    )

    def __init__(
        self,
        owner: Any,
        *,
        tenant: str,
        cost: float,
        now: float,
        expires_s: float,
        priority: int = NORMAL,
        anonymous: bool = False,
        body_bytes: int = 0,
        roles: tuple[str, ...] = ("both",),
        held: bool = False,
        behind_s: float = 0.0,
    ) -> None:
        self.owner = owner
        self.tenant = tenant
        self.cost = cost
        self.queued_s = now
        self.expires_s = expires_s
        self.priority = priority
        self.anonymous = anonymous
        self.body_bytes = body_bytes
        self.roles = roles
        self.held = held
        self.behind_s = behind_s
        self.aside_s = 0.0
        self.serial = 0
        self.lane: _Lane | None = None

    @property
    def waiting(self) -> bool:
        """Whether it still stands in a queue."""
        return self.lane is not None or self.aside

    @property
    def aside(self) -> bool:
        """Whether it let the others pass; until `aside_s`."""
        return self.aside_s > 0.0


class _Tenant:
    """Where a tenant's served work ends on the virtual clock."""

    __slots__ = ("finish", "lanes")

    def __init__(self) -> None:
        self.finish = 0.0
        self.lanes: dict[int, _Lane] = {}


class _Lane:
    """The tickets of one tenant in one class, in their order. `start` belongs to the first of them."""

    __slots__ = ("entries", "start", "tenant")

    def __init__(self, tenant: _Tenant) -> None:
        self.tenant = tenant
        self.start = 0.0
        self.entries: list[tuple[float, int, Ticket]] = []

    @property
    def head(self) -> Ticket:
        return self.entries[0][2]

    def add(self, ticket: Ticket) -> None:
        insort(self.entries, (ticket.queued_s + ticket.behind_s, ticket.serial, ticket))

    def remove(self, ticket: Ticket) -> None:
        order = (ticket.queued_s + ticket.behind_s, ticket.serial)
        del self.entries[bisect_left(self.entries, order, key=_order)]


class FairQueue:
    """Everything costs O(lanes) at most, and lanes ≤ waiting tickets; `size` is what the hot path looks at."""

    __slots__ = ("_aside", "_promote_s", "_serial", "_tenants", "_virtual", "_weights", "size")

    def __init__(self, weights: dict[str, float], promote_s: float) -> None:
        self._weights = weights
        self._promote_s = promote_s
        self._tenants: dict[str, _Tenant] = {}
        self._virtual = 0.0
        self._serial = 0
        self._aside: list[tuple[float, int, Ticket]] = []
        self.size = 0

    def reconfigure(self, weights: dict[str, float], promote_s: float) -> None:
        """Take new weights; starts that are assigned already stay."""
        self._weights = weights
        self._promote_s = promote_s

    def put(self, ticket: Ticket) -> None:
        """Let a ticket wait."""
        self._serial += 1
        ticket.serial = self._serial
        self._place(ticket)
        self.size += 1

    def leave(self, ticket: Ticket) -> bool:
        """Take a ticket out wherever it stands; False when it is not waiting (any more)."""
        if ticket.aside:
            ticket.aside_s = 0.0  # its entry says another time than it does: nobody comes back through it
        elif ticket.lane is not None:
            self._displace(ticket, ticket.lane)
        else:
            return False
        self._left()
        return True

    def step_aside(self, ticket: Ticket, until_s: float) -> None:
        """Let the others pass until this instant: what the ticket waits for is its own."""
        assert ticket.lane is not None, "not in a lane"
        self._displace(ticket, ticket.lane)
        ticket.aside_s = until_s
        heapq.heappush(self._aside, (until_s, ticket.serial, ticket))

    def move(self, ticket: Ticket, behind_s: float) -> None:
        """Change how far behind its arrival a ticket stands."""
        lane = ticket.lane
        assert lane is not None, "not in a lane"
        lane.remove(ticket)
        ticket.behind_s = behind_s
        lane.add(ticket)

    def serve(self, ticket: Ticket) -> None:
        """Take a ticket out because its turn has come: its tenant is charged."""
        if ticket.aside:
            ticket.aside_s = 0.0
            self._place(ticket)
        lane = ticket.lane
        assert lane is not None, "served twice"
        tenant = lane.tenant
        start = lane.start if lane.head is ticket else max(self._virtual, tenant.finish)
        self._virtual = max(self._virtual, start)
        tenant.finish = start + ticket.cost / self._weights.get(ticket.tenant, 1.0)
        for other in tenant.lanes.values():  # what waits in the tenant's other classes comes after this
            other.start = max(other.start, tenant.finish)
        self._displace(ticket, lane)
        self._left()

    def head(self, now: float) -> Ticket | None:
        """The ticket whose turn it is; None when nobody waits but aside."""
        if self._aside:
            self._come_back(now)
        best: tuple[int, bool, float, int] | None = None
        found: Ticket | None = None
        for tenant in self._tenants.values():
            for lane in tenant.lanes.values():
                key = self._key(lane, now)
                if best is None or key < best:
                    best, found = key, lane.head
        return found

    def waits(self, priority: int, now: float) -> bool:
        """Tell whether anybody waits in this class or above, and not aside."""
        return self.size > 0 and any(self._class(ticket, now) <= priority for ticket in map(self._first, self._lanes()))

    def ahead(self, priority: int) -> int:
        """How many wait in this class or above, as they came."""
        return sum(
            len(lane.entries)
            for tenant in self._tenants.values()
            for level, lane in tenant.lanes.items()
            if level <= priority
        ) + sum(ticket.priority <= priority for ticket in self._standing_aside())

    def expired(self, now: float) -> list[Ticket]:
        """Tickets whose time is over; they still have to leave."""
        return [ticket for ticket in self.tickets() if ticket.expires_s <= now]

    def tickets(self) -> list[Ticket]:
        """Everybody who waits, in no particular order."""
        return [entry[2] for lane in self._lanes() for entry in lane.entries] + self._standing_aside()

    def _standing_aside(self) -> list[Ticket]:
        return [ticket for until_s, _, ticket in self._aside if ticket.aside_s == until_s]

    def _come_back(self, now: float) -> None:
        aside = self._aside
        while aside and (aside[0][0] <= now or aside[0][2].aside_s != aside[0][0]):
            until_s, _, ticket = heapq.heappop(aside)
            if ticket.aside_s == until_s:
                ticket.aside_s = 0.0
                self._place(ticket)

    def _place(self, ticket: Ticket) -> None:
        tenant = self._tenants.get(ticket.tenant)
        if tenant is None:
            tenant = self._tenants[ticket.tenant] = _Tenant()
        lane = tenant.lanes.get(ticket.priority)
        if lane is None:
            lane = tenant.lanes[ticket.priority] = _Lane(tenant)
            lane.start = max(self._virtual, tenant.finish)
        ticket.lane = lane
        lane.add(ticket)

    def _lanes(self) -> list[_Lane]:
        return [lane for tenant in self._tenants.values() for lane in tenant.lanes.values()]

    @staticmethod
    def _first(lane: _Lane) -> Ticket:
        return lane.head

    def _class(self, ticket: Ticket, now: float) -> int:
        if ticket.priority == FIRST:  # admitted once: its engine failed, it did not come late
            return FIRST
        return max(HIGH, ticket.priority - int((now - ticket.queued_s) / self._promote_s))

    def _key(self, lane: _Lane, now: float) -> tuple[int, bool, float, int]:
        ticket = lane.head
        return self._class(ticket, now), ticket.anonymous, lane.start, ticket.serial

    def _displace(self, ticket: Ticket, lane: _Lane) -> None:
        tenant = lane.tenant
        was_head = lane.head is ticket
        lane.remove(ticket)
        ticket.lane = None
        if not lane.entries:
            del tenant.lanes[ticket.priority]
            if not tenant.lanes and tenant.finish <= self._virtual:
                del self._tenants[ticket.tenant]
        elif was_head:
            lane.start = max(lane.start, tenant.finish)

    def _left(self) -> None:
        self.size -= 1
        if not self.size:
            # The busy period is over: finishes in the past mean nothing, and tenants must not pile up.
            self._tenants.clear()
            self._aside.clear()
            self._virtual = 0.0


def _order(entry: tuple[float, int, Ticket]) -> tuple[float, int]:
    return entry[0], entry[1]
