"""The prefill leg's answer as it comes in, and the one change that the client's answer needs: its cached tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout.core.errors import ErrorKind
from turnout.core.request import Request
from turnout.core.scheduling.splitting import MULTIMODAL
from turnout.dialects.strict_json import spans
from turnout.gateway import answers

if TYPE_CHECKING:
    from turnout.core.scheduling.ask import Ask
    from turnout.gateway.legs import LegPair
    from turnout.http.client import EngineConnection
    from turnout.http.response_head import ResponseHead

_ANSWER_MAX_BYTES = 1_048_576
_PATHS = ("/v1/chat/completions", "/v1/completions")
_PREFILL_ONLY = (b'"echo"', b'"prompt_logprobs"', b'"best_of"')
_MEDIA = (b'"image_url"', b'"input_audio"', b'"video_url"', b'"audio_url"', b'"file"')
_DETAILS, _CACHED = "prompt_tokens_details", "cached_tokens"


class PrefillAnswer:
    """Collects the answer of the prefill endpoint (`http.client.Sink`)."""

    __slots__ = ("_held", "_pair", "_size", "connection", "head")

    def __init__(self, pair: LegPair) -> None:
        self._pair = pair
        self._held: list[bytes] = []
        self._size = 0
        self.connection: EngineConnection | None = None
        self.head: ResponseHead | None = None

    def on_head(self, head: ResponseHead) -> None:
        """Keep the head."""
        if head.prepared is None:
            head.prepared = answers.prepare(head)
        self.head = head

    def on_body(self, payload: bytes, framed: bytes | None) -> None:  # noqa: ARG002 - nothing is passed on
        """Keep the body, up to a bound: beyond it is no prefill answer."""
        self._size += len(payload)
        if self._size <= _ANSWER_MAX_BYTES:
            self._held.append(payload)

    def on_end(self) -> None:
        """Hand it over."""
        if self.head is not None:
            self._pair.prefill_ended(self.head, b"".join(self._held))

    def on_failure(self, kind: ErrorKind, detail: str) -> None:  # noqa: ARG002 - the kind says all
        """Hear that there will be none."""
        self._pair.prefill_failure(ErrorKind.CONNECTION_RESET if kind is ErrorKind.STREAM_CUT else kind)


class Discarded:
    """Takes an answer that nobody reads."""

    __slots__ = ("connection",)

    def __init__(self) -> None:
        self.connection: EngineConnection | None = None

    def on_head(self, head: ResponseHead) -> None:
        """Ignore it."""

    def on_body(self, payload: bytes, framed: bytes | None) -> None:
        """Ignore it."""

    def on_end(self) -> None:
        """Ignore it."""

    def on_failure(self, kind: ErrorKind, detail: str) -> None:
        """Ignore it."""


def with_cached(raw: bytes, cached: int | None) -> bytes:
    """Return an event or a body whose usage has these cached tokens; the rest is the engine's, byte for byte.

    None removes the number: what the decode engine counts as cached has been sent to it.
    """
    start = raw.find(b"{")
    if start < 0:
        return raw
    lead, data = raw[:start], raw[start:]
    try:
        found = next(((at, to) for key, at, to in spans(data) if key == "usage"), None)
        if found is None or not data.startswith(b"{", found[0]):
            return raw
        usage = _details(data[found[0] : found[1]], cached)
    except (ValueError, IndexError):
        return raw
    return b"".join((lead, data[: found[0]], usage, data[found[1] :]))


def _details(usage: bytes, cached: int | None) -> bytes:
    value = b"%d" % cached if cached is not None else b"null"
    for key, at, to in spans(usage):
        if key != _DETAILS:
            continue
        details = usage[at:to]
        if not details.startswith(b"{"):
            new = b'{"cached_tokens":%b}' % value if cached is not None else b"null"
            return usage[:at] + new + usage[to:]
        for name, first, last in spans(details):
            if name == _CACHED:
                return usage[:at] + details[:first] + value + details[last:] + usage[to:]
        return usage
    if cached is None:
        return usage
    end = usage.rindex(b"}")
    return b'%b,"prompt_tokens_details":{"cached_tokens":%b}}' % (usage[:end], value)


def mark_whole(ask: Ask, request: Request) -> None:
    """Say in the question why a request must stay whole: what exists on the prefill endpoint only, or pays nothing."""
    if request.path not in _PATHS:
        ask.whole = "path"
    elif request.n > 1 or request.prompt.count > 1:
        ask.whole = "n"
    elif any(member in request.body for member in _PREFILL_ONLY):
        ask.whole = "prompt_output"
    elif request.max_tokens is not None and request.max_tokens <= 1:
        ask.whole = "one_token"
    elif any(part in request.body for part in _MEDIA):
        ask.whole = MULTIMODAL  # yields where all endpoints hand over images, too
