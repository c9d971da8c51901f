"""Attempts are priced by the version of the book that was in force when they began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from turnout.core import options
from turnout.core.pricing import Price, PriceBook
from turnout.ledger import connection, opening, prices
from turnout.ledger.sink import LedgerRefusedError
from turnout.ledger.writer import Ledger

BOOK = PriceBook.of(7, [Price(model="model-a", p_in=5_000_000, p_out=15_000_000)])


def test_cost_of_a_call_is_that_of_its_attempts(router: Any, script_engine: Any) -> None:
    one = router(script_engine())
    one.records.book = BOOK
    one.ask()
    fact = one.records.fact()
    (attempt,) = fact.attempts
    assert (attempt.tokens_in, attempt.tokens_out) == (3, 1)
    assert (attempt.cost_nusd, attempt.list_nusd) == (30_000, 30_000)
    assert (attempt.cost_basis, attempt.price_version) == ("computed", 7)
    assert (fact.cost_nusd, fact.cost_basis) == (30_000, "computed")


def test_attempt_without_an_answer_costs_nothing_that_is_known(router: Any, script_engine: Any, wire: Any) -> None:
    engines = [script_engine([wire.Cut(reset=True)]), script_engine()]
    one = router(*engines)
    one.records.book = BOOK
    for _ in range(2):
        one.ask()
    facts = [one.records.fact(index) for index in range(2)]
    attempts = [attempt for fact in facts for attempt in fact.attempts]
    assert any(attempt.error_kind for attempt in attempts)
    assert {attempt.cost_nusd for attempt in attempts if attempt.error_kind} == {None}
    assert [fact.cost_nusd for fact in facts] == [30_000, 30_000]


def test_attempt_keeps_the_book_of_its_start(router: Any, script_engine: Any, wire: Any) -> None:
    gate = wire.Gate()
    engine = script_engine([gate, wire.answer()])
    one = router(engine)
    one.records.book = BOOK
    client = one.client()
    client.send(one.request())
    engine.request()
    one.records.book = PriceBook.of(8, [Price(model="model-a", p_in=1, p_out=1)])
    gate.open()
    assert client.response().status == 200
    assert one.records.fact().attempts[0].price_version == 7


def test_without_a_book_the_cost_is_unknown(router: Any, script_engine: Any) -> None:
    one = router(script_engine())
    one.ask()
    fact = one.records.fact()
    assert (fact.cost_nusd, fact.cost_basis, fact.attempts[0].price_version) == (None, "", None)


def _one(router: Any, engine: Any, **endpoint: object) -> Any:
    named = {"name": "e1", "url": engine.url, "models": ["model-a"], **endpoint}
    one = router(engine, endpoint=[named])
    one.records.book = BOOK
    return one


def _answer(**usage: object) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 1, **usage}
    return json.dumps({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def test_prefers_provider_reported_cost(router: Any, script_engine: Any, wire: Any) -> None:
    one = _one(router, script_engine([wire.answer(_answer(cost=0.00025))]), provider="someone")
    one.ask()
    (attempt,) = one.records.fact().attempts
    assert (attempt.cost_nusd, attempt.cost_basis, attempt.list_nusd) == (250_000, "reported", 30_000)


@pytest.mark.parametrize("said", [True, -1, "a lot", {"usd": 1}, 1e300])
def test_a_cost_that_is_none_is_ignored(router: Any, script_engine: Any, wire: Any, said: object) -> None:
    one = _one(router, script_engine([wire.answer(_answer(cost=said))]))
    one.ask()
    (attempt,) = one.records.fact().attempts
    assert (attempt.tokens_in, attempt.cost_nusd, attempt.cost_basis) == (3, 30_000, "computed")


def test_subscription_is_zero_even_if_priced(router: Any, script_engine: Any, wire: Any) -> None:
    one = _one(router, script_engine([wire.answer(_answer(cost=0.5))]), flat_rate=True)
    one.ask()
    fact = one.records.fact()
    assert (fact.cost_nusd, fact.cost_basis, fact.attempts[0].list_nusd) == (0, "subscription", 30_000)


def _prices(path: Path, dollars: str) -> Path:
    path.write_text(f'[[price]]\nmodel = "model-a"\ninput = "{dollars}"\noutput = 15\n')
    return path


def test_each_change_of_the_price_file_is_a_version(any_store: tuple[Any, str], tmp_path: Path, clock: Any) -> None:
    _, url = any_store
    file = tmp_path / "prices.toml"
    engine = connection.writing(url)
    for dollars, expected in (("5", 1), ("5", None), ("5.0", None), ("6", 2), ("5", 3)):
        with engine.begin() as conn:
            assert prices.add_once(conn, _prices(file, dollars), clock()) == expected
    with engine.begin() as conn:
        book = prices.load(conn, prices.in_force(conn, clock()))
        assert (book.version, book.prices["", "model-a"].p_in) == (3, 5_000_000)
        file.write_text("[[price]]\nmodel = 7\n")
        with pytest.raises(LedgerRefusedError, match=r"prices\[0\]"):
            prices.add_once(conn, file, clock())
        file.write_text("no toml")
        with pytest.raises(LedgerRefusedError, match=r"prices\.toml"):
            prices.add_once(conn, file, clock())
    engine.dispose()


def test_a_ledger_opens_with_its_price_file_and_without_a_bad_one(tmp_path: Path, clock: Any, events: Any) -> None:
    for text, name in (("5", "prices_imported"), ("dear", "prices_refused")):
        file = _prices(tmp_path / f"{name}.toml", text)
        section = options.Ledger(url=f"sqlite:///{tmp_path / name}.db")
        opening.open_store(section, router_id="r", clock_ms=clock, on_event=events, prices=str(file)).close()
    assert events.names == ["ledger_upgraded", "prices_imported", "ledger_upgraded", "prices_refused"]


def test_prices_and_spending_are_known_to_the_first_request(tmp_path: Path, clock: Any) -> None:
    section = options.Ledger(url=f"sqlite:///{tmp_path / 'ledger.db'}")
    for file, days in ((str(_prices(tmp_path / "prices.toml", "5")), 0), ("", 1)):
        ledger = Ledger(section, router_id="r", clock_ms=clock, prices=file)
        ledger.spending.days = days
        ledger.start()
        try:
            assert ledger.prices().version == 1
            assert ledger.spending.spent_nusd(("t", "k"), 1, clock()) == (0 if days else None)
        finally:
            assert ledger.close() == 0
