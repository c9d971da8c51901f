"""Every ending in every dialect (request-path §10): same status, the dialect's own words, extra fields inside."""

from __future__ import annotations

import json

import pytest

from turnout.core.errors import ENDINGS, Outcome
from turnout.dialects.envelope import ApiError, dialect_of, error_body, in_band_error, of_outcome

WITH_ENVELOPE = [outcome for outcome in Outcome if ENDINGS[outcome].type]
EXTRA = (("max", 100), ("estimated_prompt_tokens", 101))


@pytest.mark.parametrize("outcome", WITH_ENVELOPE)
def test_every_outcome_in_the_openai_dialect(outcome: Outcome) -> None:
    ending = ENDINGS[outcome]
    document = json.loads(error_body("openai", of_outcome(outcome, "why", EXTRA)))
    assert document == {
        "error": {
            "message": "why",
            "type": ending.type,
            "param": None,
            "code": ending.code,
            "max": 100,
            "estimated_prompt_tokens": 101,
        }
    }


@pytest.mark.parametrize("outcome", WITH_ENVELOPE)
def test_every_outcome_in_the_anthropic_dialect(outcome: Outcome) -> None:
    document = json.loads(error_body("anthropic", of_outcome(outcome, "why"), "id-1"))
    assert document == {
        "type": "error",
        "error": {"type": ENDINGS[outcome].anthropic, "message": "why"},
        "request_id": "id-1",
    }
    assert ENDINGS[outcome].anthropic


@pytest.mark.parametrize("outcome", WITH_ENVELOPE)
def test_every_outcome_in_the_gemini_dialect(outcome: Outcome) -> None:
    ending = ENDINGS[outcome]
    document = json.loads(error_body("gemini", of_outcome(outcome, "why")))
    assert document == {"error": {"code": ending.status, "message": "why", "status": ending.gemini}}
    assert ending.gemini


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        (b"/v1/messages", "anthropic"), (b"/v1/messages/count_tokens", "anthropic"), (b"/v1beta/models/x:generateContent", "gemini"),
        (b"/v1/chat/completions", "openai"), (b"/v1beta", "openai"), (b"", "openai"), (b"/V1/messages", "openai"), (b"/nowhere", "openai"),
    ],
)  # fmt: skip
def test_the_dialect_follows_from_the_path_alone(path: bytes, dialect: str) -> None:
    assert dialect_of(path) == dialect


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 413, 415, 417, 431, 500, 503, 505])
def test_refusals_have_a_kind_in_every_dialect(status: int) -> None:
    error = ApiError(status, "invalid_request_error", "code", "why")
    for dialect in ("anthropic", "gemini"):
        told = json.loads(error_body(dialect, error))["error"]
        assert told.get("type") or told.get("status")


def test_W3_the_last_event_of_a_broken_stream_is_an_error_and_nothing_else() -> None:
    raw = in_band_error(of_outcome(Outcome.STREAM_INTERRUPTED, "why"))
    assert raw.startswith(b"data: ")
    assert raw.endswith(b"\n\n")
    document = json.loads(raw[6:])
    assert document == {
        "error": {"message": "why", "type": "upstream_error", "param": None, "code": "stream_interrupted"}
    }
