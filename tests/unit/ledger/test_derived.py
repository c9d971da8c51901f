"""The worked examples of ledger §6, and those carried over by name."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from turnout.core import options
from turnout.core.facts import Percentiles, RouteKey, RouteStats, StatsSnapshot
from turnout.core.pricing import Price, Tokens
from turnout.ledger import connection, derived, health, prices
from turnout.ledger.derivation import Derivation
from turnout.ledger.derived import CostRow, cost_accuracy
from turnout.ledger.health import Result, streak
from turnout.ledger.sink import LedgerRefusedError
from turnout.ledger.snapshot import Refresher
from turnout.ledger.store import Store

Make = Callable[..., Any]
A, B = RouteKey("", "m", "a"), RouteKey("p", "n", "")
MINUTE_MS = 60_000


@pytest.fixture
def conn(store: Store, database: Path) -> Iterator[sa.Connection]:
    store.write([])
    engine = connection.reading_engine(database)
    with engine.connect() as opened:
        yield opened
    engine.dispose()


@pytest.fixture
def tries(store: Store, conn: sa.Connection, call: Make, attempt: Make) -> Callable[..., None]:
    """Store calls of one attempt each, and let the reader begin a new transaction: one sees one state."""
    stored = 0

    def write(*legs: dict[str, Any], **fields: Any) -> None:
        nonlocal stored
        for leg in legs:
            made = attempt(**{"route": A, **leg})
            given = {"route": made.route, "ended_at_ms": made.ended_at_ms, "attempts": (made,), **fields}
            store.write([call(stored, **given)])
            stored += 1
        conn.rollback()

    return write


FAILED = {"ok": False, "error_kind": "server_error", "e2e_ms": 9_999}
FAULT = {"ok": False, "counted": False, "error_kind": "context_overflow"}


def test_route_stats_derives_reliability_and_latency(conn: sa.Connection, tries: Make, clock: Any) -> None:
    tries(*({"e2e_ms": ms} for ms in (100, 100, 100, 300)), FAILED)
    stats = derived.route_stats(conn, clock())[A]
    assert (stats.success_rate, stats.e2e_mean_ms, stats.n, stats.e2e_n) == (0.8, 150, 5, 4)
    tries(FAULT, FAULT, FAULT)
    stats = derived.route_stats(conn, clock())[A]
    assert (stats.n, stats.counted_n, stats.success_rate) == (8, 5, 0.8)


def test_means_round_half_up() -> None:
    assert RouteStats(e2e_n=2, e2e_sum_ms=201).e2e_mean_ms == 101
    assert (RouteStats().success_rate, RouteStats().e2e_mean_ms, RouteStats().ttft_mean_ms) == (None, None, None)


def test_means_use_their_own_counts() -> None:
    routes = {A: RouteStats(5, 5, 4, 4, 600), B: RouteStats(10, 10, 1, 1, 1_000)}
    [merged] = derived.merged(routes, lambda _: "pool").values()
    assert (merged.success_rate, merged.e2e_mean_ms) == (5 / 15, 320)


def test_route_stats_window_excludes_old_observations(conn: sa.Connection, tries: Make, clock: Any) -> None:
    tries({"ended_at_ms": clock()}, {"route": B, "ended_at_ms": clock() - 20 * MINUTE_MS})
    assert set(derived.route_stats(conn, clock(), 15 * MINUTE_MS)) == {A}
    assert set(derived.route_stats(conn, clock(), 30 * MINUTE_MS)) == {A, B}
    tries({"ended_at_ms": clock() - 15 * MINUTE_MS}, {"ended_at_ms": clock() - 15 * MINUTE_MS - 1})
    assert derived.route_stats(conn, clock(), 15 * MINUTE_MS)[A].n == 2


def _asked(n: int, *, emitted: int = 0) -> list[dict[str, Any]]:
    return [{"tools_requested": True, "tools_emitted": i < emitted} for i in range(n)]


@pytest.mark.parametrize(
    ("legs", "incapable"),
    [
        (_asked(20), True),
        (_asked(19), False),
        (_asked(20, emitted=1), False),
        ([*_asked(15), *({**FAILED, "tools_requested": True} for _ in range(10))], False),
        ([{} for _ in range(30)], False),
        ([{**leg, "ended_at_ms": 1_794_000_000_000 - 31 * MINUTE_MS} for leg in _asked(20)], False),
    ],
    ids=[
        "route_that_never_emits_tool_calls_is_marked_incapable",
        "too_few_samples",
        "any_tool_call_clears_incapability",
        "failed_attempts_say_nothing_about_tools",
        "non_tool_requests_carry_no_signal",
        "old_observations_age_out_of_the_window",
    ],
)
def test_tools(conn: sa.Connection, tries: Make, clock: Any, legs: list[dict[str, Any]], incapable: bool) -> None:  # noqa: FBT001
    tries(*legs)
    assert derived.tool_incapable_routes(conn, clock()) == (frozenset({A}) if incapable else frozenset())


def test_failed_attempts_say_nothing_about_tools(conn: sa.Connection, tries: Make, clock: Any) -> None:
    failed = {**FAILED, "tools_requested": True}
    tries(*_asked(19), *(failed for _ in range(30)))
    assert derived.tool_incapable_routes(conn, clock()) == frozenset()
    tries(*_asked(1))
    assert derived.tool_incapable_routes(conn, clock()) == frozenset({A})


def test_unobserved_route_is_capable(conn: sa.Connection, clock: Any) -> None:
    assert derived.tool_incapable_routes(conn, clock()) == frozenset()


def test_successful_call_makes_route_hot(conn: sa.Connection, tries: Make) -> None:
    assert derived.hot_route(conn, "acme", "s") is None
    tries({}, session_id="s")
    assert derived.hot_route(conn, "acme", "s") == A


@pytest.mark.parametrize("outcome", ["upstream_timeout", "cached", "client_gone"])
def test_failed_call_does_not_set_affinity(conn: sa.Connection, tries: Make, outcome: str) -> None:
    tries({}, session_id="s", tokens_in=3, cost_nusd=7)
    tries({"route": B, **FAILED}, session_id="s", outcome=outcome)
    assert derived.hot_route(conn, "acme", "s") == A
    totals = derived.session_totals(conn, "acme", "s")
    failed = int(outcome != "cached")
    assert (totals.calls, totals.failed, totals.tokens_in, totals.cost_nusd, totals.priced_n) == (2, failed, 3, 7, 1)


def test_latest_successful_route_wins(conn: sa.Connection, tries: Make) -> None:
    tries({}, session_id="s")
    tries({"route": B}, session_id="s")
    assert derived.hot_route(conn, "acme", "s") == B
    assert {key for key, _ in derived.session_warm(conn, "acme", "s")} == {A, B}


def test_sessions_are_independent(conn: sa.Connection, tries: Make, clock: Any) -> None:
    tries({}, session_id="s", tenant="first", started_at_ms=1)
    tries({"route": B}, session_id="s", tenant="second", started_at_ms=2)
    assert (derived.hot_route(conn, "first", "s"), derived.hot_route(conn, "second", "s")) == (A, B)
    assert derived.session_totals(conn, "third", "s") == derived.SessionTotals()
    assert derived.hot_route(conn, "third", "s") is None
    assert derived.session_owners(conn, "s") == ["first", "second"]
    hot = derived.recent_hot_routes(conn, clock())
    assert sorted(row[:3] for row in hot) == [("first", "s", A), ("second", "s", B)]


def _cost(provider: str, n: int, reported: int, cost: int, listed: int, tokens: int = 1_000_000) -> CostRow:
    return CostRow(provider, "m", n, reported, tokens, tokens, cost, listed)


USD = 10**9


def test_cost_accuracy_rows_flags_drift_against_raw_metrics() -> None:
    [row] = cost_accuracy([_cost("p", 100, 100, 15 * USD, 12 * USD)])
    assert (row.deviation, row.usd_per_mtok, row.signal, row.warn) == (1.25, 7.5, "reported", True)
    [edge] = cost_accuracy([_cost("p", 100, 100, 115, 100)])
    assert edge.warn


def test_cost_accuracy_rows_does_not_warn_a_derived_provider() -> None:
    [row] = cost_accuracy([_cost("p", 100, 0, 15 * USD, 12 * USD)])
    assert (row.signal, row.warn) == ("derived", False)


def test_cost_accuracy_rows_needs_minimum_calls_to_warn() -> None:
    [row] = cost_accuracy([_cost("p", 5, 5, 20 * USD, 12 * USD)])
    assert (row.deviation, row.warn) == (1.667, False)


def test_providers_without_list_price_or_tokens_are_left_out_and_the_rest_sorted() -> None:
    rows = [
        _cost("none", 9, 9, 5, 0),
        _cost("idle", 9, 9, 5, 5, tokens=0),
        _cost("b", 9, 9, 10, 10),
        _cost("a", 9, 9, 10, 10),
        _cost("off", 9, 9, 5, 10),
    ]
    assert [row.provider for row in cost_accuracy(rows)] == ["off", "a", "b"]


def _results(*kinds: str) -> list[Result]:
    """Newest first; an empty kind is a success."""
    return [Result(1_000_000_000 - n, -n, not kind, kind, 500) for n, kind in enumerate(kinds)]


NOW_MS = 1_000_000_000


@pytest.mark.parametrize(
    ("kind", "endpoint", "minutes"),
    [
        ("server_error", False, [15, 30, 60, 60]),
        ("model_unavailable", False, [30, 60, 120, 240, 360, 360]),
        ("server_error", True, [5, 10, 20, 40, 60]),
        ("rate_limit", False, [1, 2, 4, 8, 16, 32, 60]),
        ("overloaded", True, [1, 2, 4, 8, 16, 32, 60]),
    ],
)
def test_cooldowns(kind: str, endpoint: bool, minutes: list[int]) -> None:  # noqa: FBT001
    found = [streak(_results(*[kind] * n), NOW_MS, endpoint=endpoint) for n in range(1, len(minutes) + 1)]
    assert [one and (one.cooldown_until_ms - NOW_MS) // MINUTE_MS for one in found] == minutes
    assert health.cooldown_ms(10**6, kind, endpoint=endpoint) == minutes[-1] * MINUTE_MS


def test_marketplace_health_success_resets_failure_streak() -> None:
    assert streak(_results("", "server_error"), NOW_MS) == health.HEALTHY
    found = streak(_results("server_error", "timeout_first_token", "", "server_error"), NOW_MS)
    assert found is not None
    assert (found.failures, found.kind, found.tier) == (2, "server_error", 3)
    later = streak(_results("server_error"), NOW_MS + 15 * MINUTE_MS)
    assert later is not None
    assert later.tier == 2


def test_marketplace_health_ignores_non_route_faults() -> None:
    assert streak(_results("bad_request", "cancelled"), NOW_MS) is None
    assert streak(_results("bad_request", ""), NOW_MS) == health.HEALTHY
    assert streak(_results(*["cancelled"] * 64, "server_error"), NOW_MS) is None


def test_marketplace_health_keeps_stream_break_route_scoped() -> None:
    assert streak(_results("stream_cut"), NOW_MS) is not None
    assert streak(_results("stream_cut"), NOW_MS, endpoint=True) is None


def test_marketplace_health_tracks_route_and_peer_fault_scope(conn: sa.Connection, tries: Make, clock: Any) -> None:
    other = RouteKey("", "n", "a")
    tries({}, {"route": other, **FAILED, "ended_at_ms": clock() + 1})
    by_route, by_endpoint = derived.failure_streaks(conn, clock())
    assert by_route[A] == health.HEALTHY
    assert by_route[other].failures == by_endpoint["", "a"].failures == 1


@pytest.fixture
def refresher(database: Path, clock: Any, conn: sa.Connection) -> Refresher:
    assert not conn.closed
    section = options.Ledger(url=f"sqlite:///{database}")
    return Refresher(section, Derivation(section), clock_ms=clock)


def test_a_snapshot_holds_everything_and_its_age(refresher: Refresher, tries: Make, clock: Any) -> None:
    tries({}, {"route": RouteKey("", "m", "b"), **FAILED}, *({"route": B, **leg} for leg in _asked(20)))
    found = refresher.refresh()
    assert found is refresher.latest
    assert (found.observed_at_ms, found.window_ms) == (clock(), 900_000)
    assert (found.routes[A].n, found.models["m"].n, found.models["n"].n) == (1, 2, 20)
    assert found.tool_incapable == frozenset({B})
    assert found.route_streaks[RouteKey("", "m", "b")].failures == 1


def test_percentiles_stand_beside_the_sums_with_their_own_instant(
    refresher: Refresher, tries: Make, clock: Any
) -> None:
    tries(*({"e2e_ms": ms, "ttft_ms": ms // 10} for ms in range(100, 2_100, 100)), {"e2e_ms": 9_999, **FAILED})
    refresher.refresh()
    refresher.rank()
    ranked_at_ms = clock()
    clock.now_ms += 1_000
    found = refresher.refresh()
    assert found.percentiles == {A: Percentiles(1_000, 1_900, 100, 190)}
    assert (found.percentiles_at_ms, found.observed_at_ms) == (ranked_at_ms, clock())


def test_percentiles_of_many_routes_come_in_turns_and_whole(refresher: Refresher, tries: Make, clock: Any) -> None:
    tries(*({"route": RouteKey("", "m", f"r{number}"), "e2e_ms": number} for number in range(5)))
    for _ in range(5):
        refresher.refresh()
        refresher.rank(0.0)  # no time at all: a new turn asks which routes there are and ranks none
        assert refresher.latest.percentiles == {}
    refresher.rank()
    assert {key.replica: found.e2e_p95_ms for key, found in refresher.latest.percentiles.items()} == {
        f"r{number}": number for number in range(5)
    }
    refresher.rank()  # the next turn is due later
    assert refresher.latest.percentiles_at_ms == clock()


def test_derived_statistics_carry_their_age(refresher: Refresher, tries: Make, clock: Any) -> None:
    tries({})
    found = refresher.refresh()
    assert refresher.fresh(clock() + 30_000) is found
    assert refresher.fresh(clock() + 30_001) == StatsSnapshot()


def test_a_snapshot_follows_new_rows(refresher: Refresher, tries: Make, clock: Any) -> None:
    for n in range(5):
        clock.now_ms += 7_000
        tries({"ended_at_ms": clock()})
        assert refresher.refresh().routes[A].n == n + 1
    clock.now_ms += 900_001
    assert refresher.refresh().routes == {}


def test_the_price_book_in_force_comes_with_the_snapshot(refresher: Refresher, database: Path, clock: Any) -> None:
    assert refresher.book.cost("p", "m", Tokens(1000, 0)).cost_nusd is None
    engine = connection.writing_engine(database)
    for effective_ms, price in ((clock(), 1_000), (clock() + 60_000, 2_000)):
        with engine.begin() as writing:
            prices.add(
                writing,
                [Price(model="m", p_in=price)],
                effective_from_ms=effective_ms,
                created_at_ms=clock(),
                source="test",
            )
    engine.dispose()
    refresher.refresh()
    assert refresher.book.cost("p", "m", Tokens(1000, 0)).cost_nusd == 1_000
    clock.now_ms += 60_000
    refresher.refresh()
    assert refresher.book.cost("p", "m", Tokens(1000, 0)).price_version == 2


def test_a_bad_price_changes_nothing(conn: sa.Connection, database: Path) -> None:
    engine = connection.writing_engine(database)
    for bad in ([Price(model="m", p_in=-1)], [Price(model="m"), Price(model="m")], []):
        with engine.begin() as writing, pytest.raises(LedgerRefusedError, match="prices"):
            prices.add(writing, bad, effective_from_ms=0, created_at_ms=0, source="test")
    engine.dispose()
    assert prices.versions(conn) == []
    entries: list[Any] = [{}, {"model": "m", "inputs": 1}, {"model": "m", "input": "x"}, {"model": "m", "input": True}]
    for document in ({}, *([entry] for entry in entries)):
        with pytest.raises(LedgerRefusedError, match="prices"):
            prices.parse(document)
