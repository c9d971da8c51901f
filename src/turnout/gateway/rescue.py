"""A stream that broke after its first byte: whether and how another endpoint joins it (resilience §5).

The core decides who is asked (`Exchange.rescue`); here are the bytes: what was sent so far, what of the second stream
is new, and the request of a continuation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from turnout.core.errors import ErrorKind, Outcome
from turnout.core.lifecycle import GiveUp, Next
from turnout.core.recovery.rescue import BROKEN, Broken, Way, ways
from turnout.dialects.resume import Joiner, Resume, Sent

if TYPE_CHECKING:
    from turnout.core.attempt import Attempt
    from turnout.gateway.response import AttemptResponse
    from turnout.gateway.run import Run

_REFUSED_FROM: Final = 400
_REFUSED_TO: Final = 499


class Rescue:
    """The one rescue of a run: what the client has, and the ways that are left."""

    __slots__ = ("_broken", "_model", "_resume", "before", "way")

    def __init__(self, resume: Resume, model: str, before: Sent, broken: Broken) -> None:
        self._resume = resume
        self._model = model
        self.before = before
        self._broken = broken
        self.way: Way | None = None

    def next_way(self, run: Run, attempt: Attempt) -> Way | None:
        """The first way at this endpoint that has not been tried."""
        found = ways(
            self._broken, run.gateway.recovery.resume, continuation=run.gateway.recovery.continues(attempt.endpoint)
        )
        if self.way is not None:
            found = found[found.index(self.way) + 1 :] if self.way in found else ()
        self.way = found[0] if found else None
        return self.way

    def body(self, body: bytes) -> bytes:
        """The request to send."""
        return self._resume.continuation_body(body, self.before) if self.way is Way.CONTINUATION else body

    def joiner(self, model: str) -> Joiner:
        """A reader of the stream that is to join; the events of another model keep its name."""
        before = self.before
        if model != self._model:
            identity = {name: value for name, value in before.identity.items() if name != "model"}
            before = msgspec.structs.replace(before, identity=identity)
        return self._resume.joiner(before, self.way is Way.CONTINUATION)


def begin(run: Run, response: AttemptResponse, kind: ErrorKind) -> Next | None:
    """Look for an endpoint that joins the broken stream; None: the client has to be told."""
    exchange, gateway = run.exchange, run.gateway
    if exchange is None or kind not in BROKEN or response.kept is None or run.rescue is not None:
        return None
    if not gateway.recovery.rescuable(run):  # it was kept for the response cache
        return None
    resume = run.dialect.resume
    facts = resume.asked(run.request.body)
    before = resume.sent(b"".join(response.kept))
    broken = Broken(
        choices=run.request.n,
        deterministic=run.request.repeatable,
        logprobs=facts.logprobs,
        structured=facts.structured,
        tool_call_opened=before.tool_call,
        reasoning_open=before.reasoning_open,
        chat=facts.chat,
    )
    recovery = gateway.recovery
    found = ways(broken, recovery.resume, continuation=recovery.some_continue)
    if not found:
        return None
    unable: tuple[str, ...] = ()
    if Way.PREFIX_MATCH not in found:
        unable = tuple([name for name, one in gateway.fleet.endpoints.items() if not recovery.continues(one)])
    other_models = recovery.resume.scope == "fallback_models"
    following = exchange.rescue(run.clock(), unable=unable, other_models=other_models)
    if following is None:
        return None
    recovery.rescues.tried += 1
    run.rescue = Rescue(resume, run.model, before, broken)
    return following


def failed(run: Run, response: AttemptResponse, kind: ErrorKind, status: int | None, after: Next) -> Next:
    """A joining attempt failed: a refused continuation is followed by a repetition, anything else by the error."""
    exchange, rescue = run.exchange, run.rescue
    refused = status is not None and _REFUSED_FROM <= status <= _REFUSED_TO and response.joiner is not None
    if exchange is None or rescue is None or rescue.way is not Way.CONTINUATION or not refused:
        return after
    if rescue.next_way(run, response.attempt) is None or kind is ErrorKind.CANCELLED:
        return after
    again = exchange.rejoin(run.clock())
    return after if again is None else again


def joiner(run: Run, attempt: Attempt) -> Joiner | None:
    """Choose the way at the endpoint that was found, and return a reader for its stream; None: there is no way here."""
    rescue = run.rescue
    if rescue is None or (rescue.way is None and rescue.next_way(run, attempt) is None):
        return None
    return rescue.joiner(attempt.model)


def unusable(run: Run) -> Next:
    """The endpoint that was found cannot join: its attempt ends unopened."""
    exchange = run.exchange
    if exchange is None:
        return GiveUp(Outcome.STREAM_INTERRUPTED)
    return exchange.attempt_failed(ErrorKind.CANCELLED, run.clock())


class Rescues:
    """What rescues came to: tried, rescued, mismatched."""

    __slots__ = ("mismatched", "rescued", "tried")

    def __init__(self) -> None:
        self.tried = self.rescued = self.mismatched = 0
