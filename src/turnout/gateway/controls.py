"""The controls of selection and response cache that a request carries: headers and `turnout` members, checked once.

Only requests that carry any come here. A bad one is refused before the exchange opens, on every path alike; one that
widens what the key may do needs a permission of the key (hardening K05).
"""

from __future__ import annotations

from typing import Any

import msgspec

from turnout.core.selection import controls as knobs
from turnout.core.selection.controls import NONE, InvalidControl, Overrides
from turnout.core.types import Refusal
from turnout.gateway.principals import Principal

BUNDLE_VERSION, CACHE_MATCH, CACHE_THRESHOLD = (
    b"x-turnout-bundle-version",
    b"x-turnout-cache-match",
    b"x-turnout-cache-threshold",
)
HEADERS = frozenset((*knobs.HEADERS, BUNDLE_VERSION, CACHE_MATCH, CACHE_THRESHOLD))
_MATCHES = ("exact", "semantic", "refresh", "off")
_THRESHOLD_RANGE = "a decimal number in [0.5, 1]"
_VERSION_MAX = 64


class Controls(msgspec.Struct, frozen=True, gc=False):
    """What was asked for; empty strings and None mean nothing was."""

    overrides: Overrides = NONE
    bundle_version: str = ""
    cache_match: str = ""
    cache_threshold: float | None = None


NO_CONTROLS = Controls()


class _Body(msgspec.Struct, gc=False):
    turnout: dict[str, Any] | None = None


_BODY = msgspec.json.Decoder(_Body)


def header_refusal(name: bytes, value: bytes) -> Refusal | None:
    """Return the refusal of one header's text by itself."""
    try:
        if name in knobs.HEADERS:
            knobs.from_header(name, value)
        elif name == CACHE_MATCH:
            _match(name.decode(), value.strip(b" \t").decode("latin-1"))
        elif name == CACHE_THRESHOLD:
            _threshold(name.decode(), value)
        else:
            _version(name.decode(), value.strip(b" \t").decode("latin-1"))
    except InvalidControl as error:
        return refusal(error)
    return None


def resolve(headers: tuple[tuple[bytes, bytes], ...], body: bytes | None, principal: Principal) -> Controls | Refusal:
    """Return the controls of a request, or its refusal.

    Args:
        headers: those of `HEADERS` that the request carries.
        body: the body when it has a `turnout` member, else None.
        principal: whose permissions count.

    """
    members: dict[str, Any] = {}
    if body is not None:
        members = _BODY.decode(body).turnout or {}
    unknown = knobs.unknown_members(members)
    if unknown is not None:
        return refusal(unknown)
    try:
        given = _merged(dict(headers), members)
        found = Controls(
            knobs.overrides(headers, members),
            _version("x-turnout-bundle-version", given.get(BUNDLE_VERSION, b"").decode("latin-1").strip(" \t")),
            _match("x-turnout-cache-match", given.get(CACHE_MATCH, b"").decode("latin-1").strip(" \t")),
            _threshold("x-turnout-cache-threshold", given.get(CACHE_THRESHOLD, b"")),
        )
    except InvalidControl as error:
        return refusal(error)
    if found.bundle_version and "bundle_version" not in principal.permissions:
        return not_allowed("x-turnout-bundle-version", "this key has no permission bundle_version")
    return found


def _merged(given: dict[bytes, bytes], members: dict[str, Any]) -> dict[bytes, bytes]:
    """Return headers and members of the controls that are text, as headers; both may be given when they agree."""
    for member in ("bundle_version", "cache_match", "cache_threshold"):
        pair = knobs.header_of(member, members.get(member))
        if pair is None:
            continue
        name, text = pair
        if name in given and given[name].strip(b" \t") != text:
            raise InvalidControl(f"turnout.{member}", members[member], f"the same value as {name.decode()}")
        given[name] = text
    return given


def refusal(error: InvalidControl) -> Refusal:
    """Return the 400 of a bad control."""
    return Refusal(400, "invalid_routing_knobs", f"{error}.", param=error.param)


def not_allowed(param: str, why: str) -> Refusal:
    """Return the 403 of a control that the key does not permit."""
    return Refusal(403, "control_not_allowed", f"{param}: {why}.", param=param, type="permission_error")


def _match(param: str, text: str) -> str:
    if text and text not in _MATCHES:
        raise InvalidControl(param, text, "one of " + ", ".join(_MATCHES))
    return "" if text == "off" else text


def _threshold(param: str, raw: bytes) -> float | None:
    text = raw.strip(b" \t")
    if not text:
        return None
    value = knobs.decimal(text)
    if value is None or not 0.5 <= value <= 1.0:  # noqa: PLR2004 - the range of the page
        raise InvalidControl(param, raw, _THRESHOLD_RANGE)
    return value


def _version(param: str, text: str) -> str:
    if len(text) > _VERSION_MAX or not text.isascii() or not text.isprintable():
        raise InvalidControl(param, text, f"the name of a bundle version, up to {_VERSION_MAX} characters")
    return text
