"""The response cache on `/v1/messages` through a real router: exact and semantic, whole and streamed, per tenant."""

from __future__ import annotations

import hashlib
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
MESSAGES = b"/v1/messages"
EXACT, SEMANTIC = b"x-turnout-cache-match: exact", b"x-turnout-cache-match: semantic"
VERSION = b"anthropic-version: 2023-06-01"
USAGE = {"input_tokens": 3, "output_tokens": 2}
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn", "stop_sequence": None, "usage": USAGE,
}  # fmt: skip


def start(router: Routers, engine: Engine, mode: str = "off") -> Router:
    def key(name: str, tenant: str) -> dict[str, object]:
        digest = "sha256:" + hashlib.sha256(f"key-{name}".encode()).hexdigest()
        return {"name": name, "tenant": tenant, "digest": digest, "permissions": ["response_cache=semantic"]}

    return router(
        endpoint=[{"name": "e1", "url": engine.url, "models": ["m"], "dialects": ["openai", "anthropic"]}],
        key=[key("c", "t1"), key("rival", "t2")],
        response_cache={"enabled": True, "stream": mode, "guard": "standard"},
    )


def ask(started: Router, text: str = "say hi", *lines: bytes, name: str = "c", **body: Any) -> Any:
    document = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": text}], **body}
    return started.ask(document, *(lines or (EXACT, VERSION)), key=f"key-{name}", path=MESSAGES)


def seen(response: Any) -> Any:
    return response.header(b"x-turnout-cache")


def said(document: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (document["type"].encode(), json.dumps(document).encode())


STREAM = [
    said({"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}}),
    said({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    said({"type": "ping"}),
    said({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "h"}}),
    said({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "i"}}),
    said({"type": "content_block_stop", "index": 0}),
    said({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": USAGE}),
    said({"type": "message_stop"}),
]


def numbered(engine: Engine, wire: Any) -> None:
    """Let each answer of the engine differ."""
    engine.says(lambda _: [wire.answer(json.dumps({**MESSAGE, "id": f"msg_{len(engine.requests)}"}).encode())])


def test_a_message_is_replayed_byte_for_byte(router: Routers, script_engine: Engines, wire: Any) -> None:
    engine = script_engine()
    started = start(router, engine)
    numbered(engine, wire)
    first, second = ask(started), ask(started)
    assert (seen(first), seen(second), second.body) == (b"miss", b"exact", first.body)
    assert second.header(b"request-id") == second.header(b"x-request-id") != first.header(b"request-id")
    assert second.header(b"content-type") == b"application/json"
    assert len(engine.requests) == 1
    fact = started.records.fact(1)
    assert (fact.outcome, fact.cache_match, fact.tokens_in, fact.tokens_out) == ("cached", "exact", 3, 2)
    assert seen(ask(started, "please summarise this text", SEMANTIC, VERSION)) == b"miss"
    assert seen(ask(started, "Please, summarise this text!", SEMANTIC, VERSION)) == b"semantic"
    assert seen(ask(started, "please summarise this text of Ann", SEMANTIC, VERSION)) == b"miss"
    assert seen(ask(started, "say hi", VERSION)) == b"bypass"
    assert seen(ask(started, stream=True)) == b"bypass"


CHANGES: list[dict[str, Any]] = [
    {"system": "be brief"},
    {"system": [{"type": "text", "text": "be brief"}]},
    {"tools": [{"name": "f", "input_schema": {"type": "object"}}]},
    {"tool_choice": {"type": "none"}},
    {"max_tokens": 8},
    {"temperature": 0.5},
    {"stop_sequences": ["x"]},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"novelty": 1},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "say hi"}]},
]  # fmt: skip


def test_key_covers_what_changes_the_answer(router: Routers, script_engine: Engines, wire: Any) -> None:
    engine = script_engine()
    started = start(router, engine)
    numbered(engine, wire)
    ask(started)
    for change in CHANGES:
        assert seen(ask(started, **change)) == b"miss", change
        assert seen(ask(started, **change)) == b"exact", change
    for line in (b"anthropic-version: 2024-01-01", b"anthropic-beta: context-1m"):
        lines = (EXACT, line) if b"version" in line else (EXACT, VERSION, line)
        assert seen(ask(started, "say hi", *lines)) == b"miss"
        assert seen(ask(started, "say hi", *lines)) == b"exact"
    assert seen(ask(started, metadata={"user_id": "u"})) == b"exact"
    assert seen(ask(started, container="c1")) == b"bypass"


def test_tenant_in_key_on_every_path(router: Routers, script_engine: Engines, wire: Any) -> None:
    engine = script_engine()
    started = start(router, engine, "convert")
    numbered(engine, wire)
    ask(started)
    for line in (EXACT, SEMANTIC):
        refresh = {"system": line.decode()}
        ask(started, "say hi", line, VERSION, **refresh)
        assert seen(ask(started, "say hi", line, VERSION, name="rival", **refresh)) == b"miss"
        assert seen(ask(started, "say hi", line, VERSION, name="rival", **refresh)) == b"exact"
    engine.says(wire.answer())
    chat = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "say hi"}]}
    assert seen(started.ask(chat, EXACT, VERSION, key="key-c")) == b"miss"


