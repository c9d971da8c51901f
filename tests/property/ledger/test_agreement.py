"""SQLite, PostgreSQL and plain Python give the same statistics for any history, to the last digit."""

import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turnout.core.facts import AttemptFact, CallFact, Percentiles, RouteKey, RouteStats
from turnout.ledger import connection, derived, health, schema, sqlite, upgrade, window

BASE_MS = time.time_ns() // 1_000_000 // 10_000 * 10_000
# Longer than the time until a bucket closes, so that closed ones are remembered, marked late and given up.
WINDOW_MS = 120_000
ROUTES = [RouteKey("", "m", "r1"), RouteKey("", "m", "r2"), RouteKey("p|%", "m", ""), RouteKey("", "", "r1")]
EDGES = [0, 1, -1, 9_999, 10_000, -WINDOW_MS, -WINDOW_MS - 1, -WINDOW_MS + 1, -10_000, -50_000, -90_000, -200_000]
KINDS = [
    "server_error",
    "rate_limit",
    "cancelled",
    "model_unavailable",
    "stream_cut",
    "bad_request",
    "payment_required",
]

instants = st.sampled_from(EDGES) | st.integers(-300_000, 20_000)
amounts = st.none() | st.integers(0, 2**40)
sizes = st.none() | st.integers(0, 5)


@st.composite
def attempts(draw: Any, number: int) -> AttemptFact:
    ok = draw(st.booleans())
    return AttemptFact(
        attempt_no=number,
        phase="solo",
        route=draw(st.none() | st.sampled_from(ROUTES)),
        kind="first",
        started_at_ms=BASE_MS,
        ended_at_ms=BASE_MS + draw(instants),
        ok=ok,
        counted=ok or draw(st.booleans()),
        committed=False,
        error_kind="" if ok else draw(st.sampled_from(KINDS)),
        http_status=draw(st.none() | st.just(503)),
        e2e_ms=draw(sizes),
        ttft_ms=draw(sizes),
        tokens_in=draw(sizes),
        tokens_out=draw(sizes),
        tools_requested=draw(st.booleans()),
        tools_emitted=draw(st.booleans()),
        cost_nusd=draw(amounts),
        cost_basis=draw(st.sampled_from(["reported", "computed", "subscription", ""])),
        list_nusd=draw(amounts),
    )


@st.composite
def histories(draw: Any) -> list[list[CallFact]]:
    """Batches of calls; some calls come twice, some attempts before their call."""
    calls: list[CallFact] = []
    for n in range(draw(st.integers(0, 12))):
        legs = tuple(draw(attempts(number)) for number in range(1, 1 + draw(st.integers(0, 3))))
        call = CallFact(
            call_id=f"01JCALL{n:019d}",
            request_id="",
            started_at_ms=BASE_MS + draw(st.integers(-3, 3)),
            ended_at_ms=BASE_MS + draw(instants),
            e2e_ms=1,
            tenant=draw(st.sampled_from(["a", "b"])),
            key_id="",
            dialect="openai",
            path="/",
            stream=False,
            requested_model="m",
            outcome=draw(st.sampled_from(["completed", "completed", "cached", "client_gone", "upstream_timeout"])),
            cls="ok",
            http_status=200,
            attempts=legs,
            session_id=draw(st.sampled_from([None, "", "s", "t"])),
            route=draw(st.none() | st.sampled_from(ROUTES)),
            tokens_in=draw(sizes),
            tokens_out=draw(sizes),
            tokens_cached=draw(sizes),
            cost_nusd=draw(amounts),
        )
        if len(legs) > 1 and draw(st.booleans()):
            calls.append(CallFact(call.call_id, "", 0, 0, 0, "", "", "", "", False, "", "", "", 0, legs[:1]))
        calls.append(call)
        if draw(st.integers(0, 4)) == 0:
            calls.append(draw(st.sampled_from(calls)))
    batches: list[list[CallFact]] = [[]]
    for call in calls:
        if draw(st.integers(0, 3)) == 0:
            batches.append([])
        batches[-1].append(call)
    return batches


