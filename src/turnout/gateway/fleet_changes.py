"""Endpoints that come and go while the router runs: registered, drained by hand, replaced by a reload (X4, I2, I3).

What runs on an endpoint that leaves runs on: its connections live until they are done, and until then it is asked
whether it is there. An endpoint that returns, or whose description has changed, is a new incarnation: cold, without
affinity, load, breaker or cooldown of the old one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from turnout.core import options
from turnout.gateway.upstream import Upstream

if TYPE_CHECKING:
    from turnout.gateway.prober import Prober
    from turnout.gateway.service import Gateway


_REGISTERED_MAX = 512


class FleetChanges:
    """The configured endpoints, and what may be done with them."""

    def __init__(
        self, gateway: Gateway, prober: Prober, endpoints: list[options.Endpoint], pool: options.Pool, connect_s: float
    ) -> None:
        self._gateway = gateway
        self._prober = prober
        self._described = {endpoint.name: endpoint for endpoint in endpoints}
        self._registered: dict[str, options.Endpoint] = {}
        """Of those, the ones that have announced themselves: a reload leaves them, unless it names them."""
        self.on_join: Callable[[options.Endpoint], None] = _unwatched
        """Hears of each description that comes into force after the start."""
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
        configured = {endpoint.name: endpoint for endpoint in endpoints}
        self._registered = {name: own for name, own in self._registered.items() if name not in configured}
        wanted = self._registered | configured
        same_pool = (pool, connect_s) == (self._pool, self._connect_s)
        self._pool, self._connect_s = pool, connect_s
        told: dict[str, list[str]] = {"joined": [], "left": [], "changed": []}
        for name in sorted(self._described.keys() - wanted.keys()):
            self._leave(name)
            told["left"].append(name)
        for name in sorted(wanted):
            known = self._described.get(name)
            if known == wanted[name]:
                if not same_pool:  # how we connect is no trait of the endpoint: its state stays (B10)
                    self._reconnect(known)
                continue
            told["joined" if known is None else "changed"].append(name)
            self._join(wanted[name])
        self._described = wanted
        return told

    def register(self, described: options.Endpoint) -> str:
        """Take an endpoint that announces itself; returns why not, or nothing. The same again changes nothing."""
        name = described.name
        known = self._described.get(name)
        if known is not None and name not in self._registered:
            return "an endpoint of this name is configured"
        unknown = [model for model in described.models if not self._gateway.catalogue.knows(model)]
        if unknown:
            return f"models: {', '.join(unknown)} not in the catalogue"
        if len(self._registered) >= _REGISTERED_MAX and name not in self._registered:
            return f"endpoints registered = {len(self._registered)}: expected fewer than {_REGISTERED_MAX}"
        self._registered[name] = self._described[name] = described
        if known != described or name not in self._gateway.fleet.endpoints:
            self._join(described)
        return ""

    def deregister(self, name: str) -> bool:
        """Let a registered endpoint go; False when there is none of this name. What runs on it runs on."""
        if self._registered.pop(name, None) is None:
            return False
        del self._described[name]
        self._leave(name)
        return True

    def _join(self, described: options.Endpoint) -> None:
        gateway, name = self._gateway, described.name
        self._see_off(name)
        self._reconnect(described)
        gateway.fleet.add(described, gateway.clock())
        self._prober.watch(name)
        self.on_join(described)

    def _leave(self, name: str) -> None:
        self._see_off(name)
        self._prober.forget(name)
        self._gateway.fleet.remove(name)
        self._retire(name)

    def _see_off(self, name: str) -> None:
        """Nobody waits for a reply that cannot come: one that leaves is asked as long as somebody waits for it (I3)."""
        endpoint, upstream = self._gateway.fleet.endpoints.get(name), self._gateway.upstreams.get(name)
        if endpoint is not None and upstream is not None and endpoint.in_flight:
            self._prober.see_off(endpoint, upstream)

    def _reconnect(self, described: options.Endpoint) -> None:
        """Open new connections from here on."""
        self._retire(described.name)
        self._gateway.upstreams[described.name] = Upstream(described, self._pool, self._connect_s)

    def _retire(self, name: str) -> None:
        """Let open connections end by themselves, and close those that nobody uses."""
        upstream = self._gateway.upstreams.pop(name, None)
        if isinstance(upstream, Upstream):
            upstream.pool.retire()
            self._gateway.retired.append(upstream)


def _unwatched(_: options.Endpoint) -> None:
    """Nobody listens."""
