"""Every row of coordinator §3: the first check that fails names the reason, in the order of the page."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from turnout.engines import megatron_messages as messages
from turnout.engines.megatron import Header
from turnout.engines.megatron_messages import TABLE, Refusal, Sender, read

C, E, N = Sender.CLIENT, Sender.ENGINE, Sender.NOBODY


def packed(*elements: object) -> bytes:
    return msgspec.msgpack.encode(list(elements))


def reason(payload: bytes, sender: Sender = C, *, opened: int | None = None) -> str:
    verdict = read([b"peer", payload], sender, lambda number: number == opened)
    return verdict.reason if isinstance(verdict, Refusal) else "accepted"


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"peer"],
        [b"peer", b"", b""],
        [b"peer", b"\x91\x28", b"\x91\x28"],
        [b"", b"\x91\x28"],
        [b"x" * 256, b"\x91\x28"],
    ],
)
def test_row_1_frames_and_identity(frames: list[bytes]) -> None:
    verdict = read(frames, C, lambda _: False)
    assert isinstance(verdict, Refusal)
    assert verdict.reason == "frame_count"


def test_row_1_longest_identity_is_accepted() -> None:
    assert not isinstance(read([b"x" * 255, b"\x91\x28"], C, lambda _: False), Refusal)


@pytest.mark.parametrize(
    ("header", "most"), [(23, messages.PLAIN_MAX_BYTES), (40, messages.PLAIN_MAX_BYTES), (99, messages.PLAIN_MAX_BYTES)]
)
def test_row_2_size_by_type(header: int, most: int) -> None:
    assert reason(packed(header, b"x" * most)) == "too_large"
    assert reason(packed(header, b"x" * (most - 10))) != "too_large"


def test_row_2_requests_and_replies_may_be_large() -> None:
    assert reason(packed(20, 1, "x" * 100_000, {})) == "accepted"
    assert reason(packed(22, [{"request_id": 1, "new_tokens": [0] * 100_000}]), E) == "accepted"
    assert reason(b"\x94\xcc\x14\x01" + packed("x" * 100_000, {})[1:]) == "accepted"
    assert reason(packed(20, 1, "x" * messages.BULK_MAX_BYTES, {})) == "too_large"


@pytest.mark.parametrize(
    "payload",
    [
        b"\x91",
        b"\xc1",
        b"\x91\x28\xc0",  # trailing byte
        b"\x92\x28\xa2\xff\xfe",  # not UTF-8
        b"\x92\x28\xd6\xff\x00\x00\x00\x00",  # a timestamp is an extension
        b"\x92\x28\xd4\x05\x00",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\x92\x28\x81\x80\x01",  # a map as key
        b"\x92\x28\x81\x90\x01",  # a list as key
        b"\x92\x28\x81\x01\x01",  # an integer as key: peers refuse it
        packed(40, nested(32)),
        packed(20, 1, [1, [2]], {"x": nested(31)})[:-1],
    ],
)
def test_row_3_undecodable(payload: bytes) -> None:
    assert reason(payload) == "undecodable"


def test_row_3_depth_is_counted_from_the_message() -> None:
    assert reason(packed(20, 1, "p", {"x": nested(30)})) == "accepted"
    assert reason(packed(20, 1, "p", {"x": nested(31)})) == "undecodable"


@pytest.mark.parametrize("payload", [b"\x80", b"\xc0", b"\x28", b"\xa1x", b"\x90", b"\xc3", b"\xcb" + bytes(8)])
def test_row_4_not_a_list(payload: bytes) -> None:
    assert reason(payload) == "not_a_list"


@pytest.mark.parametrize("head", [None, True, False, "PAUSE", 40.0, [40], {"a": 1}, b"(", 2**63])
def test_row_5_header_is_an_integer(head: object) -> None:
    assert reason(packed(head)) == "bad_header"


@pytest.mark.parametrize("head", [-1, 2, 19, 27, 29, 39, 48, 62, 82, 255, 2**40, -(2**63)])
def test_row_5_header_is_of_the_table(head: int) -> None:
    assert reason(packed(head)) == "unknown_header"


# A legal message of each type, for rows 6 and 8.
LEGAL: dict[Header, tuple[Any, ...]] = {
    Header.CONNECT: (),
    Header.SUBMIT_REQUEST: (1, "p", {}),
    Header.ENGINE_REPLY: ([],),
    Header.ENGINE_REPLY_PARTIAL: ([],),
    Header.ABORT_REQUEST: (1,),
    Header.SUBMIT_REQUEST_WITH_KV: (1, "p", {}, {}, []),
    Header.RELEASE_KV: (1,),
    Header.SET_GENERATION_EPOCH: (1,),
}
FROM_ENGINES = {Header.ENGINE_REPLY, Header.ENGINE_REPLY_PARTIAL}
FROM_BOTH = {Header.DISCONNECT}
FROM_NOBODY = {Header.CONNECT_ACK, Header.SEND_KV, Header.TP_BROADCAST, Header.KV_HANDOFF_COMPLETE}


@pytest.mark.parametrize("header", list(TABLE))
def test_row_6_the_sender_may_send_it(header: Header) -> None:
    payload = packed(header.value, *LEGAL.get(header, ()))
    verdicts = {sender: reason(payload, sender) for sender in Sender}
    if header in FROM_NOBODY:
        expected = dict.fromkeys(Sender, "unexpected_header")
    elif header in FROM_ENGINES:
        expected = {C: "wrong_direction", E: "accepted", N: "unknown_sender"}
    elif header in FROM_BOTH:
        expected = {C: "accepted", E: "accepted", N: "unknown_sender"}
    elif header is Header.CONNECT:
        expected = {C: "accepted", E: "role_conflict", N: "accepted"}
    else:
        expected = {C: "accepted", E: "wrong_direction", N: "unknown_sender"}
    assert verdicts == expected


def test_row_7_roles_do_not_change() -> None:
    assert reason(b"", C) == "role_conflict"
    assert reason(packed(0), E) == "role_conflict"


@pytest.mark.parametrize("header", [header for header in TABLE if header not in FROM_NOBODY])
def test_row_8_arity_is_exact(header: Header) -> None:
    legal = LEGAL.get(header, ())
    sender = E if header in FROM_ENGINES else C
    surplus: tuple[Any, ...] = {Header.CONNECT: ({}, 1), Header.SUBMIT_REQUEST: (None, 1)}.get(header, (1,))
    assert reason(packed(header.value, *legal, *surplus), sender) == "arity"
    if legal:
        assert reason(packed(header.value, *legal[:-1]), sender) == "arity"


@pytest.mark.parametrize("number", [None, True, -1, 1.0, "1", [1], 2**63])
@pytest.mark.parametrize("header", [20, 23, 24, 25])
def test_rows_9_and_12_ids_are_natural_numbers(header: int, number: object) -> None:
    rest: tuple[Any, ...] = {20: ("p", {}), 24: ("p", {}, {}, [])}.get(header, ())
    assert reason(packed(header, number, *rest)) == "bad_field:id"


@pytest.mark.parametrize("prompt", [None, "", [], [True], [1, "a"], [1.5], [None], {}, 5, [1, [2]], [2**63], b"p"])
def test_row_9_prompts(prompt: object) -> None:
    assert reason(packed(20, 1, prompt, {})) == "bad_field:prompt"


def test_row_9_prompt_length() -> None:
    assert reason(packed(20, 1, [0] * 1_048_576, {})) == "accepted"
    assert reason(packed(20, 1, [0] * 1_048_577, {})) == "bad_field:prompt"
    assert reason(packed(20, 1, [-(2**63), 2**63 - 1], {})) == "accepted"


@pytest.mark.parametrize("sampling", [None, [], "x", 1, {b"k": 1}])
def test_row_9_sampling_is_a_map_with_string_keys(sampling: object) -> None:
    assert reason(packed(20, 1, "p", sampling)) == "bad_field:sampling"


def test_row_9_multimodal_kv_and_duplicates() -> None:
    assert reason(packed(20, 1, "p", {}, [])) == "bad_field:multimodal"
    assert reason(packed(24, 1, "p", {}, None, [])) == "bad_field:kv_meta"
    assert reason(packed(24, 1, "p", {}, {}, None)) == "bad_field:src_block_ids"
    assert reason(packed(24, 1, "p", {}, {}, [True])) == "bad_field:src_block_ids"
    assert reason(packed(20, 1, "p", {}), opened=1) == "duplicate_id"
    assert reason(packed(24, 1, "p", {}, {}, []), opened=1) == "duplicate_id"
    assert reason(packed(20, 1, "p", {}), opened=2) == "accepted"


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        ({"streaming_interval": 0}, "streaming_interval"),
        ({"streaming_interval": True}, "streaming_interval"),
        ({"streaming_interval": None}, "streaming_interval"),
        ({"streaming_interval": 1.0}, "streaming_interval"),
        ({"top_n_logprobs": -1}, "top_n_logprobs"),
        ({"top_n_logprobs": None}, "top_n_logprobs"),
        ({"top_n_logprobs": "5"}, "top_n_logprobs"),
        ({"return_prompt_top_n_logprobs": True, "skip_prompt_log_probs": True}, "return_prompt_top_n_logprobs"),
        ({"num_tokens_to_generate": -1}, "num_tokens_to_generate"),
        ({"num_tokens_to_generate": True}, "num_tokens_to_generate"),
        ({"num_tokens_to_generate": "9"}, "num_tokens_to_generate"),
        ({"__class__": 1}, "sampling"),
        ({"_sync_prompt_logprobs_fields": 1}, "sampling"),
        ({"serialize": 1}, "sampling"),
    ],
)
def test_row_10_poison_for_engines(sampling: dict[str, Any], field: str) -> None:
    assert reason(packed(20, 1, "p", sampling)) == f"bad_field:{field}"
    assert reason(packed(24, 1, "p", sampling, {}, [])) == f"bad_field:{field}"


def test_row_10_what_engines_take() -> None:
    fine = {
        "streaming_interval": 4,
        "top_n_logprobs": 0,
        "num_tokens_to_generate": None,
        "return_prompt_top_n_logprobs": True,
        "anything": {"else": [1, 2]},
        "temperature": 0.5,
    }
    assert reason(packed(20, 1, "p", fine)) == "accepted"
    assert reason(packed(20, 1, "p", {"num_tokens_to_generate": 0, "skip_prompt_log_probs": True})) == "accepted"


def test_row_11_items_are_a_list() -> None:
    for header in (21, 22):
        malformed: tuple[Any, ...] = (None, {}, "x", 5, True)
        for items in malformed:
            assert reason(packed(header, items), E) == "bad_item"


@pytest.mark.parametrize("epoch", [None, True, 1.5, "3", 2**63])
def test_row_12_epoch(epoch: object) -> None:
    assert reason(packed(44, epoch)) == "bad_field:epoch"


def test_the_first_failing_check_names_the_reason() -> None:
    # Wrong in sender, arity, id, prompt and sampling at once; each repair uncovers the next.
    rows = [
        (packed(20, None, None), E, "wrong_direction"),
        (packed(20, None, None), C, "arity"),
        (packed(20, None, None, None), C, "bad_field:id"),
        (packed(20, 7, None, None), C, "duplicate_id"),
        (packed(20, 1, None, None), C, "bad_field:prompt"),
        (packed(20, 1, "p", None), C, "bad_field:sampling"),
        (packed(20, 1, "p", {}, 1), C, "bad_field:multimodal"),
    ]
    for payload, sender, expected in rows:
        assert reason(payload, sender, opened=7) == expected


def test_a_refusal_names_the_request_it_may_answer() -> None:
    verdict = read([b"c", packed(20, 5, "", {})], C, lambda _: False)
    assert verdict == Refusal("bad_field:prompt", "SUBMIT_REQUEST", Header.SUBMIT_REQUEST, 5)
    for number in (True, -1, "5"):
        verdict = read([b"c", packed(20, number, "p", {})], C, lambda _: False)
        assert verdict == Refusal("bad_field:id", "SUBMIT_REQUEST", Header.SUBMIT_REQUEST, None)