class Reference:
    """What the rows say, read by plain Python. A list's index is the sequence number of its row."""

    def __init__(self) -> None:
        self.calls: list[CallFact] = []
        self.attempts: list[AttemptFact] = []
        self._seen: set[Any] = set()

    def write(self, facts: list[CallFact]) -> None:
        for fact in facts:
            if fact.call_id in self._seen:
                continue
            if fact.outcome:
                self._seen.add(fact.call_id)
                self.calls.append(fact)
            for leg in fact.attempts:
                if (fact.call_id, leg.attempt_no) not in self._seen:
                    self._seen.add((fact.call_id, leg.attempt_no))
                    self.attempts.append(leg)

    def route_stats(self, now_ms: int) -> dict[RouteKey, RouteStats]:
        found: dict[RouteKey, RouteStats] = {}
        for leg in self.attempts:
            if leg.route is not None and leg.ended_at_ms >= now_ms - WINDOW_MS:
                e2e, ttft = leg.e2e_ms if leg.ok else None, leg.ttft_ms if leg.ok else None
                one = RouteStats(1, leg.counted, leg.ok, e2e is not None, e2e or 0, ttft is not None, ttft or 0)
                found[leg.route] = found.get(leg.route, RouteStats()).plus(one)
        return found

    def incapable(self, now_ms: int) -> frozenset[RouteKey]:
        asked: dict[RouteKey, list[bool]] = defaultdict(list)
        for leg in self.attempts:
            if leg.route is not None and leg.ok and leg.tools_requested and leg.ended_at_ms >= now_ms - WINDOW_MS:
                asked[leg.route].append(leg.tools_emitted)
        return frozenset(route for route, emitted in asked.items() if len(emitted) >= 2 and not any(emitted))

    def _session(self, tenant: str, session: str) -> list[CallFact]:
        return [c for c in self.calls if (c.tenant, c.session_id) == (tenant, session)]

    def completed(self, tenant: str, session: str) -> list[CallFact]:
        found = [(c.ended_at_ms, n, c) for n, c in enumerate(self._session(tenant, session))]
        return [
            c
            for _, _, c in sorted(found, key=lambda row: row[:2], reverse=True)
            if c.outcome == "completed" and c.route
        ]

    def totals(self, tenant: str, session: str) -> derived.SessionTotals:
        found = self._session(tenant, session)
        return derived.SessionTotals(
            len(found),
            sum(c.outcome not in {"completed", "cached"} for c in found),
            sum(c.tokens_in or 0 for c in found),
            sum(c.tokens_out or 0 for c in found),
            sum(c.tokens_cached or 0 for c in found),
            sum(c.cost_nusd or 0 for c in found),
            sum(c.cost_nusd is not None for c in found),
            min((c.started_at_ms for c in found), default=None),
            max((c.ended_at_ms for c in found), default=None),
        )

    def owners(self, session: str) -> list[str]:
        found = sorted((c.started_at_ms, n, c.tenant) for n, c in enumerate(self.calls) if c.session_id == session)
        return list(dict.fromkeys(tenant for _, _, tenant in found))

    def costs(self, now_ms: int) -> list[derived.CostRow]:
        found: dict[tuple[str, str], list[AttemptFact]] = defaultdict(list)
        for leg in self.attempts:
            if (
                leg.route is not None
                and leg.ended_at_ms >= now_ms - WINDOW_MS
                and leg.cost_nusd is not None
                and leg.cost_basis in {"reported", "computed"}
            ):
                found[leg.route.provider, leg.route.model].append(leg)
        rows = []
        for (provider, model), legs in sorted(found.items(), key=lambda item: item[0]):
            listed = [leg for leg in legs if leg.list_nusd is not None]
            rows.append(
                derived.CostRow(
                    provider,
                    model,
                    len(listed),
                    sum(leg.cost_basis == "reported" for leg in listed),
                    sum(leg.tokens_in or 0 for leg in listed),
                    sum(leg.tokens_out or 0 for leg in listed),
                    sum(leg.cost_nusd or 0 for leg in listed),
                    sum(leg.list_nusd or 0 for leg in listed),
                    len(legs) - len(listed),
                )
            )
        return rows

    def percentiles(self, now_ms: int) -> dict[RouteKey, Percentiles]:
        found: dict[RouteKey, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for leg in self.attempts:
            if leg.route is not None and leg.ok and leg.ended_at_ms >= now_ms - WINDOW_MS:
                for name, value in (("e2e", leg.e2e_ms), ("ttft", leg.ttft_ms)):
                    if value is not None:
                        found[leg.route][name].append(value)
        made = {}
        for route, values in found.items():
            ranks = {}
            for name, durations in values.items():
                durations.sort()
                ranks[f"{name}_p50_ms"] = durations[math.ceil(len(durations) / 2) - 1]
                ranks[f"{name}_p95_ms"] = durations[math.ceil(len(durations) * 19 / 20) - 1]
            made[route] = Percentiles(**ranks)
        return made

    def streaks(self, now_ms: int) -> Any:
        by_route, by_endpoint = defaultdict(list), defaultdict(list)
        for n, leg in enumerate(self.attempts):
            if leg.route is not None and leg.ended_at_ms >= now_ms - WINDOW_MS:
                result = health.Result(leg.ended_at_ms, n, leg.ok, leg.error_kind, leg.http_status)
                by_route[leg.route].append(result)
                by_endpoint[leg.route.provider, leg.route.replica].append(result)
        return _streaks(by_route, now_ms, endpoint=False), _streaks(by_endpoint, now_ms, endpoint=True)


def _streaks(found: dict[Any, list[health.Result]], now_ms: int, *, endpoint: bool) -> dict[Any, Any]:
    made = {}
    for identity, results in found.items():
        results.sort(key=lambda result: (result.ended_at_ms, result.seq), reverse=True)
        streak = health.streak(results, now_ms, endpoint=endpoint)
        if streak is not None:
            made[identity] = streak
    return made


class Side:
    """One database with its store and its windows, emptied between histories."""

    def __init__(self, store: Any, url: str, writing: sa.Engine) -> None:
        self.store, self._writing = store, writing
        self._reading = connection.reading(url)
        self.window = window.Window(WINDOW_MS)

    def empty(self) -> None:
        self.window = window.Window(WINDOW_MS)
        with self._writing.connect() as conn, conn.begin():
            for name in ("attempt_buckets", "late_buckets", "attempts", "calls", "decisions", "dirty_hours"):
                conn.execute(sa.delete(schema.metadata.tables[name]))

    def ask(self, now_ms: int) -> dict[str, Any]:
        with self._reading.connect() as conn, conn.begin():
            keys = derived.routes(conn)
            sums = self.window.refresh(conn, now_ms)
            assert sums == window.raw(conn, now_ms, WINDOW_MS)
            ranked = {key: derived.percentiles(conn, route_id, now_ms, WINDOW_MS) for route_id, key in keys.items()}
            sessions = [(tenant, session) for tenant in ("a", "b") for session in ("", "s", "t")]
            return {
                "stats": derived.stats_of(sums, keys),
                "incapable": derived.incapable(sums, keys, 2),
                "hot": [derived.hot_route(conn, *session) for session in sessions],
                "totals": [derived.session_totals(conn, *session) for session in sessions],
                "warm": [derived.session_warm(conn, *session) for session in sessions],
                "owners": [derived.session_owners(conn, session) for session in ("", "s", "t", "u")],
                "costs": derived.cost_by_route(conn, now_ms, WINDOW_MS),
                "streaks": derived.failure_streaks(conn, now_ms, WINDOW_MS),
                "percentiles": {key: found for key, found in ranked.items() if found != Percentiles()},
            }

    def close(self) -> None:
        self.store.close()
        self._reading.dispose()
        self._writing.dispose()


def expected(reference: Reference, now_ms: int) -> dict[str, Any]:
    sessions = [(tenant, session) for tenant in ("a", "b") for session in ("", "s", "t")]
    completed = [reference.completed(*session) for session in sessions]
    warm = [
        {c.route.model: (c.route, c.ended_at_ms) for c in reversed(calls) if c.route is not None} for calls in completed
    ]
    return {
        "stats": reference.route_stats(now_ms),
        "incapable": reference.incapable(now_ms),
        "hot": [calls[0].route if calls else None for calls in completed],
        "totals": [reference.totals(*session) for session in sessions],
        "warm": [[by_model[model] for model in sorted(by_model)] for by_model in warm],
        "owners": [reference.owners(session) for session in ("", "s", "t", "u")],
        "costs": reference.costs(now_ms),
        "streaks": reference.streaks(now_ms),
        "percentiles": reference.percentiles(now_ms),
    }


@pytest.fixture(scope="module")
def sides(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Side]]:
    from turnout.ledger import postgres as postgres_store
    from turnout.ledger import server_upgrade

    given: dict[str, Any] = {"router_id": "r", "clock_ms": lambda: BASE_MS, "retention_days": 30, "decisions_days": 7}
    path: Path = tmp_path_factory.mktemp("agreement") / "turnout.db"
    upgrade.prepare(path, clock_ms=lambda: BASE_MS, on_event=lambda name, /, **fields: None)
    url = postgres.new_database()
    server_upgrade.run(url)
    made = [
        Side(sqlite.open_store(path, **given), f"sqlite:///{path}", connection.writing_engine(path)),
        Side(postgres_store.open_store(url, **given), url, connection.postgres_engine(url)),
    ]
    yield made
    for side in made:
        side.close()


