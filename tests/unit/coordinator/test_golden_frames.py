"""Every message frame by frame against the published facts (coordinator §2): written out by hand, not by our encoder."""

from __future__ import annotations

import msgspec
import pytest

from turnout.engines import megatron as wire
from turnout.engines.megatron import Header
from turnout.engines.megatron_messages import TABLE, Message, Refusal, Sender, read


def hexed(text: str) -> bytes:
    return bytes.fromhex(text)


# Number and name as in megatron/core/inference/headers.py.
PUBLISHED = {
    0: "CONNECT",
    1: "CONNECT_ACK",
    20: "SUBMIT_REQUEST",
    21: "ENGINE_REPLY",
    22: "ENGINE_REPLY_PARTIAL",
    23: "ABORT_REQUEST",
    24: "SUBMIT_REQUEST_WITH_KV",
    25: "RELEASE_KV",
    26: "SEND_KV",
    40: "PAUSE",
    41: "UNPAUSE",
    42: "SUSPEND",
    43: "RESUME",
    44: "SET_GENERATION_EPOCH",
    45: "STOP",
    46: "START_CUDA_PROFILER",
    47: "STOP_CUDA_PROFILER",
    60: "DISCONNECT",
    61: "SHUTDOWN",
    80: "TP_BROADCAST",
    81: "KV_HANDOFF_COMPLETE",
}


def test_the_headers_are_the_published_ones_and_one_of_ours() -> None:
    assert {header.value: header.name for header in Header} == {**PUBLISHED, 29: "REQUEST_ERROR"}
    assert {header.value: header.name for header in TABLE} == PUBLISHED


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (wire.connect(), "9100"),
        (wire.connect(ours=True), "9200" + "81" + "a7" + b"turnout".hex() + "01"),
        (wire.CONNECT_ACK, "9101"),
        (wire.submit(0, "hi", {}), "951400a2686980c0"),
        (wire.submit(1, [1, 256], {"top_k": 1}), "951401" + "9201cd0100" + "81a5" + b"top_k".hex() + "01" + "c0"),
        (wire.submit_with_kv(2, [7], {}, {"a": 1}, [3]), "961802" + "9107" + "80" + "81a16101" + "9103"),
        (wire.replied([{"request_id": 9}]), "921591" + "81aa" + b"request_id".hex() + "09"),
        (wire.progressed([]), "921690"),
        (wire.abort(7), "921707"),
        (wire.PROBE, "9217ce7fffffff"),
        (wire.release(5), "921905"),
        (wire.signal(Header.PAUSE), "9128"),
        (wire.signal(Header.UNPAUSE), "9129"),
        (wire.signal(Header.SUSPEND), "912a"),
        (wire.signal(Header.RESUME), "912b"),
        (wire.signal(Header.SET_GENERATION_EPOCH, 3), "922c03"),
        (wire.signal(Header.STOP), "912d"),
        (wire.signal(Header.START_CUDA_PROFILER), "912e"),
        (wire.signal(Header.STOP_CUDA_PROFILER), "912f"),
        (wire.DISCONNECT, "913c"),
        (wire.signal(Header.SHUTDOWN), "913d"),
        (wire.refused(3, "late"), "941d03a4" + b"late".hex() + "c3"),
        (wire.refused(None, "late"), "941dc0a4" + b"late".hex() + "c3"),
        (wire.delivered(Header.ENGINE_REPLY, 300, b"\x80"), "9315cd012c80"),
        (wire.delivered(Header.ENGINE_REPLY_PARTIAL, 0, b"\x80"), "93160080"),
        (wire.forwarded(Header.SUBMIT_REQUEST, 70000, [b"\xa2hi", b"\x80"]), "9514ce00011170a2686980c0"),
        (wire.forwarded(Header.SUBMIT_REQUEST, 1, [b"\xa2hi", b"\x80", b"\x81\xa1x\x01"]), "951401a268698081a17801"),
        (
            wire.forwarded(Header.SUBMIT_REQUEST_WITH_KV, 1, [b"\x91\x07", b"\x80", b"\x80", b"\x90"]),
            "96180191078080" + "90",
        ),
    ],
)
def test_golden_bytes_of_what_we_send(message: bytes, expected: str) -> None:
    assert message.hex() == expected


