"""Anthropic request bodies to work for the model: the conversation in its common form, so that both doors say the same.

Whatever the model reads of a chat it reads of a message, too: system text first, results of tools as messages of their
own, calls after the text. The line that coding agents put before the system text is taken out, as vLLM does.
"""

from __future__ import annotations

from typing import Any

import msgspec

from turnout.sim.render import Message, render_chat
from turnout.sim.requests import Generate, Reader, RefusalError, Sampling, StreamOptions, decode
from turnout.sim.text import TOKEN_BYTES, pack

_ATTRIBUTION = "x-anthropic-billing-header"


class _Turn(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]]


class _Messages(Sampling, kw_only=True):
    messages: list[_Turn]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None


_messages = msgspec.json.Decoder(_Messages)


class MessagesReader(Reader):
    """Reads bodies of the Anthropic dialect for one engine."""

    def messages(self, body: bytes) -> Generate:
        """`POST /v1/messages`. Raises RefusalError."""
        asked = self._read(body)
        if asked.max_tokens is None:
            raise RefusalError(400, "max_tokens is absent: expected a positive integer", param="max_tokens")
        prompt = _rendered(asked)
        asked.stop = asked.stop_sequences
        asked.stream_options = StreamOptions(include_usage=True, continuous_usage_stats=True)
        return self._generate(asked, prompt, pack(prompt), asked.max_tokens, chat=True)

    def count(self, body: bytes) -> int:
        """`POST /v1/messages/count_tokens`. Raises RefusalError."""
        return len(pack(_rendered(self._read(body)))) // TOKEN_BYTES

    def _read(self, body: bytes) -> _Messages:
        asked = decode(_messages, body)
        self._check_model(asked.model)
        if not asked.messages:
            raise RefusalError(400, "messages = []: expected at least one message", param="messages")
        return asked


def _rendered(asked: _Messages) -> bytes:
    messages = []
    if asked.system:
        messages.append(Message("system", _system(asked.system)))
    for turn in asked.messages:
        messages += _told(turn)
    return render_chat(messages, [_function(tool) for tool in asked.tools or ()])


def _system(system: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(system, str):
        return system
    return [block for block in system if not str(block.get("text", "")).startswith(_ATTRIBUTION)]


def _told(turn: _Turn) -> list[Message]:
    """One message as the messages of the common form."""
    if isinstance(turn.content, str):
        return [Message(turn.role, turn.content)]
    told: list[Message] = []
    open_turn: Message | None = None
    for block in turn.content:
        if block.get("type") == "tool_result":
            told.append(Message("tool", block.get("content")))
            open_turn = None
            continue
        if open_turn is None:
            open_turn = Message(turn.role, [], tool_calls=[])
            told.append(open_turn)
        if block.get("type") == "tool_use":
            arguments = msgspec.json.encode(block.get("input")).decode()
            open_turn.tool_calls.append({"function": {"name": block.get("name", ""), "arguments": arguments}})  # type: ignore[union-attr]
        elif block.get("type") == "text":
            open_turn.content.append(block)  # type: ignore[union-attr]
    return told or [Message(turn.role, [])]


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    if "input_schema" not in tool:
        return tool
    named = {name: tool[name] for name in ("name", "description") if name in tool}
    return {"type": "function", "function": {**named, "parameters": tool["input_schema"]}}
