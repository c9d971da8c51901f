"""The door's pages over a scripted source."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette

from turnout.console.coordinator_pages import routes


class Source:
    kept = True

    def overview(self) -> dict[str, Any]:
        return {"state": "running", "engines": []}

    def schedule(self, *, lines: bool) -> Iterator[bytes] | None:
        return iter([b"1\n", b"2\n"] if lines else [b"[1,", b"2]"]) if self.kept else None


def get(path: str, source: Source) -> tuple[int, bytes, str]:
    app = Starlette(routes=routes(source))
    path, _, query = path.partition("?")
    status, parts, kind = 0, b"", ""

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(3600)
        return {}

    async def send(message: Any) -> None:
        nonlocal status, parts, kind
        if message["type"] == "http.response.start":
            status = message["status"]
            kind = dict(message["headers"])[b"content-type"].decode()
        else:
            parts += message.get("body", b"")

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": query.encode(), "headers": [], "http_version": "1.1", "asgi": {"spec_version": "2.4", "version": "3.0"}}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return status, parts, kind


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/x/coordinator", b'{"state":"running","engines":[]}', "application/json"),
        ("/x/coordinator/schedule", b"[1,2]", "application/json"),
        ("/x/coordinator/schedule?format=json", b"[1,2]", "application/json"),
        ("/x/coordinator/schedule?format=jsonl", b"1\n2\n", "application/x-ndjson"),
    ],
)
def test_pages(path: str, body: bytes, kind: str) -> None:
    assert get(path, Source()) == (200, body, kind)


def test_errors_name_the_parameter_or_the_option() -> None:
    status, body, _ = get("/x/coordinator/schedule?format=xml", Source())
    assert (status, b'"param":"format"' in body, b"'xml'" in body) == (400, True, True)
    source = Source()
    source.kept = False
    status, body, _ = get("/x/coordinator/schedule", source)
    assert (status, b"coordinator.schedule_path" in body) == (404, True)
