"""What a replayed engine is made of, and one generation on it: counts and keys, no text."""

from __future__ import annotations

from typing import Any

import msgspec

from turnout.sim.timing import Linear, Roofline

Timing = Roofline | Linear


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What one replayed engine is made of. Blocks are those of the trace."""

    timing: Timing
    block_tokens: int
    hold_blocks: int
    """Blocks that sequences can hold: the accelerator's memory."""
    cache_blocks: int
    """Blocks in all, host tier included."""
    max_batched_tokens: int = 2048
    max_sequences: int = 256


class Sequence:
    """One generation. `chain` has the keys of the complete prompt blocks, and none when no block can be shared."""

    __slots__ = (
        "cached",
        "chain",
        "chunk",
        "computed",
        "emitted",
        "end_step",
        "ended_at",
        "first_at",
        "held",
        "last_at",
        "number",
        "outputs",
        "owner",
        "phase",
        "private",
        "prompt",
        "total",
        "transferred",
    )

    def __init__(self, owner: Any, chain: list[int], prompt: int, outputs: int, *, transferred: bool = False) -> None:
        self.owner = owner
        self.chain = chain
        self.prompt = prompt
        self.outputs = outputs
        self.transferred = transferred
        """The prompt's KV blocks come from another engine: only the last token is computed here."""
        self.total = prompt
        self.computed = 0
        self.chunk = 0
        self.held = 0
        self.private = 0
        self.emitted = 0
        self.number = 0
        self.phase = 0
        self.end_step = -1
        self.cached = -1
        self.first_at = -1.0
        self.last_at = -1.0
        self.ended_at = -1.0
