"""The framed dialect (coordinator §1): frame by frame as the page writes it, with its own counts of bodies."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from turnout.coordinator.rehearsal import Rehearsal
from turnout.core.coordinator_options import Affinity, Coordinator
from turnout.engines import megatron as wire
from turnout.engines import megatron_framed as framed
from turnout.engines.megatron import Header
from turnout.engines.megatron_messages import Message, Refusal, Sender

ENGINE, CLIENT = b"mp-coord-0", b"client"
encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode


def stage(*, ours: bool = False, **options: Any) -> Rehearsal:
    detokenize = options.pop("detokenize", None)
    there = Rehearsal(Coordinator(dialect="framed", block_tokens=2, **options), Affinity(), detokenize=detokenize)
    there.engines(ENGINE)
    there.clients(CLIENT, ours=ours)
    return there


def taken(there: Rehearsal, identity: bytes) -> list[tuple[bytes, ...]]:
    """Whole messages with bodies that a peer was sent."""
    payloads = there.inbox.pop(identity, [])
    bodies = there.bodies.pop(identity, [])
    assert len(payloads) == len(bodies)
    return [(payload, *rest) for payload, rest in zip(payloads, bodies, strict=True)]


def read(*frames: bytes, sender: Sender = Sender.CLIENT) -> Message | Refusal:
    return framed.Framed().read([b"peer", *frames], sender, {7}.__contains__)


def test_golden_frames_both_ways() -> None:
    there = stage()
    there.say(CLIENT, bytes.fromhex("93140080"), bytes.fromhex("93010203"))
    assert [tuple(frame.hex() for frame in frames) for frames in taken(there, ENGINE)] == [("9314cd03e980", "93010203")]
    partial = encode({"request_id": 1001, "new_tokens": [7]})
    there.say(ENGINE, bytes.fromhex("921691cd03e9"), partial)
    assert taken(there, CLIENT) == [(bytes.fromhex("921600"), partial)]
    final = encode({"request_id": 1001, "status": "COMPLETED", "generated_tokens": [7]})
    there.say(ENGINE, bytes.fromhex("92159192cd03e9c2"), final)
    assert taken(there, CLIENT) == [(bytes.fromhex("921500"), final)]
    assert there.leftovers() == {}


def test_builders_of_our_own_peers_make_the_same_frames() -> None:
    assert framed.submit(0, [1], {}) == (bytes.fromhex("93140080"), bytes.fromhex("9101"))
    first, second = {"request_id": 1, "generated_text": None}, {"request_id": 2, "generated_text": "x"}
    assert framed.replied([first, second]) == (
        bytes.fromhex("9215929201c39202c2"),
        encode(first),
        encode(second),
    )
    item = {"request_id": 5, "new_tokens": [1]}
    assert framed.progressed([item]) == (bytes.fromhex("92169105"), encode(item))


def test_everything_else_is_one_payload_as_before() -> None:
    there = stage()
    for signal in ("9128", "912a", "912b", "9129", "922c03", "912e"):
        there.say(CLIENT, bytes.fromhex(signal))
        assert [payload.hex() for payload in there.inbox.pop(ENGINE)] == [signal]
    there.say(CLIENT, wire.DISCONNECT)
    there.say(ENGINE, wire.DISCONNECT)
    assert (len(there.door.roster), len(there.door.clients.known)) == (0, 0)


def test_hand_offs_keep_their_one_payload() -> None:
    there = stage(kv_handoff=True)
    there.say(CLIENT, wire.submit_with_kv(0, [1, 2], {}, {}, [3]))
    assert there.read(ENGINE) == [[24, 1001, [1, 2], {}, {}, [3]]]


OK = {"request_id": 1, "new_tokens": []}
REFUSED = [
    ((b"\x93\x14\x00\x80",), Sender.CLIENT, "frame_count"),
    ((b"\x93\x14\x00\x80", b"\x91\x01", b"\x91\x01"), Sender.CLIENT, "frame_count"),
    ((b"\x91\x28", b"\x80"), Sender.CLIENT, "frame_count"),
    ((b"", b"\x80"), Sender.ENGINE, "frame_count"),
    ((b"\x92\x16\x91\x05",), Sender.ENGINE, "frame_count"),
    ((b"\x92\x16\x90", encode(OK)), Sender.ENGINE, "frame_count"),
    ((b"\x92\x16\x91\x05", encode(OK), encode(OK)), Sender.ENGINE, "frame_count"),
    ((b"\x93\x14\x00\x80", b"\x01" * (64 * 1_048_576)), Sender.CLIENT, "too_large"),
    ((b"\x93\x14\x00\xc1", b"\x91\x01"), Sender.CLIENT, "undecodable"),
    ((b"\x93\x14\x00", b"\x91\x01"), Sender.CLIENT, "undecodable"),
    ((b"\x93\x14\x00\x80", b"\xc1"), Sender.CLIENT, "undecodable"),
    ((b"\x93\x14\x00\x80", b"\x91\x01\x01"), Sender.CLIENT, "undecodable"),
    ((b"\x93\x14\x00\x80", b"\x91\x01"), Sender.ENGINE, "wrong_direction"),
    ((b"\x93\x14\x00\x80", b"\x91\x01"), Sender.NOBODY, "unknown_sender"),
    ((b"\x92\x16\x91\x05", encode(OK)), Sender.CLIENT, "wrong_direction"),
    ((b"\x95\x14\x00\xa2hi\x80\xc0", b"\x91\x01"), Sender.CLIENT, "arity"),
    ((b"\x93\x15\x90\x01",), Sender.ENGINE, "arity"),
    ((b"\x93\x14\xc3\x80", b"\x91\x01"), Sender.CLIENT, "bad_field:id"),
    ((b"\x93\x14\x07\x80", b"\x91\x01"), Sender.CLIENT, "duplicate_id"),
    ((b"\x93\x14\x00\x80", b"\x90"), Sender.CLIENT, "bad_field:prompt"),
    ((b"\x93\x14\x00\x80", b"\x91\xc3"), Sender.CLIENT, "bad_field:prompt"),
    ((b"\x93\x14\x00\x90", b"\x91\x01"), Sender.CLIENT, "bad_field:sampling"),
    ((b"\x93\x14\x00" + encode({"streaming_interval": 0}), b"\x91\x01"), Sender.CLIENT, "bad_field:streaming_interval"),
    ((b"\x92\x15\x01",), Sender.ENGINE, "bad_item"),
    ((b"\x91\x1d",), Sender.CLIENT, "unknown_header"),
]  # fmt: skip


@pytest.mark.parametrize(("frames", "sender", "reason"), REFUSED)
def test_what_is_wrong_is_refused_by_its_row(frames: tuple[bytes, ...], sender: Sender, reason: str) -> None:
    refusal = read(*frames, sender=sender)
    assert isinstance(refusal, Refusal), refusal
    assert refusal.reason == reason


def test_bad_items_are_dropped_one_by_one_and_the_metadata_names_the_request() -> None:
    good = encode({"request_id": 99, "status": "COMPLETED"})
    bodies = [good, b"\xc1", b"\x90", good, good, good]
    entries = [[1, True], [2, True], [3, True], [True, True], [5, 1], [6, False]]
    message = read(encode([21, entries]), *bodies, sender=Sender.ENGINE)
    assert isinstance(message, Message)
    assert [item["request_id"] for item in message.values] == [1, 6]
    assert [bytes(part) for part in message.raw] == [good, good]
    assert (message.bad_items, message.as_they_are) == (4, {6})


def test_text_is_made_for_those_that_ask_for_it() -> None:
    there = stage(detokenize=lambda tokens: "".join(map(chr, tokens)))
    for number in range(2):
        there.say(CLIENT, *framed.submit(number, [1], {}))
    final = {"status": "COMPLETED", "generated_tokens": [104, 105], "generated_text": None}
    there.say(ENGINE, encode([21, [[1001, True], [1002, False]]]), encode(final), encode(final))
    answers = [decode(body) for _, body in taken(there, CLIENT)]
    assert [answer["generated_text"] for answer in answers] == ["hi", None]


def test_failures_come_as_the_dialect_has_them() -> None:
    there = stage(empty_wait_s=0.1)
    there.say(ENGINE, wire.DISCONNECT)
    there.say(CLIENT, *framed.submit(0, [1], {}))
    there.wait(0.2)
    ((head, body),) = taken(there, CLIENT)
    assert (decode(head), decode(body)["status"]) == ([21, 0], "FAILED")
    there = stage(ours=True)
    there.say(CLIENT, *framed.submit(0, "", {}))
    assert there.read(CLIENT) == [[29, 0, "bad_field:prompt", True]]


def test_a_reply_adopts_a_lost_engine() -> None:
    there = stage()
    there.gone.add(ENGINE)
    there.say(CLIENT, *framed.submit(0, [1], {}))
    there.wait(1.0)
    there.gone.discard(ENGINE)
    there.say(ENGINE, *framed.progressed([OK]))
    assert there.door.tally.registrations["adopted"] == 1


def test_affinity_reads_the_prompt_frame() -> None:
    there = stage()
    there.engines(b"mp-coord-1")
    for number in range(2):
        there.say(CLIENT, *framed.submit(number, [1, 2, 3, 4], {}))
        (attempt,) = there.door.requests.open.values()
        there.say(attempt.engine.identity, *framed.replied([{"request_id": attempt.server_id}]))
    assert there.door.tally.lookups == {"miss": 1, "match": 1}


def test_no_frames_whatever_stop_the_door() -> None:
    rng = random.Random(3)
    there = stage(allow_control=False)
    legal = [
        framed.submit(1, [1, 2, 3], {"top_k": 1}),
        framed.replied([{"request_id": 1001, "generated_text": None}]),
        framed.progressed([OK, OK]),
        (wire.abort(1),),
        (wire.signal(Header.PAUSE),),
    ]
    honest = 0
    for turn in range(4000):
        frames = list(rng.choice(legal))
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(frames))
            kind = rng.randrange(4)
            if kind == 0:
                frames[at] = frames[at][: rng.randrange(len(frames[at]) + 1)]
            elif kind == 1:
                frames[at] += rng.randbytes(rng.randrange(3))
            elif kind == 2:
                frames.insert(at, rng.randbytes(rng.randrange(6)))
            elif len(frames) > 1:
                del frames[at]
        identity = rng.choice([b"hostile", ENGINE, rng.randbytes(4)])
        if frames != [wire.REGISTRATION] or identity == ENGINE:
            there.say(identity, *frames)
        if turn % 20 == 0:
            there.say(CLIENT, *framed.submit(turn, [turn % 5] * 4, {}))
            honest += 1
            there.wait(0.05)
        there.clients(b"hostile") if there.door.clients.get(b"hostile") is None else None
        for engine in list(there.door.roster.live.values()):
            for number in list(engine.open):
                there.say(engine.identity, *framed.replied([{"request_id": number, "generated_text": None}]))
    there.say(b"hostile", wire.DISCONNECT)
    there.wait(1.0)
    answers = [decode(head)[0] for head, _ in taken(there, CLIENT)]
    assert answers == [21] * honest
    assert there.leftovers() == {}
    assert set(there.door.tally.internal_errors) <= {"ENGINE_REPLY", "ENGINE_REPLY_PARTIAL"}
    assert len({reason for _, reason in there.door.tally.invalid}) >= 8
