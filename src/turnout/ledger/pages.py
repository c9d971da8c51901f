"""What the endpoints of ledger §9 answer, as documents: amounts as `…_usd` decimals, in exports `…_nusd` integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
import sqlalchemy as sa

from turnout.core.facts import Percentiles, RouteStats, StatsSnapshot, Streak
from turnout.core.pricing import usd
from turnout.ledger import derived, prices, rollup
from turnout.ledger.reader import Page, Reader, Record, decoded, encoded
from turnout.ledger.route_key import encode_key

if TYPE_CHECKING:
    from turnout.core.options import Ledger as Options

_ACCURACY_S: Final = (3_600, 7_776_000)
_USAGE_MODELS_MAX: Final = 1_000
_SESSIONS = sa.text(
    f"SELECT tenant, session_id, COUNT(*) AS calls, SUM({derived.FAILED}) AS failed,"  # noqa: S608 - a constant of our own
    " COALESCE(SUM(tokens_in), 0) AS tokens_in, COALESCE(SUM(tokens_out), 0) AS tokens_out,"
    " COALESCE(SUM(cost_nusd), 0) AS cost_nusd, COUNT(cost_nusd) AS priced, MIN(started_at_ms) AS first_at_ms,"
    " MAX(ended_at_ms) AS last_at_ms, MAX(seq) AS seq FROM calls WHERE ended_at_ms >= :since AND session_id IS NOT NULL"
    " GROUP BY tenant, session_id HAVING (MAX(ended_at_ms), MAX(seq)) < (:before_ms, :before_seq)"
    " ORDER BY last_at_ms DESC, seq DESC LIMIT :most"
)
_NEWEST_OF = sa.text(
    "SELECT call_id FROM calls WHERE tenant = :tenant AND session_id = :session"
    " ORDER BY ended_at_ms DESC, seq DESC LIMIT 1024"
)
_SUMS = (
    "COALESCE(SUM(calls), 0) AS calls, COALESCE(SUM(failed), 0) AS failed, COALESCE(SUM(tokens_in), 0) AS tokens_in,"
    " COALESCE(SUM(tokens_out), 0) AS tokens_out, COALESCE(SUM(tokens_cached), 0) AS tokens_cached,"
    " COALESCE(SUM(cost_nusd), 0) AS cost_nusd, COALESCE(SUM(priced), 0) AS priced"
)
_WHOSE = " WHERE tenant = :tenant AND (CAST(:key AS TEXT) IS NULL OR key_id = :key)"
_CALLS = "".join(
    (
        "SELECT selected_model AS model, ended_at_ms AS at_ms, 1 AS calls,",
        f" {derived.FAILED} AS failed, tokens_in, tokens_out, tokens_cached,",
        *(" cost_nusd, CASE WHEN cost_nusd IS NULL THEN 0 ELSE 1 END AS priced FROM calls", _WHOSE),
    )
)
# Whole hours that are summed up, and the calls before and after them (ledger §8).
_OF_WINDOW = "".join(
    (
        f" FROM (SELECT model, hour_ms AS at_ms, calls, calls * {derived.FAILED} AS failed",
        ", tokens_in, tokens_out, tokens_cached, cost_nusd, priced_n AS priced FROM usage_hourly",
        *(_WHOSE, " AND hour_ms >= :first AND hour_ms < :last UNION ALL "),
        *(_CALLS, " AND ended_at_ms >= :since AND ended_at_ms < :first UNION ALL "),
        *(_CALLS, " AND ended_at_ms >= :last AND ended_at_ms < :until) u"),
    )
)
_USAGE = sa.text("SELECT " + _SUMS + _OF_WINDOW)
_BY_MODEL = sa.text("SELECT model, " + _SUMS + _OF_WINDOW + " GROUP BY model ORDER BY 2 DESC, 1 LIMIT :most")
_BY_DAY = sa.text("SELECT at_ms / 86400000 AS day, " + _SUMS + _OF_WINDOW + " GROUP BY 1 ORDER BY 1")


class Pages:
    """Documents over one ledger. Every method may block up to 10 s: call it from a worker thread."""

    def __init__(
        self,
        options: Options,
        *,
        clock_ms: Callable[[], int],
        snapshot: Callable[[], StatsSnapshot] = StatsSnapshot,
        stats: Callable[[], Mapping[str, int | float]] = dict,
    ) -> None:
        """Read the ledger of `options`; the rest is what the running router knows beside it."""
        self._options = options
        self._clock_ms = clock_ms
        self._snapshot = snapshot
        self._stats = stats
        self.reader = Reader(options.url)

    def rows(self, table: str, filters: Mapping[str, str], limit: int, cursor: str) -> dict[str, Any]:
        """Give calls or attempts, newest first."""
        page = self.reader.newest(table, filters, limit, cursor)
        return {table: [_in_usd(row) for row in page.rows], "cursor": page.cursor}

    def session(self, tenant: str, session: str, in_flight_ms: Sequence[int] = ()) -> dict[str, Any] | None:
        """Give what a session of a tenant used and has in flight; None for unknown and foreign ones alike.

        Args:
            tenant: whose.
            session: which.
            in_flight_ms: when its open calls began.

        """
        with self.reader.connect() as conn, conn.begin():
            totals = derived.session_totals(conn, tenant, session)
            warm = derived.session_warm(conn, tenant, session)
        if not totals.calls and not in_flight_ms:
            return None
        starts = list(in_flight_ms)
        if totals.first_at_ms is not None:
            starts.append(totals.first_at_ms)
        return {
            "session_id": session,
            "calls": totals.calls,
            "failed": totals.failed,
            "in_flight": len(in_flight_ms),
            "tokens_in": totals.tokens_in,
            "tokens_out": totals.tokens_out,
            "tokens_cached": totals.tokens_cached,
            "cost_usd": usd(totals.cost_nusd),
            "priced": totals.priced_n,
            "first_at_ms": min(starts),
            "last_at_ms": totals.last_at_ms,
            "warm": [{"model": key.model, "route": encode_key(key), "at_ms": at_ms} for key, at_ms in warm],
        }

    def session_sums(self, tenant: str, session: str) -> tuple[tuple[int, ...], frozenset[str]]:
        """Give calls, failed ones, tokens (in, out, cached), cost, priced calls, and the ids of the newest calls."""
        with self.reader.connect() as conn, conn.begin():
            totals = derived.session_totals(conn, tenant, session)
            newest = conn.execute(_NEWEST_OF, {"tenant": tenant, "session": session}).scalars().all()
        return msgspec.structs.astuple(totals)[:7], frozenset(newest)

    def sessions(self, window_ms: int, limit: int, cursor: str) -> dict[str, Any]:
        """Give the sessions of all tenants that were active in the window, the latest first."""
        before = decoded(cursor) if cursor else (2**62, 0)
        asked = {
            "since": self._clock_ms() - window_ms,
            "before_ms": before[0],
            "before_seq": before[1],
            "most": limit + 1,
        }
        with self.reader.connect() as conn:
            found = [dict(row) for row in conn.execute(_SESSIONS, asked).mappings()]
        more, found = len(found) > limit, found[:limit]
        following = encoded(found[-1]["last_at_ms"], found[-1]["seq"]) if more else ""
        return {"sessions": [_sums({k: v for k, v in row.items() if k != "seq"}) for row in found], "cursor": following}

    def usage(
        self, tenant: str, key_id: str | None, *, since_ms: int, until_ms: int, limit: int, cursor: str
    ) -> dict[str, Any]:
        """Give what a tenant, or one of its keys, used in [since, until)."""
        with self.reader.connect() as conn, conn.begin():
            first, last = rollup.whole_hours(conn, since_ms, until_ms)
            window = {"since": since_ms, "first": first, "last": last, "until": until_ms}
            asked = {"tenant": tenant, "key": key_id, **window}
            totals = dict(conn.execute(_USAGE, asked).mappings().one())
            by_model = [dict(row) for row in conn.execute(_BY_MODEL, {**asked, "most": _USAGE_MODELS_MAX}).mappings()]
            by_day = [dict(row) for row in conn.execute(_BY_DAY, asked).mappings()]
        filters = {"tenant": tenant, **({"key_id": key_id} if key_id is not None else {})}
        recent = self.reader.newest("calls", filters, limit, cursor)
        return {
            "since_ms": since_ms,
            "until_ms": until_ms,
            "totals": _sums(totals),
            "by_model": [_sums(row) for row in by_model],
            "by_day": [_sums({**row, "day": _date(row["day"])}) for row in by_day],
            "recent": [_brief(row) for row in recent.rows if since_ms <= row["ended_at_ms"] < until_ms],
            "cursor": recent.cursor if recent.rows and recent.rows[-1]["ended_at_ms"] >= since_ms else "",
        }

    def market(self) -> dict[str, Any]:
        """Give prices and derived statistics per (provider, model), with the age of both."""
        snapshot, now_ms = self._snapshot(), self._clock_ms()
        with self.reader.connect() as conn:
            book = prices.load(conn, prices.in_force(conn, now_ms), self._options.default_cached_price_factor)
        offers: dict[tuple[str, str], list[dict[str, Any]]] = {}
        merged = derived.merged(snapshot.routes, lambda key: (key.provider, key.model))
        for key in sorted(snapshot.routes.keys() | snapshot.route_streaks.keys(), key=msgspec.structs.astuple):
            offers.setdefault((key.provider, key.model), []).append(
                {
                    "replica": key.replica,
                    **_stats(snapshot.routes.get(key, RouteStats())),
                    **msgspec.structs.asdict(snapshot.percentiles.get(key, Percentiles())),
                    "streak": _streak(snapshot.route_streaks.get(key)),
                    "endpoint_streak": _streak(snapshot.endpoint_streaks.get((key.provider, key.replica))),
                    "tool_capable": key not in snapshot.tool_incapable,
                }
            )
        rows = []
        for provider, model in sorted(offers.keys() | book.prices.keys()):
            price = book.price(provider, model)
            rows.append(
                {
                    "provider": provider,
                    "model": model,
                    "price_usd_per_mtok": _price(price) if price is not None else None,
                    "price_version": book.version,
                    **_stats(merged.get((provider, model), RouteStats())),
                    "endpoints": offers.get((provider, model), []),
                }
            )
        return {
            "rows": rows,
            "observed_at_ms": snapshot.observed_at_ms,
            "percentiles_at_ms": snapshot.percentiles_at_ms,
            "window_ms": snapshot.window_ms,
            "now_ms": now_ms,
        }

    def cost_accuracy(self, window_s: int) -> dict[str, Any]:
        """Compare measured with list spend per provider; the window is brought into its bounds; < 0: the usual one."""
        if window_s < 0:
            window_s = self._options.cost_window_ms // 1000
        window_s = max(_ACCURACY_S[0], min(window_s, _ACCURACY_S[1]))
        now_ms = self._clock_ms()
        with self.reader.connect() as conn:
            costs = derived.cost_by_route(conn, now_ms, window_s * 1000)
        found = derived.cost_accuracy(costs, self._options.cost_min_calls, self._options.cost_threshold)
        rows = [_sums(msgspec.structs.asdict(row)) for row in found]
        return {"rows": rows, "window_s": window_s, "generated_at_ms": now_ms}

    def export(self, table: str, since_ms: int, cursor: str, limit: int) -> tuple[bytes, str, bool]:
        """Give lines of JSON in the order of recording, the cursor behind them, and whether more are there already."""
        page, more = self.reader.export(table, since_ms=since_ms, cursor=cursor, limit=limit, now_ms=self._clock_ms())
        return lines(page), page.cursor, more

    def document(self, name: str, window_s: int) -> dict[str, Any]:
        """Give the page `market`, `cost-accuracy` or `ledger`."""
        match name:
            case "market":
                return self.market()
            case "cost-accuracy":
                return self.cost_accuracy(window_s)
        return self.status()

    def status(self) -> dict[str, Any]:
        """Give the state of writer and snapshot, and which hours are summed up."""
        with self.reader.connect() as conn:
            covered = rollup.coverage(conn)
        hours = {"hourly_from_ms": covered[0], "hourly_until_ms": covered[1]} if covered is not None else {}
        return {**self._stats(), **hours, "observed_at_ms": self._snapshot().observed_at_ms, "now_ms": self._clock_ms()}

    def close(self) -> None:
        """Let go of the database."""
        self.reader.close()


def lines(page: Page) -> bytes:
    """Render rows as NDJSON: flags as booleans whatever the database keeps, `seq` left out."""
    return b"".join(msgspec.json.encode(_plain(row)) + b"\n" for row in page.rows)


_FLAGS: Final = frozenset(
    {"stream", "committed", "resumed", "hedged", "recovered", "tools_requested", "tools_emitted", "ok", "counted"}
)
_HIDDEN: Final = frozenset({"seq", "route_id", "writer_id"})


def _plain(row: Record) -> Record:
    return {k: bool(v) if k in _FLAGS else v for k, v in row.items() if k not in _HIDDEN}


def _in_usd(row: Record) -> Record:
    made: Record = {}
    for name, value in _plain(row).items():
        if name.endswith("_nusd"):
            made[f"{name.removesuffix('_nusd')}_usd"] = None if value is None else usd(value)
        else:
            made[name] = value
    return made


def _sums(row: Mapping[str, Any]) -> Record:
    """Make sums plain integers: PostgreSQL gives decimals."""
    whole = {k: int(v) if v is not None and not isinstance(v, str | bool | float) else v for k, v in row.items()}
    return _in_usd(whole)


_BRIEF: Final = (
    *(
        "call_id",
        "started_at_ms",
        "ended_at_ms",
        "key_id",
        "session_id",
        "requested_model",
        "selected_model",
        "outcome",
    ),
    *("http_status", "tokens_in", "tokens_out", "tokens_cached", "cost_usd", "e2e_ms", "ttft_ms"),
)


def _brief(row: Record) -> Record:
    whole = _in_usd(row)
    return {name: whole[name] for name in _BRIEF}


def _stats(stats: RouteStats) -> dict[str, Any]:
    return {
        "n": stats.n,
        "counted_n": stats.counted_n,
        "ok_n": stats.ok_n,
        "success_rate": stats.success_rate,
        "e2e_n": stats.e2e_n,
        "e2e_mean_ms": stats.e2e_mean_ms,
        "ttft_n": stats.ttft_n,
        "ttft_mean_ms": stats.ttft_mean_ms,
    }


def _streak(streak: Streak | None) -> dict[str, Any] | None:
    return msgspec.structs.asdict(streak) if streak is not None else None


def _price(price: Any) -> dict[str, Any]:
    names = {"p_in": "input", "p_out": "output", "p_cached": "cached", "p_write": "cache_write"}
    found = {name: getattr(price, column) for column, name in names.items()}
    return {name: None if value is None else f"{value // 10**6}.{value % 10**6:06d}" for name, value in found.items()}


def _date(day: Any) -> str:
    return datetime.fromtimestamp(int(day) * 86_400, UTC).date().isoformat()
