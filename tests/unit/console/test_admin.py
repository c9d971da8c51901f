"""Each path of the admin application, and who may read it: called as ASGI, without a socket."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Scope

from turnout.console.admin import Tokens, admin_app, host_name


class Source:
    """What a process would answer."""

    def __init__(self) -> None:
        self.is_ready = True

    def metrics(self) -> bytes:
        return b"turnout_x 1\n"

    def decision(self, id: str) -> dict[str, Any] | None:  # noqa: A002 - the protocol's name
        return {"request_id": id, "picked": "e1"} if id == "01ABC" else None

    def endpoints(self) -> list[dict[str, Any]]:
        return [{"endpoint": "e1", "in_flight": 0, "kv_usage_ratio": float("nan")}]

    def ready(self) -> tuple[bool, dict[str, Any]]:
        return self.is_ready, {} if self.is_ready else {"reason": "draining"}

    def calls(self, limit: int) -> list[dict[str, Any]]:
        return [{"call_id": str(n)} for n in range(min(limit, 3))]


class Broken(Source):
    """A source whose every answer is a bug."""

    def metrics(self) -> bytes:
        raise RuntimeError("sk-canary")

    def endpoints(self) -> list[dict[str, Any]]:
        raise RuntimeError("sk-canary")

    def calls(self, limit: int) -> list[dict[str, Any]]:
        raise OSError(limit, "sk-canary")


class Answer:
    """One response as a client sees it."""

    def __init__(self, messages: list[Message]) -> None:
        self.status: int = messages[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in messages[1:])

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


def ask(app: ASGIApp, target: str, method: str = "GET", host: str | None = "127.0.0.1:9090", **headers: str) -> Answer:
    path, _, query = target.partition("?")
    sent = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope: Scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [*([(b"host", host.encode("latin-1"))] if host is not None else []), *sent],
        "scheme": "http",
        "server": ("127.0.0.1", 9090),
        "root_path": "",
    }
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    return Answer(messages)


def test_metrics_are_plain_text() -> None:
    answer = ask(admin_app(Source()), "/metrics")
    assert (answer.status, answer.body) == (200, b"turnout_x 1\n")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_a_kept_decision_is_shown_and_an_unknown_one_is_404() -> None:
    app = admin_app(Source())
    assert ask(app, "/x/decisions/01ABC").json == {"request_id": "01ABC", "picked": "e1"}
    answer = ask(app, "/x/decisions/nope")
    assert answer.status == 404
    assert answer.json["error"]["code"] == "decision_not_found"


@pytest.mark.parametrize("id_", ["a b", "..%2f", "é", "x" * 129, "<img>", "a'b"])
def test_an_id_that_is_none_never_reaches_the_source(id_: str) -> None:
    class Greedy(Source):
        def decision(self, id: str) -> dict[str, Any] | None:  # noqa: A002 - the protocol's name
            return {"seen": id}

    assert ask(admin_app(Greedy()), f"/x/decisions/{id_}").status == 404


def test_endpoints_and_unknown_figures_as_null() -> None:
    answer = ask(admin_app(Source()), "/x/endpoints")
    assert answer.json == {"endpoints": [{"endpoint": "e1", "in_flight": 0, "kv_usage_ratio": None}]}


@pytest.mark.parametrize(("query", "expected"), [("", 3), ("?limit=1", 1), ("?limit=1000", 3)])
def test_calls_are_limited(query: str, expected: int) -> None:
    assert len(ask(admin_app(Source()), "/x/calls" + query).json["calls"]) == expected


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "1e2", "", "%D9%A3", "99999999999999999999", " 1"])
def test_a_limit_out_of_range_names_the_field(limit: str) -> None:
    answer = ask(admin_app(Source()), f"/x/calls?limit={limit}")
    assert answer.status == 400
    assert answer.json["error"]["param"] == "limit"


def test_ready_tells_why_not() -> None:
    source = Source()
    assert ask(admin_app(source), "/ready").json == {"ready": True}
    source.is_ready = False
    answer = ask(admin_app(source), "/ready")
    assert (answer.status, answer.json) == (503, {"ready": False, "reason": "draining"})


@pytest.mark.parametrize("path", ["/", "/nope", "/health/", "/x", "/v1/models", "/metrics/x"])
def test_an_unknown_path_is_a_json_404(path: str) -> None:
    answer = ask(admin_app(Source()), path)
    assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_can_be_changed(method: str) -> None:
    answer = ask(admin_app(Source()), "/x/endpoints", method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("path", ["/metrics", "/x/endpoints", "/nope", "/health", "/x/calls?limit=0"])
def test_every_answer_has_the_security_headers_and_no_cors(path: str) -> None:
    headers = ask(admin_app(Source()), path, origin="http://evil.example").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert not any(name.startswith("access-control") for name in headers)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9090", "127.0.0.1", "[::1]:9090", "admin.internal:9090"])
def test_configured_hosts_are_served(host: str) -> None:
    assert ask(admin_app(Source(), hosts=("Admin.Internal",)), "/health", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [None, "", "evil.example", "127.0.0.1.evil.example", "localhost:9090:1", "localhost@evil", "127.0.0.1, x", "[::2]"],
)
def test_a_rebound_name_is_refused_on_every_path(host: str | None) -> None:
    """U10: a page of evil.example resolved to 127.0.0.1 reads nothing."""
    for path in ("/metrics", "/x/endpoints", "/health", "/nope"):
        answer = ask(admin_app(Source()), path, host=host)
        assert (answer.status, answer.json["error"]["code"]) == (403, "host_not_allowed")


def test_host_names_lose_port_and_case() -> None:
    assert host_name("LocalHost:80") == "localhost"
    assert host_name("[::1]:80") == "[::1]"


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer wrong", "Basic token", "token", "Bearer tokentoken"])
def test_with_a_token_everything_but_liveness_needs_it(value: str) -> None:
    app = admin_app(Source(), tokens=Tokens(_digest("token")))
    headers = {"authorization": value} if value else {}
    for path in ("/metrics", "/x/endpoints", "/x/calls", "/x/decisions/01ABC", "/nope"):
        answer = ask(app, path, **headers)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert ask(app, "/health", **headers).status == 200
    assert ask(app, "/metrics", authorization="bearer token").status == 200


def _digest(token: str) -> str:
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


@pytest.mark.parametrize("admin", ["", "boss"])
def test_the_read_only_token_reads_figures_and_exports_and_nothing_else(admin: str) -> None:
    tokens = Tokens(_digest(admin) if admin else "", _digest("reader"))
    app = admin_app(Source(), tokens=tokens, pages=[Route("/x/export/{table:str}", lambda _: Response(b"rows"))])
    for path in ("/metrics", "/x/export/calls"):
        assert ask(app, path).status == 401
        assert ask(app, path, authorization="Bearer reader").status == 200
        assert ask(app, path, authorization="Bearer boss").status == (200 if admin else 401)
    assert ask(app, "/x/endpoints", authorization="Bearer reader").status == (401 if admin else 200)
    assert ask(app, "/x/endpoints", authorization="Bearer boss").status == 200


@pytest.mark.parametrize("path", ["/metrics", "/x/endpoints", "/x/calls"])
def test_a_broken_source_is_a_bare_500_and_is_reported(path: str) -> None:
    heard: list[tuple[str, str]] = []
    app = admin_app(Broken(), report=lambda where, error: heard.append((where, type(error).__name__)))
    answer = ask(app, path)
    assert (answer.status, answer.json["error"]["code"]) == (500, "internal")
    assert b"canary" not in answer.body
    assert [where for where, _ in heard] == [path]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:9090"},
    ],
)
def test_no_page_takes_a_change_from_another_origin(method: str, headers: dict[str, str]) -> None:
    changed: list[str] = []

    async def page(request: Request) -> Response:
        changed.append(request.method)
        return Response(b"")

    app = admin_app(Source(), pages=[Route("/x/page", page, methods=["GET", "POST", "PUT", "DELETE"])])
    answer = ask(app, "/x/page", method, **headers)
    assert (answer.status, answer.json["error"]["code"]) == (403, "origin_not_allowed")
    assert ask(app, "/x/page", **headers).status == 200
    assert ask(app, "/x/page", method).status == 200
    assert (
        ask(app, "/x/page", method, **{"origin": "http://127.0.0.1:9090", "sec-fetch-site": "same-origin"}).status
        == 200
    )
    assert changed == ["GET", method, method]
