"""What an attempt costs: integers only, one exact rational per attempt, rounded half up once (ledger §7).

Money is nano-USD, prices are micro-USD per million tokens; a price of None is unknown, 0 is free. An unknown price of a
token class that was used makes the cost unknown, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from fractions import Fraction

import msgspec

PRICE_MAX = 10**12
_NANO = 10**9
_COST_MAX = 2**63 - 1


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """Prices of one model at one provider (`provider` empty: at any)."""

    provider: str = ""
    model: str
    p_in: int | None = None
    p_out: int | None = None
    p_cached: int | None = None
    p_write: int | None = None
    above_tokens: int | None = None
    """From more input tokens than this on, the `_above` prices hold for the whole attempt."""
    p_in_above: int | None = None
    p_out_above: int | None = None

    def problem(self) -> str | None:
        """Name the first field that no price book may hold; None when all are fine."""
        for name in ("p_in", "p_out", "p_cached", "p_write", "p_in_above", "p_out_above"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= PRICE_MAX:
                return f"{self.provider or '*'}/{self.model}: {name} is {value}, expected 0 to {PRICE_MAX}"
        if self.above_tokens is not None and self.above_tokens < 0:
            return f"{self.provider or '*'}/{self.model}: above_tokens is {self.above_tokens}, expected 0 or more"
        return None


class Tokens(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one attempt; unknown counts are None and cost nothing."""

    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int | None = None
    tokens_cache_write: int | None = None


class Cost(msgspec.Struct, frozen=True, gc=False):
    """Cost of one attempt: what is billed and why, and the list price, by which version of the book."""

    cost_nusd: int | None
    basis: str
    list_nusd: int | None
    price_version: int | None


class PriceBook(msgspec.Struct, frozen=True):
    """One version. The row of (provider, model) wins over the one of the model alone."""

    version: int | None
    prices: dict[tuple[str, str], Price]
    cached_factor: Fraction

    @classmethod
    def of(cls, version: int | None, prices: Iterable[Price], cached_factor: float = 0.1) -> PriceBook:
        """Index prices; `cached_factor` prices cached tokens where a row does not."""
        rows = {(price.provider, price.model): price for price in prices}
        return cls(version, rows, Fraction(repr(cached_factor)))

    def price(self, provider: str, model: str) -> Price | None:
        """Give the row that holds."""
        return self.prices.get((provider, model)) or self.prices.get(("", model))

    def list_nusd(self, provider: str, model: str, tokens: Tokens) -> int | None:
        """Give the cost at list price; None when a class of tokens that was used has no known price."""
        price = self.price(provider, model)
        return computed_nusd(price, tokens, self.cached_factor) if price is not None else None

    def cost(
        self, provider: str, model: str, tokens: Tokens, *, subscription: bool = False, reported: object = None
    ) -> Cost:
        """Price an attempt: flat rate, else what the answer says (`reported`, USD), else what the book says."""
        listed = self.list_nusd(provider, model, tokens)
        version = self.version if listed is not None else None
        if subscription:
            return Cost(0, "subscription", listed, version)
        said = reported_nusd(reported)
        if said is not None:
            return Cost(said, "reported", listed, version)
        return Cost(listed, "computed" if listed is not None else "", listed, version)


def reported_nusd(value: object) -> int | None:
    """Read a cost in USD that an answer carries: number or decimal string, finite, not negative; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and len(value) > 64:  # noqa: PLR2004 - no price has more digits, and parsing is bounded
        return None
    try:
        amount = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    except (InvalidOperation, ValueError):
        return None
    if not amount.is_finite() or amount.is_signed() or amount.adjusted() > 10:  # noqa: PLR2004 - beyond int64 nano-USD
        return None
    nusd = _half_up(Fraction(amount) * _NANO)
    return nusd if nusd <= _COST_MAX else None


def computed_nusd(price: Price, tokens: Tokens, cached_factor: Fraction) -> int | None:
    """Compute the cost at list price; None when a class of tokens that was used has no known price."""
    tokens_in = max(0, tokens.tokens_in or 0)
    cached = max(0, tokens.tokens_cached or 0)
    write = max(0, tokens.tokens_cache_write or 0)
    out = max(0, tokens.tokens_out or 0)
    above = price.above_tokens is not None and tokens_in > price.above_tokens
    p_in = price.p_in_above if above and price.p_in_above is not None else price.p_in
    p_out = price.p_out_above if above and price.p_out_above is not None else price.p_out
    p_cached: Fraction | int | None = price.p_cached
    if p_cached is None and p_in is not None and cached:
        p_cached = p_in * cached_factor
    classes = (
        (max(0, tokens_in - cached - write), p_in),
        (cached, p_cached),
        (write, price.p_write if price.p_write is not None else p_in),
        (out, p_out),
    )
    total: Fraction | int = 0
    for count, each in classes:
        if count and each is None:
            return None
        total += count * (each or 0)
    # Without cached tokens everything is an integer, and the division is as exact at a tenth of the price.
    nusd = (2 * total + 1000) // 2000 if isinstance(total, int) else _half_up(total / 1000)
    return nusd if nusd <= _COST_MAX else None


def usd(nusd: int) -> str:
    """Write nano-USD as decimal USD, exactly."""
    return f"{nusd // _NANO}.{nusd % _NANO:09d}"


def micro_usd(price: float | str) -> int:
    """Turn a price per million tokens in USD into micro-USD, half up.

    Raises:
        ValueError: not a finite number from 0 up to a million.
    """
    try:
        amount = Decimal(repr(price)) if isinstance(price, float) else Decimal(price)
    except InvalidOperation:
        raise ValueError(f"price {price!r}: expected a number") from None
    if not amount.is_finite() or not 0 <= amount <= PRICE_MAX // 10**6:
        raise ValueError(f"price {price!r}: expected 0 to {PRICE_MAX // 10**6} USD")
    return _half_up(Fraction(amount) * 10**6)


def _half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))
