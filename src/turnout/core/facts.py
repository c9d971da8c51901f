"""Raw facts about ended attempts and closed exchanges: what the ledger stores and the metrics count.

Field names, units and meanings are the columns of ledger §2 and §3. Instants are int64 milliseconds UTC,
durations integer milliseconds (half up) of the monotonic clock, money int64 nano-USD. No prompt or answer text.
"""

from __future__ import annotations

import msgspec


class RouteKey(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The one identity of a route: provider, model, replica ("" for a provider's deployment)."""

    provider: str
    model: str
    replica: str


class AttemptFact(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One ended attempt (`phase` solo or pair) or one of its legs (prefill, decode)."""

    attempt_no: int
    phase: str
    route: RouteKey | None
    kind: str
    started_at_ms: int
    ended_at_ms: int
    ok: bool
    counted: bool
    committed: bool
    error_kind: str = ""
    http_status: int | None = None
    e2e_ms: int | None = None
    ttft_ms: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int | None = None
    tokens_cache_write: int | None = None
    usage_source: str = "none"
    tools_requested: bool = False
    tools_emitted: bool = False
    cost_nusd: int | None = None
    cost_basis: str = ""
    list_nusd: int | None = None
    price_version: int | None = None


class CallFact(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One closed exchange with all its attempts: exactly one per accepted request."""

    call_id: str
    request_id: str
    started_at_ms: int
    ended_at_ms: int
    e2e_ms: int
    tenant: str
    key_id: str
    dialect: str
    path: str
    stream: bool
    requested_model: str
    outcome: str
    cls: str
    http_status: int
    attempts: tuple[AttemptFact, ...] = ()
    router_id: str = ""
    queue_ms: int | None = None
    decide_us: int | None = None
    ttft_ms: int | None = None
    session_id: str | None = None
    user_id: str | None = None
    selected_model: str = ""
    reason: str = ""
    bundle_version: str = ""
    knobs_hash: str = ""
    clusters: str = ""
    score_e9: int | None = None
    route: RouteKey | None = None
    prefix_blocks: int | None = None
    prefix_matched_blocks: int | None = None
    error_kind: str = ""
    committed: bool = False
    resumed: bool = False
    hedged: bool = False
    recovered: bool = False
    est_tokens: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int | None = None
    tokens_cache_write: int | None = None
    tokens_reasoning: int | None = None
    usage_source: str = "none"
    tools_requested: bool = False
    tools_emitted: bool = False
    cache_match: str = ""
    cache_similarity_e3: int | None = None
    cache_source: str | None = None
    saved_nusd: int | None = None
    cost_nusd: int | None = None
    cost_basis: str = ""
    reserved_nusd: int | None = None
    decision: bytes | None = None
    """The explain document as JSON (at most 16 KiB), rendered off the request path; None when not kept."""
