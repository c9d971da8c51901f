"""Clients that leave, in every phase and on every path (request-path W7), and what is left behind: nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from turnout.http.client import EndpointPool

if TYPE_CHECKING:
    from tests.support.client import Client
    from tests.support.engine import Engine, EngineRequest
    from tests.support.router import Router

Routers = Callable[..., "Router"]
Engines = Callable[..., "Engine"]

SURFACES = {
    "chat": (b"/v1/chat/completions", False),
    "streamed chat": (b"/v1/chat/completions", True),
    "completions": (b"/v1/completions", False),
    "streamed completions": (b"/v1/completions", True),
    "embeddings": (b"/v1/embeddings", False),
}


def body_for(path: bytes, *, stream: bool) -> dict[str, object]:
    body: dict[str, object] = {"model": "model-a"}
    if path.endswith(b"/embeddings"):
        body["input"] = "hello"
    elif path.endswith(b"chat/completions"):
        body["messages"] = [{"role": "user", "content": "hello"}]
    else:
        body["prompt"] = "hello"
    return {**body, "stream": True} if stream else body


def text_event(text: str, finish: str | None = None) -> bytes:
    """An event that is output on both streamed paths."""
    choice = {"index": 0, "delta": {"content": text}, "text": text, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port whose queue of connections is full: a connection to it neither succeeds nor fails."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for filler in fillers:
            filler.close()


def idle(up: Router) -> bool:
    """Whether the router holds nothing for anybody."""
    gateway = up.app.gateway
    endpoints = gateway.fleet.endpoints.values()
    held = [(e.in_flight, e.pending_prefill_tokens, e.active_tokens) for e in endpoints]
    return (
        not gateway.runs
        and up.app.listener.body_bytes == 0
        and set(held) <= {(0, 0, 0)}
        and not any(isinstance(u.pool, EndpointPool) and u.pool._connecting for u in gateway.upstreams.values())
    )


def left(up: Router, engine: Engine | None) -> None:
    """Assert what must be true of a client that left after its request was accepted."""
    if engine is not None:
        assert engine.request().closed.wait(30)
    fact = up.records.fact()
    assert (fact.outcome, fact.cls, fact.http_status) == ("client_gone", "cancelled", 499)
    assert [a.error_kind for a in fact.attempts][-1:] != ["connect_error"]
    assert up.eventually(lambda: idle(up))
    assert len(up.records.facts) == 1


# -- T95: path × stream or not × phase ---------------------------------------------------------------------------------


@pytest.mark.parametrize("surface", SURFACES)
def test_client_gone_matrix_in_its_body(surface: str, router: Routers, script_engine: Engines) -> None:
    path, stream = SURFACES[surface]
    up = router(engine := script_engine())
    client = up.client()
    client.send(up.request(body_for(path, stream=stream), path=path)[:-3])
    assert up.eventually(lambda: up.app.listener.body_bytes > 0)
    client.close()
    assert up.eventually(lambda: not up.app.listener.connections and idle(up))
    assert (engine.requests, up.records.facts) == ([], [])


@pytest.mark.parametrize("surface", SURFACES)
def test_client_gone_matrix_while_connecting(surface: str, router: Routers, deaf_port: int) -> None:
    path, stream = SURFACES[surface]
    url = f"http://127.0.0.1:{deaf_port}"
    up = router(
        endpoint=[{"name": "e1", "url": url, "models": ["model-a"]}],
        probe={"interval_s": 600, "timeout_s": 60},
        timeout={"connect_s": 60},
    )
    client = up.client()
    client.send(up.request(body_for(path, stream=stream), path=path))
    assert up.eventually(lambda: bool(up.app.gateway.runs))
    client.close()
    fact = up.records.fact()
    assert fact.outcome == "client_gone"
    pool = up.app.gateway.upstreams["e1"].pool
    assert isinstance(pool, EndpointPool)
    assert up.eventually(lambda: not up.app.gateway.runs and len(pool._connecting) <= 1)  # the prober's own
    assert up.app.gateway.fleet.endpoints["e1"].in_flight == 0


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("phase", ["before the head", "before the first output", "inside the answer"])
def test_client_gone_matrix_at_the_engine(
    surface: str, phase: str, router: Routers, script_engine: Engines, wire: Any
) -> None:
    path, stream = SURFACES[surface]
    gate = wire.Gate()
    head = wire.STREAM_HEAD if stream else wire.answer().partition(b"{")[0]
    script = {
        "before the head": [gate],
        "before the first output": [head, *([wire.chunk(text_event(""))] if stream else []), gate],
        "inside the answer": [head, wire.chunk(text_event("a")) if stream else b'{"half":', gate],
    }[phase]
    up = router(engine := script_engine(script))
    client = up.client()
    client.send(up.request(body_for(path, stream=stream), path=path))
    assert gate.reached.wait(30)
    if stream and phase == "inside the answer":
        client.read(text_event("a"))
    client.close()
    left(up, engine)


@pytest.mark.parametrize("surface", SURFACES)
def test_client_gone_matrix_in_a_back_off(surface: str, router: Routers, script_engine: Engines, wire: Any) -> None:
    path, stream = SURFACES[surface]
    up = router(engine := script_engine(wire.answer(b"{}", 503, b"Retry-After: 5")))
    client = up.client()
    client.send(up.request(body_for(path, stream=stream), path=path))
    assert up.eventually(lambda: any(run._wait is not None for run in up.app.gateway.runs))
    client.close()
    left(up, None)
    assert len(engine.requests) == 1


@pytest.mark.parametrize("surface", SURFACES)
def test_client_gone_matrix_while_waiting_for_the_retry_budget(
    surface: str, router: Routers, script_engine: Engines, wire: Any
) -> None:
    path, stream = SURFACES[surface]
    one, two = script_engine(wire.answer(b"{}", 500)), script_engine(wire.answer(b"{}", 500))
    up = router(one, two, retry={"budget_ratio": 0.0, "budget_floor_per_s": 0.0})
    client = up.client()
    client.send(up.request(body_for(path, stream=stream), path=path))
    assert up.eventually(lambda: any(r.exchange and r.exchange.queued_at_s for r in up.app.gateway.runs))
    client.close()
    left(up, None)
    assert len(one.requests) + len(two.requests) == 1


IMPATIENT = {"queue_wait_s": 0.2}


@pytest.mark.parametrize("surface", SURFACES)
def test_leaving_client_frees_capacity(surface: str, router: Routers, script_engine: Engines, wire: Any) -> None:
    """T40."""
    path, stream = SURFACES[surface]
    gate = wire.Gate()
    engine = script_engine([gate], [wire.answer()])
    up = router(
        endpoint=[{"name": "e1", "url": engine.url, "models": ["model-a"], "max_in_flight": 1}], admission=IMPATIENT
    )
    first = up.client()
    first.send(up.request(body_for(path, stream=stream), path=path))
    assert gate.reached.wait(30)
    assert up.ask().status == 503
    first.close()
    assert up.eventually(lambda: idle(up))
    assert up.ask().status == 200


OUTCOMES: dict[str, Callable[[Any], Any]] = {
    "completed": lambda w: None,
    "upstream_answered": lambda w: [w.answer(b'{"error":{"message":"no"}}', 400)],
    "upstream_invalid": lambda w: [b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Type: text/html\r\n\r\nhey"],
    "upstream_unreachable": lambda w: [w.Cut(reset=True)],
    "upstream_credential": lambda w: [w.answer(b"{}", 401)],
    "deadline_exceeded": lambda w: [w.Gate()],
    "client_gone": lambda w: [w.Gate()],
    "stream_interrupted": lambda w: w.stream(text_event("a")),
    "model_not_found": lambda w: None,
    "model_forbidden": lambda w: None,
    "context_exceeded": lambda w: None,
}


def scripted(surface: tuple[bytes, bool], outcome: str, wire: Any) -> Any:
    script = OUTCOMES[outcome](wire)
    if script is not None:
        return script
    if not surface[1]:
        return [wire.answer()]
    return wire.stream(text_event("a"), text_event("", "stop"), wire.USAGE, wire.DONE)


CASES = [
    (surface, outcome)
    for surface in SURFACES
    for outcome in OUTCOMES
    if SURFACES[surface][1] or outcome != "stream_interrupted"
]


@pytest.mark.parametrize(("surface", "outcome"), CASES)
def test_every_path_writes_rows(surface: str, outcome: str, router: Routers, script_engine: Engines, wire: Any) -> None:
    """T29: path × stream × outcome, exactly one fact each, with its attempts."""
    path, stream = SURFACES[surface]
    engine = script_engine(scripted(SURFACES[surface], outcome, wire))
    up = router(
        endpoint=[{"name": "e1", "url": engine.url, "models": ["model-a", "other"], "context_max": 50}],
        key=[
            {
                "name": "k",
                "tenant": "t",
                "digest": "sha256:" + hashlib.sha256(wire.KEY.encode()).hexdigest(),
                "models": ["model-a"],
            }
        ],
        retry={"attempts_per_model": 1},
    )
    body = body_for(path, stream=stream)
    if outcome.startswith("model_"):
        body["model"] = "other" if outcome == "model_forbidden" else "nowhere"
    if outcome == "context_exceeded":
        member = next(name for name in ("messages", "prompt", "input") if name in body)
        body[member] = [{"role": "user", "content": "a" * 900}] if member == "messages" else "a" * 900
    # Long enough to be sent to the engine on a busy machine: a deadline that comes before has no attempt.
    lines = [b"x-turnout-timeout-ms: 1000"] if outcome == "deadline_exceeded" else []
    client = up.client()
    client.send(up.request(body, *lines, path=path))
    if outcome == "client_gone":
        engine.request()
        client.close()
    else:
        client.response()
    fact = up.records.fact()
    assert (fact.outcome, fact.path, fact.stream) == (outcome, path.decode(), stream)
    opened = outcome not in ("model_not_found", "model_forbidden", "context_exceeded")
    assert len(fact.attempts) == opened
    assert up.eventually(lambda: idle(up))
    assert len(up.records.facts) == 1


def test_load_returns_to_zero(router: Routers, script_engine: Engines, wire: Any) -> None:
    """T60: after answers, cancels, refusals, cuts and timeouts."""
    endings = [
        [wire.answer()],
        wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE),
        [wire.Gate()],
        [wire.answer(b"{}", 503)],
        [wire.Cut(reset=True)],
        wire.stream(wire.event("a")),
        [wire.STREAM_HEAD, wire.chunk(wire.event("a")), wire.Gate()],
    ]
    draw = random.Random(5)
    one, two = script_engine(), script_engine()
    one.scripts = two.scripts = [draw.choice(endings) for _ in range(120)] + [[wire.answer()]]
    # Time-outs end what is silent; none of them decides the verdict, whichever answers they cut on a busy machine.
    up = router(one, two, timeout={"first_token_failover_s": 0.1, "first_token_s": 0.1, "stall_s": 0.1})
    clients: list[Client] = []
    for number in range(40):
        client = up.client()
        client.send(up.request(wire.chat(stream=number % 4 != 0), b"x-turnout-timeout-ms: 700"))
        clients.append(client)
    for client in clients[::3]:
        client.close()
    for number, client in enumerate(clients):
        if number % 3:
            assert client.response().status
    assert up.eventually(lambda: idle(up))
    assert len(up.records.facts) == 40


# -- T100 -------------------------------------------------------------------------------------------------------------

TENANTS = 2000
AT_ONCE = 100
CANARY = re.compile(rb"canary-\d+-\d-")


def echo(wire: Any) -> Callable[[EngineRequest], Any]:
    """Write the script of an engine that answers with the canary it was asked with, whole or cut off at any place."""
    draw = random.Random(7)

    def play(request: EngineRequest) -> Any:
        canary = request.json["messages"][0]["content"]
        assert request.header(b"x-canary") == canary.encode()  # no request is mixed from two
        whole = json.dumps({"choices": [{"message": {"content": canary}, "finish_reason": "stop"}]}).encode()
        if not request.json.get("stream"):
            return [wire.answer(whole)]
        events = [wire.event(canary) for _ in range(5)] + [wire.event(finish="stop"), wire.DONE]
        script = wire.stream(*events)
        if draw.random() < 0.3:
            return [*script[: draw.randrange(1, 5)], wire.Gate()]  # goes on only for a client that waits: nobody does
        return [b"".join(script)] if draw.random() < 0.5 else script

    return play


async def ask_and_leave(up: Router, number: int, draw: random.Random, wrong: list[str]) -> None:
    """Ask for one canary, several times on one connection, and leave somewhere: after it, inside it, or before it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", up.port)
    for turn in range(2):
        canary = f"canary-{number}-{turn}-"
        stream = draw.random() < 0.6
        body = {"model": "model-a", "messages": [{"role": "user", "content": canary}], "stream": stream}
        writer.write(up.request(body, b"x-canary: " + canary.encode(), key=f"key-{number}"))
        patience = draw.choice((0.0, 0.002, 0.01, 30.0))
        seen = b""
        try:
            async with asyncio.timeout(patience if stream else 30.0):
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")), 0)
                seen = await (reader.readexactly(length) if length else reader.readuntil(b"data: [DONE]"))
                if not length:
                    await reader.readuntil(b"0\r\n\r\n")
        except (TimeoutError, asyncio.IncompleteReadError):
            seen = bytes(reader._buffer)  # type: ignore[attr-defined]  # what had come so far
            patience = 0.0
        foreign = set(CANARY.findall(seen)) - {canary.encode()}
        wrong += [f"{canary} saw {foreign}"] if foreign else []
        if patience == 0.0:
            break
    writer.transport.abort()


