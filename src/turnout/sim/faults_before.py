"""Faults that replace an answer: what goes over the wire instead of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from turnout.sim import wire
from turnout.sim.answers import EVENT_STREAM

if TYPE_CHECKING:
    from turnout.sim.faults import Fault, FaultKind
    from turnout.sim.http import Connection

Draw = Callable[["FaultKind"], "Fault | None"]
"""Asks whether a kind strikes this request."""

_ERROR_KINDS = {400: "BadRequestError", 404: "NotFoundError", 429: "RateLimitError", 503: "ServiceUnavailableError"}
GARBAGE = b"SSH-2.0-OpenSSH_9.6\r\n"
HTML = b"<!doctype html><title>Sign in</title><p>Please sign in to use this network.</p>"
CONTEXT_ERROR = wire.to_json(
    {
        "error": {
            "message": "This model's maximum context length is 64 tokens. Please reduce the length of the messages.",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
    }
)
CONTENT_POLICY = wire.to_json(
    {
        "error": {
            "message": "The request was rejected by the content policy.",
            "type": "invalid_request_error",
            "param": None,
            "code": "content_policy_violation",
        }
    }
)


def strike_before_answer(connection: Connection, draw: Draw, worded: Callable[[bytes], bytes] = bytes) -> bool:
    """Carry out the first fault that takes the place of an answer; False: there is none, answer normally.

    `worded` puts an error body into the dialect of the request.
    """
    if (status := draw("status")) is not None:
        retry = () if status.retry_after is None else (("retry-after", status.retry_after),)
        kind = _ERROR_KINDS.get(status.status, "InternalServerError")
        body = wire.error_body(status.status, f"injected status {status.status}", kind)
        connection.reply(status.status, worded(body), headers=retry)
    elif draw("context_error") is not None:
        connection.reply(400, worded(CONTEXT_ERROR))
    elif draw("content_policy") is not None:
        connection.reply(400, worded(CONTENT_POLICY))
    elif draw("reset") is not None:
        connection.reset()
    elif draw("garbage") is not None:
        connection.raw(GARBAGE)
    elif draw("html") is not None:
        connection.reply(200, HTML, content_type="text/html; charset=utf-8")
    elif draw("empty") is not None:
        connection.open(EVENT_STREAM)
        connection.end()
    elif draw("hang_before_first_byte") is not None:
        connection.open(EVENT_STREAM)
    else:
        return False
    return True
