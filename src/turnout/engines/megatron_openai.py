"""OpenAI requests as Megatron sampling parameters, and Megatron's tokens as OpenAI answers (coordinator §6).

What an engine behind the door cannot do is refused with the field that asks for it, never ignored.
"""

from __future__ import annotations

from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"
COMPLETIONS = "/v1/completions"
_encode = msgspec.json.encode


class Unsupported(ValueError):
    """The request asks for what these engines do not have; `param` names the field."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _Body(msgspec.Struct, gc=False):
    """The fields of chat and text completions that are read; all others pass unread and unserved."""

    model: str = ""
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[int] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    logprobs: Any = None
    tools: Any = None
    echo: bool | None = None


class Ask(msgspec.Struct, frozen=True, gc=False):
    """One generation. `messages` is there for a chat, else `prompt`."""

    model: str
    messages: list[dict[str, Any]] | None
    prompt: str | list[int]
    sampling: dict[str, Any]
    max_tokens: int | None
    stream: bool
    include_usage: bool


def read_ask(path: str, body: bytes) -> Ask:
    """Read a request body. Raises Unsupported with the field at fault."""
    try:
        fields = msgspec.json.decode(body, type=_Body)
    except msgspec.ValidationError as error:
        where = str(error).rpartition("`$.")[2].rstrip("`")
        raise Unsupported(where or "body", f"{error}; these engines take text and token prompts only") from None
    for name, value in (("tools", fields.tools), ("logprobs", fields.logprobs), ("echo", fields.echo)):
        if value:
            raise Unsupported(name, f"{name} is not supported by the engines of this model")
    if fields.n is not None and fields.n != 1:
        raise Unsupported("n", f"n is {fields.n}, expected 1: the engines of this model answer once")
    is_chat = path != COMPLETIONS
    if is_chat and not fields.messages:
        raise Unsupported("messages", "messages is missing or empty")
    if not is_chat and not fields.prompt:
        raise Unsupported("prompt", "prompt is missing or empty, expected a string or a list of token ids")
    wanted = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
    stream = bool(fields.stream)
    options = fields.stream_options
    return Ask(
        fields.model,
        fields.messages if is_chat else None,
        fields.prompt or "",
        _sampling(fields, wanted, stream=stream),
        wanted,
        stream,
        options is not None and bool(options.include_usage),
    )


def _sampling(fields: _Body, wanted: int | None, *, stream: bool) -> dict[str, Any]:
    sampling: dict[str, Any] = {"num_tokens_to_generate": wanted, "streaming": stream}
    if fields.temperature == 0:
        # Greedy is spelled so: a temperature of 0 would divide the logits by nothing.
        sampling |= {"top_k": 1, "top_p": 0.0}
    else:
        if fields.temperature is not None:
            sampling["temperature"] = fields.temperature
        if fields.top_k is not None and fields.top_k > 0:
            sampling["top_k"] = fields.top_k
        elif fields.top_p is not None:
            # Engines assert that not both are set.
            sampling["top_p"] = fields.top_p
    if fields.stop:
        sampling["stop_words"] = [fields.stop] if isinstance(fields.stop, str) else fields.stop
    if fields.ignore_eos:
        sampling["termination_id"] = -1
    return sampling


class AnswerWriter:
    """The objects of one answer as bytes: chunks of a stream, or the whole."""

    def __init__(self, ask: Ask, identifier: str, created: int) -> None:
        self._is_chat = ask.messages is not None
        kind = "chat.completion" if self._is_chat else "text_completion"
        prefix = "chatcmpl" if self._is_chat else "cmpl"
        self._head = {"id": f"{prefix}-{identifier}", "object": kind, "created": created, "model": ask.model}
        self._chunk_head = {**self._head, "object": "chat.completion.chunk"} if self._is_chat else self._head

    def role(self) -> bytes:
        """The first event of a chat; a completion has none."""
        if not self._is_chat:
            return b""
        return self._event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def text(self, text: str) -> bytes:
        """One event with text."""
        body = {"delta": {"content": text}} if self._is_chat else {"text": text}
        return self._event([{"index": 0, **body, "finish_reason": None}])

    def finish(self, reason: str) -> bytes:
        """The event that ends the choice."""
        body: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
        return self._event([{"index": 0, **body, "finish_reason": reason}])

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The event without choices."""
        return b"data: " + _encode({**self._chunk_head, "choices": [], "usage": usage}) + b"\n\n"

    def whole(self, text: str, reason: str, usage: dict[str, Any]) -> bytes:
        """An answer that was not streamed."""
        body: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        choice = {"index": 0, **body, "finish_reason": reason}
        return _encode({**self._head, "choices": [choice], "usage": usage})

    def _event(self, choices: list[dict[str, Any]]) -> bytes:
        return b"data: " + _encode({**self._chunk_head, "choices": choices}) + b"\n\n"


def usage_of(prompt_tokens: int, output_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """Usage in OpenAI's shape."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def error_body(message: str, *, param: str | None = None, code: str | None = None, kind: str) -> bytes:
    """The error envelope that the front understands."""
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def failure_of(finished: dict[str, Any]) -> tuple[bool, str] | None:
    """Whether a FAILED map is worth another try, and what the engine said; None for any other status."""
    if finished.get("status") != "FAILED":
        return None
    is_transient, message = True, "the engine failed this request"
    for event in finished.get("events") or ():
        payload = event.get("payload") if isinstance(event, dict) else None
        if isinstance(payload, dict) and str(event.get("type", "")).startswith("ERROR_"):
            is_transient = event["type"] == "ERROR_TRANSIENT"
            message = str(payload.get("message") or payload.get("type") or message)
    return is_transient, message
