"""The process of the ledger: it holds the store and answers the router, on one channel for writing and one for reading.

It does nothing of its own accord and keeps nothing that the rows do not have, so it may be killed at any instant. When
its channels end, the router is gone: it finishes what it does and ends.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from turnout.ledger import messages, opening, upgrading
from turnout.ledger.channel import Channel, ChannelError, OversizeError
from turnout.ledger.derivation import Derivation
from turnout.ledger.messages import (
    Answer,
    Derive,
    Done,
    Down,
    Failed,
    HotRoutes,
    Rank,
    Refused,
    Routes,
    Settings,
    Spent,
    Told,
    Write,
)
from turnout.ledger.sink import LedgerRefusedError, SinkDownError

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.ledger.sink import Sink

_encode: Final = msgspec.msgpack.Encoder().encode


def main(writing: int, reading: int) -> None:
    """Answer on two inherited sockets until they end."""
    writes = Channel(socket.socket(fileno=writing), messages.Writing)
    reads = Channel(socket.socket(fileno=reading), messages.Reading)
    with contextlib.suppress(ChannelError):
        settings = writes.receive()
        assert isinstance(settings, Settings), "whoever starts this says first whose ledger it is"
        writer, reader = Writer(settings, writes), Reader(settings)
        # What lives now lives for ever, and the collector would only touch its pages.
        gc.collect()
        gc.freeze()
        threading.Thread(target=_read, args=(reads, reader), name="ledger-reader", daemon=True).start()
        try:
            _answer(writes, writer.answer, until=messages.Close)
        finally:
            writer.close()
    # A query that still runs changes nothing, and nobody waits for it.
    os._exit(0)


class Writer:
    """Owns the store."""

    def __init__(self, settings: Settings, channel: Channel) -> None:
        """Load the library of the database that the settings name."""
        self._settings = settings
        self._channel = channel
        self._sink: Sink | None = None
        opening.load(settings.ledger.url)

    def answer(self, question: Any) -> Done:
        """Do what is asked; everything may raise."""
        if isinstance(question, Write):
            return Done(_result(self._opened().write(question.facts)))
        if isinstance(question, messages.Prune):
            return Done(_result(self._opened().prune()))
        if isinstance(question, messages.Open):
            self._open()
        elif isinstance(question, messages.Check):
            opening.check(self._settings.ledger.url)
        else:
            self.close()
        return Done()

    def close(self) -> None:
        """Leave the database as it should be found."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()

    def _open(self) -> None:
        def told(name: str, /, **fields: object) -> None:
            self._channel.send(Told(name, fields))

        settings = self._settings
        self._sink = opening.open_store(
            settings.ledger,
            router_id=settings.router_id,
            clock_ms=_now_ms,
            on_event=told,
            prices=settings.prices,
            prepare=upgrading.prepare,
        )

    def _opened(self) -> Sink:
        if self._sink is None:
            raise SinkDownError("other", "not open")
        return self._sink


class Reader:
    """Owns the sums of the windows."""

    def __init__(self, settings: Settings) -> None:
        """Load what the queries need."""
        self._url = settings.ledger.url
        self._derivation = Derivation(settings.ledger)
        self._derivation.prepare()

    def answer(self, question: Any) -> Done:
        """Ask the database; everything may raise."""
        try:
            return Done(_result(self._found(question)))
        except Exception:
            self._derivation.drop()
            raise

    def _found(self, question: Any) -> Any:
        if isinstance(question, Derive):
            return self._derived(question)
        if isinstance(question, Spent):
            return messages.SPENT.cut(self._derivation.spent(question.now_ms, question.days))
        if isinstance(question, Routes):
            return messages.ROUTES.cut(self._derivation.routes())
        if isinstance(question, Rank):
            found = self._derivation.percentiles(question.route_ids, question.now_ms, question.most_s)
            return messages.RANKS.cut(found)
        if isinstance(question, HotRoutes):
            return messages.HOT.cut(opening.hot_routes(self._url, question.now_ms))
        return messages.TURNS.cut(opening.recent_turns(self._url, question.since_ms, question.most))

    def _derived(self, question: Derive) -> messages.DerivedParts:
        found = self._derivation.derive(question.now_ms, question.version)
        health = found.health
        return messages.DerivedParts(
            routes=messages.STATS.cut(found.routes.items()),
            models=messages.MODELS.cut(found.models.items()),
            health=None
            if health is None
            else messages.HealthParts(
                messages.KEYS.cut(health.tool_incapable),
                messages.STREAKS.cut(health.by_route.items()),
                messages.ENDPOINTS.cut(health.by_endpoint.items()),
            ),
            version=found.version,
            prices=None if found.prices is None else messages.PRICES.cut(found.prices),
        )


def _read(channel: Channel, reader: Reader) -> None:
    try:
        channel.receive()  # the settings once more: both channels begin alike
        _answer(channel, reader.answer)
    except ChannelError:
        pass
    finally:
        # Whatever ended this thread, the router shall not wait for its answers.
        channel.shut()


def _answer(channel: Channel, answer: Callable[[Any], Done], until: type | None = None) -> None:
    """Answer one question after the other.

    Raises:
        ChannelError: there are no more.
    """
    while True:
        question = channel.receive()
        answered = _answered(answer, question)
        try:
            channel.send(answered)
        except OversizeError as error:
            channel.send(Failed(str(error)))
        # Where the start waited for an answer, it has been given the core until now.
        _stand_back()
        if until is not None and isinstance(question, until):
            return


def _answered(answer: Callable[[Any], Done], question: Any) -> Answer:
    try:
        return answer(question)
    except ChannelError:
        raise
    except SinkDownError as error:
        return Down(error.kind, error.detail)
    except LedgerRefusedError as error:
        return Refused(str(error))
    except Exception as error:  # noqa: BLE001 - the router says what went wrong
        return Failed(f"{type(error).__name__}: {getattr(error, 'orig', None) or error}")


def _result(value: Any) -> msgspec.Raw:
    return msgspec.Raw(_encode(value))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _stand_back() -> None:
    """Leave the core to the router whenever it wants it: on Linux this thread, elsewhere the process."""
    with contextlib.suppress(OSError, AttributeError):
        # Niceness means nothing to a real-time class, which a router that has one hands down.
        if os.sched_getscheduler(0) in {os.SCHED_FIFO, os.SCHED_RR}:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, messages.NICENESS)
