"""What may arrive at the coordinator door: one table of message types, and the one function that applies it.

The checks run in the order of coordinator §3; the first that fails ends the message with its reason. A message that
passes has every field its handler reads, so that no handler checks again.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from turnout.engines import megatron_fields as fields
from turnout.engines.megatron import REGISTRATION, Header
from turnout.engines.megatron_fields import BAD, Check

IDENTITY_MAX_BYTES = 255
_MIB = 1_048_576
BULK_MAX_BYTES = 64 * _MIB
REPLY_MAX_BYTES = 256 * _MIB
PLAIN_MAX_BYTES = 65_536
_FRAMES = 2
_REPLY_HEADS = (b"\x92\x15", b"\x92\x16")


class Sender(enum.Enum):
    """Who a peer is to the door."""

    NOBODY = "nobody"
    CLIENT = "client"
    ENGINE = "engine"


class Rule(msgspec.Struct, frozen=True, gc=False):
    """One row of the table. `arities` counts all elements; `checks` are for the elements after the header.

    `splits`: element 1 is a list of items that are validated one by one and passed on as received.
    """

    senders: tuple[Sender, ...]
    arities: tuple[int, ...]
    checks: tuple[Check, ...] = ()
    max_bytes: int = PLAIN_MAX_BYTES
    splits: bool = False


_CLIENT, _ENGINE, _EITHER = (Sender.CLIENT,), (Sender.ENGINE,), (Sender.CLIENT, Sender.ENGINE)
_SIGNAL = Rule(_CLIENT, (1,))
_NEVER = Rule((), ())

TABLE: dict[Header, Rule] = {
    Header.CONNECT: Rule((Sender.NOBODY, Sender.CLIENT), (1, 2), (fields.connect_option,)),
    Header.CONNECT_ACK: _NEVER,
    Header.SUBMIT_REQUEST: Rule(
        _CLIENT,
        (4, 5),
        (fields.natural("id"), fields.prompt, fields.sampling, fields.optional_mapping("multimodal")),
        BULK_MAX_BYTES,
    ),
    Header.ENGINE_REPLY: Rule(_ENGINE, (2,), (), REPLY_MAX_BYTES, splits=True),
    Header.ENGINE_REPLY_PARTIAL: Rule(_ENGINE, (2,), (), REPLY_MAX_BYTES, splits=True),
    Header.ABORT_REQUEST: Rule(_CLIENT, (2,), (fields.natural("id"),)),
    Header.SUBMIT_REQUEST_WITH_KV: Rule(
        _CLIENT,
        (6,),
        (
            fields.natural("id"),
            fields.prompt,
            fields.sampling,
            fields.mapping("kv_meta"),
            fields.integers("src_block_ids"),
        ),
        BULK_MAX_BYTES,
    ),
    Header.RELEASE_KV: Rule(_CLIENT, (2,), (fields.natural("id"),)),
    Header.SEND_KV: _NEVER,
    Header.PAUSE: _SIGNAL,
    Header.UNPAUSE: _SIGNAL,
    Header.SUSPEND: _SIGNAL,
    Header.RESUME: _SIGNAL,
    Header.SET_GENERATION_EPOCH: Rule(_CLIENT, (2,), (fields.integer("epoch"),)),
    Header.STOP: _SIGNAL,
    Header.START_CUDA_PROFILER: _SIGNAL,
    Header.STOP_CUDA_PROFILER: _SIGNAL,
    Header.DISCONNECT: Rule(_EITHER, (1,)),
    Header.SHUTDOWN: _SIGNAL,
    Header.TP_BROADCAST: _NEVER,
    Header.KV_HANDOFF_COMPLETE: _NEVER,
}
"""REQUEST_ERROR is missing on purpose: it only ever leaves the door, so for the door it is unknown."""

REQUESTS = (Header.SUBMIT_REQUEST, Header.SUBMIT_REQUEST_WITH_KV)
_BY_NUMBER: dict[int, Header] = {header.value: header for header in TABLE}


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message that may be acted on. `values` and `raw` are its elements after the header, decoded and as received.

    Of a reply they are the good items; `bad_items` counts the others, `as_they_are` names those whose text the engine
    does not leave to the door. `header` is None for a registration.
    """

    header: Header | None
    values: list[Any] = []
    raw: Sequence[msgspec.Raw] = ()
    bad_items: int = 0
    as_they_are: frozenset[int] = frozenset()


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """A message that is not acted on. `kind` names its type, `unknown` if none; `number` is element 1 if an id."""

    reason: str
    kind: str
    header: Header | None = None
    number: int | None = None


