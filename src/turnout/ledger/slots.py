"""A record of every open request in a memory-mapped file, so that not even SIGKILL loses one.

A slot is claimed before the first attempt, told the end, and freed only after its row is committed or spooled. The
kernel keeps what was written to the mapping when the process dies. A slot has room for two records, the beginning and
the end; a record is a state byte, a length, a CRC32 and msgpack, copied in one piece. What a kill left half copied has
a wrong CRC32: no client has seen anything of that request yet, and half an end leaves the beginning.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
from binascii import crc32  # for records this short three times as fast as the same function of zlib
from typing import TYPE_CHECKING, Final

import msgspec

from turnout.core.facts import CallFact, OpenedCall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

RECORD_BYTES: Final = 512
SLOT_BYTES: Final = 2 * RECORD_BYTES
_HEADER: Final = struct.Struct("<BHI")
_HEADER_BYTES: Final = _HEADER.size
_PAYLOAD_MAX: Final = RECORD_BYTES - _HEADER_BYTES
_FREE: Final = 0
_WHOLE: Final = 1
_TEXT_MAX: Final = 64
_INTERNAL_STATUS: Final = 500


class Slots:
    """The slots of one process. `claim` and `end` belong to the event loop, `free` to the writer."""

    def __init__(self, path: Path, count: int) -> None:
        """Make the file at `path`.

        Raises:
            OSError: it cannot be made.
        """
        self.path = path
        self.missed = 0
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, max(1, count) * SLOT_BYTES)
        self._fd = fd
        self._map = mmap.mmap(fd, max(1, count) * SLOT_BYTES)
        # Last in, first out: as few pages of the file as possible are ever touched.
        self._unused = list(range((count - 1) * SLOT_BYTES, -1, -SLOT_BYTES))
        self._taken: dict[str, int] = {}
        self._encode = msgspec.msgpack.Encoder().encode
        self._pack = _HEADER.pack

    def claim(self, opened: OpenedCall) -> bool:
        """Keep a record of an accepted request; False when every slot is taken: it is served and counted."""
        if not self._unused:
            self.missed += 1
            return False
        payload = self._encode(opened)
        size = len(payload)
        if size > _PAYLOAD_MAX:
            payload = self._encode(_shortened(opened))
            size = len(payload)
        at = self._unused.pop()
        self._map[at : at + _HEADER_BYTES + size] = self._pack(_WHOLE, size, crc32(payload)) + payload
        self._taken[opened.call_id] = at
        return True

    def end(self, call: CallFact, payload: bytes) -> None:
        """Replace the record of a request by its end, `payload` in msgpack: from here on it is recovered as it was."""
        at = self._taken.get(call.call_id)
        if at is None:
            return
        size = len(payload)
        if size > _PAYLOAD_MAX:
            payload = self._encode(_bare(call))
            size = len(payload)
        at += RECORD_BYTES
        self._map[at : at + _HEADER_BYTES + size] = self._pack(_WHOLE, size, crc32(payload)) + payload

    def free(self, call_ids: Iterable[str]) -> None:
        """Give back the slots of requests whose rows are safe."""
        taken, records, unused = self._taken, self._map, self._unused
        for call_id in call_ids:
            at = taken.pop(call_id, None)
            if at is not None:
                records[at] = _FREE
                records[at + RECORD_BYTES] = _FREE
                unused.append(at)

    def holds(self, call_id: str) -> bool:
        """Tell whether a request has a slot."""
        return call_id in self._taken

    def ended(self, call_id: str) -> CallFact | None:
        """Read the end of a request back, for want of room anywhere else."""
        at = self._taken.get(call_id)
        return _end_of(self._map[at : at + SLOT_BYTES]) if at is not None else None

    @property
    def taken(self) -> int:
        """Slots in use."""
        return len(self._taken)

    def remove(self) -> None:
        """Let go of the file, and remove it when no slot is in use."""
        if not self._taken:
            with contextlib.suppress(OSError):
                self.path.unlink()
        # The map goes with the last thread that looks at it: a late fact, or a writer that hung, may still come.
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)


def recover(database: Path, keep: Callable[[list[CallFact]], None], now_ms: int) -> tuple[int, int]:
    """Turn the slots that dead processes left into recovered calls; return (recovered, unreadable).

    A file is removed after `keep` has made its calls safe; a kill before that recovers them twice: no change.
    """
    recovered = unreadable = 0
    for path in sorted(database.parent.glob(f"{database.name}.slots-*")):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            calls, bad = _read(os.pread(fd, os.fstat(fd).st_size, 0), now_ms)
            keep(calls)
            path.unlink(missing_ok=True)
            recovered += len(calls)
            unreadable += bad
        except OSError:
            pass  # its process lives
        finally:
            os.close(fd)
    return recovered, unreadable


def _read(content: bytes, now_ms: int) -> tuple[list[CallFact], int]:
    calls: list[CallFact] = []
    unreadable = 0
    for at in range(0, len(content) - SLOT_BYTES + 1, SLOT_BYTES):
        if content[at] == _FREE:
            continue
        slot = content[at : at + SLOT_BYTES]
        call = _end_of(slot) or _recovered(slot, now_ms)
        if call is None:
            unreadable += 1
        else:
            calls.append(msgspec.structs.replace(call, recovered=True))
    return calls, unreadable


def _payload(record: bytes) -> bytes | None:
    """Give what a whole record holds."""
    state, length, crc = _HEADER.unpack_from(record)
    payload = record[_HEADER_BYTES : _HEADER_BYTES + length]
    return payload if state == _WHOLE and crc32(payload) == crc else None


def _end_of(slot: bytes) -> CallFact | None:
    payload = _payload(slot[RECORD_BYTES:])
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.msgpack.decode(payload, type=CallFact) if payload is not None else None
    return None


def _recovered(slot: bytes, now_ms: int) -> CallFact | None:
    """Say of a request that had not ended what is known of it."""
    payload = _payload(slot[:RECORD_BYTES])
    if payload is None:
        return None
    try:
        opened = msgspec.msgpack.decode(payload, type=OpenedCall)
    except msgspec.DecodeError:
        return None
    started_ms = opened.started_at_ms
    return CallFact(
        call_id=opened.call_id,
        request_id=opened.request_id,
        started_at_ms=started_ms,
        ended_at_ms=max(started_ms, now_ms),
        e2e_ms=max(0, now_ms - started_ms),
        tenant=opened.tenant,
        key_id=opened.key_id,
        dialect=opened.dialect,
        path=opened.path,
        stream=opened.stream,
        requested_model=opened.requested_model,
        outcome="internal_error",
        cls="internal",
        http_status=_INTERNAL_STATUS,
        session_id=opened.session_id,
        selected_model=opened.selected_model,
        error_kind="internal",
        recovered=True,
        est_tokens=opened.est_tokens,
        reserved_nusd=opened.reserved_nusd,
    )


def _shortened(opened: OpenedCall) -> OpenedCall:
    """Cut texts that clients choose, so that the record fits."""
    return msgspec.structs.replace(
        opened,
        request_id=_cut(opened.request_id),
        session_id=_cut(opened.session_id) if opened.session_id is not None else None,
        requested_model=_cut(opened.requested_model),
        selected_model=_cut(opened.selected_model),
        key_id=_cut(opened.key_id),
        tenant=_cut(opened.tenant),
    )


def _bare(call: CallFact) -> CallFact:
    """Leave out attempts and explanation and cut what clients choose: outcome, tokens and money are what is billed."""
    return msgspec.structs.replace(
        call,
        attempts=(),
        decision=None,
        request_id=_cut(call.request_id),
        session_id=_cut(call.session_id) if call.session_id is not None else None,
        user_id=None,
        requested_model=_cut(call.requested_model),
        selected_model=_cut(call.selected_model),
        reason=_cut(call.reason),
        cache_source=None,
        clusters="",
        tenant=_cut(call.tenant),
        key_id=_cut(call.key_id),
        router_id=_cut(call.router_id),
    )


def _cut(text: str) -> str:
    # Bytes are what must fit; a character of four bytes costs four.
    return text.encode("utf-8", "replace")[: _TEXT_MAX // 2].decode("utf-8", "ignore")
