"""The admin application: JSON over what the process knows, the metrics page, and draining endpoints.

It answers only under names the operator configured (DNS rebinding, hardening U10), sends no CORS header, needs a bearer
token when one is set, and takes no change from a page of another origin. Errors have one shape:
`{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CALLS_DEFAULT = 100
CALLS_MAX = 1000
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN_PATHS = frozenset({"/health", "/ready"})
"""Readable without the token: they hold no address, name or figure."""
_READING = frozenset({"GET", "HEAD"})

_REGISTERING = frozenset({"PUT", "DELETE"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_HEADERS = (
    ("x-content-type-options", "nosniff"),
    ("cache-control", "no-store"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'"),
    ("referrer-policy", "no-referrer"),
)


class AdminSource(Protocol):
    """What the application asks the process. `endpoints` and `ready` run on the loop, the others on a worker thread."""

    def metrics(self) -> bytes:
        """The metrics page in Prometheus text format 0.0.4."""

    def decision(self, id: str) -> dict[str, Any] | None:  # noqa: A002 - the word of the path
        """The explain document of one decision; None when it is not kept."""

    def endpoints(self) -> list[dict[str, Any]]:
        """Every endpoint with its state and load."""

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether new requests are served, and why not."""

    def calls(self, limit: int) -> list[dict[str, Any]]:
        """The newest rows of the ledger, newest first."""


class Tokens(msgspec.Struct, frozen=True):
    """Digests (`sha256:` and hex) of the bearer tokens that are asked for; an empty one is not."""

    admin: str = ""
    """For every path; without it the listener is open to whoever reaches it."""
    read_only: str = ""
    """For figures and exports, beside the admin token."""

    def admit(self, path: str, method: str, headers: list[tuple[bytes, bytes]]) -> bool:
        """Tell whether a request may come in; who registers shows a token of its own, which its page looks at."""
        shared = path == "/metrics" or path.startswith("/x/export/")
        if path in OPEN_PATHS or method in _REGISTERING or not (self.admin or (shared and self.read_only)):
            return True
        sent = [value for name, value in headers if name == b"authorization"]
        scheme, _, value = sent[0].partition(b" ") if len(sent) == 1 else (b"", b"", b"")
        own = "sha256:" + hashlib.sha256(value.strip()).hexdigest()
        good = hmac.compare_digest(own, self.admin), hmac.compare_digest(own, self.read_only)
        return scheme.lower() == b"bearer" and (good[0] or (shared and good[1]))


class EndpointChanges(Protocol):
    """What may be changed: False means that there is no such endpoint."""

    def drain(self, name: str) -> bool:
        """Send nothing more to an endpoint."""

    def resume(self, name: str) -> bool:
        """Use it again, as a new incarnation."""


class Compact(JSONResponse):
    """JSON by msgspec: structs and instants as they are, NaN and infinities as null."""

    def render(self, content: Any) -> bytes:
        """The document as bytes; TypeError for a value JSON cannot hold."""
        return msgspec.json.encode(content)


def admin_app(
    source: AdminSource,
    *,
    hosts: Iterable[str] = (),
    tokens: Tokens | None = None,
    report: Callable[[str, BaseException], None] | None = None,
    pages: Iterable[Route] = (),
    changes: EndpointChanges | None = None,
) -> Starlette:
    """The application over one source; without `changes` it is read-only.

    `hosts` are admitted `Host` names besides loopback, without port. `tokens` say which bearer tokens are asked for.
    `report(path, error)` hears of every exception of the source; the client sees a bare 500. `pages` come first.
    """

    async def metrics(_: Request) -> Response:
        return Response(await run_in_threadpool(source.metrics), headers={"content-type": METRICS_TYPE})

    async def decision(request: Request) -> Response:
        wanted = request.path_params["id"]
        found = await run_in_threadpool(source.decision, wanted) if _ID.fullmatch(wanted) else None
        if found is None:
            return error(404, "decision_not_found", "no decision of this id is kept; the newest ones are", param="id")
        return Compact(found)

    async def endpoints(_: Request) -> Response:
        return Compact({"endpoints": source.endpoints()})

    async def calls(request: Request) -> Response:
        asked = request.query_params.get("limit", str(CALLS_DEFAULT))
        if not re.fullmatch("[0-9]{1,4}", asked) or not 1 <= int(asked) <= CALLS_MAX:
            return error(400, "invalid_request", f"limit must be an integer from 1 to {CALLS_MAX}", param="limit")
        return Compact({"calls": await run_in_threadpool(source.calls, int(asked))})

    async def health(_: Request) -> Response:
        return Compact({"status": "ok"})

    async def ready(_: Request) -> Response:
        good, detail = source.ready()
        return Compact({"ready": good, **detail}, status_code=200 if good else 503)

    routes = [
        *pages,
        Route("/metrics", metrics),
        Route("/x/decisions/{id}", decision),
        Route("/x/endpoints", endpoints),
        Route("/x/calls", calls),
        Route("/health", health),
        Route("/ready", ready),
    ]
    routes += _change_routes(changes)
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    app.router.redirect_slashes = False
    allowed = LOOPBACK_NAMES | {name.lower() for name in hosts if name}
    app.add_middleware(_Guard, hosts=frozenset(allowed), tokens=tokens or Tokens(), report=report)
    return app


