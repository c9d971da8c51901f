"""The second dialect (upstream proposal 6497): metadata in one frame, each prompt and each reply in a frame of its own.

Only these three messages differ, everything else is one payload as in the first dialect. What is read becomes the same
`Message`, so that the door knows one shape; what is sent is made by the builders of `Dialect`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from turnout.engines import megatron as wire
from turnout.engines import megatron_fields as fields
from turnout.engines import megatron_messages as packed
from turnout.engines.megatron import REGISTRATION, Header
from turnout.engines.megatron_fields import BAD
from turnout.engines.megatron_messages import IDENTITY_MAX_BYTES, TABLE, Message, Refusal, Sender

Frames = tuple[bytes, ...]
_encode = msgspec.msgpack.Encoder().encode
_ELEMENTS = {Header.SUBMIT_REQUEST: 3, Header.ENGINE_REPLY: 2, Header.ENGINE_REPLY_PARTIAL: 2}
_IDENTITY_AND_PAYLOAD = 2
_ONE_BODY = 3
_ENTRY = 2


class Dialect(Protocol):
    """How messages become frames. All peers of one door speak one dialect."""

    def read(self, frames: Sequence[bytes], sender: Sender, is_open: Callable[[int], bool]) -> Message | Refusal:
        """Validate one message of identity and payload frames."""
        ...

    def is_reply(self, frames: Sequence[bytes]) -> bool:
        """Say whether this looks like what only an engine sends."""
        ...

    def forwarded(self, header: Header, number: int, parts: Sequence[msgspec.Raw | bytes]) -> Frames:
        """A request for its engine; `parts` are its elements from the prompt on."""
        ...

    def delivered(self, header: Header, number: int, item: msgspec.Raw | bytes) -> Frames:
        """A finished or partial item for its client."""
        ...


class Packed:
    """Everything in one payload: what released Megatron speaks."""

    read = staticmethod(packed.read)
    is_reply = staticmethod(packed.is_reply)

    def forwarded(self, header: Header, number: int, parts: Sequence[msgspec.Raw | bytes]) -> Frames:
        """Five elements of a plain request always."""
        return (wire.forwarded(header, number, parts),)

    def delivered(self, header: Header, number: int, item: msgspec.Raw | bytes) -> Frames:
        """Three elements."""
        return (wire.delivered(header, number, item),)


class Framed:
    """Prompts and replies in frames of their own, which nobody on the way has to copy."""

    def read(self, frames: Sequence[bytes], sender: Sender, is_open: Callable[[int], bool]) -> Message | Refusal:
        """Validate one message; the bodies of a reply must be as many as its metadata declares."""
        if len(frames) < _IDENTITY_AND_PAYLOAD or not 1 <= len(frames[0]) <= IDENTITY_MAX_BYTES:
            return Refusal("frame_count", "unknown")
        payload = frames[1]
        header = packed.header_of(payload) if payload != REGISTRATION else None
        if header not in _ELEMENTS:
            return packed.read(frames, sender, is_open)
        assert header is not None
        if header is Header.SUBMIT_REQUEST and len(frames) != _ONE_BODY:
            return Refusal("frame_count", header.name, header)
        rule = TABLE[header]
        if sum(map(len, frames[1:])) > rule.max_bytes:
            return Refusal("too_large", header.name, header)
        raw = fields.parts_of(payload)
        values = [] if raw is None else [fields.value_of(part, 1) for part in raw]
        if raw is None or any(value is BAD for value in values):
            return Refusal("undecodable", header.name, header)
        reason = packed.unwelcome(header, rule, sender)
        if reason is None and len(values) != _ELEMENTS[header]:
            reason = "arity"
        if reason is not None:
            return Refusal(reason, header.name, header, packed.request_id_of(values))
        if header is Header.SUBMIT_REQUEST:
            return _submitted(raw, values, frames[2], is_open)
        return _replied(header, values[1], frames[2:])

    def is_reply(self, frames: Sequence[bytes]) -> bool:
        """Say whether this looks like what only an engine sends."""
        return len(frames) >= _IDENTITY_AND_PAYLOAD and packed.is_reply(frames[:_IDENTITY_AND_PAYLOAD])

    def forwarded(self, header: Header, number: int, parts: Sequence[msgspec.Raw | bytes]) -> Frames:
        """Number and sampling, and the prompt as it came."""
        if header is not Header.SUBMIT_REQUEST:
            return (wire.forwarded(header, number, parts),)
        prompt, sampling = parts[:2]
        return b"".join((b"\x93", bytes((header.value,)), _encode(number), bytes(sampling))), bytes(prompt)

    def delivered(self, header: Header, number: int, item: msgspec.Raw | bytes) -> Frames:
        """Number, and the item as it came."""
        return _encode([header.value, number]), bytes(item)


def dialect_of(name: str) -> Dialect:
    """The dialect that `coordinator.dialect` names."""
    return Framed() if name == "framed" else Packed()


def submit(number: int, prompt: str | list[int], sampling: Mapping[str, Any]) -> Frames:
    """A client's request."""
    return _encode([Header.SUBMIT_REQUEST.value, number, sampling]), _encode(prompt)


