"""What an answer depends on, as one frozen key with no optional part: a key without a tenant cannot be written down.

Digests are BLAKE2b-128 of compact JSON with sorted keys, of values as parsed: `1` and `1.0` separate, which is a miss
and never a wrong match. A member that this file does not know separates, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

_DIGEST_BYTES = 16
# They change who pays or how the answer travels, never what it says.
_LEFT_OUT = frozenset({"model", "stream", "stream_options", "turnout", "user", "metadata", "prompt_cache_key"})
_SYSTEM = ("system", "instructions", "systemInstruction", "system_instruction")
_TOOLS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "toolConfig")
_FORMAT = (
    "response_format",
    "text",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "modalities",
    "audio",
)
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_sequences",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "reasoning_effort",
    "reasoning",
    "thinking",
    "generationConfig",
)
_CONVERSATIONS = ("messages", "input", "contents", "prompt")
_KNOWN = _LEFT_OUT.union(_SYSTEM, _TOOLS, _FORMAT, _SAMPLING, _CONVERSATIONS)
SYSTEM_ROLES = ("system", "developer")
_ANSWER_HEADERS = ("anthropic-",)
_BODY = msgspec.json.Decoder(dict[str, Any])


class CacheKey(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Everything that an answer depends on. `tenant` is the top level of the store and never part of a digest."""

    tenant: str
    dialect: str
    path: str
    kind: str
    model: str
    weight_version: str
    bundle_version: str
    knobs_hash: int
    system: bytes
    tools: bytes
    format: bytes
    sampling: bytes
    history: bytes
    rest: bytes
    last: bytes

    @property
    def bucket(self) -> tuple[str | int | bytes, ...]:
        """The key without tenant and last message: what all entries of a bucket share."""
        return msgspec.structs.astuple(self)[1:-1]


class Digests(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The parts of the key that come from the body."""

    system: bytes
    tools: bytes
    format: bytes
    sampling: bytes
    history: bytes
    rest: bytes
    last: bytes


class Shape(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What eligibility reads about the body."""

    digests: Digests
    messages: int = 0
    last_is_user: bool = False
    has_media: bool = False
    has_tools: bool = False
    names_state: bool = False
    text: str = ""
    """Text of the last user message."""


def shape(body: Mapping[str, Any], headers: Sequence[tuple[str, str]] = ()) -> Shape:
    """Take a parsed body apart. `headers` are those that change the answer (`anthropic-version`, `anthropic-beta`)."""
    messages = _messages(body)
    last_at = next((at for at in range(len(messages) - 1, -1, -1) if role_of(messages[at]) == "user"), -1)
    history = [message for at, message in enumerate(messages) if at != last_at]
    behind = len(messages) - 1 - last_at  # part of `last`: the history does not tell where it was taken out
    last = messages[last_at] if last_at >= 0 else None
    spoken = [message for message in messages if role_of(message) not in SYSTEM_ROLES]
    system = [message for message in messages if role_of(message) in SYSTEM_ROLES]
    return Shape(
        digests=Digests(
            system=_digest([_some(body, _SYSTEM), system]),
            tools=_digest(_some(body, _TOOLS)),
            format=_digest(_some(body, _FORMAT)),
            sampling=_digest(_some(body, _SAMPLING)),
            history=_digest(history),
            rest=_digest([{name: value for name, value in body.items() if name not in _KNOWN}, list(headers)]),
            last=_digest([[name for name in _CONVERSATIONS if name in body], behind, last]),
        ),
        messages=len(spoken),
        last_is_user=last_at >= 0 and not behind,
        has_media=any(_has_media(message) for message in messages),
        has_tools=any(body.get(name) for name in ("tools", "functions")),
        names_state=any(body.get(name) for name in ("previous_response_id", "conversation", "container"))
        or body.get("store") is True,
        text=text_of(last) if last is not None else "",
    )


def shape_of(body: bytes, forwarded: bytes) -> Shape | None:
    """Take a body apart, with the header lines sent along that change an answer; None when it is unreadable."""
    lines = [line.decode("latin-1").partition(": ") for line in forwarded.split(b"\r\n")]
    try:
        return shape(_BODY.decode(body), sorted((n, v) for n, _, v in lines if n.startswith(_ANSWER_HEADERS)))
    except (msgspec.DecodeError, RecursionError, OverflowError):  # numbers out of range: legal on the wire
        return None


def role_of(message: object) -> str:
    """Return who speaks; a bare string speaks for the user."""
    if isinstance(message, Mapping):
        return str(message.get("role", "user"))
    return "user"


def text_of(message: object) -> str:
    """Return the text parts of a message, joined by line ends."""
    if isinstance(message, str):
        return message
    if not isinstance(message, Mapping):
        return ""
    content = message.get("content", message.get("parts"))
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    return "\n".join(part for part in parts if isinstance(part, str))


def _messages(body: Mapping[str, Any]) -> list[Any]:
    for name in _CONVERSATIONS:
        value = body.get(name)
        if isinstance(value, list):
            return value
        if isinstance(value, str):
            return [value]
    return []


def _has_media(message: object) -> bool:
    if not isinstance(message, Mapping):
        return not isinstance(message, str)
    content = message.get("content", message.get("parts"))
    if isinstance(content, list):
        return any(not (isinstance(part, str) or (isinstance(part, Mapping) and _is_text(part))) for part in content)
    return content is not None and not isinstance(content, str)


def _is_text(part: Mapping[str, Any]) -> bool:
    return isinstance(part.get("text"), str) and part.get("type", "text") in ("text", "input_text", "output_text")


def _some(body: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: body[name] for name in names if name in body}


def _digest(value: object) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(value, order="sorted"), digest_size=_DIGEST_BYTES).digest()
