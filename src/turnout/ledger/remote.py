"""The database of a ledger in a process of its own: started here, asked here, and started again when it is gone.

A thread that asks waits for the answer without the interpreter's lock, and what the process does takes the core only
while no request wants it (docs/adr/0011). There are two channels, for the writer and for everything that reads, so that
neither waits for the other.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

import turnout
from turnout.ledger import entry, messages, upgrade
from turnout.ledger.channel import FRAME_MAX, Channel, ChannelError, OversizeError
from turnout.ledger.drain import RETRY_FIRST_S, RETRY_MAX_S
from turnout.ledger.remote_statistics import RemoteStatistics
from turnout.ledger.sink import LedgerRefusedError, SinkDownError, Written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.core import options
    from turnout.ledger.backend import HotRoute, Statistics, Turn
    from turnout.ledger.sink import Sink
    from turnout.ledger.upgrade import OnEvent

T = TypeVar("T")

GONE: Final = "process_gone"
"""The kind of an error of the process, beside those of the database."""
# Whatever a signal to the whole group or a service manager says, the process ends with its channels, never before.
_DEAF_TO: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A process that has answered nothing for so long hangs; a migration may take longer, and only closing ends it.
_PATIENCE_S: Final = 600.0
# The start of serving waits so long for the schema of a server.
_CHECK_S: Final = 10.0
# Time to end in order for a process that nobody needs any more.
_ENDS_S: Final = 1.0
_KILLED_S: Final = 5.0
_CODE: Final = "import sys; from turnout.ledger.process import main; main(int(sys.argv[1]), int(sys.argv[2]))"
PROGRAM: Final = (sys.executable, "-P", "-c", _CODE)
"""Two descriptors follow, of the writing and of the reading channel."""


class Child:
    """One process with its two channels. Whoever uses a channel holds its lock."""

    def __init__(self, program: Sequence[str], settings: messages.Settings, *, niceness: int) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        self.opened = False
        self.answered = False
        ours, theirs = zip(socket.socketpair(), socket.socketpair(), strict=True)
        try:
            self.process = _start(program, theirs, niceness)
        except OSError:
            for end in ours:
                end.close()
            raise
        finally:
            for end in theirs:
                end.close()
        self.writing, self.reading = (Channel(end, messages.Answer, patience_s=_PATIENCE_S) for end in ours)
        self.locks = {self.writing: threading.Lock(), self.reading: threading.Lock()}
        for channel in self.locks:
            with contextlib.suppress(ChannelError):  # the first question will tell
                channel.send(settings)

    def end(self) -> int | None:
        """End the channels and with them the process, and return its exit code; kill what hangs."""
        for channel in self.locks:
            channel.shut()
        try:
            self.process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel holds it: nobody can wait for that
            self.process.wait(_KILLED_S)
        for channel, lock in self.locks.items():
            with lock:  # whoever waited for an answer has heard of the end
                channel.close()
        return self.process.returncode


class OwnProcess:
    """A `backend.Backend`. Safe in several threads."""

    def __init__(
        self,
        options: options.Ledger,
        *,
        router_id: str,
        on_event: OnEvent,
        prices: str,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        """Describe it; the process is started by the first question."""
        self._program = program
        self.statistics: Statistics = RemoteStatistics(self._read)
        self._url = options.url
        self._settings = messages.Settings(options, router_id, prices)
        self._on_event = on_event
        self._niceness = messages.NICENESS
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._closed = False
        self._starts = 0
        self._ended: dict[str, object] = {}
        self._not_before_s = 0.0
        self._pause_s = RETRY_FIRST_S

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        child = self._child
        return child.process.pid if child is not None else None

    def check(self) -> None:
        """Look at the file here; ask a server over there, where the library is needed anyway."""
        if upgrade.is_file(self._url):
            upgrade.check(upgrade.path_of(self._url))
            return
        self.hurry()
        with contextlib.suppress(SinkDownError, FailedError):  # waited for later, like a server that is down
            child = self._running()
            self._ask(child, child.writing, messages.Check(), patience_s=_CHECK_S)

    def hurry(self) -> None:
        """Let it import at the router's own priority; it stands back with its first answers."""
        self._niceness = 0

    def open(self) -> Sink:
        """Open the store over there."""
        self._opened()
        return RemoteSink(self)

    def hot_routes(self, now_ms: int) -> list[HotRoute]:
        """Ask for the hot routes."""
        return self._read_or(messages.HotRoutes(now_ms), messages.HOT)

    def recent_turns(self, since_ms: int, most: int) -> list[Turn]:
        """Ask for the newest turns."""
        return self._read_or(messages.Turns(since_ms, most), messages.TURNS)

    def stats(self) -> dict[str, int | float]:
        """Count the starts after the first."""
        return {"process_restarts": max(0, self._starts - 1)}

    def close(self) -> None:
        """End the process, in order if it can, and wait for that."""
        with self._lock:
            self._closed = True
            child, self._child = self._child, None
        if child is not None:
            child.end()

    def write(self, question: msgspec.Struct, kind: Any) -> Any:
        """Ask the writing side, which is opened first where it is new.

        Raises:
            SinkDownError: nothing was stored, or whether it was is not known.
        """
        try:
            child = self._opened()
            return self._ask(child, child.writing, question, kind)
        except FailedError as error:
            raise SinkDownError("other", str(error)) from error
        except LedgerRefusedError as error:
            raise SinkDownError("other", str(error)) from error

    def finish(self) -> None:
        """Let it checkpoint and end; it is not started again."""
        with self._lock:
            self._closed = True
            child = self._child
        if child is not None:
            with contextlib.suppress(SinkDownError, FailedError, LedgerRefusedError):
                self._ask(child, child.writing, messages.Close())

    def _opened(self) -> Child:
        child = self._running()
        if not child.opened:
            # A migration takes as long as it takes.
            self._ask(child, child.writing, messages.Open(), patience_s=0.0)
            child.opened = True
        return child

    def _read(self, question: msgspec.Struct, kind: Any) -> Any:
        child = self._running()
        return self._ask(child, child.reading, question, kind)

    def _read_or(self, question: msgspec.Struct, parts: messages.Parts[T]) -> list[T]:
        try:
            return parts.joined(self._read(question, list[bytes]))
        except (SinkDownError, FailedError, LedgerRefusedError):
            return []

    def _running(self) -> Child:
        """Give the process, and start it if there is none."""
        with self._lock:
            if self._closed:
                raise SinkDownError(GONE, "the ledger is closed")
            if self._child is None:
                left_s = self._not_before_s - time.monotonic()
                if left_s > 0:
                    raise SinkDownError(GONE, f"starts again in {left_s:.1f} s")
                try:
                    self._child = Child(self._program, self._settings, niceness=self._niceness)
                except OSError as error:
                    raise SinkDownError(GONE, f"not started: {error}") from error
                self._starts += 1
                self._niceness = messages.NICENESS
                ended, self._ended = self._ended, {}
                if ended:
                    self._on_event("ledger_process_restarted", pid=self._child.process.pid, **ended)
            return self._child

    def _ask(
        self,
        child: Child,
        channel: Channel,
        question: msgspec.Struct,
        kind: Any = None,
        patience_s: float = _PATIENCE_S,
    ) -> Any:
        """Ask, forward events, and give the answer as `kind`."""
        try:
            with child.locks[channel]:
                channel.be_patient(patience_s)
                channel.send(question)
                while isinstance(answer := channel.receive(), messages.Told):
                    self._on_event(answer.name, **answer.fields)
        except OversizeError as error:
            raise FailedError(str(error)) from error
        except ChannelError as error:
            self._bury(child, error)
            raise SinkDownError(GONE, str(error)) from error
        child.answered = True
        return _value(answer, kind)

    def _bury(self, child: Child, error: ChannelError) -> None:
        """See a process off that says nothing any more; the first thread that comes does it."""
        with self._lock:
            mine = self._child is child and not self._closed
            if mine:
                self._child = None
                # One that dies at once is not started again at once.
                self._pause_s = RETRY_FIRST_S if child.answered else min(RETRY_MAX_S, self._pause_s * 2)
                self._not_before_s = time.monotonic() + self._pause_s
        if mine:
            self._ended = {"exit_code": child.end(), "error": str(error)}


