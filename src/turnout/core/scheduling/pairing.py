"""Which endpoints can hand over to which, and what they have come to so far: one `Pairing` per fleet.

A pool gets a `Split` when an endpoint with the role `prefill` or `decode` joins it; every other pool pays one test of
an attribute. The fleet calls `joined`; a pool's roles are sorted out again when its roster has changed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from turnout.core import options
from turnout.core.disagg_options import Disagg
from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.handover import PairBook, Ranks, Rooms, TransferCounters
from turnout.core.fleet.registry import Fleet, Pool, roster
from turnout.core.fleet.report import Report
from turnout.core.kit.durations import Durations
from turnout.core.kit.rng import Rng
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import Decision, PairDecision
from turnout.core.scheduling.legs import Legs, prefill_seat
from turnout.core.scheduling.pipeline import schedule

if TYPE_CHECKING:
    Choose = Callable[["Pairing", "Split", Ask, Pool, Fleet, float, Rng], Decision]

_SILENT_MAX, _SILENT_S = 3, 60.0  # so many silent failures of one pair within this time, and it rests
_ALARMS_MAX = 4096
_GEOMETRY = ("block_tokens", "dtype", "tp_size")
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
    ports: tuple[int, int] = (1, 65_535)
    multimodal: bool = False
    ranks: int = 0
    """Data-parallel ranks of which one is chosen per leg; 0: the engine's own affair."""
    geometry: Mapping[str, int | str] = {}

    def mismatch(self, other: Facts) -> str:
        """Return why blocks cannot travel between the two; "" when they can. What is unknown passes."""
        if self.domain != other.domain:
            return "other_domain"
        if self.transport != other.transport:
            return "transport_mismatch"
        mine, theirs = self.geometry, other.geometry
        for name in _GEOMETRY:
            if name in mine and name in theirs and mine[name] != theirs[name]:
                return "geometry_mismatch"
        return ""

    def fits(self, other: Facts) -> bool:
        """Tell whether blocks can travel between the two."""
        return not self.mismatch(other)


