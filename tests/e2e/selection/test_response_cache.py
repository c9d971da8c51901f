"""The response cache through a real router: what is replayed to whom, and what is never stored."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import openai
import pytest
from tests.support.selecting import MATHS, House

EXACT, SEMANTIC = b"x-turnout-cache-match: exact", b"x-turnout-cache-match: semantic"
CHAT = b"/v1/chat/completions"


def numbered(house: House) -> None:
    """Let each answer of the engine differ."""
    start = b'{"id":"%d","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}'

    def says(_: Any) -> list[bytes]:
        body = start % len(house.engine.requests)
        return [
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: up\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        ]

    house.engine.says(says)  # type: ignore[arg-type]


def test_an_exact_match_is_replayed_byte_for_byte(caching: House) -> None:
    numbered(caching)
    first = caching.ask(MATHS, EXACT, name="cached")
    second = caching.ask(MATHS, EXACT, name="cached")
    assert (first.header(b"x-turnout-cache"), second.header(b"x-turnout-cache")) == (b"miss", b"exact")
    assert (second.body, second.header(b"content-type")) == (first.body, b"application/json")
    assert second.header(b"x-turnout-cache-age-s") == b"0"
    assert second.header(b"x-upstream-request-id") is None
    assert second.header(b"x-turnout-decision") != first.header(b"x-turnout-decision")
    assert len(caching.engine.requests) == 1
    fact = caching.fact(1)
    assert (fact.outcome, fact.cache_match, fact.cost_basis, fact.cost_nusd) == ("cached", "exact", "cache", 0)
    assert fact.cache_source == first.header(b"x-turnout-decision").decode()
    assert (fact.tokens_in, fact.attempts) == (3, ())


def test_a_semantic_match_passes_threshold_and_guard(caching: House) -> None:
    numbered(caching)
    caching.ask("please prove the integral theorem", SEMANTIC, name="cached")
    seen = caching.ask("Please prove the integral theorem!", SEMANTIC, name="cached")
    assert (seen.header(b"x-turnout-cache"), seen.header(b"x-turnout-cache-similarity")) == (b"semantic", b"1.000")
    assert (
        caching.ask("please not prove the integral theorem", SEMANTIC, name="cached").header(b"x-turnout-cache")
        == b"miss"
    )
    assert caching.ask("Please prove the integral theorem!", EXACT, name="cached").header(b"x-turnout-cache") == b"miss"


def test_tenant_in_key_on_every_path(caching: House) -> None:
    numbered(caching)
    for path, body in ((CHAT, {}), (b"/v1/completions", {"prompt": MATHS})):  # messages: test_replayed_messages
        for model in ("auto", "big"):
            asked: dict[str, Any] = {"name": "cached", "path": path, "model": model, **body}
            assert caching.ask(MATHS, EXACT, **asked).header(b"x-turnout-cache") == b"miss"
            assert caching.ask(MATHS, EXACT, **{**asked, "name": "rival"}).header(b"x-turnout-cache") == b"miss"
            assert caching.ask(MATHS, SEMANTIC, **{**asked, "name": "rival"}).header(b"x-turnout-cache") == b"exact"


def test_key_covers_what_changes_the_answer(caching: House) -> None:
    numbered(caching)
    base: dict[str, Any] = {"name": "cached", "model": "big"}
    caching.ask(MATHS, EXACT, **base)
    for change in (
        {"temperature": 0.5}, {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"model": "small"}, {"seed": 1},
        {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": MATHS}]}, {"response_format": {"type": "json_object"}}, {"unknown": 1},
    ):  # fmt: skip
        assert caching.ask(MATHS, EXACT, **{**base, **change}).header(b"x-turnout-cache") == b"miss"
    for change in ({"user": "somebody"}, {"metadata": {"a": "b"}}, {"prompt_cache_key": "k"}):
        assert caching.ask(MATHS, EXACT, **{**base, **change}).header(b"x-turnout-cache") == b"exact"


def test_consent_is_needed_and_can_only_narrow(caching: House) -> None:
    assert caching.ask(MATHS).header(b"x-turnout-cache") == b"bypass"
    for name, line in (("plain", EXACT), ("expert", SEMANTIC), ("cached", b"x-turnout-cache-threshold: 0.89")):
        seen = caching.ask(MATHS, line, SEMANTIC if b"threshold" in line else b"x-unknown: 1", name=name)
        assert (seen.status, seen.code) == (403, "control_not_allowed")
    assert caching.ask(MATHS, b"x-turnout-cache-match: yes", name="cached").status == 400
    assert caching.ask(MATHS, b"x-turnout-cache-threshold: 2", name="cached").status == 400


def test_refresh_and_cache_control(caching: House) -> None:
    numbered(caching)
    first = caching.ask(MATHS, EXACT, name="cached")
    fresh = caching.ask(MATHS, b"x-turnout-cache-match: refresh", name="cached")
    assert fresh.body != first.body
    assert caching.ask(MATHS, EXACT, name="cached").body == fresh.body
    assert caching.ask(MATHS, EXACT, b"cache-control: no-cache", name="cached").header(b"x-turnout-cache") == b"miss"
    assert caching.ask(MATHS, EXACT, b"cache-control: no-store", name="cached").header(b"x-turnout-cache") == b"bypass"
    assert caching.ask(MATHS, EXACT, name="cached", stream=True).header(b"x-turnout-cache") in (b"bypass", None)
    assert caching.ask(MATHS, EXACT, name="cached", n=2).header(b"x-turnout-cache") == b"bypass"


BAD = [
    b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}',
    b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"content_filter"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}',
    b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":null}],"usage":{"prompt_tokens":1,"completion_tokens":1}}',
    b'{"choices":[{"index":0,"message":{"tool_calls":[{"id":"1"}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}',
]


@pytest.mark.parametrize("body", BAD)
def test_only_complete_answers_are_stored(caching: House, wire: Any, body: bytes) -> None:
    caching.engine.says(wire.answer(body))
    for _ in range(2):
        assert caching.ask(MATHS, EXACT, name="cached").header(b"x-turnout-cache") == b"miss"


def waiting_for(caching: House) -> int:
    """How many requests wait for an equal one; -1: no flight is open."""
    cache = caching.router.app.gateway.response_cache
    assert cache is not None
    waiting = list(cache._flights._waiting.values())
    return sum(len(one) for one in waiting) if waiting else -1


def test_equal_requests_at_once_make_one_attempt(caching: House, wire: Any) -> None:
    gate = wire.Gate()
    caching.engine.says([gate, wire.answer()])
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(caching.ask, MATHS, EXACT, name="cached", model="big") for _ in range(12)]
        assert caching.router.eventually(lambda: waiting_for(caching) == 11)
        gate.open()
        seen = [one.result() for one in waiting]
    assert sorted(one.header(b"x-turnout-cache") for one in seen) == [b"exact"] * 11 + [b"miss"]
    assert len(caching.engine.requests) == 1


def test_a_failing_leader_lets_everybody_go_on(caching: House, wire: Any) -> None:
    gate = wire.Gate()
    caching.engine.says([gate, wire.answer(b'{"error":{}}', 400)], [wire.answer()])
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(caching.ask, MATHS, EXACT, name="cached", model="big") for _ in range(4)]
        assert caching.router.eventually(lambda: waiting_for(caching) == 3)
        gate.open()
        seen = [one.result() for one in waiting]
    assert sorted(one.status for one in seen) == [200, 200, 200, 400]


def test_a_follower_that_leaves_frees_its_place(caching: House, wire: Any) -> None:
    gate = wire.Gate()
    caching.engine.says([gate, wire.answer()])
    body = {"model": "big", "messages": [{"role": "user", "content": MATHS}]}
    clients = [caching.router.client() for _ in range(2)]
    for client in clients:
        client.send(caching.router.request(body, EXACT, key="key-cached"))
    assert caching.router.eventually(lambda: waiting_for(caching) == 1)
    for client in clients:
        client.close()
    assert caching.router.eventually(lambda: waiting_for(caching) == -1)
    assert {caching.router.records.fact(index).outcome for index in (0, 1)} == {"client_gone"}
    gate.open()


def test_what_happened_can_be_scraped(caching: House) -> None:
    from turnout.choosing import choice_stats

    caching.ask(MATHS, EXACT, name="cached")
    caching.ask(MATHS, EXACT, name="cached")
    caching.ask(MATHS)
    app = caching.router.app
    found = caching.router.call(lambda: choice_stats(app.gateway, app._bundles))
    assert found["selected"]["selected", "", "big"] == 3
    assert (found["lookup"]["exact",], found["lookup"]["miss",], found["store"]["stored",]) == (1, 1, 1)
    assert (found["entries"], sorted(version for version, _ in found["bundles"])) == (1, ["v1", "v2"])
    assert found["selection"][()].count == 3
    assert found["looked"][()].count == 2


def test_the_official_sdk_reads_replays(caching: House) -> None:
    numbered(caching)
    with openai.OpenAI(base_url=caching.router.base_url, api_key="key-cached", max_retries=0, timeout=30.0) as client:
        read = [
            client.chat.completions.create(
                model="auto",
                messages=[{"role": "user", "content": MATHS}],
                extra_headers={"x-turnout-cache-match": "exact"},
            )
            for _ in range(2)
        ]
        assert read[0] == read[1]
        assert read[1].choices[0].message.content == "hi"
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(
                model="auto",
                messages=[{"role": "user", "content": MATHS}],
                extra_headers={"x-turnout-routing-alpha": "nan"},
            )
    assert (refused.value.code, refused.value.param) == ("invalid_routing_knobs", "x-turnout-routing-alpha")
    assert len(caching.engine.requests) == 1
