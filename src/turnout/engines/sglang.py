"""What SGLang's `/server_info` says of its KV events, its role and the shape of its blocks (§5).

Nothing else of that page is read: it may hold API keys.
"""

from __future__ import annotations

from typing import Literal

import msgspec

LOAD_TOPIC = "load"
_PORT_MAX = 65_535
_ANY_HOST = frozenset(("*", "0.0.0.0", "::", "[::]", ""))  # noqa: S104 - compared, never bound


class KvSource(msgspec.Struct, frozen=True, gc=False):
    """Where rank 0 publishes and in which block size."""

    endpoint: str
    topic: str
    ranks: int
    block_tokens: int
    load: str = ""
    """Where rank 0 pushes its load; empty: nowhere."""


class Introduction(msgspec.Struct, frozen=True, gc=False):
    """What an engine is in a pool with roles, and what it tells of the shape of its KV blocks."""

    role: Literal["prefill", "decode", "both"]
    bootstrap_port: int | None
    block_tokens: int | None
    dtype: str
    tp_size: int | None


class _KvEvents(msgspec.Struct, gc=False):
    publisher: str = ""
    endpoint_host: str = ""
    endpoint_port_base: int = 0
    topic: str = ""
    block_size: int = 0
    dp_size: int = 1
    load_endpoint_port_base: int = 0


class _ServerInfo(msgspec.Struct, gc=False):
    kv_events: _KvEvents | None = None
    dcp_size: int = 1


class _Disaggregation(msgspec.Struct, gc=False):
    disaggregation_mode: str | None = None
    disaggregation_bootstrap_port: int | None = None
    tp_size: int | None = None
    page_size: int | None = None
    kv_cache_dtype: str | None = None


_read_disaggregation = msgspec.json.Decoder(_Disaggregation).decode
_read = msgspec.json.Decoder(_ServerInfo).decode


def kv_source(body: bytes, own_host: str) -> KvSource | None:
    """Read the publisher's address; None when the engine publishes nothing that we can hear."""
    try:
        info = _read(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    events = info.kv_events
    if events is None or events.publisher != "zmq" or not 1 <= events.endpoint_port_base <= _PORT_MAX:
        return None
    host = own_host if events.endpoint_host in _ANY_HOST else events.endpoint_host
    return KvSource(
        f"tcp://{host}:{events.endpoint_port_base}",
        events.topic,
        max(1, events.dp_size),
        max(0, events.block_size) * max(1, info.dcp_size),
        f"tcp://{host}:{events.load_endpoint_port_base}" if 1 <= events.load_endpoint_port_base <= _PORT_MAX else "",
    )


def introduction(body: bytes) -> Introduction | None:
    """Read role and shape; None when the page is none of an SGLang engine."""
    try:
        info = _read_disaggregation(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if info.disaggregation_mode is None:
        return None
    port = info.disaggregation_bootstrap_port
    known = port if port is not None and 1 <= port <= _PORT_MAX else None
    role: Literal["prefill", "decode", "both"] = "both"
    if info.disaggregation_mode == "prefill":
        role = "prefill"
    elif info.disaggregation_mode == "decode":
        role = "decode"
    dtype = info.kv_cache_dtype if info.kv_cache_dtype not in (None, "auto") else ""
    return Introduction(role, known, info.page_size, (dtype or "")[:32], info.tp_size)
