"""Consent and bypass, row by row (response-cache §1, §4)."""

from __future__ import annotations

import msgspec
import pytest

from turnout.core.response_cache.eligibility import (
    Asked,
    Bypass,
    Consent,
    Ended,
    Mode,
    NotAllowed,
    bypass,
    consent,
    may_store,
    semantic_bypass,
)
from turnout.core.response_cache.key import shape

GOOD = Asked(tenant_known=True, path_allowed=True)
SHAPE = shape({"messages": [{"role": "user", "content": "hi"}]})


@pytest.mark.parametrize(
    ("permission", "asked", "wanted"),
    [
        ("off", "", Consent(Mode.OFF)),
        ("semantic", "", Consent(Mode.OFF)),
        ("semantic", "off", Consent(Mode.OFF)),
        ("exact", "exact", Consent(Mode.EXACT)),
        ("semantic", "exact", Consent(Mode.EXACT)),
        ("semantic", "semantic", Consent(Mode.SEMANTIC)),
        ("exact", "refresh", Consent(Mode.EXACT, looks=False)),
        ("semantic", "refresh", Consent(Mode.SEMANTIC, looks=False)),
    ],
)
def test_consent(permission: str, asked: str, wanted: Consent) -> None:
    assert consent(permission, asked, None, 0.95) == wanted


@pytest.mark.parametrize(
    ("permission", "asked"), [("off", "exact"), ("exact", "semantic"), ("off", "refresh"), ("typo", "exact")]
)
def test_more_than_the_key_allows_is_refused(permission: str, asked: str) -> None:
    with pytest.raises(NotAllowed) as refused:
        consent(permission, asked, None, 0.95)
    assert refused.value.param == "x-turnout-cache-match"


def test_caller_cannot_lower_threshold() -> None:
    with pytest.raises(NotAllowed) as refused:
        consent("semantic", "semantic", 0.949999999, 0.95)
    assert refused.value.param == "x-turnout-cache-threshold"
    assert consent("semantic", "semantic", 0.95, 0.95).threshold == 0.95
    assert consent("semantic", "semantic", 1.0, 0.95).threshold == 1.0


def test_cache_control() -> None:
    assert consent("exact", "exact", None, 0.95, "No-Store, max-age=0") == Consent(
        Mode.EXACT, looks=False, stores=False
    )
    assert consent("exact", "exact", None, 0.95, "no-cache") == Consent(Mode.EXACT, looks=False)


@pytest.mark.parametrize(
    ("mode", "asked", "body", "reason"),
    [
        (Mode.OFF, {}, {}, Bypass.NO_CONSENT),
        (Mode.EXACT, {"tenant_known": False}, {}, Bypass.ANONYMOUS),
        (Mode.EXACT, {"path_allowed": False}, {}, Bypass.PATH),
        (Mode.EXACT, {"stream": True}, {}, Bypass.STREAM),
        (Mode.EXACT, {"stream": True, "streams_served": True}, {}, None),
        (Mode.EXACT, {"choices": 2}, {}, Bypass.CHOICES),
        (Mode.EXACT, {}, {"previous_response_id": "r"}, Bypass.SERVER_STATE),
        (Mode.EXACT, {}, {"conversation": "c"}, Bypass.SERVER_STATE),
        (Mode.EXACT, {}, {"store": True}, Bypass.SERVER_STATE),
        (Mode.EXACT, {"reason": "fallback_default"}, {}, Bypass.TRANSIENT_DECISION),
        (Mode.EXACT, {"reason": "session_pin"}, {}, None),
        (Mode.EXACT, {}, {}, None),
    ],
)
def test_bypass(mode: Mode, asked: dict[str, object], body: dict[str, object], reason: Bypass | None) -> None:
    known = shape({"messages": [{"role": "user", "content": "hi"}], **body})
    assert bypass(mode, msgspec.structs.replace(GOOD, **asked), known) is reason


def test_a_body_that_cannot_be_read_is_a_miss_and_no_error() -> None:
    assert bypass(Mode.EXACT, GOOD, None) is Bypass.UNREADABLE


@pytest.mark.parametrize(
    ("asked", "body", "reason"),
    [
        ({"reason": "session_pin"}, {}, Bypass.SESSION_PIN),
        ({}, {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, Bypass.MEDIA),
        ({}, {"tools": [{"type": "function"}]}, Bypass.TOOLS),
        ({}, {"messages": [{"role": "user", "content": "x"}] * 5}, Bypass.LONG_CONVERSATION),
        ({}, {"messages": [{"role": "user", "content": "x"}] * 4}, None),
        (
            {},
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            Bypass.LAST_NOT_USER,
        ),
        ({}, {"messages": [{"role": "user", "content": ""}]}, Bypass.NO_EMBEDDING),
        ({}, {}, None),
    ],
)
def test_semantic_bypass(asked: dict[str, object], body: dict[str, object], reason: Bypass | None) -> None:
    known = shape({"messages": [{"role": "user", "content": "hi"}]} | body)
    assert semantic_bypass(msgspec.structs.replace(GOOD, **asked), known) is reason


WHOLE = Ended(completed=True, status=200, whole=True, usage_reported=True, finish_reasons=("stop",))


def test_only_complete_answers_are_stored() -> None:
    assert may_store(WHOLE, store_tool_calls=False)
    for flaw in (
        {"completed": False},
        {"status": 206},
        {"whole": False},
        {"rescued": True},
        {"usage_reported": False},
        {"finish_reasons": ("stop", "content_filter")},
        {"tool_calls": True},
        {"in_band_error": True},
    ):
        assert not may_store(msgspec.structs.replace(WHOLE, **flaw), store_tool_calls=False), flaw
    assert may_store(msgspec.structs.replace(WHOLE, tool_calls=True), store_tool_calls=True)
