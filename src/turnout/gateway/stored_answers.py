"""What of an answer enters the response cache, and the form in which it leaves it again.

Nothing here looks anything up. Whatever is not whole, not counted or not understood is not kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from turnout.core.errors import Outcome
from turnout.core.response_cache.eligibility import Consent, Ended, may_store
from turnout.core.response_cache.key import CacheKey
from turnout.core.response_cache.store import Answer, Place
from turnout.core.usage import Usage
from turnout.dialects import anthropic_replay, openai_replay
from turnout.dialects.replay import Replay

if TYPE_CHECKING:
    from turnout.gateway.run import Run

REPLAYS: dict[str, Replay] = {"openai": openai_replay.REPLAY, "anthropic": anthropic_replay.REPLAY}


class Ticket:
    """A run's place in the cache: under which key it looked, and what it will store."""

    __slots__ = ("body", "consent", "ends", "follows", "head", "key", "leads", "place", "timer", "usage")

    def __init__(self, key: CacheKey, place: Place | None, given: Consent) -> None:
        self.key, self.place, self.consent = key, place, given
        self.leads = self.follows = False
        self.timer: asyncio.TimerHandle | None = None
        self.head: tuple[tuple[bytes, bytes], ...] = ()
        self.body: bytes | None = None
        self.ends: tuple[tuple[str, ...], bool] | None = None
        """Of a stream: finish reasons, and whether it calls tools."""
        self.usage = b""


def keep_stream(run: Run, ticket: Ticket) -> None:
    """Take what was relayed; usage that is not told to everybody is kept apart."""
    replay = REPLAYS[ticket.key.dialect]
    kept = run.response.kept if run.response is not None else None
    stream = b"".join(kept) if kept is not None else b""
    found = replay.recorded(stream, run.request.n)
    usage = run.response.usage if run.response is not None else None
    ticket.body = b""  # looked at, and by itself nothing that may be stored
    if found is not None and usage is not None:
        ticket.body, ticket.ends = found.body, (found.finishes, found.tools)
        ticket.usage = msgspec.json.encode(replay.reported(stream, usage))


Cost = Callable[[str, str, Usage], int | None]
"""(provider, model, usage) → what the call cost in nano-USD; None is unknown."""


def stored_answer(run: Run, ticket: Ticket, outcome: Outcome, cost: Cost, *, store_tool_calls: bool) -> Answer | None:
    """Return what a run delivered as it is stored; None when it may not be."""
    attempts = run.exchange.attempts if run.exchange is not None else []
    usage = attempts[-1].usage if attempts else None
    body = ticket.body
    assert body is not None  # the caller looked
    finishes, tools = ticket.ends if ticket.ends is not None else REPLAYS[ticket.key.dialect].finishes(body)
    ended = Ended(
        completed=outcome is Outcome.COMPLETED,
        status=run.status,
        whole=bool(finishes),
        usage_reported=usage is not None,
        rescued=run.rescue is not None,
        finish_reasons=finishes,
        tool_calls=tools,
    )
    if not may_store(ended, store_tool_calls=store_tool_calls):
        return None
    return Answer(
        status=run.status,
        head=ticket.head,
        body=bytes(body),
        source=run.call_id,
        cost_nusd=cost(attempts[-1].endpoint.provider, run.model, usage) if usage is not None else None,
        tokens_in=usage.tokens_in if usage is not None else None,
        tokens_out=usage.tokens_out if usage is not None else None,
        tokens_cached=usage.tokens_cached if usage is not None else None,
        usage=ticket.usage,
    )


def carried(dialect: str, answer: Answer, kind: str, *, stream: bool, usage: bool) -> bytes | None:
    """Return a stored answer in the form that a request wants; None when that would lose something."""
    replay = REPLAYS[dialect]
    if not stream:
        return answer.body if kind == "json" else replay.as_answer(answer.body, msgspec.json.decode(answer.usage))
    if kind == "json":
        return replay.as_events(answer.body, usage)
    return replay.with_usage(answer.body, msgspec.json.decode(answer.usage)) if usage else answer.body
