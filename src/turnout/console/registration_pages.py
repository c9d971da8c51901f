"""Endpoints that announce themselves: `PUT /x/endpoints/{id}` with a table of the section `[[endpoint]]`, and `DELETE`.

Whoever registers reads prompts, so both ask for a bearer token of their own; without one configured nobody registers.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from turnout.console.admin import Compact, error
from turnout.core.options import Endpoint

_BODY_MAX_BYTES = 65_536


class Registrations(Protocol):
    """What registering changes."""

    def register(self, described: Endpoint) -> str:
        """Take an endpoint; returns why not, or nothing."""

    def deregister(self, name: str) -> bool:
        """Let it go; False when it is none that has registered."""


def routes(registrations: Registrations, digest: str) -> list[Route]:
    """Return the pages; none without the digest of a token (`sha256:` and hex)."""
    if not digest:
        return []

    async def change(request: Request) -> Response:
        if not _may(request, digest):
            answer = error(401, "invalid_registration_token", "this needs the token of server.registration_digest")
            answer.headers["www-authenticate"] = "Bearer"
            return answer
        name = request.path_params["id"]
        if request.method == "DELETE":
            if not registrations.deregister(name):
                return error(404, "endpoint_not_found", "no endpoint of this name has registered", param="id")
            return Compact({"endpoint": name, "state": "gone"})
        body = await _body(request)
        if body is None:
            return error(413, "body_too_large", f"an endpoint takes at most {_BODY_MAX_BYTES} bytes")
        return _registered(registrations, name, body)

    return [Route("/x/endpoints/{id}", change, methods=["PUT", "DELETE"])]


def _registered(registrations: Registrations, name: str, body: bytes) -> Response:
    try:
        members = msgspec.json.decode(body, type=dict[str, object])
        described = msgspec.convert({"name": name, **members}, Endpoint)
    except (msgspec.DecodeError, RecursionError) as wrong:
        return error(400, "invalid_endpoint", str(wrong)[:500], param="body")
    if described.name != name:
        return error(400, "invalid_endpoint", f"name = {described.name!r}: expected {name!r}", param="name")
    first, last = described.kv_ports
    if first > last:
        return error(400, "invalid_endpoint", f"kv_ports = {first}, {last}: expected first and last", param="kv_ports")
    reason = registrations.register(described)
    if reason:
        return error(409, "endpoint_refused", reason, param="body")
    return Compact({"endpoint": name, "state": "active", "role": described.role})


async def _body(request: Request) -> bytes | None:
    """Return the body; None for one that is too large."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _BODY_MAX_BYTES:
            return None
    return body


def _may(request: Request, digest: str) -> bool:
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    own = "sha256:" + hashlib.sha256(sent.strip().encode()).hexdigest()
    return scheme.lower() == "bearer" and hmac.compare_digest(own, digest)
