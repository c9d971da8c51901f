"""Decision-only paths and embedders off the loop, through a real router."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from turnout.bundles.directory import BundleDirectory
from turnout.bundles.fitting.build import Price, bundle_files
from turnout.bundles.fitting.fit import Fitted
from turnout.bundles.fitting.labels import Labels
from turnout.bundles.writing import promote, write
from turnout.choosing import restore_pins
from turnout.core import options
from turnout.core.facts import RouteStats, StatsSnapshot
from turnout.core.selection.embedder import Hashgram
from turnout.gateway.embedding import Embedding
from turnout.ledger.writer import Ledger

if TYPE_CHECKING:
    from tests.support.engine import Engine
    from tests.support.router import Router

    from turnout.core.selection.arrays import Floats32

MATHS, POEMS = "prove the integral theorem", "write a poem with rhymes"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    embedder = Hashgram()
    centroids = np.array([embedder.embed(text) for text in (MATHS, POEMS)], dtype=np.float64)
    labels = Labels((MATHS,), ("",), ("big", "small"), np.array([[1.0, 0.0]]))
    about = {"top_p": 1, "default_routing_knobs": {"alpha": [0.7, 0.7]}}
    prices = {"big": Price(10, 30), "small": Price(0.5, 1)}
    fitted = Fitted(centroids, np.array([[0.9, 0.1], [0.5, 0.5]]))
    files = bundle_files("v1", labels, fitted, embedder, prices=prices, provider="p", about=about)
    write(BundleDirectory(tmp_path), "v1", files)
    promote(BundleDirectory(tmp_path), "v1")
    return tmp_path


def start(
    router: Callable[..., Router],
    engine: Engine,
    root: Path,
    endpoints: int = 1,
    rules: dict[str, Any] | None = None,
    **more: Any,
) -> Router:
    named = [
        {"name": f"e{number}", "url": engine.url, "models": ["big", "small"], "context_max": 4000}
        for number in range(1, endpoints + 1)
    ]
    digest = "sha256:" + hashlib.sha256(b"key-plain").hexdigest()
    keys = [{"name": "plain", "tenant": "t1", "digest": digest, "permissions": ["preview"]}]
    return router(endpoint=named, key=keys, selection={"bundle_dir": str(root), **more}, **(rules or {}))


def ask(started: Router, path: bytes, content: str = MATHS, *lines: bytes, **body: Any) -> Any:
    document = {"model": "auto", "messages": [{"role": "user", "content": content}], **body}
    return started.ask(document, *lines, key="key-plain", path=path)


CHAT, ROUTE = b"/v1/chat/completions", b"/v1/route"


def test_route_names_the_endpoint_that_the_call_then_gets(
    router: Callable[..., Router], script_engine: Callable[..., Engine], root: Path
) -> None:
    # Neither the clock nor a probe that is late on a busy machine has a say in what is foreseen.
    rules = {"scheduling": {"policy": "affinity_load"}, "probe": {"interval_s": 3600.0}}
    started = start(router, script_engine(), root, endpoints=4, rules=rules)
    seen = set()
    for number in range(12):
        text = f"{MATHS} {number % 5} " + "and more of it " * 80
        foreseen = [ask(started, ROUTE, text).json["endpoint"] for _ in range(3)]
        served = ask(started, CHAT, text).header(b"x-turnout-endpoint").decode()
        assert foreseen == [served] * 3
        assert started.records.fact(number).outcome == "completed"  # what it held is given back before the next one
        seen.add(served)
    assert len(seen) > 1
    assert ask(started, ROUTE, model="small").json["endpoint"] in {"e1", "e2", "e3", "e4"}


def test_route_reads_anthropics_dialect_too(
    router: Callable[..., Router], script_engine: Callable[..., Engine], root: Path
) -> None:
    started = start(router, script_engine(), root)
    seen = ask(started, ROUTE, POEMS, b"anthropic-version: 2023-06-01", max_tokens=5, system="be brief")
    assert (seen.status, seen.json["model"]) == (200, "small")
    body = {"request": {"model": "auto", "max_tokens": 5, "messages": [{"role": "user", "content": POEMS}]}}
    seen = started.ask(body | {"dialect": "anthropic"}, key="key-plain", path=b"/v1/route/preview")
    assert seen.json["variants"][0]["model"] == "small"
    assert started.ask(body | {"dialect": "gemini"}, key="key-plain", path=b"/v1/route/preview").status == 400


class Slow:
    """The built-in vectors from a thread, when the gate is open."""

    id, dim, inline = Hashgram.id, Hashgram.dim, False

    def __init__(self) -> None:
        self.gate = threading.Event()
        self._embedder = Hashgram()

    def embed(self, text: str) -> Floats32:
        self.gate.wait(60)
        return self._embedder.embed(text)


@pytest.fixture
def slow(
    router: Callable[..., Router], script_engine: Callable[..., Engine], root: Path
) -> tuple[Router, Engine, Slow, Callable[..., None]]:
    engine = script_engine()
    started, embedder = start(router, engine, root, default_model="small"), Slow()

    def under(**limits: Any) -> None:
        selecting = started.app.gateway.selecting
        assert selecting is not None
        selecting.embedding = Embedding(embedder, **limits)

    under(timeout_s=30)
    return started, engine, embedder, under


def test_an_embedder_off_the_loop_chooses_as_the_inline_one(slow: Any) -> None:
    started, _, embedder, _ = slow
    embedder.gate.set()
    for content, model in ((MATHS, b"big"), (POEMS, b"small")):
        seen = ask(started, CHAT, content)
        assert (seen.status, seen.header(b"x-turnout-model"), seen.header(b"x-turnout-reason")) == (
            200,
            model,
            b"selected",
        )
        assert ask(started, ROUTE, content).json["model"] == model.decode()
    body = {"request": {"model": "auto", "messages": [{"role": "user", "content": MATHS}]}, "variants": [{}, {}]}
    seen = started.ask(body, key="key-plain", path=b"/v1/route/preview")
    assert [variant["model"] for variant in seen.json["variants"]] == ["big", "big"]


def test_a_hanging_embedder_falls_back_and_other_requests_go_on(slow: Any) -> None:
    started, _, embedder, under = slow
    under(timeout_s=0.05, concurrency=1)
    seen = ask(started, CHAT)
    assert (seen.header(b"x-turnout-model"), seen.header(b"x-turnout-reason-detail")) == (b"small", b"embed_timeout")
    assert ask(started, CHAT, "?!", model="big").status == 200
    under(timeout_s=30, concurrency=1, queue_max=0)
    client = started.client()
    client.send(started.request({"model": "auto", "messages": [{"role": "user", "content": MATHS}]}, key="key-plain"))
    assert started.eventually(lambda: len(started.app.gateway.runs) == 1)
    assert ask(started, CHAT).header(b"x-turnout-reason-detail") == b"embed_busy"
    embedder.gate.set()
    assert client.response().header(b"x-turnout-model") == b"big"


def test_who_leaves_or_runs_out_of_time_while_the_vector_is_made_ends_once(slow: Any) -> None:
    started, engine, embedder, _ = slow
    client = started.client()
    client.send(started.request({"model": "auto", "messages": [{"role": "user", "content": MATHS}]}, key="key-plain"))
    assert started.eventually(lambda: len(started.app.gateway.runs) == 1)
    client.close()
    assert started.records.fact(0).outcome == "client_gone"
    seen = ask(started, CHAT, MATHS, b"x-turnout-timeout-ms: 30")
    assert (seen.status, started.records.fact(1).outcome) == (504, "deadline_exceeded")
    embedder.gate.set()
    assert ask(started, CHAT).status == 200
    assert [fact.outcome for fact in started.records.facts] == ["client_gone", "deadline_exceeded", "completed"]
    assert len(engine.requests) == 1


def test_route_answers_504_after_its_limit(slow: Any) -> None:
    started, _, embedder, _ = slow
    started.app.gateway.selecting.decide_within_s = 0.05
    seen = ask(started, ROUTE)
    assert (seen.status, seen.json["error"]["type"]) == (504, "timeout")
    client = started.client()
    client.send(started.request({"model": "auto", "messages": []}, key="key-plain", path=ROUTE))
    client.close()
    embedder.gate.set()
    assert started.records.facts == []


def administrated(router: Callable[..., Router], engine: Engine, root: Path) -> Router:
    keys = [
        {
            "name": name, "tenant": name, "permissions": ["response_cache=exact"],
            "digest": "sha256:" + hashlib.sha256(f"key-{name}".encode()).hexdigest(),
        }
        for name in ("t1", "t2")
    ]  # fmt: skip
    return router(
        endpoint=[{"name": "e1", "url": engine.url, "models": ["big", "small"]}], key=keys,
        selection={"bundle_dir": str(root)}, response_cache={"enabled": True},
        server={"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0"},
    )  # fmt: skip


def admin(started: Router, method: bytes, path: bytes, *lines: bytes) -> Any:
    return started.ask(None, *lines, method=method, path=path, port=started.admin_port)


def test_the_response_cache_can_be_looked_at_and_purged(
    router: Callable[..., Router], script_engine: Callable[..., Engine], root: Path
) -> None:
    started = administrated(router, script_engine(), root)
    for name in ("t1", "t1", "t2"):
        body = {"model": "auto", "messages": [{"role": "user", "content": MATHS}]}
        assert started.ask(body, b"x-turnout-cache-match: exact", key=f"key-{name}").status == 200
    page = b"/x/response-cache"
    cache = started.app.gateway.response_cache
    assert cache is not None
    assert started.eventually(lambda: cache.store.entries == 2)
    found = admin(started, b"GET", page).json
    assert (found["entries"], found["tenants"]["t1"]["matches"], found["tenants"]["t2"]["matches"]) == (2, 1, 0)
    assert found["bytes"] == sum(held["bytes"] for held in found["tenants"].values()) > 0
    for query in (b"?tenannt=t1", b"?tenant=", b"?tenant=t1&tenant=t2"):
        assert admin(started, b"DELETE", page + query).status == 400
    assert admin(started, b"DELETE", page, b"Origin: http://elsewhere").status == 403
    assert admin(started, b"DELETE", page + b"?tenant=t1&model=small").json["dropped"] == 0
    assert admin(started, b"DELETE", page + b"?tenant=t1&model=big&bundle=v1").json["dropped"] == 1
    assert list(admin(started, b"GET", page).json["tenants"]) == ["t2"]
    assert admin(started, b"DELETE", page).json == {"dropped": 1}
    assert admin(started, b"PUT", page).header(b"allow") == b"DELETE, GET, HEAD"


def test_the_bundles_can_be_reloaded_by_the_admin(
    router: Callable[..., Router], script_engine: Callable[..., Engine], root: Path
) -> None:
    started = administrated(router, script_engine(), root)
    page = b"/x/bundles/reload"
    assert admin(started, b"POST", page).json["result"] == "unchanged"
    (root / "v1").rename(root / "v2")
    promote(BundleDirectory(root), "v2")
    found = admin(started, b"POST", page).json
    assert (found["result"], found["default"], list(found["versions"])) == ("loaded", "v2", ["v2"])
    (root / "latest").write_text("v9")
    seen = admin(started, b"POST", page)
    assert (seen.status, seen.json["result"], seen.json["default"]) == (409, "refused", "v2")
    assert "v9" in seen.json["problem"]
    assert admin(started, b"POST", page, b"Sec-Fetch-Site: cross-site").status == 403
    assert admin(started, b"GET", page).status == 405


def test_unreliable_and_slow_models_are_told_by_the_ledger(
    router: Callable[..., Router], script_engine: Callable[..., Engine], root: Path
) -> None:
    started = start(router, script_engine(), root, min_success_rate=0.9, timing_source="observed")
    assert ask(started, ROUTE).json["observed_at_ms"] is None
    bad = RouteStats(n=40, counted_n=40, ok_n=20, ttft_n=40, ttft_sum_ms=40_000)
    at_ms = started.app.gateway.now_ms()
    started.records.statistics = StatsSnapshot(observed_at_ms=at_ms, models={"big": bad})
    seen = ask(started, ROUTE).json
    assert (seen["model"], seen["timing_source"], seen["observed_at_ms"]) == ("small", "observed", at_ms)
    assert seen["dropped"] == [{"model": "big", "reason": "unreliable"}]
    started.records.statistics = StatsSnapshot(observed_at_ms=at_ms - 31_000, models={"big": bad})
    assert ask(started, ROUTE).json["model"] == "big"


def test_a_pin_weighs_what_the_engine_is_expected_to_hold(
    router: Callable[..., Router], script_engine: Callable[..., Engine], root: Path
) -> None:
    started = start(router, script_engine(), root)
    session, filler = b"x-turnout-session: s", " and more of it" * 100
    assert ask(started, CHAT, MATHS + filler, session).header(b"x-turnout-model") == b"big"
    turns = [{"role": "user", "content": MATHS + filler}, {"role": "user", "content": POEMS}]
    warm = ask(started, ROUTE, POEMS, session, messages=turns).json
    rewritten = [{"role": "user", "content": "another beginning" + filler * 2}, turns[1]]
    cold = ask(started, ROUTE, POEMS, session, messages=rewritten).json
    assert warm["pin"]["cache_loss_usd"] > cold["pin"]["cache_loss_usd"] == 0.0
    assert cold["pin"]["savings_usd"] > warm["pin"]["savings_usd"]


def test_pins_are_rebuilt_from_the_ledger(
    router: Callable[..., Router], script_engine: Callable[..., Engine], root: Path, tmp_path: Path
) -> None:
    started = start(router, script_engine(), root)
    session = b"x-turnout-session: s-1"
    assert ask(started, CHAT, POEMS, session).header(b"x-turnout-model") == b"small"
    fact = started.records.fact(0)
    database = tmp_path / "turnout.db"
    ledger = Ledger(options.Ledger(url=f"sqlite:///{database}"), router_id="r", clock_ms=started.app.gateway.now_ms)
    ledger.start()
    ledger.record(fact)
    assert ledger.close() == 0
    again = start(router, script_engine(), root)
    assert ask(again, ROUTE, MATHS, session).json["pin"]["reason"] == "no_pin"
    config = msgspec.structs.replace(again.config, ledger=options.Ledger(url=f"sqlite:///{database}"))

    async def restored() -> int:
        return await restore_pins(again.app.gateway, config, ledger)

    assert again._loop.run(restored()) == 1
    assert again._loop.run(restored()) == 0
    seen = ask(again, CHAT, MATHS, session)
    assert (seen.header(b"x-turnout-model"), seen.header(b"x-turnout-reason")) == (b"small", b"session_pin")
    missing = options.Ledger(url=f"sqlite:///{tmp_path}/none/x.db")
    ledger = Ledger(missing, router_id="r", clock_ms=started.app.gateway.now_ms)
    assert again._loop.run(restored()) == 0


def test_members_mean_what_their_headers_mean(slow: Any) -> None:
    started, engine, embedder, _ = slow
    seen = ask(started, CHAT, turnout={"timeout_ms": 30})
    assert seen.status == 504, seen.body
    assert (seen.status, started.records.fact(0).outcome) == (504, "deadline_exceeded")
    embedder.gate.set()
    members = {"session": "s-9", "priority": "low", "fallback": "off", "hedge": "off", "stream_safety": "fast"}
    assert ask(started, CHAT, turnout=members).status == 200
    assert (started.records.fact(1).session_id, "turnout" in engine.requests[-1].json) == ("s-9", False)
    assert ask(started, CHAT, MATHS, b"x-turnout-session: s-9", turnout={"session": "s-9"}).status == 200


WRONG: list[tuple[str, object]] = [
    ("timeout_ms", 0),
    ("timeout_ms", "30"),
    ("timeout_ms", 1.5),
    ("priority", "urgent"),
    ("fallback", "maybe"),
    ("hedge", True),
    ("stream_safety", "none"),
    ("session", ""),
    ("session", "ü"),
    ("session", ["s"]),
]


def test_a_bad_member_is_refused_by_name_on_every_path(slow: Any) -> None:
    started, engine, _, _ = slow
    for path in (CHAT, ROUTE):
        for member, value in WRONG:
            seen = ask(started, path, model="small", turnout={member: value})
            assert (seen.status, seen.param) == (400, f"turnout.{member}"), (path, member, value)
        seen = ask(started, path, MATHS, b"x-turnout-session: a", model="small", turnout={"session": "b"})
        assert (seen.status, seen.param) == (400, "turnout.session")
    assert engine.requests == []
