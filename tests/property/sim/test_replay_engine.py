"""The replayed engine jumps over decode steps; it must do what the engine that steps token by token does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.sim.blocks import extend_chain
from turnout.sim.engine import EngineModel
from turnout.sim.options import EngineOptions
from turnout.sim.replay.engine import ReplayEngine
from turnout.sim.replay.sequence import Sequence, Shape
from turnout.sim.sequence import Work
from turnout.sim.text import TOKEN_BYTES
from turnout.sim.timing import timing_of
from turnout.sim.virtual import run

BLOCK = 4

requests = st.lists(
    st.tuples(
        st.floats(0.0, 0.4, allow_nan=False),  # gap to the one before
        st.integers(0, 2),  # which family of prompts it continues
        st.integers(0, 40),  # tokens shared with its family
        st.integers(1, 20),  # tokens of its own
        st.integers(1, 40),  # tokens to generate
    ),
    min_size=1,
    max_size=14,
)
engines = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(26, 120),
        "max_num_seqs": st.integers(1, 6),
        "max_num_batched_tokens": st.integers(6, 48),
        "profile": st.sampled_from(["default", "8b", "moe"]),
    },
)


@settings(max_examples=100, deadline=None)
@given(rows=requests, shape=engines)
def test_jumping_equals_stepping(rows: list[tuple[float, int, int, int, int]], shape: dict[str, int]) -> None:
    options = EngineOptions(
        block_tokens=BLOCK,
        step_per_context_token_s=1e-5,
        max_model_len=4096,
        **shape,  # type: ignore[arg-type]
    )
    arrivals = _arrivals(rows)
    stepped = EngineModel(options)
    expected = run(stepped, [(at, work) for at, work, _ in arrivals])
    jumped = ReplayEngine(
        Shape(
            timing=timing_of(options),  # type: ignore[arg-type]
            block_tokens=BLOCK,
            hold_blocks=options.blocks,
            cache_blocks=options.blocks,
            max_batched_tokens=options.max_num_batched_tokens,
            max_sequences=options.max_num_seqs,
        ),
        events=True,
    )
    sequences = drive(
        jumped, [(at, chain, len(work.tokens) // TOKEN_BYTES, work.max_tokens) for at, work, chain in arrivals]
    )
    for sequence, generation in zip(sequences, expected, strict=True):
        assert sequence.first_at == pytest.approx(generation.token_at[0], rel=1e-9)
        assert sequence.ended_at == pytest.approx(generation.token_at[-1], rel=1e-9)
        assert sequence.cached == generation.cached_tokens
    assert jumped.preemptions == stepped.counters.preemptions
    assert jumped.steps == stepped.counters.steps
    assert jumped.gaps.total == sum(len(each.itl_s) for each in expected)
    assert (jumped.store.used, jumped.store.cached) == (stepped.store.used, stepped.store.cached)
    assert jumped.store.private == 0


def drive(engine: ReplayEngine, arrivals: list[tuple[float, list[int], int, int]]) -> list[Sequence]:
    """Serve all arrivals on one engine."""
    sequences = [Sequence(None, chain, prompt, outputs) for _, chain, prompt, outputs in arrivals]
    now, position = 0.0, 0
    while True:
        end = engine.end_at
        if end is None:
            end = engine.plan(now)
        if position < len(arrivals) and (end is None or arrivals[position][0] < end):
            at = arrivals[position][0]
            now = max(now, at) if end is None else now
            while position < len(arrivals) and arrivals[position][0] <= at:
                engine.add(sequences[position], at)
                position += 1
        elif end is None:
            return sequences
        else:
            now = end
            engine.finish()


def _arrivals(rows: list[tuple[float, int, int, int, int]]) -> list[tuple[float, Work, list[int]]]:
    now = 0.0
    made = []
    for number, (gap, family, shared, own, outputs) in enumerate(rows):
        now += gap
        words = [f"f{family}{place:02d}"[:4].encode() for place in range(shared)]
        # Own tokens never repeat, so that no generated block is found again by chance.
        words += [number.to_bytes(2, "big") + place.to_bytes(2, "big") for place in range(own)]
        tokens = b"".join(words)
        chain: list[int] = []
        extend_chain(chain, tokens, BLOCK * TOKEN_BYTES, 7)
        made.append((now, Work(prompt=tokens, tokens=tokens, max_tokens=outputs, ignore_eos=True), chain))
    return made
