"""How engines fail in front of a client: what is hidden, what is shown, what is counted (resilience, faults F04–F27)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from turnout.http.client import EndpointPool

if TYPE_CHECKING:
    from tests.support.client import Response
    from tests.support.engine import Engine
    from tests.support.router import Router

Routers = Callable[..., "Router"]
Engines = Callable[..., "Engine"]
ONE = {"retry": {"attempts_per_model": 1}}
NEVER_OPEN = {"breaker": {"consecutive": 10**6, "ratio_min": 10**6}}


def ask(up: Router, wire: Any, *lines: bytes, **members: Any) -> Response:
    return up.ask(wire.chat(stream=True, **members), *lines)


def good(wire: Any) -> Any:
    return wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE)


# -- what an engine says is what a client reads -----------------------------------------------------------------------


AFTER_OUTPUT = {
    "cut": lambda w: [w.STREAM_HEAD, w.chunk(w.event("a")), w.Cut()],
    "reset": lambda w: [w.STREAM_HEAD, w.chunk(w.event("a")), w.Cut(reset=True)],
    "stall": lambda w: [w.STREAM_HEAD, w.chunk(w.event("a")), w.Gate()],
    "error event": lambda w: w.stream(w.event("a"), b'data: {"error":{"message":"boom","code":500}}\n\n'),
    "no finish reason": lambda w: w.stream(w.event("a"), w.DONE),
}


@pytest.mark.parametrize("script", AFTER_OUTPUT.values(), ids=AFTER_OUTPUT)
def test_error_is_never_content(script: Any, router: Routers, script_engine: Engines, wire: Any) -> None:
    """T22: no text, no finish reason and no terminator that no engine sent."""
    up = router(script_engine(script(wire)), timeout={"stall_s": 1.0})
    answered = ask(up, wire)
    assert not answered.whole
    events = [json.loads(part.removeprefix(b"data: ")) for part in answered.body.split(b"\n\n") if part]
    choices = [choice for event in events for choice in event.get("choices", [])]
    assert [choice["delta"] for choice in choices] == [{"content": "a"}]
    assert [choice["finish_reason"] for choice in choices] == [None]
    assert list(events[-1]) == ["error"]
    assert b"[DONE]" not in answered.body


BUSY = b'{"error":{"message":"The engine is at its limit: try later \\u2014 please", "code": "busy"} }'


@pytest.mark.parametrize("stream", [False, True])
def test_upstream_503_passes_intact(
    stream: bool,  # noqa: FBT001 - a parameter
    router: Routers,
    script_engine: Engines,
    wire: Any,
) -> None:
    """T28: status, Retry-After, body and wording."""
    script = wire.answer(BUSY, 503, b"Retry-After: 7.5", b"X-Should-Retry: true", kind=b"application/problem+json")
    answered = router(script_engine(script), **ONE).ask(wire.chat(stream=stream))
    assert (answered.status, answered.body) == (503, BUSY)
    assert answered.header(b"retry-after") == b"7.5"
    assert answered.header(b"x-should-retry") == b"true"
    assert answered.header(b"content-type") == b"application/problem+json"


def test_Y2_after_several_attempts_the_shortest_retry_after_is_rounded_up(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    engines = [
        script_engine(wire.answer(BUSY, 503, b"Retry-After: " + text, b"X-Should-Retry: true"))
        for text in (b"30", b"20.2")
    ]
    answered = router(*engines, retry={"attempts_per_model": 2}).ask()
    assert (answered.status, answered.body) == (503, BUSY)
    assert answered.header(b"retry-after") == b"21"
    assert [value for name, value in answered.headers if name == b"x-should-retry"] == [b"false"]


def test_N9_our_own_error_tells_every_attempt_without_an_address(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    up = router(
        script_engine([wire.Cut(reset=True)]), script_engine([wire.Cut(reset=True)]), retry={"attempts_per_model": 2}
    )
    answered = up.ask()
    assert answered.status == 502
    message = answered.json["error"]["message"]
    assert sorted(message.rpartition(". ")[2].split("; ")) == ["e1=connection_reset(-)", "e2=connection_reset(-)"]
    assert "127.0.0.1" not in message
    assert answered.header(b"x-should-retry") == b"false"


# -- who is asked next ------------------------------------------------------------------------------------------------


PLAIN_400 = [400, 404, 405, 409, 413, 415, 422]


@pytest.mark.parametrize("status", PLAIN_400)
def test_plain_400_never_fails_over(status: int, router: Routers, script_engine: Engines, wire: Any) -> None:
    """T77: one attempt, one bill."""
    engines = [script_engine(wire.answer(b'{"error":{"message":"a field is wrong"}}', status)) for _ in range(2)]
    up = router(*engines)
    assert [up.ask().status, ask(up, wire).status] == [status, status]
    assert sum(len(engine.requests) for engine in engines) == 2
    assert [len(fact.attempts) for fact in up.records.facts] == [1, 1]


def test_client_fault_opens_no_breaker(router: Routers, script_engine: Engines, wire: Any) -> None:
    """T49: a hundred refusals for the client's own fault, and a hundred cancels."""
    statuses = [400, 413, 422]
    scripts: list[Any] = [[wire.answer(b'{"error":{"message":"no"}}', statuses[n % 3])] for n in range(100)]
    up = router(engine := script_engine(*scripts, [wire.Gate()]))
    for number in range(100):
        assert up.ask().status == statuses[number % 3]
    for number in range(100):
        client = up.client()
        client.send(up.request(wire.chat(stream=number % 2 == 0)))
        engine.request(100 + number)
        client.close()
    assert up.records.fact(199).outcome == "client_gone"
    breaker = up.app.gateway.fleet.endpoints["e1"].breaker
    assert (breaker.state, breaker.opens_total) == ("closed", 0)


