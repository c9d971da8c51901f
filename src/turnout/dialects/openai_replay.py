"""A stored chat answer as another request wants it: whole or as events, with or without the usage event.

What cannot be carried over without loss (log-probabilities, audio, members this file does not know) is not carried over
at all: None, and the caller asks an engine.
"""

from __future__ import annotations

from typing import Any

import msgspec

_DONE = b"data: [DONE]\n\n"
_PREFIX = b"data: "
_JSON = msgspec.json.Decoder(dict[str, Any])
_CHOICE = frozenset(("index", "delta", "message", "finish_reason", "logprobs", "stop_reason"))
_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
_MESSAGE = frozenset(("role", "tool_calls", "function_call", "annotations", "audio", *_TEXTS))
_TOP = ("id", "created", "model", "system_fingerprint", "service_tier")


class Recorded(msgspec.Struct, frozen=True):
    """A whole event stream without its usage event, and what its end says."""

    body: bytes
    finishes: tuple[str, ...]
    tools: bool


def recorded(stream: bytes, choices_n: int = 1) -> Recorded | None:
    """Read a relayed stream; None when it is not whole, or not what this file can read."""
    events = _events(stream)
    if events is None:
        return None
    kept: list[bytes] = []
    finishes: dict[int, str] = {}
    tools = False
    for raw, chunk in events:
        choices = chunk.get("choices")
        if "error" in chunk or not isinstance(choices, list):
            return None
        if not choices and chunk.get("usage") is not None:
            continue
        if chunk.get("usage") is not None:  # some engines report as they go: said once, when it is asked for
            raw = _PREFIX + msgspec.json.encode({**chunk, "usage": None}) + b"\n\n"  # noqa: PLW2901 - the event as kept
        for choice in choices:
            if choice.get("finish_reason"):
                finishes[choice.get("index", 0)] = str(choice["finish_reason"])
            delta = choice.get("delta") or {}
            tools = tools or bool(delta.get("tool_calls") or delta.get("function_call"))
        kept.append(raw)
    if len(finishes) < choices_n:
        return None
    return Recorded(b"".join(kept) + _DONE, tuple(finishes.values()), tools or "tool_calls" in finishes.values())


def with_usage(stream: bytes, usage: dict[str, Any]) -> bytes | None:
    """Return a recorded stream with its usage event before the terminator."""
    events = _events(stream)
    if not events:
        return None
    first = events[0][1]
    head = {name: first[name] for name in ("id", "object", "created", "model") if name in first}
    event = _PREFIX + msgspec.json.encode({**head, "choices": [], "usage": usage}) + b"\n\n"
    return stream.removesuffix(_DONE) + event + _DONE


def as_events(body: bytes, *, usage: bool) -> bytes | None:
    """Return a whole chat answer as events: role, content, finish, usage if asked, terminator."""
    try:
        answer = _JSON.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    choices = answer.get("choices")
    if answer.get("object") != "chat.completion" or not isinstance(choices, list) or not choices:
        return None
    head = {name: answer[name] for name in _TOP if name in answer} | {"object": "chat.completion.chunk"}
    shown: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    for choice in choices:
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict) or not _plain(choice, message):
            return None
        index = choice.get("index", 0)
        delta = {name: message[name] for name in ("role", *_TEXTS) if message.get(name) is not None}
        calls = message.get("tool_calls")
        if calls:
            delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(calls)]
        shown.append({"index": index, "delta": delta, "finish_reason": None})
        ends.append({"index": index, "delta": {}, "finish_reason": choice.get("finish_reason")})
    chunks = [{**head, "choices": [one]} for one in (*shown, *ends)]
    if usage:
        chunks.append({**head, "choices": [], "usage": answer.get("usage")})
    return b"".join([_PREFIX + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks]) + _DONE


def as_answer(stream: bytes, usage: dict[str, Any]) -> bytes | None:
    """Return a recorded chat stream as one whole answer."""
    events = _events(stream)
    if not events or events[0][1].get("object") != "chat.completion.chunk":
        return None
    messages: dict[int, dict[str, Any]] = {}
    finishes: dict[int, Any] = {}
    for _, chunk in events:
        for choice in chunk["choices"]:
            delta = choice.get("delta") or {}
            index = choice.get("index", 0)
            if not _plain(choice, delta) or not _added(messages.setdefault(index, {}), delta):
                return None
            finishes[index] = choice.get("finish_reason") or finishes.get(index)
    first = events[0][1]
    head = {name: first[name] for name in _TOP if name in first} | {"object": "chat.completion"}
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": None, **message},
            "logprobs": None,
            "finish_reason": finishes[index],
        }
        for index, message in sorted(messages.items())
    ]
    return msgspec.json.encode({**head, "choices": choices, "usage": usage})


def usage_of(body: bytes) -> dict[str, Any] | None:
    """Return the usage that a whole answer or the end of a stream reports."""
    events = _events(body) if body.startswith(_PREFIX) else None
    try:
        documents = [chunk for _, chunk in events] if events is not None else [_JSON.decode(body)]
    except (msgspec.DecodeError, RecursionError):
        return None
    return next((one["usage"] for one in reversed(documents) if isinstance(one.get("usage"), dict)), None)


def _added(message: dict[str, Any], delta: dict[str, Any]) -> bool:
    """Add one delta to a message; False when that cannot be done without loss."""
    for name in ("role", *_TEXTS):
        text = delta.get(name)
        if text is None:
            continue
        if not isinstance(text, str):
            return False
        message[name] = text if name == "role" else message.get(name, "") + text
    for call in delta.get("tool_calls") or ():
        calls = message.setdefault("tool_calls", [])
        at = call.get("index") if isinstance(call, dict) else None
        if not isinstance(at, int) or not 0 <= at <= len(calls):
            return False
        if at == len(calls):
            calls.append({"function": {"arguments": ""}})
        whole = calls[at]
        part = call.get("function") or {}
        for name in ("id", "type"):
            if call.get(name) is not None:
                whole[name] = call[name]
        if part.get("name") is not None:
            whole["function"]["name"] = part["name"]
        whole["function"]["arguments"] += part.get("arguments") or ""
    return True


def _plain(choice: dict[str, Any], message: dict[str, Any]) -> bool:
    unknown = [name for name in choice if name not in _CHOICE] + [name for name in message if name not in _MESSAGE]
    lossy = choice.get("logprobs") or message.get("audio") or message.get("annotations") or message.get("function_call")
    return not unknown and not lossy


def _events(stream: bytes) -> list[tuple[bytes, dict[str, Any]]] | None:
    """Return the events before the terminator with their documents; None when it is missing or one is no object."""
    if not stream.endswith(_DONE):
        return None
    found = []
    for raw in stream.removesuffix(_DONE).split(b"\n\n")[:-1]:
        lines = [line for line in raw.split(b"\n") if not line.startswith(b":")]
        if not lines:
            continue
        if len(lines) != 1 or not lines[0].startswith(_PREFIX):
            return None
        try:
            found.append((lines[0] + b"\n\n", _JSON.decode(lines[0].removeprefix(_PREFIX))))
        except (msgspec.DecodeError, RecursionError):
            return None
    return found
