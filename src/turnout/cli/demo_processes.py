"""The demo's children: started in sessions of their own, watched by their first words, ended by their ids.

Ctrl-C reaches the demo alone; the demo then ends the router before the engines, so that nothing is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

START_S = 15.0
STOP_S = 5.0
TAIL_BYTES = 2000

_LISTENING = re.compile(rb"listening on http://[^\s:]+:([0-9]+)")


class StartError(Exception):
    """A child ended or stayed silent instead of coming up; the message ends with its last words."""


class Child:
    """One subprocess `python -m turnout …` that writes to its own log file."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    @classmethod
    async def spawn(cls, name: str, arguments: list[str], folder: Path) -> Child:
        """Start one child; its output goes to `<folder>/<name>.log`."""
        log = folder / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "turnout",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        return cls(name, process, log)

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.returncode is not None

    async def listening_port(self) -> int:
        """The port an engine names once it listens. Raises StartError."""
        async with self.starting():
            while (port := self._named_port()) is None:
                await self.pause()
        return port

    async def pause(self) -> None:
        """A moment between two looks at a child that is starting. Raises StartError when it has ended."""
        if self.ended:
            raise StartError(f"{self.name} ended with status {self._process.returncode}\n{self.last_words()}")
        await asyncio.sleep(0.02)

    @contextlib.asynccontextmanager
    async def starting(self) -> AsyncIterator[None]:
        """Bounds a wait for this child: after `START_S` it is StartError."""
        try:
            async with asyncio.timeout(START_S):
                yield
        except TimeoutError:
            raise StartError(f"{self.name} was not up after {START_S:.0f} s\n{self.last_words()}") from None

    def last_words(self) -> str:
        """The end of its log."""
        return self._log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()

    async def over(self) -> Child:
        """Wait until it has ended, for whatever reason."""
        await self._process.wait()
        return self

    def terminate(self) -> None:
        """Ask it to end."""
        self._send(signal.SIGTERM)

    async def gone(self) -> None:
        """Wait until it has ended; after `STOP_S` it is killed."""
        try:
            async with asyncio.timeout(STOP_S):
                await self._process.wait()
        except TimeoutError:
            self._send(signal.SIGKILL)
            await self._process.wait()

    def _named_port(self) -> int | None:
        match = _LISTENING.search(self._log.read_bytes()[:TAIL_BYTES])
        return int(match.group(1)) if match is not None else None

    def _send(self, number: signal.Signals) -> None:
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


async def end(children: list[Child]) -> None:
    """End children in reverse order of their start, the engines (which came first) together."""
    if not children:
        return
    *engines, last = children
    last.terminate()
    await last.gone()
    for engine in engines:
        engine.terminate()
    for engine in engines:
        await engine.gone()


def free_port(wanted: int, *taken: int) -> int:
    """The wanted port if nobody listens there, else one the system gives. Raises OSError when there is none."""
    if wanted and wanted not in taken and _can_bind(wanted):
        return wanted
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
