"""The members of `turnout` that stand for request headers of other pages: they mean what the header means.

Each is put in its header's place and read by the header's own rule, so a member can neither do more than the header nor
be taken and ignored (J10).
"""

from __future__ import annotations

from typing import Any

import msgspec

from turnout.core.request import Request
from turnout.core.selection.controls import InvalidControl, header_of
from turnout.core.types import Refusal
from turnout.gateway.prepare import Prepared
from turnout.http.head import Head

_NAMES = ("session", "timeout_ms", "priority", "fallback", "hedge", "stream_safety")


class _Body(msgspec.Struct, gc=False):
    turnout: dict[str, Any] | None = None


_BODY = msgspec.json.Decoder(_Body)


def with_members(head: Head, request: Request) -> Prepared | Refusal:
    """Return what head and members mean together; the head's own reading when no such member is there."""
    prepared: Prepared = head.prepared
    if not request.has_controls:
        return prepared
    members = _BODY.decode(request.body).turnout or {}
    headers = dict(head.headers)
    params: dict[str, str] = {}
    try:
        for member in _NAMES:
            pair = header_of(member, members.get(member))
            if pair is None:
                continue
            name, text = pair
            if headers.get(name, text).strip(b" \t") != text:
                raise InvalidControl(f"turnout.{member}", members[member], f"the same value as {name.decode()}")  # noqa: TRY301 - one mapping
            headers[name] = text
            params[name.decode()] = f"turnout.{member}"
    except InvalidControl as error:
        return Refusal(400, "invalid_request", f"{error}.", param=error.param)
    if not params:
        return prepared
    found = Prepared(Head(head.method, head.path, head.version_minor, headers))
    wrong = found.refusal
    if wrong is not None and wrong.param in params:
        param = params[wrong.param]
        return msgspec.structs.replace(wrong, param=param, message=wrong.message.replace(wrong.param, param, 1))
    return wrong or found
