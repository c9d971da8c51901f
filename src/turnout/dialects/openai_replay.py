"""A stored chat answer or completion as another request wants it: whole or as events, with or without usage.

What cannot be carried over without loss (log-probabilities, audio, members this file does not know) is not carried over
at all: None, and the caller asks an engine.
"""

from __future__ import annotations

from typing import Any

import msgspec

from turnout.core.usage import Usage
from turnout.dialects.replay import Recorded, Replay

_DONE = b"data: [DONE]\n\n"
_PREFIX = b"data: "
_JSON = msgspec.json.Decoder(dict[str, Any])
_CHOICE = frozenset(("index", "delta", "message", "finish_reason", "logprobs", "stop_reason"))
_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
_MESSAGE = frozenset(("role", "tool_calls", "function_call", "annotations", "audio", *_TEXTS))
_TOP = ("id", "created", "model", "system_fingerprint", "service_tier")
_CHAT, _CHUNK, _COMPLETION = "chat.completion", "chat.completion.chunk", "text_completion"
_COMPLETION_CHOICE = frozenset(("index", "text", "finish_reason", "logprobs", "stop_reason"))


def finishes(body: bytes) -> tuple[tuple[str, ...], bool]:
    """Return the finish reason of every choice (empty when one has none) and whether any calls a tool."""
    try:
        choices = _JSON.decode(body).get("choices")
    except (msgspec.DecodeError, RecursionError):
        return (), False
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        return (), False
    reasons = tuple([str(choice.get("finish_reason") or "") for choice in choices])
    messages = [choice.get("message") for choice in choices]
    tools = any(isinstance(m, dict) and (m.get("tool_calls") or m.get("function_call")) for m in messages)
    return (reasons if all(reasons) else ()), tools or "tool_calls" in reasons


def recorded(stream: bytes, choices_n: int = 1) -> Recorded | None:
    """Read a relayed stream, without its usage event; None when it is not whole, or not what this file can read."""
    events = _events(stream)
    if events is None:
        return None
    kept: list[bytes] = []
    ends: dict[int, str] = {}
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
                ends[choice.get("index", 0)] = str(choice["finish_reason"])
            delta = choice.get("delta") or {}
            tools = tools or bool(delta.get("tool_calls") or delta.get("function_call"))
        kept.append(raw)
    if len(ends) < choices_n:
        return None
    return Recorded(b"".join(kept) + _DONE, tuple(ends.values()), tools or "tool_calls" in ends.values())


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
    """Return a whole answer as events: role, content, finish, usage if asked, terminator."""
    try:
        answer = _JSON.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    choices = answer.get("choices")
    kind = answer.get("object")
    if kind not in (_CHAT, _COMPLETION) or not isinstance(choices, list) or not choices:
        return None
    head = {name: answer[name] for name in _TOP if name in answer}
    head["object"] = _CHUNK if kind == _CHAT else _COMPLETION
    shown: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    for choice in choices:
        pair = (_said if kind == _CHAT else _written)(choice) if isinstance(choice, dict) else None
        if pair is None:
            return None
        shown.append(pair[0])
        ends.append(pair[1])
    chunks = [{**head, "choices": [one]} for one in (*shown, *ends)]
    if usage:
        chunks.append({**head, "choices": [], "usage": answer.get("usage")})
    return b"".join([_PREFIX + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks]) + _DONE


def as_answer(stream: bytes, usage: dict[str, Any]) -> bytes | None:
    """Return a recorded stream as one whole answer."""
    events = _events(stream)
    kind = events[0][1].get("object") if events else None
    if not events or kind not in (_CHUNK, _COMPLETION):
        return None
    messages: dict[int, dict[str, Any]] = {}
    ends: dict[int, Any] = {}
    for _, chunk in events:
        for choice in chunk["choices"]:
            index = choice.get("index", 0)
            message = messages.setdefault(index, {})
            if not (_said_more if kind == _CHUNK else _written_more)(message, choice):
                return None
            ends[index] = choice.get("finish_reason") or ends.get(index)
    first = events[0][1]
    head = {name: first[name] for name in _TOP if name in first} | {"object": _CHAT if kind == _CHUNK else kind}
    choices = [
        {"index": index}
        | ({"message": {"role": "assistant", "content": None, **found}} if kind == _CHUNK else {"text": "", **found})
        | {"logprobs": None, "finish_reason": ends[index]}
        for index, found in sorted(messages.items())
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


def _said(choice: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return a choice of a chat answer as two of a stream: all that it says, and why it ended."""
    message = choice.get("message")
    if not isinstance(message, dict) or not _plain(choice, message):
        return None
    index = choice.get("index", 0)
    delta = {name: message[name] for name in ("role", *_TEXTS) if message.get(name) is not None}
    calls = message.get("tool_calls")
    if calls:
        delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(calls)]
    end = {"index": index, "delta": {}, "finish_reason": choice.get("finish_reason")}
    return {"index": index, "delta": delta, "finish_reason": None}, end


def _written(choice: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return a choice of a completion as two of a stream."""
    if not _plain_completion(choice):
        return None
    both = {"index": choice.get("index", 0), "logprobs": None}
    text, end = choice.get("text", ""), choice.get("finish_reason")
    return {**both, "text": text, "finish_reason": None}, {**both, "text": "", "finish_reason": end}


def _said_more(message: dict[str, Any], choice: dict[str, Any]) -> bool:
    """Add what a choice of a chat stream says; False when that cannot be done without loss."""
    delta = choice.get("delta") or {}
    return _plain(choice, delta) and _added(message, delta)


def _written_more(message: dict[str, Any], choice: dict[str, Any]) -> bool:
    """Add what a choice of a completion's stream says; False when that cannot be done without loss."""
    if not _plain_completion(choice):
        return False
    message["text"] = message.get("text", "") + choice.get("text", "")
    return True


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


def _plain_completion(choice: dict[str, Any]) -> bool:
    text = choice.get("text", "")
    return _COMPLETION_CHOICE.issuperset(choice) and not choice.get("logprobs") and isinstance(text, str)


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


def _reported(stream: bytes, usage: Usage) -> dict[str, Any]:
    """Return the usage event's own words; what was counted, where an engine's event was not relayed."""
    found = usage_of(stream)
    if found is not None:
        return found
    tokens_in, tokens_out = usage.tokens_in or 0, usage.tokens_out or 0
    said: dict[str, Any] = {
        "prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out,
    }  # fmt: skip
    if usage.tokens_cached is not None:
        said["prompt_tokens_details"] = {"cached_tokens": usage.tokens_cached}
    if usage.tokens_reasoning is not None:
        said["completion_tokens_details"] = {"reasoning_tokens": usage.tokens_reasoning}
    return said


REPLAY = Replay(
    finishes=finishes,
    recorded=recorded,
    reported=_reported,
    with_usage=with_usage,
    as_events=lambda body, usage: as_events(body, usage=usage),
    as_answer=as_answer,
)
