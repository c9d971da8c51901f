"""`model: auto` and the response cache through a real router: choice, knobs, refusals, pins, route paths, replay, ledger."""

from __future__ import annotations

import concurrent.futures
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
import pytest

from turnout.bundles.directory import BundleDirectory
from turnout.bundles.fitting.build import Price, bundle_files
from turnout.bundles.fitting.fit import Fitted
from turnout.bundles.fitting.labels import Labels
from turnout.bundles.writing import promote, write
from turnout.core.pricing import Price as BookPrice
from turnout.core.pricing import PriceBook
from turnout.core.selection.embedder import Hashgram

if TYPE_CHECKING:
    from tests.support.engine import Engine
    from tests.support.router import Router

MATHS, POEMS = "prove the integral theorem", "write a poem with rhymes"
PRICES = {"big": Price(10, 30), "small": Price(0.5, 1)}


def key(name: str, tenant: str, *permissions: str) -> dict[str, object]:
    digest = "sha256:" + hashlib.sha256(f"key-{name}".encode()).hexdigest()
    return {"name": name, "tenant": tenant, "digest": digest, "permissions": list(permissions)}


KEYS = [
    key("plain", "t1"),
    key("cached", "t1", "response_cache=semantic"),
    key("rival", "t2", "response_cache=semantic"),
    key("expert", "t1", "bundle_version", "preview", "response_cache=exact"),
    {**key("narrow", "t1"), "models": ["small"]},
]


def bundle(root: Path, version: str, quality: list[list[float]]) -> None:
    """Two clusters, one per topic; `big` is dear, `small` is cheap."""
    embedder = Hashgram()
    fitted = Fitted(np.array([embedder.embed(text) for text in (MATHS, POEMS)], dtype=np.float64), np.array(quality))
    labels = Labels((MATHS,), ("",), ("big", "small"), np.array([[1.0, 0.0]]))
    about = {"top_p": 1, "default_routing_knobs": {"alpha": [0.7, 0.7]}}
    files = bundle_files(version, labels, fitted, embedder, prices=PRICES, provider="p", about=about)
    write(BundleDirectory(root), version, files)


class House:
    """A router that chooses between a dear and a cheap model on one engine."""

    def __init__(self, start: Callable[..., Router], engine: Engine, root: Path, **more: Any) -> None:
        self.engine, self.root = engine, root
        endpoint = {"name": "e1", "url": engine.url, "models": ["big", "small"], "context_max": 4000}
        self.router = start(
            endpoint=[endpoint], key=KEYS, selection={"bundle_dir": str(root), "build_versions": ["all"]}, **more
        )

    def ask(
        self,
        content: object = MATHS,
        *lines: bytes,
        name: str = "plain",
        path: bytes = b"/v1/chat/completions",
        **body: Any,
    ) -> Any:
        document = {"model": "auto", "messages": [{"role": "user", "content": content}], **body}
        return self.router.ask(document, *lines, key=f"key-{name}", path=path)

    def fact(self, index: int) -> Any:
        """The row of one of the requests, by the order in which they ended."""
        return self.router.records.fact(index)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    bundle(tmp_path, "v1", [[0.9, 0.1], [0.5, 0.5]])
    bundle(tmp_path, "v2", [[0.1, 0.9], [0.1, 0.9]])
    promote(BundleDirectory(tmp_path), "v1")
    return tmp_path


@pytest.fixture
def house(router: Callable[..., Router], script_engine: Callable[..., Engine], root: Path) -> House:
    return House(router, script_engine(), root)


@pytest.fixture
def caching(router: Callable[..., Router], script_engine: Callable[..., Engine], root: Path) -> House:
    return House(router, script_engine(), root, response_cache={"enabled": True, "guard": "standard", "threshold": 0.9})


def test_auto_chooses_by_the_text_and_tells_the_engine_its_name(house: House) -> None:
    seen = house.ask(MATHS)
    assert (seen.status, seen.header(b"x-turnout-model"), seen.header(b"x-turnout-reason")) == (
        200,
        b"big",
        b"selected",
    )
    assert (seen.header(b"x-turnout-bundle"), seen.header(b"x-turnout-pin")) == (b"v1", b"no_pin")
    assert len(seen.header(b"x-turnout-knobs")) == 16
    assert house.engine.requests[-1].json["model"] == "big"
    assert house.ask(POEMS).header(b"x-turnout-model") == b"small"
    fact = house.fact(1)
    assert (fact.requested_model, fact.selected_model, fact.reason, fact.bundle_version) == (
        "auto",
        "small",
        "selected",
        "v1",
    )
    assert fact.knobs_hash == seen.header(b"x-turnout-knobs").decode()
    assert (fact.clusters, fact.score_e9) == ("1", 300_000_000)


