"""What of an answer enters the response cache, and the form in which it leaves it again.

Nothing here looks anything up. Whatever is not whole, not counted or not understood is not kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from turnout.core.errors import Outcome
from turnout.core.response_cache.eligibility import Consent, Ended, may_store
from turnout.core.response_cache.key import CacheKey
from turnout.core.response_cache.store import Answer, Place
from turnout.core.types import Usage
from turnout.dialects.openai_replay import as_answer, as_events, recorded, usage_of, with_usage

if TYPE_CHECKING:
    from turnout.gateway.run import Run

_BODY = msgspec.json.Decoder(dict[str, Any])


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
    """Take what was relayed, without its usage event: that is told to those who ask for it."""
    kept = run.response.kept if run.response is not None else None
    stream = b"".join(kept) if kept is not None else b""
    found = recorded(stream, run.request.n)
    usage = run.response.usage if run.response is not None else None
    ticket.body = b""  # looked at, and by itself nothing that may be stored
    if found is not None and usage is not None:
        said = usage_of(stream) or _usage(usage)
        ticket.body, ticket.ends, ticket.usage = found.body, (found.finishes, found.tools), msgspec.json.encode(said)


Cost = Callable[[str, str, Usage], int | None]
"""(provider, model, usage) → what the call cost in nano-USD; None is unknown."""


def stored_answer(run: Run, ticket: Ticket, outcome: Outcome, cost: Cost, *, store_tool_calls: bool) -> Answer | None:
    """Return what a run delivered as it is stored; None when it may not be."""
    attempts = run.exchange.attempts if run.exchange is not None else []
    usage = attempts[-1].usage if attempts else None
    body = ticket.body
    assert body is not None  # the caller looked
    finishes, tools = ticket.ends if ticket.ends is not None else _finishes(body)
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


def carried(answer: Answer, kind: str, *, stream: bool, usage: bool) -> bytes | None:
    """Return a stored answer in the form that a request wants; None when that would lose something."""
    if not stream:
        return answer.body if kind == "json" else as_answer(answer.body, msgspec.json.decode(answer.usage))
    if kind == "json":
        return as_events(answer.body, usage=usage)
    return with_usage(answer.body, msgspec.json.decode(answer.usage)) if usage else answer.body


def _usage(usage: Usage) -> dict[str, Any]:
    """Return what an engine's usage event said, whose text was not relayed."""
    tokens_in, tokens_out = usage.tokens_in or 0, usage.tokens_out or 0
    said: dict[str, Any] = {
        "prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out,
    }  # fmt: skip
    if usage.tokens_cached is not None:
        said["prompt_tokens_details"] = {"cached_tokens": usage.tokens_cached}
    if usage.tokens_reasoning is not None:
        said["completion_tokens_details"] = {"reasoning_tokens": usage.tokens_reasoning}
    return said


def _finishes(body: bytes) -> tuple[tuple[str, ...], bool]:
    """Return the finish reason of every choice (empty when one has none) and whether any calls a tool."""
    try:
        choices = _BODY.decode(body).get("choices")
    except (msgspec.DecodeError, RecursionError):
        return (), False
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        return (), False
    reasons = tuple([str(choice.get("finish_reason") or "") for choice in choices])
    messages = [choice.get("message") for choice in choices]
    tools = any(isinstance(m, dict) and (m.get("tool_calls") or m.get("function_call")) for m in messages)
    return (reasons if all(reasons) else ()), tools or "tool_calls" in reasons
