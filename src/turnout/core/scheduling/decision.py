"""What scheduling decides. A decision keeps columns; explanations are rendered afterwards.

Compiled classes and no `msgspec.Struct`: a request reads and writes sixty of their attributes (docs/adr/0004).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.precision import Mode
from turnout.core.scheduling.types import Verdict

COST_NAMES = (
    "decode",
    "eviction",
    "eviction_tau_s",
    "guard_ratio",
    "guard_s",
    "interference",
    "pace",
    "queue",
    "shadow_price",
)


class Costs:
    """The constants of the default policy (scheduling §5.2). No options: one setting serves chats, agents and the rest.

    They stand in each explanation, so that it can be computed again. `step_prior` and the like live with what learns.
    """

    __slots__ = COST_NAMES

    def __init__(
        self,
        *,
        queue: float = 1.25,
        shadow_price: float = 2.0,
        interference: float = 0.02,
        pace: float = 2.0,
        decode: float = 1.0,
        eviction: float = 1.0,
        eviction_tau_s: float = 300.0,
        guard_s: float = 20.0,
        guard_ratio: float = 0.9,
    ) -> None:
        self.queue: Final = queue
        """Per second of queued prefill: what is joined to a queue delays whoever comes after it, too (ADR 75)."""
        self.shadow_price: Final = shadow_price
        """A prefill done twice also delays everybody behind it and evicts their blocks."""
        self.interference: Final = interference
        """Per running sequence: a prefill slows the decodes beside it."""
        self.pace: Final = pace
        """π per share of the last seconds spent on prefill: spread, it slows many answers a little, not some a lot.

        Measured by replay (benchmarks/REPLAY.md): 4 % more capacity on chat."""
        self.decode: Final = decode
        """Per active request and second of step: alone it decides when nothing is reused."""
        self.eviction: Final = eviction
        """Do not push out a warm session for a cold one ..."""
        self.eviction_tau_s: Final = eviction_tau_s
        """... as long as it may come back."""
        self.guard_s: Final = guard_s
        """Per unit of overshoot of `guard_ratio`: avoids preemption."""
        self.guard_ratio: Final = guard_ratio

    def params(self) -> dict[str, float]:
        """Return the constants by name, as explanations show them."""
        return {name: getattr(self, name) for name in COST_NAMES}


DEFAULT_COSTS: Final = Costs()
_APPROXIMATE: Final = Mode.APPROXIMATE


_COLUMNS = (
    "beta",
    "block_tokens",
    "blocks",
    "busy",
    "cached",
    "costs",
    "counter",
    "credits",
    "depths",
    "dp_rank",
    "draws",
    "dropped",
    "fallback",
    "form",
    "held",
    "in_flight",
    "last",
    "matched_blocks",
    "members",
    "mode",
    "model",
    "modes",
    "names",
    "now",
    "packed",
    "picked",
    "policy",
    "predicted",
    "prefix_result",
    "recency",
    "regret",
    "relaxed",
    "reports",
    "retry_at",
    "rows",
    "text_block_bytes",
    "tie",
    "tokens",
    "totals",
    "uncached",
)


class Decision:
    """One choice with its reasons. Columns run parallel to `members`: the candidates, sorted by name.

    The columns may be shared with the pool and other decisions: read only. `totals` is empty when the policy had no
    need of them; `explain` computes them with the same formula. `reports` has (running, waiting, age_s) per candidate
    and is empty when no endpoint ever reported. `rows` has what else the policy reads, one tuple per candidate, named
    by `policies.COLUMNS`. `cached` has the tokens believed to be cached per candidate; empty when nobody holds any.
    """

    __slots__ = _COLUMNS

    def __init__(
        self,
        picked: EndpointState | None,
        model: str,
        policy: str,
        members: list[EndpointState],
        names: tuple[str, ...],
        depths: list[int],
        busy: list[float],
        in_flight: list[float],
        blocks: int,
        tokens: int,
        block_tokens: float,
        beta: float,
        prefix_result: str,
        now: float,
        counter: int,
        last: str,
        dropped: tuple[tuple[str, str], ...] = (),
        relaxed: tuple[str, ...] = (),
        reports: tuple[tuple[int | None, int | None, float | None], ...] = (),
    ) -> None:
        self.picked = picked
        self.model = model
        self.policy = policy
        self.members = members
        self.names = names
        self.depths = depths
        self.busy = busy
        self.in_flight = in_flight
        self.blocks = blocks
        self.tokens = tokens
        self.block_tokens = block_tokens
        self.beta = beta
        self.prefix_result = prefix_result
        self.now = now
        self.counter = counter
        self.last = last
        self.dropped = dropped
        self.relaxed = relaxed
        self.reports = reports
        self.matched_blocks = 0
        self.predicted = 0
        self.uncached = 0
        self.tie = self.fallback = self.form = ""
        self.totals: Sequence[float] = ()
        self.recency: Sequence[int] = ()
        self.draws: Sequence[int] = ()
        self.rows: Sequence[tuple[float, ...]] = ()
        self.packed = b""
        """Some columns (`packing`), when nobody decides by them any more: one object and not dozens of floats."""
        self.cached: Sequence[float] = ()
        self.costs = DEFAULT_COSTS
        self.mode = _APPROXIMATE
        """Where the knowledge of the picked endpoint's cache came from; `modes` per candidate, empty: own history."""
        self.modes: Sequence[Mode] = ()
        self.credits: Sequence[float] = ()
        """Tokens that each candidate holds, lower tiers at their credit; empty: depth times block size."""
        self.held = ""
        """Why the request waits: `queue` (every candidate has enough queued prefill) or `cold_gate`."""
        self.retry_at = 0.0
        """HELD: ask again at this instant at the latest, and earlier when something ends, starts or is reported."""
        self.regret = 0.0
        self.text_block_bytes = 0
        """Size of a block where the prompt is matched by its text; 0: by its tokens."""
        self.dp_rank = -1
        """Data-parallel rank of the picked endpoint; -1: it has one, or chooses itself."""

    @property
    def verdict(self) -> Verdict:
        """What this decision says."""
        if self.picked is not None:
            return Verdict.PICKED
        return Verdict.HELD if self.held else Verdict.NO_CANDIDATE

    def columns_of(self, other: Decision) -> None:
        """Take over everything that another decision says."""
        for name in _COLUMNS:
            setattr(self, name, getattr(other, name))

    def copied(self) -> Decision:
        """Return a decision that says the same."""
        twin = Decision(None, "", "", [], (), [], [], [], 0, 0, 0.0, 0.0, "", 0.0, 0, "")
        twin.columns_of(self)
        return twin


