"""Every way an attempt can fail and every way an exchange can end: two closed sets and their tables.

Sources: `ErrorKind` is the classification table of resilience §2 with the counting rules of ledger §3;
`Outcome` is the endings table of request-path §10. A test enumerates both against their tables.
"""

from __future__ import annotations

import enum

import msgspec


class IllegalTransition(RuntimeError):
    """Something happened that cannot happen in this state of an exchange: a bug of the caller."""


class ErrorKind(enum.StrEnum):
    """Why an attempt ended badly. The value is metric label and ledger value."""

    __hash__ = str.__hash__  # the enum's own is a Python call, and every request looks members up

    CONNECT_ERROR = "connect_error"
    TIMEOUT_CONNECT = "timeout_connect"
    TIMEOUT_SEND = "timeout_send"
    CONNECTION_RESET = "connection_reset"
    TIMEOUT_FIRST_TOKEN = "timeout_first_token"  # noqa: S105 - a label, not a password
    TIMEOUT_RESPONSE = "timeout_response"
    RATE_LIMIT = "rate_limit"
    OVERLOADED = "overloaded"
    SERVER_ERROR = "server_error"
    UPSTREAM_408 = "upstream_408"
    BAD_RESPONSE = "bad_response"
    MODEL_UNAVAILABLE = "model_unavailable"
    AUTH_ERROR = "auth_error"
    PAYMENT_REQUIRED = "payment_required"
    CONTEXT_OVERFLOW = "context_overflow"
    CONTENT_FILTER = "content_filter"
    BAD_REQUEST = "bad_request"
    ENDPOINT_GONE = "endpoint_gone"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    HEDGE_LOST = "hedge_lost"
    INTERNAL = "internal"
    STREAM_CUT = "stream_cut"
    TIMEOUT_STALL = "timeout_stall"


class Retry(msgspec.Struct, frozen=True, gc=False):
    """What resilience §2 allows after one kind of failure before the commit point.

    `same`: the same endpoint may be tried again. `other`: another endpoint may. `fault`: the breaker counts it.
    `unreachable`: the endpoint takes no traffic until a probe or an attempt reaches it (O1).
    """

    same: bool
    other: bool
    fault: bool
    unreachable: bool = False


_NO = Retry(same=False, other=False, fault=False)
RETRY: dict[ErrorKind, Retry] = {
    ErrorKind.CONNECT_ERROR: Retry(same=True, other=True, fault=True, unreachable=True),
    ErrorKind.TIMEOUT_CONNECT: Retry(same=False, other=True, fault=True, unreachable=True),
    ErrorKind.TIMEOUT_SEND: Retry(same=False, other=True, fault=True, unreachable=True),
    ErrorKind.CONNECTION_RESET: Retry(same=True, other=True, fault=True),
    ErrorKind.TIMEOUT_FIRST_TOKEN: Retry(same=False, other=True, fault=True),
    ErrorKind.TIMEOUT_RESPONSE: Retry(same=False, other=True, fault=True),
    ErrorKind.RATE_LIMIT: Retry(same=True, other=True, fault=False),
    ErrorKind.OVERLOADED: Retry(same=True, other=True, fault=True),
    ErrorKind.SERVER_ERROR: Retry(same=True, other=True, fault=True),
    ErrorKind.UPSTREAM_408: Retry(same=True, other=True, fault=False),
    ErrorKind.BAD_RESPONSE: Retry(same=False, other=True, fault=True),
    ErrorKind.MODEL_UNAVAILABLE: Retry(same=False, other=True, fault=False),
    ErrorKind.AUTH_ERROR: Retry(same=False, other=True, fault=False),
    ErrorKind.PAYMENT_REQUIRED: Retry(same=False, other=True, fault=False),
    ErrorKind.CONTEXT_OVERFLOW: Retry(same=False, other=True, fault=False),
    ErrorKind.CONTENT_FILTER: _NO,
    ErrorKind.BAD_REQUEST: _NO,
    ErrorKind.ENDPOINT_GONE: Retry(same=False, other=True, fault=False),
    ErrorKind.CANCELLED: _NO,
    ErrorKind.DEADLINE: _NO,
    ErrorKind.HEDGE_LOST: _NO,
    ErrorKind.INTERNAL: _NO,
    ErrorKind.STREAM_CUT: Retry(same=False, other=False, fault=True),
    ErrorKind.TIMEOUT_STALL: Retry(same=False, other=False, fault=True),
}

# ledger §3: the client's fault and our own endings do not count against a route.
UNCOUNTED: frozenset[ErrorKind] = frozenset(
    {
        ErrorKind.BAD_REQUEST,
        ErrorKind.CONTENT_FILTER,
        ErrorKind.CONTEXT_OVERFLOW,
        ErrorKind.CANCELLED,
        ErrorKind.DEADLINE,
        ErrorKind.HEDGE_LOST,
        ErrorKind.ENDPOINT_GONE,
        ErrorKind.INTERNAL,
    }
)


