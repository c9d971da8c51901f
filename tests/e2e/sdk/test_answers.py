"""What the real `openai` SDK gets through the router, and what the ledger says about it afterwards."""

from __future__ import annotations

from typing import Any

import openai

ASK: list[Any] = [{"role": "user", "content": "Name the parts of a railway switch, one by one."}]


def test_chat(client: openai.OpenAI, stack: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(model="sim", messages=ASK, max_tokens=8, user="someone")
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 8
    assert raw.headers["x-turnout-endpoint"] == "e1"
    assert raw.headers["x-turnout-attempts"] == "1"
    row = stack.router.call(raw.headers["x-turnout-decision"])
    told = {name: row[name] for name in ("outcome", "class", "http_status", "stream", "tenant", "key_id", "user_id")}
    assert told == {
        "outcome": "completed",
        "class": "ok",
        "http_status": 200,
        "stream": 0,
        "tenant": "tenant-one",
        "key_id": "one",
        "user_id": "someone",
    }
    assert (row["tokens_in"], row["tokens_out"]) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    (attempt,) = stack.router.attempts(row["call_id"])
    assert (attempt["replica"], attempt["kind"], attempt["ok"], attempt["usage_source"]) == ("e1", "first", 1, "engine")


def test_stream_without_usage_asked_shows_none_but_the_ledger_has_it(client: openai.OpenAI, stack: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(model="sim", messages=ASK, max_tokens=8, stream=True)
    chunks = list(raw.parse())
    assert "".join(c.choices[0].delta.content or "" for c in chunks)
    assert [c for c in chunks if c.usage is not None or not c.choices] == []
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    row = stack.router.call(raw.headers["x-turnout-decision"])
    assert (row["stream"], row["outcome"], row["usage_source"]) == (1, "completed", "engine")
    assert row["tokens_in"] > 0
    assert 0 < row["tokens_out"] <= 8
    assert row["ttft_ms"] is not None


def test_stream_with_usage_asked_ends_with_it(client: openai.OpenAI, stack: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="sim", messages=ASK, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    last = list(raw.parse())[-1]
    assert last.choices == []
    assert last.usage is not None
    row = stack.router.call(raw.headers["x-turnout-decision"])
    assert (row["tokens_in"], row["tokens_out"]) == (last.usage.prompt_tokens, last.usage.completion_tokens)


def test_streamed_and_whole_text_are_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="sim", messages=ASK, max_tokens=12)
    stream = client.chat.completions.create(model="sim", messages=ASK, max_tokens=12, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream) == whole.choices[0].message.content


def test_tools_pass_through(client: openai.OpenAI, stack: Any) -> None:
    tools: list[Any] = [
        {"type": "function", "function": {"name": "throw_switch", "parameters": {"type": "object", "properties": {}}}}
    ]
    raw = client.chat.completions.with_raw_response.create(model="sim", messages=ASK, max_tokens=4, tools=tools)
    assert raw.parse().choices[0].message.content
    assert stack.router.call(raw.headers["x-turnout-decision"])["tools_requested"] == 1


def test_completions(client: openai.OpenAI, stack: Any) -> None:
    raw = client.completions.with_raw_response.create(model="sim", prompt="A turnout is", max_tokens=6)
    assert raw.parse().choices[0].text
    assert stack.router.call(raw.headers["x-turnout-decision"])["path"] == "/v1/completions"


def test_streamed_completions(client: openai.OpenAI, stack: Any) -> None:
    raw = client.completions.with_raw_response.create(model="sim", prompt="A turnout is", max_tokens=6, stream=True)
    chunks = list(raw.parse())
    assert "".join(chunk.choices[0].text for chunk in chunks)
    assert stack.router.call(raw.headers["x-turnout-decision"])["tokens_out"] > 0


def test_embeddings(client: openai.OpenAI, stack: Any) -> None:
    raw = client.embeddings.with_raw_response.create(model="sim", input=["one track", "another track"])
    answer = raw.parse()
    assert len(answer.data) == 2
    assert len(answer.data[0].embedding) > 1
    row = stack.router.call(raw.headers["x-turnout-decision"])
    assert (row["path"], row["outcome"]) == ("/v1/embeddings", "completed")


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["sim"]
    assert client.models.retrieve("sim").id == "sim"


def test_a_client_s_request_id_reaches_the_engine_and_comes_back(client: openai.OpenAI, stack: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="sim", messages=ASK, max_tokens=2, extra_headers={"x-request-id": "track-9"}
    )
    assert raw.headers["x-request-id"] == "track-9"
    assert stack.engine.state["requests"][-1]["x-request-id"] == "track-9"
    assert stack.router.call(raw.headers["x-turnout-decision"])["request_id"] == "track-9"
