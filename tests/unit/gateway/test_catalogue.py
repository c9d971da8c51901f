"""Names of models and what may be said about them (request-path §6, §8, §9 U6)."""

from __future__ import annotations

import pytest

from turnout.core.options import Model
from turnout.gateway.advice import advice
from turnout.gateway.answers import relayed_headers
from turnout.gateway.catalogue import Catalogue
from turnout.http.response_head import parse


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue([Model(id="big", aliases=["gpt", "b"]), Model(id="org/small")], ["big", "only-served"], "big")


@pytest.mark.parametrize(
    ("name", "model"),
    [("big", "big"), ("gpt", "big"), ("b", "big"), ("org/small", "org/small"), ("only-served", "only-served")],
)
def test_M1_M2_ids_and_aliases_are_found_byte_for_byte(name: str, model: str, catalogue: Catalogue) -> None:
    assert catalogue.resolve(name) == model


@pytest.mark.parametrize(
    "name", ["", "Big", "big ", " big", "bi", "big2", "openai/big", "small", "GPT", "big\n", "ｂig"]
)
def test_M4_nothing_else_is_ever_guessed(name: str, catalogue: Catalogue) -> None:
    assert catalogue.resolve(name) == ""


def test_ids_are_sorted_and_aliases_are_not_among_them(catalogue: Catalogue) -> None:
    assert catalogue.ids() == ["big", "only-served", "org/small"]


@pytest.mark.parametrize(
    ("agent", "words"),
    [(b"LiteLLM/1", b"max_input_tokens=99"), (b"my codex thing", b"model_context_window=99"), (b"ZED", b"99"), (b"curl/8", None), (b"", None)],
)  # fmt: skip
def test_advice_is_one_short_line_for_known_agents(agent: bytes, words: bytes | None) -> None:
    text = advice(agent, 99)
    assert (text is None) is (words is None)
    if text is not None and words is not None:
        assert words in text
        assert text.isascii()
        assert len(text) <= 200
        assert b"\n" not in text


HEADERS = [
    (b"Content-Type: a/b", b"content-type: a/b"), (b"Retry-After: 5", b"retry-after: 5"), (b"X-Should-Retry: true", b"x-should-retry: true"),
    (b"OpenAI-Version: 1", b"openai-version: 1"), (b"Anthropic-Organization-Id: 1", b"anthropic-organization-id: 1"),
    (b"Anthropic-Ratelimit-Requests-Limit: 1", b"x-upstream-anthropic-ratelimit-requests-limit: 1"), (b"X-RateLimit-Limit: 1", b"x-upstream-ratelimit-limit: 1"),
    (b"X-Request-Id: 1", b"x-upstream-request-id: 1"), (b"Request-Id: 1", b"x-upstream-request-id: 1"), (b"Set-Cookie: 1", b""), (b"Server: 1", b""),
    (b"Alt-Svc: 1", b""), (b"CF-Ray: 1", b""), (b"OpenAI-Organization: 1", b""), (b"X-Turnout-Model: 1", b""), (b"Connection: close", b""),
    (b"Keep-Alive: 1", b""), (b"Upgrade: 1", b""), (b"Trailer: 1", b""), (b"Date: 1", b""), (b"X-Unknown: 1", b""),
]  # fmt: skip


@pytest.mark.parametrize(("line", "relayed"), HEADERS)
def test_U6_what_travels_back_of_an_engine_s_headers(line: bytes, relayed: bytes) -> None:
    assert relayed_headers(parse(b"HTTP/1.1 200 OK\r\n" + line)) == (relayed + b"\r\n" if relayed else b"")