def test_a_named_model_is_not_selected(house: House) -> None:
    seen = house.ask(MATHS, model="small")
    assert (seen.header(b"x-turnout-model"), seen.header(b"x-turnout-reason")) == (b"small", b"named")


@pytest.mark.parametrize("alpha", [b"0.1", b" 0.10\t"])
def test_knobs_turn_the_choice_as_header_member_or_preset(house: House, alpha: bytes) -> None:
    assert house.ask(MATHS, b"x-turnout-routing-alpha: " + alpha).header(b"x-turnout-model") == b"small"
    assert house.ask(MATHS, turnout={"alpha": 0.1}).header(b"x-turnout-model") == b"small"
    assert "turnout" not in house.engine.requests[-1].json
    assert house.ask(MATHS, model="auto:cost").header(b"x-turnout-model") == b"small"
    assert house.ask(MATHS, model="auto:quality").header(b"x-turnout-model") == b"big"


def test_malformed_selector_never_defaults(house: House) -> None:
    for name in ("auto:", "auto:typo", "auto:Quality", "policy:x", "policy:"):
        seen = house.ask(model=name)
        assert (seen.status, seen.code, seen.param) == (400, "invalid_model_selector", "model")
    for name in ("Auto", "auto ", "autox", "aut"):
        assert house.ask(model=name).code == "model_not_found"
    assert house.engine.requests == []


KNOBS = ("alpha", "speed-weight", "output-cost-ratio", "expected-output-tokens", "per-model-verbosity")


@pytest.mark.parametrize("model", ["auto", "small"])
@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/route"])
def test_error_mapping_is_one_table(house: House, path: bytes, model: str) -> None:
    for name in KNOBS:
        for text in (b"nan", b"Infinity", b"-0", b"1e0", b"0x1", b"1_0", b"maybe"):
            seen = house.ask(MATHS, f"x-turnout-routing-{name}: ".encode() + text, path=path, model=model)
            assert (seen.status, seen.code, seen.param) == (400, "invalid_routing_knobs", f"x-turnout-routing-{name}")
        line = f"x-turnout-routing-{name}: 0.5".encode()
        seen = house.ask(MATHS, line, line, path=path, model=model)
        assert (seen.status, seen.code, seen.param) == (400, "invalid_routing_knobs", f"x-turnout-routing-{name}")
        member = name.replace("-", "_")
        wrong: tuple[object, ...] = ("0.5", [], -1)
        for value in wrong:
            seen = house.ask(MATHS, path=path, model=model, turnout={member: value})
            assert (seen.status, seen.code, seen.param) == (400, "invalid_routing_knobs", f"turnout.{member}")
    assert house.ask(path=path, model=model, turnout={"aplha": 1}).param == "turnout.aplha"
    assert house.engine.requests == []


def test_RoutingKnobsOverride_Envelope_of_anthropic(house: House) -> None:
    bad: list[tuple[bytes, dict[str, Any]]] = [
        (b"x-turnout-routing-alpha: nan", {}),
        (b"x-turnout-routing-alpha: 0.5\r\nx-turnout-routing-alpha: 0.5", {}),
        (b"x-unknown: 1", {"turnout": {"alpha": "0.5"}}),
    ]
    for line, body in bad:
        seen = house.ask(MATHS, line, path=b"/v1/messages", max_tokens=5, **body)
        assert (seen.status, seen.json["type"]) == (400, "error")
        assert seen.json["error"]["type"] == "invalid_request_error"
        assert "routing-alpha" in seen.json["error"]["message"] or "turnout.alpha" in seen.json["error"]["message"]
    seen = house.ask(MATHS, path=b"/v1/messages", max_tokens=5, model="auto:typo")
    assert (seen.status, seen.json["error"]["type"]) == (400, "invalid_request_error")
    assert house.engine.requests == []


def test_effective_knobs_and_conflicts_are_refused_by_name(house: House) -> None:
    seen = house.ask(MATHS, b"x-turnout-routing-speed-weight: 0.5")
    assert (seen.status, seen.code, seen.param) == (400, "invalid_routing_knobs", "x-turnout-routing-speed-weight")
    assert "1.2, expected at most 1" in seen.json["error"]["message"]
    seen = house.ask(MATHS, b"x-turnout-routing-alpha: 0.5", turnout={"alpha": 0.6})
    assert (seen.status, seen.param) == (400, "turnout.alpha")


