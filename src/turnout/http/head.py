"""Request heads, parsed strictly: what this file accepts has exactly one reading (request-path §2 L1, §3 H1–H21).

The parser is ours because the usual one is no gate: it accepts, or waits for ever on, 20 of 122 hostile requests
(docs/adr/0002). Equal heads repeat on kept-alive connections, so parsed heads are remembered, bounded in number and
size; a head never depends on anything but its own bytes.
"""

from __future__ import annotations

import re
from typing import Any, Final

from turnout.core.options import Server
from turnout.core.selection.controls import HEADERS, InvalidControl
from turnout.core.types import Refusal

_METHODS: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT"))
_BEGINNINGS = (
    *_METHODS,
    b"PRI",
    b"\r",
)  # what a first line may yet become: a request, a preface, a skipped line end
_HEADER: Final = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*"
    rb"((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*"
)
_TARGET: Final = re.compile(rb"/[\x21-\x7e]*")
_FORBIDDEN_IN_TARGET: Final = re.compile(rb"[#\\]|%00|%2[Ff]|%5[Cc]")
_LENGTH: Final = re.compile(rb"[0-9]{1,19}")
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~\-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_VERSION: Final = re.compile(rb"HTTP/([1-9])\.([0-9])")  # HTTP/0.9 has no such token: malformed, not another version
_BARE_LINE_END: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)(?!\Z)")
_SINGLE: Final = frozenset((b"authorization", b"content-type", b"host", b"content-length", b"transfer-encoding"))
_RELIED_ON: Final = frozenset(
    (
        b"host",
        b"content-length",
        b"content-type",
        b"transfer-encoding",
        b"expect",
        b"authorization",
        b"x-api-key",
        b"x-goog-api-key",
        b"proxy-authorization",
        b"cookie",
    )
)
_SEEN_MAX: Final = 29  # of each of two values, so that both fit into the 64 characters a message may show
_MEMO_MAX: Final = 1024
_MEMO_HEAD_MAX_BYTES: Final = 2048


class Head:
    """One parsed request head. `framing` of the body is final: `content_length` or `chunked`, never both.

    `prepared` is the gateway's own reading of the head (credentials, controls, headers to forward), kept with it
    because it depends on the same bytes only.
    """

    __slots__ = (
        "chunked",
        "content_length",
        "expect_continue",
        "headers",
        "keep_alive",
        "method",
        "path",
        "prepared",
        "query",
        "version_minor",
    )

    def __init__(self, method: bytes, target: bytes, version_minor: int, headers: dict[bytes, bytes]) -> None:
        self.method = method
        self.path, _, self.query = target.partition(b"?")
        self.version_minor = version_minor
        self.headers = headers
        self.content_length = 0
        self.chunked = False
        self.keep_alive = version_minor == 1
        self.expect_continue = False
        self.prepared: Any = None


class HeadParser:
    """Parses heads under the limits of one listener."""

    def __init__(self, limits: Server) -> None:
        self._limits = limits
        self._memo: dict[bytes, Head] = {}

    def parse(self, raw: bytes) -> Head | Refusal:
        """Parse a head; `raw` ends before the empty line's CRLF CRLF."""
        head = self._memo.get(raw)
        if head is not None:
            return head
        parsed = self._parse(raw)
        if len(raw) <= _MEMO_HEAD_MAX_BYTES and type(parsed) is Head:
            if len(self._memo) >= _MEMO_MAX:
                self._memo.clear()
            self._memo[raw] = parsed
        return parsed

    def incomplete(self, buffered: bytes) -> Refusal | None:
        """Refuse early what can never become a valid head, so that no client waits for a timeout to learn it."""
        if _BARE_LINE_END.search(buffered):
            return _bad("a bare CR or LF as line end", "CRLF")
        line, complete, _ = buffered.partition(b"\r\n")
        if len(line) > self._limits.request_line_max_bytes:
            return _too_large(414, "request line", len(line), self._limits.request_line_max_bytes)
        if len(buffered) > self._limits.head_max_bytes:
            return _too_large(431, "head", len(buffered), self._limits.head_max_bytes)
        if buffered.count(b"\r\n") > self._limits.headers_max + 1:
            return _too_large(431, "header lines", buffered.count(b"\r\n") - 1, self._limits.headers_max)
        if complete:
            parsed = self._request_line(line)
            return parsed if type(parsed) is Refusal else None
        method, blank, _ = line.partition(b" ")
        if method in _BEGINNINGS if blank else any(known.startswith(method) for known in _BEGINNINGS):
            return None
        return _bad("an unknown method", "a method of HTTP/1.1 in capitals")

    def _parse(self, raw: bytes) -> Head | Refusal:
        if _BARE_LINE_END.search(raw) or raw.endswith(b"\r"):
            return _bad("a bare CR or LF as line end", "CRLF")
        lines = raw.split(b"\r\n")
        if len(lines[0]) > self._limits.request_line_max_bytes:
            return _too_large(414, "request line", len(lines[0]), self._limits.request_line_max_bytes)
        if len(raw) + 4 > self._limits.head_max_bytes:
            return _too_large(431, "head", len(raw) + 4, self._limits.head_max_bytes)
        if len(lines) - 1 > self._limits.headers_max:
            return _too_large(431, "header lines", len(lines) - 1, self._limits.headers_max)
        request = self._request_line(lines[0])
        if type(request) is Refusal:
            return request
        method, target, minor = request  # type: ignore[misc]
        headers: dict[bytes, bytes] = {}
        for line in lines[1:]:
            refusal = _add_header(headers, line)
            if refusal is not None:
                return refusal
        head = Head(method, target, minor, headers)
        return _connection(head) or _framing(head) or head

    @staticmethod
    def _request_line(line: bytes) -> tuple[bytes, bytes, int] | Refusal:
        parts = line.split(b" ")
        if len(parts) != 3:  # noqa: PLR2004 - method, target, version
            return _bad("a malformed request line", "method, target and version, one blank between them")
        method, target, version = parts
        token = _VERSION.fullmatch(version)
        if token is None:
            return _bad("a malformed version", "HTTP/1.1 or HTTP/1.0")
        if token[1] != b"1" or token[2] not in b"01":
            return Refusal(
                505, "bad_http", f"The version {version.decode()} is not spoken here; expected HTTP/1.1.", close=True
            )
        if method not in _METHODS:
            return _bad("an unknown method", "a method of HTTP/1.1 in capitals")
        if _TARGET.fullmatch(target) is None or _FORBIDDEN_IN_TARGET.search(target):
            return _bad("a target not in plain origin-form", "/path, no fragment, encoded slash or control byte")
        return method, target, int(token[2])


