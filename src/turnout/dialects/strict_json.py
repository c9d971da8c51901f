"""One JSON object, read so strictly that what is checked here is what any engine will parse (request-path §4, J1–J5).

`members` splits the object into raw spans; nothing is decoded that nobody reads. The cheap test comes first in every
rule and the exact scan runs only when the cheap test cannot rule the violation out.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_ESCAPE: Final = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_SURROGATE_HINT: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_BRACKET: Final = bytes(c for c in range(256) if c not in b"[]{}")
_ONE_KIND: Final = bytes.maketrans(b"{}", b"[]")
_MEMBER_KEY: Final = re.compile(rb'[ \t\r\n]*("(?:[^"\\]|\\.)*")[ \t\r\n]*:[ \t\r\n]*', re.DOTALL)
_MEMBER_END: Final = re.compile(rb"[ \t\r\n]*([,}])")
_SCALAR: Final = re.compile(rb"[^\s,\]}]+")
_BLANKS: Final = b" \t\r\n"

_BACKSLASH: Final = ord("\\")
_OPENING = (ord("{"), ord("["))
_SMALL_BYTES: Final = 2048
_QUOTE: Final = ord('"')
_HIGH: Final = 55296
_LOW: Final = 56320
_END: Final = 57344


class InvalidJSON(ValueError):
    """The body is not one JSON object that every decoder reads alike. The message never holds content."""


class DuplicateMember(ValueError):
    """The same key twice: decoders take the last copy, so what is authorised might not be what runs (J3)."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def members(body: bytes, depth_max: int) -> dict[str, msgspec.Raw]:
    """Split a JSON object into its members' raw spans.

    Args:
        body: the whole request body.
        depth_max: most arrays and objects open at once; the outer object is 1.

    Raises:
        InvalidJSON: not exactly one valid JSON object in UTF-8 within the depth.
        DuplicateMember: a key stands twice at the top level, compared after unescaping.

    """
    _check_text(body, depth_max)
    try:
        found = _OBJECT.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidJSON(_reason(body, error)) from None
    _check_surrogates(body)
    if not _quotes_add_up(body, found):
        refuse_duplicates(body)
    return found


def around_array(body: bytes, quoted_name: bytes, depth_max: int) -> tuple[bytes, memoryview] | None:
    """Cut the array of one member out of an object: the object with 0 in its place, and the array's span.

    The long part of a request is one array, so the rest can be checked at the price of its few bytes. If both parts
    decode, and the first has this member, as 0, and none twice, then the body is what they say: whatever else stood
    in the span would not decode as one array. None when the array cannot be told so simply; then `members` must look.

    Raises:
        InvalidJSON: not UTF-8, nested too deep, or a lone surrogate.

    """
    key = body.find(quoted_name)
    start = body.find(b"[", key)
    end = body.rfind(b"]")
    if key < 0 or not 0 <= start < end or body[key + len(quoted_name) : start].strip(_BLANKS) != b":":
        return None
    _check_text(body, depth_max)
    _check_surrogates(body)
    return body[:start] + b"0" + body[end + 1 :], memoryview(body)[start : end + 1]


def small_members(outer: bytes) -> dict[str, msgspec.Raw] | None:
    """Split an object whose text was checked; None when it is malformed or might hold a key twice."""
    try:
        found = _OBJECT.decode(outer)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    # Every member has a colon: as many colons as different keys leave none for a second copy of one.
    return found if outer.count(b":") == len(found) or _quotes_add_up(outer, found) else None


def refuse_duplicates(span: bytes) -> None:
    """Raise DuplicateMember when a key of this JSON object stands twice at its top level."""
    seen = set()
    for key, _, _ in spans(span):
        if key in seen:
            raise DuplicateMember(key)
        seen.add(key)


def spans(body: bytes) -> list[tuple[str, int, int]]:
    """Return (key, start, end) of every member value of a valid JSON object, in the order of the text."""
    found = []
    at = body.index(b"{") + 1
    while (key := _MEMBER_KEY.match(body, at)) is not None:
        start = key.end()
        end = _value_end(body, start)
        found.append((msgspec.json.decode(key[1], type=str), start, end))
        closing = _MEMBER_END.match(body, end)
        if closing is None or closing[1] == b"}":
            break
        at = closing.end()
    return found