class PairFacts:
    """Why a request was split, or not: `uncached` is u on the best decode endpoint, totals in seconds."""

    __slots__ = ("decider", "pair_s", "reason", "solo_s", "tokens", "transfer_s", "uncached")

    def __init__(self, decider: str, uncached: float, tokens: int, pair_s: float, solo_s: float) -> None:
        self.decider = decider
        self.uncached = uncached
        self.tokens = tokens
        self.pair_s = pair_s
        self.solo_s = solo_s
        self.transfer_s = 0.0
        self.reason = ""


_OF_PAIRS = ("pair", "prefill", "prefill_depth", "prefill_predicted", "prefill_uncached")


class PairDecision(Decision):
    """A decision of a pool with roles. `picked` is the decode leg, or the one endpoint that serves it all."""

    __slots__ = _OF_PAIRS

    def __init__(self, alike: Decision) -> None:
        super().__init__(None, "", "", [], (), [], [], [], 0, 0, 0.0, 0.0, "", 0.0, 0, "")
        self.columns_of(alike)
        self.prefill: EndpointState | None = None
        self.prefill_depth = 0
        self.prefill_predicted = 0
        self.prefill_uncached = 0
        self.pair: PairFacts | None = None

    def copied(self) -> PairDecision:
        """Return a decision that says the same."""
        twin = PairDecision(self)
        for name in _OF_PAIRS:
            setattr(twin, name, getattr(self, name))
        return twin
