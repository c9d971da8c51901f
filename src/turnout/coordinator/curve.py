"""CURVE for the door: its own key pair, and the list of peers that may connect (a ZAP 1.0 handler without a thread)."""

from __future__ import annotations

import errno
from pathlib import Path

import zmq
from zmq.auth import load_certificate
from zmq.utils import z85

from turnout.coordinator.sockets import Reader

_ADDRESS = "inproc://zeromq.zap.01"
_FRAMES = 7  # version, request id, domain, address, identity, mechanism, public key


def arm(socket: zmq.Socket[bytes], secret_file: str) -> None:
    """Make a socket a CURVE server. Raises OSError when the file holds no key pair."""
    name = f"coordinator.curve_secret_file = {secret_file}"
    try:
        public, secret = load_certificate(Path(secret_file))
    except (OSError, ValueError) as error:
        raise OSError(errno.EINVAL, f"{name}: cannot be read, {error}") from error
    if secret is None:
        raise OSError(errno.EINVAL, f"{name}: has no secret key, expected a *.key_secret of zmq.auth")
    socket.curve_server = True
    socket.curve_publickey = public
    socket.curve_secretkey = secret


class Gatekeeper:
    """Answers libzmq's question for each connection: a public key on the list may enter."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allowed: list[str]) -> None:
        self._allowed = frozenset(key.encode() for key in allowed)
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(_ADDRESS)
        self._reader = Reader(self._socket, self._asked)
        self.refused = 0

    def start(self) -> None:
        """Begin to answer; before the door is bound."""
        self._reader.start()

    def stop(self) -> None:
        """Answer no more."""
        self._reader.stop()
        self._socket.close()

    def _asked(self, frames: list[bytes]) -> None:
        is_allowed = len(frames) >= _FRAMES and frames[5] == b"CURVE" and z85.encode(frames[6]) in self._allowed
        self.refused += not is_allowed
        status, text = (b"200", b"OK") if is_allowed else (b"400", b"key is not on the list")
        number = frames[1] if len(frames) > 1 else b""
        self._socket.send_multipart([b"1.0", number, status, text, b"", b""])
