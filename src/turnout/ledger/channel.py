"""Messages between the router and the process of its ledger: four bytes of length, then msgpack, both ways in turns.

A message is whole or the channel is at its end: closed, cut, garbage, too long and too late are all one error, after
which neither side says anything more.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Any, Final

import msgspec

FRAME_MAX: Final = 67_108_864
"""Far above a batch and what the sessions of an hour take; a length beyond it is none."""
_HEAD: Final = struct.Struct("<I")
_READ_BYTES: Final = 65_536


class ChannelError(Exception):
    """Nothing more comes, and nothing more arrives."""


class OversizeError(ValueError):
    """The message is longer than a frame; nothing of it was sent."""


class Channel:
    """One end. One thread sends and receives; `shut` may be called by any other."""

    def __init__(self, end: socket.socket, receives: Any, *, patience_s: float = 0.0) -> None:
        """Use a connected socket. `receives` is the type of messages; `patience_s` (0: for ever) bounds each wait."""
        self._socket = end
        self._decode = msgspec.msgpack.Decoder(receives).decode
        self._encode = msgspec.msgpack.Encoder(enc_hook=str).encode
        self._buffer = bytearray()
        self._patience_s = 0.0
        self.be_patient(patience_s)

    def be_patient(self, patience_s: float) -> None:
        """Bound each wait from now on (0: for ever)."""
        if patience_s == self._patience_s:
            return
        self._patience_s = patience_s
        # The kernel waits, so that a thread gives up the interpreter's lock once per call and not twice.
        bound = struct.pack("ll", int(patience_s), int(patience_s % 1 * 1_000_000))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            with contextlib.suppress(OSError):  # shut already
                self._socket.setsockopt(socket.SOL_SOCKET, option, bound)

    def send(self, message: msgspec.Struct) -> None:
        """Send one message.

        Raises:
            OversizeError: it is too long; the channel stays usable.
            ChannelError: the other end is gone or takes nothing.
        """
        payload = self._encode(message)
        if len(payload) > FRAME_MAX:
            raise OversizeError(f"{type(message).__name__}: {len(payload)} bytes, expected at most {FRAME_MAX}")
        try:
            self._socket.sendall(_HEAD.pack(len(payload)) + payload)
        except OSError as error:
            raise ChannelError(f"not sent: {error}") from error

    def receive(self) -> Any:
        """Wait for one message.

        Raises:
            ChannelError: none comes any more.
        """
        (size,) = _HEAD.unpack(self._take(_HEAD.size))
        if size > FRAME_MAX:
            raise ChannelError(f"a message of {size} bytes, expected at most {FRAME_MAX}")
        try:
            return self._decode(self._take(size))
        except msgspec.DecodeError as error:
            raise ChannelError(f"no message: {error}") from error

    def shut(self) -> None:
        """End it for both sides; whoever waits hears of it at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the socket; nobody waits any more."""
        self._socket.close()

    def _take(self, size: int) -> bytes:
        buffer = self._buffer
        while len(buffer) < size:
            try:
                # A large rest comes in one piece, whatever the size of a usual answer.
                data = self._socket.recv(max(_READ_BYTES, min(size - len(buffer), 16 * _READ_BYTES)))
            except BlockingIOError:
                raise ChannelError("no answer in time") from None
            except OSError as error:
                raise ChannelError(f"not received: {error}") from error
            if not data:
                raise ChannelError(f"closed within a message of {size} bytes" if buffer else "closed")
            buffer += data
        taken = bytes(buffer[:size])
        del buffer[:size]
        return taken
