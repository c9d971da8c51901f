"""The database's half of the snapshot: a connection for reading, the sums of its windows, and what changes rarely.

The other half is `snapshot.Refresher`, which asks. Whoever holds this belongs to one thread, and loads the database's
library with the first question.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from turnout.ledger import upgrade
from turnout.ledger.backend import Derived, Health

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    import sqlalchemy as sa

    from turnout.core import options
    from turnout.core.admission.spending import Row
    from turnout.core.facts import Percentiles, RouteKey
    from turnout.ledger.queries import Connection
    from turnout.ledger.window import Window

_HEALTH_EVERY_MS: Final = 10_000


class Derivation:
    """Answers the questions of `backend.Statistics`; opens the database at the first one."""

    def __init__(self, section: options.Ledger, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Describe it."""
        self._section = section
        self._monotonic = monotonic
        self._engine: sa.Engine | None = None
        self._windows: tuple[Window, Window] | None = None
        self._health_at_ms = -math.inf

    def prepare(self) -> None:
        """Load the library."""
        from turnout.ledger import derived, prices, window  # noqa: F401

        if not upgrade.is_file(self._section.url):
            from turnout.ledger import connection  # noqa: F401

    def spent(self, now_ms: int, days: int) -> list[Row]:
        """Read the sums of keys."""
        from turnout.ledger import derived

        with self._opened() as conn:
            return derived.spent(conn, now_ms, days)

    def derive(self, now_ms: int, version: int | None) -> Derived:
        """Read everything in one transaction."""
        from turnout.ledger import derived, prices
        from turnout.ledger.window import Window

        section = self._section
        if self._windows is None:
            self._windows = Window(section.route_window_ms), Window(section.tool_window_ms)
        with self._opened() as conn:
            keys = derived.routes(conn)
            routes = derived.stats_of(self._windows[0].refresh(conn, now_ms), keys)
            health = None
            if not 0 <= now_ms - self._health_at_ms < _HEALTH_EVERY_MS:
                tool_sums = self._windows[1].refresh(conn, now_ms)
                health = Health(
                    derived.incapable(tool_sums, keys, section.tool_min_samples),
                    *derived.failure_streaks(conn, now_ms, section.streak_window_ms),
                )
                self._health_at_ms = now_ms
            in_force = prices.in_force(conn, now_ms)
            # A version never changes: it is read once.
            book = prices.of_version(conn, in_force) if in_force != version else None
        return Derived(routes, derived.merged(routes, lambda key: key.model), health, in_force, book)

    def routes(self) -> list[tuple[int, RouteKey]]:
        """Read every route."""
        from turnout.ledger import derived

        with self._opened() as conn:
            return list(derived.routes(conn).items())

    def percentiles(self, route_ids: Sequence[int], now_ms: int, most_s: float) -> list[Percentiles]:
        """Ask the rows of one route after the other."""
        from turnout.ledger import derived

        started = self._monotonic()
        found: list[Percentiles] = []
        with self._opened() as conn:
            for route_id in route_ids:
                if self._monotonic() - started >= most_s:
                    break
                found.append(derived.percentiles(conn, route_id, now_ms, self._section.route_window_ms))
        return found

    def drop(self) -> None:
        """Start over."""
        engine, self._engine, self._windows = self._engine, None, None
        self._health_at_ms = -math.inf
        if engine is not None:
            engine.dispose()

    def _opened(self) -> AbstractContextManager[Connection]:
        from turnout.ledger import queries

        url = self._section.url
        if self._engine is None and not upgrade.is_file(url):
            from turnout.ledger import connection

            self._engine = connection.reading(url)
        return queries.reading(url, self._engine)
