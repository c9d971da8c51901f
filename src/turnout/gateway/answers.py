"""Response bytes: status lines, the headers that travel back, and the headers that are ours (request-path §9)."""

from __future__ import annotations

import http
from typing import Final

from turnout.core.types import Refusal
from turnout.dialects.envelope import ApiError, dialect_of, error_body
from turnout.http.response_head import ResponseHead

STATUS_LINES: Final = {
    code: b"HTTP/1.1 %d %b\r\n"
    % (code, http.HTTPStatus(code).phrase.encode() if code in set(http.HTTPStatus) else b"-")
    for code in range(200, 600)
}
STREAM_HEADERS: Final = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
)
JSON_TYPE: Final = b"content-type: application/json\r\n"
# The head that goes out with a keep-alive before the first output event (W2) says nothing that is not known yet.
_RELAYED: Final = frozenset((b"content-type", b"retry-after", b"x-should-retry", b"openai-version"))
_DROPPED_PREFIXES = (b"x-ratelimit-", b"anthropic-ratelimit-")
_UPSTREAM_IDS = (b"x-request-id", b"request-id")


def relayed_headers(head: ResponseHead, *, content_type: bool = True) -> bytes:
    """Return the header block of an engine's answer that the client gets (U6)."""
    lines = []
    for name, value in head.headers:
        if name in _RELAYED:
            if content_type or name != b"content-type":
                lines.append(b"%b: %b\r\n" % (name, value))
        elif name in _UPSTREAM_IDS or name.startswith(_DROPPED_PREFIXES):
            lines.append(b"x-upstream-%b: %b\r\n" % (name.removeprefix(b"x-"), value))
        elif name.startswith(b"anthropic-"):
            lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)


def prepare(head: ResponseHead) -> tuple[bytes, str]:
    """Return the relayed header block and the kind of content; kept with the remembered head."""
    content_type = (head.get(b"content-type") or b"").lower()
    if content_type.startswith(b"text/event-stream"):
        return relayed_headers(head, content_type=False), "events"
    kind = "json" if b"json" in content_type else "other"
    return relayed_headers(head), kind


def whole(status: int, headers: bytes, body: bytes) -> bytes:
    """Return a complete response."""
    return b"%b%bcontent-length: %d\r\n\r\n%b" % (STATUS_LINES[status], headers, len(body), body)


def refusal(path: bytes, refused: Refusal, request_id: bytes) -> bytes:
    """Return the whole answer of a refusal in the dialect of its path."""
    error = ApiError(refused.status, refused.type, refused.code, refused.message, refused.param)
    dialect = dialect_of(path)
    headers = [JSON_TYPE, b"x-request-id: %b\r\n" % request_id]
    if dialect == "anthropic":
        headers.append(b"request-id: %b\r\n" % request_id)
    if refused.retry_after_s is not None:
        headers.append(b"retry-after: %d\r\n" % refused.retry_after_s)
    headers += [b"%b: %b\r\n" % pair for pair in refused.headers]
    return whole(refused.status, b"".join(headers), error_body(dialect, error, request_id.decode()))


def chunk(payload: bytes) -> bytes:
    """Frame payload as one chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


LAST_CHUNK: Final = b"0\r\n\r\n"
