"""Connections that do not come to be: closed ports, full backlogs, names and certificates that are wrong (F01 to F12)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from turnout.http.dialling import Dialler

if TYPE_CHECKING:
    from tests.support.engine import Engine
    from tests.support.router import Router

Routers = Callable[..., "Router"]
SOCKETS = pytest.mark.parametrize("place", ["sockets"])  # the kernel or the TLS library is what is tested
QUIET = {"probe": {"interval_s": 600}}


def table(model: str, **urls: str) -> list[dict[str, Any]]:
    return [{"name": name, "url": url, "models": [model]} for name, url in urls.items()]


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_F01_a_closed_port_costs_one_attempt_and_no_time(
    place: str, router: Routers, script_engine: Any, wire: Any, rests: Any
) -> None:
    good = [script_engine() for _ in range(2)]
    closed = f"http://127.0.0.1:{closed_port()}"
    up = router(endpoint=table(wire.MODEL, e1=closed, e2=good[0].url, e3=good[1].url), **QUIET)
    for _ in range(20):
        began = up.call(up.app.gateway.clock)
        assert up.ask().status == 200
        if place == "virtual":
            assert up.call(up.app.gateway.clock) - began < 0.1
    kinds = [a.error_kind for fact in up.records.facts for a in fact.attempts if a.error_kind]
    assert len(kinds) <= 1  # the prober may have found out before anybody asked
    assert up.app.gateway.fleet.endpoints["e1"].unreachable
    assert rests(up)


def test_F01_with_nobody_else_it_is_502(router: Routers, wire: Any) -> None:
    up = router(endpoint=table(wire.MODEL, e1=f"http://127.0.0.1:{closed_port()}"), **QUIET)
    refused = up.ask()
    assert (refused.status, refused.code) in ((502, "upstream_unreachable"), (503, "no_endpoint"))
    assert up.eventually(lambda: up.app.gateway.fleet.endpoints["e1"].unreachable)
    refused = up.ask()
    assert (refused.status, refused.code) == (503, "no_endpoint")
    assert int(refused.header(b"retry-after") or 0) >= 1


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """A port whose kernel answers no further SYN: nobody accepts, and the queue is full."""
    with socket.socket() as listening, contextlib.ExitStack() as fillers:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        for _ in range(8):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


@SOCKETS
def test_F02_F10_a_connection_that_never_comes_is_given_up_in_time(
    router: Routers, script_engine: Any, wire: Any
) -> None:
    with full_backlog() as port:
        good = script_engine()
        endpoints = table(wire.MODEL, e1=f"http://127.0.0.1:{port}", e2=good.url)
        up = router(endpoint=endpoints, timeout={"connect_s": 2.0}, probe={"interval_s": 600, "timeout_s": 600})
        assert [up.ask().status for _ in range(12)] == [200] * 12
        kinds = [a.error_kind for fact in up.records.facts for a in fact.attempts if a.error_kind]
        assert kinds in ([], ["timeout_connect"])  # one waited, or none: the prober's own attempt may have come first
        assert up.eventually(lambda: up.app.gateway.fleet.endpoints["e1"].unreachable)


# -- TLS --------------------------------------------------------------------------------------------------------------


def openssl(*words: str, folder: Path) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA; certificates of it for 127.0.0.1 and for another name, an expired one, and one that nobody signed."""
    folder = tmp_path_factory.mktemp("tls")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2", folder=folder)
    for name, subject, days in (("good", "IP:127.0.0.1", "2"), ("other", "DNS:elsewhere.example", "2")):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}", folder=folder)
        (folder / "san").write_text(f"subjectAltName={subject}\n")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "san")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem", "-days", days, folder=folder)
    own = ("-addext", "subjectAltName=IP:127.0.0.1", "-subj", "/CN=own")
    openssl("req", "-x509", *key, "-keyout", "own.key", "-out", "own.pem", *own, "-days", "2", folder=folder)
    openssl("req", *key, "-keyout", "old.key", "-out", "old.csr", "-subj", "/CN=old", folder=folder)
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    over = ("-CA", "ca.pem", "-CAkey", "ca.key", "-extfile", "san", "-days", "-1")
    openssl("x509", "-req", "-in", "old.csr", *over, "-out", "old.pem", folder=folder)
    return folder


