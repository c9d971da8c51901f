"""The Anthropic dialect, inbound: request bytes to a `Request`, reading only what routing needs (request-path §4).

Every other field and value travels byte for byte. An error names the field as a path, the value seen and what was
expected; it never shows content.
"""

from __future__ import annotations

from typing import Final

import msgspec

from turnout.core.request import Prompt, Request
from turnout.core.types import Refusal
from turnout.dialects.anthropic_prompt import conversation, turns_of
from turnout.dialects.anthropic_shapes import METADATA, TURNS, Metadata, Turn
from turnout.dialects.fields import (
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
    refuse_field,
    refuse_malformed,
    refuse_prompt,
    refuse_steering,
    refuse_twice,
    repeatable,
    string,
    typed,
)
from turnout.dialects.openai_prompt import render_salt
from turnout.dialects.openai_shapes import INT_MAX
from turnout.dialects.strict_json import DuplicateMember, InvalidJSON, around_array, members, small_members

MESSAGES: Final[bytes] = b"/v1/messages"
COUNT_TOKENS: Final[bytes] = b"/v1/messages/count_tokens"

_NUMBERS = ("temperature", "top_p")
_NOTHING = (b"null", b"[]")


def decode(path: bytes, body: bytes, depth_max: int, default_model: str = "") -> Request | Refusal:
    """Decode a body of the Anthropic dialect.

    Args:
        path: MESSAGES or COUNT_TOKENS.
        body: the whole body.
        depth_max: `server.json_depth_max`.
        default_model: `models.default`, used when the model is missing, null or empty (M5).

    """
    try:
        found, turns = _split(body, depth_max)
        return _request(path, found, turns, body, default_model)
    except InvalidJSON as malformed:
        return refuse_malformed(malformed)
    except DuplicateMember as twice:
        return refuse_twice(twice)
    except InvalidPrompt as prompt:
        return refuse_prompt(prompt)
    except InvalidField as field:
        return refuse_field(field)


def _split(body: bytes, depth_max: int) -> tuple[Members, list[Turn]]:
    """Return members and messages, the messages read once where they can be told from the rest."""
    parts = around_array(body, b'"messages"', depth_max)
    if parts is not None:
        outer, array = parts
        small = small_members(outer)
        if small is not None and bytes(small.get("messages", b"")) == b"0":
            try:
                return small, TURNS.decode(array)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                pass
    found = members(body, depth_max)
    return found, turns_of(found)


def _request(path: bytes, found: Members, turns: list[Turn], body: bytes, default_model: str) -> Request:
    refuse_steering(found)
    counting = path == COUNT_TOKENS
    stream = boolean(found, "stream") and not counting
    max_tokens = integer(found, "max_tokens", 0, INT_MAX)
    tools = bytes(found["tools"]) if "tools" in found else b"null"
    if tools not in _NOTHING and tools[:1] != b"[":
        raise InvalidField("tools", tools, "an array")
    for name in _NUMBERS:
        if name in found:
            typed(found, name, float, "a finite number")
    if "turnout" in found:
        check_controls(bytes(found["turnout"]))
    prompt = conversation(turns, found)
    metadata = _metadata(found)
    return Request(
        dialect="anthropic",
        path=path.decode(),
        body=body,
        model=model_of(found, default_model),
        # To count is not to run: it warms no cache, and a prompt that is too long may be counted, too.
        prompt=Prompt() if counting else prompt,
        stream=stream,
        include_usage=True,  # every stream of this dialect reports it, so nobody has to ask
        n=1,
        max_tokens=max_tokens,
        user=metadata.user_id,
        session=_session(found) or metadata.session_id or metadata.user_id,
        cache_salt=string(found, "cache_salt") or "",
        render_salt=render_salt(found),
        tools_requested=tools not in _NOTHING,
        has_controls="turnout" in found,
        repeatable=repeatable(found),
        model_defaulted=is_defaulted(found),
    )


def _session(found: Members) -> str | None:
    session = string(found, "session_id")
    if session and len(session.encode()) > SESSION_MAX_BYTES:  # L11
        raise InvalidField("session_id", session, f"at most {SESSION_MAX_BYTES} bytes")
    return session


def _metadata(found: Members) -> Metadata:
    """Read whom a request is for; a shape of its own is the engine's business."""
    raw = found.get("metadata")
    if raw is None:
        return Metadata()
    try:
        metadata = METADATA.decode(raw)
    except msgspec.DecodeError:
        return Metadata()
    for name, value in (("session_id", metadata.session_id), ("user_id", metadata.user_id)):
        if value is not None and "\0" in value:
            raise InvalidField(f"metadata.{name}", value, "a string without NUL")
    return Metadata(label(metadata.session_id), label(metadata.user_id))
