"""The bytes of Megatron's coordinator protocol: headers, their numbers, and every message that is ever sent.

Facts: `megatron/core/inference/headers.py` and the peers beside it. A header outside the table kills an unmodified
peer, so the builders below are the only way to make a message, and none of them can make another header.
What a peer wrote and nobody here reads stays as it is: raw parts are joined, not encoded again.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

REGISTRATION = b""
"""An engine's first message."""


class Header(enum.IntEnum):
    """Element 0 of every message but a registration."""

    CONNECT = 0
    CONNECT_ACK = 1
    SUBMIT_REQUEST = 20
    ENGINE_REPLY = 21
    ENGINE_REPLY_PARTIAL = 22
    ABORT_REQUEST = 23
    SUBMIT_REQUEST_WITH_KV = 24
    RELEASE_KV = 25
    SEND_KV = 26
    REQUEST_ERROR = 29  # ours: sent only to clients that said they are ours
    PAUSE = 40
    UNPAUSE = 41
    SUSPEND = 42
    RESUME = 43
    SET_GENERATION_EPOCH = 44
    STOP = 45
    START_CUDA_PROFILER = 46
    STOP_CUDA_PROFILER = 47
    DISCONNECT = 60
    SHUTDOWN = 61
    TP_BROADCAST = 80
    KV_HANDOFF_COMPLETE = 81


PROBE_ID = 2_147_483_647
"""Never issued as a server id; engines ignore an abort of an unknown request, so aborting it is a probe."""
SERVER_ID_MAX = PROBE_ID - 1
OURS = "turnout"
"""Key by which our own client names itself in CONNECT."""

_encode = msgspec.msgpack.Encoder().encode
_NIL = b"\xc0"


def connect(*, ours: bool = False) -> bytes:
    """Greet as a client; `ours` asks for errors as messages of their own instead of failed replies."""
    return _encode([Header.CONNECT.value, {OURS: 1}]) if ours else b"\x91\x00"


CONNECT_ACK = b"\x91\x01"
"""Answers CONNECT; a connected client ignores it, so it is also our probe of clients."""
PROBE = _encode([Header.ABORT_REQUEST.value, PROBE_ID])
DISCONNECT = _encode([Header.DISCONNECT.value])


def submit(number: int, prompt: str | list[int], sampling: Mapping[str, Any], multimodal: Any = None) -> bytes:
    """A client's request with all five elements."""
    return _encode([Header.SUBMIT_REQUEST.value, number, prompt, sampling, multimodal])


def submit_with_kv(
    number: int, prompt: str | list[int], sampling: Mapping[str, Any], kv_meta: Mapping[str, Any], blocks: list[int]
) -> bytes:
    """A request whose KV blocks lie at another engine."""
    return _encode([Header.SUBMIT_REQUEST_WITH_KV.value, number, prompt, sampling, kv_meta, blocks])


def forwarded(header: Header, number: int, parts: Iterable[msgspec.Raw | bytes]) -> bytes:
    """A client's request under the server's number; `parts` are its elements from the prompt on, as received.

    Engines get five elements of a plain request always: a missing last one is nil.
    """
    raw = [bytes(part) for part in parts]
    if header is Header.SUBMIT_REQUEST and len(raw) == 2:  # noqa: PLR2004 - prompt and sampling
        raw.append(_NIL)
    return b"".join((_array(2 + len(raw)), bytes((header.value,)), _encode(number), *raw))


def replied(items: list[Any]) -> bytes:
    """An engine's finished requests."""
    return _encode([Header.ENGINE_REPLY.value, items])


def progressed(items: list[Any]) -> bytes:
    """An engine's new tokens of open requests."""
    return _encode([Header.ENGINE_REPLY_PARTIAL.value, items])


def delivered(header: Header, number: int, item: msgspec.Raw | bytes) -> bytes:
    """One finished or partial item for its client, unchanged, under the client's number."""
    return b"".join((b"\x93", bytes((header.value,)), _encode(number), item))


def item(fields: Mapping[str, Any]) -> bytes:
    """One item of a reply that was changed on its way."""
    return _encode(fields)


def failed(number: int, reply: Mapping[str, Any]) -> bytes:
    """A failed reply to an unmodified client."""
    return _encode([Header.ENGINE_REPLY.value, number, reply])


def refused(number: int | None, reason: str) -> bytes:
    """A failure as our own client reads it; nil for a message without a number."""
    return _encode([Header.REQUEST_ERROR.value, number, reason, True])


def abort(number: int) -> bytes:
    """End one request early."""
    return _encode([Header.ABORT_REQUEST.value, number])


def release(number: int) -> bytes:
    """Let go of the KV blocks pinned for a hand-off."""
    return _encode([Header.RELEASE_KV.value, number])


def signal(header: Header, epoch: int | None = None) -> bytes:
    """A control or lifecycle signal; only SET_GENERATION_EPOCH carries a number."""
    return _encode([header.value] if epoch is None else [header.value, epoch])


def failed_reply(number: int, *, uid: str, reason: str, transient: bool, timestamp: float) -> dict[str, Any]:
    """The finished map of a request that no engine finished.

    Every key is a field of upstream's request class, because a client that deserialises accepts nothing else, and
    the error is the one class its event decoder can build. Its HTTP front answers 400 for a fault of the caller
    (`transient` false) and 500 for ours.
    """
    kind = "ERROR_TRANSIENT" if transient else "ERROR_NONTRANSIENT"
    error = {
        "type": "ContextOverflowError",
        "request_id": number,
        "message": f"turnout: {reason}",
        "is_transient": transient,
    }
    return {
        "request_id": number,
        "uid": uid,
        "status": "FAILED",
        "prompt": None,
        "prompt_tokens": None,
        "prompt_length": None,
        "generated_tokens": [],
        "generated_text": "",
        "generated_length": 0,
        "num_cached_tokens": 0,
        "sampling_params": {},
        "inference_parameters": None,
        "routing_indices": None,
        "events": [
            {"timestamp": timestamp, "type": kind, "payload": error},
            {"timestamp": timestamp, "type": "FAIL", "payload": None},
        ],
    }


def _array(size: int) -> bytes:
    return bytes((0x90 | size,))
