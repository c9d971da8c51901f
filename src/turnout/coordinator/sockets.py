"""A ZeroMQ socket on the running event loop, read through its file descriptor: no thread, no task per message.

The descriptor is edge-triggered and stands for both directions, so that it says nothing of what arrived while we were
sending: every send has to be followed by a look (`touch`), or a message could lie there until the next one comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq

_BUDGET = 256  # messages read in one turn of the loop, so that timers and other sockets get theirs


class Reader:
    """Hands every received message, as its frames, to `on_frames`. Lives from `start` to `stop`."""

    def __init__(self, socket: zmq.Socket[bytes], on_frames: Callable[[list[bytes]], None]) -> None:
        self._socket = socket
        self._on_frames = on_frames
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_due = False
        self._descriptor = -1

    def start(self) -> None:
        """Begin to read."""
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(self._socket.get(zmq.FD))
        self._loop.add_reader(self._descriptor, self._drain)
        self.touch()

    def stop(self) -> None:
        """Read no more; before the socket is closed."""
        if self._loop is not None:
            self._loop.remove_reader(self._descriptor)
            self._loop = None

    def touch(self) -> None:
        """Look for messages soon, because something was sent."""
        if not self._is_due and self._loop is not None:
            self._is_due = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._is_due = False
        receive = self._socket.recv_multipart
        for _ in range(_BUDGET):
            if self._loop is None:
                return
            try:
                frames = receive(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._on_frames(frames)
            except BaseException:
                self.touch()  # the loop reports it; what else has arrived must not lie there until the next edge
                raise
        self.touch()
