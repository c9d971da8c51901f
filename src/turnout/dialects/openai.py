"""The OpenAI dialect, inbound: request bytes to a `Request`, reading only what routing needs (request-path §4, J6–J10).

Every other field and value travels byte for byte. An error names the field as a path, the value seen and what was
expected; it never shows content.
"""

from __future__ import annotations

from typing import Final

import msgspec

from turnout.core.request import Prompt, Request
from turnout.core.types import Refusal
from turnout.dialects import openai_prompt as prompts
from turnout.dialects.fields import (
    FORBIDDEN,
    NAME_MAX_BYTES,
    SESSION_MAX_BYTES,
    InvalidField,
    InvalidPrompt,
    Members,
    boolean,
    check_controls,
    integer,
    is_defaulted,
    label,
    model_of,
    named_session,
    refuse_field,
    refuse_malformed,
    refuse_prompt,
    refuse_steering,
    refuse_twice,
    repeatable,
    string,
    typed,
)
from turnout.dialects.openai_shapes import INT_MAX, MESSAGES, USUAL, Usual
from turnout.dialects.strict_json import (
    DuplicateMember,
    InvalidJSON,
    around_array,
    members,
    refuse_duplicates,
    small_members,
)

CHAT: Final = b"/v1/chat/completions"
COMPLETIONS: Final = b"/v1/completions"
EMBEDDINGS: Final = b"/v1/embeddings"

_N_MAX: Final = 128
_MESSAGES: Final = b'"messages"'

# Everything that is checked here; a body made of other members than these and messages needs no second look.
_STRINGS = ("user", "prompt_cache_key", "session_id")
_NUMBERS = ("temperature", "top_p")


def decode(path: bytes, body: bytes, depth_max: int, default_model: str = "") -> Request | Refusal:
    """Decode a body of the OpenAI dialect.

    Args:
        path: one of CHAT, COMPLETIONS, EMBEDDINGS.
        body: the whole body.
        depth_max: `server.json_depth_max`.
        default_model: `models.default`, used when the model is missing, null or empty (M5).

    """
    try:
        usual = _usual(body, depth_max) if path == CHAT else None
        return usual or _careful(path, members(body, depth_max), body, default_model)
    except InvalidJSON as malformed:
        return refuse_malformed(malformed)
    except DuplicateMember as twice:
        return refuse_twice(twice)
    except InvalidPrompt as prompt:
        return refuse_prompt(prompt)
    except InvalidField as field:
        return refuse_field(field)


# Members that need a look of their own: a body without them is what `_usual` says it is.
_UNUSUAL: Final = FORBIDDEN | {
    "stream_options",
    "n",
    "tools",
    "functions",
    "turnout",
    "cache_salt",
    "session_id",
    "session_params",
    "prompt_cache_key",
    "conversation",
    "metadata",
    "previous_response_id",
    "chat_template",
    "chat_template_kwargs",
    "reasoning_effort",
}


def _usual(body: bytes, depth_max: int) -> Request | None:
    """Decode a chat of usual members, its messages once; None when anything asks for a second look."""
    parts = around_array(body, _MESSAGES, depth_max)
    if parts is None:
        return None
    outer, array = parts
    asked = _ASKED.get(outer)
    if asked is None:
        asked = _asked(outer)
        if asked is None:
            return None
    try:
        messages = MESSAGES.decode(array)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return Request(
        "openai",
        "/v1/chat/completions",
        body,
        asked.model,
        prompts.chat(messages, asked.found),
        asked.stream,
        max_tokens=asked.max_tokens,
        user=asked.user,
        repeatable=asked.repeatable,
    )


class _Asked:
    """What a usual chat says beside its messages."""

    __slots__ = ("found", "max_tokens", "model", "repeatable", "stream", "user")

    def __init__(self, found: Members, usual: Usual) -> None:
        self.found: Final = found
        self.model: Final[str] = usual.model
        self.stream: Final[bool] = usual.stream or False
        most: int | None = usual.max_completion_tokens
        self.max_tokens: Final = most if most is not None else usual.max_tokens
        self.user: Final[str | None] = usual.user
        self.repeatable: Final[bool] = usual.temperature == 0 or usual.seed is not None


