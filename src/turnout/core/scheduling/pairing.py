"""Which endpoints can hand over to which, and what they have come to so far: one `Pairing` per fleet.

A pool gets a `Split` when an endpoint with the role `prefill` or `decode` joins it; every other pool pays one test of
an attribute. The fleet calls `joined`; a pool's roles are sorted out again when its roster has changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from turnout.core import options
from turnout.core.disagg_options import Disagg
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.handover import PairBook, Rooms
from turnout.core.fleet.registry import Fleet, Pool, roster
from turnout.core.kit.rng import Rng
from turnout.core.scheduling.legs import Legs, PairDecision, prefill_seat
from turnout.core.scheduling.pipeline import schedule
from turnout.core.scheduling.types import Ask, Decision

if TYPE_CHECKING:
    Choose = Callable[["Pairing", "Split", Ask, Pool, Fleet, float, Rng], Decision]

_SECONDS_KEPT = 1024
_NOISE_S = 0.02  # a hand-over that takes this much longer than predicted says nothing: pairs that are alike take turns


class Facts(msgspec.Struct, frozen=True):
    """What configuration says of one endpoint's hand-overs."""

    role: str
    transport: str
    domain: str
    solo: bool
    hosts: frozenset[str]
    bootstrap_host: str
    bootstrap_port: int

    def fits(self, other: Facts) -> bool:
        """Tell whether blocks can travel between the two."""
        return self.transport == other.transport and self.domain == other.domain


class Pairing:
    """Options, facts per endpoint, the pair matrix, rooms and counters."""

    def __init__(self, disagg: Disagg, choose: Choose) -> None:
        self.options = disagg
        self.facts: dict[str, Facts] = {}
        self.book = PairBook()
        self.rooms = Rooms()
        self.counts: dict[tuple[str, ...], int] = {}
        """Counters of `/x/disagg` and the metrics, by name and labels."""
        self.seconds: dict[tuple[str, str], deque[float]] = {}
        """Recent durations by name and pool."""
        self.pools: list[Pool] = []
        self._choose = choose

    def joined(self, pool: Pool, state: EndpointState, endpoint: options.Endpoint) -> None:
        """An endpoint has joined a pool; its role is ours to respect from here on."""
        self.facts[state.name] = facts_of(endpoint)
        if state.role != "both":
            state.split = False
            if pool.pairs is None:
                pool.pairs = Split(self, pool, self._choose)
                self.pools.append(pool)

    def transfer_s(self, prefill: str, decode: str, tokens: float) -> float:
        """Predict a hand-over of so many tokens that the decode endpoint lacks."""
        disagg = self.options
        seconds = disagg.transfer_setup_s + tokens * disagg.kv_bytes_per_token / disagg.transfer_bytes_per_s
        state = self.book.peek(prefill, decode)
        return seconds if state is None or state.excess_s <= _NOISE_S + seconds else seconds + state.excess_s

    def resting(self, prefill: str, decode: str, now: float) -> bool:
        """Tell whether a pair is in quarantine."""
        state = self.book.peek(prefill, decode)
        return state is not None and state.quarantined_until > now

    def count(self, *labels: str) -> None:
        """Count one event."""
        self.counts[labels] = self.counts.get(labels, 0) + 1

    def observe(self, name: str, pool: str, seconds: float) -> None:
        """Keep one duration."""
        recent = self.seconds.get((name, pool))
        if recent is None:
            recent = self.seconds[name, pool] = deque(maxlen=_SECONDS_KEPT)
        recent.append(seconds)


class Split:
    """The roles of one pool (`fleet.registry.Splitter`)."""

    def __init__(self, pairing: Pairing, pool: Pool, choose: Choose) -> None:
        self.pairing = pairing
        self.prefill = Pool(pool.model, pairing.options.prefill_policy or pool.policy, 0)
        self.decode = Pool(pool.model, pairing.options.decode_policy or "memory_aware", 0)
        self._choose = choose
        self._roster = roster([])

    @property
    def facts(self) -> dict[str, Facts]:
        """Facts by name of endpoint."""
        return self.pairing.facts

    def schedule(self, ask: Ask, pool: Pool, fleet: Fleet, now: float, rng: Rng) -> Decision:
        """Decide one attempt of this pool."""
        if pool.roster is not self._roster:
            self._roster = pool.roster
            if all(member.role == "both" for member in pool.members):
                pool.pairs = None  # the last endpoint with a role has left
                self.pairing.pools.remove(pool)
                return schedule(ask, pool, fleet, now, rng)
            self.prefill.roster = roster([m for m in pool.members if m.role != "decode"])
            self.decode.roster = roster([m for m in pool.members if m.role != "prefill"])
        return self._choose(self.pairing, self, ask, pool, fleet, now, rng)

    def legs(self, decision: Decision | None, ask: Ask, pool: Pool, fleet: Fleet, now: float) -> Legs | None:
        """Bind the second leg of an attempt; None when one endpoint serves it all."""
        if type(decision) is not PairDecision:
            return None
        pairing = self.pairing
        facts = decision.pair
        reason = facts.reason if facts is not None else ""
        if decision.picked is not None:
            _owned(self.decode, ask, decision.picked)
        if decision.prefill is None:
            pairing.count("decisions", pool.model, "solo", reason)
            return None
        pairing.count("decisions", pool.model, "split", reason)
        _owned(self.prefill, ask, decision.prefill)
        ask.pairs += 1
        return Legs(pairing, decision, prefill_seat(decision, ask, pool, fleet, now), now)


def _owned(role: Pool, ask: Ask, endpoint: EndpointState) -> None:
    """Tell a role's own rule who got these blocks last, where it asks for that (`sglang_cache_aware`)."""
    owners = role.last_owners
    if owners is not None:
        for key in ask.keys:
            owners.put(key, endpoint.bit)


def facts_of(endpoint: options.Endpoint) -> Facts:
    """Read the facts of one endpoint's description."""
    transport = endpoint.kv_transport
    if transport == "auto":
        transport = "bootstrap" if endpoint.family == "sglang" else "nixl"
    host = endpoint.url.split("//", 1)[1].rstrip("/")
    host = host.split("]", 1)[0].lstrip("[") if host.startswith("[") else host.rsplit(":", 1)[0]
    hosts = endpoint.kv_hosts or [host]
    solo = endpoint.solo if endpoint.solo is not None else transport != "bootstrap"
    return Facts(
        endpoint.role,
        transport,
        endpoint.kv_domain,
        solo or endpoint.role == "both",
        frozenset(hosts),
        hosts[0],
        endpoint.bootstrap_port,
    )