def read(frames: Sequence[bytes], sender: Sender, is_open: Callable[[int], bool]) -> Message | Refusal:
    """Validate one message of `[identity, payload]`; `is_open` says whether this client has a request of that id."""
    if len(frames) != _FRAMES or not 1 <= len(frames[0]) <= IDENTITY_MAX_BYTES:
        return Refusal("frame_count", "unknown")
    payload = frames[1]
    if payload == REGISTRATION:
        return Refusal("role_conflict", "REGISTRATION") if sender is Sender.CLIENT else Message(None)
    peeked = header_of(payload)
    rule = TABLE.get(peeked) if peeked is not None else None
    if len(payload) > (rule.max_bytes if rule is not None else PLAIN_MAX_BYTES):
        return Refusal("too_large", _name(peeked), peeked)
    raw = fields.parts_of(payload)
    if raw is None:
        reason = "undecodable" if fields.value_of(payload) is BAD else "not_a_list"
        return Refusal(reason, "unknown")
    values = _values(raw, rule)
    if values is None:
        return Refusal("undecodable", _name(peeked), peeked)
    if not values:
        return Refusal("not_a_list", "unknown")
    return _judged(values, raw, sender, is_open)


def is_reply(frames: Sequence[bytes]) -> bool:
    """Say whether this looks like what only an engine sends, before anything is decoded."""
    return len(frames) == _FRAMES and frames[1].startswith(_REPLY_HEADS)


def request_id_of(values: list[Any]) -> int | None:
    """Element 1 when it can be the id of a request, so that a refusal can be answered."""
    return values[1] if len(values) > 1 and fields.is_int(values[1]) and values[1] >= 0 else None


def unwelcome(header: Header, rule: Rule, sender: Sender) -> str | None:
    """Why this sender may not send it (check 6 and 7), or None."""
    if sender in rule.senders:
        return None
    if not rule.senders:
        return "unexpected_header"
    if header is Header.CONNECT:
        return "role_conflict"
    return "unknown_sender" if sender is Sender.NOBODY else "wrong_direction"


def first_bad(header: Header, rule: Rule, values: list[Any], is_open: Callable[[int], bool]) -> str | None:
    """Reason of the first field that is wrong (checks 9 to 12), or None; `values` begin with the header."""
    # Fewer values than checks are legal: the last field of some messages may be missing.
    for value, check in zip(values[1:], rule.checks, strict=False):
        name = check(value)
        if name is not None:
            return f"bad_field:{name}"
        if check is rule.checks[0] and header in REQUESTS and is_open(value):
            return "duplicate_id"
    return None


def _judged(
    values: list[Any], raw: list[msgspec.Raw], sender: Sender, is_open: Callable[[int], bool]
) -> Message | Refusal:
    """Apply checks 5 to 12 to a decoded message."""
    number = values[0]
    if not fields.is_int(number):
        return Refusal("bad_header", "unknown")
    header = _BY_NUMBER.get(number)
    if header is None:
        return Refusal("unknown_header", "unknown")
    rule = TABLE[header]
    client_id = request_id_of(values)
    reason = unwelcome(header, rule, sender)
    if reason is None and len(values) not in rule.arities:
        reason = "arity"
    if reason is None and rule.splits:
        return _split(header, values[1], raw[1])
    if reason is None:
        reason = first_bad(header, rule, values, is_open)
    if reason is not None:
        return Refusal(reason, header.name, header, client_id)
    return Message(header, values[1:], raw[1:])


def _split(header: Header, items: Any, raw: msgspec.Raw) -> Message | Refusal:
    """Bad items are dropped one by one; the good ones are passed on as they came."""
    if type(items) is not list:
        return Refusal("bad_item", header.name, header)
    parts = fields.parts_of(raw) or []
    good = [place for place, item in enumerate(items) if _is_item(item, header)]
    return Message(header, [items[place] for place in good], [parts[place] for place in good], len(items) - len(good))


def _is_item(item: Any, header: Header) -> bool:
    if type(item) is not dict or not fields.is_int(item.get("request_id")):
        return False
    return header is Header.ENGINE_REPLY or type(item.get("new_tokens")) is list


def _values(raw: list[msgspec.Raw], rule: Rule | None) -> list[Any] | None:
    """Decode every element; None when one cannot be taken, whatever its place."""
    is_request = rule is not None and rule.max_bytes == BULK_MAX_BYTES
    values = []
    for place, part in enumerate(raw):
        value = fields.prompt_of(part, 1) if is_request and place == _PROMPT_AT else fields.value_of(part, 1)
        if value is BAD:
            return None
        values.append(value)
    return values


_PROMPT_AT: Final = 2
_HIGH_NIBBLE, _SHORT_ARRAY, _SHORT_INT_MAX = 0xF0, 0x90, 0x7F
_ARRAY_HEADS: Final = {0xDC: 3, 0xDD: 5}
_INT_BYTES: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}


def header_of(payload: bytes) -> Header | None:
    """The header before anything is decoded, in any of msgpack's spellings of a small integer."""
    first = payload[0]
    at = 1 if first & _HIGH_NIBBLE == _SHORT_ARRAY else _ARRAY_HEADS.get(first, 0)
    if not at or at >= len(payload):
        return None
    marker = payload[at]
    if marker <= _SHORT_INT_MAX:
        return _BY_NUMBER.get(marker)
    size = _INT_BYTES.get(marker, 0)
    return _BY_NUMBER.get(int.from_bytes(payload[at + 1 : at + 1 + size])) if size else None


def _name(header: Header | None) -> str:
    return "unknown" if header is None else header.name
