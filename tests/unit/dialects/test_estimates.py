"""From a request's bytes to the estimate of its prompt (request-path §7): characters count, bytes never do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from turnout.core.admission.precheck import estimate_floor
from turnout.core.request import Request
from turnout.dialects.openai import CHAT, COMPLETIONS, EMBEDDINGS, decode

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}


def estimate(path: bytes, *, ascii_only: bool, **members: Any) -> int:
    request = decode(path, json.dumps({"model": "m", **members}, ensure_ascii=ascii_only).encode(), 64)
    assert isinstance(request, Request), request
    prompt = request.prompt
    return estimate_floor(prompt.units, prompt.messages, prompt.tools_bytes)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


CHATS: list[tuple[list[dict[str, Any]], int]] = [
    (user("a" * 400), 102), (user("你" * 400), 202), (user("a" * 142_168), 35_544), (user([text("abcd"), IMAGE]), 3), (user("é" * 400), 102),
    (user("😀" * 400), 102), (user("e\u0301" * 200), 102), (user("한" * 400), 202), (user("𠀀" * 400), 202), (user(""), 2), ([{"role": "user"}], 2),
    (user([IMAGE]), 2), (user("data:image/png;base64," + "A" * 378), 102), (user("a" * 200) + user("a" * 200), 104),
    ([{"role": "assistant", "tool_calls": [{"function": {"name": "f" * 99, "arguments": "a" * 400}}]}], 102),
    ([{"role": "assistant", "content": "a" * 40, "reasoning_content": "b" * 4000}], 12),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "expected"), CHATS)
@pytest.mark.parametrize("ascii_only", [False, True])  # escapes are six bytes for a character, UTF-8 up to four
def test_estimate_counts_characters(messages: Any, expected: int, ascii_only: bool) -> None:  # noqa: FBT001 - a column
    """T25."""
    assert estimate(CHAT, ascii_only=ascii_only, messages=messages) == expected


def test_tools_count_a_quarter_of_their_span() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "d" * 1000}}]
    span = len(json.dumps(tools))
    assert estimate(CHAT, ascii_only=False, messages=user("a" * 400), tools=tools) == (400 + 8 + span // 4) // 4


PROMPTS: list[tuple[Any, int]] = [("abc", 1), ("a" * 400, 100), ("你" * 400, 200), (["a" * 40, "a" * 400], 100)]


@pytest.mark.parametrize(("prompt", "expected"), PROMPTS)
def test_of_several_prompts_the_largest_counts(prompt: Any, expected: int) -> None:
    assert estimate(COMPLETIONS, ascii_only=False, prompt=prompt) == expected
    assert estimate(EMBEDDINGS, ascii_only=False, input=prompt) == expected
