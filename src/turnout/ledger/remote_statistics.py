"""What the snapshot asks of the ledger's process, as values again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnout.ledger import messages
from turnout.ledger.backend import Derived, Health

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import msgspec

    from turnout.core.admission.spending import Row
    from turnout.core.facts import Percentiles, RouteKey


class RemoteStatistics:
    """A `backend.Statistics`. The sums and connections it speaks of are those of the process."""

    def __init__(self, ask: Callable[[msgspec.Struct, Any], Any]) -> None:
        """`ask` takes a question and the type of its answer, and raises what went wrong."""
        self._ask = ask

    def prepare(self) -> None:
        """There is nothing to load here."""

    def spent(self, now_ms: int, days: int) -> list[Row]:
        """Ask for the sums of keys."""
        return messages.SPENT.joined(self._ask(messages.Spent(now_ms, days), list[bytes]))

    def derive(self, now_ms: int, version: int | None) -> Derived:
        """Ask for everything but percentiles."""
        found: messages.DerivedParts = self._ask(messages.Derive(now_ms, version), messages.DerivedParts)
        health = found.health
        return Derived(
            routes=dict(messages.STATS.joined(found.routes)),
            models=dict(messages.MODELS.joined(found.models)),
            health=None
            if health is None
            else Health(
                frozenset(messages.KEYS.joined(health.tool_incapable)),
                dict(messages.STREAKS.joined(health.by_route)),
                dict(messages.ENDPOINTS.joined(health.by_endpoint)),
            ),
            version=found.version,
            prices=None if found.prices is None else messages.PRICES.joined(found.prices),
        )

    def routes(self) -> list[tuple[int, RouteKey]]:
        """Ask for every route."""
        return messages.ROUTES.joined(self._ask(messages.Routes(), list[bytes]))

    def percentiles(self, route_ids: Sequence[int], now_ms: int, most_s: float) -> list[Percentiles]:
        """Ask for the percentiles of some routes."""
        return messages.RANKS.joined(self._ask(messages.Rank(list(route_ids), now_ms, most_s), list[bytes]))

    def drop(self) -> None:
        """The process has started over where something failed."""
