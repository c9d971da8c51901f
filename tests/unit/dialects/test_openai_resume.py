"""Joining two OpenAI streams (resilience R3 to R6)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from turnout.dialects.openai_resume import ChatJoiner, asked, continuation_body, sent
from turnout.dialects.resume import Asked


def event(content: str | None = None, *, identity: str = "one", finish: str | None = None, **delta: Any) -> bytes:
    if content is not None:
        delta["content"] = content
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {
        "id": identity,
        "object": "chat.completion.chunk",
        "created": len(identity),
        "model": "m",
        "choices": [choice],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def usage(prompt: int, completion: int, identity: str = "second") -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return b"data: " + json.dumps({"id": identity, "created": 0, "choices": [], "usage": counts}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
FIRST = event(role="assistant", content="") + event("The quick ") + b": ping\n\n" + event("brown ")
SECOND = [
    event(role="assistant", content="", identity="second"),
    event("The ", identity="second"),
    event("quick brown fox", identity="second"),
    event(" jumps", identity="second"),
    event("", identity="second", finish="stop"),
    usage(7, 5),
    DONE,
]


def joined(before: bytes, after: list[bytes], *, continued: bool = False) -> tuple[list[Any], ChatJoiner]:
    joiner = ChatJoiner(sent(before), continued=continued)
    shown = [joiner.take(raw) for raw in after]
    lines = b"".join(shown).decode().split("\n\n")
    return [json.loads(line[6:]) if line.startswith("data: {") else line for line in lines if line], joiner


def texts(shown: list[Any]) -> str:
    return "".join(c["choices"][0]["delta"].get("content", "") for c in shown if isinstance(c, dict) and c["choices"])


def test_the_second_stream_begins_where_the_first_one_broke() -> None:
    shown, joiner = joined(FIRST, SECOND)
    assert shown[0] == ": turnout resumed"
    assert texts(shown) == "fox jumps"
    assert shown[-1] == "data: [DONE]"
    assert (joiner.failed, joiner.match.suppressed) == (False, len("The quick brown "))


def test_r6_identity_of_the_first_one_terminator_one_usage_no_second_role() -> None:
    shown, _ = joined(FIRST, SECOND)
    chunks = [chunk for chunk in shown if isinstance(chunk, dict)]
    assert {(chunk["id"], chunk["created"]) for chunk in chunks} == {("one", 3)}
    assert not any("role" in choice["delta"] for chunk in chunks for choice in chunk["choices"])
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks if "usage" in chunk] == [5]
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]] == [None, None, "stop"]


@pytest.mark.parametrize(
    "second",
    [
        [event("The quick red ")],
        [event("The quick", finish="stop")],
        [event("The "), event(tool_calls=[{"index": 0}])],
        [event(reasoning_content="The quick ")],
    ],
)
def test_r5_nothing_of_an_answer_that_differs_is_shown(second: list[bytes]) -> None:
    shown, joiner = joined(FIRST, [*second, event("brown fox"), DONE])
    assert (shown, joiner.failed) == ([], True)


def test_a_difference_shows_at_the_first_character_beyond_which_nothing_equals() -> None:
    shown, joiner = joined(FIRST, [event("The quick brown ")])
    assert (shown, joiner.failed, joiner.match.caught_up) == ([], False, True)


def test_reasoning_and_tool_calls_after_the_joint_are_relayed() -> None:
    before = event(reasoning_content="Let me see")
    shown, joiner = joined(
        before, [event(reasoning_content="Let me see."), event("Yes"), event(tool_calls=[{"index": 0}])]
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in shown if isinstance(chunk, dict)]
    assert deltas == [{"reasoning_content": "."}, {"content": "Yes"}, {"tool_calls": [{"index": 0}]}]
    assert not joiner.failed


def test_what_was_sent_is_read_with_its_kind() -> None:
    assert sent(event(reasoning_content="hm")).reasoning_open
    assert not sent(event(reasoning_content="hm") + event("ok")).reasoning_open
    assert sent(event("x") + event(tool_calls=[{"index": 0}])).tool_call
    assert sent(FIRST).text == "The quick brown "
    assert sent(FIRST).events == 2
    legacy = b'data: {"id":"c","choices":[{"index":0,"text":"ab","finish_reason":null}]}\n\n'
    assert sent(legacy).spans == [("content", "ab")]


def test_a_completion_is_joined_by_its_text() -> None:
    def text(words: str) -> bytes:
        return b'data: {"id":"c","choices":[{"index":0,"text":"%b","finish_reason":null}]}\n\n' % words.encode()

    shown, _ = joined(text("ab"), [text("a"), text("bc")])
    assert [c["choices"][0]["text"] for c in shown if isinstance(c, dict)] == ["c"]


def test_r3_a_continuation_sends_the_text_as_the_last_message_and_asks_for_the_rest() -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 60}).encode()
    fields = json.loads(continuation_body(body, sent(FIRST)))
    assert fields["messages"][-1] == {"role": "assistant", "content": "The quick brown "}
    assert (fields["continue_final_message"], fields["add_generation_prompt"], fields["max_tokens"]) == (
        True,
        False,
        58,
    )


def test_r6_a_continued_answer_counts_the_prompt_once_and_every_token() -> None:
    shown, _ = joined(FIRST, [event("fox"), event("", finish="stop"), usage(9, 1)], continued=True)
    assert texts(shown) == "fox"
    counts = next(chunk["usage"] for chunk in shown if isinstance(chunk, dict) and "usage" in chunk)
    assert counts == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": []}, Asked()),
        ({"messages": [], "logprobs": True}, Asked(logprobs=True)),
        ({"prompt": "", "logprobs": 0}, Asked(logprobs=True, chat=False)),
        ({"messages": [], "response_format": {"type": "json_object"}}, Asked(structured=True)),
        ({"messages": [], "guided_regex": "a*"}, Asked(structured=True)),
        ({"messages": [], "response_format": None, "logprobs": None}, Asked()),
    ],
)
def test_what_a_request_asks_decides_over_its_rescue(fields: dict[str, Any], expected: Asked) -> None:
    assert asked(json.dumps(fields).encode()) == expected
