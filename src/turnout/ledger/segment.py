"""One append-only file of frames, owned by whoever holds its lock, read from the front by its owner."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

HEADER: Final = struct.Struct("<II")
# No frame comes near this: a larger length is damage, and must not become an allocation.
_FRAME_MAX_BYTES: Final = 268_435_456


def frames_size(payloads: Sequence[bytes]) -> int:
    """Give the bytes that payloads take in a file."""
    return sum(map(len, payloads)) + HEADER.size * len(payloads)


class TornError(Exception):
    """The rest of the file is not a sequence of whole frames."""


class Segment:
    """A locked spool file with a reading position."""

    def __init__(self, path: Path, fd: int, *, own: bool) -> None:
        """Wrap an open, locked file; use `create` or `adopt`."""
        self.path = path
        self.own = own
        self.size = os.fstat(fd).st_size
        self._fd = fd
        self._offset = 0
        self._next = 0

    @classmethod
    def create(cls, path: Path) -> Segment:
        """Make a new file.

        Raises:
            OSError: it cannot be made.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return cls(path, fd, own=True)

    @classmethod
    def adopt(cls, path: Path) -> Segment | None:
        """Take over a file whose owner is gone; None when it has one, or vanished, or cannot be opened."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # An owner that finished between open and lock has removed the name: nothing is left to read.
            if os.fstat(fd).st_nlink:
                return cls(path, fd, own=False)
        except OSError:
            pass
        os.close(fd)
        return None

    @property
    def exhausted(self) -> bool:
        """Every frame has been read."""
        return self._offset >= self.size

    def append(self, payloads: Sequence[bytes]) -> None:
        """Write frames at the end, all or none, in one system call.

        Raises:
            OSError: the disk does not take it.
        """
        wanted = frames_size(payloads)
        parts = chain.from_iterable((HEADER.pack(len(payload), zlib.crc32(payload)), payload) for payload in payloads)
        written = os.pwritev(self._fd, list(parts), self.size)
        if written != wanted:
            # A full disk takes part of a frame: what stands after `size` is overwritten by the next frame or cut here.
            os.ftruncate(self._fd, self.size)
            raise OSError(errno.ENOSPC, f"{written} of {wanted} bytes written", str(self.path))
        self.size += wanted

    def rewind(self) -> None:
        """Let `peek` begin again behind the frames that were advanced over."""
        self._next = self._offset

    def peek(self) -> bytes | None:
        """Give the payload of the next frame; None at the end.

        Raises:
            TornError: the bytes there are not a whole frame.
        """
        start = self._next
        if start >= self.size:
            return None
        try:
            header = os.pread(self._fd, HEADER.size, start)
            if len(header) < HEADER.size:
                raise TornError
            length, crc = HEADER.unpack(header)
            if length > min(_FRAME_MAX_BYTES, self.size - start - HEADER.size):
                raise TornError
            payload = os.pread(self._fd, length, start + HEADER.size)
        except OSError as error:
            raise TornError from error
        if len(payload) != length or zlib.crc32(payload) != crc:
            raise TornError
        self._next = start + HEADER.size + length
        return payload

    def advance(self) -> None:
        """Leave behind every frame that `peek` gave."""
        self._offset = self._next

    def cut(self) -> None:
        """Leave out everything behind the frames that `peek` gave."""
        self.size = self._next

    def sync(self) -> None:
        """Bring the file to the disk as far as the disk allows."""
        # On failure the frames are still in the page cache; losing power as well is more than the spool covers.
        with contextlib.suppress(OSError):
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Let go of file and lock."""
        os.close(self._fd)