@contextlib.contextmanager
def behind_tls(loop: Any, engine: Engine, folder: Path, name: str, **limits: Any) -> Iterator[str]:
    """A port that speaks TLS with this certificate, in front of an engine."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    for field, value in limits.items():
        setattr(context, field, value)

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to, of = await asyncio.open_connection("127.0.0.1", engine.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65_536):
                    sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, of), pump(to, writer))

    async def serve() -> Any:
        return await asyncio.start_server(one, "127.0.0.1", 0, ssl=context)

    server = loop.run(serve())
    yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    loop.call(server.close)


@SOCKETS
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_behind_tls_is_asked_like_any_other(
    stream: bool,  # noqa: FBT001 - a parameter
    loop: Any,
    router: Routers,
    script_engine: Any,
    wire: Any,
    certificates: Path,
) -> None:
    whole = wire.stream(wire.event("a"), wire.event(finish="stop"), wire.DONE)
    engine = script_engine(whole if stream else [wire.answer()])
    with behind_tls(loop, engine, certificates, "good") as url:
        endpoint = {"name": "e1", "url": url, "models": [wire.MODEL], "tls_ca": str(certificates / "ca.pem")}
        up = router(endpoint=[endpoint], **QUIET)
        for _ in range(3):
            answered = up.ask(wire.chat(stream=stream))
            assert (answered.status, answered.whole) == (200, True)
        assert up.app.gateway.upstreams["e1"].pool.reuses_total >= 2
        up.stop()


WRONG = {
    "signed by itself": ("own", {}),
    "expired": ("old", {}),
    "of another name": ("other", {}),
    "an old protocol": ("good", {"maximum_version": ssl.TLSVersion.TLSv1_1, "minimum_version": ssl.TLSVersion.TLSv1}),
}


@SOCKETS
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # old versions are the point
@pytest.mark.parametrize(("name", "limits"), WRONG.values(), ids=WRONG)
def test_F06_a_certificate_that_proves_nothing_is_no_connection(
    name: str,
    limits: dict[str, Any],
    loop: Any,
    router: Routers,
    script_engine: Any,
    wire: Any,
    certificates: Path,
) -> None:
    behind, good = script_engine(), script_engine()
    with behind_tls(loop, behind, certificates, name, **limits) as url:
        endpoints = [
            # A bought service: it is not probed, so that a request is what finds out.
            {"name": "e1", "url": url, "models": [wire.MODEL], "tls_ca": str(certificates / "ca.pem"), "provider": "p"},
            {"name": "e2", "url": good.url, "models": [wire.MODEL], "standby": True},
        ]
        up = router(endpoint=endpoints, **QUIET)
        answered = up.ask()
        assert (answered.status, answered.header(b"x-turnout-endpoint")) == (200, b"e2")
        fact = up.records.fact()
        assert "connect_error" in [a.error_kind for a in fact.attempts]
        assert behind.requests == []  # not a byte of the request went to whoever that was
        up.stop()


# -- names ------------------------------------------------------------------------------------------------------------


class Book:
    """What a name leads to: a list of addresses, or nothing at all."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: list[str] | None = list(addresses)
        self.asked = 0

    async def __call__(self, _: str, __: int) -> list[str]:
        self.asked += 1
        if self.addresses is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.addresses


class Peers(asyncio.Protocol):
    """Either end of a connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


@pytest.fixture
def port(loop: Any) -> Iterator[int]:
    async def listen() -> Any:
        return await asyncio.get_running_loop().create_server(Peers, "127.0.0.1", 0)

    server = loop.run(listen())
    yield server.sockets[0].getsockname()[1]
    loop.call(server.close)


def dial(loop: Any, dialler: Dialler) -> bool:
    async def go() -> bool:
        try:
            peer = await dialler.connect(Peers)
        except OSError:
            return False
        peer.transport.close()
        return True

    reached: bool = loop.run(go())
    return reached


@pytest.mark.parametrize("place", ["virtual"])  # half a minute and an hour have to pass
def test_F07_the_last_good_addresses_stay_for_an_hour(loop: Any, port: int) -> None:
    book = Book("127.0.0.1")
    dialler = Dialler("engine.example", port, lookup=book)
    assert dial(loop, dialler)
    assert (dial(loop, dialler), book.asked) == (True, 1)
    book.addresses = None
    for _ in range(10):
        loop.run(asyncio.sleep(300))
        assert dial(loop, dialler)
    assert dialler.stale_total >= 9
    loop.run(asyncio.sleep(700))
    assert not dial(loop, dialler)
    book.addresses = ["127.0.0.1"]
    loop.run(asyncio.sleep(6))
    assert dial(loop, dialler)


def test_F07_a_name_that_never_led_anywhere_is_no_connection(loop: Any, port: int) -> None:
    dialler = Dialler("engine.example", port, lookup=Book())
    assert not dial(loop, dialler)


@pytest.mark.parametrize("place", ["virtual"])
def test_F07_a_resolver_that_hangs_is_not_waited_for(loop: Any, port: int) -> None:
    async def never(_: str, __: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    began = loop.clock()

    async def go() -> None:
        with pytest.raises(TimeoutError):
            await Dialler("engine.example", port, lookup=never).connect(Peers)

    loop.run(asyncio.wait_for(go(), 60))
    assert loop.clock() - began < 5.1


@pytest.mark.parametrize("place", ["virtual"])
def test_F08_a_name_that_moves_is_followed(loop: Any, port: int) -> None:
    book = Book("192.0.2.1")  # nobody is there
    dialler = Dialler("engine.example", port, lookup=book)
    assert not dial(loop, dialler)
    book.addresses = ["127.0.0.1"]
    assert not dial(loop, dialler)
    assert (dial(loop, dialler), book.asked) == (True, 2)  # after two failures in a row it is looked up at once
    book.addresses = ["192.0.2.1"]
    loop.run(asyncio.sleep(31))
    assert not dial(loop, dialler)  # and after half a minute in any case


def test_F09_sixteen_addresses_at_most_and_no_private_ones_for_a_bought_service(loop: Any, port: int) -> None:
    many = Dialler("engine.example", port, lookup=Book(*[f"127.0.{n // 250}.{n % 250}" for n in range(500)]))
    dial(loop, many)
    assert len(many._addresses) == 16
    private = ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "::1", "fd00::1", "100.64.0.1"]
    for address in private:
        inward = Dialler("api.example", port, public_only=True, lookup=Book(address))
        assert not dial(loop, inward)
        assert inward._addresses == []


@SOCKETS
def test_F07_a_name_in_the_configuration_is_looked_up_by_the_system(
    router: Routers, script_engine: Any, wire: Any
) -> None:
    engine = script_engine()
    up = router(endpoint=table(wire.MODEL, e1=f"http://no-such-host.invalid:{engine.port}", e2=engine.url), **QUIET)
    assert [up.ask().status for _ in range(4)] == [200] * 4
    assert up.eventually(lambda: up.app.gateway.fleet.endpoints["e1"].unreachable)
