"""The tap on an OpenAI event stream: finds first output, finish reasons, usage, errors and the terminator.

Most events say none of these things, and `is_plain` recognises them by a few byte searches. Only the others are
decoded. A terminator inside a text cannot be mistaken for one: quotes inside JSON strings are escaped.

The events of one stream differ in their text only, so the first plain one shows what stands before and after the text
in the next ones. An event with the same bytes around a text without quotes is plain, too, and found with half the work.
"""

from __future__ import annotations

from typing import Final

import msgspec

from turnout.core.usage import Usage
from turnout.dialects.event_tap import TOKENS_MAX, Event, EventTap, data_of
from turnout.dialects.openai_shapes import (
    ANSWER,
    CHUNK,
    LOOSE_CHUNK,
    USAGE,
    Answer,
    Choice,
    Chunk,
    Delta,
    ReportedUsage,
)

# Shapes of plain events that one stream may show, as when it goes from reasoning to its answer: then searches must do.
_SHAPES_MAX: Final = 8
_TEXTS = (b'"content":"', b'"reasoning_content":"', b'"reasoning":"', b'"text":"')
_OUTPUT_MEMBERS = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call")


class StreamTap(EventTap):
    """Reads the events of one stream. `complete` once every choice has its finish reason."""

    __slots__ = ("_after", "_before", "_choices_n", "_finished", "_to_learn", "_wants_usage")

    def __init__(self, choices_n: int, *, wants_usage: bool, event_max_bytes: int) -> None:
        super().__init__(event_max_bytes)
        self._choices_n = choices_n
        self._wants_usage = wants_usage
        self._finished: set[int] = set()
        self._before = self._after = b""
        self._to_learn = _SHAPES_MAX

    @property
    def complete(self) -> bool:
        """Tell whether an engine ended every choice."""
        return len(self._finished) >= self._choices_n

    def is_plain(self, payload: bytes) -> int:
        """Recognise events without a finish reason, usage or error by a few searches; return how many they are."""
        events = self._alike(payload) if self._before else 0
        if not events:
            events = self._searched(payload)
            if events and self._to_learn:
                self._learn(payload[: payload.find(b"\n\n") + 2])
        return events

    def _alike(self, payload: bytes) -> int:
        """Count events that are like the one that was learnt but for their text; 0 when any is not."""
        before, after = self._before, self._after
        at, events = 0, 0
        while at < len(payload):
            if not payload.startswith(before, at):
                return 0
            at += len(before)
            quote = payload.find(b'"', at)
            if quote < 0 or not payload.startswith(after, quote) or payload.find(b"\n", at, quote) >= 0:
                return 0
            at = quote + len(after)
            events += 1
        return events

    def _learn(self, payload: bytes) -> None:
        """Remember what stands around the text of a plain event."""
        self._to_learn -= 1
        for member in _TEXTS:
            start = payload.find(member)
            if start >= 0:
                start += len(member)
                self._before, self._after = payload[:start], payload[payload.find(b'"', start) :]
                return

    @staticmethod
    def _searched(payload: bytes) -> int:
        if not (payload.startswith(b"data: {") and payload.endswith(b"}\n\n")):
            return 0
        events = payload.count(b"\n\n")
        if payload.count(b'"finish_reason":null') != events or payload.count(b'"finish_reason"') != events:
            return 0  # the second count: an event with two choices must not make up for one that ends a choice
        if b'"usage":{' in payload or b'"error"' in payload:
            return 0
        return events if events == 1 or payload.count(b"}\n\ndata: {") == events - 1 else 0

    def inspect(self, raw: bytes) -> Event:
        """Return what one whole event says."""
        data = raw[6:-2] if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 else data_of(raw)
        if data is None:
            return Event(raw)
        if data == b"[DONE]":
            self.terminated = True
            return Event(raw, done=True)
        if not (data.startswith(b"{") and data.endswith(b"}")):
            self.bad_events += 1
            self.dropped += 1
            return Event(raw, keep=False, bad=True)
        try:
            chunk = _chunk(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            self.bad_events += 1
            return Event(raw, bad=True)
        if bytes(chunk.error) != b"null":
            return Event(raw, error=data)
        if chunk.usage is not None:
            self.usage = to_usage(chunk.usage)
        choices = chunk.choices
        if not choices:
            return Event(raw, keep=self._wants_usage or chunk.usage is None or choices is None)
        output = False
        for choice in choices:
            if choice.finish_reason:  # some engines write "" for null
                self._finished.add(choice.index)
                self.tools = self.tools or choice.finish_reason == "tool_calls"
                output = True
            output = output or bool(choice.text) or (choice.delta is not None and self._has_output(choice.delta))
        return Event(raw, output=output)

    def _has_output(self, delta: Delta) -> bool:
        if delta.tool_calls or bytes(delta.function_call) != b"null":
            self.tools = True
            return True
        return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.refusal)


def answer_usage(body: bytes) -> tuple[Usage | None, bool]:
    """Return the usage of a whole JSON answer, and whether the answer is an error object."""
    try:
        try:
            answer = ANSWER.decode(body)
        except msgspec.ValidationError:  # usage of another shape: unknown
            answer = Answer(error=LOOSE_CHUNK.decode(body).error)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None, False
    return (to_usage(answer.usage) if answer.usage is not None else None), bytes(answer.error) != b"null"


def to_usage(seen: ReportedUsage) -> Usage | None:
    """Return plausible counts; negative or absurd ones make the whole usage unknown (U4)."""
    prompt, completion = seen.prompt_tokens, seen.completion_tokens
    cached = seen.prompt_tokens_details.cached_tokens if seen.prompt_tokens_details is not None else None
    thought = seen.completion_tokens_details.reasoning_tokens if seen.completion_tokens_details is not None else None
    for count in (prompt, completion, cached, thought):
        if count is not None and not 0 <= count <= TOKENS_MAX:
            return None
    if prompt is None and completion is None:
        return None
    cost = seen.cost
    if cost is None:
        return Usage(prompt, completion, cached, thought)
    said = cost if isinstance(cost, int | float | str) and not isinstance(cost, bool) else None
    return Usage(prompt, completion, cached, thought, None, said)


def _chunk(data: bytes) -> Chunk:
    """Decode one event; shapes that engines invent (content in parts, odd usage) are read as far as they go.

    Raises:
        msgspec.DecodeError: not JSON.

    """
    try:
        return CHUNK.decode(data)
    except msgspec.ValidationError:
        loose = LOOSE_CHUNK.decode(data)
    choices = _any(loose.choices)
    usage = None
    if bytes(loose.usage) != b"null":
        try:
            usage = USAGE.decode(loose.usage)
        except msgspec.DecodeError:
            usage = ReportedUsage()
    found = [_choice(item) for item in choices if isinstance(item, dict)] if isinstance(choices, list) else None
    return Chunk(found, usage, loose.error)


def _choice(seen: dict[str, object]) -> Choice:
    delta, index, finish = seen.get("delta"), seen.get("index"), seen.get("finish_reason")
    text = seen.get("text") or (isinstance(delta, dict) and any(delta.get(name) for name in _OUTPUT_MEMBERS))
    return Choice(
        index=index if isinstance(index, int) else 0,
        text="…" if text else None,
        finish_reason=str(finish) if finish else None,
    )


def _any(raw: msgspec.Raw) -> object:
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:  # numbers out of range
        return None