class Outcome(enum.StrEnum):
    """How an accepted request ended. The value is metric label and ledger value (request-path §10)."""

    __hash__ = str.__hash__  # as above

    COMPLETED = "completed"
    CACHED = "cached"
    INVALID_SELECTION = "invalid_selection"
    CONTEXT_EXCEEDED = "context_exceeded"
    UNSERVABLE = "unservable"
    MODEL_FORBIDDEN = "model_forbidden"
    MODEL_NOT_FOUND = "model_not_found"
    RATE_LIMITED = "rate_limited"
    PRINCIPAL_OVER_SHARE = "principal_over_share"
    QUOTA_EXHAUSTED = "quota_exhausted"
    CLIENT_GONE = "client_gone"
    QUEUE_FULL = "queue_full"
    QUEUE_EXPIRED = "queue_expired"
    SHED = "shed"
    NO_ENDPOINT = "no_endpoint"
    MODEL_LOADING = "model_loading"
    DRAINING = "draining"
    SHUTDOWN = "shutdown"
    AUTHORITY_UNAVAILABLE = "authority_unavailable"
    SELECTOR_UNAVAILABLE = "selector_unavailable"
    UPSTREAM_ANSWERED = "upstream_answered"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_INVALID = "upstream_invalid"
    UPSTREAM_CREDENTIAL = "upstream_credential"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    STREAM_INTERRUPTED = "stream_interrupted"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    INTERNAL_ERROR = "internal_error"


class Ending(msgspec.Struct, frozen=True, gc=False):
    """One row of the endings table: the error envelope's parts in each dialect. `type` "" means no envelope of ours."""

    cls: str
    status: int
    type: str = ""
    code: str = ""
    anthropic: str = ""
    gemini: str = ""
    retry_after_s: int | None = None


ENDINGS: dict[Outcome, Ending] = {
    Outcome.COMPLETED: Ending("ok", 200),
    Outcome.CACHED: Ending("ok", 200),
    Outcome.INVALID_SELECTION: Ending(
        "client", 400, "invalid_request_error", "invalid_model_selector", "invalid_request_error", "INVALID_ARGUMENT"
    ),
    Outcome.CONTEXT_EXCEEDED: Ending(
        "client", 400, "invalid_request_error", "context_length_exceeded", "invalid_request_error", "INVALID_ARGUMENT"
    ),
    Outcome.UNSERVABLE: Ending(
        "client", 400, "invalid_request_error", "request_unservable", "invalid_request_error", "INVALID_ARGUMENT"
    ),
    Outcome.MODEL_FORBIDDEN: Ending(
        "client", 403, "permission_error", "model_not_allowed", "permission_error", "PERMISSION_DENIED"
    ),
    Outcome.MODEL_NOT_FOUND: Ending(
        "client", 404, "invalid_request_error", "model_not_found", "not_found_error", "NOT_FOUND"
    ),
    Outcome.RATE_LIMITED: Ending(
        "client", 429, "rate_limit_error", "rate_limit_exceeded", "rate_limit_error", "RESOURCE_EXHAUSTED", 1
    ),
    Outcome.PRINCIPAL_OVER_SHARE: Ending(
        "client", 429, "rate_limit_error", "principal_limit", "rate_limit_error", "RESOURCE_EXHAUSTED", 1
    ),
    Outcome.QUOTA_EXHAUSTED: Ending(
        "client", 429, "insufficient_quota", "insufficient_quota", "billing_error", "RESOURCE_EXHAUSTED"
    ),
    Outcome.CLIENT_GONE: Ending("cancelled", 499),
    Outcome.QUEUE_FULL: Ending("capacity", 503, "overloaded", "queue_full", "overloaded_error", "UNAVAILABLE", 1),
    Outcome.QUEUE_EXPIRED: Ending("capacity", 503, "overloaded", "queue_timeout", "overloaded_error", "UNAVAILABLE", 1),
    Outcome.SHED: Ending("capacity", 503, "overloaded", "shed", "overloaded_error", "UNAVAILABLE", 1),
    Outcome.NO_ENDPOINT: Ending(
        "capacity", 503, "service_unavailable", "no_endpoint", "overloaded_error", "UNAVAILABLE", 5
    ),
    Outcome.MODEL_LOADING: Ending(
        "capacity", 503, "service_unavailable", "model_loading", "overloaded_error", "UNAVAILABLE", 3
    ),
    Outcome.DRAINING: Ending("capacity", 503, "overloaded", "draining", "overloaded_error", "UNAVAILABLE", 15),
    Outcome.SHUTDOWN: Ending("capacity", 503, "overloaded", "draining", "overloaded_error", "UNAVAILABLE", 15),
    Outcome.AUTHORITY_UNAVAILABLE: Ending(
        "internal", 503, "service_unavailable", "authority_unavailable", "api_error", "UNAVAILABLE", 5
    ),
    Outcome.SELECTOR_UNAVAILABLE: Ending(
        "internal", 503, "service_unavailable", "selector_unavailable", "api_error", "UNAVAILABLE", 5
    ),
    Outcome.UPSTREAM_ANSWERED: Ending("upstream", 0),
    Outcome.UPSTREAM_UNREACHABLE: Ending(
        "upstream", 502, "upstream_error", "upstream_unreachable", "api_error", "UNAVAILABLE"
    ),
    Outcome.UPSTREAM_INVALID: Ending(
        "upstream", 502, "upstream_error", "upstream_bad_response", "api_error", "UNAVAILABLE"
    ),
    Outcome.UPSTREAM_CREDENTIAL: Ending(
        "upstream", 502, "upstream_error", "upstream_credential", "api_error", "UNAVAILABLE"
    ),
    Outcome.UPSTREAM_TIMEOUT: Ending(
        "upstream", 504, "timeout", "upstream_timeout", "timeout_error", "DEADLINE_EXCEEDED"
    ),
    Outcome.STREAM_INTERRUPTED: Ending(
        "upstream", 502, "upstream_error", "stream_interrupted", "api_error", "UNAVAILABLE"
    ),
    Outcome.DEADLINE_EXCEEDED: Ending(
        "client", 504, "timeout", "deadline_exceeded", "timeout_error", "DEADLINE_EXCEEDED"
    ),
    Outcome.INTERNAL_ERROR: Ending("internal", 500, "internal_error", "internal", "api_error", "INTERNAL"),
}