# A client asks with the same parameters again and again: what they mean is known by their bytes, few and short.
_ASKED: Final[dict[bytes, _Asked]] = {}
_ASKED_MAX: Final = 1024
_ASKED_MAX_BYTES: Final = 512


def _asked(outer: bytes) -> _Asked | None:
    """Read a chat around its messages, which are a 0 here; None when anything asks for a second look."""
    found = small_members(outer)
    if found is None or not _UNUSUAL.isdisjoint(found):
        return None
    try:
        usual = USUAL.decode(outer)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    model, user = usual.model, usual.user
    known = user is None or (len(user) <= SESSION_MAX_BYTES and "\0" not in user)
    if not (known and 0 < len(model) < NAME_MAX_BYTES // 4 and "\0" not in model):
        return None
    asked = _Asked(found, usual)
    if user is None and len(outer) <= _ASKED_MAX_BYTES:  # people's names are not kept
        if len(_ASKED) >= _ASKED_MAX:
            _ASKED.clear()
        _ASKED[outer] = asked
    return asked


def _careful(path: bytes, found: Members, body: bytes, default_model: str) -> Request:
    refuse_steering(found)
    stream = boolean(found, "stream")
    include_usage = False
    if "stream_options" in found:
        include_usage = _include_usage(found)
    max_tokens = integer(found, "max_tokens", 0, INT_MAX)
    completion_max = integer(found, "max_completion_tokens", 0, INT_MAX)
    n = integer(found, "n", 1, _N_MAX)
    tools = found.get("tools")
    has_tools = tools is not None and bytes(tools) not in (b"null", b"[]")
    if has_tools and bytes(tools)[:1] != b"[":  # type: ignore[arg-type]
        raise InvalidField("tools", bytes(tools), "an array")  # type: ignore[arg-type]
    _check_rarely_used(found)
    user = label(string(found, "user"))
    prompt = _prompt(path, found)
    return Request(
        dialect="openai",
        path=path.decode(),
        body=body,
        model=model_of(found, default_model),
        model_defaulted=is_defaulted(found),
        prompt=prompt,
        stream=stream,
        include_usage=include_usage,
        has_stream_options="stream_options" in found,
        n=(n or 1) * prompt.count,
        max_tokens=max_tokens if completion_max is None else completion_max,
        user=user,
        session=string(found, "session_id") or label(named_session(found)),
        cache_salt=string(found, "cache_salt") or "",
        render_salt=prompts.render_salt(found),
        tools_requested=has_tools,
        has_controls="turnout" in found,
        repeatable=repeatable(found),
    )


def _prompt(path: bytes, found: Members) -> Prompt:
    if path == CHAT:
        return prompts.chat(prompts.messages_of(found), found)
    return prompts.completion(found) if path == COMPLETIONS else prompts.embedding(found)


def _include_usage(found: Members) -> bool:
    raw = bytes(found["stream_options"])
    if raw == b"null":
        return False
    try:
        options = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        raise InvalidField("stream_options", raw, "an object") from None
    try:
        refuse_duplicates(raw)
    except DuplicateMember as error:
        raise DuplicateMember(f"stream_options.{error.key}") from None
    return boolean(options, "include_usage", "stream_options.")


def _check_rarely_used(found: Members) -> None:
    for name in _STRINGS:
        if name in found:
            text = string(found, name)
            if name == "session_id" and text and len(text.encode()) > SESSION_MAX_BYTES:  # L11
                raise InvalidField(name, text, f"at most {SESSION_MAX_BYTES} bytes")
    for name in _NUMBERS:
        if name in found:
            typed(found, name, float, "a finite number")
    if "seed" in found:
        integer(found, "seed", -(2**63), 2**64 - 1)
    if "turnout" in found:
        check_controls(bytes(found["turnout"]))
