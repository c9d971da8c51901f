"""Capacity from the engine: what it reports decides who enters, waits or is refused (resilience §9)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.client import Client
    from tests.support.engine import Engine
    from tests.support.router import Router

Routers = Callable[..., "Router"]
SCRAPED = {"load": {"scrape_interval_ms": 50, "idle_interval_ms": 50}}


def loads(**of_one: float) -> dict[bytes, bytes]:
    """The page that SGLang reports its load on."""
    one = {"num_running_reqs": 0, "num_waiting_reqs": 0, "token_usage": 0.0, "max_total_num_tokens": 50_000, **of_one}
    return {b"/v1/loads": json.dumps({"loads": [one]}).encode()}


def served_by(engine: Engine, model: str) -> list[dict[str, Any]]:
    return [{"name": "e1", "url": engine.url, "models": [model], "family": "sglang"}]


def waiting(up: Router) -> int:
    return up.app.gateway.recovery.doors.waiting


def places(up: Router) -> int:
    return up.app.gateway.fleet.endpoints["e1"].places


def sent(up: Router, body: Any) -> Client:
    client = up.client()
    client.send(up.request(body))
    return client


def test_an_engine_gets_no_more_than_it_says_it_runs(router: Routers, script_engine: Any, wire: Any) -> None:
    engine = script_engine([gate := wire.Gate(), wire.answer()], [wire.answer()])
    engine.pages = loads(max_running_requests=1)
    up = router(endpoint=served_by(engine, wire.MODEL), **SCRAPED)
    assert up.eventually(lambda: places(up) == 1)
    first, second = sent(up, wire.chat()), sent(up, wire.chat())
    assert up.eventually(lambda: waiting(up) == 1)
    assert len(engine.requests) == 1
    gate.open()
    assert [first.response().status, second.response().status] == [200, 200]
    assert up.records.fact(1).queue_ms is not None


@pytest.mark.parametrize("family", ["llamacpp", "auto"])
def test_llama_cpp_gets_as_many_as_it_has_slots(family: str, router: Routers, script_engine: Any, wire: Any) -> None:
    """Its word is on /props; one of an unknown family signs its model list."""
    engine = script_engine([gate := wire.Gate(), wire.answer()], [wire.answer()])
    engine.models = b'{"object":"list","data":[{"id":"a-file.gguf","owned_by":"llamacpp"}]}'
    engine.pages = {b"/props": b'{"default_generation_settings":{"n_ctx":4096},"total_slots":1,"model_path":"m"}'}
    up = router(endpoint=[{"name": "e1", "url": engine.url, "models": [wire.MODEL], "family": family}])
    assert up.eventually(lambda: places(up) == 1)
    assert up.app.gateway.fleet.endpoints["e1"].context_max == 4096
    first, second = sent(up, wire.chat()), sent(up, wire.chat())
    assert up.eventually(lambda: waiting(up) == 1)
    assert len(engine.requests) == 1
    gate.open()
    assert [first.response().status, second.response().status] == [200, 200]


@pytest.mark.parametrize(
    "page", [b"{}", b"no json", b'{"total_slots":0}', b'{"total_slots":-1}', b'{"total_slots":"4"}']
)
def test_a_word_about_slots_that_cannot_be_is_none(page: bytes, router: Routers, script_engine: Any, wire: Any) -> None:
    engine = script_engine()
    engine.pages = {b"/props": page}
    up = router(endpoint=[{"name": "e1", "url": engine.url, "models": [wire.MODEL], "family": "llamacpp"}])
    assert up.eventually(lambda: any(b"/props" in probe.line for probe in engine.probes))
    assert up.ask().status == 200
    assert (places(up), up.app.gateway.fleet.endpoints["e1"].context_max) == (256, None)


def test_full_memory_makes_wait_until_the_engine_reports_room(router: Routers, script_engine: Any, wire: Any) -> None:
    engine = script_engine()
    engine.pages = loads(token_usage=0.97)
    up = router(endpoint=served_by(engine, wire.MODEL), **SCRAPED)
    assert up.eventually(lambda: places(up) == 0)
    client = sent(up, wire.chat())
    assert up.eventually(lambda: waiting(up) == 1)
    engine.pages = loads(token_usage=0.5)
    assert client.response().status == 200
    assert up.eventually(lambda: waiting(up) == 0)


@pytest.mark.parametrize("place", ["virtual"])  # reports are believed for five seconds
def test_an_engine_that_falls_silent_is_not_full_for_ever(router: Routers, script_engine: Any, wire: Any) -> None:
    """Q11, T64: a stale report makes nobody Critical."""
    engine = script_engine()
    engine.pages = loads(token_usage=0.97)
    up = router(endpoint=served_by(engine, wire.MODEL), **SCRAPED)
    assert up.eventually(lambda: places(up) == 0)
    client = sent(up, wire.chat())
    assert up.eventually(lambda: waiting(up) == 1)
    engine.pages = {b"/v1/loads": b"{}"}
    assert up.eventually(lambda: places(up) == 256, 12.0)
    assert client.response().status == 200


def test_Q3_a_prompt_larger_than_every_cache_is_refused_before_it_waits(
    router: Routers, script_engine: Any, wire: Any
) -> None:
    engine = script_engine()
    engine.pages = loads(max_total_num_tokens=100, token_usage=0.97)
    up = router(endpoint=served_by(engine, wire.MODEL), **SCRAPED)
    assert up.eventually(lambda: places(up) == 0)
    refused = up.ask(wire.chat(messages=[{"role": "user", "content": "a" * 4000}]))
    assert (refused.status, refused.code) == (400, "request_unservable")
    assert refused.header(b"retry-after") is None
    assert (up.records.fact().outcome, engine.requests) == ("unservable", [])
