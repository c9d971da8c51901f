"""May this request look up and store answers: consent of deployment, key and request, then what speaks against it.

Consent can only narrow: a request may ask for less than its key allows and tighten the threshold, never the reverse.
"""

from __future__ import annotations

import enum

import msgspec

from turnout.core.response_cache.key import Shape

MESSAGES_MAX = 4


class Mode(enum.IntEnum):
    """How much a key permits or a request asks for, each including the ones before."""

    OFF = 0
    EXACT = 1
    SEMANTIC = 2


MODES = {"off": Mode.OFF, "exact": Mode.EXACT, "semantic": Mode.SEMANTIC}
REFRESH = "refresh"


class Bypass(enum.StrEnum):
    """Why the cache stays out of it: the metric's label."""

    __hash__ = str.__hash__

    NO_CONSENT = "no_consent"
    ANONYMOUS = "anonymous"
    NO_STORE = "no_store"
    STREAM = "stream"
    CHOICES = "choices"
    PATH = "path"
    SERVER_STATE = "server_state"
    TRANSIENT_DECISION = "transient_decision"
    SESSION_PIN = "session_pin"
    MEDIA = "media"
    TOOLS = "tools"
    LONG_CONVERSATION = "long_conversation"
    LAST_NOT_USER = "last_not_user"
    NO_EMBEDDING = "no_embedding"
    UNREADABLE = "unreadable"


class NotAllowed(PermissionError):
    """A control that this key does not permit: 403 `control_not_allowed` naming the header."""

    def __init__(self, param: str, message: str) -> None:
        self.param = param
        super().__init__(message)


class Consent(msgspec.Struct, frozen=True, gc=False):
    """What is left after everybody had a say. `looks` False: store only; `stores` False: neither."""

    mode: Mode
    looks: bool = True
    stores: bool = True
    threshold: float | None = None
    """The request's own, tighter one."""


def consent(
    permission: str, asked: str, threshold: float | None, configured: float, cache_control: str = ""
) -> Consent:
    """Combine key, header and `cache-control`.

    Args:
        permission: of the key: off, exact or semantic.
        asked: `x-turnout-cache-match`: exact, semantic, refresh or off; "" is off.
        threshold: `x-turnout-cache-threshold`.
        configured: the least threshold in force.
        cache_control: the request header.

    Raises:
        NotAllowed: more than the key allows, or a looser threshold.

    """
    most = MODES.get(permission, Mode.OFF)
    wanted = most if asked == REFRESH else MODES.get(asked, Mode.OFF)
    if wanted > most or (asked == REFRESH and most is Mode.OFF):
        raise NotAllowed(
            "x-turnout-cache-match", f"this key allows {permission or 'off'}, the request asks for {asked}"
        )
    if threshold is not None and threshold < configured:
        raise NotAllowed(
            "x-turnout-cache-threshold", f"at least {configured:g} is in force, the request asks for {threshold:g}"
        )
    directives = {part.strip().lower() for part in cache_control.split(",")}
    if "no-store" in directives:
        return Consent(wanted, looks=False, stores=False)
    return Consent(wanted, looks=asked != REFRESH and "no-cache" not in directives, threshold=threshold)


class Asked(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What the gateway knows about the request beside its body."""

    tenant_known: bool
    path_allowed: bool
    stream: bool = False
    streams_served: bool = False
    choices: int = 1
    reason: str = "named"


def bypass(mode: Mode, asked: Asked, shape: Shape | None) -> Bypass | None:
    """Return the first reason that rules out any look-up; None when at least an exact one is fine."""
    if mode is Mode.OFF:
        return Bypass.NO_CONSENT
    if not asked.tenant_known:
        return Bypass.ANONYMOUS
    if not asked.path_allowed:
        return Bypass.PATH
    if asked.stream and not asked.streams_served:
        return Bypass.STREAM
    if asked.choices > 1:
        return Bypass.CHOICES
    if shape is None:
        return Bypass.UNREADABLE
    if shape.names_state:
        return Bypass.SERVER_STATE
    if asked.reason == "fallback_default":
        return Bypass.TRANSIENT_DECISION
    return None


def semantic_bypass(asked: Asked, shape: Shape) -> Bypass | None:
    """Return the first reason that rules out a semantic look-up beside the exact one."""
    if asked.reason == "session_pin":
        return Bypass.SESSION_PIN
    if shape.has_media:
        return Bypass.MEDIA
    if shape.has_tools:
        return Bypass.TOOLS
    if shape.messages > MESSAGES_MAX:
        return Bypass.LONG_CONVERSATION
    if not shape.last_is_user:
        return Bypass.LAST_NOT_USER
    return None if shape.text else Bypass.NO_EMBEDDING


class Ended(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """How the source exchange ended."""

    completed: bool
    status: int
    whole: bool
    """Terminator seen and framing correct."""
    rescued: bool = False
    usage_reported: bool = False
    finish_reasons: tuple[str, ...] = ()
    tool_calls: bool = False
    in_band_error: bool = False


_OK = 200
_WITHHELD = frozenset(("content_filter", "refusal"))
"""What the dialects say when an answer, or the rest of it, was held back."""


def may_store(ended: Ended, *, store_tool_calls: bool) -> bool:
    """Tell whether an answer may enter: complete, clean, counted, and nothing in it that acts."""
    return (
        ended.completed
        and ended.status == _OK
        and ended.whole
        and not ended.rescued
        and not ended.in_band_error
        and ended.usage_reported
        and _WITHHELD.isdisjoint(ended.finish_reasons)
        and (store_tool_calls or not ended.tool_calls)
    )
