"""Requests in two legs on the admin listener: what was split and why, and the matrix of pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from turnout.console.admin import Compact


def routes(document: Callable[[], dict[str, Any]]) -> list[Route]:
    """The one page; `document` is asked on the loop."""

    async def disagg(_: Request) -> Response:
        return Compact(document())

    return [Route("/x/disagg", disagg, methods=["GET"])]