def test_concurrent_knobs_leave_the_defaults_as_they_are(house: House) -> None:
    selecting = house.router.app.gateway.selecting
    assert selecting is not None
    before = house.ask(MATHS).header(b"x-turnout-knobs")

    def ask(number: int) -> bytes:
        hashed: bytes = house.ask(MATHS, b"x-turnout-routing-alpha: 0.%03d" % number).header(b"x-turnout-knobs")
        return hashed

    current = selecting._library.current
    assert current is not None
    vectors = {name: blend.bundle.defaults.knobs.alpha.tobytes() for name, blend in current.blends.items()}
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        hashes = list(pool.map(ask, range(1000)))
    assert len(set(hashes)) == 1000
    assert {name: blend.bundle.defaults.knobs.alpha.tobytes() for name, blend in current.blends.items()} == vectors
    assert house.ask(MATHS).header(b"x-turnout-knobs") == before


def test_a_version_needs_the_permission_and_must_be_loaded(house: House) -> None:
    line = b"x-turnout-bundle-version: v2"
    assert house.ask(MATHS, line).code == "control_not_allowed"
    seen = house.ask(MATHS, line, name="expert")
    assert (seen.header(b"x-turnout-bundle"), seen.header(b"x-turnout-model")) == (b"v2", b"small")
    assert house.ask(MATHS, name="expert", turnout={"bundle_version": "v2"}).header(b"x-turnout-bundle") == b"v2"
    seen = house.ask(MATHS, b"x-turnout-bundle-version: v3", name="expert")
    assert (seen.status, seen.code) == (400, "invalid_model_selector")
    assert "v1, v2" in seen.json["error"]["message"]


def test_eligibility_stays_inside_the_key_and_the_context(house: House) -> None:
    assert house.ask(MATHS, name="narrow").header(b"x-turnout-model") == b"small"
    seen = house.ask("word " * 5000)
    assert (seen.status, seen.code) == (400, "context_length_exceeded")
    assert "maximum context length" in seen.json["error"]["message"]


def test_no_text_is_unavailable_without_a_default_model(house: House) -> None:
    seen = house.ask("?!")
    assert (seen.status, seen.code, seen.header(b"retry-after")) == (503, "selector_unavailable", b"5")


def test_no_text_falls_back_to_the_default_model(
    router: Callable[..., Router], script_engine: Callable[..., Engine], root: Path
) -> None:
    served = script_engine()
    started = router(
        endpoint=[{"name": "e1", "url": served.url, "models": ["big", "small"]}], key=KEYS,
        selection={"bundle_dir": str(root), "default_model": "small"},
    )  # fmt: skip
    seen = started.ask({"model": "auto", "messages": [{"role": "user", "content": "?!"}]}, key="key-plain")
    assert (seen.header(b"x-turnout-model"), seen.header(b"x-turnout-reason")) == (b"small", b"fallback_default")
    assert seen.header(b"x-turnout-reason-detail") == b"no_text"


def test_a_session_stays_with_its_model(house: House) -> None:
    line = b"x-turnout-session: s-1"
    assert house.ask(POEMS, line).header(b"x-turnout-model") == b"small"
    seen = house.ask(MATHS, line)
    assert (seen.header(b"x-turnout-model"), seen.header(b"x-turnout-reason")) == (b"small", b"session_pin")
    assert seen.header(b"x-turnout-pin") == b"ev_negative"
    assert house.ask(MATHS, line, turnout={"alpha": 0.71}).header(b"x-turnout-pin") == b"no_pin"
    assert house.ask(MATHS).header(b"x-turnout-model") == b"big"


def test_the_decision_explains_the_selection(house: House) -> None:
    seen = house.ask(MATHS)
    from turnout.app import Facts

    gateway = house.router.app.gateway
    facts = Facts(gateway, house.router.app.listener, house.router.app.meter, None)
    document = house.router.call(lambda: facts.decision(seen.header(b"x-turnout-decision").decode()))
    assert document is not None
    found = document["selection"]
    assert (found["model"], found["bundle"]["version"], found["knobs"]["alpha"]) == ("big", "v1", [0.7, 0.7])
    row = found["ranked"][0]
    assert sum(row["terms"].values()) == pytest.approx(row["score"])


def test_route_decides_without_an_engine(house: House) -> None:
    seen = house.ask(MATHS, path=b"/v1/route")
    assert (seen.status, seen.json["model"], seen.json["reason"]) == (200, "big", "selected")
    assert house.ask(MATHS, path=b"/v1/route", model="small").json["reason"] == "named"
    assert house.ask(MATHS, path=b"/v1/route", model="auto:x").code == "invalid_model_selector"
    assert house.engine.requests == []
    assert house.router.records.facts == []


