"""Ingress limits on real sockets (request-path §2): each bound, what is just inside it, what happens over it."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.client import Client
    from tests.support.engine import Engine
    from tests.support.router import Router

Routers = Callable[..., "Router"]
Engines = Callable[..., "Engine"]


def refused(client: Client, status: int, code: str) -> None:
    answered = client.response()
    assert (answered.status, answered.code) == (status, code), answered.body
    assert client.is_closed()


def trickle(client: Client, piece: bytes) -> None:
    """Send piece by piece until the router answers, never idle for long."""
    patience_s = client.socket.gettimeout() or 0.0
    ends = time.monotonic() + patience_s
    client.socket.settimeout(0.02)
    while time.monotonic() < ends:
        client.send(piece)
        try:
            if client.socket.recv(1, socket.MSG_PEEK):
                break
        except TimeoutError:
            continue
    client.socket.settimeout(patience_s)


def served(up: Router) -> Client:
    """A connection that has had an answer, however often it is closed for idleness before this thread asks."""
    ends = time.monotonic() + 30
    while True:
        client = up.client()
        try:
            client.send(up.head(method=b"GET", path=b"/health"))
            client.response()
        except (EOFError, ConnectionError):
            if time.monotonic() > ends:
                raise
        else:
            return client


def next_sweep(up: Router) -> None:
    """Let the listener's clock go on: it goes in steps."""
    now = up.app.listener.now
    assert up.eventually(lambda: up.app.listener.now > now)


@pytest.fixture(scope="module")
def door(module_router: Routers, module_engine: Engines) -> Router:
    return module_router(module_engine())


def test_L1_request_line(door: Router) -> None:
    target = b"/health?" + b"a" * (8192 - len("GET /health? HTTP/1.1"))
    client = door.client()
    client.send(door.head(method=b"GET", path=target))
    assert client.response().status == 200
    client.send(door.head(method=b"GET", path=target + b"a"))
    refused(client, 414, "request_too_large")


def test_L1_an_endless_request_line_is_refused_at_its_limit(door: Router) -> None:
    client = door.client()
    client.send(b"GET /" + b"a" * 8200)
    refused(client, 414, "request_too_large")


def test_L1_head_in_all(door: Router) -> None:
    own = len(door.head(b"X-A: ", method=b"GET", path=b"/health"))
    client = door.client()
    client.send(door.head(b"X-A: " + b"a" * (32_768 - own), method=b"GET", path=b"/health"))
    assert client.response().status == 200
    client.send(door.head(b"X-A: " + b"a" * (32_769 - own), method=b"GET", path=b"/health"))
    refused(client, 431, "request_too_large")


def test_L1_an_endless_head_is_refused_at_its_limit(door: Router) -> None:
    client = door.client()
    client.send(b"GET / HTTP/1.1\r\nX-A: " + b"a" * 32_768)
    refused(client, 431, "request_too_large")


def test_L1_header_lines(door: Router) -> None:
    client = door.client()
    client.send(door.head(*[b"X-%d: a" % i for i in range(98)], method=b"GET", path=b"/health"))
    assert client.response().status == 200
    client.send(door.head(*[b"X-%d: a" % i for i in range(99)], method=b"GET", path=b"/health"))
    refused(client, 431, "request_too_large")


def test_L2_a_body_over_the_limit_is_413_before_it_is_read(router: Routers, script_engine: Engines) -> None:
    up = router(engine := script_engine(), server={"body_max_bytes": 1000})
    client = up.client()
    client.send(up.head(b"Content-Length: 1001"))
    refused(client, 413, "request_too_large")
    client = up.client()
    client.send(up.head(b"Transfer-Encoding: chunked"), b"3e8\r\n" + b" " * 1000 + b"\r\n", b"1\r\n")
    refused(client, 413, "request_too_large")
    assert not engine.requests


