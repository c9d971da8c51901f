"""The fields of a request that are read, each with its type: no coercion, no silent repair (request-path §4, J6–J10).

A body arrives as its members' raw spans; a field that nobody asks for is never decoded. An error names the field as a
path, the value seen and what was expected; it never shows content.
"""

from __future__ import annotations

import re
from typing import Final, TypeVar

import msgspec

from turnout.core.selection import controls
from turnout.core.types import Refusal
from turnout.dialects.strict_json import DuplicateMember, InvalidJSON, refuse_duplicates

Members = dict[str, msgspec.Raw]
T = TypeVar("T")
NAME_MAX_BYTES: Final = 256
SESSION_MAX_BYTES: Final = 512
_NO_MODEL: Final = msgspec.Raw(b"null")
_PATH: Final = re.compile(r" - at `(?:key in )?\$?([^`]*)`")
_QUOTE: Final = ord('"')
_CONTROLS_READ: Final = frozenset(controls.OTHERS)

# J9: fields that steer engines; a client that could set them could make an engine send KV elsewhere.
FORBIDDEN: Final = frozenset(
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


class InvalidField(ValueError):
    """A field that is read has the wrong shape: names path, value seen and what was expected."""

    def __init__(self, field: str, seen: object, expected: str, code: str = "invalid_request") -> None:
        shown = seen if isinstance(seen, str) else bytes(seen).decode("utf-8", "replace")  # type: ignore[call-overload]
        shown = shown.encode("unicode_escape").decode()[:64]
        super().__init__(f"{field}: expected {expected}, got {shown}")
        self.field = field
        self.code = code


class InvalidPrompt(ValueError):
    """A field of the prompt has the wrong shape."""

    def __init__(self, field: str, seen: bytes | str, expected: str) -> None:
        super().__init__(field)
        self.field, self.seen, self.expected = field, seen, expected


def refuse_malformed(error: InvalidJSON) -> Refusal:
    """Word the refusal of a body that is no JSON object."""
    return Refusal(400, "invalid_json", f"The body is not valid JSON: {error}.")


def refuse_twice(error: DuplicateMember) -> Refusal:
    """Word the refusal of a body with a key that stands twice."""
    return Refusal(400, "invalid_request", f"{error.key}: the key stands twice; expected once.", param=error.key)


def refuse_field(error: InvalidField) -> Refusal:
    """Word the refusal of a field."""
    return Refusal(400, error.code, f"{error}.", param=error.field)


def refuse_prompt(error: InvalidPrompt) -> Refusal:
    """Word the refusal of a prompt."""
    return refuse_field(InvalidField(error.field, error.seen, error.expected))


def refuse_steering(found: Members) -> None:
    """Refuse fields that steer engines (J9)."""
    if not FORBIDDEN.isdisjoint(found):
        field = min(FORBIDDEN.intersection(found))
        raise InvalidField(field, "a value", "no such field: it steers engines", "forbidden_field")


def is_defaulted(found: Members) -> bool:
    """Tell whether a body names no model (M5)."""
    return bytes(found.get("model", _NO_MODEL)) in (b"null", b'""')


def model_of(found: Members, default: str) -> str:
    """Return the model that is asked for; `default` when the body names none (M5)."""
    raw = found.get("model")
    name = "" if raw is None else (string(found, "model") or "")
    if not name:
        if default:
            return default
        raise InvalidField(
            "model", "nothing" if raw is None else bytes(raw), "the id of a model", "missing_model_field"
        )
    if len(name) > NAME_MAX_BYTES or len(name.encode()) > NAME_MAX_BYTES or "\0" in name:
        raise InvalidField("model", name, f"1 to {NAME_MAX_BYTES} bytes without NUL")
    return name


def check_controls(raw: bytes) -> None:
    """Accept the controls that are honoured as members, each by its own type; the others are refused by name (J10)."""
    if raw == b"null":
        return
    try:
        members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        raise InvalidField("turnout", raw, "an object of controls") from None
    try:
        refuse_duplicates(raw)
    except DuplicateMember as twice:  # names differ because a compiled local has one type
        raise DuplicateMember(f"turnout.{twice.key}") from None
    for name, value in members.items():
        if name in controls.KNOBS:
            try:
                controls.from_member(name, typed(members, name, object, "a value in range"))
            except controls.InvalidControl as error:
                raise InvalidField(error.param, bytes(value), error.expected, "invalid_routing_knobs") from None
        elif name not in _CONTROLS_READ:
            raise InvalidField(f"turnout.{name}", name, "a known control")


def boolean(found: Members, name: str, prefix: str = "") -> bool:
    """Return a bool; absent and null are False."""
    raw = found.get(name)
    if raw is None:
        return False
    text = bytes(raw)
    if text == b"true":
        return True
    if text in (b"false", b"null"):
        return False
    raise InvalidField(prefix + name, text, "a boolean")


def integer(found: Members, name: str, low: int, high: int) -> int | None:
    """Return an integer within its range; `1.0` and `1e3` are integers, too (J7)."""
    raw = found.get(name)
    if raw is None:
        return None
    text = bytes(raw)
    if text.isdigit() and len(text) < 19:  # noqa: PLR2004 - below any 64-bit overflow
        value: int | float | None = int(text)
    else:
        value = typed(found, name, float, f"an integer {low}…{high}") if text != b"null" else None
        if text.lstrip(b"-").isdigit():
            value = int(text)
        elif value is not None and not float(value).is_integer():
            raise InvalidField(name, text, f"an integer {low}…{high}")
    if value is None:
        return None
    if not low <= value <= high:
        raise InvalidField(name, text, f"an integer {low}…{high}")
    return int(value)


def string(found: Members, name: str) -> str | None:
    """Return a string without NUL; None when it is absent or null."""
    raw = found.get(name)
    if raw is None:
        return None
    text = bytes(raw)
    if text[0] == _QUOTE and b"\\" not in text:  # the usual case needs no decoder
        return text[1:-1].decode()
    value = typed(found, name, str, "a string")
    if value is not None and "\0" in value:
        raise InvalidField(name, text, "a string without NUL")
    return value


def named_session(found: Members) -> str | None:
    """Return the session that members other than `session_id` name (scheduling §5.3); their shapes are not judged."""
    return (
        _inner(found, "session_params", "session_id")
        or string(found, "prompt_cache_key")
        or _inner(found, "conversation", "")
        or _inner(found, "metadata", "session_id")
        or _inner(found, "metadata", "user_id")
    )


def _inner(found: Members, name: str, member: str) -> str | None:
    """Return a string member of an object, or with no name the member itself; None for anything else."""
    raw = found.get(name)
    if raw is None:
        return None
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if member:
        value = value.get(member) if isinstance(value, dict) else None
    return value if isinstance(value, str) and "\0" not in value else None


def label(text: str | None) -> str | None:
    """Shorten what the ledger keeps with every call: these fields have no bound of their own (§4)."""
    return text if text is None else text[:SESSION_MAX_BYTES]


def typed(found: Members, name: str, kind: type[T], expected: str) -> T | None:
    """Return a member that is there as one type, or None when it is null."""
    try:
        return msgspec.json.decode(found[name], type=kind | None)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidField(name, bytes(found[name]), expected) from None


def repeatable(found: Members) -> bool:
    """Tell whether the same answer should come again: temperature 0, `top_k` 1, or a seed (resilience R4)."""
    seed, top_k = found.get("seed"), found.get("top_k")
    if (seed is not None and bytes(seed) != b"null") or (top_k is not None and bytes(top_k) == b"1"):
        return True
    return "temperature" in found and typed(found, "temperature", float, "a finite number") == 0


def invalid_prompt(field: str, raw: bytes, message: str) -> InvalidPrompt:
    """Turn a decoder's complaint into path, value seen and expectation."""
    where = _PATH.search(message)
    path = field + (where[1] if where else "").replace("[...]", "[…]")
    expected = message.split(" - at ", maxsplit=1)[0].removeprefix("Expected ").split(", got")[0]
    if "missing required field" in message:
        return InvalidPrompt(f"{path}.role", "nothing", "a string")
    seen = message.partition(", got ")[2].split(" - at ")[0] or raw[:64]
    return InvalidPrompt(path, seen, expected.replace("`", ""))