def test_preview_shows_what_each_variant_would_do(house: House) -> None:
    body = {
        "request": {"model": "auto", "messages": [{"role": "user", "content": MATHS}]},
        "variants": [{"preset": "cost"}, {"knobs": {"alpha": 1}}, {"bundle_version": "v2"}],
    }
    assert house.router.ask(body, key="key-plain", path=b"/v1/route/preview").code == "path_not_allowed"
    seen = house.router.ask(body, key="key-expert", path=b"/v1/route/preview")
    assert [variant["model"] for variant in seen.json["variants"]] == ["small", "big", "small"]
    assert seen.json["variants"][0]["shares"] == {"big": 0.0, "small": 1.0}
    body["variants"] = [{"knobs": {"alpha": "1"}}]
    assert house.router.ask(body, key="key-expert", path=b"/v1/route/preview").code == "invalid_routing_knobs"


def test_a_new_latest_is_followed_without_a_restart(house: House) -> None:
    promote(BundleDirectory(house.root), "v2")
    watch = house.router.app._bundles
    assert watch is not None
    house.router.call(watch.reload_now)

    def default() -> str:
        assert selecting is not None
        current = selecting._library.current
        return "" if current is None else current.default

    selecting = house.router.app.gateway.selecting
    assert selecting is not None
    assert house.router.eventually(lambda: default() == "v2")
    assert house.ask(MATHS).header(b"x-turnout-bundle") == b"v2"


def test_without_a_bundle_auto_is_an_unknown_model(
    router: Callable[..., Router], script_engine: Callable[..., Engine]
) -> None:
    started = router(script_engine())
    assert started.ask({"model": "auto", "messages": [{"role": "user", "content": "hi"}]}).code == "model_not_found"
    assert started.ask({"model": "auto"}, path=b"/v1/route").status == 404


def failing(*scripts: tuple[int, bytes]) -> list[bytes]:
    return [
        b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
        for status, body in scripts
    ]


def test_failover_goes_on_to_the_next_model_of_the_list(house: House, wire: Any) -> None:
    house.engine.says(*failing((404, b'{"error":{"message":"no model big here"}}')), wire.answer())
    seen = house.ask(MATHS)
    assert (seen.status, seen.header(b"x-turnout-model"), seen.header(b"x-turnout-fallback-from")) == (
        200,
        b"small",
        b"big",
    )
    assert [request.json["model"] for request in house.engine.requests] == ["big", "small"]
    fact = house.fact(0)
    assert [attempt.route.model for attempt in fact.attempts] == ["big", "small"]
    assert (fact.selected_model, [attempt.attempt_no for attempt in fact.attempts]) == ("small", [1, 2])


def test_failover_keeps_to_the_client_s_wish_and_fault(house: House, wire: Any) -> None:
    missing = failing((404, b'{"error":{"message":"no model big here"}}'))[0]
    house.engine.says(missing, wire.answer())
    assert house.ask(MATHS, b"x-turnout-fallback: off").status == 404
    house.engine.says(failing((400, b'{"error":{"message":"bad"}}'))[0])
    assert house.ask(MATHS).status == 400
    assert len(house.engine.requests) == 2


# -- response cache -----------------------------------------------------------------------------------------------------

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


def test_the_price_book_in_force_wins_over_the_bundle(house: House) -> None:
    assert house.ask(POEMS).header(b"x-turnout-model") == b"small"
    house.router.records.book = PriceBook.of(1, [BookPrice(model="big", p_in=0, p_out=0)])
    watch, selecting = house.router.app._bundles, house.router.app.gateway.selecting
    assert watch is not None
    assert selecting is not None
    before = selecting._library.current
    house.router.call(watch.reload_now)
    assert house.router.eventually(lambda: selecting._library.current is not before)
    assert house.ask(POEMS, b"x-turnout-session: another").header(b"x-turnout-model") == b"big"


def test_under_reloads_each_answer_is_of_one_version(house: House) -> None:
    watch = house.router.app._bundles
    assert watch is not None

    def turn() -> None:
        for number in range(20):
            promote(BundleDirectory(house.root), f"v{number % 2 + 1}")
            house.router.call(watch.reload_now)

    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        turning = pool.submit(turn)
        asked = [pool.submit(house.ask, MATHS, b"x-turnout-session: %d" % number) for number in range(120)]
        seen = {(one.result().header(b"x-turnout-bundle"), one.result().header(b"x-turnout-model")) for one in asked}
        turning.result()
    assert seen <= {(b"v1", b"big"), (b"v2", b"small")}
    assert {one.result().status for one in asked} == {200}


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
