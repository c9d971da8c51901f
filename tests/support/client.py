"""A raw client: every byte it sends is a test's own, and it waits on its socket."""

from __future__ import annotations

import json
import socket
from typing import Any

PATIENCE_S = 30.0  # only what never comes waits so long


class Response:
    """One response as a raw client saw it. `whole`: its framing ended as announced."""

    def __init__(self, status: int, head: bytes, body: bytes, *, whole: bool) -> None:
        self.status, self.head, self.body, self.whole = status, head, body, whole
        self.headers = [
            (name.lower(), value.strip())
            for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:] if line)
        ]

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> Any:
        return self.json["error"]["code"]

    @property
    def param(self) -> Any:
        return self.json["error"]["param"]


class Client:
    """A raw client socket."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.socket.sendall(piece)

    def read(self, marker: bytes) -> bytes:
        """Read up to and including the marker."""
        while marker not in self.buffer:
            self._more()
        end = self.buffer.index(marker) + len(marker)
        taken, self.buffer = self.buffer[:end], self.buffer[end:]
        return taken

    def response(self, method: bytes = b"POST") -> Response:
        """Read one final response."""
        head = self.read(b"\r\n\r\n")[:-4]
        status = int(head.split(b" ", 2)[1])
        seen = Response(status, head, b"", whole=True)
        length = seen.header(b"content-length")
        if method == b"HEAD" or status in (100, 204, 304):
            return seen
        if seen.header(b"transfer-encoding") == b"chunked":
            seen.body, seen.whole = self._chunked()
        elif length is not None:
            while len(self.buffer) < int(length):
                self._more()
            seen.body, self.buffer = self.buffer[: int(length)], self.buffer[int(length) :]
        else:
            seen.body = self.rest()
        return seen

    def rest(self) -> bytes:
        """Read until the peer closes; a reset is an error."""
        pieces, self.buffer = [self.buffer], b""
        while data := self.socket.recv(65_536):
            pieces.append(data)
        return b"".join(pieces)

    def is_closed(self) -> bool:
        """Wait until the peer closes in order, without another byte."""
        return self.rest() == b""

    def close(self, *, reset: bool = False) -> None:
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def _chunked(self) -> tuple[bytes, bool]:
        body: list[bytes] = []
        try:
            while size := int(self.read(b"\r\n"), 16):
                while len(self.buffer) < size + 2:
                    self._more()
                body.append(self.buffer[:size])
                assert self.buffer[size : size + 2] == b"\r\n"
                self.buffer = self.buffer[size + 2 :]
            assert self.read(b"\r\n") == b"\r\n"
        except EOFError:
            return b"".join(body) + self.buffer, False
        return b"".join(body), True

    def _more(self) -> None:
        data = self.socket.recv(65_536)
        if not data:
            raise EOFError(f"closed after {self.buffer!r}")
        self.buffer += data
