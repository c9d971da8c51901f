"""Batches the database cannot take now, kept in order in files beside it and given back in the same order.

A frame is length and CRC32 (little endian, 4 bytes each), then the msgpack list of calls. A segment file belongs to the
process that holds its lock, so a segment whose owner died is taken over by the next process on the same database. When
no file can be written, frames wait in memory up to a bound.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from turnout.core.facts import CallFact
from turnout.ledger import entry
from turnout.ledger.segment import Segment, TornError, frames_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SEGMENT_BYTES: Final = 16_777_216
MEMORY_BYTES: Final = 67_108_864
# Beyond this share of the memory bound calls are kept without their attempts: the call is what is billed.
STRIP_SHARE: Final = 0.8
_FRAMES_PER_WRITE: Final = 256


class Spool:
    """An ordered, bounded queue of frames in files, then in memory. Safe to call from two threads."""

    def __init__(
        self,
        database: Path,
        *,
        name: str,
        max_bytes: int,
        frame_calls: int = 32,
        read_calls: int = 0,
        segment_bytes: int = SEGMENT_BYTES,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """Use files `<database>.spool-<name>-<n>`; `name` must sort after the names of earlier processes.

        Frames of `frame_calls` are decoded while the interpreter's lock is held, so they are small; `read` gives up to
        `read_calls` calls at once (0: one frame).
        """
        self._database = database
        self._name = name
        self._max_bytes = max_bytes
        self._frame_calls = frame_calls
        self._read_calls = max(frame_calls, read_calls)
        self._segment_bytes = segment_bytes
        self._memory_bytes = memory_bytes
        self._segments: deque[Segment] = deque()
        self._created = 0
        self._memory: deque[bytes] = deque()
        self._memory_used = 0
        self._memory_read = 0
        self._read: Segment | None = None
        self._lock = threading.Lock()
        self._decoder = msgspec.msgpack.Decoder(list[CallFact])
        self.torn = 0
        self.unreadable = 0
        self.calls_refused = 0
        self.calls_stripped = 0
        self.calls_unencodable = 0

    def adopt(self) -> int:
        """Take over the segments of processes that are gone; return how many."""
        with self._lock:
            mine = {segment.path for segment in self._segments}
            found: list[Segment] = []
            for path in sorted(self._database.parent.glob(f"{self._database.name}.spool-*")):
                segment = None if path in mine else Segment.adopt(path)
                if segment is not None:
                    found.append(segment)
            self._segments.extendleft(reversed(found))
            return len(found)

    @property
    def empty(self) -> bool:
        """Nothing waits."""
        return not self._segments and not self._memory

    @property
    def size_bytes(self) -> int:
        """Bytes in files and memory, read or not."""
        return sum(segment.size for segment in tuple(self._segments)) + self._memory_used

    @property
    def fill_ratio(self) -> float:
        """Bytes that wait as a share of the bound of the files."""
        return self.size_bytes / self._max_bytes

    @property
    def memory_used_bytes(self) -> int:
        """Bytes that only memory holds, because no file takes them."""
        return self._memory_used

    @property
    def memory_fill(self) -> float:
        """The same as a share of what memory may hold."""
        return self._memory_used / self._memory_bytes

    def append(self, facts: Sequence[CallFact]) -> None:
        """Keep calls at the end; those that cannot be encoded are counted."""
        encoded: list[bytes] = []
        for fact in facts:
            try:
                encoded.append(entry.encode(fact))
            except (ValueError, OverflowError, TypeError):  # text that is not UTF-8, an integer beyond 64 bits
                self.calls_unencodable += 1
        self.append_encoded(encoded)

    def append_encoded(self, calls: Sequence[bytes]) -> None:
        """Keep calls at the end, in frames of `frame_calls`; without room in file and memory they are counted."""
        step = self._frame_calls
        payloads = [entry.frame(calls[start : start + step]) for start in range(0, len(calls), step)]
        with self._lock:
            # Writes are bounded because one call takes at most 1,024 buffers, two for each frame.
            for start in range(0, len(payloads), _FRAMES_PER_WRITE):
                group = payloads[start : start + _FRAMES_PER_WRITE]
                if not (self._spill() and self._to_file(group)):
                    for payload in group:
                        self._to_memory(payload)

    def read(self) -> list[entry.Frame]:
        """Give the oldest calls without removing them: whole frames, up to `read_calls` calls or the end of a file.

        Empty when nothing waits. Damaged frames are cut and counted.
        """
        while True:
            with self._lock:
                payloads = self._oldest()
            # Looked at without the lock: the reader may be put aside at any moment, and others append meanwhile.
            frames: list[entry.Frame] = []
            for payload in payloads:
                try:
                    frames.append(entry.frame_of(payload))
                except msgspec.DecodeError:
                    self.unreadable += 1
            if frames or not payloads:
                return frames
            self.advance()

    def advance(self) -> None:
        """Remove the calls that `read` gave."""
        with self._lock:
            for _ in range(min(self._memory_read, len(self._memory))):
                self._memory_used -= len(self._memory.popleft())
            self._memory_read = 0
            # Another thread may have closed the spool meanwhile, because this one hung in the database.
            if self._read is not None and self._segments and self._segments[0] is self._read:
                self._read.advance()
                if self._read.exhausted:
                    self._drop_head()
            self._read = None

    def sync(self) -> None:
        """Bring appended frames to the disk."""
        with self._lock:
            if self._segments:
                self._segments[-1].sync()

    def close(self) -> int:
        """Write what memory holds to files if possible, and let go of them; return the calls that are lost."""
        with self._lock:
            self._spill()
            lost = sum(map(entry.calls_of, self._memory))
            for segment in self._segments:
                segment.sync()
                segment.close()
            self._segments.clear()
            return lost

    def _oldest(self) -> list[bytes]:
        self._memory_read = 0
        while self._segments:
            payloads = self._of_segment(self._segments[0])
            if payloads:
                return payloads
            self._drop_head()
        payloads, calls = [], 0
        for payload in self._memory:
            if calls >= self._read_calls:
                break
            payloads.append(payload)
            calls += entry.calls_of(payload)
        self._memory_read = len(payloads)
        return payloads

    def _of_segment(self, segment: Segment) -> list[bytes]:
        self._read = segment
        segment.rewind()
        payloads: list[bytes] = []
        calls = 0
        while calls < self._read_calls:
            try:
                payload = segment.peek()
            except TornError:
                self.torn += 1
                segment.cut()
                payload = None
            if payload is None:
                break
            payloads.append(payload)
            calls += entry.calls_of(payload)
        return payloads

    def _to_memory(self, payload: bytes) -> None:
        if self._memory_used > self._memory_bytes * STRIP_SHARE:
            bare = [msgspec.structs.replace(fact, attempts=()) for fact in self._decoder.decode(payload)]
            self.calls_stripped += len(bare)
            payload = entry.frame([entry.encode(fact) for fact in bare])
        if self._memory_used + len(payload) > self._memory_bytes:
            self.calls_refused += entry.calls_of(payload)
            return
        self._memory.append(payload)
        self._memory_used += len(payload)

    def _spill(self) -> bool:
        """Move memory frames to files, oldest first; True when none is left."""
        while self._memory:
            if not self._to_file([self._memory[0]]):
                return False
            self._memory_used -= len(self._memory.popleft())
        return True

    def _to_file(self, payloads: Sequence[bytes]) -> bool:
        new_bytes = frames_size(payloads)
        if sum(segment.size for segment in self._segments) + new_bytes > self._max_bytes:
            return False
        try:
            last = self._segments[-1] if self._segments else None
            if last is None or not last.own or last.size + new_bytes > self._segment_bytes:
                if last is not None:
                    last.sync()
                last = Segment.create(self._database.with_name(self._segment_name()))
                self._created += 1
                self._segments.append(last)
            last.append(payloads)
        except OSError:
            return False
        return True

    def _segment_name(self) -> str:
        return f"{self._database.name}.spool-{self._name}-{self._created:06d}"

    def _drop_head(self) -> None:
        segment = self._segments.popleft()
        segment.close()
        # A name that stays is read again at the next start, which changes nothing.
        with contextlib.suppress(OSError):
            segment.path.unlink()
