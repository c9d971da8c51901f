"""Response heads of engines, read strictly: one that could be read two ways spoils the connection (faults F13–F20)."""

from __future__ import annotations

import re
from typing import Any, Final

HEAD_MAX_BYTES: Final = 65_536
_LINES_MAX: Final = 256
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([0-9]{3})(?: [\t\x20-\x7e\x80-\xff]*)?")
_HEADER: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_LENGTH: Final = re.compile(rb"[0-9]{1,19}")
_STATUS_MIN: Final = 100
_STATUS_MAX: Final = 599
_SWITCHING: Final = 101
_WITHOUT_BODY = (204, 304)
_MEMO_MAX: Final = 512
_MEMO_HEAD_MAX_BYTES: Final = 1024


class BadResponse(ValueError):
    """The engine's answer is not valid HTTP/1.1."""


class ResponseHead:
    """One response head; `length` None means chunked or until the connection closes."""

    __slots__ = ("chunked", "headers", "informational", "keep_alive", "length", "prepared", "status")

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], *, keep_alive: bool) -> None:
        self.status = status
        self.headers = headers
        self.keep_alive = keep_alive
        self.chunked = False
        self.length: int | None = None
        self.informational = status < 200  # noqa: PLR2004 - 1xx
        self.prepared: Any = None

    def get(self, name: bytes) -> bytes | None:
        """Return the first value of a lower-case header name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


_MEMO: Final[dict[bytes, ResponseHead]] = {}


def parse(raw: bytes) -> ResponseHead:
    """Parse a head that ends before its empty line; equal heads are remembered, bounded.

    Raises:
        BadResponse: malformed line, ambiguous framing, a status outside 100–599, or 101.

    """
    head = _MEMO.get(raw)
    if head is None:
        head = _parse(raw)
        if len(raw) <= _MEMO_HEAD_MAX_BYTES:
            if len(_MEMO) >= _MEMO_MAX:
                _MEMO.clear()
            _MEMO[raw] = head
    return head


def _parse(raw: bytes) -> ResponseHead:
    lines = raw.split(b"\r\n")
    match = _STATUS.fullmatch(lines[0])
    if match is None:
        raise BadResponse("malformed status line")
    status = int(match[2])
    if not _STATUS_MIN <= status <= _STATUS_MAX or status == _SWITCHING:
        raise BadResponse(f"status {status}")
    if len(lines) > _LINES_MAX:
        raise BadResponse("too many header lines")
    headers = []
    for line in lines[1:]:
        field = _HEADER.fullmatch(line)
        if field is None:
            raise BadResponse("malformed header line")
        headers.append((field[1].lower(), field[2].rstrip(b" \t")))
    head = ResponseHead(status, headers, keep_alive=match[1] == b"1")
    _set_framing(head)
    return head


def _set_framing(head: ResponseHead) -> None:
    lengths = [value for name, value in head.headers if name == b"content-length"]
    codings = [value for name, value in head.headers if name == b"transfer-encoding"]
    for name, value in head.headers:
        if name == b"connection" and b"close" in value.lower():
            head.keep_alive = False
    if (lengths and codings) or len(lengths) > 1 or len(codings) > 1:
        raise BadResponse("ambiguous framing")
    if codings:
        if codings[0].lower() != b"chunked":
            raise BadResponse("unknown transfer coding")
        head.chunked = True
    elif lengths:
        if _LENGTH.fullmatch(lengths[0]) is None:
            raise BadResponse("invalid content length")
        head.length = int(lengths[0])
    elif head.status not in _WITHOUT_BODY and not head.informational:
        head.keep_alive = False  # the body ends where the connection does
    if head.status in _WITHOUT_BODY:
        head.length = 0
        head.chunked = False
