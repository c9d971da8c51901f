"""Hostile heads and framing on real sockets (request-path §3): one answer, a close that loses nothing, no engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.client import Response
    from tests.support.engine import Engine
    from tests.support.router import Router

BODY = json.dumps({"model": "model-a", "messages": [{"role": "user", "content": "hello"}]}).encode()
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


class Door:
    """One router and one engine for the whole module."""

    def __init__(self, router: Router, engine: Engine) -> None:
        self.router, self.engine = router, engine

    def head(self, *lines: bytes, **kwargs: Any) -> bytes:
        return self.router.head(*lines, **kwargs)

    def line(self, request_line: bytes, *lines: bytes) -> bytes:
        return b"\r\n".join(
            [request_line, b"Host: localhost", b"Authorization: Bearer " + self.router.key.encode(), *lines, b"", b""]
        )

    def refuses(self, *pieces: bytes, status: int = 400, code: str = "bad_http") -> Response:
        """Send, and assert H22: answered, closed in order, no engine, the next connection works."""
        seen = len(self.engine.requests)
        client = self.router.client()
        client.send(*pieces)
        answered = client.response()
        assert (answered.status, answered.code) == (status, code), answered.body
        assert answered.header(b"connection") == b"close"
        assert client.is_closed()
        client.close()
        assert self.router.ask(method=b"GET", path=b"/v1/models").status == 200
        assert len(self.engine.requests) == seen
        return answered

    def serves(self, *pieces: bytes) -> Response:
        """Send, and assert that the engine saw exactly one request with the body."""
        seen = len(self.engine.requests)
        client = self.router.client()
        client.send(*pieces)
        answered = client.response()
        client.close()
        assert answered.status == 200, answered.body
        assert len(self.engine.requests) == seen + 1
        assert self.engine.requests[-1].body == BODY
        return answered


@pytest.fixture(scope="module")
def door(module_router: Callable[..., Router], module_engine: Callable[..., Engine]) -> Door:
    engine = module_engine()
    return Door(module_router(engine), engine)


@pytest.mark.parametrize("lines", [(LENGTH, CHUNKED), (CHUNKED, LENGTH), (b"Content-Length: 0", CHUNKED)])
def test_H1_length_beside_transfer_encoding_is_refused(door: Door, lines: tuple[bytes, ...]) -> None:
    door.refuses(door.head(*lines) + CHUNKS)


@pytest.mark.parametrize("lines", [(LENGTH, LENGTH), (LENGTH, b"Content-Length: 5"), (LENGTH, b"x: y", LENGTH.lower())])
def test_H2_content_length_repeated_is_refused(door: Door, lines: tuple[bytes, ...]) -> None:
    door.refuses(door.head(*lines) + BODY)


BAD_LENGTHS = [
    b"5, 5", b"5,5", b"", b"+5", b"-5", b"-0", b"1_0", b"0x5", b"5h", b"5.0", b"5e1", b"5 5", b"5\t5", "٥".encode(), b"\xb2",
    b"1" * 20, b"0" * 20, b"18446744073709551617", b'"5"', b"5;", b"five",
]  # fmt: skip


@pytest.mark.parametrize("value", BAD_LENGTHS)
def test_H2_content_length_that_is_no_plain_number_is_refused(door: Door, value: bytes) -> None:
    door.refuses(door.head(b"Content-Length: " + value) + b"hello")


@pytest.mark.parametrize("value", [b"9223372036854775807", b"9999999999999999999", b"33554433"])
def test_H2_content_length_over_the_limit_is_413_at_once(door: Door, value: bytes) -> None:
    door.refuses(door.head(b"Content-Length: " + value), status=413, code="request_too_large")


BAD_CODINGS = [
    b"gzip, chunked", b"chunked, chunked", b"chunked, identity", b"identity", b"gzip", b"compress", b'"chunked"', b"",
    b"chunked;q=1", b"\x0bchunked", b"chunked\x0b", b"chunked\x00", b"chunked\xa0", b"xchunked", b"chunked,", b",chunked",
]  # fmt: skip


@pytest.mark.parametrize("value", BAD_CODINGS)
def test_H3_transfer_encoding_other_than_chunked_is_refused(door: Door, value: bytes) -> None:
    door.refuses(door.head(b"Transfer-Encoding: " + value) + CHUNKS)


def test_H3_transfer_encoding_repeated_is_refused(door: Door) -> None:
    door.refuses(door.head(CHUNKED, CHUNKED) + CHUNKS)


def test_H3_transfer_encoding_in_http_1_0_is_refused(door: Door) -> None:
    door.refuses(door.line(b"POST /v1/chat/completions HTTP/1.0", CHUNKED) + CHUNKS)


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"CHUNKED"])
def test_H3_chunked_in_any_case_is_served(door: Door, value: bytes) -> None:
    door.serves(door.head(b"Transfer-Encoding: " + value) + CHUNKS)


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n c\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n\tc\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\n Host: localhost\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-A:\r\n b\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\nHost: localhost\n\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\nX-A: b\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\rX-A: b\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\rHost: localhost\r\r",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\n\r\n",
    ],
)
def test_H4_folded_lines_and_bare_line_ends_in_the_head_are_refused(door: Door, head: bytes) -> None:
    door.refuses(head)


@pytest.mark.parametrize(
    "chunks",
    [b"5\nhello\n0\n\n", b"5\nhello\r\n0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n", b"5\rhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\nx: y\n\r\n",
     b"5\r\nhello\r\n0\n\n", b"5;a\rb\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n\n", b"5\r\nhello\r\n0\r\nx: y\rz: w\r\n\r\n"],
)  # fmt: skip
def test_H4_bare_line_ends_in_chunks_and_trailers_are_refused(door: Door, chunks: bytes) -> None:
    door.refuses(door.head(CHUNKED) + chunks)


BAD_NAMES = [
    b": v",
    b" X: v",
    b"X : v",
    b"X\t: v",
    b"X Y: v",
    b"X\x00: v",
    b'"X": v',
    b"X\x80: v",
    b"X\xc3\xa9: v",
    b"X(: v",
    b"X",
    b"X\x7f: v",
]


@pytest.mark.parametrize("line", BAD_NAMES)
def test_H5_header_name_that_is_no_token_is_refused(door: Door, line: bytes) -> None:
    door.refuses(door.head(line, LENGTH) + BODY)


@pytest.mark.parametrize("byte", [0x00, 0x01, 0x07, 0x08, 0x0B, 0x0C, 0x1B, 0x1F, 0x7F])
def test_H6_control_bytes_in_a_value_are_refused(door: Door, byte: int) -> None:
    door.refuses(door.head(b"X-A: a" + bytes((byte,)) + b"b", LENGTH) + BODY)
    door.refuses(door.head(b"X-A: " + bytes((byte,)), LENGTH) + BODY)


def test_H6_high_bytes_and_tabs_in_a_value_travel_opaque(door: Door) -> None:
    value = bytes(range(0x80, 0x100)) + b"\tz"
    door.serves(door.head(b"X-Custom: " + value, LENGTH) + BODY)
    assert door.engine.requests[-1].header(b"x-custom") == value


BAD_SIZES = [
    b"",
    b"0x5",
    b"+5",
    b"-5",
    b"1_0",
    b" 5",
    b"5 ",
    b"5 ;x",
    b"5\t",
    b"g",
    b"0" * 17,
    b"1" + b"0" * 16,
    b"5,5",
    b";x",
    b"\xb5",
]


@pytest.mark.parametrize("size", BAD_SIZES)
def test_H7_chunk_size_that_is_no_plain_hex_number_is_refused(door: Door, size: bytes) -> None:
    door.refuses(door.head(CHUNKED) + size + b"\r\nhello\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "chunks", [b"5\r\nhelloX\r\n0\r\n\r\n", b"5\r\nhello0\r\n\r\n", b"5\r\nhello\r0\r\n", b"4\r\nhello\r\n0\r\n\r\n"]
)
def test_H7_chunk_data_not_followed_by_crlf_is_refused(door: Door, chunks: bytes) -> None:
    door.refuses(door.head(CHUNKED) + chunks)


@pytest.mark.parametrize("size", [b"ffffffffffffffff", b"8000000000000000", b"7fffffffffffffff", b"2000001"])
def test_H7_wellformed_chunk_size_over_the_limit_is_413_at_once(door: Door, size: bytes) -> None:
    door.refuses(door.head(CHUNKED) + size + b"\r\n", status=413, code="request_too_large")


@pytest.mark.parametrize("extension", [b";a", b";a=b", b';a="b c"', b"; a = b", b";" + b"x" * 3000])
def test_H8_chunk_extensions_are_dropped(door: Door, extension: bytes) -> None:
    door.serves(door.head(CHUNKED) + b"%x%b\r\n%b\r\n0%b\r\n\r\n" % (len(BODY), extension, BODY, extension[:5]))


def test_H8_trailers_never_reach_the_head_or_the_engine(door: Door) -> None:
    door.serves(door.head(CHUNKED) + CHUNKS[:-2] + b"X-Trailer: 1\r\nx-turnout-timeout-ms: bad\r\nX-Other: 2\r\n\r\n")
    assert b"railer" not in door.engine.requests[-1].raw_head


FORBIDDEN_TRAILERS = [
    b"Content-Length", b"Transfer-Encoding", b"Host", b"Authorization", b"X-Api-Key", b"X-Goog-Api-Key", b"Cookie",
    b"Proxy-Authorization", b"content-length", b"Connection",
]  # fmt: skip


@pytest.mark.parametrize("name", FORBIDDEN_TRAILERS)
def test_H8_framing_host_and_credentials_in_trailers_are_refused(door: Door, name: bytes) -> None:
    door.refuses(door.head(CHUNKED) + CHUNKS[:-2] + name + b": 5\r\n\r\n")


@pytest.mark.parametrize("line", [b"no colon", b": v", b"X : v", b" X: v", b"X: a\x00b", b"X: v\r\n folded"])
def test_H8_malformed_trailers_are_refused(door: Door, line: bytes) -> None:
    door.refuses(door.head(CHUNKED) + CHUNKS[:-2] + line + b"\r\n\r\n")


def test_H8_trailers_over_the_head_limits_are_refused(door: Door) -> None:
    door.refuses(door.head(CHUNKED) + CHUNKS[:-2] + b"X-A: b\r\n" * 101 + b"\r\n")
    door.refuses(door.head(CHUNKED) + CHUNKS[:-2] + (b"X-A: " + b"b" * 4000 + b"\r\n") * 9 + b"\r\n")


BAD_HOSTS = [
    (), (b"Host: a", b"Host: a"), (b"Host:",), (b"Host: a b",), (b"Host: a, b",), (b"Host: u@a",), (b"Host: a/b",), (b"Host: a:b",),
    (b"Host: a:",), (b"Host: http://a",), (b"Host: a:123456",), (b"Host: [::1",), (b"Host: a%2eb",), (b"Host: \xe9",),
]  # fmt: skip


@pytest.mark.parametrize("lines", BAD_HOSTS)
def test_H9_host_missing_repeated_or_malformed_is_refused(door: Door, lines: tuple[bytes, ...]) -> None:
    key = b"Authorization: Bearer " + door.router.key.encode()
    door.refuses(b"\r\n".join([b"POST /v1/chat/completions HTTP/1.1", *lines, key, LENGTH, b"", b""]) + BODY)


@pytest.mark.parametrize("host", [b"a", b"a:80", b"127.0.0.1:8080", b"[::1]", b"[::1]:80", b"a-b.c_d.example"])
def test_H9_plain_hosts_are_served(door: Door, host: bytes) -> None:
    key = b"Authorization: Bearer " + door.router.key.encode()
    door.serves(b"\r\n".join([b"POST /v1/chat/completions HTTP/1.1", b"Host: " + host, key, LENGTH, b"", b""]) + BODY)


@pytest.mark.parametrize(
    "lines",
    [
        (b"Authorization: Bearer x",),
        (b"Content-Type: application/json", b"Content-Type: application/json"),
        (b"x-turnout-timeout-ms: 1000", b"X-Turnout-Timeout-Ms: 1000"),
        (b"x-turnout-unheard-of: 1", b"x-turnout-unheard-of: 1"),
    ],
)
def test_H9_second_header_of_a_name_that_decides_is_refused(door: Door, lines: tuple[bytes, ...]) -> None:
    door.refuses(door.head(LENGTH, *lines) + BODY)


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/1.2", b"HTTP/1.9", b"HTTP/3.0", b"HTTP/9.9"])
def test_H10_other_versions_are_505(door: Door, version: bytes) -> None:
    door.refuses(door.line(b"POST /v1/chat/completions " + version, LENGTH) + BODY, status=505)


def test_H10_http_2_preface_is_505(door: Door) -> None:
    door.refuses(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", status=505)


BAD_VERSIONS = [
    b"http/1.1",
    b"HTTP/1",
    b"HTTP/1.",
    b"HTTP/1.1.1",
    b"HTTP/11.1",
    b"HTTP/1.10",
    b"HTTP/+1.1",
    b"HTTP/1,1",
    b"HTTPS/1.1",
    b"HTTP1.1",
    b"HTTP/0.9",
    b"XTTP/1.1",
]


@pytest.mark.parametrize("version", BAD_VERSIONS)
def test_H10_malformed_versions_are_refused(door: Door, version: bytes) -> None:
    door.refuses(door.line(b"POST /v1/chat/completions " + version, LENGTH) + BODY)


def test_H10_http_0_9_is_refused(door: Door) -> None:
    door.refuses(b"GET /health\r\n")


def test_H10_http_1_0_is_served_and_closed(door: Door) -> None:
    client = door.router.client()
    client.send(door.line(b"POST /v1/chat/completions HTTP/1.0", LENGTH, b"Connection: keep-alive") + BODY)
    answered = client.response()
    assert (answered.status, answered.header(b"connection")) == (200, b"close")
    assert client.is_closed()


def test_H10_http_1_0_needs_no_host(door: Door) -> None:
    client = door.router.client()
    client.send(b"GET /health HTTP/1.0\r\n\r\n")
    assert client.response().status == 200
    assert client.is_closed()


def test_H10_http_1_0_streams_without_chunks(door: Door, wire: Any) -> None:
    events = [wire.event("a"), wire.event(finish="stop"), wire.DONE]
    door.engine.says(wire.stream(*events), wire.answer())
    body = json.dumps({**json.loads(BODY), "stream": True}).encode()
    client = door.router.client()
    client.send(door.line(b"POST /v1/chat/completions HTTP/1.0", b"Content-Length: %d" % len(body)) + body)
    answered = client.response()
    assert answered.header(b"transfer-encoding") is None
    assert answered.body == b"".join(events)


NO_HTTP = [
    b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", b"get / HTTP/1.1\r\nHost: a\r\n\r\n", b"Post /v1/chat/completions HTTP/1.1\r\n",
    b"P()ST / HTTP/1.1\r\nHost: a\r\n\r\n", b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"SSH-2.0-OpenSSH_9.6\r\n", b"\x00\x01\x02\x03\x04\x05\x06\x07", b"\xff\xfe\xfd", b"* OK IMAP\r\n", b"{}", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
    b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", b"SUBSCRIBE /", b"MKCOL / HTTP/1.1\r\n", b"X",
]  # fmt: skip


@pytest.mark.parametrize("raw", NO_HTTP)
def test_H11_what_is_no_http_request_is_refused_without_waiting(door: Door, raw: bytes) -> None:
    door.refuses(raw)


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"])
def test_H12_known_path_with_another_method_is_405(door: Door, method: bytes) -> None:
    answered = door.router.ask(method=method, path=b"/v1/chat/completions")
    assert (answered.status, answered.code, answered.header(b"allow")) == (405, "method_not_allowed", b"POST")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [(b"/v1/models", b"GET"), (b"/v1/models/model-a", b"GET"), (b"/health", b"GET, HEAD"), (b"/", b"GET, HEAD")],
)
def test_H12_allow_names_the_methods_of_the_path(door: Door, path: bytes, allowed: bytes) -> None:
    answered = door.router.ask(method=b"POST", path=path)
    assert (answered.status, answered.header(b"allow")) == (405, allowed)


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT"])
@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/models", b"/health"])
def test_H12_trace_and_connect_also_close(door: Door, method: bytes, path: bytes) -> None:
    answered = door.refuses(door.head(method=method, path=path), status=405, code="method_not_allowed")
    assert answered.header(b"allow")


def test_H12_a_405_keeps_the_connection(door: Door) -> None:
    client = door.router.client()
    client.send(door.head(method=b"DELETE", path=b"/v1/models"))
    assert client.response().status == 405
    client.send(door.router.request())
    assert client.response().status == 200


@pytest.mark.parametrize("path", [b"/health", b"/v1/chat/completions", b"/v1/models", b"/nowhere"])
def test_an_answer_to_head_has_no_body(door: Door, path: bytes) -> None:
    client = door.router.client()
    client.send(door.head(method=b"HEAD", path=path))
    assert client.response(b"HEAD").status in (200, 404, 405)
    client.send(door.head(method=b"GET", path=b"/health"))
    assert client.response().body == b'{"status":"ok"}'


BAD_TARGETS = [
    b"http://localhost/v1/models", b"https://a/v1/models", b"ftp://a/b", b"file:///etc/passwd", b"localhost:80", b"*", b"v1/models", b"",
    b"?a=b", b"//", b"\t/v1/models",
]  # fmt: skip


@pytest.mark.parametrize("target", [t for t in BAD_TARGETS if t != b"//"])
def test_H13_target_not_in_origin_form_is_refused(door: Door, target: bytes) -> None:
    door.refuses(door.line(b"GET %b HTTP/1.1" % target))


@pytest.mark.parametrize(
    "line",
    [
        b"GET  /v1/models HTTP/1.1",
        b"GET /v1/models  HTTP/1.1",
        b"GET /v1/models HTTP/1.1 ",
        b"GET\t/v1/models\tHTTP/1.1",
        b"GET /v1/models\tHTTP/1.1",
    ],
)
def test_H13_blanks_beyond_two_in_the_request_line_are_refused(door: Door, line: bytes) -> None:
    door.refuses(door.line(line))


@pytest.mark.parametrize("method", [b"CONNECT localhost:443 HTTP/1.1", b"OPTIONS * HTTP/1.1"])
def test_H13_authority_and_asterisk_forms_are_refused(door: Door, method: bytes) -> None:
    door.refuses(door.line(method))


BAD_PATHS = [
    b"/a#b",
    b"/a\x00b",
    b"/a\x1fb",
    b"/a\x7fb",
    b"/a\x80b",
    "/é".encode(),
    b"/a\\b",
    b"/a%00b",
    b"/a%2Fb",
    b"/a%2fb",
    b"/a%5Cb",
    b"/a%5cb",
    b"/a?b#c",
    b"/a?b%00",
]


@pytest.mark.parametrize("target", BAD_PATHS)
def test_H14_target_with_a_byte_that_could_mean_two_things_is_refused(door: Door, target: bytes) -> None:
    door.refuses(door.line(b"GET %b HTTP/1.1" % target))


@pytest.mark.parametrize(
    "lines",
    [
        (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
        (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: x"),
    ],
)
def test_H15_upgrade_is_ignored(door: Door, lines: tuple[bytes, ...]) -> None:
    door.serves(door.head(LENGTH, *lines) + BODY)
    assert door.engine.requests[-1].header(b"upgrade") is None
    assert door.engine.requests[-1].header(b"http2-settings") is None


def test_H16_continue_comes_only_after_the_head_passed(door: Door) -> None:
    client = door.router.client()
    client.send(door.head(LENGTH, b"Expect: 100-continue"))
    assert client.response().status == 100
    client.send(BODY)
    assert client.response().status == 200


@pytest.mark.parametrize(
    ("kwargs", "lines", "status"),
    [
        ({"key": "unknown"}, (LENGTH,), 401),
        ({"path": b"/nowhere"}, (LENGTH,), 404),
        ({"path": b"/v1/models"}, (LENGTH,), 405),
        ({}, (b"Content-Length: 99999999",), 413),
        ({}, (LENGTH, b"Content-Encoding: gzip"), 415),
        ({}, (LENGTH, b"x-turnout-tiemout-ms: 5"), 400),
    ],
)
def test_H16_a_final_answer_takes_the_place_of_continue(
    door: Door, kwargs: Any, lines: tuple[bytes, ...], status: int
) -> None:
    client = door.router.client()
    client.send(door.head(*lines, b"Expect: 100-continue", **kwargs))
    answered = client.response()
    assert (answered.status, answered.header(b"connection")) == (status, b"close")
    assert client.is_closed()


@pytest.mark.parametrize("value", [b"200-ok", b"", b"100-continue, x"])
def test_H16_other_expectations_are_417(door: Door, value: bytes) -> None:
    door.refuses(door.head(LENGTH, b"Expect: " + value) + BODY, status=417, code="expectation_failed")


def test_H17_pipelined_requests_are_answered_in_order_one_at_a_time(door: Door) -> None:
    client = door.router.client()
    one, two = door.router.request(BODY, b"x-request-id: one"), door.router.request(BODY, b"x-request-id: two")
    client.send(one + two + door.head(method=b"GET", path=b"/health"))
    assert [client.response().header(b"x-request-id") for _ in range(2)] == [b"one", b"two"]
    assert client.response().body == b'{"status":"ok"}'


def test_H17_bytes_after_the_last_request_are_ignored(door: Door) -> None:
    seen = len(door.engine.requests)
    client = door.router.client()
    client.send(door.router.request(BODY, b"Connection: close") + door.router.request(BODY))
    assert client.response().status == 200
    assert client.is_closed()
    assert len(door.engine.requests) == seen + 1


RELIED_ON = [
    b"host",
    b"Content-Length",
    b"authorization",
    b"x-api-key",
    b"X-Goog-Api-Key",
    b"cookie",
    b"proxy-authorization",
    b"x-turnout-session",
    b"transfer-encoding",
    b"content-type",
]


@pytest.mark.parametrize("name", RELIED_ON)
def test_H18_connection_must_not_name_what_is_relied_on(door: Door, name: bytes) -> None:
    door.refuses(door.head(LENGTH, b"Connection: close, " + name) + BODY)


def test_H18_headers_named_by_connection_do_not_travel(door: Door) -> None:
    door.serves(door.head(LENGTH, b"Connection: X-Hop", b"X-Hop: 1", b"X-Stay: 2") + BODY)
    assert door.engine.requests[-1].header(b"x-hop") is None
    assert door.engine.requests[-1].header(b"x-stay") == b"2"


@pytest.mark.parametrize(
    "line",
    [
        b"content_length: 5",
        b"x_turnout_timeout_ms: bad",
        b"X_Api_Key: other",
        b"transfer_encoding: chunked",
        b"x-turnout_session: s",
    ],
)
def test_H18_names_with_an_underscore_are_removed(door: Door, line: bytes) -> None:
    door.serves(door.head(LENGTH, line) + BODY)
    assert b"_" not in b"".join(name for name, _ in door.engine.requests[-1].headers)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_H19_a_body_on_get_or_head_is_dropped(door: Door, method: bytes) -> None:
    client = door.router.client()
    client.send(door.head(b"Content-Length: 65536", method=method, path=b"/health"), b"x" * 65536)
    assert client.response(method).status == 200
    client.send(door.head(method=b"GET", path=b"/health"))
    assert client.response().status == 200


def test_H19_a_chunked_body_on_get_is_dropped(door: Door) -> None:
    client = door.router.client()
    client.send(door.head(CHUNKED, method=b"GET", path=b"/v1/models"), CHUNKS)
    assert client.response().status == 200
    client.send(door.head(method=b"GET", path=b"/health"))
    assert client.response().status == 200


def test_H19_a_larger_body_on_get_is_413(door: Door) -> None:
    door.refuses(
        door.head(b"Content-Length: 65537", method=b"GET", path=b"/health"), status=413, code="request_too_large"
    )
    door.refuses(
        door.head(CHUNKED, method=b"GET", path=b"/health") + b"10001\r\n", status=413, code="request_too_large"
    )


@pytest.mark.parametrize(
    "line",
    [b"Content-Encoding: gzip", b"Content-Encoding: br", b"Content-Encoding: identity, gzip", b"Content-Encoding:"],
)
def test_H20_content_encodings_are_415(door: Door, line: bytes) -> None:
    answered = door.router.ask(BODY, line)
    assert (answered.status, answered.code) == (415, "unsupported_media_type")


BAD_TYPES = [
    b"text/plain",
    b"application/jsonp",
    b"application/x-www-form-urlencoded",
    b"multipart/form-data; boundary=x",
    b"application/json; charset=latin-1",
    b"application/json; charset=utf-16",
    b"application/json; a=b; charset=utf-16",
    b"json",
    b"",
]


@pytest.mark.parametrize("kind", BAD_TYPES)
def test_H20_content_types_other_than_json_in_utf_8_are_415(door: Door, kind: bytes) -> None:
    answered = door.router.ask(BODY, b"Content-Type: " + kind)
    assert (answered.status, answered.code) == (415, "unsupported_media_type")


GOOD_TYPES = [
    b"application/json",
    b"Application/JSON",
    b"application/json; charset=utf-8",
    b'application/json;charset="UTF-8"',
    b"application/json; a=b; charset=utf-8",
    b"application/json; charset=utf-8; a=b",
    b"application/vnd.api+json",
    b"application/json;",
    b"application/json; odd=charset",
]


@pytest.mark.parametrize("kind", GOOD_TYPES)
def test_H20_json_in_utf_8_is_served(door: Door, kind: bytes) -> None:
    door.serves(door.head(LENGTH, b"Content-Type: " + kind, b"Content-Encoding: identity") + BODY)


@pytest.mark.parametrize("prefix", [(b"\r\n",), (b"\r\n\r\n",), (b"\r\n", b"\r\n"), (b"\r", b"\n")])
def test_H21_up_to_two_leading_line_ends_are_skipped(door: Door, prefix: tuple[bytes, ...]) -> None:
    door.serves(*prefix, door.head(LENGTH) + BODY)


def test_H21_more_leading_line_ends_never_become_a_message(door: Door) -> None:
    door.refuses(b"\r\n\r\n\r\n" + door.head(LENGTH) + BODY)


def test_H21_leading_zeros_in_lengths_are_served(door: Door) -> None:
    door.serves(door.head(b"Content-Length: 0000%d" % len(BODY)) + BODY)
    door.serves(door.head(CHUNKED) + b"000" + CHUNKS)


def test_H22_the_answer_arrives_although_a_large_body_was_not_read(door: Door) -> None:
    client = door.router.client()
    client.send(door.head(b"Content-Length: 99999999"))
    client.send(b"x" * 200_000)
    assert client.response().status == 413
    assert client.is_closed()
