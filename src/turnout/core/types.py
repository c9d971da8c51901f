"""What a client asked for, as values: the part of a request that routing reads, whatever dialect it came in.

The body travels beside these fields untouched (`Request.body`); nothing here is ever re-encoded into it.
"""

from __future__ import annotations

import msgspec


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """The prompt as scheduling and the context pre-check see it.

    `rendered` is the tagged byte rendering of scheduling §1.1 (empty when the prompt is token ids), `tokens` the token
    ids of a token prompt. `units` counts characters (CJK twice), `messages` the messages, `tools_bytes` the length of
    the tools span as sent: the inputs of `estimate_floor` (request-path §7).
    """

    rendered: bytes = b""
    tokens: tuple[int, ...] = ()
    units: int = 0
    messages: int = 0
    tools_bytes: int = 0
    count: int = 1
    """Prompts in the request: each brings its own choices."""


class Request(msgspec.Struct, frozen=True, gc=False):
    """One well-formed request.

    `include_usage` tells whether the client itself asked for usage in the stream; `n` is the number of choices that the
    answer has, over all prompts.
    """

    dialect: str
    path: str
    body: bytes
    model: str
    prompt: Prompt
    stream: bool = False
    include_usage: bool = False
    has_stream_options: bool = False
    n: int = 1
    max_tokens: int | None = None
    user: str | None = None
    session: str | None = None
    cache_salt: str = ""
    render_salt: str = ""
    tools_requested: bool = False
    has_controls: bool = False
    repeatable: bool = False
    """Asked again it should give the same answer: temperature 0, `top_k` 1, or a seed (resilience R4)."""
    model_defaulted: bool = False
    """The body names no model: `model` is the configured default, and an engine must be told."""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts as the engine reported them; None is unknown, never zero (engines §3)."""

    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int | None = None
    tokens_reasoning: int | None = None
    tokens_cache_write: int | None = None
    cost_usd: float | int | str | None = None
    """What the provider says it bills, as it stands in the answer; `core.pricing` judges it."""


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """A refusal before the exchange opens (request-path §10): nothing is written to the ledger."""

    status: int
    code: str
    message: str
    param: str | None = None
    type: str = "invalid_request_error"
    retry_after_s: int | None = None
    close: bool = False
    headers: tuple[tuple[bytes, bytes], ...] = ()
