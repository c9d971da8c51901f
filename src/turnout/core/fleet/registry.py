"""The fleet: endpoints by name, pools by model, and the facts that change who may be scheduled.

Same name again is a new incarnation that inherits nothing (I1); removal is idempotent (I2).
"""

from __future__ import annotations

import math
from typing import Any, Final, Protocol

import msgspec

from turnout.core import options
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.precision import Mode
from turnout.core.fleet.prefill import Sent
from turnout.core.fleet.report import Report
from turnout.core.kit.ewma import Ewma
from turnout.core.kit.lru import LruMap
from turnout.core.kit.rotation import Rotation
from turnout.core.prefix.exact import ExactIndex, ExactStream
from turnout.core.prefix.index import PrefixIndex
from turnout.core.prefix.residency import Ghosts

_PINS_MAX: Final = 100_000  # scheduling §5.3
_PIN_TTL_S: Final = 1800.0
_MEAN_UNCACHED: Final = 512.0
_MEAN_WEIGHT: Final = 0.05
_PREDICTED_MAX: Final = 300_000
_BYTES_PER_TOKEN: Final = 4.0
_OWNERS_MAX: Final = 1_000_000


class Roster:
    """Endpoints sorted by name, and columns beside them. Never changed in place: decisions share them.

    `bits` has one owner bit per member, `alive` all of them in one mask, `zeros` a depth of 0 for each.
    """

    __slots__ = ("alive", "bits", "members", "names", "zeros")

    def __init__(
        self,
        members: list[EndpointState],
        names: tuple[str, ...],
        bits: tuple[int, ...],
        alive: int,
        zeros: list[int],
    ) -> None:
        self.members: Final = members
        self.names: Final = names
        self.bits: Final = bits
        self.alive: Final = alive
        self.zeros: Final = zeros


def roster(members: list[EndpointState]) -> Roster:
    """Set out the columns of these members, which are in the order of their names."""
    bits = tuple([member.bit for member in members])
    alive = 0
    for bit in bits:
        alive |= bit
    return Roster(members, tuple([member.name for member in members]), bits, alive, [0] * len(members))


class Splitter(Protocol):
    """Schedules a pool whose endpoints have roles, both legs at once (`scheduling.disagg`)."""

    def schedule(self, ask: Any, pool: Pool, fleet: Fleet, now: float, rng: Any) -> Any:
        """Return the decision of one attempt."""

    def legs(self, decision: Any, ask: Any, pool: Pool, fleet: Fleet, now: float) -> Any:
        """Bind the second leg of an attempt; None when it has one."""

    def rejected(self, decision: Any) -> None:
        """A request was refused because the queue was full."""


class Joins(Protocol):
    """Hears of endpoints that join a pool."""

    def joined(self, pool: Pool, state: EndpointState, endpoint: options.Endpoint) -> None:
        """An endpoint has joined."""

    def reported(self, endpoint: EndpointState, report: Report, now: float) -> None:
        """An endpoint has told of itself."""


class Pool:
    """The endpoints that serve one model, with the state of its rotation. `last` is the name picked before."""

    __slots__ = (
        "bytes_per_token",
        "dialects",
        "last",
        "last_owners",
        "mean_context",
        "mean_uncached",
        "model",
        "pairs",
        "policy",
        "roster",
        "rotation",
        "tool_weak",
    )

    def __init__(self, model: str, policy: str, seed: int) -> None:
        self.model = model
        self.policy = policy
        self.bytes_per_token = Ewma(_BYTES_PER_TOKEN, 0.05, 1.0, 8.0)
        """Bytes of rendering per prompt token, as engines count them (scheduling §1)."""
        self.mean_uncached = _MEAN_UNCACHED
        """Tokens that a request of this pool has to prefill, on average."""
        self.mean_context = 0.0
        """Tokens that stand before each of those, on average: attention reads them all."""
        self.last_owners: LruMap[int, int] | None = None
        """Key → bit of the one endpoint that got it last; kept once `sglang_cache_aware` asked for it."""
        self.rotation = Rotation(seed)
        self.last = ""
        self.dialects: frozenset[str] = frozenset()
        """What every member speaks: a request in one of these need not look at them one by one."""
        self.tool_weak: frozenset[str] = frozenset()
        """Endpoints that were asked for tool calls often and never made one, as the ledger knows."""
        self.roster = roster([])
        self.pairs: Splitter | None = None
        """Schedules this pool while some endpoint of it serves one leg only."""

    @property
    def members(self) -> list[EndpointState]:
        """The endpoints, sorted by name; never changed in place."""
        return self.roster.members

    def join(self, endpoint: EndpointState) -> None:
        """Add a member at its place in the order of names."""
        self._seat(sorted([*self.members, endpoint], key=lambda member: member.name))

    def leave(self, endpoint: EndpointState) -> None:
        """Remove a member; absent is fine."""
        self._seat([member for member in self.members if member is not endpoint])

    def _seat(self, members: list[EndpointState]) -> None:
        self.roster = roster(members)
        self.dialects = frozenset.intersection(*[member.dialects for member in members]) if members else frozenset()

    def scheduled(self, tokens: float, uncached: float) -> None:
        """Count what one more request has to prefill."""
        self.mean_uncached += _MEAN_WEIGHT * (uncached - self.mean_uncached)
        self.mean_context += _MEAN_WEIGHT * (tokens - 0.5 * uncached - self.mean_context)

    def measured(self, prompt_bytes: int, tokens: int) -> None:
        """An engine told how many tokens a prompt of so many bytes has."""
        if prompt_bytes > 0 and tokens > 0:
            self.bytes_per_token.add(prompt_bytes / tokens)

    def owners(self) -> LruMap[int, int]:
        """Return the last owner of each block, remembered from the first call on."""
        if self.last_owners is None:
            self.last_owners = LruMap(_OWNERS_MAX)
        return self.last_owners

    def retry_after_s(self, now: float) -> int | None:
        """Seconds until the first member that waits for a known instant may be used again, at least 1 (B9)."""
        instants = [member.breaker.reopen_at for member in self.members if not member.breaker.allow(now)]
        instants += [member.cooldown_until for member in self.members if member.cooldown_until > now]
        return max(1, math.ceil(min(instants) - now)) if instants else None


