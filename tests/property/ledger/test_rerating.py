"""Whatever versions are applied to whatever periods: budgets say what plain Python says, on both databases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turnout.core.facts import AttemptFact, CallFact, RouteKey
from turnout.core.pricing import Price, PriceBook, Tokens
from turnout.ledger import audit, connection, rerating, schema, sqlite, upgrade

DAY_MS = 86_400_000
# An instant in the middle of three days; attempts and calls end in any of them.
BASE_MS = 1_794_000_000_000
PROVIDERS = ["", "p"]
BILLING = PriceBook.of(1, [Price(model="m", p_in=2_500_000, p_out=10_000_000)])

instants = st.integers(-DAY_MS, DAY_MS) | st.sampled_from([-1, 0, 1])
sizes = st.none() | st.integers(0, 3_000)
price = st.none() | st.sampled_from([0, 37_500, 1_000_000, 5_000_000])


@st.composite
def books(draw: Any) -> PriceBook:
    rows = [
        Price(provider=provider, model="m", p_in=draw(price), p_out=draw(price))
        for provider in draw(st.sets(st.sampled_from(PROVIDERS)))
    ]
    return PriceBook.of(draw(st.integers(2, 9)), rows)


@st.composite
def histories(draw: Any) -> list[CallFact]:
    return [draw(calls(n)) for n in range(draw(st.integers(1, 6)))]


@st.composite
def calls(draw: Any, n: int) -> CallFact:
    legs = tuple(draw(attempts(number)) for number in range(1, 1 + draw(st.integers(0, 3))))
    costs = [leg.cost_nusd for leg in legs if leg.cost_nusd is not None]
    recovered = draw(st.integers(0, 5)) == 0
    return CallFact(
        call_id=f"01JCALL{n:019d}",
        request_id="",
        started_at_ms=BASE_MS - 2 * DAY_MS,
        ended_at_ms=BASE_MS + draw(instants),
        e2e_ms=1,
        tenant=draw(st.sampled_from(["a", "b"])),
        key_id=draw(st.sampled_from(["", "k"])),
        dialect="openai",
        path="/",
        stream=False,
        requested_model="m",
        outcome=draw(st.sampled_from(["completed", "completed", "client_gone", ""])),
        cls="ok",
        http_status=200,
        attempts=legs,
        cost_nusd=sum(costs) if costs and not recovered else None,
        recovered=recovered,
    )


@st.composite
def attempts(draw: Any, number: int) -> AttemptFact:
    provider, tokens = draw(st.sampled_from(PROVIDERS)), Tokens(draw(sizes), draw(sizes))
    computed = draw(st.integers(0, 3)) > 0
    cost = BILLING.list_nusd(provider, "m", tokens) if computed else draw(st.none() | st.integers(0, 9))
    return AttemptFact(
        attempt_no=number,
        phase="solo",
        route=RouteKey(provider, "m", ""),
        kind="first",
        started_at_ms=BASE_MS - 2 * DAY_MS,
        ended_at_ms=BASE_MS + draw(instants),
        ok=True,
        counted=True,
        committed=True,
        tokens_in=tokens.tokens_in,
        tokens_out=tokens.tokens_out,
        cost_nusd=cost,
        cost_basis="computed" if computed else "reported",
    )


steps = st.lists(st.tuples(books(), instants, st.integers(0, DAY_MS)), min_size=1, max_size=4)


class Reference:
    """What each attempt counts, read by plain Python."""

    def __init__(self, facts: list[CallFact]) -> None:
        self.facts = [fact for fact in facts if fact.outcome]
        self._counts = {(f.call_id, leg.attempt_no): leg.cost_nusd or 0 for f in facts for leg in f.attempts}

    def apply(self, book: PriceBook, from_ms: int, until_ms: int) -> None:
        for fact in self.facts:
            for leg in fact.attempts:
                if leg.cost_basis == "computed" and from_ms <= leg.ended_at_ms < until_ms and leg.route is not None:
                    cost = book.list_nusd(leg.route.provider, "m", Tokens(leg.tokens_in, leg.tokens_out))
                    self._counts[fact.call_id, leg.attempt_no] = leg.cost_nusd or 0 if cost is None else cost

    def spent(self) -> dict[tuple[str, str, int], int]:
        found: dict[tuple[str, str, int], int] = defaultdict(int)
        for fact in self.facts:
            if fact.cost_nusd is not None:
                day = fact.ended_at_ms // DAY_MS * DAY_MS
                counts = [self._counts[fact.call_id, leg.attempt_no] for leg in fact.attempts]
                found[fact.tenant, fact.key_id, day] += sum(counts)
        return {key: nusd for key, nusd in found.items() if nusd}


class Side:
    """One database, emptied between histories."""

    def __init__(self, store: Any, url: str) -> None:
        self.store, self._url = store, url
        self._writing, self._reading = connection.writing(url), connection.reading(url)

    def empty(self) -> None:
        with self._writing.begin() as conn:
            names = ("attempt_buckets", "late_buckets", "attempts", "calls", "dirty_hours", "budgets")
            for name in (*names, "budget_moves", "rerated"):
                conn.execute(sa.delete(schema.metadata.tables[name]))

    def rerate(self, number: int, book: PriceBook, from_ms: int, until_ms: int, *, dry_run: bool) -> Any:
        given: dict[str, Any] = {"from_ms": from_ms, "until_ms": until_ms, "rerate_id": number, "dry_run": dry_run}
        with (self._reading if dry_run else self._writing).begin() as conn:
            found = rerating.rerate(conn, book, apply_budgets=True, **given)
        return found.sums, found.moves

    def spent(self) -> dict[tuple[str, str, int], int]:
        with self._reading.begin() as conn:
            rows = conn.execute(sa.text("SELECT tenant, key_id, day_ms, spent_nusd FROM budgets"))
            return {(row[0], row[1], row[2]): row[3] for row in rows if row[3]}

    def problems(self) -> list[str]:
        found = audit.run(self._url, BASE_MS + 2 * DAY_MS).problems
        return [problem for problem in found if problem.startswith("budget")]

    def close(self) -> None:
        self.store.close()
        self._writing.dispose()
        self._reading.dispose()


@pytest.fixture(scope="module")
def sides(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Side]]:
    from turnout.ledger import postgres as postgres_store
    from turnout.ledger import server_upgrade

    given: dict[str, Any] = {"router_id": "r", "clock_ms": lambda: BASE_MS, "retention_days": 30, "decisions_days": 7}
    path: Path = tmp_path_factory.mktemp("rerating") / "turnout.db"
    upgrade.prepare(path, clock_ms=lambda: BASE_MS, on_event=lambda name, /, **fields: None)
    url = postgres.new_database()
    server_upgrade.run(url)
    made = [
        Side(sqlite.open_store(path, **given), f"sqlite:///{path}"),
        Side(postgres_store.open_store(url, **given), url),
    ]
    yield made
    for side in made:
        side.close()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories(), steps)
def test_budgets_say_what_the_last_version_says_of_each_attempt(
    sides: list[Side], facts: list[CallFact], applied: list[tuple[PriceBook, int, int]]
) -> None:
    reference = Reference(facts)
    for side in sides:
        side.empty()
        side.store.write(facts)
        assert side.spent() == reference.spent()
    for number, (book, offset_ms, length_ms) in enumerate(applied):
        period = BASE_MS + offset_ms, BASE_MS + offset_ms + length_ms
        reference.apply(book, *period)
        seen = []
        for side in sides:
            told = side.rerate(0, book, *period, dry_run=True)
            assert side.rerate(2 * number, book, *period, dry_run=False) == told
            assert side.rerate(2 * number + 1, book, *period, dry_run=False) == (told[0], [])
            assert side.spent() == reference.spent()
            assert side.problems() == []
            seen.append(told)
        assert seen[0] == seen[1]
