"""A stream that breaks after its first byte, in both dialects: joined by a sibling, or ended honestly (resilience §5)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.client import Response
    from tests.support.router import Router

Routers = Callable[..., "Router"]
WORDS = ("The ", "quick ", "brown ", "fox")


class Chat:
    """The OpenAI dialect: what engines write and clients read."""

    path = b"/v1/chat/completions"

    def __init__(self, wire: Any) -> None:
        self._wire = wire

    def said(self, *words: str, identity: str = "one", end: bool = True) -> list[bytes]:
        events = [self._wire.event(word, id=identity, created=len(identity)) for word in words]
        if end:
            events += [self._wire.event(finish="stop", id=identity), self._wire.USAGE, self._wire.DONE]
        return events

    def text(self, answered: Response) -> str:
        parts = [part for part in answered.body.split(b"\n\n") if part.startswith(b"data: {")]
        choices = [choice for part in parts for choice in json.loads(part[6:]).get("choices", [])]
        return "".join(choice["delta"].get("content", "") for choice in choices)

    def ended(self, answered: Response) -> bool:
        return answered.whole and answered.body.count(b"data: [DONE]") == 1 and b'"error"' not in answered.body


class Messages:
    """The Anthropic dialect."""

    path = b"/v1/messages"

    def __init__(self, wire: Any) -> None:
        del wire

    def said(self, *words: str, identity: str = "one", end: bool = True) -> list[bytes]:
        usage = {"input_tokens": 3, "output_tokens": 0}
        message = {"id": identity, "type": "message", "role": "assistant", "model": "m", "content": [], "usage": usage}
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        ]
        for word in words:
            delta = {"type": "text_delta", "text": word}
            events.append({"type": "content_block_delta", "index": 0, "delta": delta})
        if end:
            stop = {"stop_reason": "end_turn", "stop_sequence": None}
            events += [
                {"type": "content_block_stop", "index": 0},
                {"type": "message_delta", "delta": stop, "usage": {"output_tokens": len(words)}},
                {"type": "message_stop"},
            ]
        return [b"event: %b\ndata: %b\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events]

    def text(self, answered: Response) -> str:
        events = [part.partition(b"data: ")[2] for part in answered.body.split(b"\n\n") if b"text_delta" in part]
        return "".join(json.loads(event)["delta"]["text"] for event in events)

    def ended(self, answered: Response) -> bool:
        body = answered.body
        once = all(body.count(b"event: " + kind) == 1 for kind in (b"message_start", b"message_stop", b"message_delta"))
        return answered.whole and once and b"event: error" not in body


DIALECTS = {"openai": Chat, "anthropic": Messages}


@pytest.fixture(params=DIALECTS)
def dialect(request: Any, wire: Any) -> Any:
    return DIALECTS[request.param](wire)


def ask(up: Router, wire: Any, dialect: Any, **members: Any) -> Response:
    body = wire.chat(stream=True, max_tokens=64, **{"temperature": 0, **members})
    return up.ask(body, path=dialect.path)


BREAKS = {
    "cut": (lambda w: [w.Cut()], "stream_cut"),
    "reset": (lambda w: [w.Cut(reset=True)], "stream_cut"),
    "silence": (lambda w: [w.Gate()], "timeout_stall"),
    "no terminator": (lambda _: [b"0\r\n\r\n"], "stream_cut"),
    "bad chunk": (lambda _: [b"xyz\r\n"], "stream_cut"),
}


@pytest.mark.parametrize(("broken", "kind"), BREAKS.values(), ids=BREAKS)
def test_a_broken_stream_is_joined_and_the_client_reads_one_answer(
    broken: Any, kind: str, dialect: Any, router: Routers, script_engine: Any, wire: Any, scale: float, rests: Any
) -> None:
    """F22, F23, F24: rescued where the request repeats itself."""
    shown = wire.Gate()
    first = [wire.STREAM_HEAD, *map(wire.chunk, dialect.said(*WORDS[:2], end=False)), shown, *broken(wire)]
    one, two = script_engine(), script_engine()
    one.scripts = two.scripts = [first, wire.stream(*dialect.said("The quick", " brown fox", identity="second"))]
    up = router(one, two, timeout={"stall_s": 20 * scale})
    client = up.client()
    client.send(up.request(wire.chat(stream=True, max_tokens=64, temperature=0), path=dialect.path))
    client.buffer = client.read(WORDS[1].encode()) + client.buffer
    shown.open()
    answered = client.response()
    assert dialect.text(answered) == "".join(WORDS)
    assert dialect.ended(answered)
    assert answered.body.count(b": turnout resumed\n\n") == 1
    assert b'"second"' not in answered.body
    fact = up.records.fact()
    assert (fact.outcome, fact.resumed, fact.tokens_out) == ("completed", True, fact.attempts[1].tokens_out)
    assert [(a.kind, a.error_kind, a.ok) for a in fact.attempts] == [("first", kind, False), ("resume", "", True)]
    assert [a.usage_source for a in fact.attempts] == ["estimated", "engine"]
    counts = up.app.gateway.recovery.counted()
    assert (counts["rescues_tried_total"], counts["rescues_completed_total"]) == (1, 1)
    assert rests(up)


def test_another_answer_is_never_shown(
    dialect: Any, router: Routers, script_engine: Any, wire: Any, rests: Any
) -> None:
    """R5, T22: at the first difference the client is told, and nothing of the second answer was shown."""
    first = [wire.STREAM_HEAD, *map(wire.chunk, dialect.said(*WORDS[:2], end=False)), wire.Cut()]
    one, two = script_engine(), script_engine()
    one.scripts = two.scripts = [first, wire.stream(*dialect.said("The slow fox", identity="second"))]
    up = router(one, two)
    answered = ask(up, wire, dialect)
    assert dialect.text(answered) == "".join(WORDS[:2])
    assert (dialect.ended(answered), answered.whole) == (False, False)
    assert b'"error"' in answered.body
    fact = up.records.fact()
    assert (fact.outcome, fact.resumed) == ("stream_interrupted", True)
    assert [a.error_kind for a in fact.attempts] == ["stream_cut", "cancelled"]
    assert up.app.gateway.recovery.counted()["rescues_mismatched_total"] == 1
    assert rests(up)


NOT_JOINED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "not deterministic": ({"temperature": 1}, {}),
    "switched off": ({}, {"resume": {"scope": "off"}}),
    "too long to keep": ({}, {"resume": {"keep_max_bytes": 16}}),
}


@pytest.mark.parametrize(("members", "tables"), NOT_JOINED.values(), ids=NOT_JOINED)
def test_what_cannot_be_joined_ends_in_band(
    members: dict[str, Any], tables: dict[str, Any], dialect: Any, router: Routers, script_engine: Any, wire: Any
) -> None:
    first = [wire.STREAM_HEAD, *map(wire.chunk, dialect.said(*WORDS[:2], end=False)), wire.Cut()]
    one, two = script_engine(first), script_engine(first)
    up = router(one, two, **tables)
    answered = ask(up, wire, dialect, **members)
    assert (answered.whole, b'"error"' in answered.body, dialect.ended(answered)) == (False, True, False)
    assert len(one.requests) + len(two.requests) == 1
    assert up.records.fact().outcome == "stream_interrupted"


def two_models(one: Any, two: Any, **of_second: Any) -> dict[str, Any]:
    """A model with one engine, and the model that may be asked instead."""
    return {
        "endpoint": [
            {"name": "e1", "url": one.url, "models": ["model-a"]},
            {"name": "e2", "url": two.url, "models": ["model-b"], **of_second},
        ],
        "model": [{"id": "model-a", "fallback": ["model-b"]}],
    }


def test_r1_another_model_joins_the_stream_when_the_scope_says_so(
    dialect: Any, router: Routers, script_engine: Any, wire: Any, rests: Any
) -> None:
    first = [wire.STREAM_HEAD, *map(wire.chunk, dialect.said(*WORDS[:2], end=False)), wire.Cut()]
    one, two = script_engine(first), script_engine(wire.stream(*dialect.said(*WORDS, identity="second")))
    up = router(resume={"scope": "fallback_models"}, **two_models(one, two))
    answered = ask(up, wire, dialect)
    assert (dialect.text(answered), dialect.ended(answered)) == ("".join(WORDS), True)
    assert answered.body.count(b": turnout resumed\n\n") == 1
    fact = up.records.fact()
    assert (fact.outcome, fact.resumed, fact.route) == ("completed", True, fact.attempts[1].route)
    assert [(a.kind, a.route and a.route.model) for a in fact.attempts] == [("first", "model-a"), ("resume", "model-b")]
    assert rests(up)


def test_r1_another_model_goes_on_under_its_own_name(
    router: Routers, script_engine: Any, wire: Any, rests: Any
) -> None:
    """A request that does not repeat itself is continued by whoever can; what it writes bears its name."""
    chat = Chat(wire)
    first = [wire.STREAM_HEAD, *map(wire.chunk, chat.said(*WORDS[:2], end=False)), wire.Cut()]
    rest = [part.replace(b'"model-a"', b'"model-b"') for part in chat.said(*WORDS[2:], identity="second")]
    one, two = script_engine(first), script_engine(wire.stream(*rest))
    up = router(resume={"scope": "fallback_models"}, **two_models(one, two, continuation=True))
    answered = ask(up, wire, chat, temperature=1)
    assert (chat.text(answered), chat.ended(answered)) == ("".join(WORDS), True)
    before, _, after = answered.body.partition(b": turnout resumed")
    assert (before.count(b'"model-b"'), after.count(b'"model-a"')) == (0, 0)
    assert (b'"one"' in after, b'"second"' in after) == (True, False)
    assert [body.get("continue_final_message") for body in (r.json for r in two.requests)] == [True]
    assert rests(up)


NOT_BY_ANOTHER: dict[str, tuple[dict[str, Any], bytes]] = {
    "replicas only": ({"resume": {"scope": "replicas"}}, b""),
    "the client's wish": ({"resume": {"scope": "fallback_models"}}, b"x-turnout-fallback: off"),
}


@pytest.mark.parametrize(("tables", "header"), NOT_BY_ANOTHER.values(), ids=NOT_BY_ANOTHER)
def test_r1_another_model_joins_nothing_unless_it_may(
    tables: dict[str, Any], header: bytes, dialect: Any, router: Routers, script_engine: Any, wire: Any
) -> None:
    first = [wire.STREAM_HEAD, *map(wire.chunk, dialect.said(*WORDS[:2], end=False)), wire.Cut()]
    one, two = script_engine(first), script_engine(wire.stream(*dialect.said(*WORDS)))
    up = router(**tables, **two_models(one, two))
    body = wire.chat(stream=True, max_tokens=64, temperature=0)
    answered = up.ask(body, *[header] if header else [], path=dialect.path)
    assert (answered.whole, b'"error"' in answered.body, two.requests) == (False, True, [])
    assert up.records.fact().outcome == "stream_interrupted"


def test_r3_a_replica_that_can_go_on_is_preferred_to_one_that_cannot(
    router: Routers, script_engine: Any, wire: Any
) -> None:
    """A request that does not repeat itself is of no use to who cannot continue, however idle it is."""
    chat = Chat(wire)
    first = [wire.STREAM_HEAD, *map(wire.chunk, chat.said(*WORDS[:2], end=False)), wire.Cut()]
    broken, other, able = script_engine(first), script_engine(first), script_engine(wire.stream(*chat.said(*WORDS[2:])))
    names = {"e1": broken, "e2": other, "e3": able}
    able_too = [{"name": n, "url": e.url, "models": [wire.MODEL], "continuation": e is able} for n, e in names.items()]
    able_too[2]["standby"] = True
    answered = ask(up := router(endpoint=able_too), wire, chat, temperature=1)
    assert (chat.text(answered), chat.ended(answered)) == ("".join(WORDS), True)
    assert len(broken.requests) + len(other.requests) == 1
    assert [a.route and a.route.replica for a in up.records.fact().attempts][1] == "e3"


def test_refused_continuation_is_hidden(router: Routers, script_engine: Any, wire: Any, rests: Any) -> None:
    """T83: the engine that was asked to go on refuses; the same one repeats, and nobody hears of the refusal."""
    chat = Chat(wire)
    first = [wire.STREAM_HEAD, *map(wire.chunk, chat.said(*WORDS[:2], end=False)), wire.Cut()]
    refusal = wire.answer(b'{"error":{"message":"assistant prefill is not supported","code":400}}', 400)
    one, two = script_engine(), script_engine()
    one.scripts = two.scripts = [first, [refusal], wire.stream(*chat.said(*WORDS, identity="second"))]
    table = [
        {"name": name, "url": engine.url, "models": [wire.MODEL], "continuation": True}
        for name, engine in (("e1", one), ("e2", two))
    ]
    up = router(endpoint=table)
    answered = ask(up, wire, chat)
    assert (chat.text(answered), chat.ended(answered)) == ("".join(WORDS), True)
    assert b"prefill" not in answered.body
    asked = [request.json for engine in (one, two) for request in engine.requests]
    assert [bool(body.get("continue_final_message")) for body in asked].count(True) == 1
    assert [a.error_kind for a in up.records.fact().attempts] == ["stream_cut", "bad_request", ""]
    assert rests(up)


def test_a_refused_continuation_that_nobody_can_repeat_leaves_the_first_failure(
    router: Routers, script_engine: Any, wire: Any
) -> None:
    """T83: the prefill's 400 never masks what really happened."""
    chat = Chat(wire)
    first = [wire.STREAM_HEAD, *map(wire.chunk, chat.said(*WORDS[:2], end=False)), wire.Cut()]
    refusal = wire.answer(b'{"error":{"message":"assistant prefill is not supported","code":400}}', 400)
    one, two = script_engine(), script_engine()
    one.scripts = two.scripts = [first, [refusal]]
    table = [
        {"name": name, "url": engine.url, "models": [wire.MODEL], "continuation": True}
        for name, engine in (("e1", one), ("e2", two))
    ]
    answered = ask(up := router(endpoint=table), wire, chat, temperature=1)
    assert answered.whole is False
    assert b"prefill" not in answered.body
    assert b"stream_interrupted" in answered.body
    assert up.records.fact().outcome == "stream_interrupted"


