"""Which bytes of an answer change when its usage is merged, and which requests stay whole."""

from __future__ import annotations

import json

import pytest

from turnout.core.request import Prompt, Request
from turnout.core.scheduling.ask import Ask
from turnout.gateway.legs_answer import mark_whole, with_cached

USAGE = b'{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":8,"audio_tokens":0}}'
EVENT = b'data: {"id":"c","choices":[],"usage":%b}\n\n'


def test_only_the_cached_tokens_of_the_usage_change() -> None:
    assert with_cached(EVENT % USAGE, 4) == (EVENT % USAGE).replace(b'"cached_tokens":8', b'"cached_tokens":4')
    assert with_cached(EVENT % USAGE, None) == (EVENT % USAGE).replace(b'"cached_tokens":8', b'"cached_tokens":null')


def test_details_that_are_null_or_absent_are_filled_in() -> None:
    for usage in (b'{"prompt_tokens":9,"prompt_tokens_details":null}', b'{"prompt_tokens":9}'):
        merged = json.loads(with_cached(b'{"usage":%b}' % usage, 4))["usage"]
        assert merged == {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
        unknown = json.loads(with_cached(b'{"usage":%b}' % usage, None))["usage"]
        assert unknown.get("prompt_tokens_details") is None


@pytest.mark.parametrize(
    "raw",
    [
        b"data: [DONE]\n\n",
        b": ping\n\n",
        b'data: {"choices":[{"delta":{"content":"\\"usage\\": {}"}}]}\n\n',
        b'data: {"usage":null}\n\n',
        b"{",
        b'{"usage":[1]}',
    ],
)
def test_everything_else_passes_as_it_is(raw: bytes) -> None:
    assert with_cached(raw, 4) == raw


def request(
    body: bytes = b'{"messages":[]}', path: str = "/v1/chat/completions", n: int = 1, limit: int | None = None
) -> Request:
    return Request("openai", path, body, "m", Prompt(), n=n, max_tokens=limit)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(), ""),
        (request(limit=2), ""),
        (request(limit=1), "one_token"),
        (request(n=2), "n"),
        (request(path="/v1/embeddings"), "path"),
        (request(b'{"echo":true}', "/v1/completions"), "prompt_output"),
        (request(b'{"prompt_logprobs":1}'), "prompt_output"),
        (request(b'{"messages":[{"role":"user","content":"\\"echo\\""}]}'), ""),
    ],
)
def test_what_must_stay_whole_says_why(asked: Request, reason: str) -> None:
    ask = Ask("m", [], 10, 10)
    mark_whole(ask, asked)
    assert ask.whole == reason
