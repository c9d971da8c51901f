"""What SGLang's `/server_info` says of its KV events; nothing else of that page is read, it may hold API keys (§5)."""

from __future__ import annotations

import msgspec

_ANY_HOST = frozenset(("*", "0.0.0.0", "::", "[::]", ""))  # noqa: S104 - compared, never bound


class KvSource(msgspec.Struct, frozen=True, gc=False):
    """Where rank 0 publishes and in which block size."""

    endpoint: str
    topic: str
    ranks: int
    block_tokens: int


class _KvEvents(msgspec.Struct, gc=False):
    publisher: str = ""
    endpoint_host: str = ""
    endpoint_port_base: int = 0
    topic: str = ""
    block_size: int = 0
    dp_size: int = 1


class _ServerInfo(msgspec.Struct, gc=False):
    kv_events: _KvEvents | None = None
    dcp_size: int = 1


_read = msgspec.json.Decoder(_ServerInfo).decode


def kv_source(body: bytes, own_host: str) -> KvSource | None:
    """Read the publisher's address; None when the engine publishes nothing that we can hear."""
    try:
        info = _read(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    events = info.kv_events
    if events is None or events.publisher != "zmq" or not 1 <= events.endpoint_port_base <= 65_535:  # noqa: PLR2004 - ports
        return None
    host = own_host if events.endpoint_host in _ANY_HOST else events.endpoint_host
    return KvSource(
        f"tcp://{host}:{events.endpoint_port_base}",
        events.topic,
        max(1, events.dp_size),
        max(0, events.block_size) * max(1, info.dcp_size),
    )
