"""What an engine says of itself, whatever family it is; None is unknown and never zero (engines §2)."""

from __future__ import annotations

import msgspec


class Report(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One scrape, summed over ranks. Counts of requests and tokens; `kv_usage_ratio` is the fullest rank's."""

    running: int | None = None
    waiting: int | None = None
    waiting_uncached_tokens: int | None = None
    kv_usage_ratio: float | None = None
    kv_capacity_tokens: int | None = None
    block_tokens: int | None = None
    max_running: int | None = None
    prefix_tokens_asked: float | None = None
    prefix_tokens_found: float | None = None
    preemptions: float | None = None
    generated_tokens: float | None = None
    prompt_tokens: float | None = None
    failed_transfers: float | None = None
    """KV transfers that failed since it started, told to nobody else where the engine recomputes."""
    kv_dtype: str = ""
    started_at: float | None = None
    sleeping: bool = False
