"""A stored message as another request wants it: whole or as events. Its streams always report usage, so nothing is cut.

Known are text, thinking and calls of the client's tools, with the members that have a delta of their own. Citations,
tools that run at the engine and events this file does not know are not carried over from one form to the other.
"""

from __future__ import annotations

from typing import Any

import msgspec

from turnout.core.usage import Usage
from turnout.dialects.anthropic_answer import as_events as said_as_events
from turnout.dialects.replay import Recorded, Replay

_JSON = msgspec.json.Decoder(dict[str, Any])
_DATA = b"data:"
_END = b"\n\n"
_MEMBERS = {
    "text": frozenset(("type", "text", "citations")),
    "thinking": frozenset(("type", "thinking", "signature")),
    "tool_use": frozenset(("type", "id", "name", "input")),
}
_TYPES: dict[str, type] = {"text": str, "thinking": str, "signature": str, "input": dict}
# What each kind of delta adds to: the block it belongs to, its member there, and its own.
_DELTAS = {
    "text_delta": ("text", "text", "text"),
    "thinking_delta": ("thinking", "thinking", "thinking"),
    "signature_delta": ("thinking", "signature", "signature"),
    "input_json_delta": ("tool_use", "input", "partial_json"),
}
_TOOLS = "tool_use"
# A turn that the engine only interrupted is no answer.
_PAUSED = "pause_turn"


def _finishes(body: bytes) -> tuple[tuple[str, ...], bool]:
    message = _read(body)
    if message is None or message.get("type") != "message" or not isinstance(message.get("content"), list):
        return (), False
    reason, blocks = message.get("stop_reason"), message["content"]
    tools = reason == _TOOLS or any(not isinstance(one, dict) or _calls(one) for one in blocks)
    return ((reason,) if isinstance(reason, str) and reason not in ("", _PAUSED) else ()), tools


def _recorded(stream: bytes, _: int) -> Recorded | None:
    events = _events(stream)
    if not events or events[0].get("type") != "message_start" or events[-1].get("type") != "message_stop":
        return None
    reason, tools = "", False
    for event in events:
        kind = event.get("type")
        if kind == "error":
            return None
        if kind == "content_block_start":
            tools = tools or _calls(event.get("content_block") or {})
        elif kind == "message_delta":
            reason = str((event.get("delta") or {}).get("stop_reason") or reason)
    if not reason or reason == _PAUSED:
        return None
    return Recorded(stream, (reason,), tools or reason == _TOOLS)


def _reported(_stream: bytes, _usage: Usage) -> dict[str, Any]:
    return {}  # the stream itself says it


def _with_usage(stream: bytes, _: dict[str, Any]) -> bytes:
    return stream


def _as_events(body: bytes, _usage: bool) -> bytes | None:  # noqa: FBT001 - a field of `Replay`
    message = _read(body)
    if message is None or not _finishes(body)[0] or not all(map(_plain, message["content"])):
        return None
    return said_as_events(body)


def _as_answer(stream: bytes, _: dict[str, Any]) -> bytes | None:
    events = _events(stream)
    if not events or events[0].get("type") != "message_start" or not isinstance(events[0].get("message"), dict):
        return None
    message: dict[str, Any] = dict(events[0]["message"])
    blocks: list[dict[str, Any]] = []
    for event in events[1:]:
        if not _added(message, blocks, event):
            return None
    for block in blocks:
        if not _closed(block) or not _plain(block):
            return None
    message["content"] = blocks
    return msgspec.json.encode(message)


def _added(message: dict[str, Any], blocks: list[dict[str, Any]], event: dict[str, Any]) -> bool:
    """Add one event to what is known; False when that cannot be done without loss."""
    kind, delta = event.get("type"), event.get("delta")
    if kind == "content_block_start":
        block = event.get("content_block")
        if event.get("index") != len(blocks) or not isinstance(block, dict):
            return False
        blocks.append(dict(block))
        if block.get("type") == _TOOLS:
            blocks[-1]["input"] = msgspec.json.encode(block["input"]).decode() if block.get("input") else ""
        return True
    if kind == "content_block_delta":
        at = event.get("index")
        return isinstance(delta, dict) and isinstance(at, int) and 0 <= at < len(blocks) and _grown(blocks[at], delta)
    if kind == "message_delta" and isinstance(delta, dict):
        message |= delta
        usage = {name: value for name, value in (event.get("usage") or {}).items() if value is not None}
        message["usage"] = {**(message.get("usage") or {}), **usage}
        return True
    return kind in ("content_block_stop", "message_stop", "ping")


def _grown(block: dict[str, Any], delta: dict[str, Any]) -> bool:
    kind, member, name = _DELTAS.get(str(delta.get("type")), ("", "", ""))
    added = delta.get(name)
    if not kind or block.get("type") != kind or not isinstance(added, str):
        return False
    block[member] = (block.get(member) or "") + added
    return True


def _closed(block: dict[str, Any]) -> bool:
    """Read the input of a call, which came as text; False when it is cut."""
    if block.get("type") == _TOOLS:
        read = _read(block["input"].encode()) if block["input"] else {}
        if read is None:
            return False
        block["input"] = read
    return True


def _plain(block: Any) -> bool:
    known = _MEMBERS.get(str(block.get("type"))) if isinstance(block, dict) else None
    if known is None or not known.issuperset(block) or block.get("citations"):
        return False
    return all(isinstance(block[name], kind) for name, kind in _TYPES.items() if name in block)


def _calls(block: dict[str, Any]) -> bool:
    return str(block.get("type")).endswith(_TOOLS)


def _events(stream: bytes) -> list[dict[str, Any]] | None:
    """Return the documents of all events; None when the stream is cut or one is no object."""
    if not stream.endswith(_END):
        return None
    found = []
    for raw in stream.split(_END)[:-1]:
        lines = [line for line in raw.split(b"\n") if line.startswith(_DATA)]
        if not lines and not raw.strip(b"\n").startswith(b":"):
            return None
        if lines:
            document = _read(lines[0].removeprefix(_DATA)) if len(lines) == 1 else None
            if document is None:
                return None
            found.append(document)
    return found


def _read(raw: bytes) -> dict[str, Any] | None:
    try:
        return _JSON.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None


REPLAY = Replay(
    finishes=_finishes,
    recorded=_recorded,
    reported=_reported,
    with_usage=_with_usage,
    as_events=_as_events,
    as_answer=_as_answer,
)
