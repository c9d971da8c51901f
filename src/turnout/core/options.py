"""Every named option with its default, range and meaning, as the sections of the configuration file.

The structs live in the core so that each part can be built from its own section alone (live, simulated or tested);
`turnout.config` assembles them into one file and `docs/configuration.md` is generated from them.
Units end the names: `_s` seconds, `_bytes` bytes. Durations are monotonic.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from turnout.core import endpoint_options, option_types, scheduling_options

Section = option_types.Section
Seconds = option_types.Seconds
Count = option_types.Count
Bytes = option_types.Bytes
Ratio = option_types.Ratio
Usd = option_types.Usd
Name = option_types.Name
_doc = option_types.doc

# Their sections grew out of this file; every reader still finds them here.
PolicyName = scheduling_options.PolicyName
Scheduling = scheduling_options.Scheduling
Prefix = scheduling_options.Prefix
Load = scheduling_options.Load
KvEvents = scheduling_options.KvEvents
Endpoint = endpoint_options.Endpoint


class Server(Section, frozen=True, kw_only=True):
    """The public listener and its ingress limits (request-path §2)."""

    listen: Annotated[str, _doc("Address of the public listener, host:port; port 0 takes a free one.")] = (
        "127.0.0.1:8080"
    )
    admin_listen: Annotated[str, _doc("Address of the admin listener (/metrics, /x/…); empty switches it off.")] = (
        "127.0.0.1:9090"
    )
    admin_digest: Annotated[
        str,
        Meta(pattern=r"^(sha256:[0-9a-f]{64})?$"),
        _doc("Digest of the bearer token that the admin listener asks for; empty: none is asked for."),
    ] = ""
    read_only_digest: Annotated[
        str,
        Meta(pattern=r"^(sha256:[0-9a-f]{64})?$"),
        _doc("Digest of the token for /metrics and /x/export; empty: that of the admin listener."),
    ] = ""
    registration_digest: Annotated[
        str,
        Meta(pattern=r"^(sha256:[0-9a-f]{64})?$"),
        _doc("Digest of the token by which engines register; empty: none."),
    ] = ""
    request_line_max_bytes: Annotated[Bytes, _doc("L1: longest request line; over it 414.")] = 8192
    head_max_bytes: Annotated[Bytes, _doc("L1: largest head in all; over it 431.")] = 32768
    headers_max: Annotated[Count, _doc("L1: most header lines; over it 431.")] = 100
    body_max_bytes: Annotated[Bytes, _doc("L2: largest body; over it 413.")] = 33_554_432
    json_depth_max: Annotated[Count, _doc("L3: most open arrays and objects at once; over it 400 invalid_json.")] = 64
    head_timeout_s: Annotated[
        Seconds, _doc("L5: a head must be complete this long after its first byte; else 408.")
    ] = 10.0
    body_idle_s: Annotated[Seconds, _doc("L5: longest gap between body bytes; else 408.")] = 30.0
    idle_s: Annotated[Seconds, _doc("L6: a kept-alive connection without a byte is closed after this time.")] = 75.0
    pipeline_max_bytes: Annotated[
        Bytes, _doc("L6: bytes read ahead of the request in progress; beyond, reading pauses.")
    ] = 65536
    connections_max: Annotated[Count, _doc("L7: open client connections; over it 503 too_many_connections.")] = 16384
    connections_per_address_max: Annotated[
        int, Meta(ge=0, le=2**31 - 1), _doc("F34: open connections from one address, over it 503; 0 is no limit.")
    ] = 1000
    uncapped_addresses: Annotated[
        list[str], _doc("F34: addresses or networks that may open more: of balancers and proxies, who speak for many.")
    ] = msgspec.field(default_factory=lambda: ["127.0.0.0/8", "::1"])
    bodies_max_bytes: Annotated[Bytes, _doc("L8: request bodies held by all open exchanges; over it 503 shed.")] = (
        536_870_912
    )
    write_buffer_bytes: Annotated[
        Bytes, _doc("L9: unsent response bytes per client before reading from the engine pauses.")
    ] = 262_144
    write_idle_s: Annotated[Seconds, _doc("L9: a client that takes no byte for this long is gone.")] = 60.0


class Relay(Section, frozen=True, kw_only=True):
    """Bytes on their way from the engine to the client (request-path §2, §11)."""

    keepalive_s: Annotated[
        Seconds, _doc("W2: an open attempt without a byte to the client for this long sends a keep-alive comment.")
    ] = 15.0
    event_max_bytes: Annotated[Bytes, _doc("L10: larger SSE events are relayed without inspection.")] = 1_048_576
    body_hold_bytes: Annotated[Bytes, _doc("L10: a non-stream answer is held until complete up to this size.")] = (
        16_777_216
    )


class Timeout(Section, frozen=True, kw_only=True):
    """Deadlines and timeouts (resilience §1)."""

    connect_s: Annotated[Seconds, _doc("D1: socket opens until TCP is done.")] = 5.0
    first_token_s: Annotated[Seconds, _doc("D2: request sent until the first output event of a stream.")] = 60.0
    first_token_failover_s: Annotated[Seconds, _doc("D2a: the same while another endpoint could be asked.")] = 10.0
    response_min_s: Annotated[Seconds, _doc("D3: head of a whole answer, at least, while others could be asked.")] = (
        60.0
    )
    response_max_s: Annotated[Seconds, _doc("D3: at most; by max_tokens in between.")] = 300.0
    response_unknown_s: Annotated[Seconds, _doc("D3: without max_tokens.")] = 90.0
    body_min_bytes_per_s: Annotated[
        float, Meta(ge=0, le=1e9), _doc("F28: a whole answer that has begun and comes slower is given up; 0: never.")
    ] = 64.0
    body_min_after_s: Annotated[Seconds, _doc("F28: the pace is judged from so long after its first byte on.")] = 30.0
    stall_s: Annotated[Seconds, _doc("D4: between complete events after the first output event.")] = 20.0
    content_stall_s: Annotated[Seconds, _doc("D4: between output events.")] = 120.0
    total_s: Annotated[Seconds, _doc("D5: complete head until outcome, over all attempts.")] = 600.0
    send_s: Annotated[Seconds, _doc("D7: the endpoint takes no byte of what is left of a request.")] = 30.0


class Retry(Section, frozen=True, kw_only=True):
    """The attempt loop (resilience §3)."""

    attempts_per_model: Annotated[Count, _doc("N1: attempts on one model per exchange.")] = 3
    attempts: Annotated[Count, _doc("N1: attempts per exchange.")] = 6
    models: Annotated[Count, _doc("N1: models per exchange.")] = 3
    budget_ratio: Annotated[Ratio, _doc("N5: extra attempts in any 10 s as a share of the exchanges active in it.")] = (
        0.2
    )
    budget_floor_per_s: Annotated[float, Meta(ge=0, le=1e6), _doc("N5: plus this many per second.")] = 3.0
    after_max_s: Annotated[Seconds, _doc("Y1: longest Retry-After that is waited for on the same endpoint.")] = 10.0


class Breaker(Section, frozen=True, kw_only=True):
    """Circuit breaker per endpoint (resilience §7)."""

    consecutive: Annotated[Count, _doc("B1: faults in a row that open it.")] = 3
    ratio: Annotated[Ratio, _doc("B1: or this share of faults.")] = 0.5
    ratio_min: Annotated[Count, _doc("B1: over at least this many results.")] = 10
    window_s: Annotated[Seconds, _doc("B1: within this window.")] = 10.0
    open_s: Annotated[Seconds, _doc("B3: first open time; doubles with each opening in a row.")] = 5.0
    open_max_s: Annotated[Seconds, _doc("B3: cap of the open time.")] = 20.0
    slow_start_s: Annotated[
        Seconds, _doc("B7: time over which a returning endpoint's share grows from 10 to 100 %.")
    ] = 30.0


class Probe(Section, frozen=True, kw_only=True):
    """Active readiness probes (resilience §8)."""

    interval_s: Annotated[Seconds, _doc("O4: pause between probes, ± 20 %.")] = 2.0
    timeout_s: Annotated[Seconds, _doc("O4: a probe takes at most this long.")] = 1.0
    failures: Annotated[Count, _doc("O4: failures in a row that make an endpoint probe_failing.")] = 3


class Admission(Section, frozen=True, kw_only=True):
    """May it enter, and how long may it wait (resilience §9)."""

    queue_wait_s: Annotated[Seconds, _doc("D6: longest wait for a place; then 503 queue_timeout.")] = 30.0
    queue_max: Annotated[Count, _doc("Q4: waiting requests per model and role; over it 503 queue_full.")] = 256
    queue_bodies_max_bytes: Annotated[Bytes, _doc("Q4: bodies of waiting requests per model; over it 503.")] = (
        268_435_456
    )
    tenant_max_in_flight: Annotated[
        int, Meta(ge=0, le=2**31 - 1), _doc("Q10: running requests per tenant, over it 429; 0 is no limit.")
    ] = 0
    tenant_max_queued: Annotated[Count, _doc("Q9: waiting requests per tenant and model, over it 429.")] = 128
    tenant_weights: Annotated[
        dict[str, Annotated[float, Meta(gt=0, le=1e6)]], _doc("Q5: share of a tenant relative to the others' 1.")
    ] = {}
    promote_s: Annotated[Seconds, _doc("Q5: one priority class up per this long waited.")] = 5.0
    critical_ratio: Annotated[Ratio, _doc("§9: Critical from this share of the capacity: takes nothing more.")] = 1.0
    high_ratio: Annotated[Ratio, _doc("§9: High from this share of the capacity: nothing is hedged to it.")] = 0.5
    critical_memory: Annotated[Ratio, _doc("§9: Critical from this KV usage: takes nothing more.")] = 0.95
    high_memory: Annotated[Ratio, _doc("§9: High from this KV usage.")] = 0.8
    wait_for_endpoint: Annotated[bool, _doc("I4: an empty pool makes requests wait instead of 503 no_endpoint.")] = (
        False
    )


StreamSafety = Literal["fast", "guarded", "buffered"]


class Stream(Section, frozen=True, kw_only=True):
    """How much of a stream is held back so that a failure stays invisible (resilience §4)."""

    safety: Annotated[
        StreamSafety, _doc("fast: to the first output; guarded: to the 32nd or 1.5 s; buffered: all of it.")
    ] = "fast"
    guard_events: Annotated[Count, _doc("guarded: output events held at most.")] = 32
    guard_ms: Annotated[Count, _doc("guarded: held at most this long after the first output event.")] = 1500
    buffer_max_bytes: Annotated[Bytes, _doc("buffered: a larger stream is relayed from here on.")] = 8_388_608


class Resume(Section, frozen=True, kw_only=True):
    """A stream that broke after its first byte (resilience §5)."""

    scope: Annotated[
        Literal["replicas", "fallback_models", "off"],
        _doc("R1: who may take over a broken stream; fallback_models: replicas first, then the model's fallback list."),
    ] = "replicas"
    require_deterministic: Annotated[
        bool, _doc("R4: prefix-match only with temperature 0, top_k 1 or a seed; others rarely repeat themselves.")
    ] = True
    keep_max_bytes: Annotated[
        Bytes, _doc("Sent events kept per stream for a rescue; a longer stream cannot be rescued.")
    ] = 1_048_576


class Hedge(Section, frozen=True, kw_only=True):
    """A duplicate of a slow stream's request (resilience §6); each model opts in."""

    ratio: Annotated[Ratio, _doc("Z3: hedges as a share of the attempts of the model in 60 s.")] = 0.05
    samples_min: Annotated[Count, _doc("Z2: first tokens seen in 10 min before a p95 means anything.")] = 50
    wait_min_s: Annotated[Seconds, _doc("Z2: never sent earlier than this.")] = 0.05


