"""Replay of streamed answers, look-ups off the loop and what a replay saved, through a real router."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import openai
import pytest

from turnout.core.pricing import Price, PriceBook
from turnout.gateway import response_cache

if TYPE_CHECKING:
    from tests.support.engine import Engine
    from tests.support.router import Router

EXACT, SEMANTIC = b"x-turnout-cache-match: exact", b"x-turnout-cache-match: semantic"
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'


def start(router: Callable[..., Router], engine: Engine, mode: str, *more: dict[str, Any]) -> Router:
    digest = "sha256:" + hashlib.sha256(b"key-c").hexdigest()
    return router(
        endpoint=[{"name": "e1", "url": engine.url, "models": ["m"]}, *more],
        key=[{"name": "c", "tenant": "t1", "digest": digest, "permissions": ["response_cache=semantic"]}],
        response_cache={"enabled": True, "stream": mode, "guard": "standard"},
    )


def ask(started: Router, text: str = "say hi", *lines: bytes, **body: Any) -> Any:
    document = {"model": "m", "messages": [{"role": "user", "content": text}], **body}
    return started.ask(document, *(lines or (EXACT,)), key="key-c")


def streams(wire: Any) -> Any:
    return wire.stream(wire.event("h"), wire.event("i"), wire.event(finish="stop"), USAGE, wire.DONE)


ASKED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def test_the_same_stream_is_replayed_with_usage_only_if_asked(
    router: Callable[..., Router], script_engine: Callable[..., Engine], wire: Any
) -> None:
    engine = script_engine()
    started = start(router, engine, "same")
    engine.says(streams(wire))
    first = ask(started, stream=True)
    assert (first.header(b"x-turnout-cache"), b'"usage"' in first.body) == (b"miss", False)
    again = ask(started, stream=True)
    assert (again.header(b"x-turnout-cache"), again.body) == (b"exact", first.body)
    counted = ask(started, **ASKED)
    assert (counted.header(b"x-turnout-cache"), counted.body.count(b'"usage"')) == (b"exact", 1)
    assert counted.body.endswith(b"data: [DONE]\n\n")
    assert len(engine.requests) == 1
    assert ask(started).header(b"x-turnout-cache") == b"miss"
    fact = started.records.fact(2)
    assert (fact.outcome, fact.tokens_in, fact.tokens_out, fact.attempts) == ("cached", 3, 2, ())


OPT_IN = (EXACT, b"x-turnout-session-totals: on", b"x-turnout-session: s1")


def test_replayed_answers_tell_the_totals_of_their_session(
    router: Callable[..., Router], script_engine: Callable[..., Engine], wire: Any, loop: Any
) -> None:
    engine = script_engine()
    started = start(router, engine, "convert")
    engine.says(streams(wire))
    assert ask(started, **ASKED).header(b"x-turnout-cache") == b"miss"
    for calls in (1, 2):
        told = ask(started, "say hi", *OPT_IN, stream=True)
        assert (told.header(b"x-turnout-cache"), told.body.count(b"x_turnout")) == (b"exact", 1)
        *_, last, done = told.body.strip().split(b"\n\n")
        assert done == b"data: [DONE]"
        loop.settle()
        found = json.loads(last[6:])["x_turnout"]["session"]
        assert (found["calls"], found["failed"], found["tokens_in"], found["tokens_out"]) == (
            calls,
            0,
            3 * calls,
            2 * calls,
        )
    whole = ask(started, "say hi", *OPT_IN)
    assert (whole.header(b"x-turnout-cache"), whole.json["x_turnout"]["session"]["calls"]) == (b"exact", 3)
    assert whole.json["x_turnout"]["session"]["cost_usd"] == "0.000000000"
    assert b"x_turnout" not in ask(started).body


def test_what_a_session_was_told_of_itself_is_not_stored(
    router: Callable[..., Router], script_engine: Callable[..., Engine], wire: Any
) -> None:
    engine = script_engine()
    started = start(router, engine, "same")
    engine.says(streams(wire))
    engine.says(streams(wire))
    assert b"x_turnout" in ask(started, "say hi", *OPT_IN, stream=True).body
    second = ask(started, stream=True)
    assert (second.header(b"x-turnout-cache"), second.body.count(b"x_turnout")) == (b"miss", 0)


@pytest.mark.parametrize("first", [True, False])
def test_convert_replays_across_kinds_to_the_official_sdk(
    router: Callable[..., Router], script_engine: Callable[..., Engine], wire: Any, *, first: bool
) -> None:
    engine = script_engine()
    started = start(router, engine, "convert")
    body = (
        b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":'
        b'"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
    )
    engine.says(streams(wire) if first else wire.answer(body))
    with openai.OpenAI(base_url=started.base_url, api_key="key-c", max_retries=0, timeout=30.0) as client:

        def whole() -> tuple[str | None, Any]:
            seen = client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "q"}], extra_headers={"x-turnout-cache-match": "exact"}
            )
            return seen.choices[0].message.content, seen.choices[0].finish_reason

        def streamed() -> tuple[str | None, Any]:
            seen = client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "q"}], stream=True,
                extra_headers={"x-turnout-cache-match": "exact"},
            )  # fmt: skip
            choices = [choice for chunk in seen for choice in chunk.choices]
            return "".join(c.delta.content or "" for c in choices), choices[-1].finish_reason

        found = [streamed(), whole(), streamed()] if first else [whole(), streamed(), whole()]
    assert found == [("hi", "stop")] * 3
    assert len(engine.requests) == 1


def test_only_complete_answers_are_stored(
    router: Callable[..., Router], script_engine: Callable[..., Engine], wire: Any
) -> None:
    """T55: streams that were cut at any event, failed in band, report no usage, or were filtered."""
    engine = script_engine()
    started = start(router, engine, "same")
    events = [wire.event("h"), wire.event("i"), wire.event(finish="stop"), USAGE]
    cut = [[wire.STREAM_HEAD, *map(wire.chunk, events[:at]), wire.Cut()] for at in range(1, len(events))]
    for script in (
        *cut,
        wire.stream(wire.event("h"), b'data: {"error":{"message":"no","code":500}}\n\n', wire.DONE),
        wire.stream(wire.event("h"), wire.event(finish="stop"), wire.DONE),  # reports no usage
        wire.stream(wire.event("h"), wire.event(finish="content_filter"), USAGE, wire.DONE),
    ):
        engine.says(script)
        assert ask(started, stream=True).header(b"x-turnout-cache") == b"miss"
    cache = started.app.gateway.response_cache
    assert cache is not None
    assert cache.store.entries == 0
    engine.says(streams(wire))
    assert ask(started, stream=True).header(b"x-turnout-cache") == b"miss"
    assert ask(started, stream=True).header(b"x-turnout-cache") == b"exact"


def test_a_stream_whose_client_left_is_not_stored(
    router: Callable[..., Router], script_engine: Callable[..., Engine], wire: Any
) -> None:
    engine = script_engine()
    started = start(router, engine, "same")
    gate = wire.Gate()
    engine.says([wire.STREAM_HEAD, wire.chunk(wire.event("h")), gate, *map(wire.chunk, (USAGE, wire.DONE))])
    client = started.client()
    body = {"model": "m", "messages": [{"role": "user", "content": "say hi"}], "stream": True}
    client.send(started.request(body, EXACT, key="key-c"))
    client.read(b'"h"')
    client.close()
    gate.open()
    assert started.records.fact().outcome == "client_gone"
    cache = started.app.gateway.response_cache
    assert cache is not None
    assert (cache.store.entries, len(cache._flights)) == (0, 0)


def test_a_stream_that_another_endpoint_joined_is_not_stored(
    router: Callable[..., Router], script_engine: Callable[..., Engine], wire: Any
) -> None:
    one, two = script_engine(), script_engine()
    broken = [wire.STREAM_HEAD, wire.chunk(wire.event("h")), wire.chunk(wire.event("i")), wire.Cut()]
    one.scripts = two.scripts = [broken, streams(wire)]
    started = start(router, one, "same", {"name": "e2", "url": two.url, "models": ["m"]})
    seen = ask(started, stream=True, temperature=0)
    assert seen.body.count(b": turnout resumed") == 1
    assert started.records.fact().resumed
    cache = started.app.gateway.response_cache
    assert cache is not None
    assert cache.store.entries == 0


def test_large_semantic_look_ups_run_off_the_loop(
    router: Callable[..., Router], script_engine: Callable[..., Engine], wire: Any
) -> None:
    engine = script_engine()
    started = start(router, engine, "off")
    cache = started.app.gateway.response_cache
    assert cache is not None
    cache.off_loop_floats = 1
    engine.says(
        wire.answer(
            b'{"id":"1","choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
        )
    )
    assert ask(started, "please summarise this text", SEMANTIC).header(b"x-turnout-cache") == b"miss"
    seen = ask(started, "Please, summarise this text!", SEMANTIC)
    assert (seen.header(b"x-turnout-cache"), seen.header(b"x-turnout-cache-similarity")) == (b"semantic", b"1.000")
    assert ask(started, "write a poem about the sea", SEMANTIC).header(b"x-turnout-cache") == b"miss"
    assert cache.counts["lookup", "fault"] == 0
    assert cache.took.count == 3  # type: ignore[attr-defined]
    assert response_cache.OFF_LOOP_FLOATS > 1


class Heavy:
    """An embedder that runs on threads: asked on the loop it would hold up everybody."""

    id, dim, inline = "heavy", 3, False

    def embed(self, _: str) -> Any:
        raise AssertionError("embedded on the loop")


def test_an_embedder_off_the_loop_is_never_asked_on_it(
    router: Callable[..., Router], script_engine: Callable[..., Engine], wire: Any
) -> None:
    engine = script_engine()
    started = start(router, engine, "off")
    cache = started.app.gateway.response_cache
    assert cache is not None
    cache._embedder = Heavy()
    engine.says(
        wire.answer(
            b'{"id":"1","choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
        )
    )
    assert ask(started, "please summarise this text", SEMANTIC).header(b"x-turnout-cache") == b"miss"
    assert ask(started, "please summarise this text", SEMANTIC).header(b"x-turnout-cache") == b"exact"
    assert ask(started, "Please, summarise this text!", SEMANTIC).header(b"x-turnout-cache") == b"miss"


def test_a_replay_saves_what_the_source_call_cost(
    router: Callable[..., Router], script_engine: Callable[..., Engine], wire: Any
) -> None:
    engine = script_engine()
    started = start(router, engine, "off")
    started.records.book = PriceBook.of(1, [Price(model="m", p_in=1_000_000, p_out=2_000_000)])
    engine.says(
        wire.answer(
            b'{"id":"1","choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":7}}'
        )
    )
    ask(started)
    assert ask(started).header(b"x-turnout-cache") == b"exact"
    fact = started.records.fact(1)
    assert (fact.saved_nusd, fact.cost_nusd, fact.cost_basis) == (19_000, 0, "cache")
    cache = started.app.gateway.response_cache
    assert cache is not None
    assert cache.store.stats()["t1"].saved_nusd == 19_000


def test_refusals_tell_nothing_of_a_cache_that_was_not_asked(
    router: Callable[..., Router], script_engine: Callable[..., Engine]
) -> None:
    started = start(router, script_engine(), "off")
    seen = ask(started, model="unknown")
    assert (seen.status, seen.header(b"x-turnout-cache")) == (404, None)
    seen = started.ask({"model": "m", "messages": [{"role": "user", "content": "hi"}]}, key="key-c")
    assert (seen.status, seen.header(b"x-turnout-cache")) == (200, b"bypass")
