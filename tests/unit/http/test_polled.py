"""A polled transport keeps asyncio's promises to its protocol, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from turnout.http.polled import PolledTransport, Poller
from turnout.http.sockets import Acceptor, connect, listen, running_poller

BIG = bytes(range(256)) * 40_000
_RESET = struct.pack("ii", 1, 0)


class Heard:
    """A protocol that keeps what it hears."""

    def __init__(self, log: list[str] | None = None, name: str = "") -> None:
        self.log, self.name = [] if log is None else log, name
        self.data = b""
        self.transport: Any = None
        self.lost: list[Exception | None] = []
        self.stays_open = False
        self.then: Callable[[], object] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.log.append(f"{self.name}data")
        self.data += data
        if self.then is not None:
            self.then()

    def eof_received(self) -> bool:
        self.log.append(f"{self.name}eof")
        return self.stays_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    def pause_writing(self) -> None:
        self.log.append(f"{self.name}pause")

    def resume_writing(self) -> None:
        self.log.append(f"{self.name}resume")


@contextlib.contextmanager
def pair(heard: Heard) -> Iterator[socket.socket]:
    """Give the far end of a connection whose near end a protocol hears."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    poller = running_poller()
    assert poller is not None
    PolledTransport(poller, near, heard)
    try:
        yield far
    finally:
        heard.transport.abort()
        far.close()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - what is waited for are the rounds themselves
            await asyncio.sleep(0)


async def taken(far: socket.socket, most: int | None = None) -> bytes:
    """Read to the end, or so many bytes."""
    loop = asyncio.get_running_loop()
    pieces: list[bytes] = []
    while most is None or sum(map(len, pieces)) < most:
        piece = await loop.sock_recv(far, 1 << 20)
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def timed() -> None:
        async with asyncio.timeout(60):
            await main()

    asyncio.run(timed())


def test_bytes_travel_both_ways() -> None:
    async def main() -> None:
        heard = Heard()
        with pair(heard) as far:
            heard.transport.write(b"out")
            assert far.recv(9) == b"out"
            far.send(b"in")
            await until(lambda: heard.data == b"in")

    run(main)


def test_what_the_kernel_does_not_take_is_buffered_in_order_and_told() -> None:
    async def main() -> None:
        heard = Heard()
        with pair(heard) as far:
            transport = heard.transport
            transport.set_write_buffer_limits(high=1_000_000)
            transport.write(BIG)
            transport.write(b"end")
            assert transport.get_write_buffer_size() > 1_000_000
            assert heard.log == ["pause"]
            assert await taken(far, len(BIG) + 3) == BIG + b"end"
            await until(lambda: heard.log == ["pause", "resume"])
            assert transport.get_write_buffer_size() == 0

    run(main)


def test_closing_sends_what_is_buffered_first() -> None:
    async def main() -> None:
        heard = Heard()
        with pair(heard) as far:
            heard.transport.write(BIG)
            heard.transport.close()
            assert heard.transport.is_closing()
            assert await taken(far) == BIG
            await until(lambda: heard.lost)
            assert heard.lost == [None]

    run(main)


def test_aborting_drops_what_is_buffered_and_tells_later_and_once() -> None:
    async def main() -> None:
        heard = Heard()
        with pair(heard) as far:
            heard.transport.write(BIG)
            heard.transport.abort()
            heard.transport.abort()
            heard.transport.close()
            assert heard.lost == []
            await until(lambda: heard.lost)
            await asyncio.sleep(0)
            assert heard.lost == [None]
            assert len(await taken(far)) < len(BIG)
            heard.transport.write(b"nobody")  # nothing happens

    run(main)


def test_the_end_of_the_stream_closes_unless_the_protocol_stays() -> None:
    async def main() -> None:
        gone, stays = Heard(), Heard()
        stays.stays_open = True
        with pair(gone) as first, pair(stays) as second:
            for far in (first, second):
                far.send(b"x")
                far.shutdown(socket.SHUT_WR)
            await until(lambda: gone.lost and "eof" in stays.log)
            assert (gone.log, gone.lost) == (["data", "eof"], [None])
            stays.transport.write(b"still here")
            assert await asyncio.get_running_loop().sock_recv(second, 99) == b"still here"
            assert stays.lost == []

    run(main)


def test_a_reset_is_told_with_its_error() -> None:
    async def main() -> None:
        heard = Heard()
        poller = running_poller()
        assert poller is not None
        with socket.create_server(("127.0.0.1", 0)) as server:
            await connect(poller, lambda: heard, "127.0.0.1", server.getsockname()[1])
            far, _ = server.accept()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            far.close()
        await until(lambda: heard.lost)
        assert isinstance(heard.lost[0], ConnectionResetError)
        assert heard.transport.get_extra_info("peername")[0] == "127.0.0.1"

    run(main)