class Fleet:
    """Everything scheduling reads. Pools exist while an endpoint or the catalogue names their model."""

    def __init__(
        self,
        scheduling: options.Scheduling,
        prefix: options.Prefix,
        breaker: options.Breaker,
        *,
        probe_failures: int = 3,
        models: tuple[options.Model, ...] = (),
        load: options.Load | None = None,
    ) -> None:
        self.scheduling = scheduling
        self.prefix = prefix
        self.index = PrefixIndex(prefix)
        self.exact = ExactIndex(prefix.tier_credit)
        # Our own dispatches in the engines' key space, until their events come.
        self.predicted = PrefixIndex(
            msgspec.structs.replace(prefix, ttl_s=prefix.predicted_ttl_s, generations=3, max_blocks=_PREDICTED_MAX)
        )
        self.ghosts = Ghosts(prefix.max_blocks if prefix.max_blocks is not None else _OWNERS_MAX)
        self.load_max_age_s = (load or options.Load()).max_age_s
        self.endpoints: dict[str, EndpointState] = {}
        self.leaving: list[EndpointState] = []
        """Removed endpoints on which attempts were open when somebody looked last (I3)."""
        self._declared: dict[str, options.Endpoint] = {}
        self._breaker = breaker
        self._probe_failures = probe_failures
        self._policies = {model.id: model.policy for model in models if model.policy is not None}
        self._pools: dict[str, Pool] = {}
        self._incarnations = 0
        self.pairing: Joins | None = None
        self._pins: LruMap[int, tuple[EndpointState, float]] = LruMap(_PINS_MAX)

    @property
    def models(self) -> list[str]:
        """Ids that some endpoint serves, sorted."""
        return sorted(model for model, pool in self._pools.items() if pool.members)

    def pool(self, model: str) -> Pool | None:
        """The pool of a model, empty ones included; None for a model no endpoint ever served."""
        return self._pools.get(model)

    def add(self, endpoint: options.Endpoint, now: float) -> EndpointState:
        """Register an endpoint; the same name again replaces the old incarnation.

        It starts slowly when it joins a pool that has traffic already, so that a cold joiner is not flooded (B7).
        """
        self.remove(endpoint.name)
        self._incarnations += 1
        state = EndpointState(
            endpoint,
            self._breaker,
            self.index.assign(now),
            self._incarnations,
            self.scheduling.prior_prefill_tokens_per_s,
        )
        self.endpoints[state.name] = state
        self._declared[state.name] = endpoint
        if state.bit:
            self.predicted.adopt(state.bit)
        for model in sorted(state.models):
            pool = self._pools.get(model)
            if pool is None:
                policy = self._policies.get(model, self.scheduling.policy)
                pool = self._pools[model] = Pool(model, policy, self.scheduling.seed)
            if any(member.attempts_total for member in pool.members):
                state.breaker.start_slowly(now)
            pool.join(state)
            if self.pairing is not None:
                self.pairing.joined(pool, state, endpoint)
        return state

    def restarted(self, endpoint: EndpointState, now: float) -> EndpointState | None:
        """The engine behind an endpoint began a new life: a new incarnation, of which only its context is known.

        Who waits for the old one waits in vain, and no connection need say so.
        """
        if self.endpoints.get(endpoint.name) is endpoint:
            endpoint.unreachable = True
        return self.redeclared(endpoint, self._declared[endpoint.name], now)

    def redeclared(self, endpoint: EndpointState, description: options.Endpoint, now: float) -> EndpointState | None:
        """An endpoint is found to be something else than was said: a new incarnation, of which its context is known."""
        if self.endpoints.get(endpoint.name) is not endpoint:
            return None
        state = self.add(description, now)
        state.context_max = endpoint.context_max
        return state

    def declared(self, name: str) -> options.Endpoint | None:
        """The description of an endpoint as it is believed; None when there is no such endpoint."""
        return self._declared.get(name) if name in self.endpoints else None

    def reconfigure(self, models: tuple[options.Model, ...]) -> None:
        """Take the policies of new models; pools keep members, rotation and everything learnt."""
        self._policies = {model.id: model.policy for model in models if model.policy is not None}
        for name, pool in self._pools.items():
            pool.policy = self._policies.get(name, self.scheduling.policy)

    def remove(self, name: str) -> EndpointState | None:
        """Remove an endpoint at once; its open attempts keep their incarnation. None when it is not known."""
        state = self.endpoints.pop(name, None)
        if state is None:
            return None
        state.gone = True
        self.leaving = [known for known in (*self.leaving, state) if known.in_flight]
        self.index.retire(state.bit)
        self.predicted.retire(state.bit)
        self.close_streams(state, "gone")
        for model in state.models:
            self._pools[model].leave(state)
        return state

    def open_stream(self, endpoint: EndpointState, block_tokens: int) -> ExactStream:
        """Begin to hear of one more rank's cache; its mode is the caller's to judge."""
        stream = self.exact.open(block_tokens)
        endpoint.streams = [*endpoint.streams, stream]
        endpoint.block_tokens = block_tokens
        return stream

    def close_streams(self, endpoint: EndpointState, reason: str) -> None:
        """Forget what its ranks said, for ever or until they say it again."""
        for stream in endpoint.streams:
            self.exact.close(stream, reason)
        endpoint.streams = []
        endpoint.mode = Mode.APPROXIMATE

    def forget_streams(self, endpoint: EndpointState, reason: str) -> None:
        """Give up what its ranks said; the streams stay closed for this incarnation."""
        for stream in endpoint.streams:
            self.exact.close(stream, reason)
            stream.mode = 0
        self.judge(endpoint)

    def judge(self, endpoint: EndpointState) -> None:
        """Believe an endpoint as far as the rank that may be believed least.

        Where only some ranks tell, what they say counts, and our own history for the others.
        """
        modes = [stream.mode for stream in endpoint.streams] or [0]
        endpoint.mode = Mode(min(modes) or min(max(modes), Mode.DEGRADED))

    def blocks_stored(
        self, endpoint: EndpointState, stream: ExactStream, pairs: list[tuple[int, int]], now: float, tier: int = 0
    ) -> None:
        """An engine stored blocks, given as (its hash, our key); equal numbers will do where hashes are our own."""
        self.exact.stored(stream, pairs, tier)
        if endpoint.cache is not None:
            endpoint.cache.told = True
            endpoint.cache.learn([key for _, key in pairs], now)

    def blocks_removed(
        self, endpoint: EndpointState, stream: ExactStream, hashes: list[int], now: float, tier: int = 0
    ) -> None:
        """An engine dropped blocks of one tier."""
        gone = self.exact.removed(stream, hashes, tier)
        if gone and endpoint.cache is not None:
            endpoint.cache.dropped(gone, now)

    def observed(self, endpoint: EndpointState, sent: Sent, report: Report) -> None:
        """An engine report came back; `sent` is what `endpoint.sent(now)` returned as the scrape went out."""
        pool = self._pools[min(endpoint.models)]
        endpoint.prefill.context_tokens = pool.mean_context
        endpoint.observed(sent, report, self.load_max_age_s, pool.mean_uncached)
        if pool.pairs is not None and self.pairing is not None:
            self.pairing.reported(endpoint, report, sent.at)

    def told(self, endpoint: EndpointState, sent: Sent, part: Report) -> None:
        """An answer told a part of a report; `sent` has our own counts without the request it answered."""
        endpoint.told(sent, part, self.load_max_age_s, self._pools[min(endpoint.models)].mean_uncached)

    def on_connect_failure(self, endpoint: EndpointState, now: float) -> None:
        """No connection came about (O1): out until something reaches it. Providers have their breaker only."""
        if not endpoint.unreachable:
            endpoint.lost_at = now
        if not endpoint.provider:
            endpoint.unreachable = True

    def on_reachable(self, endpoint: EndpointState, now: float) -> None:
        """A probe or an attempt reached it: online, slowly if it had been unreachable."""
        endpoint.probe_failures = 0
        endpoint.probe_failing = False
        if endpoint.unreachable:
            endpoint.unreachable = False
            endpoint.breaker.start_slowly(now)

    def on_probe(self, endpoint: EndpointState, now: float, *, ok: bool) -> None:
        """A readiness probe ended (O4): one success brings back, `probe.failures` in a row take out."""
        if ok:
            endpoint.breaker.probe_answered(now)
            self.on_reachable(endpoint, now)
            return
        endpoint.probe_failures += 1
        if endpoint.probe_failures >= self._probe_failures:
            endpoint.probe_failing = True

    def pin(self, session: int, endpoint: EndpointState, now: float) -> None:
        """Remember where a session was served; feeds ties only."""
        self._pins.put(session, (endpoint, now + _PIN_TTL_S))

    def pinned(self, session: int, now: float) -> EndpointState | None:
        """The endpoint of a session's pin, while it lives and has not expired."""
        pin = self._pins.peek(session)
        return pin[0] if pin is not None and now < pin[1] and not pin[0].gone else None
