"""The members of a body that may name a session; apart from `sessions`, which is compiled and must not hold shapes."""

from __future__ import annotations

from typing import Any

import msgspec


def session_members(body: bytes) -> dict[str, Any]:
    """Return the members that may name a session, decoded; none when they are not what they should be."""
    try:
        return msgspec.structs.asdict(msgspec.json.decode(body, type=_Named))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {}


class _Named(msgspec.Struct):
    session_id: Any = None
    session_params: Any = None
    prompt_cache_key: Any = None
    conversation: Any = None
    metadata: Any = None
    user: Any = None