class Ejection(Section, frozen=True, kw_only=True):
    """An endpoint that fails more than its siblings (resilience O2, O3)."""

    pool_min: Annotated[Count, _doc("O2: smaller pools eject nobody.")] = 3
    results_min: Annotated[Count, _doc("O2: results in the breaker's window before a ratio means anything.")] = 10
    margin: Annotated[Ratio, _doc("O2: fault ratio this far above the median of the others.")] = 0.2
    out_s: Annotated[Seconds, _doc("O2: out for this long, times the number of ejections.")] = 30.0
    out_max_s: Annotated[Seconds, _doc("O2: cap of it.")] = 300.0
    forget_s: Annotated[Seconds, _doc("O2: earlier ejections are forgotten after this time.")] = 600.0
    pool_share_max: Annotated[Ratio, _doc("O3: largest share of a pool that may be out.")] = 0.5


class Pool(Section, frozen=True, kw_only=True):
    """Connections to endpoints."""

    idle_s: Annotated[
        Seconds, _doc("D8: a pooled connection idle for this long is closed by us (uvicorn closes at 5).")
    ] = 4.0
    idle_max: Annotated[Count, _doc("Idle connections kept per endpoint.")] = 1024


class Drain(Section, frozen=True, kw_only=True):
    """Leaving without cutting anything off (resilience §10)."""

    notice_s: Annotated[float, Meta(ge=0, le=3600), _doc("X1: still accepting after SIGTERM; 5 behind a balancer.")] = (
        0.0
    )
    grace_s: Annotated[Seconds, _doc("X2: time that accepted requests have to end.")] = 600.0


