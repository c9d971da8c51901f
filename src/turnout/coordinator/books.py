"""One row per request that native clients send to the door, with its attempts: told to the ledger as HTTP requests are.

Requests of the HTTP door that are served by engines of this one have their row there already.
"""

from __future__ import annotations

from collections.abc import Callable

from turnout.coordinator.peers import Attempt, Request
from turnout.core.errors import ENDINGS, UNCOUNTED, ErrorKind, Outcome
from turnout.core.facts import AttemptFact, CallFact, OpenedCall, RouteKey
from turnout.core.kit.ulid import UlidSource

COMPLETED = "completed"
_OUTCOMES = {
    COMPLETED: Outcome.COMPLETED,
    "client_gone": Outcome.CLIENT_GONE,
    "aborted": Outcome.CLIENT_GONE,
    "deadline": Outcome.DEADLINE_EXCEEDED,
    "draining": Outcome.DRAINING,
    "pending_full": Outcome.QUEUE_FULL,
    "saturated": Outcome.SHED,
    "no_engine": Outcome.NO_ENDPOINT,
    "engine_lost": Outcome.UPSTREAM_UNREACHABLE,
}
_KINDS = {
    Outcome.COMPLETED: None,
    Outcome.CLIENT_GONE: ErrorKind.CANCELLED,
    Outcome.DEADLINE_EXCEEDED: ErrorKind.DEADLINE,
    Outcome.DRAINING: ErrorKind.CANCELLED,
    Outcome.UPSTREAM_UNREACHABLE: ErrorKind.ENDPOINT_GONE,
}
_TENANT = "anonymous"
_DIALECT, _PATH = "megatron", "zmq"


class Books:
    """Keeps what ledger rows need of open requests; `opened` and `closed` once each per request."""

    def __init__(
        self,
        *,
        accepted: Callable[[OpenedCall], None],
        record: Callable[[CallFact], None],
        model: str,
        router_id: str,
        clock: Callable[[], float],
        now_ms: Callable[[], int],
        entropy: Callable[[], int],
    ) -> None:
        self._accepted = accepted
        self._record = record
        self._model = model
        self._router_id = router_id
        self._clock = clock
        self._now_ms = now_ms
        self._entropy = entropy
        self._ids = UlidSource()
        self._open: dict[Request, tuple[OpenedCall, float, list[AttemptFact]]] = {}

    def opened(self, request: Request) -> None:
        """Tell the ledger of an accepted request, before its first attempt."""
        now_ms = self._now_ms()
        call_id = self._ids.next(now_ms, self._entropy() if now_ms > self._ids.ms else 0)
        opened = OpenedCall(
            call_id,
            str(request.number),
            now_ms,
            _TENANT,
            "",
            None,
            _DIALECT,
            _PATH,
            stream=False,
            requested_model=self._model,
            selected_model=self._model,
            est_tokens=request.tokens or None,
        )
        self._open[request] = (opened, self._clock(), [])
        self._accepted(opened)

    def left(self, attempt: Attempt, outcome: Outcome = Outcome.UPSTREAM_UNREACHABLE) -> None:
        """Keep an attempt that has ended, by what ended it."""
        known = self._open.get(attempt.request)
        if known is None:
            return
        opened, began_s, attempts = known
        now = self._clock()
        kind = _KINDS.get(outcome, ErrorKind.INTERNAL)
        sent_ms = opened.started_at_ms + max(0, _ms(attempt.sent_at - began_s))
        e2e_ms = max(0, _ms(now - attempt.sent_at))
        no = len(attempts) + 1
        attempts.append(
            AttemptFact(
                no,
                "solo",
                RouteKey("", self._model, attempt.engine.name),
                "first" if no == 1 else "other",
                sent_ms,
                sent_ms + e2e_ms,
                kind is None,
                kind not in UNCOUNTED,
                attempt.first_partial or kind is None,
                kind.value if kind is not None else "",
                None,
                e2e_ms,
            )
        )

    def closed(self, request: Request, reason: str) -> None:
        """Tell the ledger how a request ended."""
        known = self._open.get(request)
        if known is None:
            return
        outcome = _OUTCOMES.get(reason, Outcome.INTERNAL_ERROR)
        if request.attempt is not None:
            self.left(request.attempt, outcome)
        opened, began_s, attempts = self._open.pop(request)
        e2e_ms = max(0, _ms(self._clock() - began_s))
        last = attempts[-1] if attempts else None
        ending = ENDINGS[outcome]
        self._record(
            CallFact(
                opened.call_id,
                opened.request_id,
                opened.started_at_ms,
                opened.started_at_ms + e2e_ms,
                e2e_ms,
                opened.tenant,
                opened.key_id,
                opened.dialect,
                opened.path,
                opened.stream,
                opened.requested_model,
                outcome.value,
                ending.cls,
                ending.status,
                tuple(attempts),
                self._router_id,
                selected_model=self._model,
                route=last.route if last is not None else None,
                error_kind=last.error_kind if last is not None else "",
                committed=last.committed if last is not None else False,
                est_tokens=opened.est_tokens,
            )
        )


def _ms(seconds: float) -> int:
    return int(seconds * 1000 + 0.5)
