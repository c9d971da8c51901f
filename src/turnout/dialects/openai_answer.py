"""What an engine's refusal means: status and body to an `ErrorKind` (resilience §2); Retry-After in all its forms."""

from __future__ import annotations

import email.utils
import math
import re
from collections.abc import Callable

import msgspec

from turnout.core.admission.precheck import units
from turnout.core.errors import ErrorKind

_OVERFLOW = (
    b"context_length_exceeded",
    b"context length",
    b"context window",
    b"reduce the length of the messages",
    b"prompt is too long",
)
_FILTERED = (b"content_filter", b"content_policy_violation", b"responsibleaipolicyviolation")
_BY_STATUS = {
    401: ErrorKind.AUTH_ERROR,
    402: ErrorKind.PAYMENT_REQUIRED,
    403: ErrorKind.AUTH_ERROR,
    408: ErrorKind.UPSTREAM_408,
    429: ErrorKind.RATE_LIMIT,
    503: ErrorKind.OVERLOADED,
    529: ErrorKind.OVERLOADED,
}
_BAD_REQUEST, _NOT_FOUND, _TOO_LARGE, _SERVER_ERROR, _OK_MAX = 400, 404, 413, 500, 299
_BODY_SCANNED_MAX_BYTES = 65_536
_CHARS_PER_TOKEN = 4


class _Error(msgspec.Struct, gc=False):
    code: int | str | None = None
    type: str | None = None


class _Envelope(msgspec.Struct, gc=False):
    error: _Error | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message | None = None
    text: str | None = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice] = []


def estimated_tokens(body: bytes) -> int:
    """Return about how many tokens a whole answer without usage has: characters by §7; 0 when it shows no text (U4)."""
    try:
        choices = msgspec.json.decode(body, type=_Answer).choices
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return 0
    texts = [choice.text or (choice.message.content if choice.message is not None else None) for choice in choices]
    return sum(max(1, units(text) // _CHARS_PER_TOKEN) for text in texts if text)


def classify(status: int, body: bytes, model: str) -> ErrorKind:
    """Return why an engine's non-2xx answer (or an error object inside a 200) is a failure.

    Args:
        status: HTTP status; below 300 the error's own code decides.
        body: the answer's body or the error event's data.
        model: the name this engine was asked for.

    """
    if status <= _OK_MAX:
        return _inside_a_success(body, model)
    kind = _BY_STATUS.get(status)
    if kind is not None:
        return kind
    if status >= _SERVER_ERROR:
        return ErrorKind.SERVER_ERROR
    text = body[:_BODY_SCANNED_MAX_BYTES].lower()
    if status in (_BAD_REQUEST, _TOO_LARGE) and any(phrase in text for phrase in _OVERFLOW):
        return ErrorKind.CONTEXT_OVERFLOW
    if status == _BAD_REQUEST and any(phrase in text for phrase in _FILTERED):
        return ErrorKind.CONTENT_FILTER
    if status == _NOT_FOUND and _names(text, model.lower().encode()):
        return ErrorKind.MODEL_UNAVAILABLE
    if status < _BAD_REQUEST:
        return ErrorKind.BAD_RESPONSE  # a redirect is no answer, and none is ever followed
    return ErrorKind.BAD_REQUEST


def _names(text: bytes, model: bytes) -> bool:
    """Tell whether a text holds the model's name as a word of its own: short names are parts of other words."""
    return re.search(rb"(?<![a-z0-9._/-])" + re.escape(model) + rb"(?![a-z0-9_/-]|\.[a-z0-9])", text) is not None


def _inside_a_success(body: bytes, model: str) -> ErrorKind:
    try:
        error = msgspec.json.decode(body, type=_Envelope).error or _Error()
    except (msgspec.DecodeError, RecursionError):
        return ErrorKind.SERVER_ERROR
    code = error.code
    if isinstance(code, str) and code.isdigit():
        code = int(code)
    if isinstance(code, int) and code > _OK_MAX:
        return classify(code, body, model)
    label = f"{error.type} {code}"
    if "overloaded" in label:
        return ErrorKind.OVERLOADED
    if "rate_limit" in label:
        return ErrorKind.RATE_LIMIT
    if "invalid_request" in label:
        return classify(_BAD_REQUEST, body, model)
    return ErrorKind.SERVER_ERROR


def retry_after_s(get: Callable[[bytes], bytes | None], now_utc_s: float) -> float | None:
    """Read `retry-after-ms`, then `retry-after` as seconds or HTTP-date; invalid or negative is absent (Y1)."""
    milliseconds = _number(get(b"retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    raw = get(b"retry-after")
    seconds = _number(raw)
    if seconds is not None or raw is None:
        return seconds
    try:
        then = email.utils.parsedate_to_datetime(raw.decode("latin-1")).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, then - now_utc_s)


def _number(raw: bytes | None) -> float | None:
    if raw is None:
        return None
    try:
        value = float(raw)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
