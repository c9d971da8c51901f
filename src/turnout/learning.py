"""The part of the composition root that lets scheduling know what the ledger has learnt, beside the path of a request.

Once per refresh of the snapshot its figures are turned into the marks and columns that scheduling reads anyway: no
request looks anything up. Where there is no figure, nothing is marked and every endpoint counts as good. What this
process has measured itself is newer and stands: success rates and first-token times only introduce endpoints to it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import xxhash

from turnout.core.facts import RouteKey

if TYPE_CHECKING:
    from turnout.core.facts import RouteStats, StatsSnapshot
    from turnout.core.fleet.endpoint import EndpointState
    from turnout.gateway.service import Gateway
    from turnout.ledger.writer import Ledger

_EVERY_S: Final = 1.0
# Fewer results are no figure, as for selection.
_SAMPLES_MIN: Final = 20
# Poor: so far below the success rate of the model's other routes (as O2 has it), or so often their first-token time.
_WORSE, _SLOWER = 0.2, 2.0


class Learning:
    """Applies each new snapshot to the fleet. `start` once, on the event loop."""

    def __init__(self, gateway: Gateway, ledger: Ledger) -> None:
        self._gateway, self._ledger = gateway, ledger
        self._seen: StatsSnapshot | None = None
        self._cooled: dict[EndpointState, float] = {}
        self._met: set[EndpointState] = set()

    def start(self) -> None:
        """Begin to look at the snapshot, and remember where the sessions of the last hour were warm."""
        self._loop = asyncio.get_running_loop()
        self._loop.call_later(_EVERY_S, self._look)
        self._loop.call_later(_EVERY_S, self._recall)

    def apply(self, snapshot: StatsSnapshot) -> None:
        """Mark endpoints by what a snapshot says of them; a neutral one takes every mark away."""
        fleet, now, now_ms = self._gateway.fleet, self._gateway.clock(), self._gateway.now_ms()
        before, self._cooled = self._cooled, {}
        for endpoint in fleet.endpoints.values():
            if endpoint.durable_cooldown:
                self._cool(endpoint, before.get(endpoint), snapshot, now, now_ms)
        for model in fleet.models:
            pool = fleet.pool(model)
            if pool is not None:
                weak = [m.name for m in pool.members if self._gateway.route(m, model) in snapshot.tool_incapable]
                pool.tool_weak = frozenset(weak)
        if snapshot.observed_at_ms:
            self._introduce(snapshot, now)

    def _look(self) -> None:
        snapshot = self._ledger.snapshot()
        if snapshot is not self._seen:
            self._seen = snapshot
            self.apply(snapshot)
        self._loop.call_later(_EVERY_S, self._look)

    def _cool(
        self, endpoint: EndpointState, ours: float | None, snapshot: StatsSnapshot, now: float, now_ms: int
    ) -> None:
        """Keep an endpoint back while its streak cools down; `ours` is what this did to it last."""
        streak = snapshot.endpoint_streaks.get((endpoint.provider, "" if endpoint.provider else endpoint.name))
        left_ms = streak.cooldown_until_ms - now_ms if streak is not None else 0
        if left_ms > 0:
            until = now + left_ms / 1000
            if until > endpoint.cooldown_until or endpoint.cooldown_until == ours:
                endpoint.cooldown_until = self._cooled[endpoint] = until
        elif ours is not None and endpoint.cooldown_until == ours:
            # A success has ended the streak before its time was over.
            endpoint.cooldown_until = 0.0

    def _introduce(self, snapshot: StatsSnapshot, now: float) -> None:
        """Let endpoints that this process has not used yet, and that served others poorly, begin slowly (B7)."""
        endpoints = self._gateway.fleet.endpoints.values()
        for endpoint in [one for one in endpoints if one not in self._met and not one.attempts_total]:
            for model in endpoint.models:
                own, all_routes = snapshot.routes.get(self._gateway.route(endpoint, model)), snapshot.models.get(model)
                if own is not None and all_routes is not None and _poor(own, all_routes):
                    endpoint.breaker.start_slowly(now)
        self._met = set(endpoints)

    def _recall(self) -> None:
        self._loop.run_in_executor(None, self._ledger.hot_routes).add_done_callback(self._recalled)

    def _recalled(self, asked: asyncio.Future[list[tuple[str, str, RouteKey, int]]]) -> None:
        if asked.cancelled() or asked.exception() is not None:
            return
        fleet, now, now_ms = self._gateway.fleet, self._gateway.clock(), self._gateway.now_ms()
        for tenant, session, route, ended_at_ms in reversed(asked.result()):
            key = xxhash.xxh3_64_intdigest(f"{tenant}\0{session}".encode())
            endpoint = fleet.endpoints.get(route.replica)
            # What was served since the start is newer than anything from before it.
            if endpoint is not None and fleet.pinned(key, now) is None:
                fleet.pin(key, endpoint, now - max(0, now_ms - ended_at_ms) / 1000)


def _poor(own: RouteStats, all_routes: RouteStats) -> bool:
    """Compare a route with the other routes of its model, by sums: each mean has the weight of its own count."""
    counted, first = all_routes.counted_n - own.counted_n, all_routes.ttft_n - own.ttft_n
    if min(own.counted_n, counted) >= _SAMPLES_MIN:
        others = (all_routes.ok_n - own.ok_n) / counted
        if own.ok_n / own.counted_n <= others - _WORSE:
            return True
    if min(own.ttft_n, first) < _SAMPLES_MIN:
        return False
    return own.ttft_sum_ms * first >= _SLOWER * (all_routes.ttft_sum_ms - own.ttft_sum_ms) * own.ttft_n
