"""Two OpenAI streams as one: what was sent of the first, and what of the second follows it (resilience §5).

The joined stream keeps id, created and model of the first, says no role twice, and has one terminator and one usage.
Everything here happens after a stream broke, so events are decoded and encoded again; nothing is ever invented.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from turnout.core.recovery.prefix_match import PrefixMatch, Progress, Span
from turnout.dialects.resume import COMMENT, Asked, Joiner, Resume, Sent, decoded

_REASONING = ("reasoning_content", "reasoning")
_TEXTS = (*_REASONING, "content", "refusal")
_NEVER_TWICE = ("tool_calls", "function_call")
_GUIDED = (
    "response_format",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
)
_LIMITS = ("max_tokens", "max_completion_tokens")


def asked(body: bytes) -> Asked:
    """Read a request body that has been accepted before."""
    fields: dict[str, Any] = msgspec.json.decode(body)
    return Asked(
        logprobs=fields.get("logprobs") is not None and fields["logprobs"] is not False,
        structured=any(fields.get(name) is not None for name in _GUIDED),
        chat="messages" in fields,
    )


def sent(events: bytes) -> Sent:
    """Read whole events that went to a client."""
    spans: list[Span] = []
    identity: dict[str, Any] = {}
    count, tool_call = 0, False
    for chunk in map(decoded, events.split(b"\n\n")):
        if chunk is None:
            continue
        if not identity:
            identity = {name: chunk[name] for name in ("id", "created", "model") if name in chunk}
        for choice in _choices(chunk):
            said = _said(choice)
            spans += said
            count += bool(said)
            delta = choice.get("delta")
            tool_call = tool_call or (isinstance(delta, dict) and any(delta.get(name) for name in _NEVER_TWICE))
    last = spans[-1][0] if spans else ""
    text = "".join(text for channel, text in spans if channel not in _REASONING)
    return Sent(spans, count, identity, tool_call, last in _REASONING, text)


def continuation_body(body: bytes, before: Sent) -> bytes:
    """The request whose answer is the rest: the sent text as the assistant's last message, to be continued."""
    fields: dict[str, Any] = msgspec.json.decode(body)
    fields["messages"] = [*fields["messages"], {"role": "assistant", "content": before.text}]
    fields["continue_final_message"] = True
    fields["add_generation_prompt"] = False
    for name in _LIMITS:
        if isinstance(fields.get(name), int):
            fields[name] = max(1, fields[name] - before.events)
    return msgspec.json.encode(fields)


class ChatJoiner(Joiner):
    """Joins the second one of two streams of choices."""

    __slots__ = ("_before", "_continued")

    def __init__(self, before: Sent, *, continued: bool) -> None:
        # A continuation begins where the first stream ended: nothing has to come again.
        super().__init__(PrefixMatch([] if continued else before.spans))
        self._before = before
        self._continued = continued

    def take(self, raw: bytes) -> bytes:
        """What the client gets of one whole event; b"" for nothing, and when `failed`."""
        chunk = decoded(raw)
        if self.failed or chunk is None:
            return raw if raw.startswith(b"data: [DONE]") and not self.failed else b""
        choices = _choices(chunk)
        shown = [choice for choice in choices if self._keep(choice)]
        if choices and not shown:
            return b""
        if not choices and not isinstance(chunk.get("usage"), dict):
            return b""
        chunk.update(self._before.identity)
        if choices:
            chunk["choices"] = shown
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            chunk["usage"] = self._usage(usage)
        comment = b"" if self.resumed else COMMENT
        self.resumed = True
        return b"%bdata: %b\n\n" % (comment, msgspec.json.encode(chunk))

    def _keep(self, choice: dict[str, Any]) -> bool:
        """Strip what was sent before; True when something is left to show."""
        delta = choice.get("delta")
        fields: dict[str, Any] = delta if isinstance(delta, dict) else choice
        fields.pop("role", None)
        left = False
        for channel, text in _said(choice):
            name = channel if isinstance(delta, dict) else "text"
            step = self.match.feed(channel, text)
            if step.progress is Progress.MISMATCH:
                self.failed = True
                return False
            fields[name] = step.text
            left = left or bool(step.text)
        if any(fields.get(name) for name in _NEVER_TWICE):
            left = True
            if not self.match.caught_up:
                self.failed = True
        if choice.get("finish_reason"):
            left = True
            if self.match.ended() is Progress.MISMATCH:
                self.failed = True
        return left and not self.failed

    def _usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        """R6: the prompt once, and every delivered token."""
        if not self._continued:
            return usage  # the second stream wrote the whole answer
        before = self._before.events
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(prompt, int) or not isinstance(completion, int):
            return usage
        prompt, completion = max(0, prompt - before), completion + before
        return {**usage, "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _choices(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    choices = chunk.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _said(choice: dict[str, Any]) -> list[Span]:
    """Texts of one choice in the order in which engines think and speak."""
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return [(name, delta[name]) for name in _TEXTS if isinstance(delta.get(name), str) and delta[name]]
    text = choice.get("text")
    return [("content", text)] if isinstance(text, str) and text else []


RESUME: Final = Resume(
    asked=asked,
    sent=sent,
    joiner=lambda before, continued: ChatJoiner(before, continued=continued),
    continuation_body=continuation_body,
)
