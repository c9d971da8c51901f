"""Options of selection and of the response cache: the sections `selection` and `response_cache`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from turnout.core.option_types import Bytes, Count, Name, Ratio, Seconds, Section, doc

Threshold = Annotated[float, Meta(ge=0.5, le=1)]


class PresetOptions(Section, frozen=True, kw_only=True):
    """One preset of `auto:<name>`: where the knobs of a request start."""

    alpha: Annotated[Ratio, doc("Weight of quality, on every cluster.")]
    speed_weight: Annotated[Ratio, doc("Weight of speed.")] = 0.0
    output_cost_ratio: Annotated[
        Annotated[float, Meta(ge=0, le=10)], doc("Weight of output prices beside input prices.")
    ] = 0.0


class Selection(Section, frozen=True, kw_only=True):
    """Which model serves `model: auto` (selection §13); off without a bundle directory."""

    bundle_dir: Annotated[str, doc("Folder of bundle versions; empty switches selection off.")] = ""
    version: Annotated[str, doc("Version in force; latest: what the file latest names.")] = "latest"
    build_versions: Annotated[list[str], doc("Further versions that a request may name; all: every one there is.")] = []
    top_p: Annotated[
        Annotated[int, Meta(ge=1, le=65_536)] | None, doc("Clusters that count; unset: what the bundle says, else 4.")
    ] = None
    max_prompt_bytes: Annotated[Count, doc("Last bytes of the text that are embedded.")] = 1024
    embed_text: Annotated[
        Literal["last_user", "conversation"], doc("The newest user message with text, or all of them.")
    ] = "last_user"
    embedder_dir: Annotated[
        str, doc("Folder of an exported encoder (extra onnx); empty: the built-in hashgram-v1.")
    ] = ""
    embed_timeout_ms: Annotated[Count, doc("How long a text may wait for its vector, queue included.")] = 1500
    embed_concurrency: Annotated[Count, doc("Texts embedded at a time, by embedders that run on threads.")] = 2
    embed_queue_max: Annotated[Count, doc("Texts that wait for those; more are embed_busy.")] = 64
    default_model: Annotated[str, doc("Serves when there is no score; empty: 503 selector_unavailable.")] = ""
    price_source: Annotated[
        Literal["price_book", "bundle"], doc("Whose prices count where both know a model; looked at every 30 s.")
    ] = "price_book"
    timing_source: Annotated[
        Literal["bundle", "observed"],
        doc("Times to first token of the speed axis; observed: the ledger's, where it has 20 of them."),
    ] = "bundle"
    min_success_rate: Annotated[
        Ratio, doc("Models below this share of successes among 20 or more attempts are avoided; 0: off.")
    ] = 0.0
    observed_max_age_s: Annotated[Seconds, doc("Observations older than this count for nothing.")] = 30.0
    presets: Annotated[dict[Name, PresetOptions], doc("Own presets; the four built-in names may be redefined.")] = {}
    excluded_models: Annotated[list[Name], doc("Models that auto never chooses.")] = []
    tool_weak: Annotated[list[Name], doc("Models avoided when a request has tools.")] = []
    agentic_weak: Annotated[list[Name], doc("Models avoided in agents' requests, which have tools.")] = []
    no_image_input: Annotated[list[Name], doc("Models avoided when a request has images.")] = []
    tiers: Annotated[dict[Name, int], doc("Tier of a model, for tier_upgrade; others have tier 0.")] = {}
    pin_enabled: Annotated[bool, doc("A session stays with its model until a switch pays for the lost prefix.")] = True
    pin_max_sessions: Annotated[Count, doc("Pins kept; the least recently used goes.")] = 100_000
    pin_ttl_s: Annotated[Seconds, doc("A pin unused for this long is forgotten.")] = 3600.0
    switch_threshold_usd: Annotated[
        Annotated[float, Meta(ge=0, le=1000)], doc("A switch must save more than this, in USD.")
    ] = 0.001
    horizon_turns: Annotated[Count, doc("Turns over which a switch is judged.")] = 3
    tier_upgrade: Annotated[bool, doc("Switch to a model of a strictly higher tier whatever it costs.")] = False
    cold_follow_fresh: Annotated[bool, doc("Switch freely when the pinned prefix is cold.")] = False


class ResponseCache(Section, frozen=True, kw_only=True):
    """Replay of our own stored answers (response-cache §1); off unless enabled, and off for every key by default."""

    enabled: Annotated[bool, doc("Whether answers are stored at all.")] = False
    threshold: Annotated[Threshold, doc("Least similarity of a semantic match; a bundle may set its own.")] = 0.95
    guard: Annotated[
        Literal["auto", "standard", "strict"],
        doc("strict: equal content words, too; auto: strict with the built-in embedder."),
    ] = "auto"
    stream: Annotated[
        Literal["off", "same", "convert"],
        doc("Streamed answers: bypassed, replayed to streamed requests, or converted to and from whole ones, too."),
    ] = "off"
    store_tool_calls: Annotated[bool, doc("Whether answers that call tools may be stored.")] = False
    tenants_max: Annotated[Count, doc("Tenants with stored answers.")] = 1024
    buckets_max: Annotated[Count, doc("Buckets per tenant.")] = 512
    entries_max: Annotated[Count, doc("Entries per bucket.")] = 1024
    tenant_bytes: Annotated[Bytes, doc("Bytes per tenant.")] = 33_554_432
    total_bytes: Annotated[Bytes, doc("Bytes in all.")] = 268_435_456
    body_max_bytes: Annotated[Bytes, doc("Larger answers are not stored.")] = 1_048_576
    ttl_s: Annotated[Seconds, doc("An answer is replayed up to this age.")] = 3600.0
    single_flight_wait_ms: Annotated[Count, doc("How long equal requests wait for the first one's answer.")] = 2000
    single_flight_max: Annotated[Count, doc("Requests that wait for one answer.")] = 64
