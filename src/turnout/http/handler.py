"""What a connection asks of those above it, and tells them: the seam between the bytes of HTTP and the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from turnout.core.types import Refusal
from turnout.http.head import Head

if TYPE_CHECKING:
    from turnout.http.server import Connection


class Exchanged(Protocol):
    """What a connection tells the exchange that runs on it."""

    def client_gone(self) -> None:
        """Hear that nobody waits for the answer any more."""

    def client_paused(self) -> None:
        """Hear that the client takes bytes more slowly than they come."""

    def client_resumed(self) -> None:
        """Hear that the client has caught up."""


class Handler(Protocol):
    """Decides about heads, serves requests, words refusals."""

    def on_head(self, head: Head) -> Refusal | None:
        """Check what can be checked before the body is read (request-path §1, steps 2 to 5)."""

    def on_request(self, connection: Connection, head: Head, body: bytes) -> None:
        """Serve a complete request on the connection, now or later."""

    def refusal(self, path: bytes, refusal: Refusal, head: Head | None) -> bytes:
        """Return the whole answer of a refusal in the dialect of the path; `head` is None when none was valid."""
