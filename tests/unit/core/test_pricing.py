"""Costs to the nano-USD, from the examples of the specification (ledger §7)."""

from typing import Any

import pytest

from turnout.core.pricing import Cost, Price, PriceBook, Tokens, micro_usd, reported_nusd


def book(**price: Any) -> PriceBook:
    return PriceBook.of(3, [Price(model="m", **price)])


@pytest.mark.parametrize(
    ("price", "tokens", "nusd"),
    [
        ({"p_in": 5_000_000, "p_out": 15_000_000}, Tokens(1000, 10, 800), 1_550_000),
        ({"p_in": 50_000, "p_out": 400_000}, Tokens(7, 3), 1_550),
        ({"p_in": 37_500}, Tokens(1), 38),
        ({"p_in": 75_000}, Tokens(1, None, 1), 8),
        ({"p_in": 0, "p_out": 0}, Tokens(10**9, 10**9), 0),
        ({"p_in": 1_000_000, "p_write": 2_000_000}, Tokens(100, 0, 20, 30), 50_000 + 2_000 + 60_000),
        ({"p_in": 1_000_000, "above_tokens": 10, "p_in_above": 2_000_000}, Tokens(10), 10_000),
        ({"p_in": 1_000_000, "above_tokens": 10, "p_in_above": 2_000_000}, Tokens(11), 22_000),
        ({"p_in": 1_000_000}, Tokens(None, None), 0),
    ],
)
def test_computed_costs(price: dict[str, int], tokens: Tokens, nusd: int) -> None:
    assert book(**price).cost("p", "m", tokens) == Cost(nusd, "computed", nusd, 3)


def test_computed_fallback_discounts_cached_tokens() -> None:
    assert book(p_in=10_000_000).list_nusd("p", "m", Tokens(100, 0, 100)) == 100_000
    assert book(p_in=10_000_000, p_cached=0).list_nusd("p", "m", Tokens(100, 0, 100)) == 0


def test_an_unknown_price_of_used_tokens_makes_the_cost_unknown() -> None:
    assert book(p_in=1).cost("p", "m", Tokens(1, 1)) == Cost(None, "", None, None)
    assert PriceBook.of(None, []).cost("p", "m", Tokens(1)) == Cost(None, "", None, None)


def test_prefers_provider_reported_cost() -> None:
    assert book(p_in=1_000_000).cost("p", "m", Tokens(1000), reported="0.5") == Cost(
        500_000_000, "reported", 1_000_000, 3
    )


def test_subscription_is_zero_even_if_priced() -> None:
    assert book(p_in=1_000_000).cost("p", "m", Tokens(1000), subscription=True, reported=9) == Cost(
        0, "subscription", 1_000_000, 3
    )


def test_the_row_of_the_provider_wins() -> None:
    both = PriceBook.of(1, [Price(model="m", p_in=1_000), Price(provider="p", model="m", p_in=2_000)])
    assert (both.list_nusd("p", "m", Tokens(1000)), both.list_nusd("q", "m", Tokens(1000))) == (2_000, 1_000)


@pytest.mark.parametrize(
    "value", [True, None, -1, -0.5, "-0.0", float("nan"), float("inf"), "1e400", "abc", [], "9" * 65, 10**11, "1_0x"]
)
def test_spend_is_never_negative(value: object) -> None:
    assert reported_nusd(value) is None


@pytest.mark.parametrize(
    ("value", "nusd"), [(0, 0), (1, 10**9), (0.1, 10**8), ("0.0000000005", 1), ("1e-9", 1), (1e-10, 0)]
)
def test_reported_costs_are_read_exactly(value: object, nusd: int) -> None:
    assert reported_nusd(value) == nusd


def test_negative_price_never_bills_negative() -> None:
    assert Price(model="m", p_in=-1).problem() == "*/m: p_in is -1, expected 0 to 1000000000000"
    assert Price(model="m", above_tokens=-1).problem() is not None
    for bad in (-1, "NaN", "Infinity", "x", 2_000_000):
        with pytest.raises(ValueError, match="price"):
            micro_usd(bad)
    assert (micro_usd(0.0375), micro_usd("0.0000005"), micro_usd(5)) == (37_500, 1, 5_000_000)
