"""What one simulated engine is made of: the parameter table of engines §7, checked when the value is made.

A profile names a roofline (`timing`); the linear parameters are read only by the profile `default`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from turnout.sim.faults import Fault
from turnout.sim.kv_journal import KvEncoding, KvHashes

DEFAULT_BLOCKS = 32_768
LOAD_TOPIC = "load"

Profile = Literal["default", "8b", "70b", "moe"]
MetricNames = Literal["old", "new", "renamed"]
Role = Literal["prefill", "decode", "both"]
Dialect = Literal["vllm", "sglang"]
FailurePolicy = Literal["fail", "recompute"]

KV_TOKENS: dict[str, int] = {"8b": 390_000, "70b": 430_000, "moe": 2_500_000}
"""KV capacity of each roofline profile in tokens (engines §7)."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One simulated engine. Durations are seconds of engine time, before `speed` divides them.

    Raises ValueError from the constructor, naming field, value and range.
    """

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free port."""
    model: str = "sim"
    name: str = "engine"
    """Names the instance; replicas of one model differ here and share `model` and `seed`, hence their text."""
    seed: int = 0
    profile: Profile = "default"
    prefill_tokens_per_s: float = 8000.0
    max_num_batched_tokens: int = 2048
    step_base_s: float = 0.006
    step_per_seq_s: float = 0.00035
    step_per_context_token_s: float = 0.0
    mean_output_tokens: int = 128
    num_blocks: int | None = None
    """None: 32 768 for the profile `default`, else the profile's KV tokens."""
    block_tokens: int = 16
    cache_multiple: int = 1
    """Host tier: multiplies the blocks, without load cost."""
    max_num_seqs: int = 256
    max_model_len: int = 131_072
    speed: float = 1.0
    jitter: float = 0.0
    """Largest relative change of a step's duration, drawn from `name` and `seed`."""
    cached_tokens: bool = True
    """False: usage carries null instead of the cached tokens."""
    metric_names: MetricNames = "new"
    kv_events: str = ""
    """ZeroMQ address to publish KV events at, `tcp://127.0.0.1:*` takes a free port; empty: none."""
    kv_replay: str = ""
    """ZeroMQ address that answers replays; empty: none."""
    kv_topic: str = ""
    kv_load: str = ""
    """ZeroMQ address to publish load reports at, as SGLang does; empty: none."""
    kv_encoding: KvEncoding = "array"
    kv_hashes: KvHashes = "bytes"
    kv_delay_s: float = 0.0
    dp_size: int = 1
    """Data-parallel ranks, each with these blocks and its own KV events: the next port each."""
    dialect: Dialect = "vllm"
    """sglang: it also has `/generate`, `/server_info` (its role, where its events are) and `/v1/loads`."""
    role: Role = "both"
    """Which leg of a bootstrap hand-over it takes; those of NIXL say so themselves."""
    kv_host: str = ""
    """Host that a prefill engine names as its own; empty: `host`."""
    kv_lease_s: float = 30.0
    """How long blocks are kept that nobody has fetched."""
    kv_load_failure_policy: FailurePolicy = "fail"
    kv_bytes_per_token: float = 131_072.0
    transfer_bytes_per_s: float = 10e9
    transfer_setup_s: float = 0.002
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values outside their range; NaN fails every comparison and is refused with them."""
        for field, low, high in _RANGES:
            value = getattr(self, field)
            if value is not None and not low <= value <= high:
                message = f"{field} = {value!r}: expected a number from {low} to {high}"
                raise ValueError(message)
        if self.max_num_seqs > self.max_num_batched_tokens:
            message = (
                f"max_num_seqs = {self.max_num_seqs}: expected at most max_num_batched_tokens = "
                f"{self.max_num_batched_tokens}, since every running sequence takes one token per step"
            )
            raise ValueError(message)
        if self.dp_size > 1 and self.role != "both":
            message = f"dp_size = {self.dp_size}: expected 1 for the role {self.role}, which hands over on one rank"
            raise ValueError(message)
        if self.dp_size > 1 and any(
            address.endswith(":*") for address in (self.kv_events, self.kv_replay, self.kv_load)
        ):
            message = f"kv_events = {self.kv_events!r}: expected a port, since rank r takes the r-th after it"
            raise ValueError(message)
        if not self.model:
            message = "model = '': expected a name"
            raise ValueError(message)

    @property
    def blocks(self) -> int:
        """KV blocks in all, host tier included."""
        own = self.num_blocks or KV_TOKENS.get(self.profile, DEFAULT_BLOCKS * self.block_tokens) // self.block_tokens
        return own * self.cache_multiple

    @property
    def context_tokens(self) -> int:
        """Longest sequence: what the model allows and what the KV blocks can hold for one sequence alone."""
        return min(self.max_model_len, self.blocks * self.block_tokens)


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("port", 0, 65_535),
    ("dp_size", 1, 64),
    ("seed", 0, 2**64 - 1),
    ("prefill_tokens_per_s", 1e-3, 1e12),
    ("max_num_batched_tokens", 1, 2**20),
    ("step_base_s", 0, 3600),
    ("step_per_seq_s", 0, 3600),
    ("step_per_context_token_s", 0, 3600),
    ("mean_output_tokens", 1, 2**31),
    ("num_blocks", 1, 2**24),
    ("block_tokens", 1, 65_536),
    ("cache_multiple", 1, 64),
    ("max_num_seqs", 1, 65_536),
    ("max_model_len", 2, 2**26),
    ("speed", 1e-3, 1e6),
    ("jitter", 0, 0.3),
    ("kv_delay_s", 0, 3600),
    ("kv_lease_s", 1e-3, 86_400),
    ("kv_bytes_per_token", 1, 1e9),
    ("transfer_bytes_per_s", 1e3, 1e15),
    ("transfer_setup_s", 0, 3600),
)
