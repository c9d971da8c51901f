"""P6: one endpoint of three that fails in any way of resilience §2 costs no client an error before its first output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.router import Router

Routers = Callable[..., "Router"]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
JSON = HEAD + b"Content-Length: %d\r\n\r\n%b"


def error(status: int, code: str = "", *lines: bytes) -> Callable[[Any], Any]:
    """A refusal as engines write it."""
    body = b'{"error":{"message":"no","code":"%b"}}' % code.encode()
    return lambda wire: [wire.answer(body, status, *lines)]


def raw(data: bytes, *, cut: bool = False) -> Callable[[Any], Any]:
    return lambda wire: [data, *([wire.Cut()] if cut else [])]


def in_stream(document: bytes) -> Callable[[Any], Any]:
    return lambda wire: wire.stream(b"data: " + document + b"\n\n")


# The kind of §2, and a way to bring it about; each takes an answer of every mode unless it needs a stream.
WAYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "closed before the head": ("connection_reset", lambda w: [w.Cut()]),
    "reset before the head": ("connection_reset", lambda w: [w.Cut(reset=True)]),
    "429": ("rate_limit", error(429)),
    "429 for a minute": ("rate_limit", error(429, "", b"Retry-After: 60")),
    "503": ("overloaded", error(503)),
    "529": ("overloaded", error(529)),
    "overloaded inside a 200": ("overloaded", raw(JSON % (41, b'{"error":{"message":"busy","code":"503"}} '))),
    "500": ("server_error", error(500)),
    "502": ("server_error", error(502)),
    "504": ("server_error", error(504)),
    "599": ("server_error", error(599)),
    "408": ("upstream_408", error(408)),
    "no HTTP": ("bad_response", raw(b"SSH-2.0-OpenSSH_9.6\r\n")),
    "two framings": ("bad_response", raw(HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}")),
    "status 999": ("bad_response", raw(b"HTTP/1.1 999 No\r\nContent-Length: 2\r\n\r\n{}")),
    "101": ("bad_response", raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")),
    "nine hints": ("bad_response", raw(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 9 + JSON % (2, b"{}"))),
    "70 KB of head": ("bad_response", raw(HEAD + b"X-A: " + b"a" * 70_000 + b"\r\nContent-Length: 2\r\n\r\n{}")),
    "300 lines": ("bad_response", raw(HEAD + b"X-A: a\r\n" * 300 + b"Content-Length: 2\r\n\r\n{}")),
    "HTML": ("bad_response", raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\n{}")),
    "nothing": ("bad_response", raw(JSON % (0, b""))),
    "a body too short": ("bad_response", raw(JSON % (100, b'{"id"'), cut=True)),
    "another model": ("model_unavailable", error(404, "the model model-a does not exist")),
    "401": ("auth_error", error(401)),
    "403": ("auth_error", error(403)),
    "402": ("payment_required", error(402)),
    "a prompt too long": ("context_overflow", error(400, "context_length_exceeded")),
    "too large": ("context_overflow", error(413, "context_length_exceeded")),
}
STREAM_WAYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "an error event of 500": ("server_error", in_stream(b'{"error":{"message":"boom","code":500}}')),
    "an error event of 429": ("rate_limit", in_stream(b'{"error":{"message":"slow down","code":429}}')),
    "no JSON first": ("bad_response", in_stream(b"{nonsense")),
    "an end without an event": ("bad_response", lambda w: [w.STREAM_HEAD, b"0\r\n\r\n"]),
    "a role and the end": ("bad_response", lambda w: w.stream(w.event(""))),
    "a role and a cut": ("bad_response", lambda w: [w.STREAM_HEAD, w.chunk(w.event("")), w.Cut()]),
}
CASES = {
    f"{name}, {'streamed' if stream else 'whole'}": (*way, stream) for name, way in WAYS.items() for stream in (0, 1)
}
CASES |= {name: (*way, 1) for name, way in STREAM_WAYS.items()}
ASKED = 20


def pool(router: Routers, script_engine: Any, wire: Any, failing_url: str, *, stream: bool, **tables: Any) -> Router:
    """One endpoint that fails, two that answer; nothing but the failures themselves keeps anybody away."""
    good = wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE) if stream else [wire.answer()]
    urls = {"e1": failing_url, "e2": script_engine(good).url, "e3": script_engine(good).url}
    table = [{"name": name, "url": url, "models": [wire.MODEL]} for name, url in urls.items()]
    return router(endpoint=table, **{"probe": {"interval_s": 600, "timeout_s": 60}, **tables})


def all_served(up: Router, wire: Any, *, stream: bool) -> set[str]:
    """Ask many times; every answer is whole. Returns the kinds of the failures that nobody saw."""
    for _ in range(ASKED):
        answered = up.ask(wire.chat(stream=stream))
        assert (answered.status, answered.whole) == (200, True), answered.body
        assert b'"error"' not in answered.body
    assert [up.records.fact(number).outcome for number in range(ASKED)] == ["completed"] * ASKED
    return {a.error_kind for fact in up.records.facts for a in fact.attempts} - {""}


@pytest.mark.parametrize(("kind", "script", "stream"), CASES.values(), ids=CASES)
def test_P6_one_endpoint_that_fails_costs_no_client_an_error(
    kind: str, script: Any, stream: int, router: Routers, script_engine: Any, wire: Any, rests: Any
) -> None:
    up = pool(router, script_engine, wire, script_engine(script(wire)).url, stream=bool(stream))
    assert all_served(up, wire, stream=bool(stream)) == {kind}
    assert rests(up)


SILENCES: dict[str, tuple[str, Callable[[Any], Any], bool]] = {
    "no head of a stream": ("timeout_first_token", lambda w: [w.Gate()], True),
    "no output event": ("timeout_first_token", lambda w: [w.STREAM_HEAD, w.chunk(w.event("")), w.Gate()], True),
    "no whole answer": ("timeout_response", lambda w: [w.Gate()], False),
}


@pytest.mark.parametrize("place", ["virtual"])  # minutes have to pass, and a slow machine is no silent engine
@pytest.mark.parametrize(("kind", "script", "stream"), SILENCES.values(), ids=SILENCES)
def test_P6_one_endpoint_that_says_nothing_costs_no_client_an_error(
    kind: str,
    script: Any,
    stream: bool,  # noqa: FBT001 - a column
    router: Routers,
    script_engine: Any,
    wire: Any,
    rests: Any,
) -> None:
    silent = script_engine(script(wire))
    up = pool(router, script_engine, wire, silent.url, stream=stream, timeout={"response_unknown_s": 40.0})
    assert all_served(up, wire, stream=stream) == {kind}
    assert rests(up)


def test_P6_one_endpoint_that_takes_no_connection_costs_no_client_an_error(
    router: Routers, script_engine: Any, wire: Any, rests: Any
) -> None:
    gone = script_engine()
    up = pool(router, script_engine, wire, gone.url, stream=False)
    assert up.eventually(lambda: len(gone.probes) >= 1)
    gone.stop()
    assert all_served(up, wire, stream=False) <= {"connect_error"}  # a kept connection that closed tells it, too
    assert rests(up)
