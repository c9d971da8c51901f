"""What must hold between the tables, read from the rows: buckets and costs equal their attempts.

Budgets equal what calls were billed, and what re-ratings moved since.
"""

from __future__ import annotations

from typing import Final

import msgspec
import sqlalchemy as sa

from turnout.ledger import retention, rows
from turnout.ledger.reader import Reader

_MOST: Final = 10
_BUCKETS = sa.text(
    "SELECT bucket_ms, route_id, SUM(n), SUM(counted_n), SUM(ok_n), SUM(e2e_sum_ms), SUM(ttft_sum_ms) FROM ("
    " SELECT bucket_ms, route_id, n, counted_n, ok_n, e2e_sum_ms, ttft_sum_ms FROM attempt_buckets"
    " WHERE bucket_ms >= :since UNION ALL"
    " SELECT ended_at_ms - ended_at_ms % 10000, route_id, -1, CASE WHEN counted THEN -1 ELSE 0 END,"
    " CASE WHEN ok THEN -1 ELSE 0 END, CASE WHEN ok THEN -COALESCE(e2e_ms, 0) ELSE 0 END,"
    " CASE WHEN ok THEN -COALESCE(ttft_ms, 0) ELSE 0 END"
    " FROM attempts WHERE ended_at_ms >= :since AND route_id IS NOT NULL) u GROUP BY bucket_ms, route_id"
    " HAVING SUM(n) <> 0 OR SUM(counted_n) <> 0 OR SUM(ok_n) <> 0 OR SUM(e2e_sum_ms) <> 0 OR SUM(ttft_sum_ms) <> 0"
    " LIMIT :most"
)
_COSTS = sa.text(
    "SELECT c.call_id FROM calls c JOIN attempts a ON a.call_id = c.call_id WHERE c.recovered = :no"
    " AND c.cost_nusd IS NOT NULL GROUP BY c.call_id, c.cost_nusd HAVING COALESCE(SUM(a.cost_nusd), 0) <> c.cost_nusd"
    " LIMIT :most"
)
_SPENT = sa.text(
    "SELECT tenant, key_id, day, SUM(nusd) FROM (SELECT tenant, key_id, ended_at_ms - ended_at_ms % 86400000 AS day,"
    " cost_nusd AS nusd FROM calls WHERE ended_at_ms >= :since AND cost_nusd > 0"
    " UNION ALL SELECT c.tenant, c.key_id, c.ended_at_ms - c.ended_at_ms % 86400000, m.moved_nusd FROM budget_moves m"
    " JOIN calls c ON c.call_id = m.call_id WHERE m.ended_at_ms >= :since"
    " UNION ALL SELECT tenant, key_id, day_ms, -spent_nusd FROM budgets WHERE day_ms >= :since) s"
    " GROUP BY tenant, key_id, day HAVING SUM(nusd) <> 0 LIMIT :most"
)
_OLDEST = sa.text("SELECT MIN(ended_at_ms) FROM calls")
_COUNTS = sa.text("SELECT (SELECT COUNT(*) FROM calls), (SELECT COUNT(*) FROM attempts), (SELECT COUNT(*) FROM routes)")


class Report(msgspec.Struct, frozen=True):
    """Rows counted, and what does not hold: at most ten of a kind."""

    calls: int
    attempts: int
    routes: int
    problems: list[str]


def run(url: str, now_ms: int) -> Report:
    """Look at the last 48 hours of buckets and at every priced call.

    Raises:
        sqlalchemy.exc.DBAPIError: the database does not answer within 10 s per question.
    """
    # The oldest bucket whole: its rows may be older than the instant at which buckets are given up.
    since_ms = (now_ms - retention.BUCKETS_MS) // rows.BUCKET_MS * rows.BUCKET_MS + rows.BUCKET_MS
    reader = Reader(url)
    try:
        with reader.connect() as conn, conn.begin():
            calls, attempts, routes = conn.execute(_COUNTS).one()
            buckets = conn.execute(_BUCKETS, {"since": since_ms, "most": _MOST}).all()
            no = sa.bindparam("no", value=False, type_=sa.Boolean())
            # Of the oldest day calls may be deleted already, and of all days where none is left; of today none is.
            today, oldest = now_ms // rows.DAY_MS, conn.execute(_OLDEST).scalar()
            since_day_ms = (today if oldest is None else min(-(-oldest // rows.DAY_MS), today)) * rows.DAY_MS
            spent = conn.execute(_SPENT, {"since": since_day_ms, "most": _MOST}).all()
            costs = conn.execute(_COSTS.bindparams(no), {"most": _MOST}).scalars().all()
    finally:
        reader.close()
    problems = [
        f"bucket {row[0]} of route {row[1]} differs from its rows by {tuple(map(int, row[2:]))}" for row in buckets
    ]
    problems += [
        f"budget of tenant {row[0]!r}, key {row[1]!r}, day {row[2]}: differs from its calls by {int(row[3])} nano-USD"
        for row in spent
    ]
    problems += [f"call {call_id}: its cost is not the sum of its attempts" for call_id in costs]
    return Report(calls, attempts, routes, problems)
