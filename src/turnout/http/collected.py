"""One small answer of an engine, bounded in size, for whoever wants it whole."""

from __future__ import annotations

from collections.abc import Callable

from turnout.core.errors import ErrorKind
from turnout.http.client import EngineConnection
from turnout.http.response_head import ResponseHead


class Collected:
    """Collects a response (`http.client.Sink`); `ended` hears status and body; None: no whole answer."""

    def __init__(self, body_max_bytes: int, ended: Callable[[tuple[int, bytes] | None], None]) -> None:
        self.connection: EngineConnection | None = None
        self._body_max_bytes = body_max_bytes
        self._ended = ended
        self._status = 0
        self._body: list[bytes] = []
        self._size = 0

    def on_head(self, head: ResponseHead) -> None:
        """Note the status."""
        self._status = head.status

    def on_body(self, payload: bytes, framed: bytes | None) -> None:  # noqa: ARG002 - nothing is relayed
        """Keep the body within its bound."""
        self._size += len(payload)
        if self._size <= self._body_max_bytes:
            self._body.append(payload)

    def on_end(self) -> None:
        """Hand the answer over; one beyond the bound is none."""
        self._ended((self._status, b"".join(self._body)) if self._size <= self._body_max_bytes else None)

    def on_failure(self, kind: ErrorKind, detail: str) -> None:  # noqa: ARG002 - no answer, whatever the reason
        """Tell that there is none."""
        self._ended(None)
