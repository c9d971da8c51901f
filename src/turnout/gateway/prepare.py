"""The gateway's reading of a request head: credentials, controls, and the header block that travels on.

Everything here depends on the head's bytes alone, so it is computed once per distinct head and kept with it
(request-path §9, the table of request headers; §4 H20).
"""

from __future__ import annotations

import re
from typing import Final

from turnout.core.admission.queue import CLASSES, NORMAL
from turnout.core.scheduling.policies import POLICIES
from turnout.core.types import Refusal
from turnout.dialects.envelope import dialect_of
from turnout.gateway import controls
from turnout.gateway.holding import MODES
from turnout.gateway.principals import Principal, Principals, carriers
from turnout.http.head import Head

_HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"host",
        b"content-length",
        b"expect",
        b"accept-encoding",
        b"http2-settings",
    )
)
_CREDENTIALS: Final = frozenset((b"authorization", b"x-api-key", b"x-goog-api-key", b"cookie"))
_STEERING: Final = frozenset(
    (
        b"x-prefiller-host-port",
        b"x-encoder-hosts-ports",
        b"x-kv-cache-source-host-port",
        b"x-data-parallel-rank",
        b"x-smg-target-worker",
        b"routing-strategy",
        b"external-filter",
        b"epp-profile",
    )
)
_PROXY = (b"forwarded", b"x-forwarded-", b"x-real-ip", b"x-gateway-destination-endpoint")
_OURS: Final = frozenset(
    b"x-turnout-" + name
    for name in (
        b"decision",
        b"model",
        b"reason",
        b"reason-detail",
        b"bundle",
        b"knobs",
        b"pin",
        b"cache-age-s",
        b"cache-similarity",
        b"endpoint",
        b"attempts",
        b"fallback-from",
        b"cache",
        b"overhead-ms",
        b"ttft-ms",
        b"advice",
        b"tenant",
        b"key",
    )
)
# scheduling §5.3: the order in which a session is looked for, before the body's fields and after them.
_SESSION_FIRST: Final = b"x-turnout-session"
_SESSION_LATER = (
    b"x-session-id",
    b"x-dynamo-session-id",
    b"x-smg-routing-key",
    b"x-claude-code-session-id",
    b"session-id",
    b"thread-id",
)
_SESSION_LAST: Final = b"x-user-id"
_CONSUMED: Final = frozenset(
    (*_SESSION_LATER, _SESSION_LAST, b"x-claude-code-agent-id", b"x-claude-code-parent-agent-id")
)
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_TIMEOUT_MS: Final = re.compile(rb"[0-9]{1,9}")
_TIMEOUT_MAX_MS: Final = 600_000
_SESSION_MAX_BYTES: Final = 512
_POLICY: Final = b"x-turnout-policy"
_DIALECT: Final = b"x-turnout-dialect"
_TOTALS: Final = b"x-turnout-session-totals"
_ROUTE: Final = b"/v1/route"
# A control is accepted only with a value that is honoured (J10): the others are refused by name and value.
_CHOICES: Final = {
    b"x-turnout-stream-safety": tuple(mode.encode() for mode in MODES),
    b"x-turnout-priority": (b"high", b"normal", b"low"),
    b"x-turnout-fallback": (b"on", b"off"),
    b"x-turnout-hedge": (b"on", b"off"),
    _TOTALS: (b"on", b"off"),
    _POLICY: tuple(name.encode() for name in POLICIES),
}


class Prepared:
    """What a head means to the gateway. `identity` remembers the answer of one key snapshot."""

    __slots__ = (
        "agent",
        "cache_control",
        "carriers",
        "client_id",
        "controls",
        "dialect",
        "fallback",
        "forward",
        "hedge",
        "identity",
        "policy",
        "priority",
        "refusal",
        "safety",
        "session",
        "session_fallback",
        "session_headers",
        "snapshot",
        "timeout_s",
        "totals",
        "user",
        "user_agent",
    )

    def __init__(self, head: Head) -> None:
        headers = head.headers
        self.carriers = carriers(headers)
        self.refusal = _refusal(headers, head.path)
        self.client_id = client_id(headers)
        self.session = _text(headers.get(_SESSION_FIRST))
        later = next((headers[name] for name in _SESSION_LATER if headers.get(name)), None)
        self.session_fallback = _text(later)
        named = (_SESSION_FIRST, *_SESSION_LATER, _SESSION_LAST)
        self.session_headers = {name.decode(): headers[name].decode("latin-1") for name in named if headers.get(name)}
        self.agent = _text(headers.get(b"x-claude-code-agent-id")) or ""
        self.controls = tuple([(name, value) for name, value in headers.items() if name in controls.HEADERS])
        self.fallback = headers.get(b"x-turnout-fallback") != b"off"
        self.cache_control = _text(headers.get(b"cache-control")) or ""
        timeout = headers.get(b"x-turnout-timeout-ms")
        self.timeout_s = int(timeout) / 1000 if timeout is not None and self.refusal is None else None
        self.policy = _text(headers.get(_POLICY)) or ""
        self.priority = CLASSES.get(headers.get(b"x-turnout-priority", b"normal").decode("latin-1"), NORMAL)
        self.safety = headers.get(b"x-turnout-stream-safety", b"").decode("latin-1")
        self.dialect = headers.get(_DIALECT, b"")
        self.hedge = headers.get(b"x-turnout-hedge")
        self.totals = headers.get(_TOTALS) == b"on"
        self.user = _text(headers.get(_SESSION_LAST)) or ""
        self.user_agent = headers.get(b"user-agent", b"")
        self.forward = b"".join(
            b"%b: %b\r\n" % (name, value) for name, value in headers.items() if _travels(name, headers)
        )
        self.snapshot: Principals | None = None
        self.identity: Principal | Refusal | None = None


