"""The real Anthropic SDK in front of engines whose every byte is known: blocks, tools, thinking, pings, broken ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

if TYPE_CHECKING:
    from tests.support.engine import Engine
    from tests.support.router import Router

Routers = Callable[..., "Router"]
Engines = Callable[..., "Engine"]
MODEL = "model-a"
ASK: list[Any] = [{"role": "user", "content": "Set the points for track two."}]
TOOLS: list[Any] = [{"name": "set_points", "input_schema": {"type": "object", "properties": {}}}]
START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "engine-name",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 20,
            "cache_read_input_tokens": 80,
            "cache_creation_input_tokens": 0,
            "output_tokens": 1,
        },
    },
}
STOP = {"type": "message_stop"}


def sdk(up: Router, retries: int = 0) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=f"http://127.0.0.1:{up.port}", api_key=up.key, max_retries=retries, timeout=10.0
    )


def said(document: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (document["type"].encode(), json.dumps(document).encode())


def block(index: int, begun: dict[str, Any], *deltas: dict[str, Any]) -> list[bytes]:
    return [
        said({"type": "content_block_start", "index": index, "content_block": begun}),
        *(said({"type": "content_block_delta", "index": index, "delta": delta}) for delta in deltas),
        said({"type": "content_block_stop", "index": index}),
    ]


def text(*words: str, index: int = 0) -> list[bytes]:
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": word} for word in words))


def stopped(reason: str | None = "end_turn", **usage: int) -> bytes:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return said({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 7, **usage}})


def whole(wire: Any, *blocks: dict[str, Any], stop: str = "end_turn") -> bytes:
    message: Any = {**START["message"], "content": list(blocks), "stop_reason": stop}  # type: ignore[dict-item]
    answer: bytes = wire.answer(json.dumps(message).encode())
    return answer


def test_anthropic_blocks_are_contiguous(router: Routers, script_engine: Engines, wire: Any) -> None:
    """T97: indices start at 0, one stop per start, also after the first engine broke before its first output."""
    broken = script_engine([wire.STREAM_HEAD, wire.chunk(said(START) + text()[0]), wire.Cut(reset=True)])
    thinking = block(
        0, {"type": "thinking", "thinking": "", "signature": ""}, {"type": "thinking_delta", "thinking": "hm"}
    )
    call = block(
        2,
        {"type": "tool_use", "id": "t1", "name": "set_points", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"track"'},
        {"type": "input_json_delta", "partial_json": ": 2}"},
    )
    good = [said(START), *thinking, *text("Now ", "I do.", index=1), *call, stopped("tool_use"), said(STOP)]
    engine = script_engine(wire.stream(*good))
    up = router(broken, engine)
    for _ in range(2):  # whichever comes first
        with sdk(up) as client, client.messages.create(model=MODEL, messages=ASK, max_tokens=9, stream=True) as stream:
            seen = list(stream)
        starts = [event.index for event in seen if event.type == "content_block_start"]
        stops = [event.index for event in seen if event.type == "content_block_stop"]
        assert starts == stops == [0, 1, 2]
        assert [event.type for event in seen].count("message_start") == 1
        assert seen[-1].type == "message_stop"
    assert broken.requests
    assert any(len(fact.attempts) == 2 for fact in up.records.facts)


def test_the_stream_helper_puts_blocks_tools_and_usage_together(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    call = block(
        1,
        {"type": "tool_use", "id": "t1", "name": "set_points", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"track": 2}'},
    )
    up = router(script_engine(wire.stream(said(START), *text("Now."), *call, stopped("tool_use"), said(STOP))))
    with sdk(up) as client, client.messages.stream(model=MODEL, messages=ASK, tools=TOOLS, max_tokens=9) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["text", "tool_use"]
    assert final.content[1].input == {"track": 2}  # type: ignore[union-attr]
    fact = up.records.fact()
    assert (fact.tokens_in, fact.tokens_out, fact.tokens_cached) == (100, 7, 80)
    assert (fact.tools_requested, fact.tools_emitted, fact.dialect) == (True, True, "anthropic")


def test_the_request_travels_byte_for_byte_and_headers_with_it(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    engine = script_engine(whole(wire, {"type": "text", "text": "hi"}))
    up = router(engine)
    body = b'{ "max_tokens":5,"odd":[1e300], "model":"model-a","messages":[{"role":"user","content":"a\\u00e9"}]}'
    answer = up.ask(body, b"anthropic-version: 2023-06-01", b"anthropic-beta: x", path=b"/v1/messages?beta=true")
    assert answer.status == 200
    assert answer.header(b"request-id") == answer.header(b"x-request-id")
    sent = engine.request()
    assert sent.body == body
    assert sent.line == b"POST /v1/messages HTTP/1.1"
    assert (sent.header(b"anthropic-version"), sent.header(b"anthropic-beta")) == (b"2023-06-01", b"x")
    assert sent.header(b"x-api-key") is None


def test_the_endpoint_s_name_of_the_model_is_spliced_in(router: Routers, script_engine: Engines, wire: Any) -> None:
    engine = script_engine(whole(wire, {"type": "text", "text": "hi"}))
    up = router(endpoint=[{"name": "e1", "url": engine.url, "models": [MODEL], "served_as": {MODEL: "tiny"}}])
    with sdk(up) as client:
        client.messages.create(model=MODEL, messages=ASK, max_tokens=9, stop_sequences=["x"])
    sent = engine.request().json
    assert sent == {"model": "tiny", "messages": ASK, "max_tokens": 9, "stop_sequences": ["x"]}


def test_what_an_engine_says_after_the_end_is_dropped(router: Routers, script_engine: Engines, wire: Any) -> None:
    """Older vLLM ends this dialect with the other one's terminator, too."""
    events = [said(START), *text("a"), stopped(), said(STOP), wire.DONE]
    up = router(script_engine(wire.stream(*events)))
    answer = up.ask({"model": MODEL, "messages": ASK, "max_tokens": 9, "stream": True}, path=b"/v1/messages")
    assert answer.whole
    assert answer.body == b"".join(events[:-1])


