"""What a client asked for, as values: the part of a request that routing reads, whatever dialect it came in.

The body travels beside these fields untouched (`Request.body`); nothing here is ever re-encoded into it.
"""

from __future__ import annotations

from typing import Final


class Prompt:
    """The prompt as scheduling and the context pre-check see it.

    `rendered` is the tagged byte rendering of scheduling §1.1 (empty when the prompt is token ids), `tokens` the token
    ids of a token prompt. `units` counts characters (CJK twice), `messages` the messages, `tools_bytes` the length of
    the tools span as sent: the inputs of `estimate_floor` (request-path §7). `count` is the number of prompts in the
    request: each brings its own choices.
    """

    # A plain class, as `Request`: compiled, its attributes are read as in C, dozens of times per request.
    __slots__ = ("count", "messages", "rendered", "tokens", "tools_bytes", "units")

    def __init__(
        self,
        rendered: bytes = b"",
        tokens: tuple[int, ...] = (),
        units: int = 0,
        messages: int = 0,
        tools_bytes: int = 0,
        count: int = 1,
    ) -> None:
        self.rendered: Final = rendered
        self.tokens: Final = tokens
        self.units: Final = units
        self.messages: Final = messages
        self.tools_bytes: Final = tools_bytes
        self.count: Final = count


class Request:
    """One well-formed request.

    `include_usage` tells whether the client itself asked for usage in the stream; `n` is the number of choices that the
    answer has, over all prompts. `repeatable`: asked again it should give the same answer, by temperature 0, `top_k` 1
    or a seed (resilience R4). `model_defaulted`: the body names no model, `model` is the configured default, and an
    engine must be told.
    """

    __slots__ = (
        "body",
        "cache_salt",
        "dialect",
        "has_controls",
        "has_stream_options",
        "include_usage",
        "max_tokens",
        "model",
        "model_defaulted",
        "n",
        "path",
        "prompt",
        "render_salt",
        "repeatable",
        "session",
        "stream",
        "tools_requested",
        "user",
    )

    def __init__(
        self,
        dialect: str,
        path: str,
        body: bytes,
        model: str,
        prompt: Prompt,
        stream: bool = False,  # noqa: FBT001, FBT002 - by position where every request is made
        *,
        include_usage: bool = False,
        has_stream_options: bool = False,
        n: int = 1,
        max_tokens: int | None = None,
        user: str | None = None,
        session: str | None = None,
        cache_salt: str = "",
        render_salt: str = "",
        tools_requested: bool = False,
        has_controls: bool = False,
        repeatable: bool = False,
        model_defaulted: bool = False,
    ) -> None:
        self.dialect: Final = dialect
        self.path: Final = path
        self.body: Final = body
        self.model: Final = model
        self.prompt: Final = prompt
        self.stream: Final = stream
        self.include_usage: Final = include_usage
        self.has_stream_options: Final = has_stream_options
        self.n: Final = n
        self.max_tokens: Final = max_tokens
        self.user: Final = user
        self.session: Final = session
        self.cache_salt: Final = cache_salt
        self.render_salt: Final = render_salt
        self.tools_requested: Final = tools_requested
        self.has_controls: Final = has_controls
        self.repeatable: Final = repeatable
        self.model_defaulted: Final = model_defaulted
