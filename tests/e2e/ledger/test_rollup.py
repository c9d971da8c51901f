"""Hours that are summed up say what their calls say, however often and in whatever order they are made."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

from turnout.core import options
from turnout.ledger import rollup
from turnout.ledger.pages import Pages
from turnout.ledger.reader import Reader
from turnout.ledger.rollup import HOUR_MS

Make = Callable[..., Any]
DAY_MS = 24 * HOUR_MS
NOW_MS = 1_794_000_000_000 // HOUR_MS * HOUR_MS + 30 * 60_000


@contextlib.contextmanager
def _reading(url: str) -> Iterator[Any]:
    reader = Reader(url)
    with reader.connect() as conn:
        yield conn
    reader.close()


def _fill(store: Any, call: Make, rng: random.Random, numbers: range, hours: list[int]) -> None:
    facts = []
    for n in numbers:
        ended = NOW_MS - rng.choice(hours) * HOUR_MS - rng.randrange(HOUR_MS)
        outcome = rng.choice(["completed", "completed", "upstream_timeout", "model_not_found"])
        given = {
            "tenant": rng.choice(["acme", "other"]),
            "key_id": rng.choice(["k1", "k2"]),
            "outcome": outcome,
            "requested_model": rng.choice(["m1", f"invented-{n}"]),
            "selected_model": rng.choice(["", "m1", "m2"]),
            "tokens_in": rng.choice([None, 0, 7]),
            "tokens_out": rng.choice([None, 3]),
            "cost_nusd": rng.choice([None, 0, 10**9 + n]),
        }
        facts.append(call(n, started_at_ms=ended - 100, ended_at_ms=ended, attempts=(), **given))
    store.write(facts)


def _settle(store: Any) -> int:
    rounds = 1
    while store.prune():
        rounds += 1
        assert rounds < 500
    return rounds


def _hours(url: str) -> list[tuple[Any, ...]]:
    with _reading(url) as conn:
        found = conn.exec_driver_sql("SELECT * FROM usage_hourly ORDER BY 1, 2, 3, 4, 5, 6, 7").fetchall()
        return [tuple(row) for row in found]


def _usage(url: str, clock: Any, since_ms: int, until_ms: int, key: str | None) -> tuple[Any, ...]:
    pages = Pages(options.Ledger(url=url), clock_ms=clock)
    found = pages.usage("acme", key, since_ms=since_ms, until_ms=until_ms, limit=1, cursor="")
    pages.close()
    return found["totals"], found["by_model"], found["by_day"]


def test_hourly_analytics_rollup_is_idempotent_and_filterable(any_store: Any, call: Make, clock: Any) -> None:
    store, url = any_store
    clock.now_ms = NOW_MS
    rng = random.Random(7)
    _fill(store, call, rng, range(300), [0, 1, 2, 5, 6, 30, 31])
    windows = [(NOW_MS - rng.randrange(40 * HOUR_MS), NOW_MS - rng.randrange(5 * HOUR_MS)) for _ in range(8)]
    asked = [(min(window), max(window), key) for window in windows for key in (None, "k1")]
    raw = [_usage(url, clock, *one) for one in asked]
    _settle(store)
    with _reading(url) as conn:
        assert rollup.whole_hours(conn, NOW_MS - 40 * HOUR_MS, NOW_MS)[1] == NOW_MS // HOUR_MS * HOUR_MS
    assert [_usage(url, clock, *one) for one in asked] == raw
    made = _hours(url)
    assert made
    assert not [row for row in made if row[6] == "model_not_found" and row[5]]
    _settle(store)
    assert _hours(url) == made


def test_a_late_call_makes_its_hour_again_wherever_it_falls(any_store: Any, call: Make, clock: Any) -> None:
    store, url = any_store
    clock.now_ms = NOW_MS
    rng = random.Random(8)
    _fill(store, call, rng, range(100), [2, 3, 9])
    _settle(store)
    for turn, hours in enumerate(([3], [5], [20], [2, 9, 21])):
        _fill(store, call, rng, range(1_000 * (turn + 1), 1_000 * (turn + 1) + 20), hours)
        window: tuple[int, int, str | None] = (NOW_MS - 40 * HOUR_MS, NOW_MS, None)
        with _reading(url) as conn:
            dirty = rollup.whole_hours(conn, *window[:2])
        before = _usage(url, clock, *window)
        _settle(store)
        with _reading(url) as conn:
            assert rollup.whole_hours(conn, *window[:2]) != dirty
        assert _usage(url, clock, *window) == before
    whole = _hours(url)
    assert sum(row[7] for row in whole) == 180


def test_only_hours_that_have_been_over_for_a_minute_are_made(any_store: Any, call: Make, clock: Any) -> None:
    store, url = any_store
    clock.now_ms = NOW_MS
    store.write([call(0, ended_at_ms=NOW_MS, attempts=())])
    clock.now_ms = NOW_MS + 30 * 60_000 + 59_000
    _settle(store)
    assert _hours(url) == []
    clock.now_ms += 1_000
    _settle(store)
    assert [row[7] for row in _hours(url)] == [1]


def test_an_hour_whose_calls_are_gone_keeps_its_sums(any_store: Any, call: Make, clock: Any) -> None:
    store, url = any_store
    clock.now_ms = NOW_MS
    store.write([call(n, ended_at_ms=NOW_MS - 2 * HOUR_MS, attempts=()) for n in range(3)])
    _settle(store)
    clock.now_ms += 31 * DAY_MS
    store.write([call(9, ended_at_ms=NOW_MS - 2 * HOUR_MS, attempts=())])
    _settle(store)
    assert [row[7] for row in _hours(url)] == [3]
    with _reading(url) as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM calls").scalar_one() == 0
