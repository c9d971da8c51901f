"""A router with keys of every state, several models and one engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from tests.support.engine import Engine
from tests.support.router import Router

Routers = Callable[..., "Router"]
Engines = Callable[..., "Engine"]


def key(name: str, secret: str, tenant: str, **members: object) -> dict[str, object]:
    return {
        "name": name,
        "tenant": tenant,
        "digest": "sha256:" + hashlib.sha256(secret.encode()).hexdigest(),
        **members,
    }


KEYS = [
    key("one", "secret-of-one", "t1"), key("one-too", "secret-of-one-too", "t1"), key("two", "secret-of-two", "t2"),
    key("revoked", "secret-revoked", "t1", state="revoked"), key("inactive", "secret-inactive", "t1", state="inactive"),
    key("expired", "secret-expired", "t1", expires_at="2020-01-01T00:00:00+00:00"),
    key("later", "secret-later", "t1", expires_at="2999-01-01T00:00:00+00:00"),
    key("limited", "secret-limited", "t1", models=["model-b", "x/*"]),
]  # fmt: skip


class House:
    """A router with several keys, models and one engine."""

    def __init__(self, router: Routers, engine: Engine) -> None:
        self.engine = engine
        endpoint = {
            "name": "e1",
            "url": engine.url,
            "models": ["model-a", "model-b", "x/one", "small"],
            "served_as": {"model-b": "served/b"},
            "api_key": "our-own-credential",
        }
        small = {"name": "tiny", "url": engine.url, "models": ["tiny"], "context_max": 100}
        models = [{"id": "model-a", "aliases": ["nick"]}, {"id": "model-b"}]
        self.router = router(endpoint=[endpoint, small], key=KEYS, model=models)

    def ask(
        self, *lines: bytes, body: object = None, path: bytes = b"/v1/chat/completions", method: bytes = b"POST"
    ) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body or chat()).encode()
        client = self.router.client()
        start = b"%b %b HTTP/1.1\r\nHost: localhost\r\n" % (method, path)
        if method == b"POST":
            start += b"Content-Length: %d\r\n" % len(content)
        client.send(
            start + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + (content if method == b"POST" else b"")
        )
        answered = client.response(method)
        client.close()
        return answered

    def seen(self) -> Any:
        return self.engine.requests[-1]


ONE = b"Authorization: Bearer secret-of-one"


def chat(**members: object) -> dict[str, object]:
    return {"model": "model-a", "messages": [{"role": "user", "content": "hi"}], **members}