def _change_routes(changes: EndpointChanges | None) -> list[Route]:
    if changes is None:
        return []
    return [
        Route("/x/endpoints/{id}/drain", _change(changes.drain, "draining"), methods=["POST"]),
        Route("/x/endpoints/{id}/resume", _change(changes.resume, "active"), methods=["POST"]),
    ]


def _change(act: Callable[[str], bool], state: str) -> Callable[[Request], Awaitable[Response]]:
    async def changed(request: Request) -> Response:
        name = request.path_params["id"]
        if not _ID.fullmatch(name) or not act(name):
            return error(404, "endpoint_not_found", "no endpoint of this name; /x/endpoints lists them", param="id")
        return Compact({"endpoint": name, "state": state})

    return changed


def error(status: int, code: str, message: str, *, param: str | None = None) -> Response:
    """The one shape of an error."""
    kind = "internal_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004 - the HTTP class
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return Compact(body, status_code=status)


async def _http_error(_: Request, exc: Exception) -> Response:
    status = exc.status_code if isinstance(exc, HTTPException) else 500
    if status == 405:  # noqa: PLR2004 - the status it handles
        answer = error(status, "method_not_allowed", "this path takes GET and HEAD, a change POST or DELETE")
        named = (exc.headers if isinstance(exc, HTTPException) else None) or {}
        taken = sorted(named.get("Allow", "").split(", "))
        answer.headers["allow"] = ", ".join(taken) if {"POST", "DELETE"} & set(taken) else "GET, HEAD"
        return answer
    return error(status, "not_found", "no such path on the admin listener")


class _Guard:
    """Outermost layer: host names, token, origins, security headers, and 500 for whatever a source raises."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: frozenset[str],
        tokens: Tokens,
        report: Callable[[str, BaseException], None] | None,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._tokens = tokens
        self._report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS:
                    headers[name] = value
            await send(message)

        refusal = self._refusal(scope)
        run: Callable[[Scope, Receive, Callable[[Message], Awaitable[None]]], Awaitable[None]] = refusal or self._app
        try:
            await run(scope, receive, send_guarded)
        except Exception as exc:  # noqa: BLE001 - a fault of one page must not reach uvicorn's own logging
            if self._report is not None:
                self._report(scope["path"], exc)
            if not started:
                await error(500, "internal", "the page could not be made")(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        named = [value for name, value in headers if name == b"host"]
        if len(named) != 1 or host_name(named[0].decode("latin-1")) not in self._hosts:
            return error(403, "host_not_allowed", "the Host header names no host of the admin listener", param="host")
        if not self._tokens.admit(scope["path"], scope["method"], headers):
            answer = error(401, "invalid_admin_token", "this path needs the admin token as bearer token")
            answer.headers["www-authenticate"] = "Bearer"
            return answer
        if scope["method"] not in _READING and not _same_origin(Headers(scope=scope)):
            return error(403, "origin_not_allowed", "changes are not taken from pages of other origins", param="origin")
        return None


def _same_origin(headers: Headers) -> bool:
    """Whether a browser says that the request comes from a page of this listener; other clients say nothing."""
    if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers["host"]


def host_name(header: str) -> str:
    """The name in a Host header, lower case, without port; `[::1]:9090` gives `[::1]`."""
    match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", header.lower())
    return match.group(1) if match else ""
