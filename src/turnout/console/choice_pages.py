"""The response cache and the bundles on the admin listener: what is held, purging it, and looking at the bundles now.

Each change is told to the audit log by whoever carries it out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from turnout.console.admin import Compact, error

_FILTERS: Final = ("tenant", "model", "bundle")
_TEXT_MAX: Final = 512


class CacheSource(Protocol):
    """What the response cache answers; runs on the loop."""

    def cache_document(self) -> dict[str, Any]:
        """What each tenant holds."""

    def purge(self, filters: dict[str, str]) -> int:
        """Drop the entries that match all filters; return how many."""


def cache_routes(source: CacheSource) -> list[Route]:
    """The pages of the response cache."""

    async def cache(request: Request) -> Response:
        if request.method != "DELETE":
            return Compact(source.cache_document())
        filters: dict[str, str] = {}
        for name, value in request.query_params.multi_items():
            if name not in _FILTERS or name in filters or not 0 < len(value) <= _TEXT_MAX:
                expected = f"each of {', '.join(_FILTERS)} once, 1 to {_TEXT_MAX} characters"
                return error(
                    400, "invalid_request", f"{name[:64]} is no filter of a purge; expected {expected}", param=name[:64]
                )
            filters[name] = value
        return Compact({"dropped": source.purge(filters), **filters})

    return [Route("/x/response-cache", cache, methods=["GET", "DELETE"])]


def bundle_routes(reload: Callable[[], Awaitable[dict[str, Any]]]) -> list[Route]:
    """The page that looks at the bundles now; `reload` returns the result and the versions in force."""

    async def reloaded(_: Request) -> Response:
        document = await reload()
        return Compact(document, status_code=409 if document["result"] == "refused" else 200)

    return [Route("/x/bundles/reload", reloaded, methods=["POST"])]
