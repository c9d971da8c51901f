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
from typing import TYPE_CHECKING, Final

import msgspec

from turnout.core.facts import StatsSnapshot
from turnout.core.pricing import PriceBook

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.core import options
    from turnout.core.admission.spending import Spending
    from turnout.core.facts import Percentiles, RouteKey
    from turnout.ledger.backend import Statistics

STALE_MS: Final = 30_000
_RANKS_EVERY_S: Final = 10.0
# So many routes are asked about at once.
_RANKED_AT_ONCE: Final = 256
# Each derivation takes at most a twentieth of the time.
_PAUSE_FACTOR: Final = 20
_EMPTY: Final = StatsSnapshot()


class Refresher:
    """Keeps `latest` fresh in a thread of its own. `start` once, `close` once."""

    def __init__(
        self,
        options: options.Ledger,
        statistics: Statistics,
        *,
        clock_ms: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
        yields: Callable[[], None] = lambda: None,
        delay_s: float = 1.0,
        spending: Spending | None = None,
    ) -> None:
        """Describe it; the thread asks for the first time at `begin` or `delay_s` after `start`."""
        self.latest: StatsSnapshot = _EMPTY
        self.book = PriceBook.of(None, (), options.default_cached_price_factor)
        self.read_errors: dict[str, int] = {}
        self._options = options
        self._statistics = statistics
        self._clock_ms = clock_ms
        self._monotonic = monotonic
        self._yields = yields
        self._delay_s = delay_s
        self._spending = spending
        self._asked = False
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
            Exception: the database does not answer.
        """
        self._asked = True
        started = self._monotonic()
        now_ms = self._clock_ms()
        self._read_spent(now_ms)
        before = self.latest
        found = self._statistics.derive(now_ms, self.book.version)
        if found.prices is not None:
            self.book = PriceBook.of(found.version, found.prices, self._options.default_cached_price_factor)
        health = found.health
        self.latest = StatsSnapshot(
            observed_at_ms=now_ms,
            derive_ms=round((self._monotonic() - started) * 1000),
            window_ms=self._options.route_window_ms,
            routes=found.routes,
            models=found.models,
            tool_incapable=before.tool_incapable if health is None else health.tool_incapable,
            route_streaks=before.route_streaks if health is None else health.by_route,
            endpoint_streaks=before.endpoint_streaks if health is None else health.by_endpoint,
            percentiles=before.percentiles,
            percentiles_at_ms=before.percentiles_at_ms,
        )
        return self.latest

    def _read_spent(self, now_ms: int) -> None:
        """Publish what keys have spent, with the calls that are known to be among it."""
        spending = self._spending
        if spending is None or not spending.days:
            return
        call_ids = spending.committed()
        try:
            spending.publish(self._statistics.spent(now_ms, spending.days), call_ids)
        except Exception:
            spending.unread(call_ids)
            raise

    def rank(self, most_s: float = math.inf) -> None:
        """Ask the rows for the percentiles of the next routes for so long; publish them when all routes are through.

        Raises:
            Exception: the database does not answer.
        """
        started, now_ms = self._monotonic(), self._clock_ms()
        if not self._unranked:
            if started < self._ranks_due_s:
                return
            self._ranked, self._ranks_at_ms, self._ranks_s = {}, now_ms, 0.0
            self._ranks_due_s = started + _RANKS_EVERY_S
            self._unranked = [(n, key) for n, key in self._statistics.routes() if key in self.latest.routes]
        while self._unranked and (left_s := started + most_s - self._monotonic()) > 0:
            part = self._unranked[:_RANKED_AT_ONCE]
            found = self._statistics.percentiles([number for number, _ in part], now_ms, left_s)
            self._ranked |= {key: ranks for (_, key), ranks in zip(part, found, strict=False)}
            del self._unranked[: len(found)]
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
        self._statistics.prepare()
        self._yields()
        pause_s = 0.0
        while not self._stop.wait(pause_s):
            spent_s = self._timed("snapshot", self.refresh)
            self._looked.set()
            pause_s = max(self._options.snapshot_interval_s, _PAUSE_FACTOR * spent_s)
            if self._asked:
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
        self._asked, self._unranked = False, []
        self._statistics.drop()
