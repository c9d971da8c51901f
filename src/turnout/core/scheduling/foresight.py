"""What scheduling would decide now, without deciding it: nobody's turn moves and nothing is remembered."""

from __future__ import annotations

from turnout.core.fleet.registry import Fleet, Pool
from turnout.core.kit.rng import Rng
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import Decision
from turnout.core.scheduling.pairing import Split
from turnout.core.scheduling.pipeline import schedule


def foreseen(ask: Ask, pool: Pool, fleet: Fleet, now: float, rng: Rng) -> Decision:
    """Return the decision that `schedule` would make; `rng` is drawn from, so pass a copy."""
    split = pool.pairs
    pools = [pool, split.prefill, split.decode] if isinstance(split, Split) else [pool]
    before = [(one, one.rotation.counter, one.last) for one in pools]
    try:
        return schedule(ask, pool, fleet, now, rng)
    finally:
        for one, counter, last in before:
            one.rotation.counter, one.last = counter, last