FAILURES = {
    "error": (lambda w: [w.event("a"), b'data: {"error":{"message":"boom","code":500}}\n\n'], "server_error"),
    "cut": (lambda w: [w.event("a")], "stream_cut"),
    "stall": (lambda w: [w.event("a"), None], "timeout_stall"),
    "error first": (lambda w: [b'data: {"error":{"message":"boom","code":500}}\n\n'], "server_error"),
    "cut first": (lambda w: [w.event("")], "bad_response"),
    "silence first": (lambda w: [w.event(""), None], "timeout_first_token"),
}


@pytest.mark.parametrize(("events", "kind"), FAILURES.values(), ids=FAILURES)
def test_stream_failures_are_failures(
    events: Any, kind: str, router: Routers, script_engine: Engines, wire: Any
) -> None:
    """T71: inside a 200 they count for breaker, metric and row, and lead elsewhere while nothing was shown."""
    pieces = events(wire)
    script = wire.stream(*(piece for piece in pieces if piece is not None))
    if None in pieces:
        script[-1] = wire.Gate()
    one, two = script_engine(), script_engine()
    one.scripts = two.scripts = [script, good(wire)]
    # Only silence is waited for; the last possible attempt has patience with a busy machine.
    limit = 1.0 if None in pieces else 30.0
    timeout = {"stall_s": limit, "first_token_s": 30.0, "first_token_failover_s": limit}
    up = router(one, two, timeout=timeout, breaker={"consecutive": 1})
    answered = ask(up, wire)
    shown = wire.event("a") in pieces
    fact = up.records.fact()
    assert [attempt.error_kind for attempt in fact.attempts] == ([kind] if shown else [kind, ""])
    assert (fact.outcome, answered.whole) == (("stream_interrupted", False) if shown else ("completed", True))
    failed = fact.attempts[0]
    assert failed.route is not None
    assert (failed.ok, failed.counted) == (False, True)
    assert up.app.meter.attempts[failed.route.replica, kind] == 1
    assert up.app.gateway.fleet.endpoints[failed.route.replica].breaker.state == "open"


INSTANT = {
    "500": lambda w: [w.answer(b"{}", 500)],
    "429 mid-stream": lambda w: w.stream(b'data: {"error":{"message":"slow down","code":429}}\n\n'),
    "reset": lambda w: [w.Cut(reset=True)],
    "rubbish": lambda w: [b"\x00\x01\x02\r\n\r\n"],
}


@pytest.mark.parametrize("script", INSTANT.values(), ids=INSTANT)
def test_retry_loop_cannot_spin(script: Any, router: Routers, script_engine: Engines, wire: Any) -> None:
    """T74: bounded attempts and an idle CPU, however fast everything fails."""
    engines = [script_engine(script(wire)) for _ in range(3)]
    up = router(*engines, **NEVER_OPEN)
    used, began = time.process_time(), time.monotonic()
    answers = [ask(up, wire) for _ in range(5)]
    assert all(answered.status >= 400 for answered in answers)
    resent = sum(upstream.pool.reuses_total for upstream in up.app.gateway.upstreams.values())  # F04: no attempts
    assert sum(len(engine.requests) for engine in engines) <= 5 * 3 + resent
    assert all(len(fact.attempts) <= 3 for fact in up.records.facts)
    assert time.process_time() - used < 1.0 + 0.5 * (time.monotonic() - began)


