"""The one text form of a route key: `provider|model|replica`, total, injective and reversible (ledger §1).

None and "" are the same missing part. Nothing is trimmed and no case is folded.
"""

from __future__ import annotations

import re

from turnout.core.facts import RouteKey

_UNSAFE = re.compile(r"[%|\x00-\x1f\x7f]")
_ESCAPE = re.compile(r"%([0-9A-F]{2})")
_PARTS = 3


def encode(provider: str | None, model: str | None, replica: str | None) -> str:
    """Join three parts; `%`, `|` and control characters become `%XX`."""
    return "|".join(_UNSAFE.sub(_escape, part or "") for part in (provider, model, replica))


def encode_key(key: RouteKey) -> str:
    """Encode a route key value."""
    return encode(key.provider, key.model, key.replica)


def decode(text: str) -> RouteKey:
    """Give back the key whose encoding is `text`.

    Raises:
        ValueError: `text` is not what `encode` would have written.
    """
    parts = text.split("|")
    if len(parts) != _PARTS:
        msg = f"route key {text!r}: {len(parts)} parts, expected provider|model|replica"
        raise ValueError(msg)
    key = RouteKey(*(_ESCAPE.sub(_unescape, part) for part in parts))
    if encode_key(key) != text:
        msg = f"route key {text!r}: expected the encoding {encode_key(key)!r}"
        raise ValueError(msg)
    return key


def _escape(match: re.Match[str]) -> str:
    return f"%{ord(match.group()):02X}"


def _unescape(match: re.Match[str]) -> str:
    return chr(int(match.group(1), 16))
