"""Options of scheduling, the prefix index and the engines' load reports; read through `turnout.core.options`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from turnout.core.option_types import Count, Ratio, Seconds, Section, doc

PolicyName = Literal[
    "turnout",
    "affinity_load",
    "least_busy",
    "round_robin",
    "random",
    "power_of_two",
    "longest_prefix",
    "first_block",
    "consistent_hash",
    "memory_aware",
    "prompt_length_aware",
    "sglang_cache_aware",
    "dynamo_cost",
    "llm_d_default",
    "aibrix_prefix",
    "least_predicted_ttft",
]


SessionKey = Literal[
    "x-turnout-session",
    "session_id",
    "session_params.session_id",
    "prompt_cache_key",
    "conversation",
    "metadata.session_id",
    "metadata.user_id",
    "x-session-id",
    "x-dynamo-session-id",
    "x-smg-routing-key",
    "x-claude-code-session-id",
    "session-id",
    "thread-id",
    "user",
    "x-user-id",
]


class Scheduling(Section, frozen=True, kw_only=True):
    """Which endpoint serves an attempt (scheduling §5)."""

    policy: Annotated[PolicyName, doc("The rule of the pools that name none.")] = "turnout"
    affinity_beta: Annotated[
        float, Meta(ge=0, le=1000), doc("affinity_load: weight of load relative to the pool's mean.")
    ] = 1.0
    affinity_form: Annotated[
        Literal["mean_relative", "free_capacity"], doc("affinity_load: how load and match are joined.")
    ] = "mean_relative"
    affinity_match: Annotated[
        Literal["contiguous", "first_block", "deepest_row"], doc("affinity_load: which blocks count as a match.")
    ] = "contiguous"
    affinity_weight: Annotated[Ratio, doc("affinity_load, free_capacity: weight of the match, the rest is load.")] = 0.5
    hold_prefill_s: Annotated[
        float,
        Meta(ge=0, le=3600),
        doc("turnout: a request waits here while every candidate has more queued prefill than this; 0 never holds."),
    ] = 0.25
    hold_samples: Annotated[
        int,
        Meta(ge=0, le=1_000_000),
        doc("turnout: nobody is held before every candidate's prefill was measured this often: a guess is no queue."),
    ] = 1
    gate_regret: Annotated[
        Ratio, doc("turnout: from this share of recomputed evictions cold requests wait; 1 switches the gate off.")
    ] = 0.35
    gate_age_s: Annotated[Seconds, doc("turnout: blocks used within this time are not evicted for a cold request.")] = (
        240.0
    )
    gate_wait_s: Annotated[Seconds, doc("turnout: longest wait of a cold request at the gate.")] = 120.0
    session_keys: Annotated[
        list[SessionKey] | None,
        doc("Headers and body members that name a session, the first that is there wins; absent: all, as in docs."),
    ] = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1), doc("Seed of rotations and random choices.")] = 0
    prior_prefill_tokens_per_s: Annotated[
        float, Meta(gt=0, le=1e9), doc("Prefill rate assumed before any is measured.")
    ] = 8000.0
    decisions_max: Annotated[Count, doc("Decisions kept in memory for /x/decisions/{id}.")] = 1024


class Prefix(Section, frozen=True, kw_only=True):
    """Block keys and the prefix index (scheduling §1, §2, §3)."""

    block_bytes: Annotated[int, Meta(ge=64, le=4096), doc("Bytes of rendering per block in the text space.")] = 256
    block_tokens: Annotated[int, Meta(ge=1, le=4096), doc("Tokens per block where no engine names its own size.")] = 64
    max_blocks_per_request: Annotated[Count, doc("Blocks hashed per request; the rest counts as truncated.")] = 4096
    max_blocks: Annotated[
        Annotated[int, Meta(ge=0, le=2**31)] | None, doc("Entries over all generations; 0 switches the index off.")
    ] = 1_000_000
    ttl_s: Annotated[Seconds, doc("An entry unused for this long may go.")] = 300.0
    generations: Annotated[int, Meta(ge=2, le=16), doc("Number of maps that age together.")] = 3
    max_slots: Annotated[int, Meta(ge=1, le=4096), doc("Endpoint incarnations with an own bit.")] = 512
    retention: Annotated[
        Literal["ttl", "refcount"], doc("refcount: an entry lives only while an attempt that recorded it is open.")
    ] = "ttl"
    tenant_salt: Annotated[bool, doc("Tenants never share block keys.")] = False
    exact_max_blocks: Annotated[Count, doc("Pairs of endpoint and block known from KV events, all endpoints.")] = (
        4_000_000
    )
    predicted_ttl_s: Annotated[Seconds, doc("How long our own dispatch stands in for its KV event.")] = 5.0
    event_silence_s: Annotated[Seconds, doc("A publisher silent for this long while attempts finish is doubted.")] = (
        30.0
    )
    tokenize: Annotated[
        Literal["off", "auto"],
        doc("auto: an engine's tokenise call turns texts into ids where a cache is known from KV events."),
    ] = "off"
    tokenize_min_tokens: Annotated[Count, doc("Shorter prompts are matched by their text.")] = 1024
    tokenize_timeout_ms: Annotated[Count, doc("A request waits this long for its ids, then goes on without.")] = 20
    tier_credit: Annotated[
        list[Ratio], Meta(min_length=4, max_length=4), doc("Worth of a block in GPU, host, external and disk memory.")
    ] = msgspec.field(default_factory=lambda: [1.0, 0.8, 0.6, 0.3])


class Load(Section, frozen=True, kw_only=True):
    """Engine reports: metrics that are scraped, with their age (scheduling §4)."""

    scrape_interval_ms: Annotated[
        Annotated[int, Meta(ge=0, le=3_600_000)] | None,
        doc("Pause between scrapes of an endpoint that has our traffic; 0 never scrapes. Absent: 200, with peers 50."),
    ] = None
    peers: Annotated[
        list[str],
        doc("Other routers before the same engines: their load is known from reports alone, so these come oftener."),
    ] = msgspec.field(default_factory=list)
    idle_interval_ms: Annotated[Count, doc("The same for an endpoint without traffic from us.")] = 1000
    timeout_s: Annotated[Seconds, doc("A scrape takes at most this long.")] = 1.0
    max_age_s: Annotated[Seconds, doc("An older report counts as none.")] = 5.0


class KvEvents(Section, frozen=True, kw_only=True):
    """What engines publish about their KV caches; where, stands with each endpoint (engines §4)."""

    queue_max: Annotated[Count, doc("Batches per rank that wait to be applied; over it a gap is assumed.")] = 10_000
    replay_timeout_s: Annotated[Seconds, doc("A replay takes at most this long, else it is abandoned.")] = 5.0
