"""What a well-known parser accepts or waits for ever on, each refused at once (request-path §3, traps T93)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.engine import Engine
    from tests.support.router import Router

BODY = json.dumps({"model": "model-a", "messages": [{"role": "user", "content": "hello"}]}).encode()
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
HOST, KEY = b"Host: localhost", b"Authorization: Bearer KEY"
START = b"POST /v1/chat/completions HTTP/1.1"


def message(start: bytes, *lines: bytes, body: bytes = BODY) -> bytes:
    return b"\r\n".join([start, *lines, b"", b""]) + body


def chunked(chunks: bytes) -> bytes:
    return message(START, HOST, KEY, CHUNKED, body=chunks)


LENIENCIES: dict[str, tuple[int, bytes]] = {
    "gzip before chunked": (400, message(START, HOST, KEY, b"Transfer-Encoding: gzip, chunked", body=CHUNKS)),
    "transfer coding in HTTP/1.0": (
        400,
        message(b"POST /v1/chat/completions HTTP/1.0", HOST, KEY, CHUNKED, body=CHUNKS),
    ),
    "length near 2^63": (413, message(START, HOST, KEY, b"Content-Length: 9223372036854775807")),
    "length over 2^64": (400, message(START, HOST, KEY, b"Content-Length: 18446744073709551626")),
    "chunk size near 2^63": (413, chunked(b"7fffffffffffffff\r\n" + BODY)),
    "chunk size near 2^64": (413, chunked(b"fffffffffffffffe\r\n" + BODY)),
    "long chunk extension": (400, chunked(b"1;" + b"a" * 65_536 + b"\r\n \r\n")),
    "many chunk extensions": (400, chunked(b"1;a=b;c=d;e=f\r\n \r\n" * 1000)),
    "4096 leading zeros in a chunk size": (400, chunked(b"0" * 4096 + CHUNKS)),
    "4096 leading zeros in a length": (400, message(START, HOST, KEY, b"Content-Length: " + b"0" * 4096 + b"5")),
    "no Host": (400, message(START, KEY, LENGTH)),
    "two Hosts": (400, message(START, HOST, HOST, KEY, LENGTH)),
    "invalid Host": (400, message(START, b"Host: a b@c/", KEY, LENGTH)),
    "HTTP/0.9": (400, b"GET /v1/models\r\n"),
    "HTTP/0.9 with a token": (400, message(b"POST /v1/chat/completions HTTP/0.9", HOST, KEY, LENGTH)),
    "HTTP/2.0": (505, message(b"POST /v1/chat/completions HTTP/2.0", HOST, KEY, LENGTH)),
    "two blanks in the request line": (400, message(b"POST  /v1/chat/completions HTTP/1.1", HOST, KEY, LENGTH)),
    "ftp target": (400, message(b"POST ftp://a/v1/chat/completions HTTP/1.1", HOST, KEY, LENGTH)),
    "asterisk target": (400, message(b"OPTIONS * HTTP/1.1", HOST, KEY, body=b"")),
    "64 KiB target": (414, message(b"POST /v1/chat/completions?" + b"a" * 65_536 + b" HTTP/1.1", HOST, KEY, LENGTH)),
    "CONNECT": (400, message(b"CONNECT localhost:443 HTTP/1.1", HOST, KEY, body=b"")),
    "TRACE": (405, message(b"TRACE /v1/chat/completions HTTP/1.1", HOST, KEY, body=b"")),
    "128 KiB head": (431, message(START, HOST, KEY, b"X-A: " + b"a" * 131_072, LENGTH)),
    "1000 headers": (431, message(START, HOST, KEY, *[b"X-%d: a" % n for n in range(1000)], LENGTH)),
    "framing in a trailer": (400, chunked(CHUNKS[:-2] + b"Content-Length: 5\r\n\r\n")),
    "credential in a trailer": (400, chunked(CHUNKS[:-2] + b"Authorization: Bearer other\r\n\r\n")),
    "Host in a trailer": (400, chunked(CHUNKS[:-2] + b"Host: other\r\n\r\n")),
}


@pytest.fixture(scope="module")
def door(module_router: Callable[..., Router], module_engine: Callable[..., Engine]) -> tuple[Router, Engine]:
    engine = module_engine()
    return module_router(engine), engine


@pytest.mark.parametrize(("status", "raw"), LENIENCIES.values(), ids=LENIENCIES)
def test_parser_leniencies_are_closed(status: int, raw: bytes, door: tuple[Router, Engine]) -> None:
    """T93, and H22: the answer arrives, the connection ends in order, no engine saw anything, the next one works."""
    router, engine = door
    client = router.client()
    client.send(raw.replace(b"KEY", router.key.encode()))
    answered = client.response()
    assert (answered.status, answered.header(b"connection")) == (status, b"close"), answered.body
    assert answered.json["error"]["type"] == "invalid_request_error"
    assert client.is_closed()
    client.close()
    assert router.ask(method=b"GET", path=b"/v1/models").status == 200
    assert engine.requests == []