def replied(items: Iterable[Mapping[str, Any]]) -> Frames:
    """An engine's finished requests; one without text leaves that to the door."""
    entries = [[item["request_id"], item.get("generated_text") is None] for item in items]
    return _encode([Header.ENGINE_REPLY.value, entries]), *map(_encode, items)


def progressed(items: Iterable[Mapping[str, Any]]) -> Frames:
    """An engine's new tokens of open requests."""
    entries = [item["request_id"] for item in items]
    return _encode([Header.ENGINE_REPLY_PARTIAL.value, entries]), *map(_encode, items)


def _submitted(
    raw: Sequence[msgspec.Raw], values: list[Any], body: bytes, is_open: Callable[[int], bool]
) -> Message | Refusal:
    header = Header.SUBMIT_REQUEST
    prompt = fields.prompt_of(body, 0)
    number, sampling = values[1:]
    if prompt is BAD:
        return Refusal("undecodable", header.name, header, packed.request_id_of(values))
    reason = packed.first_bad(header, TABLE[header], [header.value, number, prompt, sampling], is_open)
    if reason is not None:
        return Refusal(reason, header.name, header, packed.request_id_of(values))
    return Message(header, [number, prompt, sampling], [raw[1], msgspec.Raw(body), raw[2]])


def _replied(header: Header, entries: Any, bodies: Sequence[bytes]) -> Message | Refusal:
    """Bad items are dropped one by one. The number of the metadata counts, whatever the body says of it."""
    if type(entries) is not list:
        return Refusal("bad_item", header.name, header)
    if len(entries) != len(bodies):
        return Refusal("frame_count", header.name, header)
    items: list[Any] = []
    raw: list[msgspec.Raw] = []
    as_they_are = set()
    for entry, body in zip(entries, bodies, strict=True):
        number, has_text = _entry(entry, header)
        item = fields.value_of(body)
        if number is None or type(item) is not dict:
            continue
        if header is Header.ENGINE_REPLY_PARTIAL and type(item.get("new_tokens")) is not list:
            continue
        items.append({**item, "request_id": number})
        raw.append(msgspec.Raw(body))
        if has_text:
            as_they_are.add(number)
    return Message(header, items, raw, len(entries) - len(items), frozenset(as_they_are))


def _entry(entry: Any, header: Header) -> tuple[int | None, bool]:
    """Number of an entry and whether its body is to be left alone; None when the entry is none."""
    if header is Header.ENGINE_REPLY_PARTIAL:
        return (entry if fields.is_int(entry) else None), True
    if type(entry) is not list or len(entry) != _ENTRY or type(entry[1]) is not bool:
        return None, True
    return (entry[0] if fields.is_int(entry[0]) else None), not entry[1]
