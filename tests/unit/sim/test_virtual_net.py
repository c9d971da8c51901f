"""The loop in memory: time passes only while everybody waits, bytes keep their order, ends and resets are told apart."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from turnout.sim.virtual_net import VirtualLoop


class Peer(asyncio.Protocol):
    """Records what happens to it."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.seen.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.seen.append(type(exc).__name__)


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.close()


def pair(loop: VirtualLoop) -> tuple[Peer, Peer]:
    near, far = Peer(), Peer()

    async def connect() -> None:
        server = await loop.create_server(lambda: far, "127.0.0.1")
        await loop.create_connection(lambda: near, "127.0.0.1", server.sockets[0].getsockname()[1])
        server.close()

    loop.run_until_complete(connect())
    return near, far


def test_an_hour_passes_in_a_moment(loop: VirtualLoop) -> None:
    begun, before = time.monotonic(), loop.time()
    loop.run_until_complete(asyncio.sleep(3600))
    assert loop.time() - before == pytest.approx(3600)
    assert time.monotonic() - begun < 60.0


def test_bytes_keep_their_order_and_arrive_before_the_end(loop: VirtualLoop) -> None:
    near, far = pair(loop)
    assert isinstance(near.transport, asyncio.Transport)
    for number in range(50):
        near.transport.write(b"%d" % number)
    near.transport.close()
    loop.run_until_complete(asyncio.sleep(1))
    assert far.seen == [b"%d" % number for number in range(50)] + ["NoneType"]
    assert near.seen == ["NoneType"]


def test_bytes_wait_for_who_does_not_read(loop: VirtualLoop) -> None:
    near, far = pair(loop)
    assert isinstance(near.transport, asyncio.Transport)
    assert isinstance(far.transport, asyncio.Transport)
    far.transport.pause_reading()
    near.transport.write(b"a")
    loop.run_until_complete(asyncio.sleep(1))
    assert far.seen == []
    assert near.transport.get_write_buffer_size() == 1
    far.transport.resume_reading()
    near.transport.write(b"b")
    loop.run_until_complete(asyncio.sleep(1))
    assert far.seen == [b"a", b"b"]
    assert near.transport.get_write_buffer_size() == 0


def test_a_reset_is_not_an_end(loop: VirtualLoop) -> None:
    near, far = pair(loop)
    assert isinstance(near.transport, asyncio.Transport)
    near.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    near.transport.abort()
    loop.run_until_complete(asyncio.sleep(1))
    assert far.seen == ["ConnectionResetError"]


def test_nobody_listens_where_nobody_listens(loop: VirtualLoop) -> None:
    for host, port in (("127.0.0.1", 9), ("10.255.255.1", 20_001)):
        with pytest.raises(ConnectionRefusedError):
            loop.run_until_complete(loop.create_connection(Peer, host, port))
