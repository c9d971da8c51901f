"""Anthropic response shapes as engines write them: messages, stream events and errors, as bytes.

Counts follow the protocol's own rule: what was read from the cache is not among `input_tokens`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from turnout.sim.wire import to_json

PATH = "/v1/messages"
_PING = {"type": "ping"}


class AnthropicShape:
    """The objects of one message, whole or in events (`answers.Shape`)."""

    __slots__ = ("_head", "_stopped")

    done = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    malformed = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"text"\n\n'

    def __init__(self, *, identifier: str, model: str) -> None:
        self._head = {"id": identifier, "type": "message", "role": "assistant", "model": model}
        self._stopped: dict[str, Any] = {}

    def role(self, usage_now: dict[str, Any] | None) -> bytes:
        """What comes before the first token: the message, its one block, and a ping as the real service sends it."""
        counts = {**_counts(usage_now or {}), "output_tokens": 0}
        message = {**self._head, "content": [], **_stop(None, None), "usage": counts}
        block = {"type": "text", "text": ""}
        return b"".join(
            (
                _event({"type": "message_start", "message": message}),
                _event({"type": "content_block_start", "index": 0, "content_block": block}),
                _event(_PING),
            )
        )

    def chunk(self, text: str, finish: str | None, stop_hit: str | None, usage_now: dict[str, Any] | None) -> bytes:
        """One output event; the last one ends the block."""
        del usage_now  # only the beginning and the end of a message tell counts
        delta = {"type": "text_delta", "text": text}
        data = _event({"type": "content_block_delta", "index": 0, "delta": delta}) if text else b""
        if finish is not None:
            self._stopped = _stop(finish, stop_hit)
            data += _event({"type": "content_block_stop", "index": 0})
        return data

    def usage_event(self, usage_now: dict[str, Any]) -> bytes:
        """Why it stopped, and the counts."""
        return _event({"type": "message_delta", "delta": self._stopped, "usage": _counts(usage_now)})

    def whole(self, texts: list[str], finish: str, stop_hit: str | None, usage_now: dict[str, Any]) -> bytes:
        """The complete answer of a request that did not stream."""
        content = [{"type": "text", "text": "".join(texts)}]
        return to_json({**self._head, "content": content, **_stop(finish, stop_hit), "usage": _counts(usage_now)})

    def error(self, status: int) -> bytes:
        """An error object inside a 200."""
        kind = "overloaded_error" if status in (503, 529) else "rate_limit_error" if status == 429 else "api_error"  # noqa: PLR2004
        return to_json({"type": "error", "error": {"type": kind, "message": f"injected error {status}"}})

    def error_event(self, status: int) -> bytes:
        """The same in the middle of a stream."""
        return b"event: error\ndata: " + self.error(status) + b"\n\n"


def translated(body: bytes) -> bytes:
    """An error body of the OpenAI dialect in the other envelope; the code is gone, as it is in vLLM."""
    error = msgspec.json.decode(body)["error"]
    return to_json({"type": "error", "error": {"type": error["type"], "message": error["message"]}})


def count_body(tokens: int) -> bytes:
    """`POST /v1/messages/count_tokens`."""
    return to_json({"input_tokens": tokens})


def _event(document: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (document["type"].encode(), to_json(document))


def _stop(finish: str | None, stop_hit: str | None) -> dict[str, Any]:
    reason = "stop_sequence" if stop_hit else {"stop": "end_turn", "length": "max_tokens"}.get(finish or "")
    return {"stop_reason": reason, "stop_sequence": stop_hit}


def _counts(usage: dict[str, Any]) -> dict[str, int]:
    """Usage of the OpenAI shape in this one. Nothing is said of a cache that nothing is known of."""
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") or 0
    counts = {
        "input_tokens": usage.get("prompt_tokens", 0) - cached,
        "output_tokens": usage.get("completion_tokens", 0),
    }
    if cached:
        counts |= {"cache_read_input_tokens": cached, "cache_creation_input_tokens": 0}
    return counts