def test_L2_a_body_at_the_limit_passes(router: Routers, script_engine: Engines) -> None:
    up = router(script_engine())
    body = up.request()[len(up.request().split(b"\r\n\r\n")[0]) + 4 :]
    exact = router(script_engine(), server={"body_max_bytes": len(body)})
    assert exact.ask(body).status == 200
    client = exact.client()
    client.send(exact.head(b"Transfer-Encoding: chunked"), b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    assert client.response().status == 200


FLOODS = {
    "extensions": b"1;" + b"a" * 1000 + b"\r\n \r\n",
    "leading zeros": b"0000000000000001\r\n \r\n",
    "one-byte chunks": b"1\r\n \r\n",
    "long extension": b"1;" + b"a" * 4200,
}


@pytest.mark.parametrize("piece", FLOODS.values(), ids=FLOODS)
def test_L4_more_framing_than_payload_is_refused(piece: bytes, door: Router) -> None:
    client = door.client()
    client.send(door.head(b"Transfer-Encoding: chunked"), piece * 3000)
    refused(client, 400, "bad_http")


def test_L4_a_well_chunked_body_passes(door: Router) -> None:
    body = door.request(b" " * 3000).split(b"\r\n\r\n", 1)[1] + b'{"model":"model-a","messages":[{"role":"user"}]}'
    client = door.client()
    client.send(door.head(b"Transfer-Encoding: chunked"))
    client.send(
        *[
            b"5\r\n%b\r\n" % body[at : at + 5] if at + 5 <= len(body) else b"%x\r\n%b\r\n" % (len(body) - at, body[at:])
            for at in range(0, len(body), 5)
        ]
    )
    client.send(b"0\r\n\r\n")
    assert client.response().status == 200


def test_L5_an_incomplete_head_is_408(router: Routers) -> None:
    up = router(server={"head_timeout_s": 0.1})
    client = up.client()
    client.send(b"GET / HTTP/1.1\r\nHost")
    refused(client, 408, "request_timeout")


def test_L5_a_trickled_head_is_408_although_bytes_arrive(router: Routers) -> None:
    up = router(server={"head_timeout_s": 0.1})
    client = up.client()
    client.send(b"GET / HTTP/1.1\r\nX-Drip: ")
    trickle(client, b"a")
    refused(client, 408, "request_timeout")


@pytest.mark.parametrize("framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
def test_L5_a_body_that_stops_is_408(framing: bytes, router: Routers, script_engine: Engines) -> None:
    up = router(engine := script_engine(), server={"body_idle_s": 0.1})
    client = up.client()
    client.send(up.head(framing) + b"5\r\n")  # in one piece: between two the time-out could pass
    refused(client, 408, "request_timeout")
    assert not engine.requests


def test_L6_an_idle_connection_is_closed_silently(router: Routers) -> None:
    up = router(server={"idle_s": 0.1})
    fresh, used = up.client(), served(up)
    assert fresh.is_closed()
    assert used.is_closed()


def test_L6_reading_pauses_behind_the_request_in_progress(router: Routers, script_engine: Engines, wire: Any) -> None:
    gate = wire.Gate()
    up = router(engine := script_engine([gate, wire.answer()]), server={"pipeline_max_bytes": 1000})
    client = up.client()
    client.send(up.request())
    assert gate.reached.wait(30)
    client.socket.settimeout(0.3)
    sent = 0
    try:
        while sent < 64_000_000:
            sent += client.socket.send(up.request() * 1000)
    except TimeoutError:
        pass
    assert sent < 64_000_000
    (connection,) = up.app.listener.connections
    assert up.call(lambda: len(connection._buffer)) <= 1000 + 262_144
    gate.open()
    client.socket.settimeout(30)
    assert client.response().status == 200
    assert engine.requests


def test_L7_too_many_connections(router: Routers) -> None:
    up = router(server={"connections_max": 2})
    clients = [up.client() for _ in range(2)]
    for client in clients:
        client.send(up.head(method=b"GET", path=b"/health"))
        assert client.response().status == 200
    third = up.client()
    answered = third.response()
    assert (answered.status, answered.code, answered.header(b"retry-after")) == (503, "too_many_connections", b"1")
    assert third.is_closed()
    third.close()
    clients[0].close()
    assert up.eventually(lambda: len(up.app.listener.connections) < 2)
    fourth = up.client()
    fourth.send(up.head(method=b"GET", path=b"/health"))
    assert fourth.response().status == 200


def test_F34_one_address_opens_so_many_connections_and_no_more(router: Routers) -> None:
    up = router(server={"connections_per_address_max": 2, "uncapped_addresses": []})
    first, second, third = up.client(), up.client(), up.client()
    refused(third, 503, "too_many_connections")
    for client in (first, second):
        client.send(up.head(method=b"GET", path=b"/health"))
        assert client.response().status == 200
    first.close()
    assert up.eventually(lambda: len(up.app.listener.connections) == 1)
    again = up.client()
    again.send(up.head(method=b"GET", path=b"/health"))
    assert again.response().status == 200
    for client in (second, again):
        client.close()
    assert up.eventually(lambda: not up.app.listener._by_address)


def test_F34_a_proxy_on_this_machine_speaks_for_many(router: Routers) -> None:
    up = router(server={"connections_per_address_max": 1})
    clients = [up.client() for _ in range(5)]
    for client in clients:
        client.send(up.head(method=b"GET", path=b"/health"))
        assert client.response().status == 200


def test_F34_who_was_idle_for_longest_makes_room_when_it_gets_crowded(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    gate = wire.Gate()
    up = router(script_engine([gate, wire.answer()]), server={"connections_max": 10})
    busy = up.client()
    busy.send(up.request())
    assert gate.reached.wait(30)
    clients = [up.client() for _ in range(7)]
    for client in [*clients[1:], clients[0]]:  # the first one was used last
        client.send(up.head(method=b"GET", path=b"/health"))
        assert client.response().status == 200
        next_sweep(up)
    assert len(up.app.listener.connections) == 8
    newest = [up.client() for _ in range(2)]
    assert clients[1].is_closed()
    assert clients[2].is_closed()
    assert up.eventually(lambda: len(up.app.listener.connections) == 8)
    for client in (clients[0], clients[3], *newest):
        client.send(up.head(method=b"GET", path=b"/health"))
        assert client.response().status == 200
    gate.open()
    assert busy.response().status == 200


def test_L8_bodies_of_all_exchanges_are_bounded(router: Routers, script_engine: Engines, wire: Any) -> None:
    gate = wire.Gate()
    up = router(script_engine([gate, wire.answer()]), server={"bodies_max_bytes": 500})
    first = up.client()
    first.send(up.request(wire.chat(metadata="x" * 200)))
    assert gate.reached.wait(30)
    second = up.client()
    second.send(up.head(b"Content-Length: 400"))
    answered = second.response()
    assert (answered.status, answered.code, answered.header(b"retry-after")) == (503, "shed", b"1")
    assert second.is_closed()
    gate.open()
    assert first.response().status == 200
    assert up.call(lambda: up.app.listener.body_bytes) == 0
    assert up.ask(wire.chat(metadata="x" * 200)).status == 200


@pytest.mark.parametrize("framing", [b"Content-Length: 400", b"Transfer-Encoding: chunked"])
def test_L8_bodies_are_bounded_while_they_arrive(framing: bytes, router: Routers, script_engine: Engines) -> None:
    up = router(script_engine(), server={"bodies_max_bytes": 500})
    clients = [up.client() for _ in range(2)]
    piece = b"12c\r\n" + b" " * 295
    for client in clients:
        client.send(up.head(framing))
    assert up.eventually(lambda: len(up.app.listener.connections) == 2)
    clients[0].send(piece)
    assert up.eventually(lambda: up.app.listener.body_bytes >= 290)
    clients[1].send(piece)
    refused(clients[1], 503, "shed")
    clients[0].close()
    assert up.eventually(lambda: up.app.listener.body_bytes == 0)


def test_L11_a_key_of_257_bytes_is_401_and_one_of_256_is_looked_up(router: Routers, script_engine: Engines) -> None:
    def table(key: str) -> dict[str, str]:
        return {"name": str(len(key)), "tenant": "t", "digest": "sha256:" + hashlib.sha256(key.encode()).hexdigest()}

    up = router(script_engine(), key=[table("k" * 256), table("k" * 257)])
    assert up.ask(key="k" * 256).status == 200
    assert up.ask(key="k" * 257).status == 401


def test_L11_session_and_request_ids(door: Router) -> None:
    assert door.ask(None, b"x-turnout-session: " + b"s" * 512).status == 200
    answered = door.ask(None, b"x-turnout-session: " + b"s" * 513)
    assert (answered.status, answered.param) == (400, "x-turnout-session")
    assert door.ask(None, b"x-request-id: " + b"r" * 128).header(b"x-request-id") == b"r" * 128
    for odd in (b"r" * 129, b"a b", b"a/b", b"\xe9", b""):
        seen = door.ask(None, b"x-request-id: " + odd).header(b"x-request-id")
        assert seen not in (odd, None)


def test_L11_a_session_id_in_the_body_has_512_bytes(door: Router, wire: Any) -> None:
    assert door.ask(wire.chat(session_id="s" * 512)).status == 200
    answered = door.ask(wire.chat(session_id="é" * 257))
    assert (answered.status, answered.param) == (400, "session_id")


def test_L11_what_the_ledger_keeps_of_a_caller_is_bounded(door: Router, wire: Any) -> None:
    for members in ({"user": "u" * 100_000}, {"prompt_cache_key": "p" * 100_000}):
        told = len(door.records.facts)
        assert door.ask(wire.chat(**members)).status == 200
        fact = door.records.fact(told)
        assert len(fact.user_id or "") <= 512
        assert len(fact.session_id or "") == 512


@pytest.mark.parametrize("framing", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
def test_L5_a_trickled_body_is_ended_by_the_total_deadline(
    framing: bytes, router: Routers, script_engine: Engines
) -> None:
    up = router(engine := script_engine(), timeout={"total_s": 0.4}, server={"body_idle_s": 30})
    client = up.client()
    client.send(up.head(framing))
    trickle(client, b"1\r\n \r\n" if b"chunked" in framing else b" ")
    refused(client, 408, "request_timeout")
    assert not engine.requests


def test_L9_an_engine_is_read_no_faster_than_its_client_takes(
    router: Routers, script_engine: Engines, wire: Any
) -> None:
    event = wire.chunk(wire.event("x" * 60_000))
    engine = script_engine([wire.STREAM_HEAD, *[event] * 600, *wire.stream(wire.event(finish="stop"), wire.DONE)[1:]])
    up = router(engine)
    client = up.client()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # else loopback takes megabytes in advance
    client.send(up.request(wire.chat(stream=True)))
    client.read(b"\r\n\r\n")
    engine.request()
    readings = [0]
    while len(readings) < 30 or len(set(readings[-30:])) > 1:  # until what the engine has left to send stops falling
        readings.append(up.call(lambda: sum(c.transport.get_write_buffer_size() for c in engine.open)))
    assert readings[-1] > 10_000_000  # of 36 million; the kernel's own buffers between us hold a few
    (connection,) = up.app.listener.connections
    assert (
        up.call(connection._transport.get_write_buffer_size) <= 262_144 + 2 * 262_144
    )  # the mark, and what one read brings
    left, wanted = readings[-1], 8_000_000
    while wanted > 0:  # and is read again as soon as the client takes
        wanted -= len(client.socket.recv(1_000_000))
    assert up.eventually(lambda: sum(c.transport.get_write_buffer_size() for c in engine.open) < left)
    client.close()
    assert up.records.fact().outcome == "client_gone"


def test_L9_client_sockets_have_a_bounded_send_buffer(door: Router) -> None:
    client = door.client()
    client.send(door.head(method=b"GET", path=b"/health"))
    client.response()
    newest = max(door.app.listener.connections, key=lambda c: c.deadline)
    held = door.call(lambda: newest._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
    assert held <= 2 * 262_144  # the kernel doubles what is asked for
