"""The sections `[coordinator]` and `[affinity]`: the second door, and how it picks among the engines behind it.

Apart from `options`, which is long enough; the same conventions hold.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from turnout.core.option_types import Bytes, Count, Ratio, Seconds, Section, doc

SecondsOrOff = Annotated[float, Meta(ge=0, le=86_400)]
AffinityPolicy = Literal[
    "affinity_load", "longest_prefix", "first_block", "least_busy", "first_prefix_block", "load_balanced"
]


class Coordinator(Section, frozen=True, kw_only=True):
    """The ZeroMQ door for engines that register themselves, wire-compatible with Megatron's coordinator."""

    enabled: Annotated[bool, doc("Open the door.")] = False
    bind: Annotated[
        str,
        Meta(pattern=r"^tcp://[A-Za-z0-9.\-\[\]:*]+:[0-9*]+$", max_length=256),
        doc("Address of the ROUTER socket."),
    ] = "tcp://127.0.0.1:5600"
    allow_remote: Annotated[
        bool,
        doc("Bind may be no loopback address. Without CURVE its peers cannot authenticate: trusted networks only."),
    ] = False
    port_fallback: Annotated[bool, doc("Take a free port when this one is in use, as upstream does.")] = False
    dialect: Annotated[
        Literal["packed", "framed"],
        doc("packed: one payload a message, as released Megatron speaks; framed: prompts and replies as own frames."),
    ] = "packed"
    curve_secret_file: Annotated[
        str, doc("File with the door's CURVE key pair (*.key_secret as zmq.auth writes it); empty for none.")
    ] = ""
    curve_clients: Annotated[
        list[Annotated[str, Meta(min_length=40, max_length=40)]],
        doc("CURVE public keys (Z85) of peers that may connect; empty for all that know the door's public key."),
    ] = []
    model: Annotated[
        str, Meta(max_length=256), doc("Catalogue id that HTTP clients ask these engines for; empty for none.")
    ] = ""
    tokenizer: Annotated[
        str,
        Meta(pattern=r"^(none|bytes|hf:.+)$"),
        doc("none, bytes (one token per byte, for tests), or hf: and a directory with tokenizer.json."),
    ] = "none"
    block_tokens: Annotated[
        int, Meta(ge=1, le=65_536), doc("Tokens per block of the hash chain, as the engines have it.")
    ] = 256
    max_requests: Annotated[Count, doc("Requests an engine runs at once; measure of its free capacity.")] = 256
    expected_engines: Annotated[
        int, Meta(ge=0, le=4096), doc("Engines that belong to the door (mp-coord-0 …); 0 for any number.")
    ] = 0
    deterministic: Annotated[bool, doc("Hold requests until the expected engines are there.")] = False
    pending_max: Annotated[Count, doc("Requests that wait in the door while no engine is there.")] = 1024
    empty_wait_s: Annotated[Seconds, doc("Longest such wait.")] = 30.0
    request_timeout_s: Annotated[SecondsOrOff, doc("Deadline of a request; 0 for none, since rollouts are long.")] = 0.0
    abort_wait_s: Annotated[Seconds, doc("Wait for the final reply of an aborted request.")] = 30.0
    late_grace_s: Annotated[
        SecondsOrOff, doc("Replies of a lost engine that are still queued are read for this long.")
    ] = 0.5
    attempts: Annotated[int, Meta(ge=1, le=16), doc("Engines asked in all for a request whose engine is lost.")] = 3
    clients_max: Annotated[Count, doc("Clients known at once.")] = 4096
    outbox_max: Annotated[Count, doc("Unsent messages per peer.")] = 10_000
    outbox_max_bytes: Annotated[Bytes, doc("Unsent bytes per peer.")] = 268_435_456
    heartbeat_s: Annotated[
        Seconds,
        doc("ZMTP heartbeat, three unanswered ones end a connection; also the silence after which engines are probed."),
    ] = 5.0
    snapshot_path: Annotated[
        str,
        doc("File that keeps the engines of the door, so that it finds them again after a restart; empty for none."),
    ] = ""
    kv_handoff: Annotated[bool, doc("Serve requests that bring KV blocks of another engine.")] = False
    allow_control: Annotated[bool, doc("Clients may pause, suspend and stop engines.")] = True
    allow_shutdown: Annotated[bool, doc("Clients may close the door.")] = False
    schedule_path: Annotated[
        str,
        doc(
            "File the schedule is written to at the end: .jsonl line by line, else upstream's document; empty for none."
        ),
    ] = ""
    schedule_max: Annotated[Count, doc("Records of the schedule kept; the oldest go first.")] = 1_000_000


class Affinity(Section, frozen=True, kw_only=True):
    """Which coordinator engine gets a request (scheduling §5.1), and what is remembered of earlier ones."""

    policy: Annotated[
        AffinityPolicy,
        doc("The rule; first_prefix_block and load_balanced are upstream's names of first_block and least_busy."),
    ] = "affinity_load"
    form: Annotated[
        Literal["mean_relative", "free_capacity"],
        doc("affinity_load: load relative to the mean (beta), or free capacity (alpha) as upstream."),
    ] = "mean_relative"
    match: Annotated[
        Literal["contiguous", "first_block", "deepest_row"],
        doc("affinity_load: what counts as matched; deepest_row is upstream's rule."),
    ] = "contiguous"
    alpha: Annotated[Ratio, doc("free_capacity: weight of the prefix match.")] = 0.5
    beta: Annotated[float, Meta(ge=0, le=1000), doc("mean_relative: weight of load.")] = 1.0
    max_blocks: Annotated[int, Meta(ge=0, le=2**31), doc("Blocks remembered; 0 for no cap.")] = 1_000_000
    ttl_s: Annotated[SecondsOrOff, doc("A block unused for this long may go; 0 for never.")] = 300.0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1), doc("Seed of the rotation among equals.")] = 0
