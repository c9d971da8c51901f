"""`model: auto` through a real router: choice, knobs, refusals, pins, route paths, ledger."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.engine import Engine
from tests.support.router import Router
from tests.support.selecting import KEYS, MATHS, POEMS, House

from turnout.bundles.directory import BundleDirectory
from turnout.bundles.writing import promote
from turnout.core.pricing import Price as BookPrice
from turnout.core.pricing import PriceBook


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
