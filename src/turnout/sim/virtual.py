"""The model on virtual time: a list of arrivals in, the time of every token out, without a clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.sim.engine import EngineModel
    from turnout.sim.sequence import Work


class Generation(msgspec.Struct):
    """One finished generation. Times are seconds on the virtual clock."""

    arrived_at: float
    cached_tokens: int = 0
    token_at: list[float] = []
    text: str = ""
    finish: str | None = None

    @property
    def ttft_s(self) -> float:
        """Arrival to the end of the step that emitted the first token."""
        return self.token_at[0] - self.arrived_at

    @property
    def itl_s(self) -> list[float]:
        """Gaps between consecutive tokens."""
        return [late - early for early, late in zip(self.token_at, self.token_at[1:], strict=False)]


def run(model: EngineModel, arrivals: Sequence[tuple[float, Work]]) -> list[Generation]:
    """Serve all arrivals, ascending in time, until the engine is idle; results in order of arrival."""
    done = [Generation(arrived_at=at) for at, _ in arrivals]
    index: dict[int, int] = {}
    now = 0.0
    position = 0
    while True:
        while position < len(arrivals) and arrivals[position][0] <= now:
            at, work = arrivals[position]
            index[model.add(work, at)] = position
            position += 1
        end = model.begin(now)
        if end is None:
            if position == len(arrivals):
                return done
            now = arrivals[position][0]
            continue
        now = end
        # A generation carries its own times; nobody reads these here.
        model.latencies.clear()
        for event in model.finish():
            generation = done[index[event.id]]
            generation.token_at.append(now)
            generation.text += event.text
            generation.cached_tokens = event.cached_tokens
            if event.finish is not None:
                generation.finish = event.finish
                del index[event.id]
