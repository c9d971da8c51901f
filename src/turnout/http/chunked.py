"""Chunked framing, decoded strictly and incrementally, on both sides (request-path §2 L4, §3 H7, H8).

The decoder yields payload only; extensions and trailers are dropped and never merged into a head. Bytes are kept
until they are understood, and what may be kept is bounded: chunk lines and trailers here, payload by the caller.
"""

from __future__ import annotations

import re
from typing import Final

_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[\t\x20-\x7e\x80-\xff]*")
_NOT_IN_TRAILERS: Final = frozenset(
    (
        b"content-length",
        b"transfer-encoding",
        b"host",
        b"connection",
        b"te",
        b"authorization",
        b"x-api-key",
        b"x-goog-api-key",
        b"proxy-authorization",
        b"cookie",
    )
)
_OVERHEAD_MAX_BYTES: Final = 4096
_LINE_MAX_BYTES: Final = 4096
_TRAILERS_MAX_BYTES: Final = 32768
_TRAILERS_MAX: Final = 100
_DIGITS_MAX: Final = 16
_HEX_MAX_BYTES: Final = _DIGITS_MAX + 2  # with the CRLF
# Events are of few sizes, and what their digits mean need not be computed again.
_SIZES: Final[dict[bytes, int]] = {}
_SIZES_MAX: Final = 4096
_SIZE, _DATA, _AFTER, _TRAILERS, _DONE = range(5)


class FramingError(ValueError):
    """The chunked framing is invalid; the message says where."""


class PayloadTooLargeError(FramingError):
    """A well-formed chunk goes beyond what the payload may have."""


class ChunkedDecoder:
    """Turns framed bytes into payload. `done` once last chunk and trailers are in; `rest` holds what follows."""

    __slots__ = (
        "_at",
        "_buffer",
        "_left",
        "_overhead",
        "_overhead_max",
        "_payload",
        "_trailer_bytes",
        "_trailers",
        "at_boundary",
        "done",
        "payload_max",
        "rest",
    )

    def __init__(self, payload_max: int = 2**64, overhead_max: int = _OVERHEAD_MAX_BYTES) -> None:
        self.payload_max = payload_max
        self._overhead_max = overhead_max
        self._buffer = b""
        self._at = _SIZE
        self._left = 0
        self._overhead = 0
        self._payload = 0
        self._trailer_bytes = self._trailers = 0
        self.at_boundary = True  # between two chunks, with nothing buffered
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Take framed bytes and return the payload pieces in them.

        Raises:
            PayloadTooLargeError: a chunk announces more than the payload may have.
            FramingError: bad size line, missing CRLF, oversized overhead or a forbidden trailer.

        """
        buffer = self._buffer + data if self._buffer else data
        pieces: list[bytes] = []
        pos, end = 0, len(buffer)
        while pos < end:
            if self._at == _DATA:
                take = min(self._left, end - pos)
                pieces.append(buffer[pos : pos + take])
                pos += take
                self._left -= take
                self._payload += take
                if self._left:
                    break
                self._at = _AFTER
            elif self._at == _AFTER:
                if end - pos < 2:  # noqa: PLR2004 - CRLF
                    if buffer[pos:end] != b"\r":
                        raise FramingError("chunk data is not followed by CRLF")
                    break
                if buffer[pos : pos + 2] != b"\r\n":
                    raise FramingError("chunk data is not followed by CRLF")
                pos += 2
                self._at = _SIZE
            else:
                line_end = buffer.find(b"\r\n", pos)
                if line_end < 0:
                    self._check_partial(buffer[pos:end])
                    break
                line = buffer[pos:line_end]
                pos = line_end + 2
                if self._line(line):
                    self.rest = buffer[pos:]
                    pos = end
        self._buffer = buffer[pos:]
        self.at_boundary = self._at == _SIZE and not self._buffer
        return pieces

    def _line(self, line: bytes) -> bool:
        """Consume a size line or trailer line; True at the end of the message."""
        if self._at == _SIZE:
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise FramingError("an invalid chunk size")
            self._left = int(match[1], 16)
            if self._payload + self._left > self.payload_max:
                raise PayloadTooLargeError("a chunk beyond the largest body")
            self._overhead += len(line) + 4
            # L4: extensions, leading zeros and one-byte chunks may cost as much as the payload and 4 KiB, no more.
            if self._overhead > self._overhead_max + self._payload + self._left:
                raise FramingError("more framing than payload")
            self._at = _DATA if self._left else _TRAILERS
            return False
        if not line:
            self._at = _DONE
            self.done = True
            return True
        match = _TRAILER.fullmatch(line)
        if match is None or match[1].lower() in _NOT_IN_TRAILERS:
            raise FramingError("a forbidden or malformed trailer")
        self._trailer_bytes += len(line) + 2
        self._trailers += 1
        if self._trailer_bytes > _TRAILERS_MAX_BYTES or self._trailers > _TRAILERS_MAX:
            raise FramingError("too many trailers")
        return False

    def _check_partial(self, partial: bytes) -> None:
        if b"\n" in partial or b"\r" in partial[:-1]:
            raise FramingError("a bare CR or LF as line end")
        if len(partial) > (_LINE_MAX_BYTES if self._at == _SIZE else _TRAILERS_MAX_BYTES):
            raise FramingError("an endless line")
        if self._at == _SIZE and partial and not _could_be_size(partial):
            raise FramingError("an invalid chunk size")


def _could_be_size(partial: bytes) -> bool:
    text = partial.removesuffix(b"\r")
    return not text or _SIZE_LINE.fullmatch(text) is not None


def whole_chunks(data: bytes) -> bytes | None:
    """Return the payload when the bytes are whole, non-empty chunks without extensions: the shape of streamed events.

    None means that the decoder has to look; it never means that the bytes are wrong.
    """
    line_end = data.find(b"\r\n", 0, _HEX_MAX_BYTES)
    size = _size(data[:line_end]) if line_end > 0 else 0
    if size == 0:
        return None
    after = line_end + 2 + size
    if len(data) == after + 2 and data.endswith(b"\r\n"):
        return data[line_end + 2 : after]
    return _several_chunks(data)


def _several_chunks(data: bytes) -> bytes | None:
    pieces: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        line_end = data.find(b"\r\n", at, at + _HEX_MAX_BYTES)
        size = _size(data[at:line_end]) if line_end > at else 0
        at = line_end + 4 + size
        if size == 0 or at > end or not data.endswith(b"\r\n", 0, at):
            return None
        pieces.append(data[line_end + 2 : at - 2])
    return b"".join(pieces)


def _size(digits: bytes) -> int:
    """Return what the hexadecimal digits of a chunk's size say; 0 when they are none, or too many."""
    known = _SIZES.get(digits)
    if known is not None:
        return known
    if not digits.isalnum() or len(digits) > _DIGITS_MAX:
        return 0
    try:
        size = int(digits, 16)
    except ValueError:
        return 0
    if len(_SIZES) < _SIZES_MAX:
        _SIZES[digits] = size
    return size
