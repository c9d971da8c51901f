"""What an engine counted, whatever its dialect."""

from __future__ import annotations

from typing import Final

_Fields = tuple[int | None, int | None, int | None, int | None, int | None, float | int | str | None]


class Usage:
    """Token counts as the engine reported them; None is unknown, never zero (engines §3). A value: never changed."""

    __slots__ = (
        "cost_usd",
        "tokens_cache_write",
        "tokens_cached",
        "tokens_in",
        "tokens_out",
        "tokens_reasoning",
    )

    def __init__(
        self,
        tokens_in: int | None = None,
        tokens_out: int | None = None,
        tokens_cached: int | None = None,
        tokens_reasoning: int | None = None,
        tokens_cache_write: int | None = None,
        cost_usd: float | str | None = None,
    ) -> None:
        self.tokens_in: Final = tokens_in
        self.tokens_out: Final = tokens_out
        self.tokens_cached: Final = tokens_cached
        self.tokens_reasoning: Final = tokens_reasoning
        self.tokens_cache_write: Final = tokens_cache_write
        self.cost_usd: Final = cost_usd
        """What the provider says it bills, as it stands in the answer; `core.pricing` judges it."""

    def with_cached(self, tokens: int | None) -> Usage:
        """Return the same counts with another one of cached tokens."""
        written = self.tokens_cache_write
        return Usage(self.tokens_in, self.tokens_out, tokens, self.tokens_reasoning, written, self.cost_usd)

    def _fields(self) -> _Fields:
        return (
            self.tokens_in,
            self.tokens_out,
            self.tokens_cached,
            self.tokens_reasoning,
            self.tokens_cache_write,
            self.cost_usd,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Usage) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        return f"Usage{self._fields()!r}"
