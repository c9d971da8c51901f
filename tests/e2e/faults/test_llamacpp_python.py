"""llama-cpp-python's server, as a real one was seen: no `/health`, and no answer to ids that are no UUIDs."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.router import Router

Routers = Callable[..., "Router"]
LIST = b'{"object":"list","data":[{"id":"tiny","object":"model","owned_by":"me","permissions":[]}]}'


def test_an_engine_without_a_health_page_is_asked_for_its_models(
    router: Routers, script_engine: Any, wire: Any
) -> None:
    engine = script_engine()
    engine.models, engine.missing = LIST, {b"/health", b"/metrics"}
    endpoint = {"name": "e1", "url": engine.url, "models": [wire.MODEL]}
    up = router(endpoint=[endpoint], probe={"interval_s": 0.05})
    assert up.eventually(lambda: sum(b" /health " in probe.line for probe in engine.probes) >= 3)
    assert not up.app.gateway.fleet.endpoints["e1"].probe_failing
    assert up.ask().status == 200
    engine.missing = {b"/health", b"/v1/models"}
    assert up.eventually(lambda: up.app.gateway.fleet.endpoints["e1"].probe_failing)


@pytest.mark.parametrize(
    ("family", "listed"), [("llamacpp", b'{"object":"list","data":[]}'), ("auto", LIST)], ids=["configured", "told"]
)
def test_its_requests_are_named_by_a_uuid_the_same_each_time(
    family: str, listed: bytes, router: Routers, script_engine: Any, wire: Any
) -> None:
    engine = script_engine(wire.answer(b"{}", 500), wire.answer())
    engine.models = listed
    up = router(endpoint=[{"name": "e1", "url": engine.url, "models": [wire.MODEL], "family": family}])
    state = up.app.gateway.fleet.endpoints["e1"]
    assert up.eventually(lambda: state.uuid_ids)
    answered = up.ask(None, b"x-request-id: mine")
    assert (answered.status, answered.header(b"x-request-id")) == (200, b"mine")
    first, second = [request.header(b"x-request-id") for request in engine.requests]
    assert first == second == str(uuid.UUID(first.decode())).encode()
    given = str(uuid.uuid4()).encode()
    assert up.ask(None, b"x-request-id: " + given).status == 200
    assert engine.requests[-1].header(b"x-request-id") == given