def _add_header(headers: dict[bytes, bytes], line: bytes) -> Refusal | None:
    match = _HEADER.fullmatch(line)
    if match is None:
        return _bad("a malformed header line", "name: value, unfolded, without control bytes")
    name, value = match[1].lower(), match[2]
    if b"_" in name:  # removed before anything reads it: servers disagree on whether it equals the dashed name
        return None
    if name in headers:
        if name in _SINGLE:
            return _bad(f"a repeated {name.decode()} header", "one")
        if name.startswith(b"x-turnout-"):
            return _two_controls(name, headers[name], value)
        headers[name] = headers[name] + (b"; " if name == b"cookie" else b", ") + value
    else:
        headers[name] = value
    return None


def _connection(head: Head) -> Refusal | None:
    host = head.headers.get(b"host")
    if (host is None and head.version_minor == 1) or (host is not None and _HOST.fullmatch(host) is None):
        return _bad("a missing or invalid Host header", "host[:port]")
    for option in head.headers.get(b"connection", b"").lower().split(b","):
        name = option.strip(b" \t")
        if name == b"close":
            head.keep_alive = False
        elif name in _RELIED_ON or name.startswith(b"x-turnout-"):
            return _bad(f"a Connection header that names {name.decode()}", "no header that is relied on")
    expect = head.headers.get(b"expect")
    if expect is not None:
        if expect.lower() != b"100-continue":
            return Refusal(417, "expectation_failed", "Expect: only 100-continue is understood.", close=True)
        head.expect_continue = head.version_minor == 1
    return None


def _framing(head: Head) -> Refusal | None:
    length, coding = head.headers.get(b"content-length"), head.headers.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            return _bad("Content-Length beside Transfer-Encoding", "one of them")
        if head.version_minor == 0 or coding.lower() != b"chunked":
            return _bad("a Transfer-Encoding that is not understood", "chunked, in HTTP/1.1")
        head.chunked = True
    elif length is not None:
        if _LENGTH.fullmatch(length) is None:
            return _bad("an invalid Content-Length", "1 to 19 digits")
        head.content_length = int(length)
    return None


def _two_controls(name: bytes, first: bytes, second: bytes) -> Refusal:
    """Refuse a control that was sent twice; a knob with the code of every other fault of a knob (selection §8)."""
    error = InvalidControl(name.decode(), first[:_SEEN_MAX] + b" and " + second[:_SEEN_MAX], "one header")
    return Refusal(
        400, "invalid_routing_knobs" if name in HEADERS else "bad_http", f"{error}.", param=error.param, close=True
    )


def _bad(what: str, expected: str) -> Refusal:
    return Refusal(400, "bad_http", f"The request has {what}; expected {expected}.", close=True)


def _too_large(status: int, what: str, seen: int, limit: int) -> Refusal:
    return Refusal(
        status, "request_too_large", f"The {what} exceeds the limit: {seen}, expected at most {limit}.", close=True
    )
