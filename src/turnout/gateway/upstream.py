"""One endpoint as the gateway reaches it: its connections and the constant part of its request heads."""

from __future__ import annotations

from typing import Protocol
from urllib.parse import urlsplit

from turnout.core.options import Endpoint, Pool
from turnout.engines.load_headers import ASK_LOAD
from turnout.http.client import Sink
from turnout.http.reaching import engine_pool


class RequestPool(Protocol):
    """Where a request goes and an answer comes from; `EndpointPool` when that is HTTP."""

    connects_total: int
    connect_failures_total: int
    reuses_total: int

    def request(self, request: bytes, sink: Sink) -> None:
        """Send head and body; the answer goes to the sink."""

    def cancel(self, sink: Sink) -> None:
        """Give an answer up."""

    def pause(self, sink: Sink) -> bool:
        """Take nothing more from the engine for now; False when it has not been reached yet."""

    def resume(self, sink: Sink) -> None:
        """Go on."""

    def sweep(self, now: float) -> None:
        """Close what was idle for too long."""

    def close(self) -> None:
        """Close everything."""


class Reach(Protocol):
    """How the gateway reaches one endpoint: `Upstream`, or `TextUpstream` for engines that are no HTTP servers."""

    stream_usage: bool
    asks_load: bool

    @property
    def pool(self) -> RequestPool:
        """Where its requests go."""

    def refused_usage(self) -> bool:
        """Hear that a stream was refused for `stream_options`; True: ask again without."""

    def head(self, path: str, method: str = "POST") -> bytes:
        """Return request line and constant headers."""

    def whole_head(self, path: str) -> bytes:
        """Return the same for a request whose answer comes as a whole."""


class Upstream:
    """Connections and prebuilt heads of one endpoint. `stream_usage`: its streams are asked for usage (U3).

    `asks_load`: its whole answers are asked to tell of its load in a header (engines §2).
    """

    def __init__(self, endpoint: Endpoint, pool: Pool, connect_timeout_s: float) -> None:
        url = urlsplit(endpoint.url)
        self.stream_usage = endpoint.stream_usage != "no"
        self._stream_usage_known = endpoint.stream_usage != "auto"
        self.pool = engine_pool(endpoint, pool, connect_timeout_s)
        credential = f"authorization: Bearer {endpoint.api_key}\r\n" if endpoint.api_key else ""
        self._common = f"host: {url.netloc}\r\naccept-encoding: identity\r\n{credential}".encode()
        self._heads: dict[str, bytes] = {}
        self.asks_load = endpoint.load_header
        self._whole = self._common + ASK_LOAD if self.asks_load else self._common
        self._whole_heads: dict[str, bytes] = {} if self.asks_load else self._heads

    def refused_usage(self) -> bool:
        """Hear that a stream was refused for `stream_options`; True: it is not sent any more, so ask again (U4)."""
        learned = self.stream_usage and not self._stream_usage_known
        self.stream_usage = self.stream_usage and not learned
        return learned

    def head(self, path: str, method: str = "POST") -> bytes:
        """Return request line and constant headers; paths come from our own table, never from a client (U1)."""
        known = self._heads.get(path)
        if known is None:
            known = self._heads[path] = f"{method} {path} HTTP/1.1\r\n".encode() + self._common
        return known

    def whole_head(self, path: str) -> bytes:
        """Return the same for a whole answer: one head and one store of them where nothing more is asked."""
        known = self._whole_heads.get(path)
        if known is None:
            known = self._whole_heads[path] = f"POST {path} HTTP/1.1\r\n".encode() + self._whole
        return known
