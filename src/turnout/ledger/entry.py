"""Recorded facts on their way to the database, in the form in which slot, spool and database's process take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from turnout.core.facts import CallFact

if TYPE_CHECKING:
    from collections.abc import Sequence

encode: Final = msgspec.msgpack.Encoder().encode
# Heads of msgpack arrays: up to 15 items, then with a length of two bytes.
_SMALL_MAX: Final = 15


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A fact as msgpack: a fifth of the memory of its objects, and nothing is left to do for slot and spool."""

    call_id: str
    """Whose slot is free once the fact is safe; empty for attempts of an exchange that is still open."""
    payload: bytes


class Frame(msgspec.Struct, frozen=True, gc=False):
    """Some facts as one msgpack list. Whoever only passes them on never makes objects of them."""

    payload: bytes
    calls: int
    closed: tuple[str, ...]
    """The ids of its calls that have ended; the others are attempts of exchanges that are still open."""


_raw: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_fields: Final = msgspec.structs.fields(CallFact)
# What is decoded of a fact that is only passed on: the fields up to its outcome, in a fifth of the time.
_Key: Any = msgspec.defstruct(
    "_Key",
    [(field.name, field.type) for field in _fields[: CallFact.__struct_fields__.index("outcome") + 1]],
    array_like=True,
    gc=False,
)
_keys: Final = msgspec.msgpack.Decoder(list[_Key]).decode


def of(fact: CallFact) -> Entry:
    """Make the entry of a fact.

    Raises:
        ValueError, OverflowError, TypeError: no column could hold it either (text that is not UTF-8, beyond 64 bits).
    """
    return Entry(fact.call_id if fact.outcome else "", encode(fact))


def frame(payloads: Sequence[bytes]) -> bytes:
    """Join at most 65,535 encoded facts to the list that a frame of the spool is."""
    size = len(payloads)
    head = bytes((0x90 | size,)) if size <= _SMALL_MAX else b"\xdc" + size.to_bytes(2, "big")
    return head + b"".join(payloads)


def frames(entries: Sequence[Entry], size: int) -> list[Frame]:
    """Join entries to frames of at most `size` facts."""
    found: list[Frame] = []
    for start in range(0, len(entries), size):
        part = entries[start : start + size]
        closed = tuple([entry.call_id for entry in part if entry.call_id])
        found.append(Frame(frame([entry.payload for entry in part]), len(part), closed))
    return found


def frame_of(payload: bytes) -> Frame:
    """Look into a frame that was read.

    Raises:
        msgspec.DecodeError: it is none.
    """
    keys = _keys(payload)
    return Frame(payload, len(keys), tuple([key.call_id for key in keys if key.outcome]))


def singly(payload: bytes) -> list[bytes]:
    """Take a frame apart into frames of one fact; what is no frame stays as it is."""
    try:
        return [frame([bytes(part)]) for part in _raw(payload)]
    except msgspec.DecodeError:
        return [payload]


def calls_of(payload: bytes) -> int:
    """Tell how many facts a frame holds, from its head; 1 for one that is none."""
    first = payload[0] if payload else 0
    if first & 0xF0 == 0x90:  # noqa: PLR2004 - the format's own marks
        return first & 0x0F
    width = {0xDC: 2, 0xDD: 4}.get(first, 0)
    return int.from_bytes(payload[1 : 1 + width], "big") if width else 1
