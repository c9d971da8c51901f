"""Selection means the same at every door: pin, knobs, ceilings and refusals on each path, and what `/v1/route*` say."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from turnout.core.selection.arrays import frozen
from turnout.core.selection.blend import Blend
from turnout.core.selection.knobs import Defaults, Knobs
from turnout.core.selection.loaded import BundleSet

if TYPE_CHECKING:
    from tests.support.engine import Engine
    from tests.support.router import Router

MATHS, POEMS = "prove the integral theorem", "write a poem with rhymes"
CHAT, COMPLETIONS, MESSAGES = b"/v1/chat/completions", b"/v1/completions", b"/v1/messages"
ROUTE, PREVIEW = b"/v1/route", b"/v1/route/preview"
DOORS = [CHAT, COMPLETIONS, MESSAGES]
VERSION = b"anthropic-version: 2023-06-01"


class Doors:
    """A router with two models, and how to ask it at each door."""

    def __init__(self, router: Callable[..., Router], engine: Engine, root: Path, **selection: Any) -> None:
        def key(name: str, **more: Any) -> dict[str, Any]:
            return {"name": name, "tenant": "t", "digest": _digest(name), "permissions": ["preview"], **more}

        self.engine = engine
        models = {"models": ["big", "small"], "dialects": ["openai", "anthropic"], "context_max": 4000}
        self.router = router(
            endpoint=[{"name": "e1", "url": engine.url, **models}],
            key=[
                key("plain"),
                key("expert", permissions=["bundle_version"]),
                key("narrow", models=["x"]),
                key("thrifty", max_input_usd_per_1m=1),
                key("poor", max_output_usd_per_1m=0.01),
            ],
            selection={"bundle_dir": str(root), **selection},
        )

    def ask(self, path: bytes, text: str, *lines: bytes, name: str = "plain", **body: Any) -> Any:
        document: dict[str, Any] = {"model": "auto", "max_tokens": 5}
        if path in (COMPLETIONS, EMBEDDINGS):
            document["prompt" if path == COMPLETIONS else "input"] = text
        else:
            document["messages"] = [{"role": "user", "content": text}]
        if path in (MESSAGES, COUNT):
            lines = (*lines, VERSION)
        return self.router.ask({**document, **body}, *lines, key=name, path=path)

    @contextlib.contextmanager
    def broken(self) -> Iterator[None]:
        """Let selection find a bundle that is at odds with itself."""
        selecting = self.router.app.gateway.selecting
        assert selecting is not None
        whole = selecting._library
        assert whole.current is not None
        selecting._library = _Broken(whole.current)
        yield
        selecting._library = whole


def _digest(name: str) -> str:
    return "sha256:" + hashlib.sha256(name.encode()).hexdigest()


ANSWERS = {
    CHAT: {"id": "1", "choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]},
    COMPLETIONS: {"id": "1", "choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]},
    MESSAGES: {"id": "1", "type": "message", "content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn"},
}


def answering(engine: Engine, wire: Any) -> Engine:
    """Let an engine answer each path in its dialect."""

    def says(request: Any) -> list[bytes]:
        usage = {"input_tokens": 9, "output_tokens": 1, "prompt_tokens": 9, "completion_tokens": 1}
        return [wire.answer(json.dumps({**ANSWERS[request.line.split()[1]], "usage": usage}).encode())]

    engine.says(says)  # type: ignore[arg-type]  # a list of bytes is a script
    return engine


@pytest.fixture
def open_doors(
    router: Callable[..., Router], script_engine: Callable[..., Engine], two_topics: Callable[..., Path], wire: Any
) -> Callable[..., Doors]:
    def opened(**selection: Any) -> Doors:
        return Doors(router, answering(script_engine(), wire), two_topics(), **selection)

    return opened


@pytest.fixture
def doors(open_doors: Callable[..., Doors]) -> Doors:
    return open_doors()


def told(seen: Any) -> tuple[str, ...]:
    return tuple((seen.header(b"x-turnout-" + name) or b"").decode() for name in (b"model", b"reason", b"pin"))


@pytest.mark.parametrize("path", DOORS)
def test_a_session_is_pinned_at_every_door(doors: Doors, path: bytes) -> None:
    line = b"x-turnout-session: s-1"
    assert told(doors.ask(path, POEMS, line)) == ("small", "selected", "no_pin")
    assert told(doors.ask(path, POEMS, line)) == ("small", "selected", "same_model")
    assert told(doors.ask(path, MATHS, line)) == ("small", "session_pin", "ev_negative")
    fact = doors.router.records.fact(2)
    assert (fact.selected_model, fact.reason, fact.bundle_version) == ("small", "session_pin", "v1")
    assert fact.knobs_hash
    assert fact.clusters == "0"
    assert fact.score_e9 is not None
    foreseen = doors.ask(ROUTE, MATHS, line).json
    assert (foreseen["model"], foreseen["reason"], foreseen["pin"]["reason"]) == ("small", "session_pin", "ev_negative")
    assert told(doors.ask(path, MATHS, b"x-turnout-session: s-2")) == ("big", "selected", "no_pin")


def test_a_pin_made_at_one_door_holds_at_the_others(doors: Doors) -> None:
    line = b"x-claude-code-session-id: s-1"
    assert told(doors.ask(MESSAGES, POEMS, line))[0] == "small"
    for path in DOORS:
        assert told(doors.ask(path, MATHS, line))[:2] == ("small", "session_pin")


@pytest.mark.parametrize("path", DOORS)
def test_a_switch_that_pays_is_made_at_every_door(open_doors: Callable[..., Doors], path: bytes) -> None:
    doors = open_doors(switch_threshold_usd=0.0)
    line = b"x-turnout-session: s-1"
    assert told(doors.ask(path, MATHS, line)) == ("big", "selected", "no_pin")
    assert doors.ask(ROUTE, POEMS, line).json["pin"]["reason"] == "ev_positive"
    assert told(doors.ask(path, POEMS, line)) == ("small", "selected", "ev_positive")


def test_agents_and_users_have_sessions_of_their_own(doors: Doors) -> None:
    line = b"x-turnout-session: s-1"
    assert told(doors.ask(CHAT, POEMS, line, b"x-claude-code-agent-id: a"))[0] == "small"
    for agent, pin in ((b"a", "ev_negative"), (b"b", "no_pin")):
        agents = b"x-claude-code-agent-id: " + agent
        assert doors.ask(ROUTE, MATHS, line, agents).json["pin"]["reason"] == pin
        assert told(doors.ask(CHAT, MATHS, line, agents))[2] == pin
    assert told(doors.ask(CHAT, POEMS, b"x-user-id: u"))[2] == "no_pin"
    assert told(doors.ask(CHAT, POEMS, b"x-user-id: u"))[2] == "same_model"
    assert told(doors.ask(CHAT, POEMS, user="u"))[2] == "same_model"
    assert told(doors.ask(CHAT, POEMS, b"x-user-id: v"))[2] == "no_pin"


@pytest.mark.parametrize("path", [*DOORS, ROUTE])
def test_a_keys_price_ceiling_is_obeyed(doors: Doors, path: bytes) -> None:
    seen = doors.ask(path, MATHS, name="thrifty")
    assert (seen.json["model"] if path == ROUTE else told(seen)[0]) == "small"
    refused = doors.ask(path, MATHS, name="poor")
    assert refused.status == 400
    assert "price_ceiling" in refused.body.decode()


def test_route_takes_its_dialect_from_the_header(doors: Doors) -> None:
    blocks = [{"role": "user", "content": [{"type": "text", "text": MATHS}]}]
    body = {"model": "auto", "max_tokens": 5, "system": "be brief", "messages": blocks}
    for lines in ((b"x-turnout-dialect: anthropic",), (VERSION,), (b"x-turnout-dialect: openai", VERSION)):
        seen = doors.router.ask(body, *lines, key="plain", path=ROUTE)
        assert (seen.status, seen.json["model"]) == (200, "big")
    seen = doors.router.ask(body, b"x-turnout-dialect: gemini", key="plain", path=ROUTE)
    assert (seen.status, seen.param) == (400, "x-turnout-dialect")
    for path, dialect, status in ((CHAT, b"openai", 200), (CHAT, b"anthropic", 400), (MESSAGES, b"anthropic", 200), (MESSAGES, b"openai", 400)):  # fmt: skip
        assert doors.ask(path, MATHS, b"x-turnout-dialect: " + dialect).status == status


def test_route_answers_with_the_same_members_for_a_named_model(doors: Doors) -> None:
    chosen, named = doors.ask(ROUTE, MATHS).json, doors.ask(ROUTE, MATHS, model="small").json
    listed = {"model", "endpoint", "reason", "pin", "bundle", "knobs_hash", "clusters", "ranked", "dropped"}
    assert listed <= set(chosen)
    assert listed <= set(named)
    assert (named["reason"], named["endpoint"]) == ("named", "e1")


def test_preview_shows_every_preset_and_what_the_terms_were_summed_up_from(doors: Doors) -> None:
    request = {"model": "auto", "messages": [{"role": "user", "content": MATHS}]}
    variants = doors.router.ask({"request": request}, key="plain", path=PREVIEW).json["variants"]
    assert [variant["asked"]["preset"] for variant in variants] == ["", "balanced", "cost", "quality", "speed"]
    for variant in variants:
        [(cluster, quality)] = variant["norms"]["quality"].items()
        assert (cluster, quality, variant["norms"]["cost"]) == ("0", {"big": 1, "small": 0}, {"big": 1, "small": 0})
        assert variant["norms"]["speed"] is None  # nobody is timed
        alpha, left = variant["knobs"]["alpha"][0], 1 - variant["knobs"]["speed_weight"]
        terms = {row["model"]: row["terms"] for row in variant["ranked"]}
        assert terms["big"]["quality"] == pytest.approx(alpha / left)
        assert terms["small"]["cost"] == pytest.approx(1 - alpha / left)
    assert doors.engine.requests == []
    assert doors.router.records.facts == []


@pytest.mark.parametrize("path", [*DOORS, ROUTE])
def test_knobs_reject_nan_and_infinity(doors: Doors, path: bytes) -> None:
    for name in ("alpha", "speed-weight", "output-cost-ratio", "expected-output-tokens", "per-model-verbosity"):
        header, member = f"x-turnout-routing-{name}", name.replace("-", "_")
        for text in ("nan", "NaN", "inf", "Infinity", "-inf", "-0", "1e0", "0x1", "1e999"):
            for model in ("auto", "big"):
                refused(doors.ask(path, MATHS, f"{header}: {text}".encode(), model=model), path, header)
        for value in ("nan", "Infinity", 1e300, -1):
            refused(doors.ask(path, MATHS, turnout={member: value}), path, f"turnout.{member}")
    assert doors.engine.requests == []


def refused(seen: Any, path: bytes, param: str) -> None:
    error = seen.json["error"]
    assert (seen.status, param in error["message"]) == (400, True), error
    if path != MESSAGES:
        assert (error["code"], error["param"]) == ("invalid_routing_knobs", param)


EMBEDDINGS, COUNT = b"/v1/embeddings", b"/v1/messages/count_tokens"
FAULTS: list[tuple[str, dict[str, Any], tuple[bytes, ...], int, str, str | None]] = [
    # what, body, headers, status, code, param
    ("header", {}, (b"x-turnout-routing-alpha: 1.5",), 400, "invalid_routing_knobs", "x-turnout-routing-alpha"),
    ("member", {"turnout": {"alpha": "1"}}, (), 400, "invalid_routing_knobs", "turnout.alpha"),
    ("unknown member", {"turnout": {"aplha": 1}}, (), 400, "invalid_request", "turnout.aplha"),
    ("together", {"turnout": {"speed_weight": 0.5}}, (), 400, "invalid_routing_knobs", "turnout.speed_weight"),
    ("selector", {"model": "auto:typo"}, (), 400, "invalid_model_selector", "model"),
    ("policy", {"model": "policy:x"}, (), 400, "invalid_model_selector", "model"),
    ("version", {}, (b"x-turnout-bundle-version: v9",), 400, "invalid_model_selector", "x-turnout-bundle-version"),
    ("forbidden", {"key": "narrow"}, (), 403, "model_not_allowed", None),
    ("control", {"key": "plain"}, (b"x-turnout-bundle-version: v1",), 403, "control_not_allowed", "x-turnout-bundle-version"),
    ("no text", {"text": "?!"}, (), 503, "selector_unavailable", None),
    ("broken", {"broken": True}, (), 503, "selector_unavailable", None),
]  # fmt: skip


class _Broken:
    """A library whose snapshot has a vector of knobs of the wrong length: no caller can have caused that."""

    def __init__(self, current: BundleSet) -> None:
        wrong = Defaults(Knobs(frozen([0.5])))
        blends = {
            name: Blend(msgspec.structs.replace(one.bundle, defaults=wrong)) for name, one in current.blends.items()
        }
        for one in blends.values():
            assert len(one.bundle.defaults.knobs.alpha) != one.bundle.clusters
        self.current = BundleSet(current.default, blends)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES, EMBEDDINGS, COUNT, ROUTE])
def test_error_mapping_is_one_table(doors: Doors, path: bytes) -> None:
    for what, body, lines, status, code, param in FAULTS:
        given = dict(body)
        name, text = given.pop("key", "expert"), given.pop("text", MATHS)
        with doors.broken() if given.pop("broken", False) else contextlib.nullcontext():
            seen = doors.ask(path, text, *lines, name=name, **given)
        error = seen.json["error"]
        assert seen.status == status, (what, seen.body)
        if path in (MESSAGES, COUNT):
            kind = {400: "invalid_request_error", 403: "permission_error", 503: "api_error"}[status]
            assert (seen.json["type"], error["type"]) == ("error", kind)
            assert param is None or param in error["message"]
        else:
            assert (error["code"], error["param"]) == (code, param), what
        assert (seen.header(b"retry-after") == b"5") == (status == 503)
    assert doors.engine.requests == []


@pytest.mark.parametrize("path", [*DOORS, ROUTE])
def test_bundle_fault_is_ours(doors: Doors, path: bytes) -> None:
    """T4: a fault of the bundle is 503 whatever the caller turned, and a named model goes on."""
    with doors.broken():
        for body in ({}, {"turnout": {"alpha": 0.2}}, {"model": "auto:cost"}):
            seen = doors.ask(path, MATHS, **body)
            assert (seen.status, seen.header(b"retry-after")) == (503, b"5"), body
        assert doors.ask(path, MATHS, model="big").status == 200
    assert doors.ask(path, MATHS).status == 200
