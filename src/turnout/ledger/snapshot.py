"""The statistics and prices that the hot path reads: refreshed by a thread, published by one assignment, never queried.

A refresh that fails leaves the last snapshot where it is; readers see its age and take neutral values after 30 s.
Sums cost what is new since the last refresh. Percentiles cannot be added over buckets: they are asked of the rows, one
route after the other between refreshes, and carry their own instant.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from turnout.core.facts import StatsSnapshot
from turnout.core.pricing import PriceBook

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.core import options
    from turnout.core.admission.spending import Spending
    from turnout.core.facts import Percentiles, RouteKey
    from turnout.ledger.window import Window

STALE_MS: Final = 30_000
_STREAKS_EVERY_MS: Final = 10_000
_RANKS_EVERY_S: Final = 10.0
# Each derivation takes at most a twentieth of the time.
_PAUSE_FACTOR: Final = 20
_EMPTY: Final = StatsSnapshot()


class Refresher:
    """Keeps `latest` fresh in a thread of its own. `start` once, `close` once."""

    def __init__(
        self,
        options: options.Ledger,
        *,
        clock_ms: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
        yields: Callable[[], None] = lambda: None,
        delay_s: float = 1.0,
        spending: Spending | None = None,
    ) -> None:
        """Describe it; the database is opened by the thread, at `begin` or `delay_s` after `start`."""
        self.latest: StatsSnapshot = _EMPTY
        self.book = PriceBook.of(None, (), options.default_cached_price_factor)
        self.read_errors: dict[str, int] = {}
        self._options = options
        self._clock_ms = clock_ms
        self._monotonic = monotonic
        self._yields = yields
        self._delay_s = delay_s
        self._spending = spending
        self._engine: Any = None
        self._windows: tuple[Window, Window] | None = None
        self._streaks_at_ms = 0
        self._unranked: list[tuple[int, RouteKey]] = []
        self._ranked: dict[RouteKey, Percentiles] = {}
        self._ranks_at_ms = 0
        self._ranks_due_s = -math.inf
        self._ranks_s = 0.0
        self._begin = threading.Event()
        self._looked = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-snapshot", daemon=True)

    def start(self) -> None:
        """Begin refreshing."""
        self._thread.start()

    def begin(self) -> None:
        """Refresh from now on: the database stands."""
        self._begin.set()

    def wait(self, timeout_s: float) -> None:
        """Wait until the database was asked for the first time, with or without success."""
        self._looked.wait(timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """End the thread; a query that hangs is left behind."""
        self._stop.set()
        self._begin.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def fresh(self, now_ms: int) -> StatsSnapshot:
        """Give the snapshot, or an empty one when it is older than 30 s."""
        latest = self.latest
        return latest if now_ms - latest.observed_at_ms <= STALE_MS else _EMPTY

    def refresh(self) -> StatsSnapshot:
        """Derive everything now and publish it.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database does not answer.
        """
        from turnout.ledger import connection, derived, prices
        from turnout.ledger.window import Window

        section = self._options
        if self._engine is None:
            self._engine = connection.reading(section.url)
        if self._windows is None:
            self._windows = Window(section.route_window_ms), Window(section.tool_window_ms)
        started = self._monotonic()
        now_ms = self._clock_ms()
        self._read_spent(now_ms)
        before = self.latest
        with self._engine.connect() as conn, conn.begin():
            keys = derived.routes(conn)
            routes = derived.stats_of(self._windows[0].refresh(conn, now_ms), keys)
            tool_incapable, by_route, by_endpoint = before.tool_incapable, before.route_streaks, before.endpoint_streaks
            if not 0 <= now_ms - self._streaks_at_ms < _STREAKS_EVERY_MS:
                tool_sums = self._windows[1].refresh(conn, now_ms)
                tool_incapable = derived.incapable(tool_sums, keys, section.tool_min_samples)
                by_route, by_endpoint = derived.failure_streaks(conn, now_ms, section.streak_window_ms)
                self._streaks_at_ms = now_ms
            version = prices.in_force(conn, now_ms)
            if version != self.book.version:  # a version never changes: it is read once
                self.book = prices.load(conn, version, section.default_cached_price_factor)
        self.latest = StatsSnapshot(
            observed_at_ms=now_ms,
            derive_ms=round((self._monotonic() - started) * 1000),
            window_ms=section.route_window_ms,
            routes=routes,
            models=derived.merged(routes, lambda key: key.model),
            tool_incapable=tool_incapable,
            route_streaks=by_route,
            endpoint_streaks=by_endpoint,
            percentiles=before.percentiles,
            percentiles_at_ms=before.percentiles_at_ms,
        )
        return self.latest

    def _read_spent(self, now_ms: int) -> None:
        """Publish what keys have spent, with the calls that are known to be among it."""
        from turnout.ledger import derived

        spending = self._spending
        if spending is None or not spending.days:
            return
        call_ids = spending.committed()
        try:
            with self._engine.connect() as conn, conn.begin():
                spending.publish(derived.spent(conn, now_ms, spending.days), call_ids)
        except Exception:
            spending.unread(call_ids)
            raise

    def rank(self, most_s: float = math.inf) -> None:
        """Ask the rows for the percentiles of the next routes for so long; publish them when all routes are through.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database does not answer.
        """
        from turnout.ledger import derived

        started, now_ms = self._monotonic(), self._clock_ms()
        if not self._unranked:
            if started < self._ranks_due_s:
                return
            self._ranked, self._ranks_at_ms, self._ranks_s = {}, now_ms, 0.0
            self._ranks_due_s = started + _RANKS_EVERY_S
            with self._engine.connect() as conn:
                self._unranked = [(n, key) for n, key in derived.routes(conn).items() if key in self.latest.routes]
        with self._engine.connect() as conn, conn.begin():
            while self._unranked and self._monotonic() - started < most_s:
                route_id, key = self._unranked.pop()
                self._ranked[key] = derived.percentiles(conn, route_id, now_ms, self._options.route_window_ms)
        self._ranks_s += self._monotonic() - started
        if not self._unranked:
            self.latest = msgspec.structs.replace(
                self.latest, percentiles=self._ranked, percentiles_at_ms=self._ranks_at_ms
            )

    def stats(self) -> dict[str, int | float]:
        """Give the gauges of the metrics page."""
        age_ms = self._clock_ms() - self.latest.observed_at_ms
        return {
            "snapshot_age_s": age_ms / 1000 if self.latest.observed_at_ms else 0.0,
            "derive_s": self.latest.derive_ms / 1000,
            "percentiles_s": self._ranks_s,
            "read_errors_snapshot": self.read_errors.get("snapshot", 0),
            "read_errors_percentiles": self.read_errors.get("percentiles", 0),
        }

    def _run(self) -> None:
        self._begin.wait(self._delay_s)
        if self._stop.is_set():
            return
        # Before it stands back: whoever waits for a module that such a thread loads waits as long as it takes there.
        from turnout.ledger import connection, derived, prices, window  # noqa: F401

        self._yields()
        pause_s = 0.0
        while not self._stop.wait(pause_s):
            spent_s = self._timed("snapshot", self.refresh)
            self._looked.set()
            pause_s = max(self._options.snapshot_interval_s, _PAUSE_FACTOR * spent_s)
            if self._engine is not None:
                self._timed("percentiles", functools.partial(self.rank, pause_s / _PAUSE_FACTOR))
        self._drop()

    def _timed(self, query: str, derive: Callable[[], object]) -> float:
        """Derive something and return the seconds it took, whether or not it came about."""
        started = self._monotonic()
        try:
            derive()
        except Exception:  # noqa: BLE001 - statistics fail open, whatever the driver raises
            self.read_errors[query] = self.read_errors.get(query, 0) + 1
            self._drop()
        return self._monotonic() - started

    def _drop(self) -> None:
        """Start over with new connections and new sums."""
        engine, self._engine, self._windows, self._unranked = self._engine, None, None, []
        self._streaks_at_ms = 0
        if engine is not None:
            engine.dispose()