ENDS: dict[str, list[bytes]] = {
    "without a word": [],
    "without a reason": [said(STOP)],  # what a killed vLLM has been seen to do
    "with no reason named": [stopped(None), said(STOP)],
    "without a stop": [stopped()],
    "with the other dialect's end": [b"data: [DONE]\n\n"],
}


@pytest.mark.parametrize("end", ENDS)
def test_an_end_that_is_none_raises(end: str, router: Routers, script_engine: Engines, wire: Any) -> None:
    up = router(script_engine(wire.stream(said(START), *text("a", "b"), *ENDS[end])))
    with (
        sdk(up) as client,
        pytest.raises(anthropic.APIStatusError, match="interrupted"),
        client.messages.create(model=MODEL, messages=ASK, max_tokens=9, stream=True) as stream,
    ):
        assert all(event.type != "message_stop" for event in stream)
    assert up.records.fact().outcome == "stream_interrupted"


def test_W4_a_broken_stream_ends_with_its_error_event_and_no_terminating_chunk(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    begun = said(START) + text("a")[0] + text("a")[1]
    up = router(script_engine([wire.STREAM_HEAD, wire.chunk(begun), wire.Cut()]))
    asked = {"model": MODEL, "messages": ASK, "max_tokens": 9, "stream": True}
    answer = up.ask(asked, b"x-request-id: track-9", path=b"/v1/messages")
    assert not answer.whole
    shown, last = answer.body.split(b"event: error\ndata: ")
    assert shown == begun
    assert last.endswith(b"}\n\n")
    error = json.loads(last)
    assert (error["type"], error["error"]["type"], error["request_id"]) == ("error", "api_error", "track-9")


def test_a_waiting_client_gets_pings(router: Routers, script_engine: Engines, wire: Any) -> None:
    gate = wire.Gate()
    rest = wire.stream(said(START), *text("a"), stopped(), said(STOP))
    up = router(script_engine([gate, *rest]), relay={"keepalive_s": 0.2})
    client = up.client()
    client.send(up.request({"model": MODEL, "messages": ASK, "max_tokens": 9, "stream": True}, path=b"/v1/messages"))
    head = client.read(b"\r\n\r\n")
    assert b"text/event-stream" in head
    assert b"\r\nrequest-id: " in head
    ping = b'event: ping\ndata: {"type":"ping"}\n\n'
    client.read(ping)
    gate.open()
    assert client.read(said(STOP)).count(b"event: message_start") == 1


def test_a_failure_after_a_ping_raises_in_the_async_sdk_too(router: Routers, script_engine: Engines, wire: Any) -> None:
    gate = wire.Gate()
    up = router(script_engine([gate, wire.answer(b"{}", 500)]), relay={"keepalive_s": 0.2})

    async def story() -> None:
        base_url = f"http://127.0.0.1:{up.port}"
        async with anthropic.AsyncAnthropic(base_url=base_url, api_key=up.key, max_retries=0, timeout=30.0) as client:
            stream = await client.messages.create(model=MODEL, messages=ASK, max_tokens=9, stream=True)
            assert stream.response.headers["request-id"]
            gate.open()
            with pytest.raises(anthropic.APIStatusError) as caught:
                assert [event async for event in stream] == []
            assert caught.value.status_code == 200
            body: Any = caught.value.body
            assert body["type"] == "error"

    asyncio.run(story())
    assert up.records.fact().cls == "upstream"


def test_a_whole_answer_to_a_promised_stream_becomes_one(router: Routers, script_engine: Engines, wire: Any) -> None:
    gate = wire.Gate()
    blocks: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "hi"},
        {"type": "tool_use", "id": "t", "name": "set_points", "input": {"track": 2}},
    ]
    up = router(script_engine([gate, whole(wire, *blocks, stop="tool_use")]), relay={"keepalive_s": 0.2})
    with sdk(up) as client, client.messages.stream(model=MODEL, messages=ASK, max_tokens=9) as stream:
        gate.open()
        final = stream.get_final_message()
    assert [kept.to_dict() for kept in final.content] == blocks
    assert final.stop_reason == "tool_use"


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_inside_a_200_is_tried_elsewhere(
    stream: bool,  # noqa: FBT001 - a parameter
    router: Routers,
    script_engine: Engines,
    wire: Any,
) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "full"}}
    good = [said(START), *text("a"), stopped(), said(STOP)]
    if stream:
        full, able = script_engine(wire.stream(said(error))), script_engine(wire.stream(*good))
    else:
        full = script_engine(wire.answer(json.dumps(error).encode()))
        able = script_engine(whole(wire, {"type": "text", "text": "a"}))
    up = router(full, able)
    for _ in range(2):
        with sdk(up) as client:
            answer: Any = client.messages.create(model=MODEL, messages=ASK, max_tokens=9, stream=stream)
            assert not stream or list(answer)[-1].type == "message_stop"
    kinds = {attempt.error_kind for fact in (up.records.fact(0), up.records.fact(1)) for attempt in fact.attempts}
    assert kinds == {"", "overloaded"}


