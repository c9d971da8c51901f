"""Values of every dialect: what an engine counted, and what we refuse."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts as the engine reported them; None is unknown, never zero (engines §3)."""

    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int | None = None
    tokens_reasoning: int | None = None
    tokens_cache_write: int | None = None
    cost_usd: float | int | str | None = None
    """What the provider says it bills, as it stands in the answer; `core.pricing` judges it."""


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """A refusal before the exchange opens (request-path §10): nothing is written to the ledger."""

    status: int
    code: str
    message: str
    param: str | None = None
    type: str = "invalid_request_error"
    retry_after_s: int | None = None
    close: bool = False
    headers: tuple[tuple[bytes, bytes], ...] = ()
