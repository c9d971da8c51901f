"""Two Anthropic streams as one: what was sent of the first, and what of the second follows it (resilience §5).

The joined message keeps the first one's start, and its content blocks: their indices stay contiguous, each begins and
ends once. A block's text has to come again in the same block; a new block may begin when everything sent has. There is
no continuation in this dialect: engines take an assistant message at the end for a finished turn, or refuse it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from turnout.core.recovery.prefix_match import PrefixMatch, Progress, Span
from turnout.dialects.resume import COMMENT, Asked, Joiner, Resume, Sent, decoded

_TEXTS: Final = {"text_delta": "text", "thinking_delta": "thinking"}
_SIGNED: Final = "signature_delta"
_COMPARED = ("text", "thinking")


def asked(_: bytes) -> Asked:
    """Nothing of a request stands in the way of repeating it; continued it cannot be."""
    return Asked(chat=False)


def sent(events: bytes) -> Sent:
    """Read whole events that went to a client."""
    spans: list[Span] = []
    kinds: list[str] = []
    signed: set[int] = set()
    open_block, count = -1, 0
    opaque = stopped = False
    for event in map(decoded, events.split(b"\n\n")):
        kind = None if event is None else event.get("type")
        if event is None or kind is None:
            continue
        if kind == "content_block_start":
            block = _member(event, "content_block")
            kinds.append(str(block.get("type")))
            open_block = len(kinds) - 1
            opaque = opaque or kinds[-1] not in _COMPARED or event.get("index") != open_block
        elif kind == "content_block_stop":
            open_block = -1
        elif kind == "message_delta":
            stopped = True
        said = _said(event)
        if said is not None:
            spans.append(said)
            count += 1
        elif kind == "content_block_delta":
            if _member(event, "delta").get("type") == _SIGNED:
                signed.add(open_block)
            else:
                opaque = opaque or _member(event, "delta").get("type") not in _TEXTS
    return Sent(
        spans,
        count,
        tool_call=opaque,
        reasoning_open=open_block >= 0 and kinds[open_block] == "thinking",
        text="".join(text for channel, text in spans if channel.endswith(":text")),
        blocks=tuple(kinds),
        open_block=open_block,
        signed=frozenset(signed),
        stopped=stopped,
    )


def continuation_body(body: bytes, _: Sent) -> bytes:
    """Return the request as it is: nobody asks for a continuation (`asked`)."""
    return body


class MessageJoiner(Joiner):
    """Joins the second one of two messages."""

    __slots__ = ("_before", "_begun", "_open")

    def __init__(self, before: Sent) -> None:
        super().__init__(PrefixMatch(before.spans))
        self._before = before
        self._begun = len(before.blocks)
        self._open = before.open_block

    def take(self, raw: bytes) -> bytes:
        """What the client gets of one whole event; b"" for nothing, and when `failed`."""
        event = None if self.failed else decoded(raw)
        if event is None:
            return b""
        kind = event.get("type")
        if kind == "message_stop":
            shown = raw
        elif kind == "message_delta":
            shown = self._stopped(raw)
        elif kind == "content_block_start":
            shown = self._started(event, raw)
        elif kind == "content_block_delta":
            shown = self._added(event, raw)
        elif kind == "content_block_stop":
            shown = self._ended(event, raw)
        else:  # the message has begun, and nobody waits for a ping that a router can send
            return b""
        if self.failed or not shown:
            return b""
        comment = b"" if self.resumed else COMMENT
        self.resumed = True
        return comment + shown

    def _started(self, event: dict[str, Any], raw: bytes) -> bytes:
        index, block = event.get("index"), _member(event, "content_block")
        blocks = self._before.blocks
        if isinstance(index, int) and 0 <= index < len(blocks):
            self.failed = block.get("type") != blocks[index]
        elif index != self._begun or self._open >= 0 or not self.match.caught_up or self._before.stopped:
            self.failed = True
        else:
            self._begun += 1
            self._open = index
            return raw
        said = _said(event)
        return b"" if said is None else self._fed(event, "content_block", *said)

    def _added(self, event: dict[str, Any], raw: bytes) -> bytes:
        index, delta = event.get("index"), _member(event, "delta")
        if not isinstance(index, int):
            self.failed = True
            return b""
        if index >= len(self._before.blocks):  # a block of the second message alone
            self.failed = index != self._open
            return raw
        said = _said(event)
        if said is not None:
            return self._fed(event, "delta", *said)
        if delta.get("type") == _SIGNED:
            if index in self._before.signed:
                return b""
            if index == self._open and self.match.caught_up:
                return raw
            self.failed = True
        elif any(delta.get(name) for name in delta if name != "type"):
            self.failed = True  # nothing of the kind was sent, and nothing that was can be compared with it
        return b""

    def _fed(self, event: dict[str, Any], member: str, channel: str, text: str) -> bytes:
        step = self.match.feed(channel, text)
        if step.progress is Progress.MISMATCH:
            self.failed = True
        if step.progress is not Progress.RELAY:
            return b""
        if event.get("index") != self._open or member != "delta":
            self.failed = True  # the client was told that this block is complete
            return b""
        delta = _member(event, "delta")
        delta[_TEXTS[str(delta["type"])]] = step.text
        return b"event: content_block_delta\ndata: %b\n\n" % msgspec.json.encode(event)

    def _ended(self, event: dict[str, Any], raw: bytes) -> bytes:
        index = event.get("index")
        if index == self._open:
            self.failed = not self.match.caught_up
            self._open = -1
            return raw
        self.failed = not isinstance(index, int) or index >= self._begun
        return b""

    def _stopped(self, raw: bytes) -> bytes:
        if self.match.ended() is Progress.MISMATCH or self._open >= 0:
            self.failed = True
        return b"" if self._before.stopped else raw


def _member(event: dict[str, Any], name: str) -> dict[str, Any]:
    value = event.get(name)
    return value if isinstance(value, dict) else {}


def _said(event: dict[str, Any]) -> Span | None:
    """The text that an event adds, on the channel of its block and kind; None for no text."""
    index = event.get("index")
    if event.get("type") == "content_block_delta":
        delta = _member(event, "delta")
        kind = _TEXTS.get(str(delta.get("type")), "")
        text = delta.get(kind)
    elif event.get("type") == "content_block_start":
        block = _member(event, "content_block")
        kind = str(block.get("type"))
        text = block.get(kind) if kind in _COMPARED else None
    else:
        return None
    return (f"{index}:{kind}", text) if isinstance(text, str) and text else None


RESUME: Final = Resume(
    asked=asked,
    sent=sent,
    joiner=lambda before, _: MessageJoiner(before),
    continuation_body=continuation_body,
)
