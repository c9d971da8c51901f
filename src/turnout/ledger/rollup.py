"""Sums per hour, so that a month of use is read in a moment (ledger §8): closed hours only, each replaced as a whole.

What is covered is one stretch without gaps. A call recorded into a covered hour has left a mark in the transaction of
its row, and the hour is made again; so covered hours and the calls of other hours always give the sums of all calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout.ledger import queries

if TYPE_CHECKING:
    from turnout.ledger.queries import Connection

HOUR_MS: Final = 3_600_000
CLOSES_MS: Final = 60_000
"""An hour is summed up this long after its end."""
_DAY_MS: Final = 86_400_000
_STATE = "SELECT covered_from_ms, covered_until_ms FROM rollup_state WHERE name = 'usage_hourly'"
_NEXT_CALL = "SELECT MIN(ended_at_ms) FROM calls WHERE ended_at_ms >= :since"
_CALL_BEFORE = "SELECT MAX(ended_at_ms) FROM calls WHERE ended_at_ms < :until"
_DIRTY = "SELECT MIN(hour_ms) FROM dirty_hours WHERE hour_ms < :until"
_CLEAN = "DELETE FROM dirty_hours WHERE hour_ms = :hour"
_CLEAR = "DELETE FROM usage_hourly WHERE hour_ms = :hour"
_FILL = (
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
_COVER = (
    "INSERT INTO rollup_state VALUES ('usage_hourly', :since, :until) ON CONFLICT (name) DO UPDATE"
    " SET covered_from_ms = excluded.covered_from_ms, covered_until_ms = excluded.covered_until_ms"
)
_DIRTY_WITHIN = "SELECT COUNT(*) FROM dirty_hours WHERE hour_ms >= :since AND hour_ms < :until"
_SERVER_LIMIT = "SET LOCAL statement_timeout = '30s'"


def run(conn: Connection, now_ms: int, calls_days: int) -> bool:
    """Sum up at most one hour, in one transaction; True while another one may wait.

    Args:
        conn: the writing connection, between transactions.
        now_ms: decides which hours are closed.
        calls_days: how long calls are kept; an hour whose calls may be gone is never made again.

    """
    closed_ms = (now_ms - CLOSES_MS) // HOUR_MS * HOUR_MS
    with queries.transaction(conn):
        if queries.on_server(conn):
            queries.change(conn, _SERVER_LIMIT)
        covered = coverage(conn)
        if covered is None:
            first = queries.value(conn, _NEXT_CALL, since=0)
            if first is None or first >= closed_ms:
                return False
            since_ms = until_ms = first // HOUR_MS * HOUR_MS
        else:
            since_ms, until_ms = covered
        if until_ms < closed_ms:
            return _forward(conn, since_ms, until_ms, closed_ms)
        dirty = queries.value(conn, _DIRTY, until=until_ms)
        if dirty is None:
            return False
        if dirty < now_ms // HOUR_MS * HOUR_MS - (calls_days - 1) * _DAY_MS:
            queries.change(conn, _CLEAN, hour=dirty)
        elif dirty < since_ms:
            _backward(conn, since_ms, until_ms)
        else:
            _replace(conn, dirty)
        return True


def coverage(conn: Connection) -> tuple[int, int] | None:
    """Give the stretch [from, until) that is summed up; None before the first hour is."""
    row = queries.first(conn, _STATE)
    return (row[0], row[1]) if row is not None else None


def whole_hours(conn: Connection, since_ms: int, until_ms: int) -> tuple[int, int]:
    """Give the part of [since, until) that may be read from the sums; (since, since) when none may."""
    covered = coverage(conn)
    if covered is None:
        return since_ms, since_ms
    first = -(-max(since_ms, covered[0]) // HOUR_MS) * HOUR_MS
    last = min(until_ms, covered[1]) // HOUR_MS * HOUR_MS
    if first >= last or queries.value(conn, _DIRTY_WITHIN, since=first, until=last):
        return since_ms, since_ms
    return first, last


def _forward(conn: Connection, since_ms: int, until_ms: int, closed_ms: int) -> bool:
    """Cover the next hour, and the hours without a call before it."""
    found = queries.value(conn, _NEXT_CALL, since=until_ms)
    hour = min(found // HOUR_MS * HOUR_MS if found is not None else closed_ms, closed_ms)
    if hour < closed_ms:
        _replace(conn, hour)
        hour += HOUR_MS
    queries.change(conn, _COVER, since=since_ms, until=hour)
    return True


def _backward(conn: Connection, since_ms: int, until_ms: int) -> None:
    """Cover the last hour with a call before the stretch: a call came late into one of those."""
    found = queries.value(conn, _CALL_BEFORE, until=since_ms)
    hour = found // HOUR_MS * HOUR_MS
    _replace(conn, hour)
    queries.change(conn, _COVER, since=hour, until=until_ms)


def _replace(conn: Connection, hour: int) -> None:
    # The mark goes first: who records into this hour meanwhile waits for it and leaves a new one.
    queries.change(conn, _CLEAN, hour=hour)
    queries.change(conn, _CLEAR, hour=hour)
    queries.change(conn, _FILL, hour=hour, until=hour + HOUR_MS)
