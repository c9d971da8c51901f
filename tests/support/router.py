"""A real router on loopback, in this process: started from tables of the configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec
from tests.support.client import PATIENCE_S, Client, Response
from tests.support.engine import Engine
from tests.support.loop import Loop
from tests.support.records import Records
from tests.support.wire import KEY, MODEL, chat

from turnout.app import App
from turnout.config.schema import Config

T = TypeVar("T")


class Router:
    """One running router."""

    def __init__(self, loop: Loop, config: Config) -> None:
        self._loop = loop
        self.config = config
        self.app = App(config, clock=loop.clock)
        self.records = Records(loop)
        self.app.ledger = cast("Any", self.records)
        loop.run(self._start())
        self.port, self.admin_port = self.app.port, self.app.admin_port
        self.key, self.model = KEY, MODEL
        self._clients: list[Client] = []
        self._stopped = False

    async def _start(self) -> None:
        await self.app.start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, port: int | None = None) -> Client:
        client = self._loop.connect(self.port if port is None else port)
        self._clients.append(client)
        return client

    def head(
        self, *lines: bytes, path: bytes = b"/v1/chat/completions", method: bytes = b"POST", key: str = KEY
    ) -> bytes:
        """Return a head with key and Host, ending in the empty line."""
        own = [b"%b %b HTTP/1.1" % (method, path), b"Host: localhost", b"Authorization: Bearer %b" % key.encode()]
        return b"\r\n".join([*own, *lines, b"", b""])

    def request(
        self,
        body: object = None,
        *lines: bytes,
        path: bytes = b"/v1/chat/completions",
        method: bytes = b"POST",
        key: str = KEY,
    ) -> bytes:
        """Return a whole request; bytes travel as they are, other bodies as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(chat() if body is None else body).encode()
        if method in (b"GET", b"HEAD") and body is None:
            return self.head(*lines, path=path, method=method, key=key)
        return self.head(b"Content-Length: %d" % len(content), *lines, path=path, method=method, key=key) + content

    def ask(self, *args: Any, port: int | None = None, **kwargs: Any) -> Response:
        """Send one request on a connection of its own and return the answer."""
        client = self.client(port)
        client.send(self.request(*args, **kwargs))
        answered = client.response(kwargs.get("method", b"POST"))
        client.close()
        return answered

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the router's loop."""
        return self._loop.call(function)

    def eventually(self, holds: Callable[[], bool], within_s: float = PATIENCE_S) -> bool:
        """Tell whether a fact about the router becomes true; looks at it from the loop, without a pause of its own."""
        return self._loop.eventually(holds, within_s)

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        for client in self._clients:
            client.close()
        self._loop.run(self.app.stop())


def key_table(name: str, key: str, tenant: str, **members: object) -> dict[str, object]:
    return {"name": name, "tenant": tenant, "digest": "sha256:" + hashlib.sha256(key.encode()).hexdigest(), **members}


def config_of(engines: list[Engine], overrides: dict[str, Any]) -> Config:
    tables: dict[str, Any] = {
        "server": {"listen": "127.0.0.1:0", "admin_listen": ""},
        "ledger": {"url": ""},  # `Records` stands in for it
        "log": {"level": "error"},
        "drain": {"grace_s": 0.01},
        "load": {"scrape_interval_ms": 0},  # connections to engines are counted
        "key": [key_table("one", KEY, "tenant-one")],
        "endpoint": [{"name": f"e{i}", "url": e.url, "models": [MODEL]} for i, e in enumerate(engines, 1)],
    }
    for name, value in overrides.items():
        tables[name] = {**tables.get(name, {}), **value} if isinstance(value, dict) else value
    return msgspec.convert(tables, Config)
