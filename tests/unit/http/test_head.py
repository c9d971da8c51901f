"""Request heads: what is accepted has one reading, and it is found again (request-path §2 L1, §3)."""

from __future__ import annotations

import msgspec
import pytest

from turnout.core.options import Server
from turnout.core.types import Refusal
from turnout.http.head import Head, HeadParser

LINES = (b"POST /v1/chat/completions?a=b HTTP/1.1", b"Host: localhost", b"Content-Length: 5")


def parse(*lines: bytes, limits: dict[str, int] | None = None) -> Head | Refusal:
    return HeadParser(msgspec.convert(limits or {}, Server)).parse(b"\r\n".join(lines))


def parsed(*lines: bytes) -> Head:
    head = parse(*lines)
    assert isinstance(head, Head), head
    return head


def test_method_path_and_framing() -> None:
    head = parsed(*LINES)
    assert (head.method, head.path, head.content_length, head.chunked) == (b"POST", b"/v1/chat/completions", 5, False)
    assert (head.keep_alive, head.expect_continue, head.version_minor) == (True, False, 1)


def test_repeated_headers_are_joined_and_cookies_by_semicolons() -> None:
    head = parsed(*LINES, b"X-A: 1", b"x-a: 2", b"Cookie: a", b"Cookie: b")
    assert (head.headers[b"x-a"], head.headers[b"cookie"]) == (b"1, 2", b"a; b")


REPEATED = {
    "a knob": (b"x-turnout-routing-alpha", b"0.5", b"0.6", "invalid_routing_knobs", "got 0.5 and 0.6."),
    "the same twice": (b"X-Turnout-Routing-Alpha", b"0.5", b"0.5", "invalid_routing_knobs", "got 0.5 and 0.5."),
    "two long ones": (b"x-turnout-routing-speed-weight", b"1" * 99, b"2" * 99, "invalid_routing_knobs", "and 2222"),
    "another control": (b"x-turnout-priority", b"high", b"low", "bad_http", "got high and low."),
    "bytes that are no text": (b"x-turnout-session", b"\xff", b"b", "bad_http", "got \\xff and b."),
}


@pytest.mark.parametrize(("name", "first", "second", "code", "seen"), REPEATED.values(), ids=REPEATED)
def test_a_control_sent_twice_is_refused_by_name_and_with_both_values(
    name: bytes, first: bytes, second: bytes, code: str, seen: str
) -> None:
    refusal = parse(*LINES, name + b": " + first, b"X-A: 1", name + b": " + second)
    assert isinstance(refusal, Refusal)
    lowered = name.decode().lower()
    assert (refusal.status, refusal.code, refusal.param, refusal.close) == (400, code, lowered, True)
    assert refusal.message.startswith(f"{lowered}: expected one header, got ")
    assert seen in refusal.message
    assert len(refusal.message) < 160


def test_a_credential_sent_twice_is_never_repeated_to_anybody() -> None:
    refusal = parse(*LINES, b"Authorization: Bearer first", b"Authorization: Bearer second")
    assert isinstance(refusal, Refusal)
    assert refusal.message == "The request has a repeated authorization header; expected one."


def test_names_with_underscores_are_not_there() -> None:
    assert set(parsed(*LINES, b"content_length: 7", b"x_y: z").headers) == {b"host", b"content-length"}


@pytest.mark.parametrize(
    ("line", "keep_alive"),
    [(b"Connection: close", False), (b"Connection: Keep-Alive, CLOSE", False), (b"Connection: keep-alive", True)],
)
def test_the_client_may_end_the_connection(line: bytes, keep_alive: bool) -> None:  # noqa: FBT001 - a column
    assert parsed(*LINES, line).keep_alive is keep_alive


def test_http_1_0_is_never_kept_alive_and_never_waits_for_continue() -> None:
    head = parsed(b"POST / HTTP/1.0", b"Connection: keep-alive", b"Expect: 100-continue", b"Content-Length: 5")
    assert (head.keep_alive, head.expect_continue) == (False, False)


def test_equal_heads_are_one_object_and_others_are_not() -> None:
    parser = HeadParser(Server())
    raw = b"\r\n".join(LINES)
    assert parser.parse(raw) is parser.parse(bytes(bytearray(raw)))
    assert parser.parse(raw) is not parser.parse(raw + b"\r\nX: y")


def test_memory_of_heads_is_bounded_in_number_and_size() -> None:
    parser = HeadParser(Server())
    raw = b"\r\n".join(LINES)
    for number in range(5000):
        parser.parse(raw + b"\r\nX: %d" % number)
    assert len(parser._memo) <= 1024
    large = raw + b"\r\nX: " + b"a" * 3000
    assert parser.parse(large) is not parser.parse(bytes(bytearray(large)))
    assert all(len(known) <= 2048 for known in parser._memo)


def test_refusals_are_not_remembered() -> None:
    parser = HeadParser(Server())
    for number in range(100):
        assert isinstance(parser.parse(b"GET /%d HTTP/9.9" % number), Refusal)
    assert parser._memo == {}


@pytest.mark.parametrize(
    ("limits", "status"),
    [({"request_line_max_bytes": 20}, 414), ({"head_max_bytes": 60}, 431), ({"headers_max": 1}, 431)],
)
def test_L1_each_limit_is_named_with_what_was_seen(limits: dict[str, int], status: int) -> None:
    refusal = parse(*LINES, limits=limits)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code, refusal.close) == (status, "request_too_large", True)
    assert str(next(iter(limits.values()))) in refusal.message


HOPELESS = [
    b"get / HTTP/1.1\r\n",
    b"\x16\x03\x01",
    b"X",
    b"GET /\nHost",
    b"GET / HTTP/1.1\r\nHost: a\nX",
    b"GET / HTTP/3.0\r\nA",
]


@pytest.mark.parametrize("begun", HOPELESS)
def test_what_can_never_become_a_head_is_refused_before_it_ends(begun: bytes) -> None:
    assert isinstance(HeadParser(Server()).incomplete(begun), Refusal)


@pytest.mark.parametrize("begun", [b"", b"G", b"GET", b"GET /", b"POST /v1 HTTP/1.1\r\nHost: a\r\nX", b"\r", b"PRI"])
def test_what_may_become_a_head_is_waited_for(begun: bytes) -> None:
    assert HeadParser(Server()).incomplete(begun) is None
