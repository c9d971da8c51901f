"""One small GET to an engine at a time, bounded in time and size; a failure is no answer, never an exception."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from turnout.core import options
from turnout.http.collected import Collected
from turnout.http.reaching import engine_pool

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
        answered: asyncio.Future[tuple[int, bytes] | None] = asyncio.get_running_loop().create_future()
        answer = Collected(_BODY_MAX_BYTES, lambda found: None if answered.done() else answered.set_result(found))
        self._pool.request(f"GET {path}{self._rest}".encode(), answer)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answered
        except TimeoutError:
            return None
        finally:
            self._pool.cancel(answer)

    def close(self) -> None:
        """Close the connection."""
        self._pool.close()
