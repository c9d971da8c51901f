"""SGLang's own request body, `POST /generate`: one prompt or a batch of them to generations, with SGLang's refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from turnout.sim.handover_shapes import Legs
from turnout.sim.requests import Generate, RefusalError, decode, read_prompt, read_stops
from turnout.sim.sequence import Work
from turnout.sim.text import TOKEN_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

NEW_TOKENS = 128
"""Output limit of a request that names none, as in SGLang."""
BATCH_MAX = 4096
MALFORMED = "Bad Request"
"""Kind of refusal of a body that is not of the shape; SGLang words those otherwise."""

T = TypeVar("T")


class Params(msgspec.Struct):
    """`sampling_params`; members that change no token here are skipped."""

    max_new_tokens: int | None = NEW_TOKENS
    min_new_tokens: int = 0
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    n: int = 1


class Native(msgspec.Struct, kw_only=True):
    """A body; what may be a list has one value per prompt of a batch."""

    text: str | list[str] | None = None
    input_ids: list[Any] | None = None
    sampling_params: Params | list[Params] | None = None
    stream: bool = False
    rid: str | list[str] | None = None
    extra_key: str | list[str] | None = None
    routed_dp_rank: int | None = None
    data_parallel_rank: int | None = None
    bootstrap_host: str | list[str | None] | None = None
    bootstrap_port: int | list[int | None] | None = None
    bootstrap_room: int | list[int | None] | None = None

    @property
    def batch(self) -> bool:
        """Whether the answer is a list, even of one."""
        ids = self.input_ids
        return isinstance(self.text, list) or (bool(ids) and isinstance(ids[0], list))  # type: ignore[index]  # not empty


class Item(msgspec.Struct, frozen=True):
    """One generation of a body."""

    asked: Generate
    legs: Legs
    """Where it is one leg of two: `bootstrap_room` is not None."""
    identifier: str
    rid: str | None
    """The same, where the client has chosen it."""


_native = msgspec.json.Decoder(Native)


def read_native(body: bytes) -> Native:
    """`POST /generate`. Raises RefusalError."""
    try:
        return decode(_native, body)
    except RefusalError as refusal:
        raise RefusalError(400, refusal.message, MALFORMED) from refusal


def items_of(native: Native, identifier: str, context_tokens: int) -> list[Item]:
    """The generations of a body, in order; `identifier` names those that have no `rid`. Raises RefusalError."""
    if (native.text is None) == (native.input_ids is None):
        raise RefusalError(400, "Either text, input_ids or input_embeds should be provided.")
    given: Any = native.input_ids if native.text is None else native.text
    prompts: list[Any] = given if native.batch else [given]
    count = len(prompts)
    if not 1 <= count <= BATCH_MAX:
        raise RefusalError(400, f"prompts = {count}: expected 1 to {BATCH_MAX}")
    params = _each(native.sampling_params, count, "sampling_params")
    keys = _each(native.extra_key, count, "extra_key")
    hosts = _each(native.bootstrap_host, count, "bootstrap_host")
    ports = _each(native.bootstrap_port, count, "bootstrap_port")
    rooms = _numbered(native.bootstrap_room, count)
    rids = _rids(native, count)
    rank = native.routed_dp_rank if native.routed_dp_rank is not None else native.data_parallel_rank
    return [
        Item(
            asked=_generate(native, prompt, params[n] or Params(), keys[n] or "", rank, context_tokens),
            legs=Legs(bootstrap_host=hosts[n], bootstrap_port=ports[n], bootstrap_room=rooms[n]),
            identifier=rids[n] or (f"{identifier}_{n}" if native.batch else identifier),
            rid=rids[n],
        )
        for n, prompt in enumerate(prompts)
    ]


def _generate(native: Native, prompt: Any, params: Params, key: str, rank: int | None, context: int) -> Generate:
    if native.text is None and not (isinstance(prompt, list) and prompt and isinstance(prompt[0], int)):
        raise RefusalError(400, "input_ids: expected a list of token ids, or several")
    rendered, tokens = read_prompt(prompt, "input_ids" if native.text is None else "text")
    if params.n != 1:
        raise RefusalError(400, f"n = {params.n}: expected 1")
    return Generate(
        work=Work(
            prompt=rendered,
            tokens=tokens,
            max_tokens=_limit(len(tokens) // TOKEN_BYTES, params.max_new_tokens, context),
            min_tokens=params.min_new_tokens,
            ignore_eos=params.ignore_eos,
            stop=read_stops(params.stop),
            cache_salt=key,
        ),
        chat=False,
        stream=native.stream,
        continuous_usage=True,
        rank=rank,
    )


def _limit(prompt_tokens: int, wanted: int | None, context: int) -> int:
    room = context - prompt_tokens
    if room < 1:
        message = f"The input ({prompt_tokens} tokens) is longer than the model's context length ({context} tokens)."
        raise RefusalError(400, message)
    if wanted is None:
        return room
    if wanted < 1:
        raise RefusalError(400, f"max_new_tokens must be at least 1, got {wanted}.")
    if wanted > room:
        message = (
            f"Requested token count exceeds the model's maximum context length of {context} tokens. You requested a "
            f"total of {prompt_tokens + wanted} tokens: {prompt_tokens} tokens from the input messages and {wanted} "
            "tokens for the completion. Please reduce the number of tokens in the input messages or the completion "
            "to fit within the limit."
        )
        raise RefusalError(400, message)
    return wanted


def _each(value: T | Sequence[T | None] | None, count: int, name: str) -> Sequence[T | None]:
    """One value per prompt: those of a list, else the same for all."""
    if not isinstance(value, list):
        return [value] * count  # type: ignore[list-item]  # no list, so one value
    if len(value) != count:
        raise RefusalError(400, f"{name} has {len(value)} values: expected one for each of {count} prompts")
    return value


def _numbered(room: int | list[int | None] | None, count: int) -> Sequence[int | None]:
    """Rooms are distinct: a single one is that of the first prompt, the others have the next numbers."""
    if isinstance(room, int):
        return [room + number for number in range(count)]
    return _each(room, count, "bootstrap_room")


def _rids(native: Native, count: int) -> Sequence[str | None]:
    """Names are distinct: a single one is the prefix of a batch's."""
    if native.batch and isinstance(native.rid, str):
        return [f"{native.rid}_{number}" for number in range(count)]
    rids = _each(native.rid, count, "rid")
    if isinstance(native.rid, list) and len(set(native.rid)) < count:
        raise RefusalError(400, "Duplicate request ID detected.")
    return rids
