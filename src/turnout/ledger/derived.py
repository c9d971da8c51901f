"""Every statistic is a query over rows; `now_ms` is a parameter, and both databases and plain Python agree exactly.

A window includes its lower bound and has no upper one. Divisions happen here, in Python, over sums of integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from turnout.core.facts import Percentiles, RouteKey, RouteStats, Streak
from turnout.ledger import health, queries, window

if TYPE_CHECKING:
    from turnout.ledger.queries import Connection

Group = TypeVar("Group")

ROUTE_WINDOW_MS: Final = 900_000
ROUTE_WINDOW_MAX_MS: Final = 3_600_000
TOOL_WINDOW_MS: Final = 1_800_000
TOOL_MIN_SAMPLES: Final = 20
DAY_MS: Final = 86_400_000
_SESSIONS_MAX: Final = 100_000
_STATS_N: Final = 7  # the sums of a RouteStats; two about tools follow

FAILED: Final = "CASE WHEN outcome IN ('completed', 'cached') THEN 0 ELSE 1 END"
"""1 for a call that its client got no answer to."""
_ROUTES = "SELECT route_id, provider, model, replica FROM routes"
_HOT = (
    "SELECT r.provider, r.model, r.replica FROM calls c JOIN routes r ON r.route_id = c.route_id"
    " WHERE c.tenant = :tenant AND c.session_id = :session AND c.outcome = 'completed'"
    " ORDER BY c.ended_at_ms DESC, c.seq DESC LIMIT 1"
)
_TOTALS = (
    f"SELECT COUNT(*) AS calls, COALESCE(SUM({FAILED}), 0) AS failed,"  # noqa: S608 - a constant of our own
    " COALESCE(SUM(tokens_in), 0) AS tokens_in, COALESCE(SUM(tokens_out), 0) AS tokens_out,"
    " COALESCE(SUM(tokens_cached), 0) AS tokens_cached, COALESCE(SUM(cost_nusd), 0) AS cost_nusd,"
    " COUNT(cost_nusd) AS priced_n, MIN(started_at_ms) AS first_at_ms, MAX(ended_at_ms) AS last_at_ms"
    " FROM calls WHERE tenant = :tenant AND session_id = :session"
)
_WARM = (
    "SELECT model, provider, replica, ended_at_ms FROM (SELECT r.model, r.provider, r.replica, c.ended_at_ms,"
    " ROW_NUMBER() OVER (PARTITION BY r.model ORDER BY c.ended_at_ms DESC, c.seq DESC) AS place"
    " FROM calls c JOIN routes r ON r.route_id = c.route_id"
    " WHERE c.tenant = :tenant AND c.session_id = :session AND c.outcome = 'completed') w"
    " WHERE place = 1 ORDER BY model"
)
_OWNERS = (
    "SELECT tenant FROM (SELECT tenant, started_at_ms, seq,"
    " ROW_NUMBER() OVER (PARTITION BY tenant ORDER BY started_at_ms, seq) AS place"
    " FROM calls WHERE session_id = :session) o WHERE place = 1 ORDER BY started_at_ms, seq"
)
_RECENT_HOT = (
    "SELECT tenant, session_id, provider, model, replica, ended_at_ms FROM (SELECT c.tenant, c.session_id, r.provider,"
    " r.model, r.replica, c.ended_at_ms, c.seq, ROW_NUMBER() OVER (PARTITION BY c.tenant, c.session_id"
    " ORDER BY c.ended_at_ms DESC, c.seq DESC) AS place FROM calls c JOIN routes r ON r.route_id = c.route_id"
    " WHERE c.ended_at_ms >= :since AND c.session_id IS NOT NULL AND c.outcome = 'completed') h"
    " WHERE place = 1 ORDER BY ended_at_ms DESC, seq DESC LIMIT :most"
)
_COSTS = (
    "SELECT r.provider, r.model, COUNT(a.list_nusd) AS n,"
    " SUM(CASE WHEN a.list_nusd IS NOT NULL AND a.cost_basis = 'reported' THEN 1 ELSE 0 END) AS n_reported,"
    " SUM(CASE WHEN a.list_nusd IS NOT NULL THEN COALESCE(a.tokens_in, 0) ELSE 0 END) AS tokens_in,"
    " SUM(CASE WHEN a.list_nusd IS NOT NULL THEN COALESCE(a.tokens_out, 0) ELSE 0 END) AS tokens_out,"
    " SUM(CASE WHEN a.list_nusd IS NOT NULL THEN a.cost_nusd ELSE 0 END) AS cost_nusd,"
    " COALESCE(SUM(a.list_nusd), 0) AS list_nusd, COUNT(*) - COUNT(a.list_nusd) AS n_without_list"
    " FROM attempts a JOIN routes r ON r.route_id = a.route_id"
    " WHERE a.ended_at_ms >= :since AND a.cost_nusd IS NOT NULL AND a.cost_basis IN ('reported', 'computed')"
    " GROUP BY r.provider, r.model ORDER BY r.provider, r.model"
)
_SPENT = "SELECT tenant, key_id, day_ms, spent_nusd FROM budgets WHERE day_ms >= :since"
_NEWEST = (
    "SELECT n.route_id, a.ok FROM (SELECT r.route_id, (SELECT x.seq FROM attempts x WHERE x.route_id = r.route_id"
    " AND x.ended_at_ms >= :since ORDER BY x.ended_at_ms DESC, x.seq DESC LIMIT 1) AS seq FROM routes r) n"
    " JOIN attempts a ON a.seq = n.seq"
)
_RESULTS = (
    "SELECT ended_at_ms, seq, ok, error_kind, http_status FROM attempts WHERE route_id = :route_id"
    " AND ended_at_ms >= :since ORDER BY ended_at_ms DESC, seq DESC LIMIT :most"
)
# Nearest rank, exact and the same everywhere: the ⌈p·n⌉-th smallest.
_PERCENTILES = (
    "SELECT value, n, place FROM (SELECT value, COUNT(*) OVER () AS n, ROW_NUMBER() OVER (ORDER BY value) AS place"
    " FROM (SELECT CASE WHEN :ttft = 1 THEN ttft_ms ELSE e2e_ms END AS value FROM attempts"
    " WHERE route_id = :route AND ended_at_ms >= :since AND ok) v WHERE value IS NOT NULL) p"
    " WHERE place = (n + 1) / 2 OR place = (19 * n + 19) / 20"
)
_CALIBRATION = (
    "SELECT selected_model AS model, COUNT(*) AS n, SUM(est_tokens) AS estimated, SUM(tokens_in) AS actual FROM calls"
    " WHERE ended_at_ms >= :since AND usage_source = 'engine' AND est_tokens > 0 AND tokens_in > 0"
    " GROUP BY selected_model ORDER BY selected_model"
)


class SessionTotals(msgspec.Struct, frozen=True):
    """What a session used, failed calls included."""

    calls: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    cost_nusd: int = 0
    priced_n: int = 0
    first_at_ms: int | None = None
    last_at_ms: int | None = None


class CostRow(msgspec.Struct, frozen=True):
    """Spend on one model of one provider; sums leave out rows without a list price, which are counted apart."""

    provider: str
    model: str
    n: int
    n_reported: int
    tokens_in: int
    tokens_out: int
    cost_nusd: int
    list_nusd: int
    n_without_list: int = 0


class CostAccuracy(msgspec.Struct, frozen=True):
    """Measured spend against list price, per provider. Never read by routing."""

    provider: str
    n: int
    n_reported: int
    signal: str
    deviation: float
    warn: bool
    measured_nusd: int
    expected_nusd: int
    usd_per_mtok: float


class Calibration(msgspec.Struct, frozen=True):
    """Estimated against actual prompt tokens of one model."""

    model: str
    n: int
    estimated: int
    actual: int


def routes(conn: Connection) -> dict[int, RouteKey]:
    """Give the key of each route id."""
    return {row[0]: RouteKey(*row[1:]) for row in queries.rows(conn, _ROUTES)}


def route_stats(conn: Connection, now_ms: int, window_ms: int = ROUTE_WINDOW_MS) -> dict[RouteKey, RouteStats]:
    """Give the sums of every route with an attempt in the window; at most an hour."""
    totals = window.Window(min(window_ms, ROUTE_WINDOW_MAX_MS)).refresh(conn, now_ms)
    return stats_of(totals, routes(conn))


def stats_of(totals: window.Totals, keys: Mapping[int, RouteKey]) -> dict[RouteKey, RouteStats]:
    """Name the sums of a window by route."""
    return {keys[route_id]: RouteStats(*sums[:_STATS_N]) for route_id, sums in totals.items()}


def merged(routes: Mapping[RouteKey, RouteStats], by: Callable[[RouteKey], Group]) -> dict[Group, RouteStats]:
    """Merge routes of a model, provider or pool: add the sums, then divide."""
    found: dict[Group, RouteStats] = {}
    for key, stats in routes.items():
        group = by(key)
        before = found.get(group)
        found[group] = stats if before is None else before.plus(stats)
    return found


def tool_incapable_routes(
    conn: Connection, now_ms: int, window_ms: int = TOOL_WINDOW_MS, min_samples: int = TOOL_MIN_SAMPLES
) -> frozenset[RouteKey]:
    """Give the routes that were asked for tools often enough and never emitted a call. Failed attempts say nothing."""
    return incapable(window.Window(window_ms).refresh(conn, now_ms), routes(conn), min_samples)


def incapable(totals: window.Totals, keys: Mapping[int, RouteKey], min_samples: int) -> frozenset[RouteKey]:
    """Decide from the sums of a window."""
    return frozenset(
        keys[route_id] for route_id, sums in totals.items() if sums[_STATS_N] >= min_samples and not sums[_STATS_N + 1]
    )


def hot_route(conn: Connection, tenant: str, session: str) -> RouteKey | None:
    """Give the route of the newest completed call of a session."""
    row = queries.first(conn, _HOT, tenant=tenant, session=session)
    return RouteKey(*row) if row is not None else None


def recent_hot_routes(
    conn: Connection, now_ms: int, window_ms: int = 3_600_000, most: int = _SESSIONS_MAX
) -> list[tuple[str, str, RouteKey, int]]:
    """Give (tenant, session, hot route, instant) of the sessions of the last hour, newest first: to start with."""
    found = queries.rows(conn, _RECENT_HOT, since=now_ms - max(0, window_ms), most=most)
    return [(row[0], row[1], RouteKey(*row[2:5]), row[5]) for row in found]


def session_totals(conn: Connection, tenant: str, session: str) -> SessionTotals:
    """Give what a session of a tenant used."""
    row = queries.first(conn, _TOTALS, tenant=tenant, session=session)
    values: list[Any] = [value if value is None else int(value) for value in row]
    return SessionTotals(*values)


def session_warm(conn: Connection, tenant: str, session: str) -> list[tuple[RouteKey, int]]:
    """Give per model the newest completed route of a session and its instant."""
    found = queries.rows(conn, _WARM, tenant=tenant, session=session)
    return [(RouteKey(provider, model, replica), at_ms) for model, provider, replica, at_ms in found]


def session_owners(conn: Connection, session: str) -> list[str]:
    """Give the tenants that used a session id, the first to write first."""
    return [row[0] for row in queries.rows(conn, _OWNERS, session=session)]


def spent(conn: Connection, now_ms: int, days: int) -> list[tuple[str, str, int, int]]:
    """Give what keys have spent: (tenant, key, day, nano-USD) of the last days, today included."""
    found = queries.rows(conn, _SPENT, since=(now_ms // DAY_MS - days + 1) * DAY_MS)
    return [(row[0], row[1], row[2], int(row[3])) for row in found]


def cost_by_route(conn: Connection, now_ms: int, window_ms: int = DAY_MS) -> list[CostRow]:
    """Give the spend per (provider, model) that has a price of its own in the window."""
    found = queries.rows(conn, _COSTS, since=now_ms - max(0, window_ms))
    return [CostRow(row[0], row[1], *map(int, row[2:])) for row in found]


def cost_accuracy(rows: Iterable[CostRow], min_calls: int = 20, threshold: float = 0.15) -> list[CostAccuracy]:
    """Compare measured with expected spend per provider; the furthest off first.

    A warning needs bills that the provider itself reported; all comparisons are between integers.
    """
    found: dict[str, CostRow] = {}
    for row in rows:
        before = found.get(row.provider)
        values = msgspec.structs.astuple(row)[2:]
        if before is not None:
            values = tuple(a + b for a, b in zip(values, msgspec.structs.astuple(before)[2:], strict=True))
        found[row.provider] = CostRow(row.provider, "", *values)
    made: list[CostAccuracy] = []
    per_mille = round(threshold * 1000)
    for total in found.values():
        tokens = total.tokens_in + total.tokens_out
        if total.list_nusd <= 0 or not tokens:
            continue
        reported = 2 * total.n_reported >= total.n
        far = 1000 * abs(total.cost_nusd - total.list_nusd) >= per_mille * total.list_nusd
        made.append(
            CostAccuracy(
                provider=total.provider,
                n=total.n,
                n_reported=total.n_reported,
                signal="reported" if reported else "derived",
                deviation=_divided(total.cost_nusd, total.list_nusd, 3),
                warn=reported and total.n >= min_calls and far,
                measured_nusd=total.cost_nusd,
                expected_nusd=total.list_nusd,
                usd_per_mtok=_divided(total.cost_nusd, tokens * 1000, 4),
            )
        )
    return sorted(made, key=lambda row: (-abs(row.deviation - 1), row.provider))


def failure_streaks(
    conn: Connection, now_ms: int, window_ms: int = DAY_MS
) -> tuple[dict[RouteKey, Streak], dict[tuple[str, str], Streak]]:
    """Give the streaks of routes and of endpoints (provider, replica) that have any evidence."""
    since_ms = now_ms - max(0, window_ms)
    keys = routes(conn)
    newest_ok = {route_id: bool(ok) for route_id, ok in queries.rows(conn, _NEWEST, since=since_ms)}
    by_route: dict[RouteKey, Streak] = {}
    endpoints: dict[tuple[str, str], list[int]] = {}
    for route_id in newest_ok:
        endpoints.setdefault((keys[route_id].provider, keys[route_id].replica), []).append(route_id)
    by_endpoint: dict[tuple[str, str], Streak] = {}
    for endpoint, ids in endpoints.items():
        # A route whose newest result is a success needs no more of its rows, unless a sibling failed.
        if all(newest_ok[route_id] for route_id in ids):
            by_endpoint[endpoint] = health.HEALTHY
            by_route.update((keys[route_id], health.HEALTHY) for route_id in ids)
            continue
        merged_results: list[health.Result] = []
        for route_id in ids:
            results = _results(conn, route_id, since_ms)
            merged_results += results
            found = health.streak(results, now_ms)
            if found is not None:
                by_route[keys[route_id]] = found
        merged_results.sort(key=lambda result: (result.ended_at_ms, result.seq), reverse=True)
        whole = health.streak(merged_results, now_ms, endpoint=True)
        if whole is not None:
            by_endpoint[endpoint] = whole
    return by_route, by_endpoint


def percentiles(conn: Connection, route_id: int, now_ms: int, window_ms: int = ROUTE_WINDOW_MS) -> Percentiles:
    """Give p50 and p95 of one route over the rows themselves: some ms for a thousand, so rarely, in the background."""
    found: dict[str, int] = {}
    for name, ttft in (("e2e", 0), ("ttft", 1)):
        since_ms = now_ms - max(0, window_ms)
        for value, n, place in queries.rows(conn, _PERCENTILES, route=route_id, since=since_ms, ttft=ttft):
            if place == (n + 1) // 2:
                found[f"{name}_p50_ms"] = value
            if place == (19 * n + 19) // 20:
                found[f"{name}_p95_ms"] = value
    return Percentiles(**found)


def calibration(conn: Connection, now_ms: int, window_ms: int = DAY_MS) -> list[Calibration]:
    """Compare the prompt tokens that were estimated with those that engines counted, per model."""
    found = queries.rows(conn, _CALIBRATION, since=now_ms - max(0, window_ms))
    return [Calibration(row[0], *map(int, row[1:])) for row in found]


def _results(conn: Connection, route_id: int, since_ms: int) -> list[health.Result]:
    found = queries.rows(conn, _RESULTS, route_id=route_id, since=since_ms, most=health.SAMPLE)
    return [health.Result(row[0], row[1], bool(row[2]), row[3], row[4]) for row in found]


def _divided(value: int, by: int, digits: int) -> float:
    """Divide exactly, round half up."""
    scale: int = 10**digits
    return (2 * value * scale + by) // (2 * by) / scale
