"""What is replayed on what: one frozen value per run, checked when it is made; a run is its options and its seed."""

from __future__ import annotations

import math
from typing import Literal, get_args

import msgspec

from turnout.core.disagg_options import Disagg
from turnout.sim.options import KV_TOKENS
from turnout.sim.replay.sequence import Shape
from turnout.sim.timing import ROOFLINES

Knowledge = Literal["exact", "approximate"]
Reports = Literal["tokens", "waiting", "counts", "none"]
KV_BYTES_PER_TOKEN = {"8b": 131_072.0, "70b": 327_680.0, "moe": 70_000.0}
BATCHED_TOKENS = 2048
CONTEXT_TOKENS = {"8b": 131_072, "70b": 131_072, "moe": 200_000}
"""What models of these sizes accept (ADR 0032)."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happens to one engine: `dead` (loses everything, refuses connections) or `slow`."""

    kind: Literal["dead", "slow"]
    engine: int
    """Number of the engine, from 0."""
    from_s: float = 0.0
    until_s: float = math.inf
    factor: float = 2.0
    """slow: steps take this many times as long."""


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """The objective of one request: TTFT ≤ max(`ttft_s`, `cold_multiple` × its own cold prefill), TPOT ≤ `tpot_s`."""

    ttft_s: float = 1.0
    cold_multiple: float = 2.0
    tpot_s: float = 0.1


class ReplayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One set-up. Raises ValueError naming field, value and range."""

    endpoints: int = 8
    profile: str = "8b"
    cache_multiple: float = 1.0
    """Prefix cache as a multiple of the KV memory; the part beyond 1 is a host tier without load cost."""
    kv_tokens: int | None = None
    """KV memory of an engine in tokens; None: the profile's."""
    load: float = 1.0
    """Open traces: multiple of the trace's own rate."""
    sessions_per_s: float = 0.05
    """Session traces: new sessions per second, Poisson."""
    think_max_s: float = 60.0
    """Session traces: the longest pause between an answer and the next request; infinity plays them as recorded."""
    context_max: int | None = None
    """Longest prompt and output of the model; longer requests are refused and change nothing. None: the profile's."""
    requests_max: int | None = None
    """Only the first so many requests (open) or sessions (closed)."""
    routers: int = 1
    bus: bool = False
    """Routers tell one another what they dispatch."""
    bus_delay_s: float = 0.005
    scrape_interval_s: float | None = None
    """None: 0.2 s, or 0.05 s for several routers without a bus; 0 never scrapes."""
    report_delay_s: float = 0.0
    """How old a load report is when it arrives."""
    reports: Reports = "tokens"
    """What engines report beyond counts of requests, as vLLM does: all prompt tokens still to be computed, those of
    waiting requests only, no more than `counts`, or nothing at all."""
    knowledge: Knowledge = "exact"
    """KV events, or the routers' own history only."""
    event_delay_s: float = 0.0
    event_loss: float = 0.0
    """Share of KV event batches that never arrive."""
    estimate_sigma: float = 0.0
    """Prompt sizes that the router sees are off by a lognormal factor of this sigma."""
    faults: tuple[Fault, ...] = ()
    slo: Slo = Slo()
    prefill_endpoints: int = 0
    """So many engines prefill, the others decode; 0: every engine does both."""
    decode_chunk_tokens: int | None = None
    """Batch budget of engines that decode, as deployments set it so that answers run evenly; None: as all."""
    disagg: Disagg = Disagg()
    """How pairs are chosen, and what a transfer takes; bytes per token are the profile's."""
    hold_prefill_s: float | None = None
    """None: the default of `scheduling.hold_prefill_s`."""
    gate_regret: float | None = None

    def __post_init__(self) -> None:
        """Refuse values outside their range; NaN fails every comparison and is refused with them."""
        for field, low, high in _RANGES:
            value = getattr(self, field)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{field} = {value!r}: expected a number from {low} to {high}")
        if self.profile not in ROOFLINES:
            raise ValueError(f"profile = {self.profile!r}: expected one of {', '.join(sorted(ROOFLINES))}")
        for name, kind in (("reports", Reports), ("knowledge", Knowledge)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected one of {', '.join(get_args(kind))}")
        if self.prefill_endpoints >= self.endpoints:
            raise ValueError(
                f"prefill_endpoints = {self.prefill_endpoints}: expected fewer than endpoints = {self.endpoints}"
            )
        for fault in self.faults:
            if not 0 <= fault.engine < self.endpoints:
                raise ValueError(f"faults: engine = {fault.engine}, expected 0 to {self.endpoints - 1}")
            if not 0 <= fault.from_s < fault.until_s:
                raise ValueError(f"faults: from {fault.from_s} until {fault.until_s}, expected a time that passes")

    @property
    def context(self) -> int:
        """Longest prompt and output in tokens that the engines accept."""
        return self.context_max or CONTEXT_TOKENS[self.profile]

    @property
    def pairs(self) -> Disagg:
        """How pairs are chosen, with the size of this profile's KV blocks."""
        return msgspec.structs.replace(self.disagg, kv_bytes_per_token=KV_BYTES_PER_TOKEN[self.profile])

    @property
    def interval_s(self) -> float:
        """Seconds between load reports of an engine; 0: none."""
        if self.reports == "none":
            return 0.0
        if self.scrape_interval_s is not None:
            return self.scrape_interval_s
        return 0.05 if self.routers > 1 and not self.bus else 0.2

    def shape(self, block_tokens: int, place: int | None = None) -> Shape:
        """Return the engine with this number, for traces of this block size; without a number, the profile's own."""
        decodes = place is not None and place >= self.prefill_endpoints
        hold = (self.kv_tokens or KV_TOKENS[self.profile]) // block_tokens
        return Shape(
            timing=ROOFLINES[self.profile],
            block_tokens=block_tokens,
            hold_blocks=hold,
            cache_blocks=int(hold * self.cache_multiple),
            max_batched_tokens=(self.decode_chunk_tokens if decodes else None) or BATCHED_TOKENS,
        )


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("endpoints", 1, 512),
    ("cache_multiple", 1, 64),
    ("kv_tokens", 1024, 2**40),
    ("load", 1e-3, 1e3),
    ("sessions_per_s", 1e-6, 1e3),
    ("think_max_s", 0, math.inf),
    ("context_max", 2, 2**30),
    ("requests_max", 1, 2**31),
    ("prefill_endpoints", 0, 512),
    ("decode_chunk_tokens", 256, 65_536),
    ("routers", 1, 64),
    ("bus_delay_s", 0, 3600),
    ("scrape_interval_s", 0, 3600),
    ("report_delay_s", 0, 3600),
    ("event_delay_s", 0, 86_400),
    ("event_loss", 0, 1),
    ("estimate_sigma", 0, 2),
    ("hold_prefill_s", 0, 3600),
    ("gate_regret", 0, 1),
)


def cold_prefill_s(shape: Shape, prompt_tokens: int) -> float:
    """Prefill alone on an idle engine of this shape, chunk by chunk: the reference of the objective."""
    from turnout.sim.timing import Batch

    total = 0.0
    before = 0
    while before < prompt_tokens:
        chunk = min(shape.max_batched_tokens, prompt_tokens - before)
        before += chunk
        total += shape.timing.duration_s(
            Batch(prefill_tokens=chunk, chunk_context=chunk * before, prefill_context=before)
        )
    return total
