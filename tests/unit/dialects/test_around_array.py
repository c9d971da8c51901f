"""A chat whose messages are cut out of the body means the same as one that is read member by member."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.core.request import Request
from turnout.core.types import Refusal
from turnout.dialects import openai
from turnout.dialects.openai import CHAT, decode
from turnout.dialects.strict_json import DuplicateMember, InvalidJSON, around_array, members

A, B = '[{"role":"user","content":"a"}]', '[{"role":"user","content":"b]"}]'


@pytest.mark.parametrize(
    "body",
    [
        f'{{"model":"m","messages":{A},"messages":{B}}}',
        f'{{"model":"m","messages":{A},"m\\u0065ssages":{B}}}',
        f'{{"messages":{A},"model":"x","messages":{B},"model":"y"}}',
        f'{{"messages":{A},"model":"m","model":"n"}}',
        f'{{"messages":{A},"model":"m","user":"x","user":"a]"}}',
        f'{{"messages":{A},"stop":["a"],"model":"m","seed":1,"seed":2,"x":[]}}',
    ],
)
def test_no_key_stands_twice_unseen(body: str) -> None:
    found = decode(CHAT, body.encode(), 64)
    assert isinstance(found, Refusal)
    assert "the key stands twice" in found.message


@pytest.mark.parametrize(
    "body",
    [
        f'{{"model":"m","messages":{A},"user":"]"}}',
        f'{{"user":"messages","model":"m","messages":{A}}}',
        f'{{"metadata":{{"messages":[1]}},"model":"m","messages":{A}}}',
        f'{{"model":"m","messages" : {A} , "stop":["]"]}}',
        f'{{"model":"m","messages":{A},"top_k":[[]]}}',
    ],
)
def test_what_cannot_be_cut_simply_is_read_all_the_same(body: str) -> None:
    found = decode(CHAT, body.encode(), 64)
    assert isinstance(found, Request)
    assert found.prompt.rendered == b"\xffuser\xfea"


@pytest.mark.parametrize(
    "body",
    [
        f'{{"model":"m","x":{{"messages":{A}}}}}',
        f'{{"x":{{"messages":{A}}},"messages":null,"model":"m"}}',
        '{"model":"m","messages":0}',
        '{"model":"m","messages":[}',
        f'{{"model":"m","messages":{A}}} ]',
        f'{{"model":"m","messages":{A}]}}',
        f'{{"model":"m","messages"{A}}}',
    ],
)
def test_what_has_no_messages_is_refused(body: str) -> None:
    assert isinstance(decode(CHAT, body.encode(), 64), Refusal)


def test_the_cut_keeps_the_rest_to_the_byte() -> None:
    assert around_array(b'{"a":1, "messages" :[ 1 ], "b":2}', b'"messages"', 64) == (
        b'{"a":1, "messages" :0, "b":2}',
        b"[ 1 ]",
    )


_TEXT = st.text(st.sampled_from('ab"\\]}[{:,\u00e9 '), max_size=6)
_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | _TEXT, lambda inner: st.lists(inner, max_size=2), max_leaves=4
)
_MESSAGES = st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": _TEXT, "x": _VALUE}), max_size=2)
_MEMBER = st.one_of(
    st.tuples(st.just("messages"), _MESSAGES),
    st.tuples(st.just("model"), st.just("m")),
    st.tuples(st.sampled_from(["seed", "user", "stream", "stop", "]", "messages ", "tools"]), _VALUE),
)


def fields(request: object) -> dict[str, object]:
    """Return what a request says, its prompt as a part of it."""
    named = {name: getattr(request, name) for name in dir(request) if not name.startswith("_")}
    return named | ({"prompt": fields(named["prompt"])} if "prompt" in named else {})


@given(st.lists(_MEMBER, max_size=5))
def test_both_ways_agree(pairs: list[tuple[str, object]]) -> None:
    text = b",".join(msgspec.json.encode(key) + b":" + msgspec.json.encode(value) for key, value in pairs)
    body = b"{" + text + b"}"
    seen = decode(CHAT, body, 64)
    try:
        expected: object = openai._careful(CHAT, members(body, 64), body, "")
    except (InvalidJSON, DuplicateMember, ValueError):
        expected = None
    if expected is None:
        assert isinstance(seen, Refusal)
    else:
        assert fields(seen) == fields(expected)


def test_the_same_parameters_mean_the_same_whatever_the_messages() -> None:
    for text in ("a", "b", '[\\"]'):
        body = (
            f'{{"model":"m1","seed":4,"max_tokens":9,"messages":[{{"role":"user","content":"{text}"}}],"stream":true}}'
        )
        found = decode(CHAT, body.encode(), 64)
        assert isinstance(found, Request)
        assert (found.model, found.stream, found.max_tokens, found.repeatable) == ("m1", True, 9, True)
        assert found.prompt.rendered == b"\xffuser\xfe" + text.replace("\\", "").encode()
        assert found.body == body.encode()
    assert isinstance(decode(CHAT, b'{"model":"m1","seed":4,"max_tokens":9,"messages":[1],"stream":true}', 64), Refusal)


def test_remembered_parameters_are_few_short_and_nobodys_name() -> None:
    for number in range(3_000):
        decode(CHAT, b'{"model":"m","seed":%d,"messages":%b}' % (number, A.encode()), 64)
    decode(CHAT, b'{"model":"m","user":"somebody","messages":%b}' % A.encode(), 64)
    decode(CHAT, b'{"model":"m","x":"%b","messages":%b}' % (b"x" * 600, A.encode()), 64)
    kept = openai._ASKED
    assert 0 < len(kept) <= 1024
    assert not any(b"somebody" in outer or len(outer) > 512 for outer in kept)
