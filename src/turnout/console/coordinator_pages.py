"""The coordinator door on the admin listener: how it stands, and where each request went (coordinator §8).

The schedule may have a million records: it is taken as it stands when asked for, and encoded part by part on a worker
thread while it is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from turnout.console.admin import Compact, error

_FORMATS = {"json": "application/json", "jsonl": "application/x-ndjson"}


class CoordinatorSource(Protocol):
    """What the pages ask of the door, on the loop."""

    def overview(self) -> dict[str, Any]:
        """State, engines and what is open."""

    def schedule(self, *, lines: bool) -> Iterator[bytes] | None:
        """The schedule so far, in parts, as one document or line by line; None when none is kept."""


def routes(source: CoordinatorSource) -> list[Route]:
    """The endpoints over one door."""

    async def overview(_: Request) -> Response:
        return Compact(source.overview())

    async def schedule(request: Request) -> Response:
        wanted = request.query_params.get("format", "json")
        if wanted not in _FORMATS:
            message = f"format is {wanted[:40]!r}, expected json or jsonl"
            return error(400, "invalid_request", message, param="format")
        parts = source.schedule(lines=wanted == "jsonl")
        if parts is None:
            return error(
                404, "schedule_not_kept", "the door keeps no schedule; coordinator.schedule_path switches it on"
            )
        return StreamingResponse(parts, media_type=_FORMATS[wanted])

    return [Route("/x/coordinator", overview), Route("/x/coordinator/schedule", schedule)]