@pytest.mark.parametrize(
    "change",
    [
        {"stop_reason": None},
        {"stop_reason": "refusal"},
        {"stop_reason": "pause_turn"},
        {"stop_reason": "tool_use", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
        {"usage": None},
        {"type": "error", "error": {"type": "api_error", "message": "no"}},
    ],
)
def test_only_complete_answers_are_stored(
    router: Routers, script_engine: Engines, wire: Any, change: dict[str, Any]
) -> None:
    engine = script_engine()
    started = start(router, engine)
    engine.says(wire.answer(json.dumps({**MESSAGE, **change}).encode()))
    for _ in range(2):
        assert seen(ask(started)) in (b"miss", None)
    assert len(engine.requests) >= 2


def test_the_same_events_are_replayed(router: Routers, script_engine: Engines, wire: Any) -> None:
    engine = script_engine()
    started = start(router, engine, "same")
    engine.says(wire.stream(*STREAM))
    first, again = ask(started, stream=True), ask(started, stream=True)
    assert (seen(first), seen(again), again.body) == (b"miss", b"exact", first.body)
    assert first.body == b"".join(STREAM)
    assert again.header(b"content-type").startswith(b"text/event-stream")
    assert len(engine.requests) == 1
    numbered(engine, wire)
    assert seen(ask(started)) == b"miss"


def test_streams_that_do_not_end_well_are_not_stored(router: Routers, script_engine: Engines, wire: Any) -> None:
    engine = script_engine()
    started = start(router, engine, "same")
    error = said({"type": "error", "error": {"type": "overloaded_error", "message": "no"}})
    cut = [[wire.STREAM_HEAD, *map(wire.chunk, STREAM[:at]), wire.Cut()] for at in range(4, len(STREAM))]
    for script in (*cut, wire.stream(*STREAM[:5], error)):
        engine.says(script)
        assert seen(ask(started, stream=True)) == b"miss"
    cache = started.app.gateway.response_cache
    assert cache is not None
    assert cache.store.entries == 0


@pytest.mark.parametrize("first", [True, False])
def test_the_official_sdk_reads_messages_across_kinds(
    router: Routers, script_engine: Engines, wire: Any, *, first: bool
) -> None:
    engine = script_engine()
    started = start(router, engine, "convert")
    engine.says(wire.stream(*STREAM) if first else wire.answer(json.dumps(MESSAGE).encode()))
    asked: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "q"}]}
    headers = {"x-turnout-cache-match": "exact"}
    url = f"http://127.0.0.1:{started.port}"
    with anthropic.Anthropic(base_url=url, api_key="key-c", max_retries=0, timeout=30.0) as client:

        def whole() -> Any:
            return client.messages.create(**asked, extra_headers=headers).to_dict()

        def streamed() -> Any:
            with client.messages.stream(**asked, extra_headers=headers) as events:
                return events.get_final_message().to_dict()

        found = [streamed(), whole(), streamed()] if first else [whole(), streamed(), whole()]
    for document in found:
        assert {name: document[name] for name in MESSAGE} == MESSAGE
    assert len(engine.requests) == 1
