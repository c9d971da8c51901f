"""What scheduling is asked and what it decides; the decision keeps columns, explanations are rendered afterwards."""

from __future__ import annotations

import enum

import msgspec

from turnout.core.fleet.endpoint import EndpointState


class DropReason(enum.StrEnum):
    """Why an endpoint is no candidate. The order is that of the filters; from `BREAKER_OPEN` on they are soft."""

    MODEL_NOT_SERVED = "model_not_served"
    ROLE_MISMATCH = "role_mismatch"
    CONTEXT_TOO_SMALL = "context_too_small"
    TRIED = "tried"
    DRAINING = "draining"
    GONE = "gone"
    UNREACHABLE = "unreachable"
    SATURATED = "saturated"
    BREAKER_OPEN = "breaker_open"
    EJECTED = "ejected"
    PROBE_FAILING = "probe_failing"
    STANDBY = "standby"
    COOLDOWN = "cooldown"
    SLOW_START = "slow_start"


class Ask(msgspec.Struct, gc=False):
    """What the scheduler has to know of one request.

    `keys` must not change afterwards. `tokens` is the estimate T, `block_tokens` how many tokens one block stands for
    (text: `block_bytes / bytes_per_token`). `relax` allows soft filters to be relaxed on a later attempt (N2 (5));
    a first attempt, one without `tried`, may always relax.
    """

    model: str
    keys: list[int]
    tokens: int
    estimate_floor: int
    tried: tuple[str, ...] = ()
    session: int = 0
    relax: bool = False
    block_tokens: float = 64.0


class Decision(msgspec.Struct, gc=False):
    """One choice with its reasons. Columns run parallel to `members`: the candidates, sorted by name.

    The columns may be shared with the pool and other decisions: read only. `totals` is empty when the policy had no
    need of them; `explain` computes them with the same formula. `reports` has (running, waiting, age_s) per candidate
    and is empty when no endpoint ever reported.
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
    totals: list[float] = []
    recency: list[int] = []
    draws: list[int] = []

    @property
    def matched_tokens(self) -> int:
        """Tokens of the prompt that the picked endpoint holds, as far as we know."""
        return min(int(self.matched_blocks * self.block_tokens), self.tokens)