class Ledger(Section, frozen=True, kw_only=True):
    """What happened, stored (ledger §10)."""

    url: Annotated[str, _doc("sqlite:///file, postgresql://user@host/database, or empty for no ledger.")] = (
        "sqlite:///turnout.db"
    )
    spool_path: Annotated[
        str,
        _doc("How names of spool and slot files begin; empty: the database file, or turnout-ledger with PostgreSQL."),
    ] = ""
    queue_max: Annotated[Count, _doc("Calls waiting for the writer; from 2,048 on they are spooled.")] = 10_000
    batch_max: Annotated[Count, _doc("Calls per transaction.")] = 500
    flush_interval_ms: Annotated[Count, _doc("Longest wait before a batch is written.")] = 100
    spool_max_bytes: Annotated[Bytes, _doc("Size of the spool that takes batches the database cannot.")] = 1_073_741_824
    own_process: Annotated[
        bool, _doc("The database's work is done by a process beside the router, so that requests do not wait for it.")
    ] = True
    on_failure: Annotated[
        Literal["serve", "reject"],
        _doc("reject: 503 while neither database nor spool file take calls and memory for them runs out."),
    ] = "serve"
    slots: Annotated[
        int, Meta(ge=0, le=1_048_576), _doc("Open requests whose rows survive a kill; 0 switches the file off.")
    ] = 16_384
    retention_days: Annotated[Count, _doc("Age at which calls and attempts are deleted.")] = 30
    decisions_days: Annotated[Count, _doc("Age at which stored decisions are deleted.")] = 7
    decisions_per_s: Annotated[
        int, Meta(ge=0, le=1_000), _doc("Decisions stored per second at most, the others are left out; 0: none.")
    ] = 10
    hourly_days: Annotated[Count, _doc("Age at which hourly sums are deleted.")] = 400
    snapshot_interval_s: Annotated[Seconds, _doc("Pause between refreshes of the derived statistics.")] = 1.0
    route_window_ms: Annotated[
        int, Meta(ge=10_000, le=3_600_000), _doc("Window of success rates and latencies per route.")
    ] = 900_000
    tool_window_ms: Annotated[int, Meta(ge=10_000, le=86_400_000), _doc("Window of learned tool capability.")] = (
        1_800_000
    )
    tool_min_samples: Annotated[Count, _doc("Answers to requests with tools before none with a call means cannot.")] = (
        20
    )
    streak_window_ms: Annotated[int, Meta(ge=10_000, le=86_400_000), _doc("Window of failure streaks.")] = 86_400_000
    cost_window_ms: Annotated[
        int, Meta(ge=3_600_000, le=7_776_000_000), _doc("Window of the accuracy of costs where none is asked for.")
    ] = 86_400_000
    cost_min_calls: Annotated[Count, _doc("Attempts of a provider before a drift of its cost is reported.")] = 20
    cost_threshold: Annotated[Ratio, _doc("Relative drift of a provider's cost that is reported.")] = 0.15
    default_cached_price_factor: Annotated[
        Ratio, _doc("Price of a cached input token relative to an uncached one, where the book names none.")
    ] = 0.1


