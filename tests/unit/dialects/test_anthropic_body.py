"""Bodies of the Anthropic dialect: what is read, what is refused, and what it means to routing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from turnout.core.request import Prompt, Request
from turnout.core.types import Refusal
from turnout.dialects.anthropic import COUNT_TOKENS, MESSAGES, decode
from turnout.dialects.openai import CHAT
from turnout.dialects.openai import decode as decode_openai
from turnout.dialects.splice import upstream_body

ASK: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}


def body(**members: Any) -> bytes:
    return json.dumps({**ASK, **members}, separators=(",", ":")).encode()


def read(**members: Any) -> Request:
    request = decode(MESSAGES, body(**members), 64)
    assert isinstance(request, Request), request
    return request


def refused(raw: bytes, path: bytes = MESSAGES) -> Refusal:
    refusal = decode(path, raw, 64)
    assert isinstance(refusal, Refusal), refusal
    return refusal


def rendered(*messages: dict[str, Any], **members: Any) -> bytes:
    return read(messages=list(messages), **members).prompt.rendered


def through_the_other_door(**members: Any) -> Prompt:
    request = decode_openai(CHAT, json.dumps({"model": "m", **members}, separators=(",", ":")).encode(), 64)
    assert isinstance(request, Request), request
    return request.prompt


def test_what_routing_needs_is_read_and_the_bytes_are_kept() -> None:
    raw = body(stream=True, metadata={"user_id": "someone"}, temperature=0.5, odd=[1e300])
    request = decode(MESSAGES, raw, 64)
    assert isinstance(request, Request)
    assert request.body is raw
    told = (request.dialect, request.path, request.model, request.stream, request.max_tokens, request.n)
    assert told == ("anthropic", "/v1/messages", "m", True, 5, 1)
    assert (request.user, request.session) == ("someone", "someone")
    assert [request.tools_requested, request.has_controls, request.model_defaulted] == [False] * 3


def test_nothing_is_spliced_for_usage_and_the_model_is() -> None:
    request = read(stream=True)
    assert upstream_body(request, "m", ask_usage=True) is request.body
    assert json.loads(upstream_body(request, "tiny", ask_usage=True)) == {**ASK, "model": "tiny", "stream": True}


def test_controls_are_read_and_taken_out() -> None:
    request = read(turnout={"bundle_version": "b1"})
    assert request.has_controls
    assert json.loads(upstream_body(request, "m", ask_usage=True)) == ASK


def test_the_same_conversation_has_the_same_records_through_any_door() -> None:
    schema = {"type": "object", "properties": {"track": {"type": "integer"}}}
    ours = read(
        system="You are Turnout.",
        tools=[{"name": "set", "description": "Sets.", "input_schema": schema, "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "Let me."},
                    {"type": "tool_use", "id": "t1", "name": "set", "input": {"track": 2}},
                    {"type": "tool_use", "id": "t2", "name": "set", "input": {"track": 3}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "done"},
                    {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "done, too"}]},
                    {"type": "text", "text": "and now?"},
                ],
            },
        ],
    ).prompt
    call: Any = lambda track: {"function": {"name": "set", "arguments": f'{{"track":{track}}}'}}  # noqa: E731
    theirs = through_the_other_door(
        tools=[{"type": "function", "function": {"name": "set", "description": "Sets.", "parameters": schema}}],
        messages=[
            {"role": "system", "content": "You are Turnout."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "Let me.", "tool_calls": [call(2), call(3)]},
            {"role": "tool", "content": "done"},
            {"role": "tool", "content": "done, too"},
            {"role": "user", "content": "and now?"},
        ],
    )
    assert ours.rendered == theirs.rendered


def test_a_golden_rendering_of_scheduling_1_2() -> None:
    text = rendered({"role": "user", "content": "a" * 600}, system="You are Turnout.")
    assert text == b"\xffsystem\xfeYou are Turnout.\xffuser\xfe" + b"a" * 600
    assert len(text) == 630


def test_rendering_stops_before_the_first_part_that_is_not_text() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}
    before, after = {"type": "text", "text": "look"}, {"type": "text", "text": "well?"}
    text = rendered({"role": "user", "content": [before, image, after]}, {"role": "user", "content": "hello"})
    assert text == b"\xffuser\xfelook"
    inside = rendered({"role": "user", "content": [{"type": "tool_result", "content": [before, image, after]}]})
    assert inside == b"\xfftool\xfelook"


def test_the_attribution_line_that_engines_take_out_is_in_no_key() -> None:
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=00a1;"},
        {"type": "text", "text": "You are a coding agent."},
    ]
    text = rendered({"role": "user", "content": "hi"}, system=system)
    assert text == b"\xffsystem\xfeYou are a coding agent.\xffuser\xfehi"


def test_shapes_of_an_engine_s_own_pass_and_end_the_rendering() -> None:
    odd = {"role": "user", "content": [{"type": "web_search_tool_result", "content": {"error": 1}}, {"type": 5}, {}]}
    assert rendered({"role": "user", "content": "a"}, odd) == b"\xffuser\xfea\xffuser"


def test_tools_of_the_engine_s_own_stay_as_they_are() -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]
    assert rendered({"role": "user", "content": "a"}, tools=tools).startswith(
        b'\xfb[{"type":"web_search_20250305","name":"web_search","max_uses":5}]\xffuser'
    )


@pytest.mark.parametrize(
    ("members", "units", "messages"),
    [
        ({"messages": [{"role": "user", "content": "a" * 400}]}, 400, 1),
        ({"messages": [{"role": "user", "content": "你" * 400}]}, 800, 1),
        ({"system": "abcd"}, 6, 2),
        ({"system": [{"type": "text", "text": "abcd"}]}, 6, 2),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "abcd"}, {"type": "image"}, {"type": "text", "text": "ef"}]}]}, 6, 1),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "abc"}]}]}]}, 3, 1),
        ({"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "abc"}]}]}, 0, 1),
        ({"messages": [{"role": "user"}]}, 0, 1),
    ],
)  # fmt: skip
def test_counting(members: dict[str, Any], units: int, messages: int) -> None:
    prompt = read(**members).prompt
    assert (prompt.units, prompt.messages) == (units, messages)


def test_tools_count_as_they_were_sent() -> None:
    tools = [{"name": "a", "input_schema": {}}]
    assert read(tools=tools).prompt.tools_bytes == len(json.dumps(tools, separators=(",", ":")))
    assert read(tools=tools).tools_requested
    assert not read(tools=[]).tools_requested


def test_counting_tokens_warms_no_cache_and_is_never_too_long() -> None:
    request = decode(COUNT_TOKENS, body(stream=True), 64)
    assert isinstance(request, Request)
    assert (request.prompt.rendered, request.prompt.units) == (b"", 0)
    assert not request.stream


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"metadata": {"user_id": "u", "session_id": "s"}}, ("u", "s")),
        ({"metadata": {"user_id": "u"}, "session_id": "top"}, ("u", "top")),
        ({"metadata": {"user_id": "u" * 600}}, ("u" * 512, "u" * 512)),
        ({"metadata": {"user_id": 5}}, (None, None)),
        ({"metadata": "odd"}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_session_and_user(members: dict[str, Any], expected: tuple[str | None, str | None]) -> None:
    request = read(**members)
    assert (request.user, request.session) == expected


@pytest.mark.parametrize("where", ["last", "first", "between"])
def test_members_around_the_messages_are_read_wherever_they_stand(where: str) -> None:
    messages = b'"messages":[{"role":"user","content":"hi ] there"}]'
    others = b'"model":"m","tools":[{"name":"a","input_schema":{}}],"max_tokens":7'
    raw = {
        "last": b"{" + others + b"," + messages + b"}",
        "first": b"{" + messages + b"," + others + b"}",
        "between": b'{"stream":true,' + messages + b"," + others + b"}",
    }[where]
    request = decode(MESSAGES, raw, 64)
    assert isinstance(request, Request)
    assert (request.max_tokens, request.tools_requested) == (7, True)
    assert request.prompt.rendered.endswith(b"\xffuser\xfehi ] there")


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b"", "invalid_json", None), (b"[]", "invalid_json", None), (b"{", "invalid_json", None), (b"\xef\xbb\xbf{}", "invalid_json", None),
        (body(odd="\ud800"), "invalid_json", None), (body()[:-1] + b',"odd":"\xff"}', "invalid_json", None), (body()[:-1] + b',"odd":NaN}', "invalid_json", None),
        (body()[:-1] + b',"odd":' + b"[" * 64 + b"]" * 64 + b"}", "invalid_json", None),
        (body()[:-1] + b',"model":"n"}', "invalid_request", "model"), (body()[:-1] + b',"mess\\u0061ges":[]}', "invalid_request", "messages"),
        (body(model=None), "missing_model_field", "model"), (body(model=""), "missing_model_field", "model"), (body(model=5), "invalid_request", "model"),
        (body(model="x" * 257), "invalid_request", "model"), (body(model="a\0"), "invalid_request", "model"),
        (body(messages=[]), "invalid_request", "messages"), (body(messages=None), "invalid_request", "messages"), (b'{"model":"m"}', "invalid_request", "messages"),
        (body(messages=[{"content": "a"}]), "invalid_request", "messages[0].role"), (body(messages=[{"role": "user", "content": 5}]), "invalid_request", "messages[0].content"),
        (body(system=5), "invalid_request", "system"), (body(stream="true"), "invalid_request", "stream"), (body(max_tokens="5"), "invalid_request", "max_tokens"),
        (body(max_tokens=True), "invalid_request", "max_tokens"), (body(max_tokens=-1), "invalid_request", "max_tokens"), (body(tools={}), "invalid_request", "tools"),
        (body(temperature="hot"), "invalid_request", "temperature"), (body(turnout={"odd": 1}), "invalid_request", "turnout.odd"),
        (body(kv_transfer_params={}), "forbidden_field", "kv_transfer_params"), (body(metadata={"user_id": "a\0"}), "invalid_request", "metadata.user_id"),
        (body(session_id="s" * 513), "invalid_request", "session_id"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(raw: bytes, code: str, param: str | None) -> None:
    for path in (MESSAGES, COUNT_TOKENS):
        refusal = refused(raw, path)
        assert (refusal.status, refusal.code, refusal.param) == (400, code, param)


def test_a_default_model_is_used_when_the_body_names_none() -> None:
    request = decode(MESSAGES, body(model=None), 64, "usual")
    assert isinstance(request, Request)
    assert (request.model, request.model_defaulted) == ("usual", True)