ACCEPTED = [
    ("9100", Sender.NOBODY, Header.CONNECT, []),
    ("9100", Sender.CLIENT, Header.CONNECT, []),
    ("920081a7" + b"turnout".hex() + "01", Sender.NOBODY, Header.CONNECT, [{"turnout": 1}]),
    ("951400a2686980c0", Sender.CLIENT, Header.SUBMIT_REQUEST, [0, "hi", {}, None]),
    ("941400a2686980", Sender.CLIENT, Header.SUBMIT_REQUEST, [0, "hi", {}]),
    ("95140093010203" + "80" + "81a5" + b"image".hex() + "c401ff", Sender.CLIENT, Header.SUBMIT_REQUEST, [0, (1, 2, 3), {}, {"image": b"\xff"}]),
    ("9618029107" + "80" + "8090", Sender.CLIENT, Header.SUBMIT_REQUEST_WITH_KV, [2, (7,), {}, {}, []]),
    ("921707", Sender.CLIENT, Header.ABORT_REQUEST, [7]),
    ("9217ce7fffffff", Sender.CLIENT, Header.ABORT_REQUEST, [2147483647]),
    ("921905", Sender.CLIENT, Header.RELEASE_KV, [5]),
    ("9128", Sender.CLIENT, Header.PAUSE, []),
    ("91cc28", Sender.CLIENT, Header.PAUSE, []),
    ("dc000128", Sender.CLIENT, Header.PAUSE, []),
    ("922c03", Sender.CLIENT, Header.SET_GENERATION_EPOCH, [3]),
    ("922cff", Sender.CLIENT, Header.SET_GENERATION_EPOCH, [-1]),
    ("913c", Sender.ENGINE, Header.DISCONNECT, []),
    ("913c", Sender.CLIENT, Header.DISCONNECT, []),
    ("913d", Sender.CLIENT, Header.SHUTDOWN, []),
]  # fmt: skip


@pytest.mark.parametrize(("payload", "sender", "header", "values"), ACCEPTED)
def test_what_peers_send_is_read(payload: str, sender: Sender, header: Header, values: list[object]) -> None:
    message = read([b"peer", hexed(payload)], sender, lambda _: False)
    assert isinstance(message, Message), message
    assert (message.header, message.values) == (header, values)


def test_registration_is_one_empty_payload() -> None:
    assert read([b"mp-coord-0", b""], Sender.NOBODY, lambda _: False) == Message(None)
    assert read([b"mp-coord-0", b""], Sender.ENGINE, lambda _: False) == Message(None)


def test_items_of_a_reply_are_passed_on_as_received() -> None:
    finished = {"request_id": 4, "generated_tokens": [1, 2], "prompt_tokens": ["tensor", [1]], "status": "COMPLETED"}
    message = read([b"e", wire.replied([finished, {"request_id": 5}])], Sender.ENGINE, lambda _: False)
    assert isinstance(message, Message)
    assert message.values == [finished, {"request_id": 5}]
    assert [bytes(part) for part in message.raw] == [
        msgspec.msgpack.encode(finished),
        msgspec.msgpack.encode({"request_id": 5}),
    ]


def test_bad_items_of_a_reply_are_dropped_one_by_one() -> None:
    items = [{"request_id": 1}, {"request_id": True}, 5, {}, {"request_id": "1"}, {"request_id": 2}]
    message = read([b"e", wire.replied(items)], Sender.ENGINE, lambda _: False)
    assert isinstance(message, Message)
    assert (message.values, len(message.raw), message.bad_items) == ([items[0], items[-1]], 2, 4)
    partials = [{"request_id": 1, "new_tokens": [1]}, {"request_id": 1}, {"request_id": 1, "new_tokens": 3}]
    message = read([b"e", wire.progressed(partials)], Sender.ENGINE, lambda _: False)
    assert isinstance(message, Message)
    assert (message.values, message.bad_items) == (partials[:1], 2)


def test_a_failed_reply_has_only_fields_of_the_upstream_class() -> None:
    reply = wire.failed_reply(3, uid="turnout-ab", reason="no_engine", transient=True, timestamp=1.5)
    assert reply == {
        "request_id": 3,
        "uid": "turnout-ab",
        "status": "FAILED",
        "prompt": None,
        "prompt_tokens": None,
        "prompt_length": None,
        "generated_tokens": [],
        "generated_text": "",
        "generated_length": 0,
        "num_cached_tokens": 0,
        "sampling_params": {},
        "inference_parameters": None,
        "routing_indices": None,
        "events": [
            {
                "timestamp": 1.5,
                "type": "ERROR_TRANSIENT",
                "payload": {
                    "type": "ContextOverflowError",
                    "request_id": 3,
                    "message": "turnout: no_engine",
                    "is_transient": True,
                },
            },
            {"timestamp": 1.5, "type": "FAIL", "payload": None},
        ],
    }
    permanent = wire.failed_reply(3, uid="u", reason="arity", transient=False, timestamp=0.0)
    assert permanent["events"][0]["type"] == "ERROR_NONTRANSIENT"


def test_nothing_but_published_headers_is_ever_sent_to_an_unmodified_peer() -> None:
    sent = {
        message[1]
        for message in (
            wire.CONNECT_ACK,
            wire.PROBE,
            wire.failed(1, {}),
            wire.delivered(Header.ENGINE_REPLY, 1, b"\x80"),
            wire.delivered(Header.ENGINE_REPLY_PARTIAL, 1, b"\x80"),
        )
    }
    assert sent <= PUBLISHED.keys()
    assert isinstance(read([b"c", wire.refused(1, "x")], Sender.CLIENT, lambda _: False), Refusal)