class Pairing:
    """Options, facts per endpoint, the pair matrix, rooms and counters."""

    def __init__(self, disagg: Disagg, choose: Choose) -> None:
        self.options = disagg
        self.facts: dict[str, Facts] = {}
        self.book = PairBook()
        self.rooms = Rooms()
        self.counts: dict[tuple[str, ...], int] = {}
        """Counters of `/x/disagg` and the metrics, by name and labels."""
        self.durations: dict[str, dict[tuple[str, ...], Durations]] = {}
        """Durations of the metrics, by name and labels."""
        self.orphaned_s = 0.0
        """Seconds for which blocks stay pinned that nobody will fetch."""
        self.alarm: Callable[[str, dict[str, str]], None] = _unheard
        """Takes what an operator must know; each of them once."""
        self.addresses: dict[str, frozenset[str]] = {}
        """Host names of endpoints → their addresses, as they were resolved when the endpoint came."""
        self.introduced: dict[str, dict[int, str]] = {}
        """Mooncake: engine ids by rank, as prefill endpoints introduced them; without them they hand nothing over."""
        self.transfers = TransferCounters()
        self.ranks = Ranks()
        self.pools: list[Pool] = []
        self._alarmed: set[tuple[str, ...]] = set()
        self._choose = choose

    def joined(self, pool: Pool, state: EndpointState, endpoint: options.Endpoint) -> None:
        """An endpoint has joined a pool; its role is ours to respect from here on."""
        self.facts[state.name] = facts_of(endpoint)
        self.transfers.forget(state.name)
        self.introduced.pop(state.name, None)
        if state.role in ("prefill", "decode"):
            state.split = False
            if pool.pairs is None:
                pool.pairs = Split(self, pool, self._choose)
                self.pools.append(pool)
        if pool.pairs is not None:
            self._compare(state.name, pool)

    def reported(self, endpoint: EndpointState, report: Report, now: float) -> None:
        """An endpoint tells of its blocks, and of transfers that failed without anybody's notice (row 7)."""
        facts = self.facts.get(endpoint.name)
        if facts is None:
            return
        told: dict[str, int | str] = {}
        if report.block_tokens is not None and "block_tokens" not in facts.geometry:
            told["block_tokens"] = report.block_tokens
        if report.kv_dtype and "dtype" not in facts.geometry:
            told["dtype"] = report.kv_dtype
        if told:
            self.facts[endpoint.name] = msgspec.structs.replace(facts, geometry={**facts.geometry, **told})
            for pool in self.pools:
                self._compare(endpoint.name, pool)
        if report.failed_transfers is None:
            return
        for prefill, decode in self.transfers.told(endpoint.name, report.failed_transfers, now):
            self.count("failures", "7", facts.transport)
            if self.book.pair(prefill, decode).silently(now, _SILENT_MAX, _SILENT_S):
                self.book.pair(prefill, decode).failed(now, self.options.quarantine_s)

    def observe(self, name: str, seconds: float, *labels: str) -> None:
        """Keep one duration."""
        by_labels = self.durations.setdefault(name, {})
        known = by_labels.get(labels)
        if known is None:
            known = by_labels[labels] = Durations()
        known.observe(seconds)

    def alarm_once(self, name: str, fields: dict[str, str]) -> None:
        """Raise an alarm that was not raised before."""
        key = (name, *fields.values())
        if key not in self._alarmed and len(self._alarmed) < _ALARMS_MAX:
            self._alarmed.add(key)
            self.alarm(name, fields)

    def _compare(self, name: str, pool: Pool) -> None:
        """Alarm once for each pair of one domain that can never be."""
        mine = self.facts[name]
        for member in pool.members:
            theirs = self.facts[member.name]
            reason = mine.mismatch(theirs)
            if member.name == name or mine.role == theirs.role or reason in ("", "other_domain"):
                continue
            one, other = sorted((name, member.name))
            self.alarm_once("pair_dropped", {"one": one, "other": other, "reason": reason})

    def hands_over(self, prefill: str, decode: str) -> bool:
        """Tell whether blocks can travel from one to the other now."""
        facts = self.facts[prefill]
        return facts.fits(self.facts[decode]) and (facts.transport != "mooncake" or bool(self.introduced.get(prefill)))

    def transfer_s(self, prefill: str, decode: str, tokens: float) -> float:
        """Predict a hand-over of so many tokens that the decode endpoint lacks."""
        disagg = self.options
        seconds = disagg.transfer_setup_s + tokens * disagg.kv_bytes_per_token / disagg.transfer_bytes_per_s
        state = self.book.peek(prefill, decode)
        return seconds if state is None or state.excess_s <= _NOISE_S + seconds else seconds + state.excess_s

    def may_name(self, prefill: str, host: str, port: int) -> bool:
        """Tell whether an endpoint may say that its blocks are at this address."""
        facts = self.facts[prefill]
        if not facts.ports[0] <= port <= facts.ports[1]:
            return False
        named = canonical(host)
        return named in facts.hosts or any(named in self.addresses.get(own, ()) for own in facts.hosts)

    def resting(self, prefill: str, decode: str, now: float) -> bool:
        """Tell whether a pair is in quarantine."""
        state = self.book.peek(prefill, decode)
        return state is not None and state.quarantined_until > now

    def count(self, *labels: str) -> None:
        """Count one event."""
        self.counts[labels] = self.counts.get(labels, 0) + 1


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
            if all(member.role in ("both", "auto") for member in pool.members):
                pool.pairs = None  # the last endpoint with a role has left
                self.pairing.pools.remove(pool)
                return schedule(ask, pool, fleet, now, rng)
            self.prefill.roster = roster([m for m in pool.members if m.role in ("prefill", "both")])
            self.decode.roster = roster([m for m in pool.members if m.role in ("decode", "both")])
        return self._choose(self.pairing, self, ask, pool, fleet, now, rng)

    def rejected(self, decision: Decision | None) -> None:
        """A request was refused because of a full queue: count which role was full."""
        roles = [reason for name, reason in decision.dropped if not name] if decision is not None else []
        self.pairing.count("rejected", "decode" if "decode" in roles else "prefill")

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
    host = host.split("]", 1)[0].lstrip("[") if host.startswith("[") else host.split(":", 1)[0]
    hosts = endpoint.kv_hosts or [host]
    solo = endpoint.solo if endpoint.solo is not None else transport != "bootstrap"
    return Facts(
        endpoint.role,
        transport,
        endpoint.kv_domain,
        solo or endpoint.role == "both",
        frozenset(canonical(each) for each in hosts),
        hosts[0],
        endpoint.bootstrap_port,
        (endpoint.kv_ports[0], endpoint.kv_ports[1]),
        endpoint.kv_multimodal,
        endpoint.kv_ranks if endpoint.kv_route_ranks else 0,
        _geometry(endpoint),
    )


def _geometry(endpoint: options.Endpoint) -> dict[str, int | str]:
    told = {"block_tokens": endpoint.kv_block_tokens, "dtype": endpoint.kv_dtype, "tp_size": endpoint.kv_tp_size}
    return {name: value for name, value in told.items() if value}


def canonical(host: str) -> str:
    """Return an address in its one spelling; a name is compared as it is, but for its case."""
    bare = host.strip("[]")
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return bare.lower().rstrip(".")
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _unheard(name: str, fields: dict[str, str]) -> None:
    """Nobody listens."""
