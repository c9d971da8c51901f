"""What a run says to its client: heads of streams, whole answers, relayed refusals and errors of our own, as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from turnout.core.errors import ENDINGS, Outcome
from turnout.dialects.envelope import error_body, of_outcome
from turnout.gateway import answers

if TYPE_CHECKING:
    from turnout.gateway.open_run import OpenRun
    from turnout.gateway.response import AttemptResponse
    from turnout.http.response_head import ResponseHead

_OWN: Final = (
    b"x-request-id: %b\r\nx-turnout-decision: %b\r\nx-turnout-model: %b\r\n"
    b"x-turnout-endpoint: %b\r\nx-turnout-attempts: %d\r\nx-turnout-overhead-ms: %.3f\r\n%b"
)

MESSAGES: Final[dict[Outcome, str]] = {
    Outcome.NO_ENDPOINT: "No endpoint can serve this model now.",
    Outcome.SHED: "Every endpoint of this model is full, and this request would wait too long.",
    Outcome.QUEUE_FULL: "Every endpoint of this model is full, and so is the queue.",
    Outcome.QUEUE_EXPIRED: "Every endpoint of this model stayed full for as long as this request could wait.",
    Outcome.PRINCIPAL_OVER_SHARE: "This tenant has too many requests open at once.",
    Outcome.UNSERVABLE: "No endpoint of this model could ever hold this request.",
    Outcome.UPSTREAM_ANSWERED: "The engine refused the request.",
    Outcome.UPSTREAM_UNREACHABLE: "No engine could be reached.",
    Outcome.UPSTREAM_INVALID: "The engine's answer is not valid.",
    Outcome.UPSTREAM_CREDENTIAL: "The engine refused the router's own credential.",
    Outcome.UPSTREAM_TIMEOUT: "The engine did not answer in time.",
    Outcome.STREAM_INTERRUPTED: "The stream was interrupted before it was complete.",
    Outcome.DEADLINE_EXCEEDED: "The deadline of this request has passed.",
    Outcome.DRAINING: "The router is shutting down.",
    Outcome.SHUTDOWN: "The router is shutting down.",
    Outcome.INTERNAL_ERROR: "The router has made a mistake.",
}


def stream_head(run: OpenRun, response: AttemptResponse) -> bytes:
    """Return the head that goes out with the first output event, so that status and headers are true (W1)."""
    upstream = response.head
    is_stream = response.tap is not None
    ttft_ms = ((response.first_output_s or run.clock()) - run.started_s) * 1000
    return b"".join(
        (
            answers.STATUS_LINES[200],
            answers.STREAM_HEADERS if is_stream else b"",
            upstream.prepared[0] if upstream is not None else b"",
            _framing(run),
            own_headers(run, response),
            b"x-turnout-ttft-ms: %.3f\r\n\r\n" % ttft_ms if is_stream else b"\r\n",
        )
    )


def early_head(run: OpenRun) -> bytes:
    """Return the head of a stream that has nothing to show yet: it names no endpoint and counts no attempts (W2)."""
    return b"%b%b%bx-request-id: %b\r\nx-turnout-decision: %b\r\nx-turnout-model: %b\r\n%b\r\n" % (
        answers.STATUS_LINES[200],
        answers.STREAM_HEADERS,
        _framing(run),
        run.request_id,
        run.call_id.encode(),
        run.model.encode(),
        _told(run),
    )


def whole_answer(run: OpenRun, response: AttemptResponse, body: bytes) -> bytes:
    """Return a complete answer of an engine."""
    head = response.head
    return b"%b%b%b%bcontent-length: %d\r\n\r\n%b" % (
        answers.STATUS_LINES[head.status if head is not None else 200],
        head.prepared[0] if head is not None else b"",
        own_headers(run, response),
        _connection(run),
        len(body),
        body,
    )


def relayed_refusal(run: OpenRun, head: ResponseHead, body: bytes | None) -> bytes:
    """Return an engine's refusal verbatim (U2), with Retry-After by Y2 and x-should-retry by Y4.

    Args:
        run: the run that ends with it.
        head: the engine's head.
        body: its body; None when it was too large to keep.

    """
    exchange = run.exchange
    headers = head.prepared[0]
    if exchange is not None and len(exchange.attempts) > 1:
        kept = [line for line in headers.split(b"\r\n") if not line.startswith((b"retry-after", b"x-should-retry"))]
        headers = b"".join(line + b"\r\n" for line in kept if line)
        if exchange.retry_after_s is not None:
            headers += b"retry-after: %d\r\n" % max(1, -int(-exchange.retry_after_s // 1))
        headers += b"x-should-retry: false\r\n"
    if body is None:
        error = of_outcome(Outcome.UPSTREAM_INVALID, "The engine's answer is too large to relay.")
        body = error_body(run.dialect.name, error, run.request_id.decode())
        headers = answers.JSON_TYPE
    return answers.whole(head.status, headers + own_headers(run, run.response) + _connection(run), body)


def own_error(
    run: OpenRun,
    outcome: Outcome,
    message: str,
    header: bytes = b"",
    extra: tuple[tuple[str, object], ...] = (),
    *,
    code: str = "",
    after_s: int | None = None,
) -> bytes:
    """Return an error of ours for an accepted request, by the endings table."""
    ending = ENDINGS[outcome]
    error = of_outcome(outcome, message, extra)
    if code:
        error = msgspec.structs.replace(error, code=code)
    body = error_body(run.dialect.name, error, run.request_id.decode())
    parts = [answers.JSON_TYPE, header, own_headers(run, run.response), _connection(run)]
    retry_after_s = after_s or ending.retry_after_s
    if outcome is Outcome.NO_ENDPOINT and after_s is None:  # when one may be asked again is known better than that
        pool = run.gateway.fleet.pool(run.model)
        retry_after_s = (pool.retry_after_s(run.clock()) if pool is not None else None) or retry_after_s
    if retry_after_s is not None:
        parts.append(b"retry-after: %d\r\n" % retry_after_s)
    if run.exchange is not None and len(run.exchange.attempts) > 1:
        parts.append(b"x-should-retry: false\r\n")
    return answers.whole(run.status, b"".join(parts), body)


def own_headers(run: OpenRun, response: AttemptResponse | None) -> bytes:
    """Return the headers that tell which decision, model and endpoint served."""
    attempts = run.exchange.attempts if run.exchange is not None else ()
    told = _told(run)
    if not attempts:
        if run.extra is None:  # nothing was chosen, looked up or served: only the dialect's own header
            told = told.removeprefix(run.gateway.told)
        return b"x-request-id: %b\r\nx-turnout-decision: %b\r\n%b" % (run.request_id, run.call_id.encode(), told)
    overhead_s = run.decide_s
    if response is not None and response.head_at_s:
        overhead_s += run.clock() - (response.first_output_s or response.head_at_s)
    run.gateway.meter.overhead.observe(overhead_s)
    own = _OWN % (
        run.request_id,
        run.call_id.encode(),
        run.model.encode(),
        attempts[-1].endpoint.name.encode(),
        len(attempts),
        overhead_s * 1000,
        told,
    )
    if run.models_tried and run.model != run.asked_model:
        own += b"x-turnout-fallback-from: %b\r\n" % run.asked_model.encode()
    return own


def _told(run: OpenRun) -> bytes:
    told = run.gateway.told if run.extra is None else run.extra.told
    return b"%brequest-id: %b\r\n" % (told, run.request_id) if run.dialect.request_id_header else told


def _framing(run: OpenRun) -> bytes:
    return b"transfer-encoding: chunked\r\n" + _connection(run) if run.chunked else b"connection: close\r\n"


def _connection(run: OpenRun) -> bytes:
    return b"connection: close\r\n" if not run.client.keep_alive or run.gateway.draining else b""
