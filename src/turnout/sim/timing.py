"""How long one step takes: the linear table and the roofline profiles of engines §7, as pure functions of the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from turnout.sim.options import EngineOptions


class Batch(msgspec.Struct, gc=False):
    """What one step computes, in tokens. A chunk's context is its length plus what is before it."""

    decodes: int = 0
    decode_context: int = 0
    prefill_tokens: int = 0
    chunk_context: int = 0
    """Sum over the prefill chunks of chunk · context, tokens squared."""
    prefill_context: int = 0
    """Sum over the prefill chunks of their context."""


class Timing(Protocol):
    """The duration of a step."""

    def duration_s(self, batch: Batch, /) -> float:
        """Seconds of engine time for this batch."""


class Linear(msgspec.Struct, frozen=True, gc=False):
    """`base + decodes · per_seq + prefill tokens / rate + Σ context · per_context_token`."""

    base_s: float
    per_seq_s: float
    prefill_tokens_per_s: float
    per_context_token_s: float

    def duration_s(self, batch: Batch) -> float:
        """Seconds of engine time for this batch."""
        return (
            self.base_s
            + batch.decodes * self.per_seq_s
            + batch.prefill_tokens / self.prefill_tokens_per_s
            + (batch.decode_context + batch.prefill_context) * self.per_context_token_s
        )


class Roofline(msgspec.Struct, frozen=True, gc=False):
    """`max(w, tokens · a) + b · Σ(chunk · context) + k · Σ(decode context) + t0`."""

    w: float
    t0: float
    a: float
    b: float
    k: float

    def duration_s(self, batch: Batch) -> float:
        """Seconds of engine time for this batch."""
        tokens = batch.decodes + batch.prefill_tokens
        return max(self.w, tokens * self.a) + self.b * batch.chunk_context + self.k * batch.decode_context + self.t0


ROOFLINES: dict[str, Roofline] = {
    "8b": Roofline(w=0.0064, t0=0.002, a=32e-6, b=1.3e-9, k=5.6e-8),
    "70b": Roofline(w=0.014, t0=0.004, a=71e-6, b=1.66e-9, k=3.5e-8),
    "moe": Roofline(w=0.020, t0=0.005, a=30e-6, b=6e-10, k=4e-9),
}


def timing_of(options: EngineOptions) -> Timing:
    """The roofline of the profile, or the linear table when the profile is `default`."""
    roofline = ROOFLINES.get(options.profile)
    if roofline is not None:
        return roofline
    return Linear(
        base_s=options.step_base_s,
        per_seq_s=options.step_per_seq_s,
        prefill_tokens_per_s=options.prefill_tokens_per_s,
        per_context_token_s=options.step_per_context_token_s,
    )


def cold_prefill_s(options: EngineOptions, prompt_tokens: int) -> float:
    """Prefill alone on an idle engine of these options, chunk by chunk: the reference of the TTFT objective."""
    timing = timing_of(options)
    total = 0.0
    before = 0
    while before < prompt_tokens:
        chunk = min(options.max_num_batched_tokens, prompt_tokens - before)
        before += chunk
        total += timing.duration_s(
            Batch(prefill_tokens=chunk, chunk_context=chunk * before, prefill_context=before),
        )
    return total / options.speed
