"""The highest load at which a share of the requests still meets the objective: bisection over the load, mean of seeds.

The share falls with the load but for noise, so the answer is the upper end of a bracket of stated width. All policies
advance together, which keeps every core busy although each search is sequential.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from turnout.sim.replay.options import ReplayOptions
from turnout.sim.replay.work import Bench, Run

_LOAD_MIN, _LOAD_MAX = 0.02, 64.0
_GROWTH = 1.6
_ROUNDS_MAX = 40

Heard = Callable[[str, int], None]
"""Hears which policy's search is how many replays further."""


class Search:
    """One policy's bracket: `low` meets the objective, `high` does not; 0 and infinity are open ends."""

    def __init__(self, policy: str, start: float, width: float) -> None:
        self.policy = policy
        self.low = 0.0
        self.high = math.inf
        self.tried: dict[float, float] = {}
        self._next = start
        self._width = width

    @property
    def done(self) -> bool:
        """Whether the bracket is narrow enough, or nothing can be said within the range."""
        if len(self.tried) >= _ROUNDS_MAX or self.low >= _LOAD_MAX or self.high <= _LOAD_MIN:
            return True
        return self.low > 0.0 and self.high < math.inf and self.high <= self.low * (1.0 + self._width)

    @property
    def load(self) -> float:
        """The next load to try."""
        return self._next

    def heard(self, share: float, wanted: float) -> None:
        """Take in the share at the load that was tried."""
        load = self._next
        self.tried[load] = share
        if share >= wanted:
            self.low = load
        else:
            self.high = load
        if self.high == math.inf:
            following = load * _GROWTH
        elif self.low == 0.0:
            following = load / _GROWTH
        else:
            following = math.sqrt(self.low * self.high)
        self._next = round(following, 4)

    def at_share(self, wanted: float) -> float:
        """Return the load at which the share crosses `wanted`, by interpolation inside the bracket."""
        if self.low == 0.0 or self.high == math.inf:
            return self.low
        above, below = self.tried[self.low], self.tried[self.high]
        if above <= below:
            return self.low
        return self.low + (self.high - self.low) * min(1.0, (above - wanted) / (above - below))


def search_capacity(
    bench: Bench,
    options: ReplayOptions,
    policies: list[str],
    seeds: list[int],
    *,
    closed: bool,
    wanted: float = 0.95,
    width: float = 0.02,
    heard: Heard | None = None,
) -> dict[str, dict[str, Any]]:
    """Return per policy the capacity (load multiple, or sessions per second) and every load that was tried."""
    start = options.sessions_per_s if closed else options.load
    searches = [Search(policy, start, width) for policy in policies]
    while True:
        open_ones = [search for search in searches if not search.done]
        if not open_ones:
            break
        runs: list[Run] = []
        owners: list[Search] = []
        for search in open_ones:
            field = "sessions_per_s" if closed else "load"
            at = msgspec.structs.replace(options, **{field: search.load})
            for seed in seeds:
                runs.append(Run(options=at, policy=search.policy, seed=seed))
                owners.append(search)
        shares: dict[str, dict[int, float]] = {}
        for place, share in bench.shares(runs):
            shares.setdefault(owners[place].policy, {})[runs[place].seed] = share
            if heard is not None:
                heard(owners[place].policy, 1)
        for search in open_ones:
            mine = shares[search.policy]
            search.heard(sum(mine[seed] for seed in seeds) / len(seeds), wanted)
    return {
        search.policy: {
            "capacity": round(search.at_share(wanted), 4),
            "meets": round(search.low, 4),
            "fails": None if search.high == math.inf else round(search.high, 4),
            "tried": {f"{load:.4f}": round(share, 6) for load, share in sorted(search.tried.items())},
        }
        for search in searches
    }
