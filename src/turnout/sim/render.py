"""Conversations to bytes by scheduling §1.1, as the model reads them.

One difference to block keys: the model reads on after an image or a file, which it ignores; keys stop there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from turnout.core.prefix.rendering import CALL, NAME, PROMPT, ROLE, TEXT, TOOLS, render_role

if TYPE_CHECKING:
    from collections.abc import Sequence


class Message(msgspec.Struct):
    """One message of a chat body; whatever else it carries is ignored."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


def render_chat(messages: Sequence[Message], tools: object = None, *, generation_prompt: bool = True) -> bytes:
    """The conversation, followed by the tag of the assistant's turn when `generation_prompt` is set."""
    parts: list[bytes] = []
    if tools:
        parts += (TOOLS, msgspec.json.encode(tools))
    for message in messages:
        parts += (ROLE, render_role(message.role))
        if message.name:
            parts += (NAME, message.name.encode())
        parts += _content(message.content)
        for call in message.tool_calls or ():
            function = call.get("function")
            if not isinstance(function, dict):
                continue
            parts += (CALL, str(function.get("name", "")).encode(), NAME, str(function.get("arguments", "")).encode())
    if generation_prompt:
        parts += (ROLE, b"assistant", TEXT)
    return b"".join(parts)


def render_prompt(text: str) -> bytes:
    """A completion's prompt."""
    return PROMPT + text.encode()


def _content(content: str | list[dict[str, Any]] | None) -> list[bytes]:
    if content is None:
        return []
    if isinstance(content, str):
        return [TEXT, content.encode()]
    texts = [part.get("text") for part in content]
    return [piece for text in texts if isinstance(text, str) for piece in (TEXT, text.encode())]
