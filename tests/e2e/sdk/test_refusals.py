"""Errors as the SDK's own exception classes: ours and the engine's."""

from __future__ import annotations

from typing import Any

import openai
import pytest

ASK: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_names_its_field(client: openai.OpenAI, stream: bool) -> None:  # noqa: FBT001 - a parameter
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sim", messages=[], stream=stream)
    assert caught.value.param == "messages"


def test_an_unknown_key(stack: Any) -> None:
    with stack.client(key="tt-wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model="sim", messages=ASK)
    assert caught.value.code == "invalid_api_key"


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="sim ", messages=ASK)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, openai.BadRequestError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_engine_s_refusal_is_relayed_word_for_word(
    client: openai.OpenAI,
    stack: Any,
    status: int,
    expected: type[openai.APIStatusError],
    stream: bool,  # noqa: FBT001 - a parameter
) -> None:
    stack.engine.fault("status", status=status, count=1, retry_after="7")
    with pytest.raises(expected, match=f"injected status {status}") as caught:
        client.chat.completions.create(model="sim", messages=ASK, stream=stream)
    headers = caught.value.response.headers
    assert headers["retry-after"] == "7"
    assert "x-should-retry" not in headers
    row = stack.router.call(headers["x-turnout-decision"])
    assert (row["outcome"], row["http_status"], row["attempts_n"]) == ("upstream_answered", status, 1)


def test_the_engine_s_refusal_of_our_credential_is_never_shown(client: openai.OpenAI, stack: Any) -> None:
    stack.engine.fault("status", status=401, count=1)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="sim", messages=ASK)
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_credential")
    assert "injected" not in caught.value.response.text


@pytest.mark.parametrize("stream", [False, True])
def test_too_much_context_is_refused_before_any_engine_is_asked(
    client: openai.OpenAI,
    stack: Any,
    stream: bool,  # noqa: FBT001 - a parameter
) -> None:
    before = stack.engine.state["requests_total"], stack.engine.state["requests"]
    with pytest.raises(openai.BadRequestError, match="maximum context length") as caught:
        client.chat.completions.create(
            model="sim", messages=[{"role": "user", "content": "a" * 600_000}], stream=stream
        )
    assert caught.value.code == "context_length_exceeded"
    assert (stack.engine.state["requests_total"], stack.engine.state["requests"]) == before
    row = stack.router.call(caught.value.response.headers["x-turnout-decision"])
    assert (row["outcome"], row["attempts_n"]) == ("context_exceeded", 0)
