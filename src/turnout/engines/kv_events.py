"""KV events of vLLM and SGLang: msgpack bytes → `Batch`, array and map forms alike (engines §4).

The two families publish the same events; versions differ in form. Batch form and event form are independent, so each
value's own msgpack type decides. Unknown types, keys and surplus fields are skipped, missing trailing fields are nil.
Nothing here raises on foreign bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from turnout.core.prefix.kv_events import Batch, Cleared, KvEvent, Removed, Stored

_U64 = (1 << 64) - 1
_HASHES_MAX = 65_536
_TOKENS_MAX = 4 * 1024 * 1024
_MESSAGE_MAX_BYTES = 64 * 1024 * 1024
_RANK_FIELD = 2
_STORED = (
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
)
_REMOVED = ("block_hashes", "medium", "group_idx", "remaining_copy_counts")
_FULL = (None, "full", "full_attention")
# What is not named here counts as GPU memory (scheduling §3.1).
_TIERS = {"CPU": 1, "CPU_PINNED": 1, "EXTERNAL": 2, "STORAGE": 2, "DISK": 3}

_unpack = msgspec.msgpack.Decoder().decode
_pack = msgspec.msgpack.Encoder().encode


class _BadEvent(Exception):
    """An event that cannot be read; the argument is the reason that is counted."""


def of_rank(address: str, rank: int) -> str:
    """Return where a data-parallel rank publishes: the next port each for tcp, a suffix for inproc and ipc."""
    if not address or not rank:
        return address
    if address.startswith("tcp://"):
        host, _, port = address.rpartition(":")
        return f"{host}:{int(port) + rank}"
    return f"{address}_dp{rank}"


def decode(payload: bytes) -> Batch | None:
    """Read one message's payload; None when it is no batch at all."""
    if len(payload) > _MESSAGE_MAX_BYTES:
        return Batch(bad=("oversized",), oversized=True)
    try:
        raw = _unpack(payload)
    except (msgspec.DecodeError, RecursionError, ValueError, TypeError):
        return None
    if isinstance(raw, list):
        events = raw[1] if len(raw) > 1 else None
        rank = raw[_RANK_FIELD] if len(raw) > _RANK_FIELD else None
    elif isinstance(raw, dict):
        events = raw.get("events")
        rank = raw.get("data_parallel_rank", raw.get("attn_dp_rank"))
    else:
        return None
    if not isinstance(events, list):
        return None
    found: list[KvEvent] = []
    bad: list[str] = []
    skipped = 0
    for event in events:
        try:
            read = _event(event)
        except _BadEvent as error:
            bad.append(str(error))
            continue
        if read is None:
            skipped += 1
        else:
            found.append(read)
    return Batch(tuple(found), rank if type(rank) is int else None, skipped, tuple(bad), "oversized" in bad)


def _event(raw: object) -> KvEvent | None:
    """Read one event in either form; None for a type that is not ours."""
    if isinstance(raw, dict):
        kind, fields = raw.get("type"), raw
    elif isinstance(raw, list) and raw:
        kind = raw[0]
        fields = dict(zip(_STORED if kind == "BlockStored" else _REMOVED, raw[1:], strict=False))
    else:
        raise _BadEvent("shape")
    if kind == "BlockStored":
        return _stored(fields)
    if kind == "BlockRemoved":
        return _removed(fields)
    return Cleared() if kind == "AllBlocksCleared" else None


def _stored(fields: Mapping[str, Any]) -> Stored:
    hashes = _hashes(fields.get("block_hashes"))
    tokens = _tokens(fields.get("token_ids"))
    size = fields.get("block_size")
    if type(size) is not int or size < 1:
        raise _BadEvent("block_size")
    lora = fields.get("lora_name")
    parent = fields.get("parent_block_hash")
    root = parent is None or parent == 0
    salt, mixins = _extra(fields.get("extra_keys"), lora, len(hashes), is_root=root)
    return Stored(
        hashes,
        None if root else _hash(parent),
        tokens,
        size,
        _tier(fields.get("medium")),
        lora if isinstance(lora, str) else "",
        salt,
        mixins,
        _group(fields.get("group_idx")),
        fields.get("kv_cache_spec_kind") in _FULL and fields.get("kv_cache_spec_sliding_window") is None,
    )


def _removed(fields: Mapping[str, Any]) -> Removed:
    hashes = _hashes(fields.get("block_hashes"))
    copies = fields.get("remaining_copy_counts")
    if isinstance(copies, list) and len(copies) == len(hashes):
        hashes = tuple([one for one, left in zip(hashes, copies, strict=True) if not left])
    return Removed(hashes, _tier(fields.get("medium")), _group(fields.get("group_idx")))


def _hashes(raw: object) -> tuple[int, ...]:
    if not isinstance(raw, list):
        raise _BadEvent("block_hashes")
    if len(raw) > _HASHES_MAX:
        raise _BadEvent("oversized")
    return tuple([_hash(one) for one in raw])


def _hash(raw: object) -> int:
    if type(raw) is int:
        return raw & _U64
    if isinstance(raw, bytes) and raw:
        return int.from_bytes(raw[-8:], "big")
    raise _BadEvent("hash")


def _tokens(raw: object) -> tuple[int, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise _BadEvent("token_ids")
    if len(raw) > _TOKENS_MAX:
        raise _BadEvent("oversized")
    if raw and isinstance(raw[0], list):
        # EAGLE-type speculation sends pairs (token, next token).
        raw = [pair[0] if isinstance(pair, list) and pair else None for pair in raw]
    if not all(type(token) is int for token in raw):
        raise _BadEvent("token_ids")
    return tuple(raw)


def _extra(raw: object, lora: object, blocks: int, *, is_root: bool) -> tuple[str, tuple[bytes, ...]]:
    """Return the cache salt, and per block what else went into its hash."""
    if not isinstance(raw, list):
        return "", ()
    salt = ""
    mixins = [b""] * blocks
    for position, keys in enumerate(raw[:blocks]):
        rest = []
        for key in keys if isinstance(keys, list) else ():
            if isinstance(key, str) and key == lora:
                continue
            if isinstance(key, str) and is_root and position == 0 and not salt:
                salt = key
            else:
                rest.append(key)
        if rest:
            mixins[position] = _pack(rest)
    return salt, tuple(mixins) if any(mixins) else ()


def _tier(raw: object) -> int:
    return _TIERS.get(raw, 0) if isinstance(raw, str) else 0


def _group(raw: object) -> int | None:
    return raw if type(raw) is int else None