class FailedError(Exception):
    """What was asked could not be done, for a reason that is not the process's own."""


class RemoteSink:
    """A `sink.Sink`; belongs to the writer's thread."""

    def __init__(self, process: OwnProcess) -> None:
        self._process = process

    def write(self, frames: Sequence[bytes]) -> Written:
        """Store all facts in one transaction; what is too long for a message is stored in two."""
        if sum(map(len, frames)) > FRAME_MAX // 2:
            if len(frames) == 1:
                frames = entry.singly(frames[0])
            middle = len(frames) // 2
            if not middle:
                return Written(invalid=1)
            return self.write(frames[:middle]).plus(self.write(frames[middle:]))
        counts: dict[str, Any] = self._process.write(messages.Write([*frames]), dict[str, Any])
        return Written(**counts | {"unpriced": Counter(counts["unpriced"])})

    def prune(self) -> bool:
        """Sum up one hour or delete one chunk."""
        return bool(self._process.write(messages.Prune(), bool))

    def close(self) -> None:
        """Checkpoint, and end the process."""
        self._process.finish()


def _value(answer: messages.Answer, kind: Any) -> Any:
    if isinstance(answer, messages.Down):
        raise SinkDownError(answer.kind, answer.detail)
    if isinstance(answer, messages.Refused):
        raise LedgerRefusedError(answer.text)
    if isinstance(answer, messages.Failed):
        raise FailedError(answer.text)
    assert isinstance(answer, messages.Done), "events were forwarded"
    return msgspec.msgpack.decode(answer.result, type=kind)


def _start(program: Sequence[str], ends: Sequence[socket.socket], niceness: int) -> subprocess.Popen[bytes]:
    """Start the process, deaf to the signals that end a router, with these sockets and no other descriptor."""
    paths = [str(Path(turnout.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "TURNOUT_PURE": "1",  # nothing of the hot path runs there
        "MALLOC_ARENA_MAX": "1",
    }
    descriptors = [end.fileno() for end in ends]
    # What a thread blocks is blocked in the process it starts, from its first instruction on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _DEAF_TO)
    try:
        process = subprocess.Popen(  # noqa: S603 - this interpreter and code of our own
            [*program, *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=descriptors,
            env=environment,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, niceness)
    return process
