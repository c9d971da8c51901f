"""What an engine's refusal means (resilience §2) and how long it asks to be left alone (Y1)."""

from __future__ import annotations

import email.utils
import json

import pytest

from turnout.core.errors import ErrorKind
from turnout.dialects.openai_answer import classify, estimated_tokens, retry_after_s

NOW_S = 1_700_000_000.0


def error(message: str, **members: object) -> bytes:
    return json.dumps({"error": {"message": message, **members}}).encode()


OVERFLOWS = [
    error("x", code="context_length_exceeded"),
    error("This model's maximum context length is 4096 tokens."),
    error("The request exceeds the context window of 8192"),
    error("Please REDUCE THE LENGTH OF THE MESSAGES"),
    error("prompt is too long: 210000 tokens > 200000 maximum"),
]
NO_OVERFLOWS = [
    error("max_tokens is too large: 9000. This model supports at most 4096 completion tokens."),
    error("max_tokens must be at least 1, got 0", param="max_tokens"),
    error("`max_tokens` and `max_completion_tokens` cannot both be set"),
    error("max_completion_tokens: expected an integer"),
    error("the output would be too long"),
    error("context is not allowed here"),
]


@pytest.mark.parametrize("body", OVERFLOWS)
@pytest.mark.parametrize("status", [400, 413])
def test_listed_phrases_are_a_context_overflow(body: bytes, status: int) -> None:
    assert classify(status, body, "m") is ErrorKind.CONTEXT_OVERFLOW


@pytest.mark.parametrize("body", NO_OVERFLOWS)
@pytest.mark.parametrize("status", [400, 413, 422])
def test_max_tokens_error_is_no_overflow(body: bytes, status: int) -> None:
    """T50: only the listed phrases mean context overflow."""
    assert classify(status, body, "m") is ErrorKind.BAD_REQUEST


@pytest.mark.parametrize("status", [401, 404, 409, 429, 500, 503])
def test_overflow_is_a_matter_of_400_and_413(status: int) -> None:
    assert classify(status, OVERFLOWS[0], "m") is not ErrorKind.CONTEXT_OVERFLOW


STATUSES = [
    (301, ErrorKind.BAD_RESPONSE), (304, ErrorKind.BAD_RESPONSE), (400, ErrorKind.BAD_REQUEST), (401, ErrorKind.AUTH_ERROR),
    (402, ErrorKind.PAYMENT_REQUIRED), (403, ErrorKind.AUTH_ERROR), (404, ErrorKind.BAD_REQUEST), (405, ErrorKind.BAD_REQUEST),
    (408, ErrorKind.UPSTREAM_408), (409, ErrorKind.BAD_REQUEST), (413, ErrorKind.BAD_REQUEST), (422, ErrorKind.BAD_REQUEST),
    (429, ErrorKind.RATE_LIMIT), (499, ErrorKind.BAD_REQUEST), (500, ErrorKind.SERVER_ERROR), (502, ErrorKind.SERVER_ERROR),
    (503, ErrorKind.OVERLOADED), (504, ErrorKind.SERVER_ERROR), (529, ErrorKind.OVERLOADED), (599, ErrorKind.SERVER_ERROR),
]  # fmt: skip


@pytest.mark.parametrize(("status", "kind"), STATUSES)
@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", error("no")])
def test_every_status_has_its_kind_whatever_the_body(status: int, kind: ErrorKind, body: bytes) -> None:
    assert classify(status, body, "m") is kind


@pytest.mark.parametrize("word", ["content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"])
def test_filtered_content_is_told_by_its_code(word: str) -> None:
    assert classify(400, error("no", code=word), "m") is ErrorKind.CONTENT_FILTER
    assert classify(422, error("no", code=word), "m") is ErrorKind.BAD_REQUEST


def test_a_404_that_names_the_model_is_about_the_model() -> None:
    assert (
        classify(404, error("The model `Org/Model-7B` does not exist."), "org/model-7b") is ErrorKind.MODEL_UNAVAILABLE
    )
    assert classify(404, error("Not Found"), "org/model-7b") is ErrorKind.BAD_REQUEST


@pytest.mark.parametrize(
    "text", ["No model sim.", "`sim` not found", "sim", "model=sim, path=/v1", "unknown model 'SIM'"]
)
def test_a_short_model_name_is_found_as_a_word(text: str) -> None:
    assert classify(404, error(text), "sim") is ErrorKind.MODEL_UNAVAILABLE


