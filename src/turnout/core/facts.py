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
    """One closed exchange with all its attempts: exactly one per accepted request.

    With an empty `outcome` the exchange is still open, and the fact is only its attempts that ended: recorded at once,
    they survive a kill, and the closing fact repeats them without effect.
    """

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


class OpenedCall(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What is known of a request when it is accepted: enough for its row, should the process be killed."""

    call_id: str
    request_id: str
    started_at_ms: int
    tenant: str
    key_id: str
    session_id: str | None
    dialect: str
    path: str
    stream: bool
    requested_model: str
    selected_model: str = ""
    est_tokens: int | None = None
    reserved_nusd: int | None = None


class RouteStats(msgspec.Struct, frozen=True, gc=False):
    """Sums over attempts in a window (ledger §6). Never merged by means: add, then divide."""

    n: int = 0
    counted_n: int = 0
    ok_n: int = 0
    e2e_n: int = 0
    e2e_sum_ms: int = 0
    ttft_n: int = 0
    ttft_sum_ms: int = 0

    @property
    def success_rate(self) -> float | None:
        """Successes as a share of the attempts whose end says something about the route; None without any."""
        return self.ok_n / self.counted_n if self.counted_n else None

    @property
    def e2e_mean_ms(self) -> int | None:
        """Mean duration of successes, rounded half up; None without any."""
        return (2 * self.e2e_sum_ms + self.e2e_n) // (2 * self.e2e_n) if self.e2e_n else None

    @property
    def ttft_mean_ms(self) -> int | None:
        """Mean time to the first token of successes that have one, rounded half up; None without any."""
        return (2 * self.ttft_sum_ms + self.ttft_n) // (2 * self.ttft_n) if self.ttft_n else None

    def plus(self, other: RouteStats) -> RouteStats:
        """Merge two sets of attempts."""
        return RouteStats(
            self.n + other.n,
            self.counted_n + other.counted_n,
            self.ok_n + other.ok_n,
            self.e2e_n + other.e2e_n,
            self.e2e_sum_ms + other.e2e_sum_ms,
            self.ttft_n + other.ttft_n,
            self.ttft_sum_ms + other.ttft_sum_ms,
        )


class Percentiles(msgspec.Struct, frozen=True, gc=False):
    """Durations of the successes of one route, by nearest rank; None without any."""

    e2e_p50_ms: int | None = None
    e2e_p95_ms: int | None = None
    ttft_p50_ms: int | None = None
    ttft_p95_ms: int | None = None


class Streak(msgspec.Struct, frozen=True, gc=False):
    """Failures in a row at the end of an identity's history (ledger §6)."""

    failures: int
    tier: int
    """0: the last result was a success, 1: no evidence, 2: failed and the cooldown is over, 3: cooling down."""
    last_failure_at_ms: int = 0
    kind: str = ""
    http_status: int | None = None
    cooldown_until_ms: int = 0


class StatsSnapshot(msgspec.Struct, frozen=True):
    """What derived statistics were at `observed_at_ms`: read by look-up, replaced as a whole, never changed."""

    observed_at_ms: int = 0
    derive_ms: int = 0
    window_ms: int = 0
    routes: dict[RouteKey, RouteStats] = {}
    models: dict[str, RouteStats] = {}
    tool_incapable: frozenset[RouteKey] = frozenset()
    route_streaks: dict[RouteKey, Streak] = {}
    endpoint_streaks: dict[tuple[str, str], Streak] = {}
    """By (provider, replica)."""
    percentiles: dict[RouteKey, Percentiles] = {}
    percentiles_at_ms: int = 0
    """Percentiles are of their own, earlier instant: they cost the rows, where sums cost what is new."""
