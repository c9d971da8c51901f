"""Whole answers of the Anthropic dialect: usage, errors inside a 200, and the events that say the same.

Usage: the whole prompt is `input_tokens` and what was read from and written to a cache, which are counted apart.
"""

from __future__ import annotations

from typing import Any

import msgspec

from turnout.core.admission.precheck import units
from turnout.core.usage import Usage
from turnout.dialects.anthropic_shapes import ANSWER, LOOSE_ANSWER, WRITTEN, Answer, ReportedUsage
from turnout.dialects.envelope import ApiError, error_body
from turnout.dialects.event_tap import TOKENS_MAX

KEEPALIVE = b'event: ping\ndata: {"type":"ping"}\n\n'
_CHARS_PER_TOKEN = 4


def answer_usage(body: bytes) -> tuple[Usage | None, bool]:
    """Return the usage of a whole JSON answer, and whether the answer is an error object."""
    try:
        try:
            answer = ANSWER.decode(body)
        except msgspec.ValidationError:  # usage of another shape: unknown
            loose = LOOSE_ANSWER.decode(body)
            answer = Answer(loose.type, None, loose.error)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None, False
    is_error = answer.type == "error" or bytes(answer.error) != b"null"
    return (to_usage(answer.usage) if answer.usage is not None else None), is_error


def to_usage(seen: ReportedUsage) -> Usage | None:
    """Return plausible counts; negative or absurd ones make the whole usage unknown (U4)."""
    read, written = seen.cache_read_input_tokens, seen.cache_creation_input_tokens
    for count in (seen.input_tokens, seen.output_tokens, read, written):
        if count is not None and not 0 <= count <= TOKENS_MAX:
            return None
    if seen.input_tokens is None and seen.output_tokens is None:
        return None
    tokens_in = None if seen.input_tokens is None else seen.input_tokens + (read or 0) + (written or 0)
    # Engines that know nothing of their cache say 0, too; one that counts writes as well has counted.
    cached = read if read or written is not None else None
    return Usage(tokens_in, seen.output_tokens, cached, None, written)


def estimated_tokens(body: bytes) -> int:
    """Return about how many tokens a whole answer without usage has: characters by §7; 0 when it shows no text (U4)."""
    try:
        blocks = WRITTEN.decode(body).content
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return 0
    return sum(max(1, units(block.text) // _CHARS_PER_TOKEN) for block in blocks if block.text)


def in_band_error(error: ApiError, request_id: str) -> bytes:
    """Return the event that ends a stream honestly (W4): no `message_stop` follows it."""
    return b"event: error\ndata: " + error_body("anthropic", error, request_id) + b"\n\n"


def as_events(body: bytes) -> bytes:
    """Say a whole message as a stream: for an engine that does not stream, when a client was already promised one."""
    message: dict[str, Any] = msgspec.json.decode(body)
    blocks: list[dict[str, Any]] = message.get("content") or []
    usage = message.get("usage") or {}
    stop = {name: message.get(name) for name in ("stop_reason", "stop_sequence")}
    begun = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": begun}]
    for index, block in enumerate(blocks):
        bare, deltas = _parts(block)
        events.append({"type": "content_block_start", "index": index, "content_block": bare})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    events += ({"type": "message_delta", "delta": stop, "usage": usage}, {"type": "message_stop"})
    return b"".join([b"event: %b\ndata: %b\n\n" % (e["type"].encode(), msgspec.json.encode(e)) for e in events])


def _parts(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Split a block into its empty beginning and what is added to it."""
    kind = block.get("type")
    if kind == "text":
        return {**block, "text": ""}, [{"type": "text_delta", "text": block.get("text", "")}]
    if kind == "tool_use":
        written = msgspec.json.encode(block.get("input", {})).decode()
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": written}]
    if kind == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": block.get("thinking", "")}]
        if block.get("signature"):
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        return {**block, "thinking": "", "signature": ""}, deltas
    return block, []
