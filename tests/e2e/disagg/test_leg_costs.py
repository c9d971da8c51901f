"""A split request costs what its legs cost, each by its own tokens, and that once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from turnout.core.pricing import Price, PriceBook

# Prefill and decode by another hand each, so that a leg priced by the other's price shows.
BOOK = PriceBook.of(
    7,
    [
        Price(provider="pre", model="model-a", p_in=5_000_000, p_out=7_000_000_000),
        Price(provider="dec", model="model-a", p_in=9_000_000_000, p_out=15_000_000),
    ],
)


@pytest.fixture
def split(start_router: Any, fleet_of: Any, flow: str) -> Any:
    """Start a router over a pair whose legs have providers of their own."""

    def start(**endpoint: Any) -> Any:
        fleet = fleet_of(flow, {"p0": "prefill", "d0": "decode"})
        tables = [
            {**table, "provider": "pre" if table["name"] == "p0" else "dec", **endpoint} for table in fleet.tables
        ]
        router = start_router(endpoint=tables, disagg={"decider": "always"})
        router.records.book = BOOK
        return router

    return start


def test_legs_are_priced_by_their_own_tokens_and_the_attempt_has_no_money(split: Any, wire: Any) -> None:
    one = split()
    asked = one.ask(wire.chat(max_tokens=24), b"x-turnout-session-totals: on", b"x-turnout-session: s")
    assert asked.status == 200
    fact = one.records.fact()
    pair, prefill, decode = fact.attempts
    assert (pair.cost_nusd, pair.cost_basis, pair.list_nusd, pair.price_version) == (None, "", None, None)
    assert prefill.cost_nusd == prefill.list_nusd == fact.tokens_in * 5_000
    assert decode.cost_nusd == decode.list_nusd == fact.tokens_out * 15_000
    assert {(row.cost_basis, row.price_version) for row in (prefill, decode)} == {("computed", 7)}
    assert (fact.cost_nusd, fact.cost_basis) == (prefill.cost_nusd + decode.cost_nusd, "computed")
    told = asked.json["x_turnout"]["session"]["cost_usd"]
    assert told == f"0.{fact.cost_nusd:09d}"


def test_a_flat_rate_makes_both_legs_free(split: Any, wire: Any) -> None:
    one = split(flat_rate=True)
    assert one.ask(wire.chat(max_tokens=4)).status == 200
    fact = one.records.fact()
    assert [row.cost_nusd for row in fact.attempts] == [None, 0, 0]
    assert (fact.cost_nusd, fact.cost_basis) == (0, "subscription")
    assert [row.list_nusd for row in fact.attempts] == [None, fact.tokens_in * 5_000, fact.tokens_out * 15_000]


def test_without_a_book_no_leg_has_a_cost(split: Any, wire: Any) -> None:
    one = split()
    one.records.book = PriceBook.of(None, ())
    assert one.ask(wire.chat(max_tokens=4)).status == 200
    fact = one.records.fact()
    assert {(row.cost_nusd, row.cost_basis) for row in fact.attempts} == {(None, "")}
    assert (fact.cost_nusd, fact.cost_basis) == (None, "")


def test_a_leg_without_a_price_is_told_from_one_that_is_free(split: Any, wire: Any) -> None:
    one = split()
    one.records.book = PriceBook.of(7, [Price(provider="pre", model="model-a", p_in=5_000_000)])
    assert one.ask(wire.chat(max_tokens=4)).status == 200
    fact = one.records.fact()
    assert [row.cost_nusd for row in fact.attempts] == [None, fact.tokens_in * 5_000, None]
    assert (fact.cost_nusd, fact.cost_basis) == (fact.tokens_in * 5_000, "computed")


@pytest.mark.parametrize("place", ["sockets"], indirect=True)
@pytest.mark.parametrize("flow", ["nixl"], indirect=True)
def test_a_reported_cost_stands_with_the_leg_that_answered(
    start_router: Any, script_engine: Any, wire: Any, flow: str
) -> None:
    def said(**members: Any) -> bytes:
        usage = {"prompt_tokens": 3, "completion_tokens": 1, **members.pop("usage", {})}
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        return bytes(wire.answer(json.dumps({"id": "c", "choices": [choice], "usage": usage, **members}).encode()))

    where = {"do_remote_prefill": True, "remote_engine_id": "p", "remote_block_ids": [1], "remote_host": "127.0.0.1"}
    engines = {
        "prefill": script_engine([said(kv_transfer_params={**where, "remote_port": 1, "do_remote_decode": False})]),
        "decode": script_engine([said(usage={"cost": 0.00025})]),
    }
    tables = [
        {
            "name": role,
            "url": engine.url,
            "models": [wire.MODEL],
            "role": role,
            "provider": role[:3],
            "kv_transport": flow,
            "kv_ports": [1, 1],
        }
        for role, engine in engines.items()
    ]
    one = start_router(endpoint=tables, disagg={"decider": "always"})
    one.records.book = BOOK
    assert one.ask().status == 200
    fact = one.records.fact()
    assert [row.cost_nusd for row in fact.attempts] == [None, 0, 250_000]
    assert [row.list_nusd for row in fact.attempts] == [None, 15_000, 15_000]
    assert (fact.cost_nusd, fact.cost_basis) == (250_000, "reported")
