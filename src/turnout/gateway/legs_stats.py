"""What splitting came to, for the admin listener and the metrics: decisions, legs, failures by row, the pair matrix."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from turnout.core.fleet.level import level
from turnout.core.fleet.registry import Fleet
from turnout.core.scheduling.pairing import Pairing

if TYPE_CHECKING:
    from turnout.gateway.service import Gateway


def disagg_document(gateway: Gateway, now: float) -> dict[str, Any]:
    """Return the document of `GET /x/disagg`; JSON types only."""
    pairing, admission = gateway.fleet.pairing, gateway.recovery.doors.options
    if not isinstance(pairing, Pairing):
        return {}
    counts = dict(pairing.counts)
    pools: dict[str, dict[str, Any]] = {}
    for pool in pairing.pools:
        mine = {key: count for key, count in counts.items() if key[:2] == ("decisions", pool.model)}
        pools[pool.model] = {
            "split": sum(count for key, count in mine.items() if key[2] == "split"),
            "solo": sum(count for key, count in mine.items() if key[2] == "solo"),
            "reasons": {f"{key[2]}:{key[3]}": count for key, count in sorted(mine.items())},
        }
    members = sorted({member.name: member for pool in pairing.pools for member in pool.members}.items())
    return {
        "decider": pairing.options.decider,
        "pools": pools,
        "roles": {role: _role(pairing, role) for role in ("prefill", "decode", "both")},
        "endpoints": [
            {
                "endpoint": name,
                "role": member.role,
                "transport": pairing.facts[name].transport,
                "prefill_legs": _legs(counts, name, "prefill"),
                "decode_legs": _legs(counts, name, "decode"),
                "in_flight": member.in_flight,
                "waiting": member.waiting,
                "level": level(member, now, admission).name.lower(),
            }
            for name, member in members
        ],
        "pairs": [
            {
                "prefill": prefill,
                "decode": decode,
                "count": state.count,
                "failures": state.failures,
                "transfer_s": {"p50": state.percentile(0.5), "p99": state.percentile(0.99)},
                "quarantined_until": _instant(gateway, state.quarantined_until - now),
            }
            for (prefill, decode), state in pairing.book.items()
        ],
        "rooms_open": len(pairing.rooms),
    }


def disagg_stats(fleet: Fleet, now: float) -> dict[str, Any]:
    """Return the figures by the `source` keys of the metrics catalogue; empty while every endpoint does both."""
    pairing = fleet.pairing
    if not isinstance(pairing, Pairing) or not pairing.pools:
        return {}
    found: dict[str, Any] = {}
    for (kind, *labels), count in list(pairing.counts.items()):
        found.setdefault(kind, Counter())[tuple(labels)] += count
    found["quarantined"] = pairing.book.quarantined(now)
    found["rooms"] = len(pairing.rooms)
    found["orphaned"] = pairing.orphaned_s
    found |= pairing.durations
    depth: Counter[tuple[str, ...]] = Counter()
    for member in {id(member): member for pool in pairing.pools for member in pool.members}.values():
        depth[(member.role,)] += member.waiting or 0
    found["queue_depth"] = depth
    found["in_flight"] = Counter({(role,): _role(pairing, role)["in_flight"] for role in ("prefill", "decode", "both")})
    handed: Counter[tuple[str, ...]] = Counter()
    failed: Counter[tuple[str, ...]] = Counter()
    for (prefill, _), state in pairing.book.items():
        facts = pairing.facts.get(prefill)
        if facts is not None:
            handed[(facts.transport,)] += state.count
            failed[(facts.transport,)] += state.failures
    found["handovers"], found["transfer_failures"] = handed, failed
    return found


def _instant(gateway: Gateway, in_s: float) -> int | None:
    """Return the instant so many seconds from now, in milliseconds since 1970; None when that is over."""
    return None if in_s <= 0.0 else gateway.now_ms() + int(in_s * 1000)


def _role(pairing: Pairing, role: str) -> dict[str, int]:
    """Sum up the endpoints of one role over all pools."""
    members = {id(member): member for pool in pairing.pools for member in pool.members if member.role == role}
    return {
        "endpoints": len(members),
        "in_flight": sum(member.in_flight for member in members.values()),
        "queue_depth": sum(member.waiting or 0 for member in members.values()),
    }


def _legs(counts: dict[tuple[str, ...], int], name: str, phase: str) -> int:
    return sum(count for key, count in counts.items() if key[:3] == ("legs", name, phase))
