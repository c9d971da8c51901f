"""What may stand in a log line: never a key, never a prompt, no control characters, at most 512 bytes per field.

Pure functions over the fields of one record (hardening L01, L03; T107). Names are compared without case, `-` as `_`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

FIELD_MAX_BYTES = 512
FIELDS_MAX = 32
DEPTH_MAX = 3
ITEMS_MAX = 16
NUMBER_MAX = 2**63
LATIN_MAX = 0xFF

SECRET_NAMES: frozenset[str] = frozenset(
    {
        "key", "api_key", "apikey", "x_api_key", "x_goog_api_key", "authorization", "proxy_authorization", "cookie",
        "set_cookie", "token", "secret", "password", "credential", "prompt", "messages", "message", "content", "input",
        "instructions", "system", "body", "text", "tools", "arguments", "completion", "headers",
    }
)  # fmt: skip
"""Fields dropped with their value, at any depth: credentials, and everything that carries what a client wrote."""

# Value patterns, for secrets inside other text. Each is linear: one class, no nested quantifier, input ≤ 2 KiB.
_SECRETS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s,;\"']+"), r"\1 ***"),
    (re.compile(r"\b(sk|tk|pk|rk|xai|gsk|turnout|tn)[-_][A-Za-z0-9_\-]{8,}"), r"\1-***"),
    (re.compile(r"(?i)\b(api_key|apikey|api-key|key|access_token)=[^&\s\"']+"), r"\1=***"),
    (re.compile(r"://[^/\s@]+@"), "://***@"),
)
# C0, DEL, C1, line and paragraph separators, bidirectional marks, zero-width characters and lone surrogates: they forge
# lines, hide or reorder text, or cannot be encoded.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def redacted(fields: Mapping[str, object]) -> dict[str, object]:
    """The fields that may be written, made safe; how many were left out stands in `omitted_fields`."""
    kept: dict[str, object] = {}
    omitted = 0
    for name, value in fields.items():
        if is_secret(name) or len(kept) >= FIELDS_MAX:
            omitted += 1
        else:
            kept[safe_text(name)] = _safe(value, 1)
    if omitted:
        kept["omitted_fields"] = omitted
    return kept


def is_secret(name: str) -> bool:
    """Whether a field of this name is never written."""
    return name.lower().replace("-", "_") in SECRET_NAMES


def safe_text(text: str) -> str:
    """The text without secrets and control characters, cut to `FIELD_MAX_BYTES` of UTF-8 with a mark."""
    text = text[: 4 * FIELD_MAX_BYTES]
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    text = _UNPRINTABLE.sub(_escape, text)
    data = text.encode()
    if len(data) <= FIELD_MAX_BYTES:
        return text
    return data[: FIELD_MAX_BYTES - 3].decode(errors="ignore") + "…"


def described(error: BaseException) -> dict[str, object]:
    """Type and place of an exception: its message may quote a prompt or a key, its frames cannot."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}:{code.co_name}")
        trace = trace.tb_next
    return {"error": type(error).__name__, "where": " < ".join(reversed(frames[-8:]))}


def _safe(value: object, depth: int) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        # JSON has no NaN, and a huge integer is no measurement.
        return value if -NUMBER_MAX <= value <= NUMBER_MAX else f"<{type(value).__name__} out of range>"
    if isinstance(value, str):
        return safe_text(value)
    if isinstance(value, BaseException):
        return type(value).__name__
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    if depth < DEPTH_MAX and isinstance(value, Mapping):
        inner = {str(name): item for name, item in list(value.items())[:ITEMS_MAX]}
        return {safe_text(name): _safe(item, depth + 1) for name, item in inner.items() if not is_secret(name)}
    if depth < DEPTH_MAX and isinstance(value, (list, tuple, set, frozenset)):
        return [_safe(item, depth + 1) for item in list(value)[:ITEMS_MAX]]
    # The repr of an unknown object may hold a request: its type is all that is safe to show.
    return f"<{type(value).__name__}>"


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code <= LATIN_MAX else f"\\u{code:04x}"
