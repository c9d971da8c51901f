"""What clients may read of their own use: sessions and spend, from the ledger, on worker threads (ledger §9).

Everything is scoped by the caller's tenant in the query itself, so a foreign session and an unknown one are the same.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, unquote

import msgspec

from turnout.core.types import Refusal
from turnout.gateway.principals import ANONYMOUS, Principal

if TYPE_CHECKING:
    import asyncio

    from turnout.gateway.service import Gateway
    from turnout.http.head import Head
    from turnout.http.server import Connection

SESSION, USAGE = b"/v1/session/", b"/v1/usage"
_OPEN_MAX = 8
_SESSION_MAX = 512
_DAY_MS = 86_400_000
_UNITS_MS = {"m": 60_000, "h": 3_600_000, "d": _DAY_MS, "w": 7 * _DAY_MS}
_WINDOW_MAX_MS = 400 * _DAY_MS
_ROWS = (50, 500)
_PARAMETERS = frozenset(("window", "since_ms", "until_ms", "limit", "cursor"))
_BUSY = Refusal(503, "shed", "Too many such questions are open.", None, "overloaded", 1)
_UNANSWERED = Refusal(503, "authority_unavailable", "The ledger does not answer now.", None, "overloaded", 1)
_NO_SESSION = Refusal(404, "session_not_found", "There is no such session.", "id")


class Accounts(Protocol):
    """What is asked; every method may block for seconds. ValueError: the cursor is none."""

    def session(self, tenant: str, session: str, in_flight_ms: Sequence[int] = ()) -> dict[str, Any] | None:
        """Use of one session; None when this tenant has none of that id."""

    def usage(
        self, tenant: str, key_id: str | None, *, since_ms: int, until_ms: int, limit: int, cursor: str
    ) -> dict[str, Any]:
        """Use of a tenant, or of one of its keys, in [since, until)."""


class Reading:
    """Answers one gateway's questions; `accounts` is called on worker threads only, as it may load libraries."""

    def __init__(self, gateway: Gateway, accounts: Callable[[], Accounts]) -> None:
        self._gateway = gateway
        self._accounts = accounts
        self._open = 0

    def ask(self, connection: Connection, head: Head) -> None:
        """Answer a request for one of the paths, later."""
        question = self._question(head)
        if not isinstance(question, Refusal) and self._open >= _OPEN_MAX:
            question = _BUSY
        if isinstance(question, Refusal):
            self._gateway.routed(connection, head, question)
            return
        asker = _Asker()
        connection.attach(asker)
        self._open += 1
        future = self._gateway.loop.run_in_executor(None, question)
        future.add_done_callback(functools.partial(self._answered, connection, head, asker))

    def _question(self, head: Head) -> Callable[[], bytes | Refusal] | Refusal:
        identity = head.prepared.identity
        principal = identity if isinstance(identity, Principal) else ANONYMOUS
        if head.path == USAGE:
            asked = _usage(head.query, self._gateway.now_ms())
            if isinstance(asked, Refusal):
                return asked
            key_id = None if "usage_tenant" in principal.permissions else principal.key_id
            return lambda: msgspec.json.encode(self._accounts().usage(principal.tenant, key_id, **asked))
        session = unquote(head.path[len(SESSION) :].decode("latin-1"))
        if not 0 < len(session) <= _SESSION_MAX or "\0" in session:
            return _NO_SESSION
        tenant = principal.tenant
        starts = [
            run.started_ms for run in self._gateway.runs if run.principal.tenant == tenant and run.session == session
        ]

        def found() -> bytes | Refusal:
            document = self._accounts().session(tenant, session, starts)
            return _NO_SESSION if document is None else msgspec.json.encode(document)

        return found

    def _answered(
        self, connection: Connection, head: Head, asker: _Asker, future: asyncio.Future[bytes | Refusal]
    ) -> None:
        self._open -= 1
        if future.cancelled() or asker.gone:
            return
        error = future.exception()
        if error is None:
            answer = future.result()
        elif isinstance(error, ValueError):
            answer = _wrong("cursor", "another text", "one that a page gave")
        else:
            answer = _UNANSWERED
        self._gateway.routed(connection, head, answer)


class _Asker:
    """Who waits for an answer (`http.handler.Exchanged`)."""

    __slots__ = ("gone",)

    def __init__(self) -> None:
        self.gone = False

    def client_gone(self) -> None:
        self.gone = True

    def client_paused(self) -> None: ...

    def client_resumed(self) -> None: ...


def _usage(query: bytes, now_ms: int) -> dict[str, Any] | Refusal:
    """Read the parameters of `/v1/usage`."""
    given: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in _PARAMETERS or name in given:
            return _wrong(name[:64], value, "each of window, since_ms, until_ms, limit, cursor at most once")
        given[name] = value
    if "window" in given and ("since_ms" in given or "until_ms" in given):
        return _wrong("window", given["window"], "either a window or since_ms and until_ms")
    found = re.fullmatch(r"([0-9]{1,5})([mhdw])", given.get("window", "24h"))
    window_ms = int(found[1]) * _UNITS_MS[found[2]] if found else 0
    if not 0 < window_ms <= _WINDOW_MAX_MS:
        return _wrong("window", given["window"], "such as 15m, 24h, 7d or 4w, at most 400d")
    # A call that ends in this millisecond is in.
    bounds = {"until_ms": now_ms + 1, "since_ms": now_ms - window_ms, "limit": _ROWS[0]}
    for name in bounds:
        if name in given:
            least, most = (1, _ROWS[1]) if name == "limit" else (0, 2**53)
            text = given[name]
            if not re.fullmatch("[0-9]{1,16}", text) or not least <= int(text) <= most:
                return _wrong(name, text, f"an integer from {least} to {most}")
            bounds[name] = int(text)
    return {**bounds, "cursor": given.get("cursor", "")}


def _wrong(name: str, seen: str, expected: str) -> Refusal:
    return Refusal(400, "invalid_request", f"{name} is {seen[:40]!r}; expected {expected}.", name)
