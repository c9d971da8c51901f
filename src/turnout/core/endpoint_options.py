"""The section `[[endpoint]]`: one engine replica or provider deployment, where it is and what it can do.

Apart from `options`, which is long enough; the same conventions hold.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from turnout.core.option_types import Count, Name, Section, doc


class Endpoint(Section, frozen=True, kw_only=True):
    """One engine replica or provider deployment."""

    name: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$"), doc("Unique name, shown to clients instead of the address.")
    ]
    url: Annotated[
        str,
        Meta(pattern=r"^https?://[A-Za-z0-9.\-\[\]:]+/?$", max_length=512),
        doc("Base address, http://host:port or https://host:port."),
    ]
    tls_ca: Annotated[
        str, doc("https: file of certificates to trust instead of the system's, for engines with a CA of their own.")
    ] = ""
    private: Annotated[
        bool, doc("A provider's name may lead to addresses of private networks, which are refused otherwise.")
    ] = False
    durable_cooldown: Annotated[bool, doc("A streak of failures in the ledger keeps it back (ledger §6).")] = False
    flat_rate: Annotated[bool, doc("Its provider bills no single request: attempts cost 0 (ledger §7).")] = False
    models: Annotated[list[Name], Meta(min_length=1), doc("Catalogue ids served here.")]
    served_as: Annotated[dict[str, str], doc("Catalogue id → the engine's own model name, where they differ.")] = {}
    family: Annotated[
        Literal["auto", "vllm", "sglang", "llamacpp", "megatron", "openai"], doc("What the engine speaks.")
    ] = "auto"
    dialects: Annotated[
        list[Literal["openai", "anthropic"]],
        doc("Dialects it is asked in; empty: openai, and anthropic too for the families auto, vllm and sglang."),
    ] = []
    role: Annotated[
        Literal["prefill", "decode", "both", "auto"],
        doc("Which legs it serves; auto: what the engine says (SGLang's /server_info), unused until it has."),
    ] = "both"
    kv_transport: Annotated[
        Literal["auto", "nixl", "bootstrap", "mooncake"],
        doc("How KV blocks travel between roles; auto: bootstrap for sglang, else nixl."),
    ] = "auto"
    kv_domain: Annotated[str, Meta(max_length=64), doc("Only endpoints of one domain exchange KV blocks.")] = ""
    kv_hosts: Annotated[
        list[str], doc("Hosts whose KV blocks it may name as its own; empty: the host of its address.")
    ] = []
    kv_ports: Annotated[
        list[Annotated[int, Meta(ge=1, le=65_535)]],
        Meta(min_length=2, max_length=2),
        doc("First and last port that it may name with such a host (nixl's side channels, one per rank)."),
    ] = msgspec.field(default_factory=lambda: [5600, 5855])
    kv_block_tokens: Annotated[Count | None, doc("Block size; roles that differ in what both know make no pair.")] = (
        None
    )
    kv_dtype: Annotated[str, Meta(max_length=32), doc("Type of cached values, as kv_block_tokens.")] = ""
    kv_tp_size: Annotated[Count | None, doc("Tensor-parallel size, as kv_block_tokens.")] = None
    kv_multimodal: Annotated[bool, doc("Requests with images may be split here, too.")] = False
    kv_route_ranks: Annotated[
        bool, doc("Each request, and each leg of bootstrap, is sent to one of the kv_ranks data-parallel ranks.")
    ] = False
    bootstrap_port: Annotated[
        int, Meta(ge=1, le=65_535), doc("Where a prefill endpoint's bootstrap server listens (sglang, mooncake).")
    ] = 8998
    solo: Annotated[
        bool | None, doc("A prefill or decode endpoint serves whole requests, too; absent: not for bootstrap.")
    ] = None
    provider: Annotated[str, doc("Provider name of bought capacity; empty for own engines, which are probed.")] = ""
    api_key: Annotated[str, doc("Credential sent to the endpoint; ${NAME} is read from the environment.")] = ""
    context_max: Annotated[Count | None, doc("Context limit in tokens when the engine does not report one.")] = None
    max_in_flight: Annotated[
        Count | None, doc("Attempts open at once; absent: what the engine reports, else 256, of role prefill 16.")
    ] = None
    standby: Annotated[bool, doc("Used only when no other endpoint of the pool can serve.")] = False
    continuation: Annotated[
        bool, doc("R3: the engine continues an assistant message (vLLM's continue_final_message).")
    ] = False
    stream_usage: Annotated[
        Literal["auto", "yes", "no"], doc("U4: whether stream_options.include_usage is understood.")
    ] = "auto"
    kv_events: Annotated[
        str,
        Meta(max_length=512),
        doc("ZeroMQ address where rank 0 publishes KV events; empty: none."),
    ] = ""
    kv_replay: Annotated[str, Meta(max_length=512), doc("ZeroMQ address of rank 0's replay socket; empty: none.")] = ""
    kv_topic: Annotated[str, Meta(max_length=256), doc("Prefix of the topics subscribed to.")] = ""
    kv_ranks: Annotated[int, Meta(ge=1, le=256), doc("Data-parallel ranks; each has the next port.")] = 1
    kv_bind: Annotated[bool, doc("The engine connects and we bind.")] = False
    kv_discover: Annotated[
        bool,
        doc("SGLang: /server_info tells where events and load reports are; it may hold secrets and is never stored."),
    ] = False
    load_events: Annotated[
        str, Meta(max_length=512), doc("SGLang: ZeroMQ address where rank 0 pushes load reports; empty: none.")
    ] = ""
    load_header: Annotated[
        bool, doc("vLLM: whole answers are asked to tell of load, too (endpoint-load-metrics); costs it some CPU each.")
    ] = False
    cache_tokens: Annotated[
        Count | None, doc("Tokens its prefix cache holds, host memory included; else the capacity it reports.")
    ] = None
