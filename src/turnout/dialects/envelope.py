"""Error envelopes: one error, worded in the dialect that the path implies (request-path §10)."""

from __future__ import annotations

from typing import Final

import msgspec

from turnout.core.errors import ENDINGS, Outcome


class ApiError(msgspec.Struct, frozen=True, gc=False):
    """One error to be shown to a client. `extra` members go inside the error object."""

    status: int
    type: str
    code: str | None
    message: str
    param: str | None = None
    anthropic: str = ""
    gemini: str = ""
    extra: tuple[tuple[str, object], ...] = ()


_ANTHROPIC_BY_STATUS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_GEMINI_BY_STATUS: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500


def of_outcome(outcome: Outcome, message: str, extra: tuple[tuple[str, object], ...] = ()) -> ApiError:
    """Return the error of an outcome by the endings table."""
    ending = ENDINGS[outcome]
    return ApiError(ending.status, ending.type, ending.code, message, None, ending.anthropic, ending.gemini, extra)


def dialect_of(path: bytes) -> str:
    """Return the dialect that errors on this path are worded in."""
    if path.startswith(b"/v1/messages"):
        return "anthropic"
    return "gemini" if path.startswith(b"/v1beta/") else "openai"


def error_body(dialect: str, error: ApiError, request_id: str = "") -> bytes:
    """Return the JSON body of an error in a dialect."""
    extra = dict(error.extra)
    if dialect == "anthropic":
        kind = error.anthropic or _ANTHROPIC_BY_STATUS.get(
            error.status, _by_class(error.status, "invalid_request_error", "api_error")
        )
        document: dict[str, object] = {
            "type": "error",
            "error": {"type": kind, "message": error.message, **extra},
            "request_id": request_id,
        }
    elif dialect == "gemini":
        status = error.gemini or _GEMINI_BY_STATUS.get(
            error.status, _by_class(error.status, "INVALID_ARGUMENT", "INTERNAL")
        )
        document = {"error": {"code": error.status, "message": error.message, "status": status, **extra}}
    else:
        document = {
            "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code, **extra}
        }
    return msgspec.json.encode(document)


def in_band_error(error: ApiError) -> bytes:
    """Return the event that ends an OpenAI stream honestly (W3): no `[DONE]`, no invented finish reason."""
    return b"data: " + error_body("openai", error) + b"\n\n"


def _by_class(status: int, client: str, server: str) -> str:
    return client if _CLIENT_ERROR <= status < _SERVER_ERROR else server
