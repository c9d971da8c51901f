"""What scheduling is asked and what it decides; the decision keeps columns, explanations are rendered afterwards."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.precision import Mode


class DropReason(enum.StrEnum):
    """Why an endpoint is no candidate. The order is that of the filters; from `BREAKER_OPEN` on they are soft."""

    MODEL_NOT_SERVED = "model_not_served"
    ROLE_MISMATCH = "role_mismatch"
    DIALECT_NOT_SPOKEN = "dialect_not_spoken"
    CONTEXT_TOO_SMALL = "context_too_small"
    NEVER_FITS = "never_fits"
    TRIED = "tried"
    DRAINING = "draining"
    GONE = "gone"
    UNREACHABLE = "unreachable"
    SATURATED = "saturated"
    CAPABILITY_MISSING = "capability_missing"
    BREAKER_OPEN = "breaker_open"
    EJECTED = "ejected"
    PROBE_FAILING = "probe_failing"
    STANDBY = "standby"
    COOLDOWN = "cooldown"
    SLOW_START = "slow_start"


class Verdict(enum.StrEnum):
    """What a decision says. `HELD`: ask again later, nothing was taken; `NO_CANDIDATE`: `dropped` says why."""

    PICKED = "picked"
    HELD = "held"
    NO_CANDIDATE = "no_candidate"


class Costs(msgspec.Struct, frozen=True, gc=False):
    """The constants of the default policy (scheduling §5.2). No options: one setting serves chats, agents and the rest.

    They stand in each explanation, so that it can be computed again. `step_prior` and the like live with what learns.
    """

    queue: float = 1.25
    """Per second of queued prefill: what is joined to a queue delays whoever comes after it, too (ADR 75)."""
    shadow_price: float = 2.0
    """A prefill done twice also delays everybody behind it and evicts their blocks."""
    interference: float = 0.02
    """Per running sequence: a prefill slows the decodes beside it."""
    pace: float = 2.0
    """π per share of the last seconds spent on prefill: spread, it slows many answers a little, not some a lot.

    Measured by replay (benchmarks/REPLAY.md): 4 % more capacity on chat."""
    decode: float = 1.0
    """Per active request and second of step: alone it decides when nothing is reused."""
    eviction: float = 1.0
    """Do not push out a warm session for a cold one ..."""
    eviction_tau_s: float = 300.0
    """... as long as it may come back."""
    guard_s: float = 20.0
    """Per unit of overshoot of `guard_ratio`: avoids preemption."""
    guard_ratio: float = 0.9


DEFAULT_COSTS = Costs()


class Decision(msgspec.Struct, gc=False):
    """One choice with its reasons. Columns run parallel to `members`: the candidates, sorted by name.

    The columns may be shared with the pool and other decisions: read only. `totals` is empty when the policy had no
    need of them; `explain` computes them with the same formula. `reports` has (running, waiting, age_s) per candidate
    and is empty when no endpoint ever reported. `rows` has what else the policy reads, one tuple per candidate, named
    by `policies.COLUMNS`. `cached` has the tokens believed to be cached per candidate; empty when nobody holds any.
    """

    picked: EndpointState | None
    model: str
    policy: str
    members: list[EndpointState]
    names: tuple[str, ...]
    depths: list[int]
    busy: list[float]
    in_flight: list[float]
    blocks: int
    tokens: int
    block_tokens: float
    beta: float
    prefix_result: str
    now: float
    counter: int
    last: str
    dropped: tuple[tuple[str, str], ...] = ()
    relaxed: tuple[str, ...] = ()
    reports: tuple[tuple[int | None, int | None, float | None], ...] = ()
    matched_blocks: int = 0
    uncached: int = 0
    tie: str = ""
    fallback: str = ""
    totals: Sequence[float] = ()
    recency: Sequence[int] = ()
    draws: Sequence[int] = ()
    rows: Sequence[tuple[float, ...]] = ()
    packed: bytes = b""
    """Some columns (`packing`), when nobody decides by them any more: one object to keep and not dozens of floats."""
    cached: Sequence[float] = ()
    form: str = ""
    costs: Costs = DEFAULT_COSTS
    predicted: int = 0
    mode: Mode = Mode.APPROXIMATE
    """Where the knowledge of the picked endpoint's cache came from; `modes` per candidate, empty: own history."""
    modes: Sequence[Mode] = ()
    credits: Sequence[float] = ()
    """Tokens that each candidate holds, lower tiers at their credit; empty: depth times block size."""
    held: str = ""
    """Why the request waits: `queue` (every candidate has enough queued prefill) or `cold_gate`."""
    retry_at: float = 0.0
    """HELD: ask again at this instant at the latest, and earlier when something ends, starts or is reported."""
    regret: float = 0.0
    text_block_bytes: int = 0
    """Size of a block where the prompt is matched by its text; 0: by its tokens."""
    dp_rank: int = -1
    """Data-parallel rank of the picked endpoint; -1: it has one, or chooses itself."""

    @property
    def verdict(self) -> Verdict:
        """What this decision says."""
        if self.picked is not None:
            return Verdict.PICKED
        return Verdict.HELD if self.held else Verdict.NO_CANDIDATE
