"""The key's parts from a body: what is left out, what separates, and what eligibility reads."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from turnout.core.response_cache.key import CacheKey, shape

BODY: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": [{"type": "text", "text": "How are"}, {"type": "text", "text": "you?"}]},
    ],
    "temperature": 1,
    "tools": [],
    "response_format": {"type": "text"},
}


def changed(**members: Any) -> dict[str, Any]:
    return BODY | members


@pytest.mark.parametrize(
    "name", ["model", "stream", "stream_options", "turnout", "user", "metadata", "prompt_cache_key"]
)
def test_what_does_not_change_the_answer_is_left_out(name: str) -> None:
    assert shape(changed(**{name: "x"})).digests == shape(BODY).digests


@pytest.mark.parametrize(
    ("part", "body"),
    [
        ("sampling", changed(temperature=1.0)),
        ("sampling", changed(max_tokens=5)),
        ("sampling", changed(reasoning_effort="high")),
        ("tools", changed(tools=[{"type": "function"}])),
        ("tools", changed(tool_choice="none")),
        ("format", changed(response_format={"type": "json_object"})),
        ("rest", changed(never_heard_of=1)),
        ("rest", changed(cache_salt="s")),
        ("system", changed(messages=[{"role": "system", "content": "Be long."}, *BODY["messages"][1:]])),
        ("system", changed(system="x")),
        (
            "history",
            changed(messages=[*BODY["messages"][:2], {"role": "assistant", "content": "Hey"}, BODY["messages"][3]]),
        ),
        ("last", changed(messages=[*BODY["messages"][:3], {"role": "user", "content": "How are\nyou?"}])),
    ],
)
def test_each_part_separates(part: str, body: dict[str, Any]) -> None:
    before, after = shape(BODY).digests, shape(body).digests
    assert getattr(before, part) != getattr(after, part)


def test_the_headers_that_change_the_answer_separate() -> None:
    assert shape(BODY, [("anthropic-beta", "x")]).digests.rest != shape(BODY).digests.rest


def test_order_of_members_does_not_matter() -> None:
    assert shape(dict(reversed(BODY.items()))).digests == shape(BODY).digests


def test_a_key_without_a_tenant_cannot_be_written_down() -> None:
    parts: dict[str, Any] = dict.fromkeys(CacheKey.__struct_fields__, b"")
    for name in parts:
        with pytest.raises(TypeError, match=f"Missing required argument '{name}'"):
            CacheKey(**{field: value for field, value in parts.items() if field != name})
    assert all(field.required for field in msgspec.structs.fields(CacheKey))


def test_what_eligibility_reads() -> None:
    found = shape(BODY)
    assert (found.messages, found.last_is_user, found.has_media, found.has_tools) == (3, True, False, False)
    assert found.text == "How are\nyou?"
    assert shape(changed(tools=[{}])).has_tools
    assert shape(changed(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])).has_media
    assert (
        shape(changed(messages=[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])).last_is_user
        is False
    )
    for name in ("previous_response_id", "conversation"):
        assert shape(changed(**{name: "x"})).names_state
    assert shape(changed(store=True)).names_state
    assert not shape(changed(store=False)).names_state


def test_the_other_dialects_conversations() -> None:
    gemini = shape({"contents": [{"role": "user", "parts": [{"text": "Hi"}]}], "systemInstruction": {"parts": []}})
    assert (gemini.text, gemini.last_is_user, gemini.has_media) == ("Hi", True, False)
    responses = shape({"input": "Hi", "instructions": "Be brief."})
    assert (responses.text, responses.messages, responses.last_is_user) == ("Hi", 1, True)
    assert shape({"prompt": "Hi"}).digests.last != shape({"input": "Hi"}).digests.last
    assert shape({"prompt": [[1, 2], [3]]}).has_media  # token ids: nothing a semantic look-up could read