@pytest.mark.parametrize("text", ["simple", "org/sim", "sim-2", "sim.2", "prosim", "/v1/similar"])
def test_a_short_model_name_inside_another_word_is_none(text: str) -> None:
    assert classify(404, error(text), "sim") is ErrorKind.BAD_REQUEST


INSIDE = [
    ({"message": "x", "code": 503}, ErrorKind.OVERLOADED), ({"message": "x", "code": "429"}, ErrorKind.RATE_LIMIT),
    ({"message": "x", "code": 400}, ErrorKind.BAD_REQUEST), ({"message": "x", "type": "overloaded_error"}, ErrorKind.OVERLOADED),
    ({"message": "x", "code": "rate_limit_exceeded"}, ErrorKind.RATE_LIMIT), ({"message": "x", "type": "invalid_request_error"}, ErrorKind.BAD_REQUEST),
    ({"message": "context length exceeded", "type": "invalid_request_error"}, ErrorKind.CONTEXT_OVERFLOW),
    ({"message": "x"}, ErrorKind.SERVER_ERROR), ({"message": "x", "code": 200}, ErrorKind.SERVER_ERROR), ({"code": []}, ErrorKind.SERVER_ERROR),
]  # fmt: skip


@pytest.mark.parametrize(("inside", "kind"), INSIDE)
def test_an_error_inside_a_200_is_classified_by_its_own_code(inside: dict[str, object], kind: ErrorKind) -> None:
    assert classify(200, json.dumps({"error": inside}).encode(), "m") is kind


@pytest.mark.parametrize("body", [b"", b"{", b'{"error":"text"}', b"[" * 5000])
def test_an_unreadable_error_inside_a_200_is_the_server_s(body: bytes) -> None:
    assert classify(200, body, "m") is ErrorKind.SERVER_ERROR


ANSWERS: list[tuple[object, int]] = [
    ({"choices": [{"message": {"content": "a" * 40}}]}, 10), ({"choices": [{"text": "a" * 40}]}, 10), ({"choices": [{"message": {"content": "a"}}]}, 1),
    ({"choices": [{"message": {"content": "a" * 40}}, {"message": {"content": "你" * 40}}]}, 30), ({"choices": [{"message": {"content": None}}]}, 0),
    ({"choices": []}, 0), ({"data": [{"embedding": [0.5]}]}, 0), ({"choices": "x"}, 0), ([], 0),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "tokens"), ANSWERS)
def test_U4_an_answer_without_usage_is_estimated_from_its_text(answer: object, tokens: int) -> None:
    assert estimated_tokens(json.dumps(answer, ensure_ascii=False).encode()) == tokens


FORMS: list[tuple[dict[bytes, bytes], float | None]] = [
    ({b"retry-after": b"7"}, 7.0), ({b"retry-after": b"0"}, 0.0), ({b"retry-after": b"2.5"}, 2.5), ({b"retry-after": b" 3 "}, 3.0),
    ({b"retry-after-ms": b"1500"}, 1.5), ({b"retry-after-ms": b"20.5"}, 0.0205), ({b"retry-after-ms": b"500", b"retry-after": b"9"}, 0.5),
    ({b"retry-after-ms": b"soon", b"retry-after": b"9"}, 9.0), ({b"retry-after-ms": b"-5", b"retry-after": b"9"}, 9.0),
    ({b"retry-after": email.utils.formatdate(NOW_S + 12, usegmt=True).encode()}, 12.0),
    ({b"retry-after": email.utils.formatdate(NOW_S - 12, usegmt=True).encode()}, 0.0),
    ({b"retry-after": b"Fri, 31 Dec 9999 23:59:59 GMT"}, 253402300799.0 - NOW_S),
    ({}, None), ({b"retry-after": b""}, None), ({b"retry-after": b"soon"}, None), ({b"retry-after": b"-1"}, None), ({b"retry-after": b"nan"}, None),
    ({b"retry-after": b"inf"}, None), ({b"retry-after": b"1e999"}, None), ({b"retry-after": b"\xff"}, None), ({b"retry-after": b"Fri, 99 Foo 2023"}, None),
]  # fmt: skip


@pytest.mark.parametrize(("headers", "seconds"), FORMS)
def test_retry_after_all_forms(headers: dict[bytes, bytes], seconds: float | None) -> None:
    """T75: milliseconds, integer, float, HTTP-date; what is invalid or negative is absent."""
    assert retry_after_s(headers.get, NOW_S) == (pytest.approx(seconds) if seconds is not None else None)