def client_id(headers: dict[bytes, bytes]) -> bytes:
    """Return the id that the client gave its request; empty when it gave none that may be shown again."""
    raw_id = headers.get(b"x-request-id", b"")
    return raw_id if _REQUEST_ID.fullmatch(raw_id) else b""


def _travels(name: bytes, headers: dict[bytes, bytes]) -> bool:
    if name in _HOP_BY_HOP or name in _CREDENTIALS or name in _STEERING or name in _CONSUMED or name == b"x-request-id":
        return False
    if name.startswith((b"x-turnout-", b"proxy-", *_PROXY)):
        return False
    named = headers.get(b"connection", b"").lower()
    return not named or name not in {option.strip() for option in named.split(b",")}


def _refusal(headers: dict[bytes, bytes], path: bytes) -> Refusal | None:
    for name, value in headers.items():
        if name.startswith(b"x-turnout-"):
            refusal = _control(name, value, path)
            if refusal is not None:
                return refusal
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        return _unsupported("Content-Encoding", encoding, "identity")
    kind = headers.get(b"content-type")
    if kind is not None and not _is_json(kind):
        return _unsupported("Content-Type", kind, "application/json in UTF-8")
    return None


def _control(name: bytes, value: bytes, path: bytes) -> Refusal | None:
    if name in _OURS:
        return None
    if name in controls.HEADERS:
        return controls.header_refusal(name, value)
    if name == b"x-turnout-timeout-ms":
        good = _TIMEOUT_MS.fullmatch(value) is not None and 1 <= int(value) <= _TIMEOUT_MAX_MS
        expected = f"an integer 1…{_TIMEOUT_MAX_MS}"
    elif name == _SESSION_FIRST:
        good, expected = (
            0 < len(value) <= _SESSION_MAX_BYTES and value.isascii(),
            f"1 to {_SESSION_MAX_BYTES} ASCII bytes",
        )
    elif name in _CHOICES or name == _DIALECT:
        choices = _CHOICES[name] if name != _DIALECT else _dialects(path)
        good, expected = value in choices, "one of " + ", ".join(choice.decode() for choice in choices)
    else:
        good, expected = False, "a known control; a mistyped one must not act as its default"
    if good:
        return None
    seen = value.decode("latin-1").encode("unicode_escape").decode()[:64]
    return Refusal(400, "invalid_request", f"{name.decode()}: expected {expected}, got {seen}.", param=name.decode())


def _dialects(path: bytes) -> tuple[bytes, ...]:
    """The dialects that a body may have: of a decision-only path either, elsewhere the path's own."""
    return (b"openai", b"anthropic") if path.startswith(_ROUTE) else (dialect_of(path).encode(),)


def _is_json(kind: bytes) -> bool:
    media, _, parameters = kind.lower().partition(b";")
    media = media.strip()
    if media != b"application/json" and not (media.startswith(b"application/") and media.endswith(b"+json")):
        return False
    for parameter in parameters.split(b";"):
        name, _, value = parameter.partition(b"=")
        if name.strip() == b"charset" and value.strip().strip(b'"') not in (b"utf-8", b"utf8"):
            return False
    return True


def _unsupported(name: str, seen: bytes, expected: str) -> Refusal:
    shown = seen.decode("latin-1").encode("unicode_escape").decode()[:64]
    return Refusal(415, "unsupported_media_type", f"{name}: expected {expected}, got {shown}.", param=name.lower())


def _text(value: bytes | None) -> str | None:
    return value.decode("latin-1")[:_SESSION_MAX_BYTES] if value else None
