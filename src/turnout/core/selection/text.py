"""The text that a request is judged by: newest user message with text, in any dialect's body as parsed JSON.

Tool results, images and system text are not the question and are skipped (selection §3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

_CONVERSATIONS = ("messages", "input", "contents", "prompt")
_SYSTEM = ("system", "instructions", "systemInstruction")
_TEXT_TYPES = frozenset(("text", "input_text"))
_IMAGE_TYPES = frozenset(("image", "image_url", "input_image"))
_IMAGE_MEMBERS = ("inlineData", "inline_data", "fileData", "file_data")


class Texts(msgspec.Struct, frozen=True, gc=False):
    """What selection reads of a body."""

    question: str
    """Of the newest user message that has text, or of all of them."""
    first: str
    """Of the first user message, else the system text: how the conversation began."""
    has_images: bool = False


def texts_of(body: Mapping[str, Any], *, conversation: bool = False) -> Texts:
    """Take the texts out of a parsed body; `conversation` joins all user messages."""
    messages = _messages(body)
    spoken = [text for message in messages if _is_user(message) and (text := _text(message))]
    question = "\n".join(spoken) if conversation else (spoken[-1] if spoken else "")
    return Texts(question, spoken[0] if spoken else _system(body, messages), any(_has_image(m) for m in messages))


def _messages(body: Mapping[str, Any]) -> list[Any]:
    for name in _CONVERSATIONS:
        value = body.get(name)
        if isinstance(value, str):
            return [value]
        if isinstance(value, list):
            return value
    return []


def _is_user(message: object) -> bool:
    if isinstance(message, Mapping):
        return bool(message.get("role", "user") == "user")
    return isinstance(message, str)


def _parts(message: object) -> list[Any]:
    if isinstance(message, str):
        return [message]
    if not isinstance(message, Mapping):
        return []
    content = message.get("content", message.get("parts"))
    if isinstance(content, str):
        return [content]
    return content if isinstance(content, list) else []


def _text(message: object) -> str:
    found = []
    for part in _parts(message):
        if isinstance(part, str):
            found.append(part)
        elif (
            isinstance(part, Mapping) and part.get("type", "text") in _TEXT_TYPES and isinstance(part.get("text"), str)
        ):
            found.append(part["text"])
    return "\n".join(found)


def _system(body: Mapping[str, Any], messages: list[Any]) -> str:
    for name in _SYSTEM:
        value = body.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            return _text({"content": value})
        if isinstance(value, Mapping):
            return _text(value)
    system = [m for m in messages if isinstance(m, Mapping) and m.get("role") in ("system", "developer")]
    return "\n".join(_text(message) for message in system)


def _has_image(message: object) -> bool:
    return any(
        isinstance(part, Mapping) and (part.get("type") in _IMAGE_TYPES or any(name in part for name in _IMAGE_MEMBERS))
        for part in _parts(message)
    )