def test_no_foreign_bytes_on_reused_connections(router: Routers, script_engine: Engines, wire: Any) -> None:
    """T100: thousands of tenants, two engines, cancels at any instant: each sees its own canary only."""
    keys = [
        {"name": f"k{n}", "tenant": f"t{n}", "digest": "sha256:" + hashlib.sha256(f"key-{n}".encode()).hexdigest()}
        for n in range(TENANTS)
    ]
    engines = [script_engine(echo(wire)), script_engine(echo(wire))]
    up = router(
        *engines,
        key=keys,
        timeout={"first_token_failover_s": 0.2, "first_token_s": 0.3, "stall_s": 0.3},
        breaker={"consecutive": 10**6, "ratio_min": 10**6},  # engines that fall silent on purpose are not taken out
    )
    wrong: list[str] = []

    async def storm() -> None:
        draw = random.Random(11)
        numbers = iter(range(TENANTS))

        async def worker() -> None:
            for number in numbers:
                await ask_and_leave(up, number, draw, wrong)

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    asyncio.run(storm())
    assert wrong == []
    reuses = sum(upstream.pool.reuses_total for upstream in up.app.gateway.upstreams.values())
    assert reuses > TENANTS / 4
    assert up.eventually(lambda: idle(up))
    by_tenant = {fact.tenant for fact in up.records.facts}
    assert len(by_tenant) > TENANTS / 2
    assert {fact.outcome for fact in up.records.facts} <= {
        "completed",
        "client_gone",
        "stream_interrupted",
        "upstream_timeout",
    }
