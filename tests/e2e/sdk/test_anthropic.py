"""What the real `anthropic` SDK gets through the router from an engine, and what the ledger says about it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

ASK: list[Any] = [{"role": "user", "content": "Name the parts of a railway switch, one by one."}]
TOOLS: list[Any] = [{"name": "throw_switch", "description": "Throws it.", "input_schema": {"type": "object"}}]


def base_url(stack: Any) -> str:
    url: str = stack.router.url
    return url.removesuffix("/v1")


@pytest.fixture
def claude(stack: Any) -> Iterator[anthropic.Anthropic]:
    key = stack.client().api_key
    with anthropic.Anthropic(base_url=base_url(stack), api_key=key, max_retries=0, timeout=30.0) as client:
        yield client


def test_a_message(claude: anthropic.Anthropic, stack: Any) -> None:
    raw = claude.messages.with_raw_response.create(
        model="sim", messages=ASK, max_tokens=8, system="Be brief.", metadata={"user_id": "someone"}
    )
    answer = raw.parse()
    assert answer.content[0].type == "text"
    assert answer.content[0].text
    assert answer.stop_reason in ("max_tokens", "end_turn")
    assert raw.headers["request-id"] == raw.headers["x-request-id"]
    assert raw.headers["x-turnout-endpoint"] == "e1"
    row = stack.router.call(raw.headers["x-turnout-decision"])
    told = {name: row[name] for name in ("outcome", "class", "http_status", "stream", "dialect", "path", "user_id")}
    assert told == {
        "outcome": "completed",
        "class": "ok",
        "http_status": 200,
        "stream": 0,
        "dialect": "anthropic",
        "path": "/v1/messages",
        "user_id": "someone",
    }
    read = answer.usage.cache_read_input_tokens or 0
    assert (row["tokens_in"], row["tokens_out"]) == (answer.usage.input_tokens + read, answer.usage.output_tokens)
    assert row["usage_source"] == "engine"


def test_a_stream(claude: anthropic.Anthropic, stack: Any) -> None:
    with claude.messages.stream(model="sim", messages=ASK, max_tokens=8) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
        decision = stream.response.headers["x-turnout-decision"]
    assert len(texts) > 1
    assert "".join(texts) == final.content[0].text  # type: ignore[union-attr]  # the first block is text
    row = stack.router.call(decision)
    read = final.usage.cache_read_input_tokens or 0
    assert (row["stream"], row["outcome"], row["usage_source"]) == (1, "completed", "engine")
    assert (row["tokens_in"], row["tokens_out"]) == (final.usage.input_tokens + read, final.usage.output_tokens)
    assert row["ttft_ms"] is not None


def test_streamed_and_whole_text_are_the_same_and_that_of_the_other_door(
    claude: anthropic.Anthropic, stack: Any
) -> None:
    whole = claude.messages.create(model="sim", messages=ASK, max_tokens=12, system="Be brief.")
    with claude.messages.stream(model="sim", messages=ASK, max_tokens=12, system="Be brief.") as stream:
        streamed = stream.get_final_text()
    with stack.client() as other:
        chat: Any = other.chat.completions.create(
            model="sim", messages=[{"role": "system", "content": "Be brief."}, *ASK], max_tokens=12
        )
    assert whole.content[0].text == streamed == chat.choices[0].message.content  # type: ignore[union-attr]


def test_a_conversation_has_the_same_blocks_through_any_door(claude: anthropic.Anthropic, stack: Any) -> None:
    story = "A turnout guides trains from one track to another. " * 40
    with stack.client() as other:
        other.chat.completions.create(
            model="sim",
            max_tokens=2,
            messages=[{"role": "system", "content": story}, {"role": "user", "content": "why?"}],
        )
    raw = claude.messages.with_raw_response.create(
        model="sim", max_tokens=2, system=story, messages=[{"role": "user", "content": "why?"}]
    )
    row = stack.router.call(raw.headers["x-turnout-decision"])
    assert row["prefix_blocks"] > 4
    assert row["prefix_matched_blocks"] == row["prefix_blocks"]
    usage = raw.parse().usage
    assert usage.cache_read_input_tokens
    assert row["tokens_cached"] == usage.cache_read_input_tokens


def test_counting_tokens_is_no_generation(claude: anthropic.Anthropic, stack: Any) -> None:
    before = stack.engine.state["requests_total"]
    raw = claude.messages.with_raw_response.count_tokens(model="sim", messages=ASK, system="Be brief.", tools=TOOLS)
    counted = raw.parse().input_tokens
    usage = claude.messages.create(model="sim", messages=ASK, system="Be brief.", tools=TOOLS, max_tokens=1).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert stack.engine.state["requests_total"] == before + 1
    row = stack.router.call(raw.headers["x-turnout-decision"])
    assert (row["path"], row["outcome"], row["stream"]) == ("/v1/messages/count_tokens", "completed", 0)
    assert (row["tokens_in"], row["tokens_out"], row["prefix_blocks"]) == (None, None, 0)


def test_a_bearer_token_opens_this_door_too(stack: Any) -> None:
    key = stack.client().api_key
    with anthropic.Anthropic(base_url=base_url(stack), auth_token=key, api_key=None, max_retries=0) as client:
        assert client.messages.create(model="sim", messages=ASK, max_tokens=2).content


def test_errors_of_ours_have_the_sdk_s_classes(claude: anthropic.Anthropic, stack: Any) -> None:
    stranger = anthropic.Anthropic(base_url=base_url(stack), api_key="tt-wrong", max_retries=0)
    bad: Any = {"model": "sim", "messages": [], "max_tokens": 2}
    with stranger, pytest.raises(anthropic.AuthenticationError) as unknown:
        stranger.messages.create(model="sim", messages=ASK, max_tokens=2)
    with pytest.raises(anthropic.NotFoundError) as nowhere:
        claude.messages.create(model="sim ", messages=ASK, max_tokens=2)
    with pytest.raises(anthropic.BadRequestError, match="messages: expected a non-empty array") as empty:
        claude.messages.create(**bad)
    seen: list[anthropic.APIStatusError] = [unknown.value, nowhere.value, empty.value]
    bodies: list[Any] = [error.body for error in seen]
    assert [body["error"]["type"] for body in bodies] == [
        "authentication_error",
        "not_found_error",
        "invalid_request_error",
    ]
    assert [error.request_id for error in seen] == [body["request_id"] for body in bodies]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, anthropic.BadRequestError),
        (429, anthropic.RateLimitError),
        (500, anthropic.InternalServerError),
        (529, anthropic.APIStatusError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_s_refusal_is_relayed_word_for_word(
    claude: anthropic.Anthropic,
    stack: Any,
    status: int,
    expected: type[anthropic.APIStatusError],
    stream: bool,  # noqa: FBT001 - a parameter
) -> None:
    stack.engine.fault("status", status=status, count=1)
    with pytest.raises(expected, match=f"injected status {status}") as caught:
        claude.messages.create(model="sim", messages=ASK, max_tokens=2, stream=stream)
    assert caught.value.status_code == status
    assert caught.value.request_id


@pytest.mark.parametrize("kind", ["cut_mid_stream", "reset_mid_stream", "no_terminator", "error_event", "half_close"])
def test_a_stream_that_breaks_after_its_first_byte_raises(claude: anthropic.Anthropic, stack: Any, kind: str) -> None:
    stack.engine.fault(kind, after_tokens=3, count=1)
    seen: list[Any] = []
    with claude.messages.create(model="sim", messages=ASK, max_tokens=12, stream=True) as stream:
        with pytest.raises(anthropic.APIStatusError, match="interrupted") as caught:
            seen.extend(stream)
        decision = stream.response.headers["x-turnout-decision"]
    body: Any = caught.value.body
    assert body["error"]["type"] == "api_error"
    assert any(event.type == "content_block_delta" for event in seen)
    assert all(event.type != "message_stop" for event in seen)
    row = stack.router.call(decision)
    assert (row["outcome"], row["class"]) == ("stream_interrupted", "upstream")


@pytest.mark.parametrize("kind", ["reset", "garbage", "empty", "error_event,after_tokens=0"])
def test_a_stream_that_fails_before_its_first_byte_is_a_status(
    claude: anthropic.Anthropic, stack: Any, kind: str
) -> None:
    name, _, after = kind.partition(",")
    stack.engine.fault(name, count=1, **({"after_tokens": 0} if after else {}))
    with pytest.raises(anthropic.InternalServerError) as caught:
        claude.messages.create(model="sim", messages=ASK, max_tokens=12, stream=True)
    assert caught.value.status_code == 502