def test_terminating_engine_is_noticed(
    dialect: Any, place: str, router: Routers, script_engine: Any, wire: Any, rests: Any
) -> None:
    """T86, R9, F23: an engine that was told to end leaves its streams open and silent; nobody waits for a stall."""
    up = router(
        engine := script_engine([wire.STREAM_HEAD, *map(wire.chunk, dialect.said("The ", end=False)), wire.Gate()]),
        timeout={"stall_s": 600.0, "content_stall_s": 600.0},
        probe={"interval_s": 0.2, "timeout_s": 1.0},
    )
    client = up.client()
    client.send(up.request(wire.chat(stream=True), path=dialect.path))
    client.read(b"The ")
    began = up.call(up.app.gateway.clock)
    up.call(engine._server.close)  # its port is closed, the stream is not
    for connection in [c for c in engine.open if c._current is None or c._current.line.startswith(b"GET")]:
        up.call(connection.transport.abort)
    rest = client.rest()
    if place == "virtual":  # bytes of the last five seconds speak for the engine: it is not asked before
        assert up.call(up.app.gateway.clock) - began < 15.0
    assert b'"error"' in rest
    assert not rest.endswith(b"0\r\n\r\n")
    assert up.records.fact().attempts[0].error_kind == "timeout_stall"
    assert rests(up)
