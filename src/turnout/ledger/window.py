"""Sums over a sliding window of attempts, equal to the raw query, at the price of what is new (ADR 0010).

The window [now − window, ∞) is a closed part, whose sums are remembered here, and open buckets, read each time. As time
goes on buckets are added to the closed part at its end and rows taken from it at its beginning. It changes otherwise
only by a late transaction, and that one leaves a mark: the sums are then made again. All reads of one refresh belong
to one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from turnout.ledger import queries
from turnout.ledger.rows import BUCKET_MS

if TYPE_CHECKING:
    from turnout.ledger.queries import Connection

# Later than any mark can be missed: 30 s until a change counts as late, and as much for clocks that differ.
OPEN_MS: Final = 60_000
_LOOK_BACK_MS: Final = 120_000
# Whatever no mark told (a clock an hour off) is right again after this time.
_REBUILD_MS: Final = 60_000 * 5
_SUMS: Final = ("n", "counted_n", "ok_n", "e2e_n", "e2e_sum_ms", "ttft_n", "ttft_sum_ms", "tools_n", "tools_emitted_n")

_BUCKETS: Final = (
    "SELECT route_id, SUM(n), SUM(counted_n), SUM(ok_n), SUM(e2e_n), SUM(e2e_sum_ms), SUM(ttft_n), SUM(ttft_sum_ms),"
    " SUM(tools_n), SUM(tools_emitted_n)"
    " FROM attempt_buckets WHERE bucket_ms >= :since AND bucket_ms < :until GROUP BY route_id"
)
RAW: Final = (
    "SELECT route_id, COUNT(*), SUM(CASE WHEN counted THEN 1 ELSE 0 END), SUM(CASE WHEN ok THEN 1 ELSE 0 END),"
    " SUM(CASE WHEN ok AND e2e_ms IS NOT NULL THEN 1 ELSE 0 END),"
    " SUM(CASE WHEN ok THEN COALESCE(e2e_ms, 0) ELSE 0 END),"
    " SUM(CASE WHEN ok AND ttft_ms IS NOT NULL THEN 1 ELSE 0 END),"
    " SUM(CASE WHEN ok THEN COALESCE(ttft_ms, 0) ELSE 0 END),"
    " SUM(CASE WHEN ok AND tools_requested THEN 1 ELSE 0 END),"
    " SUM(CASE WHEN ok AND tools_requested AND tools_emitted THEN 1 ELSE 0 END)"
    " FROM attempts WHERE ended_at_ms >= :since AND ended_at_ms < :until AND route_id IS NOT NULL GROUP BY route_id"
)
"""The definition: the same sums over the rows themselves."""
FOREVER_MS: Final = 2**62
_LATE: Final = "SELECT seq FROM late_buckets WHERE recorded_at_ms >= :since"

Totals = dict[int, tuple[int, ...]]
"""Per route_id the nine sums, in the order of the bucket's columns."""


class Window:
    """The sums of one window. Not for two threads at once."""

    def __init__(self, window_ms: int) -> None:
        """Describe a window of `window_ms` up to the present and beyond."""
        self._window_ms = max(0, window_ms)
        self._closed: dict[int, list[int]] = {}
        self._from_ms = 0
        self._until_ms = 0
        self._built_at_ms: int | None = None
        self._marks: set[int] = set()

    def refresh(self, conn: Connection, now_ms: int) -> Totals:
        """Give the sums of [now − window, ∞), routes without an attempt left out."""
        cutoff_ms = now_ms - self._window_ms
        closed_ms = max(_up(cutoff_ms), _down(now_ms - OPEN_MS))
        marks = {row[0] for row in queries.rows(conn, _LATE, since=now_ms - _LOOK_BACK_MS)}
        if self._stale(marks, cutoff_ms, closed_ms, now_ms):
            self._closed, self._from_ms, self._until_ms = {}, cutoff_ms, _up(cutoff_ms)
            self._built_at_ms = now_ms
            self._move(conn, cutoff_ms, self._until_ms, 1)
        self._marks = marks
        self._move(conn, self._until_ms, closed_ms, 1)
        self._move(conn, self._from_ms, cutoff_ms, -1)
        self._from_ms, self._until_ms = cutoff_ms, closed_ms
        totals = {route_id: list(sums) for route_id, sums in self._closed.items() if sums[0]}
        _add(totals, queries.rows(conn, _BUCKETS, since=closed_ms, until=FOREVER_MS), 1)
        return {route_id: tuple(sums) for route_id, sums in totals.items()}

    def _stale(self, marks: set[int], cutoff_ms: int, closed_ms: int, now_ms: int) -> bool:
        built = self._built_at_ms
        return (
            built is None
            or not marks <= self._marks
            or not self._from_ms <= cutoff_ms <= self._until_ms <= closed_ms
            or now_ms - built >= _REBUILD_MS
        )

    def _move(self, conn: Connection, since_ms: int, until_ms: int, sign: int) -> None:
        """Add or take away [since, until): whole buckets where there are any, rows at both ends."""
        first, last = _up(since_ms), _down(until_ms)
        if first > last:
            first = last = until_ms
        for query, start, end in ((RAW, since_ms, first), (_BUCKETS, first, last), (RAW, last, until_ms)):
            if start < end:
                _add(self._closed, queries.rows(conn, query, since=start, until=end), sign)


def raw(conn: Connection, now_ms: int, window_ms: int) -> Totals:
    """Give the same sums by the plain query over the rows."""
    found = queries.rows(conn, RAW, since=now_ms - max(0, window_ms), until=FOREVER_MS)
    return {row[0]: tuple(map(int, row[1:])) for row in found}


def _add(totals: dict[int, list[int]], found: Iterable[Any], sign: int) -> None:
    for route_id, *sums in found:
        total = totals.get(route_id)
        if total is None:
            total = totals[route_id] = [0] * len(_SUMS)
        for at, value in enumerate(sums):
            total[at] += sign * int(value)


def _down(instant_ms: int) -> int:
    return instant_ms // BUCKET_MS * BUCKET_MS


def _up(instant_ms: int) -> int:
    return -(-instant_ms // BUCKET_MS) * BUCKET_MS