def test_Y1_a_long_retry_after_is_not_waited_for(router: Routers, script_engine: Engines, wire: Any) -> None:
    up = router(engine := script_engine(wire.answer(b"{}", 429, b"Retry-After: 60"), [wire.answer()]))
    began = time.monotonic()
    answered = up.ask()
    assert (answered.status, len(engine.requests)) == (429, 1)
    assert time.monotonic() - began < 30
    assert answered.header(b"retry-after") == b"60"


def test_B3_a_breaker_stays_open_as_long_as_the_engine_asked(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    up = router(script_engine(wire.answer(b"{}", 503, b"Retry-After: 40")), **ONE)
    for _ in range(3):
        assert up.ask().status == 503
    breaker = up.app.gateway.fleet.endpoints["e1"].breaker
    assert breaker.state == "open"
    assert 10 < breaker.reopen_at - time.monotonic() <= 40


def test_dead_owner_gets_one_attempt(router: Routers, script_engine: Engines, wire: Any) -> None:
    """T78: the endpoint that holds the prefix is gone: asked once, then not again while it is away."""
    engines = {"e1": script_engine(), "e2": script_engine()}
    up = router(*engines.values(), probe={"interval_s": 600})
    long = wire.chat(messages=[{"role": "user", "content": "a" * 4000}])
    owner = (up.ask(long).header(b"x-turnout-endpoint") or b"").decode()
    assert (up.ask(long).header(b"x-turnout-endpoint") or b"").decode() == owner
    engines[owner].stop()
    answers = [up.ask(long) for _ in range(10)]
    assert [answered.status for answered in answers] == [200] * 10
    lost = [a for fact in up.records.facts for a in fact.attempts if a.error_kind]
    assert len(lost) <= 1


# -- connections to engines -------------------------------------------------------------------------------------------


def test_a_kept_connection_that_died_is_no_attempt_and_nobody_s_fault(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    """F04: the engine's idle time-out raced the request; it is sent again on a fresh connection."""
    up = router(
        engine := script_engine([wire.answer()], [wire.Cut(reset=True)], [wire.answer()]), probe={"interval_s": 600}
    )
    assert up.ask().status == 200
    answered = up.ask()
    assert (answered.status, answered.header(b"x-turnout-attempts")) == (200, b"1")
    assert len(engine.requests) == 3
    assert up.app.gateway.fleet.endpoints["e1"].breaker.state == "closed"
    assert [len(fact.attempts) for fact in up.records.facts] == [1, 1]


def test_a_connection_closed_while_idle_is_not_used(router: Routers, script_engine: Engines, wire: Any) -> None:
    gate = wire.Gate()
    up = router(engine := script_engine([wire.answer(), gate, wire.Cut()], [wire.answer()]), probe={"interval_s": 600})
    assert up.ask().status == 200
    pool = up.app.gateway.upstreams["e1"].pool
    assert isinstance(pool, EndpointPool)
    gate.open()
    assert up.eventually(lambda: not pool._open)
    assert up.ask().header(b"x-turnout-attempts") == b"1"
    assert len(engine.requests) == 2


def test_D8_idle_connections_to_engines_are_closed_by_us(router: Routers, script_engine: Engines) -> None:
    up = router(engine := script_engine(), pool={"idle_s": 0.2}, probe={"interval_s": 600})
    assert up.ask().status == 200
    assert engine.request().closed.wait(30)
    assert up.ask().status == 200


SPOILED = {
    "bytes after the answer": lambda w: [w.answer() + b"surplus"],
    "a second answer": lambda w: [w.answer() + w.answer()],
    "Connection: close": lambda w: [w.answer(w.ANSWER, 200, b"Connection: close")],
    "HTTP/1.0": lambda w: [w.answer().replace(b"HTTP/1.1", b"HTTP/1.0")],
    "until close": lambda w: [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + w.ANSWER,
        w.Cut(),
    ],
}


@pytest.mark.parametrize("script", SPOILED.values(), ids=SPOILED)
def test_F16_F17_a_connection_that_is_not_clean_is_not_kept_and_its_answer_is_delivered(
    script: Any, router: Routers, script_engine: Engines, wire: Any
) -> None:
    # However long the test has to wait for its turn, the prober's connection is still there.
    up = router(engine := script_engine(script(wire)), probe={"interval_s": 600}, pool={"idle_s": 600})
    pool = up.app.gateway.upstreams["e1"].pool
    assert isinstance(pool, EndpointPool)
    assert up.eventually(lambda: len(engine.probes) == 2 and len(pool._idle) == 1)
    before = pool.reuses_total
    for number in range(3):
        answered = up.ask()
        assert (answered.status, answered.body) == (200, wire.ANSWER)
        assert engine.request(number).closed.wait(30)
    assert pool.reuses_total == before + 1  # the first one rode on the prober's


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
INVALID = {
    "banner": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/0.9": b"<html>hello</html>",
    "length and coding": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "bad length": HEAD + b"Content-Length: 2, 2\r\n\r\n{}",
    "unknown coding": HEAD + b"Transfer-Encoding: gzip\r\n\r\n{}",
    "bad chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "bare LF": HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 2\n\n{}\r\n\r\n",
    "NUL in a header": HEAD + b"X-A: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
    "folded header": HEAD + b"X-A: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "status 000": b"HTTP/1.1 000 No\r\nContent-Length: 2\r\n\r\n{}",
    "status 999": b"HTTP/1.1 999 No\r\nContent-Length: 2\r\n\r\n{}",
    "status 101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "nine early hints": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 9 + HEAD + b"Content-Length: 2\r\n\r\n{}",
    "head over 64 KiB": HEAD + b"X-A: " + b"a" * 70_000 + b"\r\nContent-Length: 2\r\n\r\n{}",
    "300 headers": HEAD + b"X-A: a\r\n" * 300 + b"Content-Length: 2\r\n\r\n{}",
    "HTML": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\n{}",
    "empty": HEAD + b"Content-Length: 0\r\n\r\n",
    "no object": HEAD + b"Content-Length: 4\r\n\r\n[{}]",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
}


WELL_FRAMED = [INVALID[name] for name in ("no object", "204", "redirect")]


@pytest.mark.parametrize("raw", INVALID.values(), ids=INVALID)
@pytest.mark.parametrize("stream", [False, True])
def test_F13_to_F21_an_answer_that_is_none_is_502_and_its_connection_is_closed(
    raw: bytes,
    stream: bool,  # noqa: FBT001 - a parameter
    router: Routers,
    script_engine: Engines,
    wire: Any,
) -> None:
    up = router(engine := script_engine([raw]), **ONE, **NEVER_OPEN)
    answered = up.ask(wire.chat(stream=stream))
    assert (answered.status, answered.code) == (502, "upstream_bad_response"), answered.body
    assert up.records.fact().outcome == "upstream_invalid"
    assert [a.error_kind for a in up.records.fact().attempts] == ["bad_response"]
    assert raw in WELL_FRAMED or engine.request().closed.wait(30)
    engine.says([wire.answer()])
    assert up.ask().status == 200


def test_F18_early_hints_are_swallowed(router: Routers, script_engine: Engines, wire: Any) -> None:
    hints = b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" * 7
    answered = router(script_engine([hints + wire.answer()])).ask()
    assert (answered.status, answered.body) == (200, wire.ANSWER)


@pytest.mark.parametrize("after", [0, 5])
def test_F15_a_body_shorter_than_announced_is_replaced(
    after: int, router: Routers, script_engine: Engines, wire: Any
) -> None:
    one, two = script_engine(), script_engine()
    short = [HEAD + b"Content-Length: 100\r\n\r\n" + wire.ANSWER[:after], wire.Cut()]
    one.scripts = two.scripts = [short, [wire.answer()]]
    answered = router(one, two).ask()
    assert (answered.status, answered.body, answered.header(b"x-turnout-attempts")) == (200, wire.ANSWER, b"2")


def test_C6_the_context_that_an_engine_reports_is_the_one_that_counts(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    engine = script_engine()
    engine.models = b'{"object":"list","data":[{"id":"model-a","max_model_len":50}]}'
    up = router(engine)
    assert up.eventually(lambda: up.app.gateway.fleet.endpoints["e1"].context_max == 50)
    answered = up.ask(wire.chat(messages=[{"role": "user", "content": "a" * 400}]))
    assert (answered.code, answered.json["error"]["max"]) == ("context_length_exceeded", 50)
    assert up.ask(method=b"GET", path=b"/v1/models/model-a").json["max_model_len"] == 50
