"""Where the database of a ledger is: what its threads ask of it, whether it is opened in this process or in another.

Nothing here knows SQLAlchemy: `in_process.InProcess` loads it into the router, `remote.OwnProcess` into one beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from turnout.core.facts import Percentiles, RouteKey, RouteStats, Streak
from turnout.core.pricing import Price

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.core.admission.spending import Row
    from turnout.ledger.sink import Sink

HotRoute = tuple[str, str, RouteKey, int]
"""Tenant, session, its hot route, and the instant of its newest call."""


class Turn(msgspec.Struct, frozen=True, gc=False):
    """One session's newest turn under one vector of knobs."""

    tenant: str
    session: str
    knobs_hash: str
    model: str
    provider: str
    tokens_in: int | None
    ended_at_ms: int


class Health(msgspec.Struct, frozen=True):
    """What takes longer to derive and is derived more rarely."""

    tool_incapable: frozenset[RouteKey]
    by_route: dict[RouteKey, Streak]
    by_endpoint: dict[tuple[str, str], Streak]


class Derived(msgspec.Struct, frozen=True):
    """The answer to one refresh; None for what has not changed since the one before."""

    routes: dict[RouteKey, RouteStats]
    models: dict[str, RouteStats]
    health: Health | None
    version: int | None
    """Of the price book in force; None without any."""
    prices: list[Price] | None


class Statistics(Protocol):
    """What the thread of the snapshot asks. Every question may raise whatever the driver raises, and blocks."""

    def prepare(self) -> None:
        """Load what the questions need, before the thread that asks them stands back."""

    def spent(self, now_ms: int, days: int) -> list[Row]:
        """Give what keys have spent, from a transaction that begins now."""

    def derive(self, now_ms: int, version: int | None) -> Derived:
        """Derive everything but percentiles; `version` of the price book is known."""

    def routes(self) -> list[tuple[int, RouteKey]]:
        """Give every route with its id."""

    def percentiles(self, route_ids: Sequence[int], now_ms: int, most_s: float) -> list[Percentiles]:
        """Give the percentiles of the first of these routes, as many as so much time allows."""

    def drop(self) -> None:
        """Start over with new connections and new sums."""


class Backend(Protocol):
    """Opens the database, and knows where it is."""

    statistics: Statistics

    def check(self) -> None:
        """Look at what stands there before serving starts; a server that does not answer is waited for later.

        Raises:
            LedgerRefusedError: the schema does not fit this code.
        """

    def hurry(self) -> None:
        """Open the database as fast as possible, because the first requests wait for what it knows; before `open`."""

    def open(self) -> Sink:
        """Bring the database to this schema, or check that it has it, take in the price file, and give its sink.

        Raises:
            LedgerRefusedError: the schema does not fit this code.
            Exception: the database cannot be opened at the moment.
        """

    def hot_routes(self, now_ms: int) -> list[HotRoute]:
        """Give the hot routes of the last hour's sessions; none while there is no database that answers."""

    def recent_turns(self, since_ms: int, most: int) -> list[Turn]:
        """Give the newest turns, newest first; none while there is no database that answers."""

    def stats(self) -> dict[str, int | float]:
        """Give counters for the metrics page."""

    def close(self) -> None:
        """Let go of whatever still asks, hanging or not; nothing is asked afterwards."""
