"""The closed sets of errors and endings: a new member must be placed in every table, and fails here until it is."""

import pytest

from turnout.core.errors import ENDINGS, RETRY, UNCOUNTED, ErrorKind, Outcome

# resilience §2: kind → (same endpoint, another endpoint, breaker fault, unreachable)
CLASSIFICATION = {
    "connect_error": (True, True, True, True),
    "timeout_connect": (False, True, True, True),
    "timeout_send": (False, True, True, True),
    "connection_reset": (True, True, True, False),
    "timeout_first_token": (False, True, True, False),
    "timeout_response": (False, True, True, False),
    "rate_limit": (True, True, False, False),
    "overloaded": (True, True, True, False),
    "server_error": (True, True, True, False),
    "upstream_408": (True, True, False, False),
    "bad_response": (False, True, True, False),
    "model_unavailable": (False, True, False, False),
    "auth_error": (False, True, False, False),
    "payment_required": (False, True, False, False),
    "context_overflow": (False, True, False, False),
    "content_filter": (False, False, False, False),
    "bad_request": (False, False, False, False),
    "endpoint_gone": (False, True, False, False),
    "cancelled": (False, False, False, False),
    "deadline": (False, False, False, False),
    "hedge_lost": (False, False, False, False),
    "internal": (False, False, False, False),
    "stream_cut": (False, False, True, False),
    "timeout_stall": (False, False, True, False),
}

# request-path §10: outcome → (class, status, OpenAI type, code, Anthropic type, Gemini status)
TABLE = {
    "completed": ("ok", 200, "", "", "", ""),
    "cached": ("ok", 200, "", "", "", ""),
    "invalid_selection": (
        "client",
        400,
        "invalid_request_error",
        "invalid_model_selector",
        "invalid_request_error",
        "INVALID_ARGUMENT",
    ),
    "context_exceeded": (
        "client",
        400,
        "invalid_request_error",
        "context_length_exceeded",
        "invalid_request_error",
        "INVALID_ARGUMENT",
    ),
    "unservable": (
        "client",
        400,
        "invalid_request_error",
        "request_unservable",
        "invalid_request_error",
        "INVALID_ARGUMENT",
    ),
    "model_forbidden": (
        "client",
        403,
        "permission_error",
        "model_not_allowed",
        "permission_error",
        "PERMISSION_DENIED",
    ),
    "model_not_found": ("client", 404, "invalid_request_error", "model_not_found", "not_found_error", "NOT_FOUND"),
    "rate_limited": (
        "client",
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
        "rate_limit_error",
        "RESOURCE_EXHAUSTED",
    ),
    "principal_over_share": (
        "client",
        429,
        "rate_limit_error",
        "principal_limit",
        "rate_limit_error",
        "RESOURCE_EXHAUSTED",
    ),
    "quota_exhausted": (
        "client",
        429,
        "insufficient_quota",
        "insufficient_quota",
        "billing_error",
        "RESOURCE_EXHAUSTED",
    ),
    "client_gone": ("cancelled", 499, "", "", "", ""),
    "queue_full": ("capacity", 503, "overloaded", "queue_full", "overloaded_error", "UNAVAILABLE"),
    "queue_expired": ("capacity", 503, "overloaded", "queue_timeout", "overloaded_error", "UNAVAILABLE"),
    "shed": ("capacity", 503, "overloaded", "shed", "overloaded_error", "UNAVAILABLE"),
    "no_endpoint": ("capacity", 503, "service_unavailable", "no_endpoint", "overloaded_error", "UNAVAILABLE"),
    "model_loading": ("capacity", 503, "service_unavailable", "model_loading", "overloaded_error", "UNAVAILABLE"),
    "draining": ("capacity", 503, "overloaded", "draining", "overloaded_error", "UNAVAILABLE"),
    "shutdown": ("capacity", 503, "overloaded", "draining", "overloaded_error", "UNAVAILABLE"),
    "authority_unavailable": (
        "internal",
        503,
        "service_unavailable",
        "authority_unavailable",
        "api_error",
        "UNAVAILABLE",
    ),
    "selector_unavailable": (
        "internal",
        503,
        "service_unavailable",
        "selector_unavailable",
        "api_error",
        "UNAVAILABLE",
    ),
    "upstream_answered": ("upstream", 0, "", "", "", ""),
    "upstream_unreachable": ("upstream", 502, "upstream_error", "upstream_unreachable", "api_error", "UNAVAILABLE"),
    "upstream_invalid": ("upstream", 502, "upstream_error", "upstream_bad_response", "api_error", "UNAVAILABLE"),
    "upstream_credential": ("upstream", 502, "upstream_error", "upstream_credential", "api_error", "UNAVAILABLE"),
    "upstream_timeout": ("upstream", 504, "timeout", "upstream_timeout", "timeout_error", "DEADLINE_EXCEEDED"),
    "stream_interrupted": ("upstream", 502, "upstream_error", "stream_interrupted", "api_error", "UNAVAILABLE"),
    "deadline_exceeded": ("client", 504, "timeout", "deadline_exceeded", "timeout_error", "DEADLINE_EXCEEDED"),
    "internal_error": ("internal", 500, "internal_error", "internal", "api_error", "INTERNAL"),
}

# ledger §3: what does not count against a route.
NOT_COUNTED = {
    "bad_request",
    "content_filter",
    "context_overflow",
    "cancelled",
    "deadline",
    "hedge_lost",
    "endpoint_gone",
    "internal",
}


def test_every_error_kind_has_its_row_of_the_classification() -> None:
    ours = {kind.value: (rule.same, rule.other, rule.fault, rule.unreachable) for kind, rule in RETRY.items()}
    assert ours == CLASSIFICATION
    assert set(RETRY) == set(ErrorKind)


def test_every_outcome_has_its_row_of_the_endings() -> None:
    ours = {outcome.value: (e.cls, e.status, e.type, e.code, e.anthropic, e.gemini) for outcome, e in ENDINGS.items()}
    assert ours == TABLE
    assert set(ENDINGS) == set(Outcome)


def test_kinds_that_say_nothing_about_a_route_are_not_counted() -> None:
    assert {kind.value for kind in UNCOUNTED} == NOT_COUNTED


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if ENDINGS[outcome].retry_after_s is not None])
def test_retry_after_goes_with_overload_only_and_is_at_least_one(outcome: Outcome) -> None:
    ending = ENDINGS[outcome]
    assert ending.status in (429, 503)
    assert (ending.retry_after_s or 0) >= 1


def test_every_503_of_ours_tells_when_to_come_back() -> None:
    assert [
        outcome.value for outcome, ending in ENDINGS.items() if ending.status == 503 and not ending.retry_after_s
    ] == []


def test_what_only_looks_like_two_faults_is_one_label_each() -> None:
    assert len({kind.value for kind in ErrorKind}) == len(ErrorKind)
    assert len({outcome.value for outcome in Outcome}) == len(Outcome)
