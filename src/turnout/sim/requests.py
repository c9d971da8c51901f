"""OpenAI request bodies to work for the model, with vLLM's refusals for what cannot be served."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from turnout.sim.render import Message, render_chat, render_prompt
from turnout.sim.sequence import Work
from turnout.sim.text import TOKEN_BYTES, pack, pack_ids, rendered_of

COMPLETION_TOKENS = 16
"""Output limit of a completion that names none, as in vLLM."""
STOPS_MAX = 16
DIMENSIONS_MAX = 4096
DIMENSIONS = 16
TOKEN_ID_MAX = 2**32 - 1

T = TypeVar("T")


class RefusalError(Exception):
    """An answer in vLLM's error shape instead of a generation."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param


class Generate(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A generation as asked for."""

    work: Work
    chat: bool
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    logprobs: bool = False
    rank: int | None = None
    """Data-parallel rank that is to serve it; None: whichever has room."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.work.tokens) // TOKEN_BYTES


class StreamOptions(msgspec.Struct):
    """What a stream tells beside its text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Sampling(msgspec.Struct, kw_only=True):
    """The members that every generating request may have."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    logprobs: bool | int | None = None
    routed_dp_rank: int | None = None


class _Chat(Sampling, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    tools: Any = None
    functions: Any = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class _Completion(Sampling, kw_only=True):
    prompt: str | list[Any]


class _Embedding(msgspec.Struct, kw_only=True):
    input: str | list[Any]
    model: str | None = None
    dimensions: int | None = None
    encoding_format: str | None = None


class _Tokenize(msgspec.Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: Any = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class _Detokenize(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str | None = None


_chat = msgspec.json.Decoder(_Chat)
_completion = msgspec.json.Decoder(_Completion)
_embedding = msgspec.json.Decoder(_Embedding)
_tokenize = msgspec.json.Decoder(_Tokenize)
_detokenize = msgspec.json.Decoder(_Detokenize)


class Reader:
    """Reads bodies for one engine: its model name and its context."""

    def __init__(self, model: str, context_tokens: int) -> None:
        self._model = model
        self._context = context_tokens

    def chat(self, body: bytes) -> Generate:
        """`POST /v1/chat/completions`. Raises RefusalError."""
        asked = decode(_chat, body)
        self._check_model(asked.model)
        if not asked.messages:
            raise RefusalError(400, "messages = []: expected at least one message", param="messages")
        prompt = _render(asked.messages, asked.tools or asked.functions, asked)
        limit = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
        return self._generate(asked, prompt, pack(prompt), limit, chat=True)

    def completion(self, body: bytes) -> Generate:
        """`POST /v1/completions`. Raises RefusalError."""
        asked = decode(_completion, body)
        self._check_model(asked.model)
        prompt, tokens = read_prompt(asked.prompt, "prompt")
        limit = asked.max_tokens if asked.max_tokens is not None else COMPLETION_TOKENS
        return self._generate(asked, prompt, tokens, limit, chat=False)

    def embedding(self, body: bytes) -> tuple[list[bytes], int, bool]:
        """`POST /v1/embeddings`: packed inputs, dimensions, and whether vectors are base64. Raises RefusalError."""
        asked = decode(_embedding, body)
        self._check_model(asked.model)
        several = isinstance(asked.input, list) and asked.input and not isinstance(asked.input[0], int)
        inputs = asked.input if several else [asked.input]
        dimensions = DIMENSIONS if asked.dimensions is None else asked.dimensions
        if not 1 <= dimensions <= DIMENSIONS_MAX:
            raise RefusalError(400, f"dimensions = {dimensions}: expected 1 to {DIMENSIONS_MAX}", param="dimensions")
        return [read_prompt(each, "input")[1] for each in inputs], dimensions, asked.encoding_format == "base64"

    def tokenize(self, body: bytes) -> bytes:
        """`POST /tokenize`: packed tokens of a prompt or of messages. Raises RefusalError."""
        asked = decode(_tokenize, body)
        self._check_model(asked.model)
        if asked.messages is not None:
            return pack(_render(asked.messages, asked.tools, asked))
        if asked.prompt is None:
            raise RefusalError(400, "prompt is absent: expected prompt or messages", param="prompt")
        return pack(render_prompt(asked.prompt))

    def detokenize(self, body: bytes) -> bytes:
        """`POST /detokenize`: rendered bytes of token ids. Raises RefusalError."""
        asked = decode(_detokenize, body)
        self._check_model(asked.model)
        return rendered_of(_packed_ids(asked.tokens, "tokens"))

    def _check_model(self, model: str | None) -> None:
        if model is not None and model != self._model:
            raise RefusalError(404, f"The model `{model}` does not exist.", "NotFoundError", "model")

    def _generate(self, asked: Sampling, prompt: bytes, tokens: bytes, limit: int | None, *, chat: bool) -> Generate:
        if asked.n not in (None, 1):
            raise RefusalError(400, f"n = {asked.n}: expected 1", param="n")
        options = asked.stream_options or StreamOptions()
        return Generate(
            work=Work(
                prompt=prompt,
                tokens=tokens,
                max_tokens=self._limit(len(tokens) // TOKEN_BYTES, limit),
                min_tokens=asked.min_tokens or 0,
                ignore_eos=bool(asked.ignore_eos),
                stop=read_stops(asked.stop),
                cache_salt=asked.cache_salt or "",
            ),
            chat=chat,
            stream=bool(asked.stream),
            include_usage=bool(options.include_usage),
            continuous_usage=bool(options.continuous_usage_stats),
            # A completion's `logprobs: 0` asks for the chosen token alone, a chat's `false` for nothing.
            logprobs=asked.logprobs is not None and asked.logprobs is not False,
            rank=asked.routed_dp_rank,
        )

    def _limit(self, prompt_tokens: int, limit: int | None) -> int:
        room = self._context - prompt_tokens
        if room < 1:
            message = (
                f"This model's maximum context length is {self._context} tokens. However, your request has "
                f"{prompt_tokens} input tokens. Please reduce the length of the input messages."
            )
            raise RefusalError(400, message)
        if limit is None:
            return room
        if limit < 1:
            raise RefusalError(400, f"max_tokens must be at least 1, got {limit}.", param="max_tokens")
        if limit > room:
            message = (
                f"'max_tokens' or 'max_completion_tokens' is too large: {limit}. This model's maximum context length "
                f"is {self._context} tokens and your request has {prompt_tokens} input tokens "
                f"({limit} > {self._context} - {prompt_tokens})."
            )
            raise RefusalError(400, message, param="max_tokens")
        return limit


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A body of one shape. Raises RefusalError."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusalError(400, f"{type(error).__name__}: {error}") from error


def _render(messages: list[Message], tools: object, asked: _Chat | _Tokenize) -> bytes:
    wanted = asked.add_generation_prompt is not False
    if asked.continue_final_message:
        if wanted and asked.add_generation_prompt is not None:
            message = "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
            raise RefusalError(400, message, param="continue_final_message")
        wanted = False
    return render_chat(messages, tools, generation_prompt=wanted)


def read_prompt(prompt: object, field: str) -> tuple[bytes, bytes]:
    """Rendered bytes and packed tokens of a string, of token ids, or of a list of one of them. Raises RefusalError."""
    if isinstance(prompt, str):
        rendered = render_prompt(prompt)
        return rendered, pack(rendered)
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        tokens = _packed_ids(prompt, field)
        return rendered_of(tokens), tokens
    if isinstance(prompt, list) and len(prompt) == 1:
        return read_prompt(prompt[0], field)
    raise RefusalError(400, f"{field}: expected one string or one list of token ids", param=field)


def _packed_ids(ids: list[Any], field: str) -> bytes:
    for place, token in enumerate(ids):
        if type(token) is not int or not 0 <= token <= TOKEN_ID_MAX:
            raise RefusalError(400, f"{field}[{place}]: expected a token id from 0 to {TOKEN_ID_MAX}", param=field)
    return pack_ids(ids)


def read_stops(stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple, without empty ones. Raises RefusalError."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > STOPS_MAX:
        raise RefusalError(400, f"stop has {len(stops)} strings: expected at most {STOPS_MAX}", param="stop")
    return tuple(each for each in stops if each)