def test_an_endpoint_is_asked_only_in_dialects_it_speaks(router: Routers, script_engine: Engines, wire: Any) -> None:
    deaf, able = script_engine(), script_engine(whole(wire, {"type": "text", "text": "hi"}))
    up = router(
        endpoint=[
            {"name": "deaf", "url": deaf.url, "models": [MODEL, "other"], "dialects": ["openai"]},
            {"name": "able", "url": able.url, "models": [MODEL]},
            {"name": "small", "url": deaf.url, "models": [MODEL], "family": "llamacpp"},
        ]
    )
    with sdk(up) as client:
        for _ in range(4):
            client.messages.create(model=MODEL, messages=ASK, max_tokens=9)
        with pytest.raises(anthropic.BadRequestError, match="No endpoint of other serves /v1/messages") as caught:
            client.messages.create(model="other", messages=ASK, max_tokens=9)
    assert caught.value.request_id
    assert (len(deaf.requests), len(able.requests)) == (0, 4)
    decision = up.app.gateway.decisions[0][1]
    assert decision.dropped == (("deaf", "dialect_not_spoken"), ("small", "dialect_not_spoken"))
    assert up.records.fact(4).outcome == "unservable"


def test_the_context_precheck_answers_in_this_dialect(router: Routers, script_engine: Engines, wire: Any) -> None:
    """T24: before any attempt, on every dialect; counting tokens is not refused for the size of what is counted."""
    engine = script_engine(wire.answer(b'{"input_tokens":1250}'))
    up = router(endpoint=[{"name": "e1", "url": engine.url, "models": [MODEL], "context_max": 1000}])
    long: list[Any] = [{"role": "user", "content": "a" * 5000}]
    with sdk(up) as client:
        with pytest.raises(anthropic.BadRequestError, match="maximum context length of model-a is 1000") as caught:
            client.messages.create(model=MODEL, messages=long, max_tokens=9)
        assert engine.requests == []
        assert client.messages.count_tokens(model=MODEL, messages=long).input_tokens == 1250
    body: Any = caught.value.body
    assert body["error"]["max"] == 1000


def test_no_retry_multiplication(router: Routers, script_engine: Engines, wire: Any) -> None:
    """T76: SDK × gateway: engines see at most the attempts of one exchange."""
    error = b'{"type":"error","error":{"type":"api_error","message":"no"}}'
    engines = [script_engine(wire.answer(error, 500)) for _ in range(2)]
    up = router(*engines, breaker={"consecutive": 10**6})
    with sdk(up, retries=2) as client, pytest.raises(anthropic.InternalServerError):
        client.messages.create(model=MODEL, messages=ASK, max_tokens=9)
    assert sum(len(engine.requests) for engine in engines) <= 3
    assert len(up.records.facts) == 1


def test_leaving_a_stream_closes_the_engine_s_connection(router: Routers, script_engine: Engines, wire: Any) -> None:
    begun = said(START) + text("a")[0] + text("a")[1]
    engine = script_engine([wire.STREAM_HEAD, wire.chunk(begun), wire.Gate()])
    up = router(engine)
    with sdk(up) as client:
        stream = client.messages.create(model=MODEL, messages=ASK, max_tokens=9, stream=True)
        assert next(stream).type == "message_start"
        stream.close()
    assert engine.request().closed.wait(30)
    assert up.records.fact().outcome == "client_gone"
