"""Joining two Anthropic streams (resilience R4 to R6): wherever the first one broke, the client reads one message."""

from __future__ import annotations

import json
from typing import Any

import pytest

from turnout.dialects.anthropic_resume import MessageJoiner, asked, sent
from turnout.dialects.resume import COMMENT

Said = dict[str, Any]


def raw(document: Said) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (document["type"].encode(), json.dumps(document).encode())


def started(identity: str) -> Said:
    message = {"id": identity, "type": "message", "role": "assistant", "content": [], "usage": {"input_tokens": 9}}
    return {"type": "message_start", "message": message}


def block(index: int, begun: Said, *deltas: Said) -> list[Said]:
    return [
        {"type": "content_block_start", "index": index, "content_block": begun},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def thinking(index: int, *words: str) -> list[Said]:
    deltas = [{"type": "thinking_delta", "thinking": word} for word in words]
    signature = {"type": "signature_delta", "signature": "sig"}
    return block(index, {"type": "thinking", "thinking": "", "signature": ""}, *deltas, signature)


def text(index: int, *words: str) -> list[Said]:
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": word} for word in words))


def tool(index: int) -> list[Said]:
    deltas = [{"type": "input_json_delta", "partial_json": part} for part in ('{"track"', ": 2}")]
    return block(index, {"type": "tool_use", "id": "t1", "name": "set_points", "input": {}}, *deltas)


def stopped(reason: str = "end_turn") -> list[Said]:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return [{"type": "message_delta", "delta": delta, "usage": {"output_tokens": 7}}, {"type": "message_stop"}]


FIRST = [
    started("one"),
    {"type": "ping"},
    *thinking(0, "hm ", "so "),
    *text(1, "The quick ", "brown ", "fox"),
    *stopped(),
]
SECOND = [
    started("two"),
    *thinking(0, "hm so ", ""),
    *text(1, "The ", "quick brown", " fox"),
    {"type": "ping"},
    *stopped(),
]


def read(events: bytes) -> list[Said]:
    """The message that a client puts together; raises where the protocol is broken."""
    blocks: list[Said] = []
    ended: list[bool] = []
    seen: list[str] = []
    for event in events.split(b"\n\n"):
        if not event or event.startswith(b":"):
            continue
        said = json.loads(event.partition(b"data: ")[2])
        kind, index = said["type"], said.get("index")
        seen.append(kind)
        if kind == "content_block_start":
            assert index == len(blocks)
            assert all(ended)
            blocks.append(dict(said["content_block"]))
            ended.append(False)
        elif kind == "content_block_delta":
            assert not ended[index]
            for name, part in said["delta"].items():
                if name != "type":
                    blocks[index][name] = blocks[index].get(name, "") + part
        elif kind == "content_block_stop":
            assert not ended[index]
            ended[index] = True
    assert all(ended)
    assert seen[0] == "message_start"
    assert seen[-2:] == ["message_delta", "message_stop"]
    assert [seen.count(kind) for kind in ("message_start", "message_delta", "message_stop")] == [1, 1, 1]
    return blocks


def joined(before: list[Said], after: list[Said]) -> tuple[bytes, MessageJoiner]:
    first = b"".join(map(raw, before))
    joiner = MessageJoiner(sent(first))
    return first + b"".join(joiner.take(raw(event)) for event in after), joiner


@pytest.mark.parametrize("cut", range(1, len(FIRST)))
def test_wherever_the_first_one_broke_the_client_reads_one_message(cut: int) -> None:
    """T97 beyond the commit point."""
    stream, joiner = joined(FIRST[:cut], SECOND)
    assert not joiner.failed
    assert read(stream) == [
        {"type": "thinking", "thinking": "hm so ", "signature": "sig"},
        {"type": "text", "text": "The quick brown fox"},
    ]
    assert stream.count(COMMENT) == 1
    assert b'"id": "two"' not in stream


def test_a_tool_that_the_second_one_calls_is_shown() -> None:
    before = [started("one"), *text(0, "I will ")[:-1]]
    stream, joiner = joined(before, [started("two"), *text(0, "I will ", "set them."), *tool(1), *stopped("tool_use")])
    assert not joiner.failed
    blocks = read(stream)
    assert [one["type"] for one in blocks] == ["text", "tool_use"]
    assert blocks[1]["partial_json"] == '{"track": 2}'


DIFFERENT = {
    "another text": [started("two"), *thinking(0, "hm so "), *text(1, "The slow "), *stopped()],
    "too short": [started("two"), *thinking(0, "hm so "), *text(1, "The quick "), *stopped()],
    "an end inside the thinking": [started("two"), *thinking(0, "hm "), *text(1, "The quick brown "), *stopped()],
    "another kind of block": [started("two"), *text(0, "hm so "), *text(1, "The quick brown "), *stopped()],
    "more in a block that is over": [
        started("two"),
        *thinking(0, "hm so much"),
        *text(1, "The quick brown "),
        *stopped(),
    ],
    "a new block too early": [started("two"), *thinking(0, "hm so "), *text(2, "The"), *stopped()],
    "a tool instead of the text": [started("two"), *thinking(0, "hm so "), *tool(1), *stopped()],
    "an index that is none": [started("two"), {"type": "content_block_delta", "delta": {"type": "text_delta"}}],
}


@pytest.mark.parametrize("after", DIFFERENT.values(), ids=DIFFERENT)
def test_what_differs_is_never_shown(after: list[Said]) -> None:
    before = FIRST[:10]
    assert before[-1]["delta"]["text"] == "brown "
    stream, joiner = joined(before, after)
    assert joiner.failed
    assert b"message_stop" not in stream
    assert stream == b"".join(map(raw, before))


def test_only_the_last_word_is_missing() -> None:
    stream, joiner = joined(FIRST[:-1], SECOND)
    assert not joiner.failed
    assert stream.endswith(COMMENT + raw({"type": "message_stop"}))


@pytest.mark.parametrize(
    ("before", "opaque"),
    [
        (FIRST[:9], False),
        ([started("one"), *tool(0)], True),
        ([started("one"), *block(0, {"type": "redacted_thinking", "data": "x"})], True),
        ([started("one"), *block(0, {"type": "text", "text": ""}, {"type": "citations_delta", "citation": {}})], True),
    ],
)
def test_what_cannot_be_compared_is_not_joined(before: list[Said], opaque: bool) -> None:  # noqa: FBT001 - a column
    assert sent(b"".join(map(raw, before))).tool_call is opaque


def test_a_message_is_repeated_never_continued() -> None:
    assert not asked(b"{}").chat
