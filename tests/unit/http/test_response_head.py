"""Response heads of engines: one reading or none (faults F13 to F20)."""

from __future__ import annotations

import pytest

from turnout.http import response_head
from turnout.http.response_head import BadResponse, parse

OK = b"HTTP/1.1 200 OK"


def head(*lines: bytes, status: bytes = OK) -> response_head.ResponseHead:
    return parse(b"\r\n".join([status, *lines]))


@pytest.mark.parametrize(
    ("lines", "length", "chunked", "keep_alive"),
    [
        ((b"Content-Length: 5",), 5, False, True),
        ((b"content-length:5",), 5, False, True),
        ((b"Transfer-Encoding: Chunked",), None, True, True),
        ((), None, False, False),
        ((b"Content-Length: 5", b"Connection: close"), 5, False, False),
        ((b"Content-Length: 5", b"Connection: keep-alive, Close"), 5, False, False),
    ],
)
def test_framing_is_final(lines: tuple[bytes, ...], length: int | None, chunked: bool, keep_alive: bool) -> None:  # noqa: FBT001
    seen = head(*lines)
    assert (seen.length, seen.chunked, seen.keep_alive) == (length, chunked, keep_alive)


def test_http_1_0_is_read_and_not_kept() -> None:
    assert head(b"Content-Length: 5", status=b"HTTP/1.0 200 OK").keep_alive is False


@pytest.mark.parametrize("status", [204, 304])
def test_some_answers_have_no_body_whatever_they_announce(status: int) -> None:
    seen = head(b"Content-Length: 5", status=b"HTTP/1.1 %d No" % status)
    assert (seen.length, seen.chunked) == (0, False)


@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_informational_answers_are_no_answer_yet(status: int) -> None:
    assert head(status=b"HTTP/1.1 %d Wait" % status).informational


BAD_STATUS = [
    b"HTTP/1.1 101 Switching", b"HTTP/1.1 000 x", b"HTTP/1.1 99 x", b"HTTP/1.1 600 x", b"HTTP/1.1 999 x", b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK",
    b"HTTP/2 200 OK", b"HTTP/1.2 200 OK", b"http/1.1 200 OK", b"HTTP/1.1  200 OK", b"HTTP/1.1 200OK", b"ICY 200 OK", b"", b"SSH-2.0-x",
    b"HTTP/1.1 +20 OK", b"HTTP/1.1 200 \x00", b"HTTP/1.1 200 O\nK",
]  # fmt: skip


@pytest.mark.parametrize("status", BAD_STATUS)
def test_a_malformed_status_line_is_no_answer(status: bytes) -> None:
    with pytest.raises(BadResponse):
        head(b"Content-Length: 2", status=status)


BAD_LINES = [
    (b"Content-Length: 5", b"Transfer-Encoding: chunked"), (b"Content-Length: 5", b"Content-Length: 5"), (b"Content-Length: 5, 5",), (b"Content-Length: +5",),
    (b"Content-Length: -1",), (b"Content-Length: 0x5",), (b"Content-Length:",), (b"Content-Length: " + b"1" * 20,), (b"Transfer-Encoding: gzip",),
    (b"Transfer-Encoding: chunked, chunked",), (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), (b"no colon",), (b" folded: x",), (b"X : y",),
    (b"X: a\x00b",), (b"X: a\nb",), (b"X: a\rb",), (b": x",), (b"X\xe9: y",),
]  # fmt: skip


@pytest.mark.parametrize("lines", BAD_LINES)
def test_a_head_that_could_be_read_two_ways_is_no_answer(lines: tuple[bytes, ...]) -> None:
    with pytest.raises(BadResponse):
        head(*lines)


def test_header_lines_are_bounded() -> None:
    head(*[b"X: y"] * 254)
    with pytest.raises(BadResponse):
        head(*[b"X: y"] * 256)


def test_equal_heads_are_remembered_in_bounded_number_and_size() -> None:
    raw = OK + b"\r\nContent-Length: 5\r\nX-Remember: me"
    assert parse(raw) is parse(bytes(bytearray(raw)))
    large = raw + b"a" * 2000
    assert parse(large) is not parse(bytes(bytearray(large)))
    for number in range(2000):
        parse(raw + b"%d" % number)
    assert len(response_head._MEMO) <= 512


def test_names_are_lower_case_and_values_trimmed() -> None:
    seen = head(b"X-Odd-Name:  value \t", b"Content-Length: 0")
    assert seen.get(b"x-odd-name") == b"value"
    assert seen.get(b"X-Odd-Name") is None
