"""Joining a second answer to a broken first one: what equals the text already sent is suppressed (resilience R4, R5).

A text is a sequence of spans, each on one channel (`reasoning`, `content`, …). The second answer has to say the same on
the same channels in the same order; at the first difference, and when it ends too early, there is no rescue. It
verifies itself: nothing is trusted but the characters.
"""

from __future__ import annotations

import enum

import msgspec

Span = tuple[str, str]
"""A channel and a text on it."""


class Progress(enum.Enum):
    """How the second answer stands to what was sent."""

    SUPPRESS = "suppress"
    RELAY = "relay"
    MISMATCH = "mismatch"


class Step(msgspec.Struct, frozen=True, gc=False):
    """What to do with one span: nothing to show, show `text`, or give up."""

    progress: Progress
    text: str = ""


class PrefixMatch:
    """Feeds the second answer's spans; `caught_up` once everything that was sent has come again."""

    __slots__ = ("_at", "_offset", "_sent", "failed", "suppressed")

    def __init__(self, sent: list[Span]) -> None:
        self._sent = merged(sent)
        self._at = 0
        self._offset = 0
        self.suppressed = 0
        """Characters that came again."""
        self.failed = False

    @property
    def caught_up(self) -> bool:
        """Whether the next character is a new one."""
        return not self.failed and self._at == len(self._sent)

    def feed(self, channel: str, text: str) -> Step:
        """Take the next span of the second answer."""
        while text and self._at < len(self._sent) and not self.failed:
            expected_channel, expected = self._sent[self._at]
            rest = expected[self._offset :]
            size = min(len(rest), len(text))
            if channel != expected_channel or text[:size] != rest[:size]:
                self.failed = True
                break
            text = text[size:]
            self.suppressed += size
            self._offset += size
            if self._offset == len(expected):
                self._at += 1
                self._offset = 0
        if self.failed:
            return Step(Progress.MISMATCH)
        return Step(Progress.RELAY, text) if text else Step(Progress.SUPPRESS)

    def ended(self) -> Progress:
        """The second answer says that it is complete: too early is a difference, too."""
        if not self.caught_up:
            self.failed = True
            return Progress.MISMATCH
        return Progress.RELAY


def merged(spans: list[Span]) -> list[Span]:
    """Neighbouring spans of one channel as one: how a text is cut into events does not matter."""
    joined: list[tuple[str, list[str]]] = []
    for channel, text in spans:
        if not text:
            continue
        if joined and joined[-1][0] == channel:
            joined[-1][1].append(text)
        else:
            joined.append((channel, [text]))
    return [(channel, "".join(texts)) for channel, texts in joined]
