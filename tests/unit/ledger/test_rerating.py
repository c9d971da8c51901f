"""What a re-rating says of a period, and what it moves: golden numbers by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from turnout.core.pricing import Price, PriceBook
from turnout.ledger import audit, connection, rerating, retention
from turnout.ledger.rerating import Moved, Rerated, Rerating

Make = Callable[..., Any]
DAY_MS = 86_400_000
# 1,000 tokens in and 100 out: 3,500,000 nano-USD by the first, 1,400,000 by the second.
BILLED = 3_500_000
FIRST = PriceBook.of(1, [Price(model="model-a", p_in=2_500_000, p_out=10_000_000)])
CHEAPER = PriceBook.of(2, [Price(model="model-a", p_in=1_000_000, p_out=4_000_000)])
FREE = PriceBook.of(3, [Price(model="model-a", p_in=0, p_out=0)])
OTHERS = PriceBook.of(4, [Price(model="model-z", p_in=1, p_out=1)])
EVER: dict[str, int] = {"from_ms": 0, "until_ms": 2**60}


@pytest.fixture
def billed(call: Make, attempt: Make, clock: Any) -> Make:
    """One call with one attempt that was billed by the first version."""

    def make(n: int = 0, *, leg: dict[str, Any] | None = None, **fields: Any) -> Any:
        tokens = {"tokens_in": 1_000, "tokens_out": 100, "cost_nusd": BILLED, "cost_basis": "computed"}
        at = fields.get("ended_at_ms", clock())
        one = attempt(ended_at_ms=at, **{**tokens, **(leg or {})})
        return call(n, attempts=(one,), **{"cost_nusd": one.cost_nusd, "cost_basis": "computed", **fields})

    return make


class Ledger:
    """The file of a store as a command sees it."""

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self._path, self._clock, self._turn = path, clock, 0

    def rerate(self, book: PriceBook, **given: Any) -> Rerating:
        self._turn += 1
        with connection.writing_engine(self._path).connect() as conn, conn.begin():
            wanted = {**EVER, "rerate_id": self._turn, "dry_run": False, "apply_budgets": True, **given}
            return rerating.rerate(conn, book, **wanted)

    def rows(self, sql: str) -> list[Any]:
        with connection.reading_engine(self._path).connect() as conn:
            return [tuple(row) for row in conn.execute(sa.text(sql))]

    @property
    def spent(self) -> dict[tuple[str, int], int]:
        """What tenants have spent, by the distance of the day from today."""
        today = self._clock() // DAY_MS
        found = self.rows("SELECT tenant, day_ms, spent_nusd FROM budgets")
        return {(tenant, day // DAY_MS - today): nusd for tenant, day, nusd in found}

    @property
    def problems(self) -> list[str]:
        return audit.run(f"sqlite:///{self._path}", self._clock()).problems


@pytest.fixture
def ledger(database: Path, clock: Any) -> Ledger:
    return Ledger(database, clock)


def test_spending_moves_to_what_the_version_says_and_bills_stay(store: Any, billed: Make, ledger: Ledger) -> None:
    store.write([billed(0), billed(1, tenant="other")])
    found = ledger.rerate(CHEAPER)
    assert found.sums == [Rerated(name, "", 1, BILLED, 1_400_000, 0) for name in ("acme", "other")]
    assert [(move.tenant, move.key_id, move.nusd) for move in found.moves] == [
        ("acme", "batch", -2_100_000),
        ("other", "batch", -2_100_000),
    ]
    assert ledger.spent == {("acme", 0): 1_400_000, ("other", 0): 1_400_000}
    assert ledger.rows("SELECT DISTINCT c.cost_nusd, a.cost_nusd FROM calls c JOIN attempts a USING (call_id)") == [
        (BILLED, BILLED)
    ]
    assert ledger.problems == []


def test_the_same_version_twice_moves_nothing_and_says_the_same(store: Any, billed: Make, ledger: Ledger) -> None:
    store.write([billed(0)])
    first, second = ledger.rerate(CHEAPER), ledger.rerate(CHEAPER)
    assert second.sums == first.sums
    assert second.moves == []
    assert ledger.spent == {("acme", 0): 1_400_000}


def test_the_version_that_billed_moves_nothing(store: Any, billed: Make, ledger: Ledger) -> None:
    store.write([billed(0)])
    assert ledger.rerate(FIRST).moves == []
    assert ledger.rows("SELECT * FROM budget_moves") == []


def test_a_later_version_moves_by_the_difference_to_the_last(store: Any, billed: Make, ledger: Ledger) -> None:
    store.write([billed(0)])
    moves = [ledger.rerate(book).moves[0].nusd for book in (CHEAPER, FREE, FIRST)]
    assert moves == [-2_100_000, -1_400_000, 3_500_000]
    assert ledger.spent == {("acme", 0): BILLED}
    assert ledger.problems == []


def test_a_call_that_was_free_gets_a_budget_row(store: Any, billed: Make, ledger: Ledger) -> None:
    store.write([billed(0, leg={"cost_nusd": 0})])
    assert ledger.spent == {}
    ledger.rerate(FIRST)
    assert ledger.spent == {("acme", 0): BILLED}
    assert ledger.problems == []


def test_what_a_version_has_no_price_for_counts_as_billed(store: Any, billed: Make, ledger: Ledger) -> None:
    store.write([billed(0)])
    assert ledger.rerate(OTHERS).moves == []
    ledger.rerate(CHEAPER)
    found = ledger.rerate(OTHERS)
    assert found.sums == [Rerated("acme", "", 1, BILLED, 0, 1)]
    assert ledger.spent == {("acme", 0): BILLED}


def test_a_call_counts_on_the_day_it_ended_and_an_attempt_in_the_period_it_ended(
    store: Any, call: Make, attempt: Make, ledger: Ledger, clock: Any
) -> None:
    midnight = clock() // DAY_MS * DAY_MS
    paid = {"tokens_in": 1_000, "tokens_out": 100, "cost_nusd": BILLED, "cost_basis": "computed"}
    legs = (attempt(ended_at_ms=midnight - 1, **paid), attempt(attempt_no=2, ended_at_ms=midnight, **paid))
    store.write([call(0, ended_at_ms=midnight, attempts=legs, cost_nusd=2 * BILLED)])
    store.write([call(1, ended_at_ms=midnight - 1, attempts=legs[:1], cost_nusd=BILLED)])
    before = ledger.rerate(CHEAPER, until_ms=midnight)
    assert before.moves == [
        Moved("acme", "batch", midnight - DAY_MS, -2_100_000),
        Moved("acme", "batch", midnight, -2_100_000),
    ]
    assert ledger.rerate(CHEAPER, from_ms=midnight).moves == [Moved("acme", "batch", midnight, -2_100_000)]
    assert ledger.spent == {("acme", -1): 1_400_000, ("acme", 0): 2_800_000}
    assert ledger.problems == []


def test_open_and_recovered_calls_count_in_no_budget(store: Any, billed: Make, ledger: Ledger) -> None:
    store.write([billed(0, outcome=""), billed(1, recovered=True, cost_nusd=None)])
    found = ledger.rerate(CHEAPER)
    assert found.sums == [Rerated("", "", 1, BILLED, 1_400_000, 0), Rerated("acme", "", 1, BILLED, 1_400_000, 0)]
    assert found.moves == []
    store.write([billed(0)])
    assert ledger.spent == {("acme", 0): BILLED}
    assert [move.nusd for move in ledger.rerate(CHEAPER).moves] == [-2_100_000]


def test_legs_of_a_split_attempt_are_rated_each_by_its_own_tokens(
    store: Any, call: Make, attempt: Make, ledger: Ledger
) -> None:
    paid = {"cost_basis": "computed"}
    legs = (
        attempt(phase="pair", route=None),
        attempt(phase="prefill", tokens_in=1_000, cost_nusd=2_500_000, **paid),
        attempt(phase="decode", tokens_out=100, cost_nusd=1_000_000, **paid),
    )
    store.write([call(0, attempts=legs, cost_nusd=BILLED, cost_basis="computed")])
    assert ledger.rerate(FIRST).moves == []
    found = ledger.rerate(CHEAPER)
    assert found.sums == [Rerated("acme", "", 2, BILLED, 1_400_000, 0)]
    assert ledger.spent == {("acme", 0): 1_400_000}
    assert ledger.problems == []


@pytest.mark.parametrize("basis", ["reported", "subscription", ""])
def test_only_computed_costs_are_rated_again(store: Any, billed: Make, ledger: Ledger, basis: str) -> None:
    store.write([billed(0, leg={"cost_basis": basis})])
    found = ledger.rerate(CHEAPER)
    assert (found.sums, found.moves) == ([], [])


def test_cached_tokens_are_discounted(store: Any, billed: Make, ledger: Ledger) -> None:
    store.write([billed(0, leg={"tokens_cached": 800, "tokens_out": 10, "cost_nusd": 7})])
    book = PriceBook.of(5, [Price(model="model-a", p_in=5_000_000, p_out=15_000_000)])
    assert ledger.rerate(book).moves[0].nusd == 1_550_000 - 7


def test_a_dry_run_says_what_would_move_and_moves_nothing(store: Any, billed: Make, ledger: Ledger) -> None:
    store.write([billed(0)])
    told = ledger.rerate(CHEAPER, dry_run=True)
    assert (told.moves[0].nusd, ledger.spent) == (-2_100_000, {("acme", 0): BILLED})
    assert ledger.rows("SELECT * FROM budget_moves") == ledger.rows("SELECT * FROM rerated") == []
    assert ledger.rerate(CHEAPER).moves == told.moves


def test_without_being_asked_no_budget_moves(store: Any, billed: Make, ledger: Ledger) -> None:
    store.write([billed(0)])
    assert ledger.rerate(CHEAPER, apply_budgets=False).moves == []
    assert ledger.spent == {("acme", 0): BILLED}
    assert ledger.rows("SELECT cost_nusd, list_nusd FROM rerated") == [(1_400_000, 1_400_000)]


def test_more_attempts_than_a_page_move_one_budget(store: Any, billed: Make, ledger: Ledger) -> None:
    store.write([billed(n) for n in range(5_001)])
    assert [move.nusd for move in ledger.rerate(CHEAPER).moves] == [-2_100_000 * 5_001]
    assert ledger.rerate(CHEAPER).moves == []
    assert ledger.problems == []


def test_what_was_moved_and_rated_goes_with_its_calls(store: Any, billed: Make, ledger: Ledger, clock: Any) -> None:
    now_ms = clock()
    old_ms = now_ms - 29 * DAY_MS
    calls = [(retention.ulid_floor(at) + "0" * 15 + str(n), at) for n, at in enumerate((old_ms, now_ms, old_ms))]
    store.write([billed(0, call_id=call_id, ended_at_ms=at + 1) for call_id, at in calls])
    ledger.rerate(CHEAPER)
    ledger.rerate(FREE, apply_budgets=False)
    kept = "SELECT count(*) FROM budget_moves UNION ALL SELECT count(*) FROM rerated"
    ages = retention.Ages(calls_days=30, decisions_days=7)
    for days, left in ((0, [(3,), (6,)]), (2, [(1,), (2,)]), (32, [(0,), (0,)])):
        clock.now_ms = now_ms + days * DAY_MS
        with connection.writing_engine(ledger._path).connect() as conn:
            while retention.prune(conn, clock(), ages):
                pass
        assert ledger.rows(kept) == left
        assert ledger.problems == []
