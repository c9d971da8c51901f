"""What keys have spent and may still spend: settled by the ledger, and beside that whatever is open or not settled yet.

A request reserves the most that it may cost, in one step with the check, so of requests at the same time only the last
one can go over (T39). The reservation becomes its cost when it ends, and is let go when the sums that the ledger read
include that cost: never both, never neither. Requests never wait for the ledger; who has a budget is refused while the
sums are not known at all, because money fails closed.

The loop reserves and ends; the ledger's writer tells what is stored, its reader publishes sums. What passes between
them are deques, each with one side that appends and one that takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from turnout.core.facts import CallFact

DAY_MS: Final = 86_400_000
OPEN_MAX: Final = 65_536
"""Calls with a cost that no sums include yet; a ledger so far behind is no authority."""

Who = tuple[str, str]
"""Tenant and key."""
Row = tuple[str, str, int, int]
"""Tenant, key, day, nano-USD."""


class Spending:
    """Sums of keys that have a budget; the others cost one test of an attribute."""

    def __init__(self) -> None:
        self.days = 0
        """How many days back some budget looks; 0: there is none, and nothing is read."""
        self.status = 429
        self._settled: dict[Who, list[tuple[int, int]]] | None = None
        self._open: dict[str, tuple[Who, int]] = {}
        self._open_nusd: dict[Who, int] = {}
        self._stored: deque[str] = deque()
        self._published: deque[tuple[list[Row], list[str]]] = deque()

    # -- the loop -----------------------------------------------------------------------------------------------------

    def spent_nusd(self, who: Who, days: int, now_ms: int) -> int | None:
        """Return what a key has spent and reserved in the last days; None while that is not known."""
        self._take()
        if self._settled is None or len(self._open) >= OPEN_MAX:
            return None
        since_ms = (now_ms // DAY_MS - days + 1) * DAY_MS
        settled = sum([nusd for day_ms, nusd in self._settled.get(who, ()) if day_ms >= since_ms])
        return settled + self._open_nusd.get(who, 0)

    def reserve(self, call_id: str, who: Who, nusd: int) -> None:
        """Keep the most that a call may cost."""
        self._open[call_id] = (who, nusd)
        self._open_nusd[who] = self._open_nusd.get(who, 0) + nusd

    def reserved_nusd(self, call_id: str) -> int | None:
        """Return what is kept for a call."""
        found = self._open.get(call_id)
        return found[1] if found is not None else None

    def ended(self, fact: CallFact) -> None:
        """Replace the reservation of a call by its cost; what cost nothing is let go."""
        found = self._release(fact.call_id)
        if found is not None and fact.cost_nusd:
            self.reserve(fact.call_id, found, fact.cost_nusd)

    def _release(self, call_id: str) -> Who | None:
        found = self._open.pop(call_id, None)
        if found is None:
            return None
        who, nusd = found
        left = self._open_nusd[who] - nusd
        if left:
            self._open_nusd[who] = left
        else:
            del self._open_nusd[who]
        return who

    def _take(self) -> None:
        """Take in the newest sums, and let go of the calls that they include."""
        while self._published:
            rows, call_ids = self._published.popleft()
            for call_id in call_ids:
                self._release(call_id)
            settled: dict[Who, list[tuple[int, int]]] = {}
            for tenant, key_id, day_ms, nusd in rows:
                settled.setdefault((tenant, key_id), []).append((day_ms, nusd))
            self._settled = settled

    # -- the ledger's threads -----------------------------------------------------------------------------------------

    def stored(self, call_ids: Iterable[str]) -> None:
        """Hear from the writer which calls are committed."""
        if self.days:
            self._stored.extend([call_id for call_id in call_ids if call_id in self._open])

    def committed(self) -> list[str]:
        """Give the reader the calls that a transaction which begins now will see."""
        return [self._stored.popleft() for _ in range(len(self._stored))]

    def publish(self, rows: list[Row], call_ids: list[str]) -> None:
        """Take the sums of such a transaction, with what `committed` gave."""
        if self._published:  # nobody has asked since the last ones: these calls are told with the next
            self.unread(call_ids)
        else:
            self._published.append((rows, call_ids))

    def unread(self, call_ids: list[str]) -> None:
        """Take back what `committed` gave: the transaction came to nothing."""
        self._stored.extendleft(reversed(call_ids))
