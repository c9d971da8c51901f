"""The OpenAI dialect, inbound: request bytes to a `Request`, reading only what routing needs (request-path §4, J6–J10).

Every other field and value travels byte for byte. An error names the field as a path, the value seen and what was
expected; it never shows content.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from turnout.core.selection import controls
from turnout.core.types import Prompt, Refusal, Request
from turnout.dialects import openai_prompt as prompts
from turnout.dialects.openai_shapes import INT_MAX, MESSAGES, USUAL
from turnout.dialects.strict_json import (
    DuplicateMember,
    InvalidJSON,
    around_array,
    members,
    refuse_duplicates,
    small_members,
)

CHAT, COMPLETIONS, EMBEDDINGS = b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings"

T = TypeVar("T")
_NO_MODEL = msgspec.Raw(b"null")
_Members = dict[str, msgspec.Raw]
_NAME_MAX_BYTES = 256
_SESSION_MAX_BYTES = 512
_N_MAX = 128
_QUOTE = ord('"')

# J9: fields that steer engines; a client that could set them could make an engine send KV elsewhere.
_FORBIDDEN = frozenset(
    {
        "kv_transfer_params",
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "routed_dp_rank",
        "disagg_prefill_dp_rank",
        "data_parallel_rank",
    }
)
# Everything that is checked here; a body made of other members than these and messages needs no second look.
_STRINGS = ("user", "prompt_cache_key", "session_id")
_NUMBERS = ("temperature", "top_p")
_MEMBERS_READ = frozenset(("bundle_version", "cache_match", "cache_threshold"))


class InvalidField(ValueError):
    """A field that is read has the wrong shape: names path, value seen and what was expected."""

    def __init__(self, field: str, seen: object, expected: str, code: str = "invalid_request") -> None:
        shown = seen if isinstance(seen, str) else bytes(seen).decode("utf-8", "replace")  # type: ignore[call-overload]
        shown = shown.encode("unicode_escape").decode()[:64]
        super().__init__(f"{field}: expected {expected}, got {shown}")
        self.field = field
        self.code = code


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
        return Refusal(400, "invalid_json", f"The body is not valid JSON: {malformed}.")
    except DuplicateMember as twice:
        return Refusal(400, "invalid_request", f"{twice.key}: the key stands twice; expected once.", param=twice.key)
    except prompts.InvalidPrompt as prompt:
        shaped = InvalidField(prompt.field, prompt.seen, prompt.expected)
        return Refusal(400, shaped.code, f"{shaped}.", param=shaped.field)
    except InvalidField as field:
        return Refusal(400, field.code, f"{field}.", param=field.field)


# Members that need a look of their own: a body without them is what `_usual` says it is.
_UNUSUAL = _FORBIDDEN | {
    "stream_options",
    "n",
    "tools",
    "functions",
    "turnout",
    "cache_salt",
    "session_id",
    "prompt_cache_key",
    "previous_response_id",
    "chat_template",
    "chat_template_kwargs",
    "reasoning_effort",
}


def _usual(body: bytes, depth_max: int) -> Request | None:
    """Decode a chat of usual members, its messages once; None when anything asks for a second look."""
    parts = around_array(body, b"messages", depth_max)
    if parts is None:
        return None
    outer, array = parts
    found = small_members(outer)
    if found is None or not _UNUSUAL.isdisjoint(found):
        return None
    try:
        usual = USUAL.decode(outer)  # its messages are the 0 in their place
        messages = MESSAGES.decode(array)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    model, user = usual.model, usual.user
    known = user is None or (len(user) <= _SESSION_MAX_BYTES and "\0" not in user)
    if not (known and 0 < len(model) < _NAME_MAX_BYTES // 4 and "\0" not in model):
        return None
    return Request(
        "openai",
        "/v1/chat/completions",
        body,
        model,
        prompts.chat(messages, found),
        usual.stream or False,
        max_tokens=usual.max_completion_tokens if usual.max_completion_tokens is not None else usual.max_tokens,
        user=user,
        session=user,
    )


def _careful(path: bytes, found: _Members, body: bytes, default_model: str) -> Request:
    if not _FORBIDDEN.isdisjoint(found):
        field = min(_FORBIDDEN.intersection(found))
        raise InvalidField(field, "a value", "no such field: it steers engines", "forbidden_field")
    stream = _boolean(found, "stream")
    include_usage = False
    if "stream_options" in found:
        include_usage = _include_usage(found)
    max_tokens = _integer(found, "max_tokens", 0, INT_MAX)
    completion_max = _integer(found, "max_completion_tokens", 0, INT_MAX)
    n = _integer(found, "n", 1, _N_MAX)
    tools = found.get("tools")
    has_tools = tools is not None and bytes(tools) not in (b"null", b"[]")
    if has_tools and bytes(tools)[:1] != b"[":  # type: ignore[arg-type]
        raise InvalidField("tools", bytes(tools), "an array")  # type: ignore[arg-type]
    _check_rarely_used(found)
    user = _label(_string(found, "user"))
    prompt = _prompt(path, found)
    return Request(
        dialect="openai",
        path=path.decode(),
        body=body,
        model=_model(found, default_model),
        model_defaulted=bytes(found.get("model", _NO_MODEL)) in (b"null", b'""'),
        prompt=prompt,
        stream=stream,
        include_usage=include_usage,
        has_stream_options="stream_options" in found,
        n=(n or 1) * prompt.count,
        max_tokens=max_tokens if completion_max is None else completion_max,
        user=user,
        session=_string(found, "session_id") or _label(_string(found, "prompt_cache_key")) or user,
        cache_salt=_string(found, "cache_salt") or "",
        render_salt=prompts.render_salt(found),
        tools_requested=has_tools,
        has_controls="turnout" in found,
    )


def _prompt(path: bytes, found: _Members) -> Prompt:
    if path == CHAT:
        return prompts.chat(prompts.messages_of(found), found)
    return prompts.completion(found) if path == COMPLETIONS else prompts.embedding(found)


def _model(found: _Members, default: str) -> str:
    raw = found.get("model")
    name = "" if raw is None else (_string(found, "model") or "")
    if not name:
        if default:
            return default
        raise InvalidField(
            "model", "nothing" if raw is None else bytes(raw), "the id of a model", "missing_model_field"
        )
    if len(name) > _NAME_MAX_BYTES or len(name.encode()) > _NAME_MAX_BYTES or "\0" in name:
        raise InvalidField("model", name, f"1 to {_NAME_MAX_BYTES} bytes without NUL")
    return name


def _include_usage(found: _Members) -> bool:
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
    return _boolean(options, "include_usage", "stream_options.")


def _check_rarely_used(found: _Members) -> None:
    for name in _STRINGS:
        if name in found:
            text = _string(found, name)
            if name == "session_id" and text and len(text.encode()) > _SESSION_MAX_BYTES:  # L11
                raise InvalidField(name, text, f"at most {_SESSION_MAX_BYTES} bytes")
    for name in _NUMBERS:
        if name in found:
            _typed(found, name, float, "a finite number")
    if "seed" in found:
        _integer(found, "seed", -(2**63), 2**64 - 1)
    if "turnout" in found:
        _check_controls(bytes(found["turnout"]))


def _check_controls(raw: bytes) -> None:
    """Accept the controls that are honoured as members, each by its own type; the others are refused by name (J10)."""
    if raw == b"null":
        return
    try:
        members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        raise InvalidField("turnout", raw, "an object of controls") from None
    try:
        refuse_duplicates(raw)
    except DuplicateMember as error:
        raise DuplicateMember(f"turnout.{error.key}") from None
    for name, value in members.items():
        if name in controls.KNOBS:
            try:
                controls.from_member(name, _typed(members, name, object, "a value in range"))
            except controls.InvalidControl as error:
                raise InvalidField(error.param, bytes(value), error.expected, "invalid_routing_knobs") from None
        elif name not in _MEMBERS_READ:
            raise InvalidField(f"turnout.{name}", name, "a known control")


def _boolean(found: _Members, name: str, prefix: str = "") -> bool:
    raw = found.get(name)
    if raw is None:
        return False
    text = bytes(raw)
    if text == b"true":
        return True
    if text in (b"false", b"null"):
        return False
    raise InvalidField(prefix + name, text, "a boolean")


def _integer(found: _Members, name: str, low: int, high: int) -> int | None:
    raw = found.get(name)
    if raw is None:
        return None
    text = bytes(raw)
    if text.isdigit() and len(text) < 19:  # noqa: PLR2004 - below any 64-bit overflow
        value: int | float | None = int(text)
    else:
        value = _typed(found, name, float, f"an integer {low}…{high}") if text != b"null" else None
        if text.lstrip(b"-").isdigit():
            value = int(text)
        elif value is not None and not float(value).is_integer():
            raise InvalidField(name, text, f"an integer {low}…{high}")
    if value is None:
        return None
    if not low <= value <= high:
        raise InvalidField(name, text, f"an integer {low}…{high}")
    return int(value)


def _string(found: _Members, name: str) -> str | None:
    raw = found.get(name)
    if raw is None:
        return None
    text = bytes(raw)
    if text[0] == _QUOTE and b"\\" not in text:  # the usual case needs no decoder
        return text[1:-1].decode()
    value = _typed(found, name, str, "a string")
    if value is not None and "\0" in value:
        raise InvalidField(name, text, "a string without NUL")
    return value


def _label(text: str | None) -> str | None:
    """Shorten what the ledger keeps with every call: these fields have no bound of their own (§4)."""
    return text if text is None else text[:_SESSION_MAX_BYTES]


def _typed(found: _Members, name: str, kind: type[T], expected: str) -> T | None:
    try:
        return msgspec.json.decode(found[name], type=kind | None)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidField(name, bytes(found[name]), expected) from None
