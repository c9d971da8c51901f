"""Another model only where the client, the key, the dialect and the prompt's length allow it (resilience N6)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.router import Router

Routers = Callable[..., "Router"]
FIRST, SECOND = "model-a", "model-b"
OFF = b"x-turnout-fallback: off"


def house(router: Routers, script_engine: Any, wire: Any, **of_second: Any) -> tuple[Router, Any, Any]:
    """A model whose one engine fails, and one that may be asked instead."""
    first, second = script_engine(wire.answer(b"{}", 500)), script_engine()
    models = of_second.pop("list", [FIRST, SECOND])
    up = router(
        endpoint=[
            {"name": "e1", "url": first.url, "models": [FIRST]},
            {"name": "e2", "url": second.url, "models": [SECOND], **of_second},
        ],
        model=[{"id": FIRST, "fallback": [SECOND]}],
        key=[
            {
                "name": "one",
                "tenant": "tenant-one",
                "digest": "sha256:" + hashlib.sha256(wire.KEY.encode()).hexdigest(),
                "models": models,
            }
        ],
        breaker={"consecutive": 10**6, "ratio_min": 10**6},
    )
    return up, first, second


PATHS: dict[bytes, dict[str, Any]] = {
    b"/v1/chat/completions": {},
    b"/v1/completions": {"prompt": "Once", "messages": ...},
    b"/v1/embeddings": {"input": "Once", "messages": ...},
    b"/v1/messages": {"max_tokens": 8},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_fallback_switch_is_honoured(
    path: bytes,
    stream: bool,  # noqa: FBT001 - a parameter
    router: Routers,
    script_engine: Any,
    wire: Any,
) -> None:
    """T84: on every path; without the switch the other model answers."""
    up, first, second = house(router, script_engine, wire)
    members = {**PATHS[path], **({"stream": True} if stream and b"embed" not in path else {})}
    second.says([wire.answer()])
    body = wire.chat(**members)
    refused = up.ask(body, OFF, path=path)
    assert (refused.status, len(second.requests)) == (500, 0)
    asked = len(first.requests)
    answered = up.ask(body, path=path)
    assert (answered.status, len(second.requests)) == (200, 1)
    assert answered.header(b"x-turnout-fallback-from") == FIRST.encode()
    assert len(first.requests) > asked
    assert [a.kind for a in up.records.fact(1).attempts][-1] == "model"


INSIDE: dict[str, tuple[dict[str, Any], dict[str, Any], bytes]] = {
    "the key's models": ({"list": [FIRST]}, {}, b"/v1/chat/completions"),
    "the context": (
        {"context_max": 50},
        {"messages": [{"role": "user", "content": "a" * 400}]},
        b"/v1/chat/completions",
    ),
    "the dialect": ({"dialects": ["openai"]}, {"max_tokens": 8}, b"/v1/messages"),
}


@pytest.mark.parametrize(("of_second", "members", "path"), INSIDE.values(), ids=INSIDE)
def test_fallback_stays_inside_the_key(
    of_second: dict[str, Any], members: dict[str, Any], path: bytes, router: Routers, script_engine: Any, wire: Any
) -> None:
    """T85: what would refuse the other model by its own name refuses it here, too."""
    up, _, second = house(router, script_engine, wire, **of_second)
    answered = up.ask(wire.chat(**members), path=path)
    assert (answered.status, second.requests) == (500, [])
    assert {a.route.model for a in up.records.fact().attempts if a.route is not None} == {FIRST}
