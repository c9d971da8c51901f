"""The tag bytes of the rendered conversation (scheduling §1.1, version 1); the dialects write the records.

Bytes 0xF8–0xFF cannot occur in UTF-8, so no text can imitate structure. Every dialect uses the same records, so one
conversation has the same keys through any door.
"""

from __future__ import annotations

from typing import Final

TOOLS: Final = b"\xfb"
ROLE: Final = b"\xff"
NAME: Final = b"\xf9"
TEXT: Final = b"\xfe"
CALL: Final = b"\xfd"
PROMPT: Final = b"\xf8"

# The same speaker under the names that different dialects and older APIs use.
_SAME_ROLE: Final = {"developer": "system", "model": "assistant", "function": "tool"}
_KNOWN: Final = {role: role.encode() for role in ("system", "user", "assistant", "tool")}
_KNOWN.update({alias: role.encode() for alias, role in _SAME_ROLE.items()})


def render_role(role: str) -> bytes:
    """The payload of a ROLE record, without its tag: the canonical role in UTF-8; unknown roles stay as received."""
    known = _KNOWN.get(role)
    # A lone surrogate can come out of a JSON escape; it must give a stable key, not an exception.
    return known if known is not None else role.encode("utf-8", "replace")
