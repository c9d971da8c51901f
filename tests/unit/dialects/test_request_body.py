"""What a body may be and which fields are checked (request-path §4): the `Request`, or a refusal that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from turnout.core.request import Request
from turnout.core.types import Refusal
from turnout.dialects.openai import CHAT, COMPLETIONS, EMBEDDINGS, decode

DEPTH = 64
MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'


def body(*members: bytes) -> bytes:
    return b'{"model":"m",' + b",".join((MESSAGES, *members)) + b"}"


def accepted(raw: bytes, path: bytes = CHAT, default: str = "") -> Request:
    request = decode(path, raw, DEPTH, default)
    assert isinstance(request, Request), request
    return request


def refused(raw: bytes, code: str, param: str | None = None, path: bytes = CHAT) -> Refusal:
    refusal = decode(path, raw, DEPTH)
    assert isinstance(refusal, Refusal), refusal
    assert (refusal.status, refusal.code, refusal.param) == (400, code, param), refusal
    return refusal


NOT_ONE_OBJECT = {
    "empty": b"",
    "blank": b" \r\n\t",
    "null": b"null",
    "number": b"1",
    "string": b'"model"',
    "array": b"[]",
    "array of an object": b"[" + body() + b"]",
    "trailing byte": body() + b"x",
    "second object": body() + body(),
    "trailing comma": b'{"model":"m",}',
    "BOM": b"\xef\xbb\xbf" + body(),
    "UTF-16": body().decode().encode("utf-16"),
    "UTF-16 without BOM": body().decode().encode("utf-16-le"),
    "control character": body(b'"x":"a\nb"'),
    "NUL character": body(b'"x":"a\x00b"'),
    "control between": b"\x0c" + body(),
    "NUL at the end": body() + b"\x00",
    "single quotes": b"{'model':'m'}",
    "comment": b"{/**/}",
    "unclosed": body()[:-1],
    "invalid UTF-8 in a decoded part": body(b'"user":"\xff"'),
    "invalid UTF-8 in a part not decoded": body(b'"metadata":{"a":["\xc3\x28"]}'),
    "overlong UTF-8": body(b'"metadata":"\xc0\xaf"'),
    "UTF-8 surrogate": body(b'"metadata":"\xed\xa0\x80"'),
    "invalid UTF-8 in a key": body(b'"\xff":1'),
    "bad escape": body(b'"x":"\\q"'),
    "bad number": body(b'"x":01'),
    "plus": body(b'"x":+1'),
    "bare point": body(b'"x":.5'),
}


@pytest.mark.parametrize("raw", NOT_ONE_OBJECT.values(), ids=NOT_ONE_OBJECT)
def test_J1_a_body_is_one_json_object_in_utf_8(raw: bytes) -> None:
    refused(raw, "invalid_json")


def test_J1_the_message_has_an_offset_and_no_content() -> None:
    secret = b"my secret prompt"
    message = refused(body(b'"metadata":"' + secret + b'\xff"'), "invalid_json").message
    assert "byte" in message
    assert "secret" not in message
    message = refused(body(b'"metadata":"' + secret + b'" "'), "invalid_json").message
    assert "secret" not in message


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"-Infinity", b"nan", b"inf"])
@pytest.mark.parametrize("member", [b'"temperature":%b', b'"metadata":{"deep":[%b]}', b'"seed":%b'])
def test_J2_nan_and_infinity_are_refused_anywhere(text: bytes, member: bytes) -> None:
    refused(body(member % text), "invalid_json")


HUGE = [b"1e400", b"-1e400", b"9" * 5000, b"1" + b"0" * 400 + b".0"]


@pytest.mark.parametrize("text", HUGE)
@pytest.mark.parametrize("field", ["temperature", "top_p", "seed", "max_tokens", "n"])
def test_J2_numbers_out_of_range_are_refused_where_they_are_read(text: bytes, field: str) -> None:
    refused(body(b'"%b":%b' % (field.encode(), text)), "invalid_request", field)


@pytest.mark.parametrize("text", HUGE)
def test_J2_numbers_out_of_range_travel_untouched_elsewhere(text: bytes) -> None:
    raw = body(b'"metadata":{"big":%b}' % text)
    assert accepted(raw).body == raw


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (body(b'"model":"m"'), "model"),
        (body(b'"\\u006dodel":"other"'), "model"),
        (body(b'"mod\\u0065l":"other"'), "model"),
        (body(b'"stream":true', b'"stream":true'), "stream"),
        (body(b'"unknown":1', b'"unknown":2'), "unknown"),
        (body(b'"\xc3\xa9":1', b'"\\u00e9":2'), "é"),
        (body(b'"\xf0\x9f\x98\x80":1', b'"\\ud83d\\ude00":2'), "😀"),
        (body(b'"a\\/b":1', b'"a/b":2'), "a/b"),
        (body(b'"":1', b'"":2'), ""),
        (body(b'"x":"\\"model\\":1"', b'"model":"z"'), "model"),
        (body(b'"stream_options":{"include_usage":true,"include_usage":false}'), "stream_options.include_usage"),
        (body(b'"stream_options":{"a":1,"\\u0061":2}'), "stream_options.a"),
    ],
)
def test_J3_the_same_key_twice_is_refused_by_name(raw: bytes, param: str) -> None:
    refused(raw, "invalid_request", param)


def test_J3_the_same_control_twice_is_refused() -> None:
    assert isinstance(decode(CHAT, body(b'"turnout":{"a":1,"a":2}'), DEPTH), Refusal)


@pytest.mark.parametrize(
    "member",
    [
        b'"metadata":{"a":1,"a":2}',
        b'"tools":[{"a":1,"a":2}]',
        b'"x":"\\"model\\":1, \\"model\\":2"',
        b'"x":{"model":"y"}',
        b'"x":"\\\\"',
        b'"x":["\\"",{"]":"}"}]',
    ],
)
def test_J3_deeper_duplicates_and_quoted_keys_travel_untouched(member: bytes) -> None:
    raw = body(member)
    assert accepted(raw).body == raw


LONE = [
    b"\\ud800",
    b"\\udc00",
    b"\\udfff",
    b"\\udbff",
    b"\\uDC00\\uD800",
    b"\\ud800\\ud800\\udc00",
    b"\\ud800x",
    b"\\ud800\\n",
    b"a\\uD83D",
    b"\\ud83d\\\\ude00",
]


@pytest.mark.parametrize("escape", LONE)
@pytest.mark.parametrize("member", [b'"user":"%b"', b'"metadata":{"deep":["%b"]}', b'"%b":1'])
def test_J4_lone_surrogate_escapes_are_refused_anywhere(escape: bytes, member: bytes) -> None:
    refused(body(member % escape), "invalid_json")


@pytest.mark.parametrize(
    "escape", [b"\\ud83d\\ude00", b"\\uD83D\\uDE00", b"\\\\ud800", b"\\\\\\\\udc00", b"\\ud7ff\\ue000"]
)
def test_J4_pairs_and_escaped_backslashes_are_no_lone_surrogates(escape: bytes) -> None:
    accepted(body(b'"metadata":"' + escape + b'"'))


def test_J4_nul_is_legal_in_content_only() -> None:
    accepted(b'{"model":"m","messages":[{"role":"user","content":"a\\u0000b"}]}')
    refused(b'{"model":"m\\u0000",' + MESSAGES + b"}", "invalid_request", "model")
    for field in ("user", "session_id", "prompt_cache_key"):
        refused(body(b'"%b":"a\\u0000"' % field.encode()), "invalid_request", field)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_L3_depth_64_passes_and_65_does_not(opening: bytes, closing: bytes) -> None:
    def nested(depth: int) -> bytes:
        return body(b'"metadata":' + opening * depth + b"1" + closing * depth)

    accepted(nested(63))
    refused(nested(64), "invalid_json")


def test_L3_depth_counts_inside_parts_that_are_read() -> None:
    deep = b"[" * 62 + b"]" * 62
    refused(b'{"model":"m","messages":[{"role":"user","content":[{"type":"x","y":' + deep + b"}]}]}", "invalid_json")


def test_L3_brackets_in_strings_are_no_depth() -> None:
    accepted(body(b'"x":"' + b"[{" * 500 + b'\\"[["'))


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"{" * 65,
        b"]" * 70 + b"[",
    ],
)
def test_J5_depth_is_found_without_the_stack(raw: bytes) -> None:
    refused(raw, "invalid_json")


def test_J6_unknown_fields_and_values_only_the_engine_knows_travel() -> None:
    raw = body(b'"temperature":3', b'"top_k":-7', b'"logit_bias":{"50256":-100}', b'"guided_json":{"type":"object"}')
    assert accepted(raw).body == raw


@pytest.mark.parametrize(
    ("member", "param"),
    [
        (b'"stream":"true"', "stream"), (b'"stream":1', "stream"), (b'"stream":[]', "stream"),
        (b'"stream_options":{"include_usage":1}', "stream_options.include_usage"), (b'"stream_options":[]', "stream_options"),
        (b'"stream_options":true', "stream_options"),
        (b'"max_tokens":true', "max_tokens"), (b'"max_tokens":"5"', "max_tokens"), (b'"max_tokens":1.5', "max_tokens"),
        (b'"max_tokens":-1', "max_tokens"), (b'"max_tokens":2147483648', "max_tokens"), (b'"max_tokens":[]', "max_tokens"),
        (b'"max_completion_tokens":-1', "max_completion_tokens"), (b'"max_completion_tokens":false', "max_completion_tokens"),
        (b'"n":0', "n"), (b'"n":129', "n"), (b'"n":true', "n"), (b'"n":-0', "n"),
        (b'"seed":true', "seed"), (b'"seed":1.5', "seed"), (b'"seed":18446744073709551616', "seed"), (b'"seed":-9223372036854775809', "seed"),
        (b'"temperature":true', "temperature"), (b'"temperature":"1"', "temperature"), (b'"temperature":[]', "temperature"),
        (b'"top_p":false', "top_p"), (b'"top_p":{}', "top_p"),
        (b'"tools":{}', "tools"), (b'"tools":"x"', "tools"), (b'"tools":true', "tools"),
        (b'"user":1', "user"), (b'"user":{}', "user"), (b'"prompt_cache_key":[]', "prompt_cache_key"),
        (b'"turnout":[]', "turnout"), (b'"turnout":{"unheard":1}', "turnout.unheard"),
    ],
)  # fmt: skip
def test_J7_fields_that_are_read_have_exactly_their_type(member: bytes, param: str) -> None:
    refused(body(member), "invalid_request", param)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"5", 5),
        (b"1.0", 1),
        (b"1e3", 1000),
        (b"0", 0),
        (b"2147483647", 2**31 - 1),
        (b"10E-1", 1),
        (b"null", None),
        (b"-0", 0),
        (b"-0.0", 0),
    ],
)
def test_J7_integral_numbers_are_integers(text: bytes, value: int | None) -> None:
    assert accepted(body(b'"max_tokens":' + text)).max_tokens == value


@pytest.mark.parametrize(
    "text", [b"9223372036854775807", b"-9223372036854775808", b"18446744073709551615", b"1e3", b"0"]
)
def test_J7_a_seed_has_64_bits(text: bytes) -> None:
    accepted(body(b'"seed":' + text))


def test_J7_null_in_an_optional_field_means_absent() -> None:
    fields = (
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "seed",
        "temperature",
        "top_p",
        "tools",
        "user",
        "prompt_cache_key",
        "session_id",
        "turnout",
    )
    request = accepted(body(*(b'"%b":null' % field.encode() for field in fields)))
    assert (request.stream, request.max_tokens, request.n, request.user, request.tools_requested) == (
        False,
        None,
        1,
        None,
        False,
    )


def test_J8_the_error_names_path_value_and_expectation() -> None:
    raw = b'{"model":"m","messages":[{"role":"user","content":"a"},{"role":"user","content":"b"},{"role":7,"content":"c"}]}'
    refusal = refused(raw, "invalid_request", "messages[2].role")
    assert "messages[2].role" in refusal.message
    assert "7" in refusal.message or "int" in refusal.message


def test_J8_the_value_seen_is_escaped_and_short() -> None:
    refusal = refused(body(b'"max_tokens":"' + b"\\n\xc3\xa9" * 100 + b'"'), "invalid_request", "max_tokens")
    assert refusal.message.partition("got ")[2].isascii()
    assert len(refusal.message) < 200


STEERING = [
    "kv_transfer_params",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "routed_dp_rank",
    "disagg_prefill_dp_rank",
    "data_parallel_rank",
]


@pytest.mark.parametrize("field", STEERING)
@pytest.mark.parametrize("value", [b"null", b"{}", b'"x"'])
def test_J9_steering_fields_of_engines_are_refused(field: str, value: bytes) -> None:
    refused(body(b'"%b":%b' % (field.encode(), value)), "forbidden_field", field)


@pytest.mark.parametrize("field", ["\\u006bv_transfer_params", "bootstrap\\u005fhost"])
def test_J9_an_escape_does_not_hide_a_steering_field(field: str) -> None:
    plain = json.loads(f'"{field}"')
    refused(body(b'"%b":1' % field.encode()), "forbidden_field", plain)


MODEL_FIELDS: list[tuple[bytes, str]] = [(b"", "missing_model_field"), (b'"model":null,', "missing_model_field"), (b'"model":"",', "missing_model_field"),
    (b'"model":1,', "invalid_request"), (b'"model":["m"],', "invalid_request"), (b'"model":"' + b"a" * 257 + b'",', "invalid_request"),
    (b'"model":"' + "é".encode() * 129 + b'",', "invalid_request")]  # fmt: skip


@pytest.mark.parametrize(("member", "code"), MODEL_FIELDS)
def test_M5_L11_a_model_is_a_string_of_1_to_256_bytes(member: bytes, code: str) -> None:
    refused(b"{" + member + MESSAGES + b"}", code, "model")


def test_M5_the_default_serves_a_request_that_names_no_model() -> None:
    for member in (b"", b'"model":null,', b'"model":"",'):
        assert accepted(b"{" + member + MESSAGES + b"}", default="d").model == "d"
    assert accepted(body(), default="d").model == "m"


def test_L11_a_model_of_256_bytes_passes() -> None:
    assert accepted(b'{"model":"' + b"a" * 256 + b'",' + MESSAGES + b"}").model == "a" * 256


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"), ([], "messages"), ({}, "messages"), ("hi", "messages"), ([1], "messages[0]"), (["hi"], "messages[0]"),
        ([{}], "messages[0].role"), ([{"role": None}], "messages[0].role"), ([{"role": 1}], "messages[0].role"),
        ([{"role": "user", "content": 1}], "messages[0].content"), ([{"role": "user", "content": {}}], "messages[0].content"),
        ([{"role": "user", "content": True}], "messages[0].content"), ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "x"}, 3]}], "messages[1].content[1]"),
    ],
)  # fmt: skip
def test_messages_are_a_non_empty_array_of_objects_with_roles(messages: Any, param: str) -> None:
    raw = json.dumps({"model": "m", **({} if messages is None else {"messages": messages})}).encode()
    refused(raw, "invalid_request", param)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user"}, {"role": "user", "content": None}, {"role": "user", "content": ""}, {"role": "user", "content": []},
        {"role": "weird"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}, {"role": "user", "content": [{"type": "new", "odd": [1]}]},
        {"role": "tool", "content": "x", "tool_call_id": "a"}, {"role": "user", "content": "x", "name": "n", "unknown": {"deep": 1}},
    ],
)  # fmt: skip
def test_messages_of_every_legal_shape_pass(message: Any) -> None:
    accepted(json.dumps({"model": "m", "messages": [message]}).encode())


@pytest.mark.parametrize(
    "message",
    [
        # the engine's business: nothing of it is needed for routing, so a strange shape must not be refused here (J6)
        {"role": "user", "content": "x", "name": 5}, {"role": "assistant", "tool_calls": "x"}, {"role": "assistant", "tool_calls": [1]},
        {"role": "assistant", "tool_calls": [{"function": {"name": None, "arguments": {"a": 1}}}]},
        {"role": "user", "content": [{"type": "text", "text": 5}]}, {"role": "user", "content": [{"type": 5}]},
        {"role": "assistant", "tool_calls": None}, {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "n", "input": "i"}}]},
    ],
)  # fmt: skip
def test_J6_members_of_messages_that_are_no_listed_field_are_not_checked(message: Any) -> None:
    accepted(json.dumps({"model": "m", "messages": [message]}).encode())


@pytest.mark.parametrize(
    "prompt", [None, "", [], {}, 1, True, [True], [1.5], ["a", 1], [["a"]], [-1], [2**31], [[2**31]], [[1], 2], [None]]
)
def test_prompt_of_completions_has_one_of_four_shapes(prompt: Any) -> None:
    raw = json.dumps({"model": "m", **({} if prompt is None else {"prompt": prompt})}).encode()
    refusal = decode(COMPLETIONS, raw, DEPTH)
    assert isinstance(refusal, Refusal), refusal
    assert (refusal.code, (refusal.param or "")[:6]) == ("invalid_request", "prompt")


@pytest.mark.parametrize("prompt", ["a", ["a"], ["a", "b"], [1, 2], [[1], [2, 3]], [0], [2**31 - 1]])
def test_prompt_of_completions_passes(prompt: Any) -> None:
    accepted(json.dumps({"model": "m", "prompt": prompt}).encode(), COMPLETIONS)


@pytest.mark.parametrize(
    ("value", "good"),
    [("a", True), (["a"], True), ([1], True), ([[1]], True), (None, False), ([], False), (1, False), ({}, False)],
)
def test_input_of_embeddings(value: Any, good: bool) -> None:  # noqa: FBT001 - a column
    raw = json.dumps({"model": "m", "input": value}).encode()
    assert isinstance(decode(EMBEDDINGS, raw, DEPTH), Request if good else Refusal)


@pytest.mark.parametrize(
    "member",
    [b'"tools":[{"x":%b}]', b'"functions":[{"x":%b}]', b'"chat_template_kwargs":{"x":%b}', b'"reasoning_effort":%b'],
)
@pytest.mark.parametrize("text", HUGE)
def test_J2_numbers_out_of_range_in_hashed_members_are_no_fault_of_ours(member: bytes, text: bytes) -> None:
    raw = body(member % text)
    assert accepted(raw).body == raw