class Log(Section, frozen=True, kw_only=True):
    """Structured logs on standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _doc("Least severity written.")] = "info"
    format: Annotated[Literal["json", "console", "auto"], _doc("auto: console on a terminal, else JSON.")] = "auto"


class Auth(Section, frozen=True, kw_only=True):
    """Who may ask (request-path §5)."""

    mode: Annotated[
        Literal["keys", "open"], _doc("open: no key needed; only when every public listener is loopback.")
    ] = "keys"


class Prices(Section, frozen=True, kw_only=True):
    """What attempts cost: the price book of the ledger (ledger §7)."""

    file: Annotated[
        str, _doc("JSON list, or TOML with [[price]] tables, in USD per 1M tokens; each change is a new version.")
    ] = ""


class Budget(Section, frozen=True, kw_only=True):
    """Refusing keys that have spent what they may (`[[key]] budget_usd`)."""

    status: Annotated[Literal[402, 429], _doc("Status of the refusal; its code is insufficient_quota.")] = 429


class Models(Section, frozen=True, kw_only=True):
    """Catalogue-wide rules (request-path §6)."""

    default: Annotated[str, _doc("Served when a request names no model; empty: such requests are refused.")] = ""


class Model(Section, frozen=True, kw_only=True):
    """One catalogue model; models that only endpoints name exist with these defaults."""

    id: Annotated[Name, _doc("The id clients ask for.")]
    aliases: Annotated[list[Name], _doc("Other names of this model.")] = []
    chars_per_token: Annotated[float, Meta(ge=1, le=16), _doc("C6: divisor of the prompt estimate.")] = 4.0
    policy: Annotated[PolicyName | None, _doc("Scheduling rule of this pool.")] = None
    weight_version: Annotated[str, _doc("A new one changes every block key.")] = ""
    first_token_s: Annotated[Seconds | None, _doc("D2 of this model.")] = None
    first_token_failover_s: Annotated[Seconds | None, _doc("D2a of this model.")] = None
    stall_s: Annotated[Seconds | None, _doc("D4 of this model, between events.")] = None
    content_stall_s: Annotated[Seconds | None, _doc("D4 of this model, between output events.")] = None
    stream_safety: Annotated[StreamSafety | None, _doc("Stream safety of this model.")] = None
    hedge: Annotated[bool, _doc("Z1: slow first tokens of this model may be asked for twice.")] = False
    fallback: Annotated[list[Name], _doc("N6: models asked in this order when no endpoint of this one answers.")] = []


class Key(Section, frozen=True, kw_only=True):
    """One API key, stored as its digest (request-path K3)."""

    name: Annotated[Name, _doc("Unique name, the key_id of the ledger.")]
    tenant: Annotated[Name, _doc("Whose requests these are.")]
    digest: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$"), _doc("sha256: and the hex digest of the whole key.")]
    prefix: Annotated[str, Meta(max_length=8), _doc("First characters of the key, for display.")] = ""
    models: Annotated[list[Name], _doc("Exact ids, prefix* or *.")] = msgspec.field(default_factory=lambda: ["*"])
    permissions: Annotated[list[str], _doc("Named permissions beyond plain requests.")] = []
    max_input_usd_per_1m: Annotated[Usd | None, _doc("Dearest input that auto may choose; unknown is too dear.")] = None
    max_output_usd_per_1m: Annotated[Usd | None, _doc("The same for output.")] = None
    budget_usd: Annotated[Usd | None, _doc("Spending of this key in budget_days, after which it is refused.")] = None
    budget_days: Annotated[
        int, Meta(ge=1, le=400), _doc("Days (UTC, with today) that a budget looks back; at most ledger.hourly_days.")
    ] = 30
    state: Annotated[Literal["active", "revoked", "inactive"], _doc("revoked and inactive keys answer 403.")] = "active"
    expires_at: Annotated[str | None, _doc("ISO 8601 instant with offset after which the key answers 403.")] = None
