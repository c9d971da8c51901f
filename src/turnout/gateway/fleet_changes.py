"""Endpoints that leave and return while the router runs: drained by hand, replaced by a reload (resilience X4, I2, I3).

What runs on an endpoint that leaves runs on: its connections live until they are done. An endpoint that returns, or
whose description has changed, is a new incarnation: cold, without affinity, load, breaker or cooldown of the old one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout.core import options
from turnout.gateway.upstream import Upstream

if TYPE_CHECKING:
    from turnout.gateway.prober import Prober
    from turnout.gateway.service import Gateway


class FleetChanges:
    """The configured endpoints, and what may be done with them."""

    def __init__(
        self, gateway: Gateway, prober: Prober, endpoints: list[options.Endpoint], pool: options.Pool, connect_s: float
    ) -> None:
        self._gateway = gateway
        self._prober = prober
        self._described = {endpoint.name: endpoint for endpoint in endpoints}
        self._pool = pool
        self._connect_s = connect_s

    def drain(self, name: str) -> bool:
        """Send nothing more to an endpoint; False when there is none of this name."""
        endpoint = self._gateway.fleet.endpoints.get(name)
        if endpoint is None:
            return False
        endpoint.draining = True
        return True

    def resume(self, name: str) -> bool:
        """Use a drained endpoint again, as a new incarnation; one that is not drained stays as it is."""
        described = self._described.get(name)
        if described is None:
            return False
        endpoint = self._gateway.fleet.endpoints.get(name)
        if endpoint is None or endpoint.draining:
            self._join(described)
        return True

    def replace(self, endpoints: list[options.Endpoint], pool: options.Pool, connect_s: float) -> dict[str, list[str]]:
        """Make these the configured endpoints; returns the names that joined, left and changed."""
        wanted = {endpoint.name: endpoint for endpoint in endpoints}
        same_pool = (pool, connect_s) == (self._pool, self._connect_s)
        self._pool, self._connect_s = pool, connect_s
        told: dict[str, list[str]] = {"joined": [], "left": [], "changed": []}
        for name in sorted(self._described.keys() - wanted.keys()):
            self._leave(name)
            told["left"].append(name)
        for name in sorted(wanted):
            known = self._described.get(name)
            if known == wanted[name] and same_pool:
                continue
            told["joined" if known is None else "changed"].append(name)
            self._join(wanted[name])
        self._described = wanted
        return told

    def _join(self, described: options.Endpoint) -> None:
        gateway, name = self._gateway, described.name
        self._retire(name)
        gateway.upstreams[name] = Upstream(described, self._pool, self._connect_s)
        gateway.fleet.add(described, gateway.clock())
        self._prober.watch(name)

    def _leave(self, name: str) -> None:
        self._prober.forget(name)
        self._gateway.fleet.remove(name)
        self._retire(name)

    def _retire(self, name: str) -> None:
        """Let open connections end by themselves, and close those that nobody uses."""
        upstream = self._gateway.upstreams.pop(name, None)
        if isinstance(upstream, Upstream):
            upstream.pool.retire()
            self._gateway.retired.append(upstream)
