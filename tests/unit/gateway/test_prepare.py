"""What a request head means (request-path §9, table of request headers; §4 H20; scheduling §5.3)."""

from __future__ import annotations

import pytest

from turnout.gateway.prepare import Prepared
from turnout.http.head import Head


def prepared(**headers: bytes) -> Prepared:
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return Prepared(Head(b"POST", b"/v1/chat/completions", 1, named))


def test_what_nobody_knows_travels_verbatim_and_in_order() -> None:
    seen = prepared(anthropic_beta=b"a,b", host=b"x", idempotency_key=b"k", x_unknown=b"\xe9\t1", cookie=b"c")
    assert seen.forward == b"anthropic-beta: a,b\r\nidempotency-key: k\r\nx-unknown: \xe9\t1\r\n"


def test_what_connection_names_does_not_travel() -> None:
    assert (
        prepared(connection=b"close, X-Hop ,x-two", x_hop=b"1", x_two=b"2", x_three=b"3").forward == b"x-three: 3\r\n"
    )


@pytest.mark.parametrize(
    ("headers", "session", "fallback"),
    [
        ({"x_turnout_session": b"s"}, "s", None),
        ({"x_session_id": b"a", "thread_id": b"b"}, None, "a"),
        ({"thread_id": b"b", "session_id": b"c"}, None, "c"),
        ({"x_session_id": b"", "x_smg_routing_key": b"d"}, None, "d"),
        ({"x_turnout_session": b"s", "x_session_id": b"a"}, "s", "a"),
        ({}, None, None),
    ],
)
def test_sessions_are_looked_for_in_order(headers: dict[str, bytes], session: str | None, fallback: str | None) -> None:
    seen = prepared(**headers)
    assert (seen.session, seen.session_fallback) == (session, fallback)


@pytest.mark.parametrize(("value", "seconds"), [(b"1", 0.001), (b"250", 0.25), (b"600000", 600.0), (b"000100", 0.1)])
def test_a_timeout_is_read_in_milliseconds(value: bytes, seconds: float) -> None:
    seen = prepared(x_turnout_timeout_ms=value)
    assert (seen.refusal, seen.timeout_s) == (None, seconds)


BAD = [
    b"0",
    b"600001",
    b"-1",
    b"+1",
    b"1.5",
    b"1e3",
    b"0x10",
    b"1_000",
    "٣".encode(),
    b"NaN",
    b"Infinity",
    b"",
    b"10s",
    b" 1 2",
    b"9" * 10,
]


@pytest.mark.parametrize("value", BAD)
def test_a_timeout_has_a_strict_grammar(value: bytes) -> None:
    seen = prepared(x_turnout_timeout_ms=value)
    assert seen.refusal is not None
    assert (seen.refusal.status, seen.refusal.param, seen.timeout_s) == (400, "x-turnout-timeout-ms", None)
    assert len(seen.refusal.message) < 200


@pytest.mark.parametrize(
    "name", ["decision", "model", "endpoint", "attempts", "fallback-from", "cache", "overhead-ms", "ttft-ms", "advice", "tenant", "key"]
)  # fmt: skip
def test_client_copies_of_our_headers_are_ignored_and_removed(name: str) -> None:
    seen = prepared(**{f"x_turnout_{name.replace('-', '_')}": b"fake"})
    assert (seen.refusal, seen.forward) == (None, b"")


@pytest.mark.parametrize(
    ("name", "value"),
    [("x_turnout_hedge", b"maybe"), ("x_turnout_stream_safety", b"nonsense"), ("x_turnout_priority", b"HIGH"), ("x_turnout_typo", b"1")],
)  # fmt: skip
def test_J10_a_control_that_is_not_honoured_is_refused_by_name(name: str, value: bytes) -> None:
    refusal = prepared(**{name: value}).refusal
    assert refusal is not None
    assert refusal.param == name.replace("_", "-")


@pytest.mark.parametrize("value", [b"r", b"A.b-c_9", b"r" * 128])
def test_a_client_s_request_id_is_taken_when_it_can_be_shown(value: bytes) -> None:
    assert prepared(x_request_id=value).client_id == value


@pytest.mark.parametrize("value", [b"", b"r" * 129, b"a b", b"a/b", b"a\tb", b"\xe9", b"a;b", b'"a"'])
def test_another_request_id_is_as_none(value: bytes) -> None:
    seen = prepared(x_request_id=value)
    assert (seen.client_id, seen.forward) == (b"", b"")
