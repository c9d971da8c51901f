"""The grammar of every selection knob, once for all dialects: header text and typed member to value, or the refusal.

Header text never meets `float()` before its grammar has passed, so no spelling of NaN, infinity, hexadecimal or a
foreign digit can become a number (K01). Members of `turnout` are typed JSON (J7).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping

import msgspec

PREFIX = "x-turnout-routing-"
ALPHA, SPEED, RATIO, TOKENS, VERBOSITY = (
    "alpha",
    "speed_weight",
    "output_cost_ratio",
    "expected_output_tokens",
    "per_model_verbosity",
)
KNOBS = (ALPHA, SPEED, RATIO, TOKENS, VERBOSITY)
HEADERS: Mapping[bytes, str] = {(PREFIX + name.replace("_", "-")).encode(): name for name in KNOBS}
RANGES: Mapping[str, tuple[float, float]] = {ALPHA: (0, 1), SPEED: (0, 1), RATIO: (0, 10), TOKENS: (0, 100_000)}

# Members of `turnout` that are controls of other pages: spelled as the header, checked by the header's own rule.
OTHERS = (
    "bundle_version",
    "cache_match",
    "cache_threshold",
    "session",
    "timeout_ms",
    "priority",
    "fallback",
    "hedge",
    "stream_safety",
)
_NUMBER = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")
_INTEGER = re.compile(rb"[0-9]{1,9}")
_TEXT_MAX_BYTES = 20
_SEEN_MAX = 64
_LITERALS = {b"true": True, b"false": False}


class Overrides(msgspec.Struct, frozen=True, gc=False):
    """The knobs that one request turned itself; None leaves the default. Hashable: equal requests share their work."""

    alpha: float | None = None
    speed_weight: float | None = None
    output_cost_ratio: float | None = None
    expected_output_tokens: int | None = None
    per_model_verbosity: bool | None = None
    params: tuple[tuple[str, str], ...] = ()
    """(knob, header or member that set it), for messages about the effective knobs."""

    def __bool__(self) -> bool:
        """Tell whether anything was turned."""
        return bool(self.params)


NONE = Overrides()


class InvalidControl(ValueError):
    """A control the caller got wrong: 400 `invalid_routing_knobs` with `param` (selection §8)."""

    def __init__(self, param: str, seen: object, expected: str) -> None:
        self.param, self.seen, self.expected = param, shown(seen), expected
        super().__init__(f"{param}: expected {expected}, got {self.seen}")


def shown(value: object) -> str:
    """Return a value as a message may hold it: escaped, at most 64 characters."""
    if isinstance(value, bytes):
        value = value[: _SEEN_MAX + 1].decode("latin-1")
    text = (value if isinstance(value, str) else repr(value))[: _SEEN_MAX + 1]
    return text.encode("unicode_escape").decode()[:_SEEN_MAX]


def expected(knob: str) -> str:
    """Say what a knob accepts."""
    if knob == VERBOSITY:
        return "true or false"
    low, high = RANGES[knob]
    return f"{'an integer' if knob == TOKENS else 'a decimal number'} in [{low:g}, {high:_.0f}]".replace("_", " ")


def from_header(name: bytes, text: bytes) -> float | int | bool | None:
    """Return the value of one knob header; None when it is empty, which means absent.

    Raises:
        InvalidControl: the text is outside the grammar or the range.

    """
    knob = HEADERS[name]
    text = text.strip(b" \t")
    if not text:
        return None
    value: float | int | bool | None = None
    if len(text) <= _TEXT_MAX_BYTES:
        if knob == VERBOSITY:
            value = _LITERALS.get(text)
        elif knob == TOKENS:
            value = int(text) if _INTEGER.fullmatch(text) else None
        else:
            value = decimal(text)
    if value is None or not _in_range(knob, value):
        raise InvalidControl(name.decode(), text, expected(knob))
    return value


def decimal(text: bytes) -> float | None:
    """Return the value of decimal text inside the grammar; None outside it."""
    return float(text) if len(text) <= _TEXT_MAX_BYTES and _NUMBER.fullmatch(text) else None


def from_member(knob: str, value: object, prefix: str = "turnout.") -> float | int | bool | None:
    """Return the value of one typed member; null means absent.

    Raises:
        InvalidControl: another type than the knob's, not finite, or out of range.

    """
    if value is None:
        return None
    if knob == VERBOSITY:
        if isinstance(value, bool):
            return value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        whole = knob == TOKENS
        if _in_range(knob, value) and not (whole and value != int(value)):
            return int(value) if whole else float(value)
    raise InvalidControl(prefix + knob, value, expected(knob))


def overrides(headers: Iterable[tuple[bytes, bytes]], members: Mapping[str, object] | None = None) -> Overrides:
    """Read every knob that a request turned; headers are lower-cased names with their raw values.

    Raises:
        InvalidControl: a bad header or member, a header sent twice, or a header and a member that disagree.

    """
    found: dict[str, tuple[float | int | bool, str]] = {}
    seen: set[bytes] = set()
    for name, text in headers:
        if name not in HEADERS:
            continue
        if name in seen:
            raise InvalidControl(name.decode(), text, "the header once")
        seen.add(name)
        value = from_header(name, text)
        if value is not None:
            found[HEADERS[name]] = (value, name.decode())
    for knob in KNOBS:
        if members is None or knob not in members:
            continue
        value = from_member(knob, members[knob])
        if value is None:
            continue
        other = found.get(knob)
        if other is not None and other[0] != value:
            raise InvalidControl(f"turnout.{knob}", value, f"the same value as {other[1]} ({other[0]})")
        found.setdefault(knob, (value, f"turnout.{knob}"))
    if not found:
        return NONE
    return Overrides(
        **{knob: value for knob, (value, _) in found.items()},  # type: ignore[arg-type]
        params=tuple((knob, param) for knob, (_, param) in sorted(found.items())),
    )


def unknown_members(members: Mapping[str, object]) -> InvalidControl | None:
    """Return the complaint about the first member of `turnout` that is no control."""
    for name in members:
        if name not in KNOBS and name not in OTHERS:
            return InvalidControl(f"turnout.{name}", name, "a known control")
    return None


def header_of(member: str, value: object) -> tuple[bytes, bytes] | None:
    """Return another page's control as the header that means the same; None when the member is null.

    Raises:
        InvalidControl: the JSON type cannot stand for that header.

    """
    if value is None:
        return None
    kind, name = _KINDS[member]
    text = kind(value)
    if text is None:
        raise InvalidControl(f"turnout.{member}", value, name)
    return f"x-turnout-{member.replace('_', '-')}".encode(), text.encode()


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: object) -> str | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return str(int(value)) if value == int(value) else None


def _decimal(value: object) -> str | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return f"{value:.9f}".rstrip("0").rstrip(".")


_KINDS: dict[str, tuple[Callable[[object], str | None], str]] = dict.fromkeys(OTHERS, (_string, "a string"))
_KINDS["timeout_ms"] = (_whole, "an integer")
_KINDS["cache_threshold"] = (_decimal, "a finite number")


def _in_range(knob: str, value: float) -> bool:
    if knob == VERBOSITY:
        return True
    low, high = RANGES[knob]
    return math.isfinite(value) and low <= value <= high
