"""Which session a request belongs to: the first name of scheduling §5.3 that says anything, or of an own order.

Names are headers of ours and of other routers, and top-level members of the body; a text is never searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from turnout.core.request import Request
from turnout.gateway.prepare import Prepared
from turnout.gateway.session_members import session_members


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
            members = session_members(request.body)
        value: Any = members
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, str) and value:
            return value
    return None
