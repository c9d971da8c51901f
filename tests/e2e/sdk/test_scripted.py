"""The real SDK in front of engines whose every byte is known: tools, odd fields, error classes, retries, leaving."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from tests.support.engine import Engine
    from tests.support.router import Router

Routers = Callable[..., "Router"]
Engines = Callable[..., "Engine"]
MODEL = "model-a"
ASK: list[Any] = [{"role": "user", "content": "Set the points for track two."}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "set_points",
            "description": "Sets the points — carefully.",
            "parameters": {"type": "object", "properties": {"track": {"type": "integer"}}, "required": ["track"]},
            "strict": True,
        },
    }
]


def sdk(up: Router, retries: int = 0, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=up.base_url, api_key=key or up.key, max_retries=retries, timeout=30.0)


def whole(wire: Any, message: dict[str, object], finish: str = "stop", **members: object) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, "logprobs": None}
    document = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "engine-name",
        "choices": [choice],
        **members,
    }
    answer: bytes = wire.answer(json.dumps(document).encode())
    return answer


def delta(delta: dict[str, object], finish: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    document = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(document).encode() + b"\n\n"


CALL = {"id": "call_1", "type": "function", "function": {"name": "set_points", "arguments": '{"track": 2}'}}


def test_tools_pass_through_untouched(router: Routers, script_engine: Engines, wire: Any) -> None:
    engine = script_engine(whole(wire, {"content": None, "tool_calls": [CALL]}, "tool_calls"))
    up = router(engine)
    turns: list[Any] = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"done": true}'},
    ]
    choice: Any = {"type": "function", "function": {"name": "set_points"}}
    with sdk(up) as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=turns, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False
        )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.model_dump() == CALL
    assert answer.choices[0].finish_reason == "tool_calls"
    sent = engine.request().json
    assert (sent["tools"], sent["tool_choice"], sent["parallel_tool_calls"]) == (TOOLS, choice, False)
    assert sent["messages"] == turns
    fact = up.records.fact()
    assert fact.tools_requested


def test_streamed_tool_calls_arrive_piece_by_piece(router: Routers, script_engine: Engines, wire: Any) -> None:
    def piece(arguments: str, **members: Any) -> dict[str, object]:
        return {"tool_calls": [{"index": 0, "function": {"arguments": arguments, **members}}]}

    first: dict[str, Any] = {"tool_calls": [{"index": 0, **CALL, "function": {"name": "set_points", "arguments": ""}}]}
    events = [
        delta({"role": "assistant", "content": None}),
        delta(first),
        delta(piece('{"tra')),
        delta(piece('ck": 2}')),
        delta({}, "tool_calls"),
        wire.DONE,
    ]
    up = router(script_engine(wire.stream(*events)))
    with sdk(up) as client:
        stream = client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS, stream=True)
        chunks = list(stream)
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert calls[0].function is not None
    assert calls[0].function.name == "set_points"
    assert "".join(call.function.arguments or "" for call in calls if call.function) == '{"track": 2}'
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert up.records.fact().tools_emitted


def test_the_stream_helper_of_the_sdk_puts_the_answer_together(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    events = [delta({"role": "assistant", "content": ""}), delta({"content": "track "}), delta({"content": "two"})]
    up = router(script_engine(wire.stream(*events, delta({}, "stop"), wire.DONE)))
    with sdk(up) as client, client.chat.completions.stream(model=MODEL, messages=ASK) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "track two"


def test_several_choices_keep_their_places(router: Routers, script_engine: Engines, wire: Any) -> None:
    events = [delta({"content": text}, None, index) for index, text in ((0, "a"), (1, "x"), (1, "y"), (0, "b"))]
    ends = [delta({}, "stop", 1), delta({}, "length", 0), wire.DONE]
    up = router(script_engine(wire.stream(*events, *ends)))
    with sdk(up) as client:
        texts = {0: "", 1: ""}
        finishes: dict[int, str | None] = {}
        for chunk in client.chat.completions.create(model=MODEL, messages=ASK, n=2, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                finishes[choice.index] = choice.finish_reason or finishes.get(choice.index)
    assert (texts, finishes) == ({0: "ab", 1: "xy"}, {0: "length", 1: "stop"})
    assert up.records.fact().outcome == "completed"


def test_fields_that_nobody_here_knows_travel_both_ways(router: Routers, script_engine: Engines, wire: Any) -> None:
    engine = script_engine(whole(wire, {"content": "hi", "reasoning_content": "hmm"}, service_tier="flex", odd=[1]))
    extra = {"top_k": 5, "guided_json": {"type": "object"}, "metadata": {"a": {"b": [None, 1e300]}}}
    with sdk(router(engine)) as client:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=ASK,
            extra_body=extra,
            response_format={"type": "json_object"},
            logit_bias={"50256": -100},
            extra_headers={"x-of-mine": "yes"},
        )
    assert answer.model == "engine-name"
    assert (answer.choices[0].message.model_extra or {})["reasoning_content"] == "hmm"
    assert (answer.model_extra or {})["odd"] == [1]
    sent = engine.request()
    assert {name: sent.json[name] for name in extra} == extra
    assert sent.json["response_format"] == {"type": "json_object"}
    assert sent.header(b"x-of-mine") == b"yes"
    assert sent.header(b"user-agent") is not None


def test_embeddings_in_base64_are_the_engine_s_numbers(router: Routers, script_engine: Engines, wire: Any) -> None:
    numbers = base64.b64encode(struct.pack("<3f", 0.5, -1.0, 2.0)).decode()
    document = {
        "object": "list",
        "model": "m",
        "data": [{"object": "embedding", "index": 0, "embedding": numbers}],
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    engine = script_engine(wire.answer(json.dumps(document).encode()))
    up = router(engine)
    with sdk(up) as client:
        answer = client.embeddings.create(model=MODEL, input="two tracks", dimensions=3)
    assert answer.data[0].embedding == [0.5, -1.0, 2.0]
    assert engine.request().json["dimensions"] == 3
    assert up.records.fact().tokens_in == 4


# -- error classes ----------------------------------------------------------------------------------------------------


CLASSES = [
    (400, openai.BadRequestError), (404, openai.NotFoundError), (408, openai.APIStatusError), (409, openai.ConflictError),
    (413, openai.APIStatusError), (422, openai.UnprocessableEntityError), (429, openai.RateLimitError), (500, openai.InternalServerError),
    (502, openai.InternalServerError), (503, openai.InternalServerError), (529, openai.InternalServerError),
]  # fmt: skip


@pytest.mark.parametrize(("status", "kind"), CLASSES)
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_s_refusal_keeps_its_class_message_and_code(
    status: int,
    kind: type[openai.APIStatusError],
    stream: bool,  # noqa: FBT001 - a parameter
    router: Routers,
    script_engine: Engines,
    wire: Any,
) -> None:
    error = {"message": f"said with {status}", "type": "engine_error", "param": "messages[0]", "code": "odd_code"}
    up = router(
        script_engine(wire.answer(json.dumps({"error": error}).encode(), status)), retry={"attempts_per_model": 1}
    )
    with sdk(up) as client, pytest.raises(kind, match=f"said with {status}") as caught:
        client.chat.completions.create(model=MODEL, messages=ASK, stream=stream)
    assert caught.value.status_code == status
    assert (caught.value.code, caught.value.param, caught.value.type) == ("odd_code", "messages[0]", "engine_error")
    assert caught.value.request_id


def test_our_own_errors_have_the_sdk_s_classes(router: Routers, script_engine: Engines, wire: Any) -> None:
    engine = script_engine([wire.Gate()])
    tables = up_tables(engine)
    up = router(**tables)
    kept = openai.OpenAI(base_url=up.base_url, api_key="limited", max_retries=0, timeout=30.0)

    def raised(client: openai.OpenAI, **members: Any) -> openai.APIStatusError:
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(**{"model": MODEL, "messages": ASK, **members})
        return caught.value

    with sdk(up) as client, sdk(up, key="wrong") as stranger, kept as limited:
        seen = [
            raised(client, temperature="hot"),
            raised(stranger),
            raised(limited, model="other"),
            raised(client, model="nowhere"),
            raised(client, extra_headers={"content-type": "text/plain"}),
            raised(client, model="lonely"),
            raised(client, extra_headers={"x-turnout-timeout-ms": "100"}),
            raised(client, messages=[{"role": "user", "content": "a" * 5000}]),
        ]
    assert [(type(error), error.status_code, error.code) for error in seen] == [
        (openai.BadRequestError, 400, "invalid_request"),
        (openai.AuthenticationError, 401, "invalid_api_key"),
        (openai.PermissionDeniedError, 403, "model_not_allowed"),
        (openai.NotFoundError, 404, "model_not_found"),
        (openai.APIStatusError, 415, "unsupported_media_type"),
        (openai.InternalServerError, 503, "no_endpoint"),
        (openai.InternalServerError, 504, "deadline_exceeded"),
        (openai.BadRequestError, 400, "context_length_exceeded"),
    ]
    assert seen[0].param == "temperature"


def up_tables(engine: Engine) -> dict[str, Any]:
    import hashlib

    def key(name: str, secret: str, models: list[str]) -> dict[str, object]:
        digest = "sha256:" + hashlib.sha256(secret.encode()).hexdigest()
        return {"name": name, "tenant": name, "digest": digest, "models": models}

    return {
        "endpoint": [{"name": "e1", "url": engine.url, "models": [MODEL, "other"], "context_max": 1000}],
        "model": [{"id": "lonely"}],
        "key": [key("one", "tt-test-key-of-tenant-one", ["*"]), key("limited", "limited", [MODEL])],
    }


@pytest.mark.parametrize("surface", ["chat", "completions"])
def test_a_broken_stream_raises_in_the_sdk(surface: str, router: Routers, script_engine: Engines, wire: Any) -> None:
    text = b'data: {"id":"c","choices":[{"index":0,"text":"a","delta":{"content":"a"},"finish_reason":null}]}\n\n'
    up = router(script_engine([wire.STREAM_HEAD, wire.chunk(text), wire.Cut(reset=True)]))
    with sdk(up) as client:
        create: Any = client.chat.completions.create if surface == "chat" else client.completions.create
        asked = {"messages": ASK} if surface == "chat" else {"prompt": "a"}
        stream = create(model=MODEL, stream=True, **asked)
        assert next(stream)
        with pytest.raises(openai.APIError, match="interrupted"):
            next(stream)


# -- retries ----------------------------------------------------------------------------------------------------------


def test_no_retry_multiplication(router: Routers, script_engine: Engines, wire: Any) -> None:
    """T76: SDK × gateway: engines see at most the attempts of one exchange."""
    engines = [script_engine(wire.answer(b'{"error":{"message":"no"}}', 500)) for _ in range(2)]
    up = router(*engines, breaker={"consecutive": 10**6})
    with sdk(up, retries=2) as client, pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model=MODEL, messages=ASK)
    assert sum(len(engine.requests) for engine in engines) <= 3
    assert len(up.records.facts) == 1


def test_an_engine_s_wish_not_to_be_asked_again_is_passed_on(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    engine = script_engine(wire.answer(b'{"error":{"message":"no"}}', 503, b"x-should-retry: false"))
    up = router(engine, retry={"attempts_per_model": 1})
    with sdk(up, retries=2) as client, pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model=MODEL, messages=ASK)
    assert len(engine.requests) == 1


def test_the_sdk_comes_back_after_a_refusal_for_lack_of_room(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    gate = wire.Gate()
    engine = script_engine([gate, whole(wire, {"content": "first"})], whole(wire, {"content": "second"}))
    up = router(
        endpoint=[{"name": "e1", "url": engine.url, "models": [MODEL], "max_in_flight": 1}],
        admission={"queue_wait_s": 0.2},
    )
    busy = up.client()
    busy.send(up.request())
    assert gate.reached.wait(30)

    async def story() -> Any:
        async with openai.AsyncOpenAI(base_url=up.base_url, api_key=up.key, max_retries=2, timeout=30.0) as client:
            asked = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=ASK))
            await asyncio.to_thread(up.records.fact)  # until it was turned away once
            gate.open()
            return await asked

    began = time.monotonic()
    answer = asyncio.run(story())
    assert answer.choices[0].message.content == "second"
    assert time.monotonic() - began >= 0.9  # Retry-After: 1
    assert busy.response().status == 200
    assert up.records.facts[0].outcome == "queue_expired"


# -- leaving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "break", "timeout", "cancel"])
def test_every_way_of_leaving_the_sdk_closes_the_engine_s_connection(
    way: str, router: Routers, script_engine: Engines, wire: Any
) -> None:
    engine = script_engine([wire.STREAM_HEAD, wire.chunk(wire.event("a")), wire.chunk(wire.event("b")), wire.Gate()])
    up = router(engine)

    async def story() -> None:
        async with openai.AsyncOpenAI(base_url=up.base_url, api_key=up.key, max_retries=0, timeout=30.0) as client:
            patient = client.with_options(timeout=0.3) if way == "timeout" else client
            stream = await patient.chat.completions.create(model=MODEL, messages=ASK, stream=True)
            if way == "cancel":
                reading = asyncio.create_task(anext_of(stream, 3))
                await asyncio.sleep(0.1)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            elif way == "timeout":
                with pytest.raises(Exception, match=r"(?i)time"):
                    await anext_of(stream, 3)
            else:
                await anext_of(stream, 1 if way == "break" else 2)
            if way == "close":
                await stream.close()
            else:
                await stream.response.aclose()

    asyncio.run(story())
    assert engine.request().closed.wait(30)
    fact = up.records.fact()
    assert (fact.outcome, fact.tokens_out) == ("client_gone", 2)


async def anext_of(stream: openai.AsyncStream[Any], count: int) -> None:
    """Read so many chunks."""
    async for _ in stream:
        count -= 1
        if not count:
            return
