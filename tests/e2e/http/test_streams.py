"""Streams and whole answers between a scripted engine and a raw client (request-path §9, §10, §11)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from turnout.core.errors import Outcome

if TYPE_CHECKING:
    from tests.support.client import Client, Response
    from tests.support.engine import Engine
    from tests.support.router import Router

Routers = Callable[..., "Router"]
Engines = Callable[..., "Engine"]
FAST = {
    "timeout": {"first_token_failover_s": 0.8, "first_token_s": 1.2, "stall_s": 1.0},
    "retry": {"attempts_per_model": 2},
}


def ask(router: Router, wire: Any, *lines: bytes, **members: Any) -> Response:
    return router.ask(wire.chat(stream=True, **members), *lines)


def test_W1_the_head_goes_out_with_the_first_output_event(router: Routers, script_engine: Engines, wire: Any) -> None:
    gate = wire.Gate()
    engine = script_engine(
        [
            wire.STREAM_HEAD,
            wire.chunk(wire.event("")),
            gate,
            *wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE)[1:],
        ]
    )
    up = router(engine)
    client = up.client()
    client.send(up.request(wire.chat(stream=True)))
    assert gate.reached.wait(30)
    client.socket.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.socket.recv(1)
    client.socket.settimeout(30)
    gate.open()
    answered = client.response()
    assert answered.header(b"x-turnout-endpoint") == b"e1"
    assert answered.header(b"x-turnout-attempts") == b"1"
    assert float(answered.header(b"x-turnout-ttft-ms") or 0) >= 100
    assert answered.body == wire.event("") + wire.event("a") + wire.event(finish="stop") + wire.DONE


def test_stream_headers(router: Routers, script_engine: Engines, wire: Any) -> None:
    answered = ask(router(script_engine(wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE))), wire)
    assert answered.header(b"content-type") == b"text/event-stream; charset=utf-8"
    assert answered.header(b"cache-control") == b"no-cache"
    assert answered.header(b"x-accel-buffering") == b"no"


def test_W2_keepalive_before_the_first_byte_promises_nothing(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    gate = wire.Gate()
    engine = script_engine(
        [wire.STREAM_HEAD, gate, *wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE)[1:]]
    )
    client = (up := router(engine, relay={"keepalive_s": 0.1})).client()
    client.send(up.request(wire.chat(stream=True)))
    client.read(b": keep-alive\n\n")
    client.read(b": keep-alive\n\n")
    gate.open()
    rest = client.read(b"0\r\n\r\n")
    assert b"data: [DONE]" in rest
    assert up.records.fact().outcome == "completed"


def test_W2_the_early_head_has_no_attempt_headers_and_failover_stays_possible(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    gate = wire.Gate()
    script = wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE)
    bad, good = script_engine([wire.STREAM_HEAD, gate, wire.Cut(reset=True)]), script_engine(script)
    up = router(bad, good, relay={"keepalive_s": 0.1}, scheduling={"policy": "round_robin"})
    client = up.client()
    client.send(up.request(wire.chat(stream=True)))
    if not bad.requests and good.requests:
        client.response()
        client.send(up.request(wire.chat(stream=True)))
    head = client.read(b"\r\n\r\n")
    assert b": keep-alive" in client.read(b": keep-alive\n\n")
    for name in (b"-endpoint", b"-attempts", b"-ttft-ms", b"-fallback-from"):
        assert b"x-turnout" + name not in head
    gate.open()
    assert b"[DONE]" in client.read(b"0\r\n\r\n")
    assert up.records.facts[-1].outcome == "completed"
    assert len(up.records.facts[-1].attempts) == 2


def test_W2_keepalives_come_between_events_and_never_inside_one(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    inside, between = wire.Gate(), wire.Gate()
    half = wire.event("b")
    script = wire.stream(wire.event("a"), half[:20], half[20:], wire.event(finish="stop"), wire.DONE)
    script.insert(3, inside)
    script.insert(2, between)
    client = (up := router(script_engine(script), relay={"keepalive_s": 0.1})).client()
    client.send(up.request(wire.chat(stream=True)))
    client.read(wire.event("a"))
    assert client.read(b": keep-alive\n\n").endswith(b"e\r\n: keep-alive\n\n")
    between.open()
    assert inside.reached.wait(30)
    client.socket.settimeout(0.4)
    with pytest.raises(TimeoutError):  # silence: nothing may come into the middle of an event
        client.buffer = b"".join([client.socket.recv(65_536) for _ in range(4)])
    client.socket.settimeout(30)
    inside.open()
    rest = client.read(b"0\r\n\r\n")
    assert half in rest
    assert b"[DONE]" in rest


def test_W2_no_keepalive_while_no_attempt_is_open(router: Routers, script_engine: Engines, wire: Any) -> None:
    good = wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE)
    up = router(script_engine(wire.answer(b"{}", 503, b"Retry-After: 0.5"), good), relay={"keepalive_s": 0.1})
    answered = ask(up, wire)
    assert answered.header(b"x-turnout-attempts") == b"2"
    assert b"keep-alive" not in answered.body


AFTER_THE_EARLY_HEAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "reset": (lambda w: [w.Cut(reset=True)], "upstream_unreachable"),
    "refusal": (lambda w: [w.answer(b'{"error":{"message":"no"}}', 400)], "stream_interrupted"),
    "rubbish": (lambda w: [b"hello\r\n\r\n"], "upstream_bad_response"),
}


@pytest.mark.parametrize(("then", "code"), AFTER_THE_EARLY_HEAD.values(), ids=AFTER_THE_EARLY_HEAD)
def test_W2_a_failure_after_the_early_head_is_in_band(
    then: Callable[[Any], Any], code: str, router: Routers, script_engine: Engines, wire: Any
) -> None:
    gate = wire.Gate()
    up = router(script_engine([gate, *then(wire)]), relay={"keepalive_s": 0.1}, retry={"attempts_per_model": 1})
    client = up.client()
    client.send(up.request(wire.chat(stream=True)))
    client.read(b": keep-alive\n\n")
    gate.open()
    rest = client.rest()
    assert f'"code":"{code}"'.encode() in rest
    assert not rest.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_W2_a_whole_answer_after_the_early_head_is_an_event(
    version: bytes, router: Routers, script_engine: Engines, wire: Any
) -> None:
    gate = wire.Gate()
    up = router(script_engine([gate, wire.answer()]), relay={"keepalive_s": 0.1})
    client = up.client()
    client.send(up.request(wire.chat(stream=True)).replace(b"HTTP/1.1", version, 1))
    client.read(b": keep-alive\n\n")
    gate.open()
    assert client.read(b"data: " + wire.ANSWER + b"\n\n")


CUTS = {
    "end of connection": lambda w: [w.STREAM_HEAD, w.chunk(w.event("a")), w.Cut()],
    "reset": lambda w: [w.STREAM_HEAD, w.chunk(w.event("a")), w.Cut(reset=True)],
    "end without terminator": lambda w: w.stream(w.event("a")),
    "terminator without finish": lambda w: w.stream(w.event("a"), w.DONE),
    "half an event": lambda w: [*w.stream(w.event("a"), w.event("b")[:30])],
    "error event": lambda w: w.stream(
        w.event("a"), b'data: {"error":{"message":"secret address 10.0.0.7","code":500}}\n\n'
    ),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_W3_a_cut_after_the_commit_is_an_error_event_and_no_end(
    cut: Callable[[Any], Any], router: Routers, script_engine: Engines, wire: Any
) -> None:
    up = router(script_engine(cut(wire)))
    client = up.client()
    client.send(up.request(wire.chat(stream=True)))
    answered = client.response()
    assert (answered.status, answered.whole) == (200, False)
    assert answered.body.startswith(wire.event("a"))
    last = answered.body[len(wire.event("a")) :]
    document = json.loads(last.removeprefix(b"data: "))
    assert document["error"]["code"] == "stream_interrupted"
    assert document["error"]["param"] is None
    assert b"[DONE]" not in answered.body
    assert b"10.0.0.7" not in answered.body
    assert client.is_closed()
    fact = up.records.fact()
    assert (fact.outcome, fact.committed, fact.http_status) == ("stream_interrupted", True, 200)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_truncation_is_never_success(
    cut: Callable[[Any], Any], router: Routers, script_engine: Engines, wire: Any
) -> None:
    """T72."""
    up = router(script_engine(cut(wire)))
    ask(up, wire)
    assert up.records.fact().outcome != "completed"


BEFORE_OUTPUT = {
    "prelude": lambda w: [w.STREAM_HEAD, w.chunk(b'data: {"choices":[],"prompt_filter_results":[]}\n\n'), w.Cut()],
    "role": lambda w: w.stream(
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
    ),
    "comment": lambda w: [w.STREAM_HEAD, w.chunk(b": ping\n\n"), w.Cut(reset=True)],
    "done": lambda w: w.stream(w.DONE),
    "error": lambda w: w.stream(b'data: {"error":{"message":"x","code":503}}\n\n'),
    "no json": lambda w: w.stream(b"data: oops\n\n"),
    "nothing": lambda w: w.stream(),
    "html": lambda w: [w.answer(b"<html>", 200, kind=b"text/html")],
    "half head": lambda w: [b"HTTP/1.1 200", w.Cut()],
    "no http": lambda w: [b"hello there\r\n"],
    "closed": lambda w: [w.Cut(reset=True)],
    "503": lambda w: [w.answer(b'{"error":{"message":"busy"}}', 503)],
    "error in a whole answer": lambda w: [w.answer(b'{"error":{"message":"busy","code":500}}')],
}


@pytest.mark.parametrize("failing", BEFORE_OUTPUT.values(), ids=BEFORE_OUTPUT)
def test_nothing_committed_before_output(
    failing: Callable[[Any], Any], router: Routers, script_engine: Engines, wire: Any
) -> None:
    """T73."""
    good = wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE)
    one, two = script_engine(), script_engine()
    one.scripts = two.scripts = [failing(wire), good]  # shared: whoever is asked first fails, the other one is good
    up = router(one, two)
    client = up.client()
    client.send(up.request(wire.chat(stream=True)))
    answered = client.response()
    assert (answered.status, answered.whole) == (200, True), answered.body
    assert answered.body.endswith(wire.event("a") + wire.event(finish="stop") + wire.DONE)
    assert len(one.requests) + len(two.requests) == 2
    assert up.records.fact().outcome == "completed"


def test_a_bad_chunk_after_the_commit_is_a_cut(router: Routers, script_engine: Engines, wire: Any) -> None:
    gate = wire.Gate()
    up = router(script_engine([wire.STREAM_HEAD, wire.chunk(wire.event("a")), gate, b"zz\r\n"]))
    client = up.client()
    client.send(up.request(wire.chat(stream=True)))
    client.read(wire.event("a"))
    gate.open()
    assert b"stream_interrupted" in client.rest()
    assert up.records.fact().outcome == "stream_interrupted"


def test_W5_a_missing_done_after_the_finish_is_relayed_as_it_came(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    answered = ask(router(script_engine(wire.stream(wire.event("a"), wire.event(finish="stop")))), wire)
    assert (answered.whole, answered.body) == (True, wire.event("a") + wire.event(finish="stop"))


def test_W5_events_after_the_terminator_are_dropped(router: Routers, script_engine: Engines, wire: Any) -> None:
    answered = ask(
        router(script_engine(wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE, wire.event("late")))),
        wire,
    )
    assert answered.body.endswith(wire.DONE)


def test_W6_a_bad_event_is_dropped_and_the_stream_goes_on(router: Routers, script_engine: Engines, wire: Any) -> None:
    answered = ask(
        router(
            script_engine(
                wire.stream(wire.event("a"), b"data: oops\n\n", b": note\n\n", wire.event(finish="stop"), wire.DONE)
            )
        ),
        wire,
    )
    assert answered.body == wire.event("a") + b": note\n\n" + wire.event(finish="stop") + wire.DONE


def test_streaming_usage_is_recorded_and_stripped(router: Routers, script_engine: Engines, wire: Any) -> None:
    """T96."""
    odd = b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}\n\n'
    engine = script_engine(wire.stream(odd, wire.event("a"), wire.event(finish="stop"), wire.USAGE, wire.DONE))
    up = router(engine)
    answered = ask(up, wire)
    assert engine.request().json["stream_options"] == {"include_usage": True}
    assert answered.body == odd + wire.event("a") + wire.event(finish="stop") + wire.DONE
    fact = up.records.fact()
    assert (fact.tokens_in, fact.tokens_out, fact.usage_source) == (3, 2, "engine")


def test_usage_reaches_a_client_that_asked(router: Routers, script_engine: Engines, wire: Any) -> None:
    engine = script_engine(wire.stream(wire.event("a"), wire.event(finish="stop"), wire.USAGE, wire.DONE))
    raw = json.dumps(wire.chat(stream=True, stream_options={"include_usage": True})).encode()
    answered = router(engine).ask(raw)
    assert engine.request().body == raw
    assert wire.USAGE in answered.body


def test_U3_other_stream_options_are_kept(router: Routers, script_engine: Engines, wire: Any) -> None:
    engine = script_engine(wire.stream(wire.event("a"), wire.event(finish="stop"), wire.USAGE, wire.DONE))
    ask(router(engine), wire, stream_options={"continuous_usage_stats": True, "include_usage": False})
    assert engine.request().json["stream_options"] == {"continuous_usage_stats": True, "include_usage": True}


def test_U3_streamed_completions_are_asked_for_usage_and_embeddings_are_not(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    end = b'data: {"choices":[{"index":0,"text":"","finish_reason":"stop"}]}\n\n'
    up = router(engine := script_engine(wire.stream(end, wire.USAGE, wire.DONE), wire.answer()))
    body = {"model": wire.MODEL, "prompt": "a", "stream": True}
    assert up.ask(body, path=b"/v1/completions").body == end + wire.DONE
    assert engine.request(0).json["stream_options"] == {"include_usage": True}
    body = {"model": wire.MODEL, "input": "a", "stream": True}
    assert up.ask(body, path=b"/v1/embeddings").status == 200
    assert engine.request(1).json == body


def test_U4_an_endpoint_that_refuses_stream_options_is_asked_once_more_without(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    refusal = wire.answer(b'{"error":{"message":"Unknown parameter: stream_options"}}', 400)
    good = wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE)
    engine = script_engine([refusal], good)
    up = router(engine)
    assert ask(up, wire).status == 200
    assert "stream_options" in engine.request(0).json
    assert "stream_options" not in engine.request(1).json
    assert ask(up, wire).status == 200
    assert "stream_options" not in engine.request(2).json


def test_U4_missing_usage_is_estimated(router: Routers, script_engine: Engines, wire: Any) -> None:
    up = router(script_engine(wire.stream(wire.event("a"), wire.event("b"), wire.event(finish="stop"), wire.DONE)))
    ask(up, wire)
    fact = up.records.fact()
    assert fact.usage_source == "estimated"
    assert fact.tokens_out


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": -3}, {"prompt_tokens": 3, "completion_tokens": 10**15}])
def test_U4_usage_of_a_whole_answer_that_cannot_be_is_estimated(
    usage: object, router: Routers, script_engine: Engines, wire: Any
) -> None:
    body = json.dumps({"choices": [{"message": {"content": "a" * 40}}], "usage": usage}).encode()
    up = router(script_engine(wire.answer(body)))
    assert up.ask().body == body
    fact = up.records.fact()
    assert (fact.usage_source, fact.tokens_out) == ("estimated", 10)
    assert fact.tokens_in


PIECES = [1, 2, 3, 7, 64, 1000]


@pytest.mark.parametrize("size", PIECES)
def test_any_rechunking_by_the_engine_relays_the_same_bytes(
    size: int, router: Routers, script_engine: Engines, wire: Any
) -> None:
    events = b"".join(
        (
            b": c\n\n",
            wire.event("a"),
            wire.event("b" * 50),
            wire.event('"finish_reason":null'),
            wire.event(finish="stop"),
            wire.USAGE,
            wire.DONE,
        )
    )
    pieces = [wire.chunk(events[at : at + size]) for at in range(0, len(events), size)]
    framed = wire.chunk(events) + b"0\r\n\r\n"
    inside = [framed[at : at + size] for at in range(0, len(framed), size)]
    engine = script_engine([wire.STREAM_HEAD, *pieces, b"0\r\n\r\n"], [wire.STREAM_HEAD, *inside])
    up = router(engine)
    for _ in range(2):  # as chunks of this size, and as reads of this size inside one chunk
        answered = ask(up, wire)
        assert answered.whole
        assert answered.body == events.replace(wire.USAGE, b"")


def test_an_engine_may_write_a_long_answer_byte_by_byte(router: Routers, script_engine: Engines) -> None:
    body = json.dumps({"choices": [], "text": "x" * 6000}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    framed = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    answered = router(script_engine([head, framed, b"0\r\n\r\n"])).ask()
    assert (answered.status, answered.body) == (200, body)


def test_a_stream_until_close_or_by_length_is_relayed(router: Routers, script_engine: Engines, wire: Any) -> None:
    events = wire.event("a") + wire.event(finish="stop") + wire.DONE
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    engine = script_engine(
        [head + b"\r\n" + events, wire.Cut()], [head + b"Content-Length: %d\r\n\r\n" % len(events) + events]
    )
    up = router(engine)
    assert [ask(up, wire).body for _ in range(2)] == [events, events]


def test_L10_an_event_over_the_limit_is_relayed(router: Routers, script_engine: Engines, wire: Any) -> None:
    events = [wire.event("a"), wire.event("x" * 5000), wire.event(finish="stop"), wire.DONE]
    answered = ask(router(script_engine(wire.stream(*events)), relay={"event_max_bytes": 1000}), wire)
    assert (answered.whole, answered.body) == (True, b"".join(events))


def test_L10_a_whole_answer_over_the_limit_is_streamed_from_there(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    body = json.dumps({"choices": [{"message": {"content": "x" * 20_000}}]}).encode()
    up = router(script_engine(wire.answer(body)), relay={"body_hold_bytes": 1000})
    client = up.client()
    client.send(up.request())
    answered = client.response()
    assert (answered.status, answered.whole, answered.body) == (200, True, body)
    client.send(up.request(method=b"GET", path=b"/health"))
    assert client.response().status == 200
    assert up.records.fact().outcome == "completed"


def test_json_where_a_stream_was_asked_is_relayed_as_json(router: Routers, script_engine: Engines, wire: Any) -> None:
    answered = ask(router(script_engine(wire.answer())), wire)
    assert (answered.status, answered.header(b"content-type"), answered.body) == (200, b"application/json", wire.ANSWER)


def test_half_a_whole_answer_is_never_delivered(router: Routers, script_engine: Engines, wire: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    up = router(script_engine([head + b'{"choices":', wire.Cut()]))
    answered = up.ask()
    assert (answered.status, answered.code) == (502, "upstream_bad_response")


# -- W7 ---------------------------------------------------------------------------------------------------------------


def phases(wire: Any) -> dict[str, Any]:
    gate = wire.Gate()
    return {
        "before the head": [gate],
        "inside the head": [b"HTTP/1.1 200 OK\r\n", gate],
        "before the first output": [wire.STREAM_HEAD, wire.chunk(wire.event("")), gate],
        "mid-stream": [wire.STREAM_HEAD, wire.chunk(wire.event("a")), gate],
        "inside a whole answer": [wire.answer()[:-20], gate],
    }


@pytest.mark.parametrize(
    "phase", ["before the head", "inside the head", "before the first output", "mid-stream", "inside a whole answer"]
)
@pytest.mark.parametrize("way", ["close", "reset", "half-close"])
def test_W7_a_client_that_left_closes_the_engines_connection(
    phase: str, way: str, router: Routers, script_engine: Engines, wire: Any
) -> None:
    script = phases(wire)[phase]
    up = router(engine := script_engine(script))
    client = up.client()
    client.send(up.request(wire.chat(stream=phase != "inside a whole answer")))
    assert script[-1].reached.wait(30)
    if phase == "mid-stream":
        client.read(wire.event("a"))
    leave(client, way)
    assert engine.request().closed.wait(30)
    fact = up.records.fact()
    assert (fact.outcome, fact.http_status, fact.cls) == ("client_gone", 499, "cancelled")
    endpoint = up.app.gateway.fleet.endpoints["e1"]
    assert up.call(lambda: (endpoint.in_flight, len(up.app.gateway.runs))) == (0, 0)


def leave(client: Client, way: str) -> None:
    import socket

    if way == "half-close":
        client.socket.shutdown(socket.SHUT_WR)
    else:
        client.close(reset=way == "reset")


def test_W7_a_client_that_leaves_inside_its_body_opens_nothing(router: Routers, script_engine: Engines) -> None:
    up = router(engine := script_engine())
    client = up.client()
    client.send(up.request()[:-5])
    client.close()
    assert up.eventually(lambda: not up.app.listener.connections)
    assert (engine.requests, up.records.facts, up.app.listener.body_bytes) == ([], [], 0)


def test_W7_a_client_that_closes_at_done_was_served(router: Routers, script_engine: Engines, wire: Any) -> None:
    up = router(script_engine(wire.stream(wire.event("a"), wire.event(finish="stop"), wire.USAGE, wire.DONE)))
    client = up.client()
    client.send(up.request(wire.chat(stream=True)))
    client.read(b"[DONE]")
    client.close()
    fact = up.records.fact()
    assert (fact.outcome, fact.tokens_out) == ("completed", 2)


def test_row_survives_closing_client(router: Routers, script_engine: Engines, wire: Any) -> None:
    """T101, W7: the client closes at [DONE] while the engine has not ended its framing yet."""
    gate = wire.Gate()
    script = wire.stream(wire.event("a"), wire.event(finish="stop"), wire.USAGE, wire.DONE)
    up = router(engine := script_engine([*script[:-1], gate]))
    client = up.client()
    client.send(up.request(wire.chat(stream=True)))
    client.read(b"[DONE]")
    client.close()
    fact = up.records.fact()
    assert (fact.outcome, fact.tokens_in, fact.tokens_out, fact.usage_source) == ("completed", 3, 2, "engine")
    assert engine.request().closed.wait(30)
    assert up.app.gateway.fleet.endpoints["e1"].in_flight == 0


def test_L9_a_client_that_takes_nothing_is_gone_and_the_engine_is_paused(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    big = wire.chunk(wire.event("x" * 60_000))
    engine = script_engine([wire.STREAM_HEAD, *[big] * 500])
    up = router(engine, server={"write_idle_s": 0.3}, timeout={"stall_s": 30})
    client = up.client()
    client.send(up.request(wire.chat(stream=True)))
    client.read(b"\r\n\r\n")
    fact = up.records.fact()
    assert fact.outcome == "client_gone"
    assert engine.request().closed.wait(30)


# -- endings ----------------------------------------------------------------------------------------------------------


def test_U2_a_final_refusal_is_relayed_verbatim(router: Routers, script_engine: Engines, wire: Any) -> None:
    body = b'{ "error" : {"message":"bad \xc3\xa9","x":[1, 2]} }'
    script = wire.answer(
        body,
        400,
        b"Retry-After: 7",
        b"X-Should-Retry: false",
        b"Server: nginx",
        b"Set-Cookie: a=b",
        b"X-Request-Id: up",
        b"X-RateLimit-Limit: 5",
        kind=b"application/problem+json",
    )
    up = router(script_engine(script))
    answered = up.ask()
    assert (answered.status, answered.body) == (400, body)
    assert answered.header(b"content-type") == b"application/problem+json"
    assert answered.header(b"retry-after") == b"7"
    assert answered.header(b"x-should-retry") == b"false"
    assert answered.header(b"x-upstream-ratelimit-limit") == b"5"
    assert answered.header(b"x-upstream-request-id") == b"up"
    assert answered.header(b"server") is None
    assert answered.header(b"set-cookie") is None
    assert answered.header(b"x-request-id") != b"up"
    assert up.records.fact().outcome == "upstream_answered"


def test_U2_a_refusal_over_64_kib_is_our_envelope_with_its_status(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    answered = router(script_engine(wire.answer(b"x" * 70_000, 422))).ask()
    assert answered.status == 422
    assert "error" in answered.json


@pytest.mark.parametrize("status", [401, 402, 403])
def test_U5_a_refusal_of_our_own_credential_is_never_shown(
    status: int, router: Routers, script_engine: Engines, wire: Any
) -> None:
    answered = router(script_engine(wire.answer(b'{"error":{"message":"bad key sk-our-own"}}', status))).ask()
    assert (answered.status, answered.code) == (502, "upstream_credential")
    assert b"sk-our-own" not in answered.body


def test_U6_response_headers(router: Routers, script_engine: Engines, wire: Any) -> None:
    lines = [
        b"OpenAI-Version: 2020-10-01",
        b"OpenAI-Organization: org",
        b"Alt-Svc: h3",
        b"CF-Ray: 1",
        b"X-Turnout-Model: fake",
        b"Connection: X-Hop",
        b"X-Hop: 1",
        b"Keep-Alive: timeout=5",
    ]
    answered = router(script_engine(wire.answer(wire.ANSWER, 200, *lines))).ask()
    assert answered.header(b"openai-version") == b"2020-10-01"
    for name in (b"openai-organization", b"alt-svc", b"cf-ray", b"x-hop", b"keep-alive"):
        assert answered.header(name) is None
    assert [v for k, v in answered.headers if k == b"x-turnout-model"] == [b"model-a"]


@pytest.mark.parametrize(
    ("script", "status", "code", "outcome"),
    [
        (lambda w: [w.Cut(reset=True)], 502, "upstream_unreachable", "upstream_unreachable"),
        (lambda w: [b"nonsense\r\n\r\n"], 502, "upstream_bad_response", "upstream_invalid"),
        (lambda w: [b"HTTP/1.1 101 Switching\r\n\r\n"], 502, "upstream_bad_response", "upstream_invalid"),
        (
            lambda w: [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"],
            502,
            "upstream_bad_response",
            "upstream_invalid",
        ),
        (lambda w: [w.Gate()], 504, "upstream_timeout", "upstream_timeout"),
        (lambda w: [w.answer(b"{}", 500)], 500, None, "upstream_answered"),
    ],
)
def test_endings_that_are_the_engines_fault(
    script: Any, status: int, code: str | None, outcome: str, router: Routers, script_engine: Engines, wire: Any
) -> None:
    up = router(script_engine(script(wire)), **FAST)
    answered = ask(up, wire)
    assert answered.status == status
    if code is not None:
        assert answered.code == code
        assert "127.0.0.1" not in answered.body.decode()
    assert up.records.fact().outcome == outcome
    assert outcome in set(Outcome)


def test_deadline_before_output_is_504_and_after_it_in_band(router: Routers, script_engine: Engines, wire: Any) -> None:
    up = router(script_engine([wire.Gate()], [wire.STREAM_HEAD, wire.chunk(wire.event("a")), wire.Gate()]))
    answered = ask(up, wire, b"x-turnout-timeout-ms: 200")
    assert (answered.status, answered.code) == (504, "deadline_exceeded")
    answered = ask(up, wire, b"x-turnout-timeout-ms: 200")
    assert (answered.status, answered.whole) == (200, False)
    assert b'"deadline_exceeded"' in answered.body
    assert [fact.outcome for fact in up.records.facts] == ["deadline_exceeded"] * 2


def test_a_stalled_stream_ends_in_band(router: Routers, script_engine: Engines, wire: Any) -> None:
    up = router(engine := script_engine([wire.STREAM_HEAD, wire.chunk(wire.event("a")), wire.Gate()]), **FAST)
    answered = ask(up, wire)
    assert (answered.whole, b"stream_interrupted" in answered.body) == (False, True)
    assert engine.request().closed.wait(30)


def test_a_bug_of_ours_is_a_500_for_one_exchange_and_nothing_leaks(router: Routers, script_engine: Engines) -> None:
    up = router(script_engine(), script_engine(), scheduling={"policy": "random"})
    gateway = up.app.gateway
    alarms: list[str] = []  # of exchanges: probes, too, draw from this generator

    class Broken:
        def random(self) -> float:
            raise ValueError("a bug of ours")

        def __getattr__(self, name: str) -> Any:
            raise ValueError("a bug of ours")

    good, gateway.rng = gateway.rng, Broken()
    up.call(lambda: gateway.loop.set_exception_handler(lambda _, context: alarms.append(context["message"])))
    answered = up.ask()
    gateway.rng = good
    up.call(lambda: gateway.loop.set_exception_handler(None))
    assert (answered.status, answered.code) == (500, "internal")
    assert up.records.fact().outcome == "internal_error"
    assert alarms.count("an exchange met a bug") == 1
    assert not gateway.runs
    assert up.ask().status == 200
