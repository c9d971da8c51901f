"""The data-parallel ranks behind one engine's door: each has its own model, prefix cache, metrics and KV events (§7).

A request goes to the rank it names (`routed_dp_rank` as SGLang has it, the header `x-data-parallel-rank` as vLLM), else
to the one with the fewest sequences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from turnout.engines.kv_events import of_rank
from turnout.sim.metrics import page
from turnout.sim.pump import Pump
from turnout.sim.requests import RefusalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.sim.engine import EngineModel
    from turnout.sim.faults import FaultPlan
    from turnout.sim.options import EngineOptions

HEADER = "x-data-parallel-rank"
HEADER_LOAD = "endpoint-load-metrics-format"
_LOAD_FORMS = ("json", "text")


class Ranks:
    """All ranks of one incarnation. Hand-overs happen on the first."""

    def __init__(self, options: EngineOptions, faults: FaultPlan, clock: Callable[[], float]) -> None:
        self.pumps = [Pump(_of_rank(options, rank), faults, clock, rank) for rank in range(options.dp_size)]

    @property
    def first(self) -> Pump:
        """Rank 0, the only one of most engines."""
        return self.pumps[0]

    @property
    def models(self) -> list[EngineModel]:
        """The model of each rank."""
        return [pump.model for pump in self.pumps]

    def pick(self, asked: int | None, header: str | None) -> Pump:
        """Return the rank that serves a request. Raises RefusalError for one that does not exist."""
        if asked is None and header is not None:
            asked = int(header) if header.isdecimal() else -1
        if asked is None:
            return min(self.pumps, key=lambda pump: pump.model.running + pump.model.waiting)
        if not 0 <= asked < len(self.pumps):
            raise RefusalError(400, f"data-parallel rank = {asked}: expected 0 to {len(self.pumps) - 1}")
        return self.pumps[asked]

    def metrics(self, *, zero: bool = False, missing: bool = False) -> bytes:
        """The metrics page: every rank under its number."""
        return page([pump.metrics for pump in self.pumps], zero=zero, missing=missing)

    def beside(self, form: str, faults: FaultPlan) -> Callable[[], tuple[str, str]] | None:
        """Return what writes the load beside a whole answer, of rank 0 alone: vLLM takes the first sample of a name."""
        form = form.lower()

        def told() -> tuple[str, str]:
            zero, missing = faults.draw("metrics_zero") is not None, faults.draw("metrics_missing") is not None
            return "endpoint-load-metrics", self.first.metrics.told(form, zero=zero, missing=missing)

        return told if form in _LOAD_FORMS else None

    def loads(self) -> dict[str, Any]:
        """What SGLang's `/v1/loads` says of each rank."""
        return {"loads": [_load(rank, model) for rank, model in enumerate(self.models)]}

    def stop(self) -> None:
        """No further step of any rank."""
        for pump in self.pumps:
            pump.stop()


def _of_rank(options: EngineOptions, rank: int) -> EngineOptions:
    return msgspec.structs.replace(
        options,
        kv_events=of_rank(options.kv_events, rank),
        kv_replay=of_rank(options.kv_replay, rank),
        kv_load=of_rank(options.kv_load, rank),
        dp_size=1,
    )


def _load(rank: int, model: EngineModel) -> dict[str, Any]:
    store, options = model.store, model.options
    return {
        "dp_rank": rank,
        "num_running_reqs": model.running,
        "num_waiting_reqs": model.waiting,
        "num_waiting_uncached_tokens": model.waiting_uncached_tokens,
        "num_used_tokens": store.used * options.block_tokens,
        "max_total_num_tokens": store.capacity * options.block_tokens,
        "token_usage": store.used / store.capacity,
        "max_running_requests": options.max_num_seqs,
    }
