"""Which session a request belongs to: the first name of scheduling §5.3 that says anything, or of an own order.

Names are headers of ours and of other routers, and top-level members of the body; a text is never searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from turnout.core.request import Request
from turnout.gateway.prepare import Prepared


def session_of(prepared: Prepared, request: Request, order: Sequence[str] | None) -> str | None:
    """Return the session; `order` is `scheduling.session_keys`, None for the usual one."""
    if order is None:
        return prepared.session or request.session or prepared.session_fallback or request.user or prepared.user or None
    members: dict[str, Any] | None = None
    for name in order:
        if name in prepared.session_headers:
            return prepared.session_headers[name]
        if "-" in name:
            continue  # a header that the request does not have
        if members is None:
            members = _members(request.body)
        value: Any = members
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, str) and value:
            return value
    return None


def _members(body: bytes) -> dict[str, Any]:
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
