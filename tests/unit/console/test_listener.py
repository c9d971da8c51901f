"""The admin listener on a real loopback socket: it answers, leaves signals alone, and stops in bounded time."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any

import pytest

from turnout.console.listener import AdminListener, is_loopback

Scope = dict[str, Any]


async def hello(scope: Scope, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": scope["path"][:2].encode()})


async def hanging(_: Scope, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.get_running_loop().create_future()


async def fetched(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /x HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer


def test_it_serves_in_the_running_loop_and_frees_the_port() -> None:
    async def scenario() -> None:
        listener = AdminListener(lambda: hello, "127.0.0.1", 0)
        port = await listener.start()
        assert (await fetched(port)).endswith(b"\r\n\r\n/x")
        await listener.stop()
        await listener.stop()
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await fetched(port)

    asyncio.run(scenario())


def test_signals_and_threads_are_as_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    async def scenario() -> None:
        inside = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        listener = AdminListener(lambda: hello, "127.0.0.1", 0)
        await fetched(await listener.start())
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == inside
        await listener.stop()
        assert not any(thread.name.startswith("turnout-admin") for thread in threading.enumerate())

    asyncio.run(scenario())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_it_stops_before_it_has_started_serving() -> None:
    async def scenario() -> None:
        listener = AdminListener(lambda: hello, "127.0.0.1", 0)
        await listener.start()
        await listener.stop()

    asyncio.run(scenario())


def test_a_factory_that_fails_is_reported_and_nothing_else_suffers() -> None:
    heard: list[str] = []

    def factory() -> Any:
        raise RuntimeError("no admin today")

    async def scenario() -> None:
        told = asyncio.Event()

        def report(where: str, error: BaseException) -> None:
            heard.append(f"{where}: {error}")
            told.set()

        listener = AdminListener(factory, "127.0.0.1", 0, report=report)
        await listener.start()
        await told.wait()
        await listener.stop()

    asyncio.run(scenario())
    assert heard == ["admin listener: no admin today"]


def test_a_taken_port_is_an_error_of_start() -> None:
    async def scenario() -> None:
        first = AdminListener(lambda: hello, "127.0.0.1", 0)
        port = await first.start()
        with pytest.raises(OSError, match="in use"):
            await AdminListener(lambda: hello, "127.0.0.1", port).start()
        await first.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_an_open_listener_stays_on_loopback(host: str) -> None:
    """U11: without a token the admin pages are never reachable from another machine."""
    with pytest.raises(ValueError, match="not loopback"):
        asyncio.run(AdminListener(lambda: hello, host, 0).start())


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"])
def test_loopback_has_several_names(host: str) -> None:
    assert is_loopback(host)


def test_an_endless_answer_does_not_keep_it_from_stopping() -> None:
    async def scenario() -> None:
        listener = AdminListener(lambda: hanging, "127.0.0.1", 0)
        port = await listener.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /x HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        await listener.stop()
        writer.close()

    asyncio.run(scenario())
