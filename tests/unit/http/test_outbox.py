"""What one round writes goes out together, in order, and never to a transport that closes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from turnout.core.options import Server
from turnout.http import outbox
from turnout.http.listener import Listener
from turnout.http.outbox import Outbox, running_outbox
from turnout.http.server import Connection

if TYPE_CHECKING:
    from turnout.http.handler import Handler


class Wire:
    """Keeps what is written to it, and may act on it."""

    def __init__(self, log: list[tuple[str, bytes]], name: str) -> None:
        self.log, self.name, self.closing = log, name, False
        self.then: Callable[[], None] | None = None

    def write(self, data: bytes) -> None:
        self.log.append((self.name, data))
        if self.then is not None:
            self.then()

    def is_closing(self) -> bool:
        return self.closing


async def busy() -> Outbox:
    """Return an outbox whose last round had much to write."""
    box = Outbox()
    for _ in range(outbox.FEW + 1):
        box.write(Wire([], "before"), b"x")
    await asyncio.sleep(0)
    return box


def test_while_rounds_write_little_bytes_go_at_once() -> None:
    async def main() -> None:
        log: list[tuple[str, bytes]] = []
        box = Outbox()
        wire = Wire(log, "w")
        for _ in range(3):
            box.write(wire, b"x")
            assert log.pop() == ("w", b"x")
            await asyncio.sleep(0)

    asyncio.run(main())


def test_what_exceeds_the_first_few_of_a_round_waits_for_its_end_behind_them() -> None:
    async def main() -> None:
        log: list[tuple[str, bytes]] = []
        box = Outbox()
        for number in range(outbox.FEW + 2):
            box.write(Wire(log, str(number)), b"x")
        assert [name for name, _ in log] == [str(number) for number in range(outbox.FEW)]
        await asyncio.sleep(0)
        assert [name for name, _ in log] == [str(number) for number in range(outbox.FEW + 2)]

    asyncio.run(main())


def test_a_quiet_round_ends_the_waiting() -> None:
    async def main() -> None:
        log: list[tuple[str, bytes]] = []
        box = await busy()
        box.write(Wire(log, "w"), b"1")
        assert log == []
        await asyncio.sleep(0)
        box.write(Wire(log, "w"), b"2")
        assert log == [("w", b"1"), ("w", b"2")]

    asyncio.run(main())


def test_in_a_busy_loop_nothing_is_sent_before_the_round_ends_and_everything_in_order_then() -> None:
    async def main() -> None:
        log: list[tuple[str, bytes]] = []
        first, second = Wire(log, "first"), Wire(log, "second")
        box = await busy()
        box.write(first, b"1")
        box.write(second, b"2")
        box.write(first, b"3")
        assert log == []
        await asyncio.sleep(0)
        assert log == [("first", b"1"), ("second", b"2"), ("first", b"3")]

    asyncio.run(main())


def test_a_row_recorded_after_an_answer_is_passed_on_after_its_bytes() -> None:
    async def main() -> None:
        log: list[tuple[str, bytes]] = []
        box = await busy()
        wire = Wire(log, "client")
        loop = asyncio.get_running_loop()
        box.write(wire, b"answer")
        loop.call_soon(lambda: log.append(("ledger", b"row")))
        await asyncio.sleep(0)
        assert log == [("client", b"answer"), ("ledger", b"row")]

    asyncio.run(main())


class ClosingWire(Wire):
    """A client's transport: what comes after its close is lost."""

    def get_extra_info(self, name: str) -> None:  # noqa: ARG002 - as asyncio has it
        return None

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def close(self) -> None:
        self.closing = True


def test_a_connection_that_is_closed_as_idle_sends_the_answer_of_this_round_first() -> None:
    async def main() -> None:
        log: list[tuple[str, bytes]] = []
        listener = Listener(Server(), cast("Handler", None), time.monotonic)
        listener.outbox = await busy()
        connection, wire = Connection(listener), ClosingWire(log, "client")
        connection.connection_made(cast("asyncio.Transport", wire))
        connection.write(b"answer")
        assert log == []
        connection.close_if_idle()
        assert (log, wire.closing) == ([("client", b"answer")], True)

    asyncio.run(main())


def test_many_writes_do_not_wait_for_the_end_of_the_round() -> None:
    async def main() -> None:
        log: list[tuple[str, bytes]] = []
        box = await busy()
        for _ in range(outbox.WRITES_MAX):
            box.write(Wire(log, "w"), b"x")
        assert len(log) == outbox.WRITES_MAX

    asyncio.run(main())


def test_many_bytes_do_not_wait_for_the_end_of_the_round() -> None:
    async def main() -> None:
        log: list[tuple[str, bytes]] = []
        box = await busy()
        box.write(Wire(log, "w"), b"x" * (outbox.BYTES_MAX + 1))
        assert len(log) == 1
        box.write(Wire(log, "w"), b"y")
        assert len(log) == 1
        await asyncio.sleep(0)
        assert len(log) == 2

    asyncio.run(main())


def test_a_transport_that_closes_gets_nothing_more() -> None:
    async def main() -> None:
        log: list[tuple[str, bytes]] = []
        gone, here = Wire(log, "gone"), Wire(log, "here")
        box = await busy()
        box.write(gone, b"1")
        box.write(here, b"2")
        gone.closing = True
        box.flush()
        assert log == [("here", b"2")]

    asyncio.run(main())


def test_a_write_that_makes_somebody_write_is_followed_in_the_next_round() -> None:
    async def main() -> None:
        log: list[tuple[str, bytes]] = []
        box = await busy()
        wire = Wire(log, "w")
        answers = iter((b"2",))

        def then() -> None:
            for data in answers:
                box.write(wire, data)

        wire.then = then
        box.write(wire, b"1")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert log == [("w", b"1"), ("w", b"2")]

    asyncio.run(main())


def test_all_of_one_loop_share_one_outbox_and_two_loops_do_not() -> None:
    async def mine() -> Outbox:
        assert running_outbox() is running_outbox()
        return running_outbox()

    assert asyncio.run(mine()) is not asyncio.run(mine())
