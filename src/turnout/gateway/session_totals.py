"""The member `x_turnout` of an answer, for whom asks: what its session has used so far, this call included (§9).

Committed rows are read on a worker thread when such a request begins; what ended here since is added from memory. No
answer waits for the ledger: without its word in time `complete` is false and only what this process saw is counted.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import msgspec

from turnout.core.kit.lru import LruMap
from turnout.core.pricing import usd
from turnout.gateway.facts import spent

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from turnout.core.facts import CallFact
    from turnout.gateway.open_run import OpenRun
    from turnout.gateway.service import Gateway

SESSIONS_MAX = 4_096
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_SINCE_MAX = 1_024
_ASKING_MAX = 8
_NAMES = ("calls", "failed", "tokens_in", "tokens_out", "tokens_cached", "cost_nusd", "priced")

Sums = tuple[int, ...]
Key = tuple[str, str]
Committed = tuple[Sums, frozenset[str]]
"""Sums over the rows of a session, and the newest calls that are among them."""


class _Session:
    """Rows as last read, and the calls that ended since, which may or may not be among them."""

    def __init__(self) -> None:
        self.rows: Committed | None = None
        self.since: dict[str, Sums] = {}

    def read(self, rows: Committed) -> None:
        self.rows = rows
        for call_id in rows[1].intersection(self.since):
            del self.since[call_id]

    def sums(self) -> list[int]:
        total = list(self.rows[0]) if self.rows is not None else [0] * len(_NAMES)
        for one in self.since.values():
            total = [a + b for a, b in zip(total, one, strict=True)]
        return total


class SessionTotals:
    """Keeps count of the sessions that ever asked; the others cost nothing."""

    def __init__(self, gateway: Gateway, committed: Callable[[str, str], Committed]) -> None:
        """`committed` may block for seconds: it is called on worker threads."""
        self._gateway, self._committed = gateway, committed
        self._sessions: LruMap[Key, _Session] = LruMap(SESSIONS_MAX)
        self._asking = 0

    def begin(self, run: OpenRun) -> None:
        """A request wants the totals: let the rows be read while it is served."""
        session = run.session
        if not session:
            return
        key = (run.principal.tenant, session)
        known = self._sessions.use(key)
        if known is None:
            known = _Session()
            self._sessions.put(key, known)
        if self._asking < _ASKING_MAX:
            self._asking += 1
            asked = self._gateway.loop.run_in_executor(None, self._committed, *key)
            asked.add_done_callback(functools.partial(self._read, known))

    def ended(self, fact: CallFact) -> None:
        """Count a call of a session that asked."""
        if fact.session_id is None or not len(self._sessions):
            return
        known = self._sessions.peek((fact.tenant, fact.session_id))
        if known is not None:
            if len(known.since) >= _SINCE_MAX:  # the ledger has not answered for long
                del known.since[next(iter(known.since))]
            known.since[fact.call_id] = _sums_of(fact)

    def document(self, run: OpenRun) -> bytes:
        """Give the member's value for a run that is about to end well."""
        session = run.session
        known = self._sessions.peek((run.principal.tenant, session)) if session else None
        if session is None or known is None:
            return b'{"session":null}'
        tokens_in, tokens_out, tokens_cached, cost_nusd = spent(run)
        own = (1, 0, tokens_in or 0, tokens_out or 0, tokens_cached or 0, cost_nusd or 0, int(cost_nusd is not None))
        total: dict[str, Any] = dict(zip(_NAMES, map(sum, zip(known.sums(), own, strict=True)), strict=True))
        nusd = total.pop("cost_nusd")
        shown = {
            "session_id": session,
            **total,
            "cost_usd": usd(nusd),
            "in_flight": self._others(run, session),
            "complete": known.rows is not None,
        }
        return msgspec.json.encode({"session": shown})

    def replayed(self, run: OpenRun, body: bytes) -> bytes:
        """Add the member to an answer that goes out at once: an object in JSON, or all the events of a stream."""
        if not run.request.stream:
            return self.extended(run, body)
        # The last event is the one that ends the stream; line ends are those of whichever engine it came from.
        events = body.rstrip(b"\r\n")
        last = max((found.end() for found in _EVENT_END.finditer(events)), default=0)
        return body[:last] + self.event(run) + body[last:]

    def extended(self, run: OpenRun, body: bytes) -> bytes:
        """Add the member to a whole answer, an object in JSON."""
        text = body.rstrip()
        comma = b"" if text[:-1].rstrip().endswith(b"{") else b","
        return b'%b%b"x_turnout":%b}' % (text[:-1], comma, self.document(run))

    def event(self, run: OpenRun) -> bytes:
        """Give the event that stands before the last one of a stream."""
        document = self.document(run)
        if run.dialect.name == "anthropic":
            return b'event: x_turnout\ndata: {"type":"x_turnout","x_turnout":%b}\n\n' % document
        kind = b"chat.completion.chunk" if b"/chat/" in run.request.path.encode() else b"text_completion"
        model = msgspec.json.encode(run.model)
        values = (run.request_id, kind, run.started_ms // 1000, model, document)
        return b'data: {"id":"%b","object":"%b","created":%d,"model":%b,"choices":[],"x_turnout":%b}\n\n' % values

    def _others(self, run: OpenRun, session: str) -> int:
        tenant = run.principal.tenant
        open_runs = [one for one in self._gateway.runs if one is not run and one.principal.tenant == tenant]
        return sum(one.session == session for one in open_runs)

    def _read(self, known: _Session, asked: asyncio.Future[Committed]) -> None:
        self._asking -= 1
        if not asked.cancelled() and asked.exception() is None:
            known.read(asked.result())


def _sums_of(fact: CallFact) -> Sums:
    cost = fact.cost_nusd
    tokens = (fact.tokens_in or 0, fact.tokens_out or 0, fact.tokens_cached or 0)
    return (1, int(fact.cls != "ok"), *tokens, cost or 0, int(cost is not None))
