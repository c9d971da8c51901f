"""One small GET to an engine at a time, bounded in time and size; a failure is no answer, never an exception."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from turnout.core import options
from turnout.core.errors import ErrorKind
from turnout.http.client import EngineConnection
from turnout.http.reaching import engine_pool
from turnout.http.response_head import ResponseHead

_BODY_MAX_BYTES = 4 * 1024 * 1024


class Fetcher:
    """The observation connection of one endpoint, apart from those that carry requests."""

    def __init__(self, endpoint: options.Endpoint, timeout_s: float) -> None:
        url = urlsplit(endpoint.url)
        self._timeout_s = timeout_s
        self._pool = engine_pool(endpoint, options.Pool(idle_max=1), timeout_s)
        credential = f"authorization: Bearer {endpoint.api_key}\r\n" if endpoint.api_key else ""
        self._rest = f" HTTP/1.1\r\nhost: {url.netloc}\r\naccept-encoding: identity\r\n{credential}\r\n"

    async def get(self, path: str) -> tuple[int, bytes] | None:
        """Return status and body; None when no whole answer came in time."""
        answer = _Answer()
        self._pool.request(f"GET {path}{self._rest}".encode(), answer)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer.done
        except TimeoutError:
            return None
        finally:
            self._pool.cancel(answer)

    def close(self) -> None:
        """Close the connection."""
        self._pool.close()


class _Answer:
    """Collects one bounded response (`http.client.Sink`)."""

    def __init__(self) -> None:
        self.connection: EngineConnection | None = None
        self.done: asyncio.Future[tuple[int, bytes] | None] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._body: list[bytes] = []
        self._size = 0

    def on_head(self, head: ResponseHead) -> None:
        """Note the status."""
        self._status = head.status

    def on_body(self, payload: bytes, framed: bytes | None) -> None:  # noqa: ARG002 - nothing is relayed
        """Keep the body within its bound."""
        self._size += len(payload)
        if self._size <= _BODY_MAX_BYTES:
            self._body.append(payload)

    def on_end(self) -> None:
        """Answer the waiter; a body beyond the bound is no answer."""
        self._resolve((self._status, b"".join(self._body)) if self._size <= _BODY_MAX_BYTES else None)

    def on_failure(self, kind: ErrorKind, detail: str) -> None:  # noqa: ARG002 - a failed scrape is just that
        """Tell the waiter that there is no answer."""
        self._resolve(None)

    def _resolve(self, result: tuple[int, bytes] | None) -> None:
        if not self.done.done():
            self.done.set_result(result)
