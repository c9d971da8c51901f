"""What goes into the engine model and comes out of it, and the state of one generation in between."""

from __future__ import annotations

import msgspec

from turnout.sim.text import TOKEN_BYTES, StopSearch, Writer


class Work(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One generation to run. `prompt` is rendered bytes, `tokens` the same prompt packed."""

    prompt: bytes
    tokens: bytes
    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    cache_salt: str = ""
    pinned: bool = False
    """Its blocks stay held after its end, until `unpin`: another engine fetches them."""
    transferred: bool = False
    """The blocks of its prompt have come from another engine: only the last token is computed."""


class Emitted(msgspec.Struct, frozen=True, gc=False):
    """One token of one sequence at the end of a step. `text` excludes what a stop string withholds."""

    id: int
    text: str
    output_tokens: int
    cached_tokens: int
    """Prompt tokens that the first admission found in the store."""
    finish: str | None
    """`stop` or `length` with the last token, else None."""
    stop_hit: str | None = None


class Counters(msgspec.Struct):
    """Totals since the engine started."""

    requests: int = 0
    aborted: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_tokens_asked: int = 0
    prefix_tokens_found: int = 0
    preemptions: int = 0
    stopped: int = 0
    length: int = 0
    steps: int = 0


class Latencies(msgspec.Struct):
    """Durations in seconds, recorded since the last `clear`, in the order they ended."""

    ttft_s: list[float] = []
    itl_s: list[float] = []
    queue_s: list[float] = []

    def clear(self) -> None:
        """Forget what was recorded, so that a long run stays bounded."""
        for values in (self.ttft_s, self.itl_s, self.queue_s):
            values.clear()


class Sequence:
    """One generation in flight: its tokens, its blocks and how far it is computed."""

    __slots__ = (
        "aborted",
        "arrived_at",
        "cached_tokens",
        "chain",
        "chunk",
        "computed",
        "held",
        "id",
        "last_token_at",
        "output_tokens",
        "partial",
        "prefilled",
        "root",
        "stop",
        "tokens",
        "work",
        "writer",
    )

    def __init__(self, number: int, work: Work, writer: Writer, root: int, now: float) -> None:
        self.id = number
        self.work = work
        self.writer = writer
        self.root = root
        self.arrived_at = now
        self.tokens = bytearray(work.tokens)
        self.chain: list[int] = []
        # The first `held` keys of the chain are referenced in the store, `partial` further blocks are ours alone.
        self.held = 0
        self.partial = 0
        self.computed = 0
        self.chunk = 0
        self.prefilled = False
        self.aborted = False
        self.cached_tokens: int | None = None
        self.output_tokens = 0
        self.last_token_at: float | None = None
        self.stop = StopSearch(work.stop) if work.stop else None

    @property
    def total(self) -> int:
        """Prompt and output tokens."""
        return len(self.tokens) // TOKEN_BYTES