def _check_text(body: bytes, depth_max: int) -> None:
    if not _few_brackets(body, depth_max) and _depth_exceeds(body, depth_max):
        raise InvalidJSON(f"nested deeper than {depth_max} levels")
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise InvalidJSON(f"not UTF-8 at byte {error.start}") from None


def _check_surrogates(body: bytes) -> None:
    if body.find(_BACKSLASH) >= 0 and _SURROGATE_HINT.search(body):
        _refuse_lone_surrogates(body)


def _few_brackets(body: bytes, most: int) -> bool:
    """Tell whether so few brackets stand in the body that it cannot be nested deeper.

    A search for one byte runs at the speed of memory; `count` looks at every byte and is 30 times slower.
    """
    if len(body) < _SMALL_BYTES:
        return body.count(b"{") + body.count(b"[") <= most
    seen = 0
    for bracket in _OPENING:
        at = body.find(bracket)
        while at >= 0:
            seen += 1
            if seen > most:
                return False
            at = body.find(bracket, at + 1)
    return True


def _quotes_add_up(body: bytes, found: dict[str, msgspec.Raw]) -> bool:
    """Tell whether every quote of the body belongs to a member that was found.

    A repeated key would leave at least two more. The largest value is not counted twice: it is cut out of both sides.
    """
    quotes = 2 * len(found)
    skipped = b""
    for raw in found.values():
        value = bytes(raw)
        if len(value) > _SMALL_BYTES and not skipped:
            skipped = value
        else:
            quotes += value.count(b'"')
    if not skipped:
        return quotes == body.count(b'"')
    for name, raw in found.items():
        if len(bytes(raw)) == len(skipped):
            start = body.find(b'"' + name.encode() + b'"')
            key = _MEMBER_KEY.match(body, start) if start >= 0 else None
            if key is not None and body.startswith(skipped, key.end()):
                return quotes == body.count(b'"', 0, key.end()) + body.count(b'"', key.end() + len(skipped))
            break
    return quotes + skipped.count(b'"') == body.count(b'"')


def _value_end(body: bytes, start: int) -> int:
    first = body[start : start + 1]
    if first == b'"':
        return _end_of(_STRING, body, start)
    if first not in (b"{", b"["):
        return _end_of(_SCALAR, body, start)
    depth, at = 0, start
    while True:
        byte = body[at]
        if byte == _QUOTE:  # a string may hold brackets: step over it whole
            at = _end_of(_STRING, body, at)
            continue
        if byte in b"{[":
            depth += 1
        elif byte in b"}]":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1


def _end_of(pattern: re.Pattern[bytes], body: bytes, start: int) -> int:
    match = pattern.match(body, start)
    if match is None:  # the object was decoded before: only a bug gets here
        raise InvalidJSON(f"unreadable value at byte {start}")
    return match.end()


def _depth_exceeds(body: bytes, depth_max: int) -> bool:
    """Peel the innermost brackets off, one level a pass: as many passes as levels, each at the speed of C."""
    # Escapes hide no bracket, only quotes; without them every second piece between quotes is text.
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"") if body.find(_BACKSLASH) >= 0 else body
    brackets = b"".join(bare.split(b'"')[::2]).translate(_ONE_KIND, _NOT_BRACKET)
    for _ in range(depth_max):
        peeled = brackets.replace(b"[]", b"")
        if not peeled:
            return False
        if len(peeled) == len(brackets):
            return peeled.count(b"[") > depth_max  # unbalanced: malformed either way
        brackets = peeled
    return True


def _refuse_lone_surrogates(body: bytes) -> None:
    high_ends_at = -1
    for escape in _ESCAPE.finditer(body):
        code = int(escape[1], 16) if escape[1] else 0
        if _LOW <= code < _END and escape.start() == high_ends_at:
            high_ends_at = -1
            continue
        if high_ends_at >= 0 or _LOW <= code < _END:
            break
        high_ends_at = escape.end() if _HIGH <= code < _LOW else -1
    else:
        if high_ends_at < 0:
            return
    raise InvalidJSON("a lone surrogate escape")


def _reason(body: bytes, error: Exception) -> str:
    if isinstance(error, msgspec.ValidationError) or (not isinstance(error, msgspec.DecodeError)):
        return "not a JSON object" if not isinstance(error, RecursionError) else "nested too deep"
    if not body.strip():
        return "the body is empty"
    return str(error).removeprefix("JSON is malformed: ")