def check(sides: list[Side], batches: list[list[CallFact]], steps: list[int]) -> None:
    """Write batch by batch; after each, all three agree at an instant that moves on by one of `steps`."""
    reference = Reference()
    for side in sides:
        side.empty()
    now_ms = BASE_MS
    for n, batch in enumerate(batches):
        reference.write(batch)
        now_ms += steps[n % len(steps)]
        wanted = expected(reference, now_ms)
        for side in sides:
            if batch:
                side.store.write(batch)
            found = side.ask(now_ms)
            for name, value in wanted.items():
                assert found[name] == value, name


# The bar is 200 histories in all (TURNOUT_HISTORIES=100); a run of the suite looks at some.
HISTORIES = int(os.environ.get("TURNOUT_HISTORIES", "40"))
SETTINGS = settings(max_examples=HISTORIES, deadline=None, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(histories())
def test_three_ways_agree_at_one_instant(sides: list[Side], batches: list[list[CallFact]]) -> None:
    whole = [[call for batch in batches for call in batch]]
    check(sides, whole, [0])


@SETTINGS
@given(histories(), st.lists(st.integers(0, 2_500), min_size=1, max_size=3))
def test_three_ways_agree_while_time_and_rows_move_on(
    sides: list[Side], batches: list[list[CallFact]], steps: list[int]
) -> None:
    check(sides, batches, steps)
