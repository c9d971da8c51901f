"""Prohibitions: who may not serve this attempt, each with one reason (scheduling §5).

Hard filters drop. Soft ones are ordered; when together they would leave nobody, they are skipped from the right end
of the list until somebody is left, and what was skipped is named.
"""

from __future__ import annotations

from typing import Final

from turnout.core.fleet.endpoint import EndpointState
from turnout.core.kit.rng import Rng
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.types import DropReason

# What still counts when soft filters are not to be relaxed: a cold start is no reason to serve nobody.
_SOFT = (
    DropReason.BREAKER_OPEN,
    DropReason.EJECTED,
    DropReason.PROBE_FAILING,
    DropReason.STANDBY,
    DropReason.COOLDOWN,
    DropReason.SLOW_START,
)
_SLOW_START: Final = len(_SOFT) - 1
_CLEAR: Final = len(_SOFT)
# B9: an endpoint used although it is believed broken gets one attempt at a time.
_ONE_AT_A_TIME: Final = _SOFT.index(DropReason.PROBE_FAILING)

Drop = tuple[str, str]


def keep(
    ask: Ask, members: list[EndpointState], now: float, rng: Rng
) -> tuple[list[EndpointState], tuple[Drop, ...], tuple[str, ...]]:
    """Return the candidates in the order of `members`, the (name, reason) of each dropped one, and what was relaxed.

    `rng` is drawn once per slowly starting member that no hard filter dropped, in the order of `members`.
    """
    able: list[EndpointState] = []
    faults: list[tuple[int, ...]] = []
    dropped: list[Drop] = []
    for member in members:
        reason = _hard(ask, member)
        if reason is None:
            able.append(member)
            faults.append(_soft(member, now, rng))
        else:
            dropped.append((member.name, reason))
    # The leftmost soft filter that drops an endpoint decides how far the list must be skipped to let it in.
    worst = [fault[0] if fault else _CLEAR for fault in faults]
    cut = max(worst, default=_CLEAR)
    may_relax = ask.relax or not ask.tried
    if cut < _SLOW_START and not may_relax:
        cut = _CLEAR
    kept: list[EndpointState] = []
    relaxed: set[int] = set()
    for member, fault, first in zip(able, faults, worst, strict=True):
        if first < cut:
            dropped.append((member.name, _SOFT[first]))
        elif first <= _ONE_AT_A_TIME and member.in_flight:
            dropped.append((member.name, DropReason.SATURATED))
        else:
            kept.append(member)
            relaxed.update(fault)
    if ask.weak:
        kept = _capable(ask.weak, kept, dropped)
    dropped.sort()
    return kept, tuple(dropped), tuple(str(_SOFT[number]) for number in sorted(relaxed))


def _capable(weak: frozenset[str], kept: list[EndpointState], dropped: list[Drop]) -> list[EndpointState]:
    """Leave out those that have not shown what is needed, unless nobody has."""
    capable = [member for member in kept if member.name not in weak]
    if not capable or len(capable) == len(kept):
        return kept
    dropped += [(member.name, DropReason.CAPABILITY_MISSING) for member in kept if member.name in weak]
    return capable


def _hard(ask: Ask, member: EndpointState) -> str | None:
    if member.losing and ask.model in member.lost_models:
        return DropReason.MODEL_NOT_SERVED
    if member.split:
        return DropReason.ROLE_MISMATCH
    if ask.dialect and ask.dialect not in member.dialects:
        return DropReason.DIALECT_NOT_SPOKEN
    if member.context_max is not None and ask.estimate_floor > member.context_max:
        return DropReason.CONTEXT_TOO_SMALL
    if member.name in ask.tried:
        return DropReason.TRIED
    if member.draining:
        return DropReason.DRAINING
    if member.gone:
        return DropReason.GONE
    if member.unreachable:
        return DropReason.UNREACHABLE
    if member.in_flight >= member.places:
        return DropReason.SATURATED
    return None


def _soft(member: EndpointState, now: float, rng: Rng) -> tuple[int, ...]:
    """Positions in the list of soft filters that would drop this member, in order."""
    found = (
        not member.breaker.allow(now),
        member.ejected,
        member.probe_failing,
        member.standby,
        member.cooldown_until > now,
        not member.breaker.plain and _held_back(member, now, rng),
    )
    return tuple(position for position, drops in enumerate(found) if drops)


def _held_back(member: EndpointState, now: float, rng: Rng) -> bool:
    share = member.breaker.share(now)
    return share < 1.0 and rng.random() >= share
