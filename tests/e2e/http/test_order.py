"""The first failing check answers, and where the ledger begins (request-path §1, §10): all pairs of faults, refusals."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.client import Response
    from tests.support.engine import Engine
    from tests.support.router import Router

Routers = Callable[..., "Router"]
Engines = Callable[..., "Engine"]
KEY = "the-key-of-the-order"

# In the order of §1; each with the answer it gets when nothing before it fails.
CHECKS: dict[str, tuple[int, str]] = {
    "head": (400, "bad_http"),
    "drain": (503, "draining"),
    "method": (405, "method_not_allowed"),
    "key": (401, "invalid_api_key"),
    "control": (400, "invalid_request"),
    "size": (413, "request_too_large"),
    "json": (400, "invalid_json"),
    "fields": (400, "invalid_request"),
    "model": (404, "model_not_found"),
    "allowed": (403, "model_not_allowed"),
    "context": (400, "context_length_exceeded"),
}
BEFORE_THE_EXCHANGE = set(list(CHECKS)[:8])


def request(faults: set[str]) -> bytes:
    content = "a" * (2000 if "context" in faults else 8)
    model = "nowhere" if "model" in faults else "closed" if "allowed" in faults else "open"
    messages = [] if "fields" in faults else [{"role": "user", "content": content}]
    body = json.dumps({"model": model, "messages": messages}).encode()
    if "json" in faults:
        body = body[:-1]
    lines = [
        b"PUT" if "method" in faults else b"POST",
        b" /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ",
        b"unknown" if "key" in faults else KEY.encode(),
        b"\r\nX Y: no name" if "head" in faults else b"",
        b"\r\nx-turnout-tiemout-ms: 5" if "control" in faults else b"",
        b"\r\nContent-Length: %d\r\n\r\n" % (99_999_999 if "size" in faults else len(body)),
    ]
    return b"".join(lines) + body


@pytest.fixture(scope="module")
def house(module_router: Routers, module_engine: Engines) -> tuple[Router, Engine]:
    engine = module_engine()
    digest = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
    up = module_router(
        endpoint=[{"name": "e1", "url": engine.url, "models": ["open", "closed"], "context_max": 100}],
        key=[{"name": "k", "tenant": "t", "digest": digest, "models": ["open", "now*"]}],
    )
    return up, engine


def ask(up: Router, faults: set[str]) -> Response:
    up.call(lambda: setattr(up.app.gateway, "draining", "drain" in faults))
    client = up.client()
    client.send(request(faults))
    answered = client.response()
    client.close()
    up.call(lambda: setattr(up.app.gateway, "draining", False))
    return answered


FAULTS = [{name} for name in CHECKS] + [set(pair) for pair in itertools.combinations(CHECKS, 2)] + [set(CHECKS)]


@pytest.mark.parametrize("faults", FAULTS, ids=lambda faults: "+".join(n for n in CHECKS if n in faults))
def test_the_first_failing_check_answers(faults: set[str], house: tuple[Router, Engine]) -> None:
    up, engine = house
    first = next(name for name in CHECKS if name in faults)
    refused = dict(up.app.meter.refusals)
    rows = len(up.records.facts)
    answered = ask(up, faults)
    assert (answered.status, answered.code) == CHECKS[first], answered.body
    assert engine.requests == []
    code = CHECKS[first][1]
    if first in BEFORE_THE_EXCHANGE:
        assert len(up.records.facts) == rows
        assert up.app.meter.refusals[code] == refused.get(code, 0) + 1
    else:
        assert len(up.records.facts) == rows + 1
        assert up.app.meter.refusals == refused


def test_a_path_that_is_none_is_404_with_and_without_a_key_and_while_draining(house: tuple[Router, Engine]) -> None:
    up, _ = house
    up.call(lambda: setattr(up.app.gateway, "draining", True))
    answered = [up.ask(path=b"/v1/nowhere", key=key) for key in (KEY, "unknown")]
    up.call(lambda: setattr(up.app.gateway, "draining", False))
    assert [(a.status, a.code) for a in answered] == [(404, "not_found")] * 2


REFUSALS: list[tuple[dict[str, Any], tuple[bytes, ...], str, str, str | None]] = [
    ({"key": "unknown"}, (), "authentication_error", "invalid_api_key", None),
    ({"path": b"/v1/nowhere"}, (), "invalid_request_error", "not_found", None),
    ({"method": b"PUT"}, (), "invalid_request_error", "method_not_allowed", None),
    ({"body": b"{"}, (), "invalid_request_error", "invalid_json", None),
    ({"body": {"messages": []}}, (), "invalid_request_error", "invalid_request", "messages"),
    ({"body": {"messages": [{"role": "user"}]}}, (), "invalid_request_error", "missing_model_field", "model"),
    (
        {"body": {"model": "open", "messages": [{"role": "user"}], "bootstrap_host": "x"}},
        (),
        "invalid_request_error",
        "forbidden_field",
        "bootstrap_host",
    ),
    ({}, (b"x-turnout-priority: 1",), "invalid_request_error", "invalid_request", "x-turnout-priority"),
    ({}, (b"Content-Type: text/plain",), "invalid_request_error", "unsupported_media_type", "content-type"),
    ({}, (b"Expect: 200-ok",), "invalid_request_error", "expectation_failed", None),
    ({}, (b"Host: again",), "invalid_request_error", "bad_http", None),
]


@pytest.mark.parametrize(("kwargs", "lines", "kind", "code", "param"), REFUSALS, ids=[row[3] for row in REFUSALS])
def test_refusals_have_one_envelope(
    kwargs: dict[str, Any],
    lines: tuple[bytes, ...],
    kind: str,
    code: str,
    param: str | None,
    house: tuple[Router, Engine],
) -> None:
    up, _ = house
    answered = up.ask(kwargs.pop("body", None), *lines, **{"key": KEY, **kwargs})
    error = answered.json["error"]
    assert list(answered.json) == ["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["type"], error["code"], error["param"]) == (kind, code, param)
    assert answered.header(b"content-type") == b"application/json"
    assert KEY not in error["message"]
    assert up.ask({"model": "open", "messages": [{"role": "user"}]}, key=KEY).status == 200


@pytest.mark.parametrize(
    ("path", "method"),
    [(b"/v1/chat/completions", b"POST"), (b"/v1/models/none", b"GET"), (b"/nowhere", b"GET"), (b"/health", b"GET")],
)
def test_the_client_s_request_id_comes_back_with_every_answer(
    path: bytes, method: bytes, house: tuple[Router, Engine]
) -> None:
    up, _ = house
    answered = up.ask(b"{" if method == b"POST" else None, b"x-request-id: mine.1", path=path, method=method, key=KEY)
    assert answered.header(b"x-request-id") == b"mine.1"


def test_row_identity_is_ours(house: tuple[Router, Engine]) -> None:
    """T102: repeated, empty and odd client ids lose no row and name no row."""
    up, _ = house
    rows = len(up.records.facts)
    for line in (b"x-request-id: same", b"x-request-id: same", b"x-request-id:", b"x-request-id: a b"):
        answered = up.ask({"model": "open", "messages": [{"role": "user"}]}, line, key=KEY)
        assert answered.status == 200
    facts = up.records.facts[rows:]
    assert len({fact.call_id for fact in facts}) == 4
    assert [fact.request_id for fact in facts[:2]] == ["same", "same"]
    assert all(fact.request_id for fact in facts)


def saturated(router: Routers, script_engine: Engines, wire: Any) -> Response:
    gate = wire.Gate()
    engine = script_engine([gate, wire.answer()])
    up = router(
        endpoint=[{"name": "e1", "url": engine.url, "models": ["model-a"], "max_in_flight": 1}],
        admission={"queue_wait_s": 0.2},
    )
    first = up.client()
    first.send(up.request())
    assert gate.reached.wait(30)
    answered = up.ask()
    gate.open()
    assert first.response().status == 200
    return answered


def nobody(router: Routers, script_engine: Engines, wire: Any) -> Response:
    return router(script_engine(), model=[{"id": "lonely"}]).ask(wire.chat(model="lonely"))


def unreachable(router: Routers, script_engine: Engines, wire: Any) -> Response:  # noqa: ARG001 - one signature
    engine = script_engine()
    engine.stop()
    up = router(engine)
    assert up.eventually(lambda: up.app.gateway.fleet.endpoints["e1"].unreachable)
    return up.ask()


def too_many(router: Routers, script_engine: Engines, wire: Any) -> Response:  # noqa: ARG001 - one signature
    up = router(server={"connections_max": 1})
    up.client()
    assert up.eventually(lambda: len(up.app.listener.connections) == 1)
    return up.client().response()


def draining(router: Routers, script_engine: Engines, wire: Any) -> Response:  # noqa: ARG001 - one signature
    up = router()
    up.call(lambda: setattr(up.app.gateway, "draining", True))
    return up.ask()


CROWDED = {
    "queue_timeout": saturated,
    "no_endpoint": nobody,
    "no_endpoint (unreachable)": unreachable,
    "too_many_connections": too_many,
    "draining": draining,
}


@pytest.mark.parametrize(("name", "situation"), CROWDED.items(), ids=CROWDED)
def test_every_refusal_has_retry_after(
    name: str, situation: Callable[..., Response], router: Routers, script_engine: Engines, wire: Any
) -> None:
    """T21: all 503 that exist say when to come back, as an integer ≥ 1, and none says not to."""
    answered = situation(router, script_engine, wire)
    assert (answered.status, answered.code) == (503, name.partition(" ")[0])
    assert int(answered.header(b"retry-after") or 0) >= 1
    assert answered.header(b"x-should-retry") is None