def test_a_write_to_a_peer_that_is_gone_is_told_as_a_loss() -> None:
    async def main() -> None:
        heard = Heard()
        with pair(heard) as far:
            heard.transport.pause_reading()
            far.close()
            heard.transport.write(b"x")
            await until(lambda: heard.lost)
            assert isinstance(heard.lost[0], BrokenPipeError)

    run(main)


def test_who_does_not_read_leaves_bytes_in_the_kernel_and_costs_no_rounds() -> None:
    async def main() -> None:
        heard = Heard()
        with pair(heard) as far:
            heard.transport.pause_reading()
            far.send(b"x")
            far.shutdown(socket.SHUT_RDWR)  # a hang-up, which epoll tells about every socket in its set
            for _ in range(10):
                await asyncio.sleep(0)
            assert heard.log == []
            heard.transport.resume_reading()
            await until(lambda: heard.lost)
            assert (heard.data, heard.lost) == (b"x", [None])

    run(main)


def test_half_is_closed_after_what_is_buffered() -> None:
    async def main() -> None:
        heard = Heard()
        with pair(heard) as far:
            heard.transport.write(BIG)
            heard.transport.write_eof()
            heard.transport.write(b"too late")
            assert await taken(far) == BIG
            far.send(b"answer")
            await until(lambda: heard.data == b"answer")
            assert heard.lost == []

    run(main)


def test_what_one_protocol_raises_costs_no_other_its_turn() -> None:
    async def main() -> None:
        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        bad, good = Heard(), Heard()
        bad.then = lambda: 1 // 0
        with pair(bad) as first, pair(good) as second:
            first.send(b"x")
            second.send(b"y")
            await until(lambda: good.data and bad.lost)
            assert isinstance(told[0], ZeroDivisionError)
            assert good.lost == []

    run(main)


def test_who_was_closed_in_a_round_hears_nothing_more_in_it() -> None:
    async def main() -> None:
        first, second = Heard(), Heard()
        with pair(first) as one, pair(second) as other:
            first.then, second.then = second.transport.abort, first.transport.abort
            one.send(b"x")
            other.send(b"x")
            await until(lambda: first.lost or second.lost)
            assert len(first.data + second.data) == 1

    run(main)


async def _listening(
    factory: Callable[[], Heard], enough: Callable[[], bool] = lambda: True
) -> tuple[Poller, Acceptor]:
    poller = running_poller()
    assert poller is not None
    [acceptor] = await listen(poller, factory, "127.0.0.1", 0, 64, enough)
    return poller, acceptor


def test_connections_are_accepted_and_made() -> None:
    async def main() -> None:
        near: list[Heard] = []

        def made() -> Heard:
            near.append(Heard())
            return near[-1]

        poller, acceptor = await _listening(made)
        far = [await connect(poller, Heard, host, acceptor.port) for host in ("127.0.0.1", "localhost")]
        for number, one in enumerate(far):
            one.transport.write(b"%d" % number)
        await until(lambda: sorted(one.data for one in near) == [b"0", b"1"])
        acceptor.close()
        with pytest.raises(ConnectionRefusedError):
            await connect(poller, Heard, "127.0.0.1", acceptor_port)
        for one in far + near:
            one.transport.abort()
        await until(lambda: all(one.lost for one in far + near))

    acceptor_port = 1  # nobody's
    run(main)


def test_a_pause_leaves_connections_in_the_backlog_until_there_is_enough() -> None:
    async def main() -> None:
        near: list[Heard] = []
        enough: list[bool] = []

        def made() -> Heard:
            near.append(Heard())
            acceptor.pause()
            return near[-1]

        def second_time() -> bool:
            enough.append(len(enough) == 1)
            return enough[-1]

        poller, acceptor = await _listening(made, second_time)
        far = [await connect(poller, Heard, "127.0.0.1", acceptor.port) for _ in range(2)]
        await until(lambda: enough)
        assert len(near) == 1
        await until(lambda: len(near) == 2)
        assert len(enough) == 2
        acceptor.close()
        for one in far + near:
            one.transport.abort()
        await until(lambda: all(one.lost for one in far + near))

    run(main)


def test_a_host_without_an_address_of_this_machine_is_an_error() -> None:
    async def main() -> None:
        poller = running_poller()
        assert poller is not None
        with pytest.raises(OSError, match="assign requested address"):
            await listen(poller, Heard, "192.0.2.1", 0, 64, lambda: True)  # TEST-NET-1: nobody's

    run(main)


def test_an_address_that_is_taken_is_an_error_and_leaves_nothing_behind() -> None:
    async def main() -> None:
        poller, acceptor = await _listening(Heard)
        with pytest.raises(OSError, match="in use"):
            await listen(poller, Heard, "127.0.0.1", acceptor.port, 64, lambda: True)
        acceptor.close()

    run(main)
