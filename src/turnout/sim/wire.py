"""OpenAI response shapes as vLLM writes them: JSON objects and stream events, as bytes."""

from __future__ import annotations

import base64
import struct
from typing import Any

import msgspec
import xxhash

from turnout.sim.requests import RefusalError
from turnout.sim.text import TOKEN_BYTES, unpack

LOGPROB = -1.0
"""Every log-probability this engine reports."""


def to_json(value: object) -> bytes:
    """Compact JSON."""
    return msgspec.json.encode(value)


def error_body(status: int, message: str, kind: str, param: str | None = None) -> bytes:
    """The error envelope of vLLM; its code is the HTTP status as a number."""
    return to_json({"error": {"message": message, "type": kind, "param": param, "code": status}})


def refusal_body(refusal: RefusalError) -> bytes:
    """A refusal in vLLM's error envelope."""
    return error_body(refusal.status, refusal.message, refusal.kind, refusal.param)


def usage(prompt_tokens: int, output_tokens: int, cached_tokens: int | None) -> dict[str, Any]:
    """Usage; zero cached tokens are null, as vLLM sends them."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + output_tokens,
        "completion_tokens": output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens} if cached_tokens else None,
    }


class Shape:
    """The objects of one generation: chat or completion, whole or in chunks."""

    __slots__ = ("_chat", "_head", "_whole", "with_logprobs")

    done = b"data: [DONE]\n\n"
    malformed = b'data: {"id":"chatcmpl-malformed","choices":[{"index":0,"delta":{"content"\n\n'

    def __init__(self, *, chat: bool, identifier: str, created: int, model: str, with_logprobs: bool) -> None:
        self._chat = chat
        self.with_logprobs = with_logprobs
        name = to_json(model).decode()
        ident = to_json(identifier).decode()
        kind = "chat.completion" if chat else "text_completion"
        self._whole: dict[str, Any] = {"id": identifier, "object": kind, "created": created, "model": model}
        self._head = (
            f'data: {{"id":{ident},"object":"{kind}{".chunk" if chat else ""}","created":{created},"model":{name},'
        )

    def role(self, usage_now: dict[str, Any] | None) -> bytes:
        """The first event of a chat; a completion has none."""
        if not self._chat:
            return b""
        choice = '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        return self._event(choice, usage_now)

    def chunk(self, text: str, finish: str | None, stop_hit: str | None, usage_now: dict[str, Any] | None) -> bytes:
        """One output event. Words are plain ASCII, so that the text needs no escaping."""
        reason = f'"{finish}"' if finish else "null"
        logprobs = to_json(self._logprobs([text])).decode() if self.with_logprobs else "null"
        body = f'"delta":{{"content":"{text}"}}' if self._chat else f'"text":"{text}"'
        stop = f',"stop_reason":{to_json(stop_hit).decode()}' if finish else ""
        return self._event(f'{{"index":0,{body},"logprobs":{logprobs},"finish_reason":{reason}{stop}}}', usage_now)

    def usage_event(self, usage_now: dict[str, Any]) -> bytes:
        """The event after the last one, without choices."""
        return f'{self._head}"choices":[],"usage":{to_json(usage_now).decode()}}}\n\n'.encode()

    def whole(self, texts: list[str], finish: str, stop_hit: str | None, usage_now: dict[str, Any]) -> bytes:
        """The complete answer of a request that did not stream."""
        text = "".join(texts)
        choice: dict[str, Any] = {"index": 0}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text, "tool_calls": []}
        else:
            choice["text"] = text
        choice["logprobs"] = self._logprobs(texts) if self.with_logprobs else None
        choice["finish_reason"] = finish
        choice["stop_reason"] = stop_hit
        return to_json({**self._whole, "choices": [choice], "usage": usage_now})

    def error(self, status: int) -> bytes:
        """An error object inside a 200."""
        kind = "overloaded_error" if status in (503, 529) else "rate_limit_error" if status == 429 else "server_error"  # noqa: PLR2004
        return to_json({"error": {"message": f"injected error {status}", "type": kind, "param": None, "code": status}})

    def error_event(self, status: int) -> bytes:
        """The same in the middle of a stream."""
        return b"data: " + self.error(status) + b"\n\n"

    def _event(self, choice: str, usage_now: dict[str, Any] | None) -> bytes:
        if usage_now is None:
            return f'{self._head}"choices":[{choice}]}}\n\n'.encode()
        return f'{self._head}"choices":[{choice}],"usage":{to_json(usage_now).decode()}}}\n\n'.encode()

    def _logprobs(self, texts: list[str]) -> dict[str, Any]:
        if self._chat:
            content = [
                {"token": text, "logprob": LOGPROB, "bytes": list(text.encode()), "top_logprobs": []} for text in texts
            ]
            return {"content": content}
        offsets = [sum(len(text) for text in texts[:place]) for place in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [LOGPROB] * len(texts),
            "top_logprobs": [{text: LOGPROB} for text in texts],
            "text_offset": offsets,
        }


def embeddings_body(model: str, identifier: str, inputs: list[bytes], dimensions: int, *, as_base64: bool) -> bytes:
    """A deterministic vector per input, each component in [-1, 1), from the hash of its tokens."""
    data = []
    for index, tokens in enumerate(inputs):
        vector = [xxhash.xxh3_64_intdigest(tokens, place) / 2**63 - 1.0 for place in range(dimensions)]
        packed = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode() if as_base64 else None
        data.append({"index": index, "object": "embedding", "embedding": packed if as_base64 else vector})
    count = sum(len(tokens) for tokens in inputs) // TOKEN_BYTES
    return to_json(
        {
            "id": identifier,
            "object": "list",
            "created": 0,
            "model": model,
            "data": data,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        },
    )


def models_body(model: str, created: int, context_tokens: int) -> bytes:
    """`GET /v1/models`: one model, owned by vllm."""
    card = {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": model,
        "parent": None,
        "max_model_len": context_tokens,
        "permission": [],
    }
    return to_json({"object": "list", "data": [card]})


def tokens_body(packed: bytes, context_tokens: int) -> bytes:
    """`POST /tokenize`."""
    ids = unpack(packed)
    return to_json({"count": len(ids), "max_model_len": context_tokens, "tokens": ids, "token_strs": None})
