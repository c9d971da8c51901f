"""Sums per hour, so that a month of use is read in a moment (ledger §8): closed hours only, each replaced as a whole.

What is covered is one stretch without gaps. A call recorded into a covered hour has left a mark in the transaction of
its row, and the hour is made again; so covered hours and the calls of other hours always give the sums of all calls.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

HOUR_MS: Final = 3_600_000
CLOSES_MS: Final = 60_000
"""An hour is summed up this long after its end."""
_DAY_MS: Final = 86_400_000
_STATE = sa.text("SELECT covered_from_ms, covered_until_ms FROM rollup_state WHERE name = 'usage_hourly'")
_NEXT_CALL = sa.text("SELECT MIN(ended_at_ms) FROM calls WHERE ended_at_ms >= :since")
_CALL_BEFORE = sa.text("SELECT MAX(ended_at_ms) FROM calls WHERE ended_at_ms < :until")
_DIRTY = sa.text("SELECT MIN(hour_ms) FROM dirty_hours WHERE hour_ms < :until")
_CLEAN = sa.text("DELETE FROM dirty_hours WHERE hour_ms = :hour")
_CLEAR = sa.text("DELETE FROM usage_hourly WHERE hour_ms = :hour")
_FILL = sa.text(
    "INSERT INTO usage_hourly (hour_ms, tenant, key_id, provider, model, requested_model, outcome, calls, tokens_in,"
    " tokens_out, tokens_cached, cost_nusd, priced_n, e2e_n, e2e_sum_ms, last_at_ms)"
    " SELECT CAST(:hour AS BIGINT), tenant, key_id, provider, model, requested, outcome, COUNT(*),"
    " COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0), COALESCE(SUM(tokens_cached), 0),"
    " COALESCE(SUM(cost_nusd), 0), COUNT(cost_nusd), COUNT(e2e_ms), SUM(e2e_ms), MAX(ended_at_ms) FROM ("
    " SELECT c.tenant, c.key_id, COALESCE(r.provider, '') AS provider, c.selected_model AS model,"
    # Names of models that do not exist are the callers' inventions: as keys they would be without a bound.
    " CASE WHEN c.outcome = 'model_not_found' THEN '' ELSE c.requested_model END AS requested, c.outcome, c.tokens_in,"
    " c.tokens_out, c.tokens_cached, c.cost_nusd, c.e2e_ms, c.ended_at_ms"
    " FROM calls c LEFT JOIN routes r ON r.route_id = c.route_id WHERE c.ended_at_ms >= :hour"
    " AND c.ended_at_ms < :until) h GROUP BY tenant, key_id, provider, model, requested, outcome"
)
_COVER = sa.text(
    "INSERT INTO rollup_state VALUES ('usage_hourly', :since, :until) ON CONFLICT (name) DO UPDATE"
    " SET covered_from_ms = excluded.covered_from_ms, covered_until_ms = excluded.covered_until_ms"
)
_DIRTY_WITHIN = sa.text("SELECT COUNT(*) FROM dirty_hours WHERE hour_ms >= :since AND hour_ms < :until")
_SERVER_LIMIT = "SET LOCAL statement_timeout = '30s'"


def run(conn: sa.Connection, now_ms: int, calls_days: int) -> bool:
    """Sum up at most one hour, in one transaction; True while another one may wait.

    Args:
        conn: the writing connection, between transactions.
        now_ms: decides which hours are closed.
        calls_days: how long calls are kept; an hour whose calls may be gone is never made again.

    """
    closed_ms = (now_ms - CLOSES_MS) // HOUR_MS * HOUR_MS
    with conn.begin():
        if conn.dialect.name == "postgresql":
            conn.exec_driver_sql(_SERVER_LIMIT)
        covered = coverage(conn)
        if covered is None:
            first = conn.execute(_NEXT_CALL, {"since": 0}).scalar()
            if first is None or first >= closed_ms:
                return False
            since_ms = until_ms = first // HOUR_MS * HOUR_MS
        else:
            since_ms, until_ms = covered
        if until_ms < closed_ms:
            return _forward(conn, since_ms, until_ms, closed_ms)
        dirty = conn.execute(_DIRTY, {"until": until_ms}).scalar()
        if dirty is None:
            return False
        if dirty < now_ms // HOUR_MS * HOUR_MS - (calls_days - 1) * _DAY_MS:
            conn.execute(_CLEAN, {"hour": dirty})
        elif dirty < since_ms:
            _backward(conn, since_ms, until_ms)
        else:
            _replace(conn, dirty)
        return True


def coverage(conn: sa.Connection) -> tuple[int, int] | None:
    """Give the stretch [from, until) that is summed up; None before the first hour is."""
    row = conn.execute(_STATE).one_or_none()
    return (row[0], row[1]) if row is not None else None


def whole_hours(conn: sa.Connection, since_ms: int, until_ms: int) -> tuple[int, int]:
    """Give the part of [since, until) that may be read from the sums; (since, since) when none may."""
    covered = coverage(conn)
    if covered is None:
        return since_ms, since_ms
    first = -(-max(since_ms, covered[0]) // HOUR_MS) * HOUR_MS
    last = min(until_ms, covered[1]) // HOUR_MS * HOUR_MS
    if first >= last or conn.execute(_DIRTY_WITHIN, {"since": first, "until": last}).scalar_one():
        return since_ms, since_ms
    return first, last


def _forward(conn: sa.Connection, since_ms: int, until_ms: int, closed_ms: int) -> bool:
    """Cover the next hour, and the hours without a call before it."""
    found = conn.execute(_NEXT_CALL, {"since": until_ms}).scalar()
    hour = min(found // HOUR_MS * HOUR_MS if found is not None else closed_ms, closed_ms)
    if hour < closed_ms:
        _replace(conn, hour)
        hour += HOUR_MS
    conn.execute(_COVER, {"since": since_ms, "until": hour})
    return True


def _backward(conn: sa.Connection, since_ms: int, until_ms: int) -> None:
    """Cover the last hour with a call before the stretch: a call came late into one of those."""
    found: Any = conn.execute(_CALL_BEFORE, {"until": since_ms}).scalar()
    hour = found // HOUR_MS * HOUR_MS
    _replace(conn, hour)
    conn.execute(_COVER, {"since": hour, "until": until_ms})


def _replace(conn: sa.Connection, hour: int) -> None:
    # The mark goes first: who records into this hour meanwhile waits for it and leaves a new one.
    conn.execute(_CLEAN, {"hour": hour})
    conn.execute(_CLEAR, {"hour": hour})
    conn.execute(_FILL, {"hour": hour, "until": hour + HOUR_MS})
