"""The ledger's endpoints on the admin listener (ledger §9): parameters in, documents out, nothing derived here.

A parameter that is not what it must be is answered 400 with its name; the source runs on worker threads.
"""

from __future__ import annotations

import gzip
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_ROWS: Final = (100, 1_000)
_EXPORT_ROWS: Final = (1_000, 10_000)
_EXPORTS_PER_MIN: Final = 60
_DAY_MS: Final = 86_400_000
_UNITS_MS: Final = {"m": 60_000, "h": 3_600_000, "d": _DAY_MS, "w": 7 * _DAY_MS}
_WINDOW_MAX_MS: Final = 400 * _DAY_MS
_FILTERS: Final = {
    "calls": {"tenant": "tenant", "session": "session_id", "model": "selected_model", "outcome": "outcome"},
    "attempts": {"model": "model"},
}
_EVERYWHERE: Final = {"call_id": "call_id", "provider": "provider", "replica": "replica"}
_TEXT_MAX: Final = 1_024
# For the source: nobody asked for a window.
_AS_CONFIGURED: Final = -1


class LedgerSource(Protocol):
    """What the pages ask; every method may block and runs on a worker thread. ValueError means a bad cursor."""

    def rows(self, table: str, filters: Mapping[str, str], limit: int, cursor: str) -> dict[str, Any]:
        """Calls or attempts, newest first."""

    def sessions(self, window_ms: int, limit: int, cursor: str) -> dict[str, Any]:
        """Sessions of all tenants, the latest first."""

    def document(self, name: str, window_s: int) -> dict[str, Any]:
        """The page `market`, `cost-accuracy` or `ledger`."""

    def export(self, table: str, since_ms: int, cursor: str, limit: int) -> tuple[bytes, str, bool]:
        """Lines, the cursor behind them, and whether more are there."""


class BadParameterError(ValueError):
    """A parameter is not what it must be."""

    def __init__(self, name: str, seen: str, expected: str) -> None:
        """Say which, what was seen and what was expected."""
        super().__init__(f"{name} is {seen[:40]!r}, expected {expected}")
        self.name = name


def routes(source: LedgerSource, *, monotonic: Callable[[], float] = time.monotonic) -> list[Route]:
    """The endpoints over one ledger."""
    exports: deque[float] = deque(maxlen=_EXPORTS_PER_MIN)

    async def newest(request: Request) -> Response:
        table = request.url.path.removeprefix("/x/")
        filters = _filters(request, table)
        limit = _integer(request, "limit", _ROWS[0], 1, _ROWS[1])
        cursor = request.query_params.get("cursor", "")
        return _document(await run_in_threadpool(source.rows, table, filters, limit, cursor))

    async def sessions(request: Request) -> Response:
        limit = _integer(request, "limit", _ROWS[0], 1, _ROWS[1])
        cursor = request.query_params.get("cursor", "")
        window_ms = window_of(request.query_params.get("window", "24h"))
        return _document(await run_in_threadpool(source.sessions, window_ms, limit, cursor))

    async def page(request: Request) -> Response:
        window_s = _integer(request, "window_s", _AS_CONFIGURED, 0, 2**31)
        return _document(await run_in_threadpool(source.document, request.url.path.removeprefix("/x/"), window_s))

    async def export(request: Request) -> Response:
        now = monotonic()
        if len(exports) == _EXPORTS_PER_MIN and now - exports[0] < 60:  # noqa: PLR2004 - a minute
            answer = _error(429, "rate_limited", f"at most {_EXPORTS_PER_MIN} exports per minute", None)
            answer.headers["retry-after"] = str(int(60 - (now - exports[0])) + 1)
            return answer
        exports.append(now)
        limit = _integer(request, "limit", _EXPORT_ROWS[0], 1, _EXPORT_ROWS[1])
        since_ms = _integer(request, "since_ms", 0, 0, 2**53)
        cursor = request.query_params.get("cursor", "")
        table = request.path_params["table"]
        body, following, more = await run_in_threadpool(source.export, table, since_ms, cursor, limit)
        headers = {"x-turnout-next-cursor": following, "x-turnout-has-more": "true" if more else "false"}
        headers["vary"] = "accept-encoding"
        if re.search(r"(^|[,\s])gzip\s*($|[,;])(?!\s*q=0(\.0*)?\s*($|,))", request.headers.get("accept-encoding", "")):
            body = await run_in_threadpool(gzip.compress, body, 1)
            headers["content-encoding"] = "gzip"
        return Response(body, media_type="application/x-ndjson", headers=headers)

    return [
        Route("/x/calls", _guarded(newest)),
        Route("/x/attempts", _guarded(newest)),
        Route("/x/sessions", _guarded(sessions)),
        Route("/x/market", _guarded(page)),
        Route("/x/cost-accuracy", _guarded(page)),
        Route("/x/ledger", _guarded(page)),
        Route("/x/export/{table:str}", _guarded(export)),
    ]


def window_of(text: str) -> int:
    """Read a window such as 15m, 24h, 7d or 4w.

    Raises:
        BadParameterError: it is not one, or longer than 400 days.
    """
    found = re.fullmatch(r"([0-9]{1,5})([mhdw])", text)
    window_ms = int(found[1]) * _UNITS_MS[found[2]] if found else 0
    if not 0 < window_ms <= _WINDOW_MAX_MS:
        raise BadParameterError("window", text, "such as 15m, 24h, 7d or 4w, at most 400d")
    return window_ms


Handler = Callable[[Request], Any]


def _guarded(handler: Handler) -> Handler:
    async def answer(request: Request) -> Response:
        table = request.path_params.get("table", "calls")
        if table not in _FILTERS:
            return _error(404, "not_found", "there is an export of calls and one of attempts", None)
        try:
            found: Response = await handler(request)
        except BadParameterError as error:
            return _error(400, "invalid_request", str(error), error.name)
        except ValueError as error:
            return _error(400, "invalid_request", str(error), "cursor")
        return found

    return answer


def _integer(request: Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,16}", text) or not least <= int(text) <= most:
        raise BadParameterError(name, text, f"an integer from {least} to {most}")
    return int(text)


def _filters(request: Request, table: str) -> dict[str, str]:
    known = {**_FILTERS[table], **_EVERYWHERE}
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in {"limit", "cursor"}:
            continue
        if name == "route":
            found.update(_route(value))
        elif name not in known:
            raise BadParameterError(name, value, f"a filter of {', '.join(sorted(known))} or route")
        elif len(value) > _TEXT_MAX or "\0" in value:
            raise BadParameterError(name, value, f"at most {_TEXT_MAX} characters")
        else:
            found[known[name]] = value
    return found


def _route(text: str) -> dict[str, str]:
    """Take `provider|model|replica` apart, each part percent-encoded."""
    parts = text.split("|")
    if len(parts) != 3 or len(text) > _TEXT_MAX:  # noqa: PLR2004 - the parts of a route key
        raise BadParameterError("route", text, "provider|model|replica")
    plain = [re.sub("%([0-9A-F]{2})", lambda match: chr(int(match[1], 16)), part) for part in parts]
    return dict(zip(("provider", "model", "replica"), plain, strict=True))


def _document(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def _error(status: int, code: str, message: str, param: str | None) -> Response:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")
