"""Whether a request may be split, and whether each role has anybody for it: what is asked before prices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from turnout.core.fleet.endpoint import EndpointState
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.filters import Drop
from turnout.core.scheduling.types import DropReason

if TYPE_CHECKING:
    from turnout.core.scheduling.pairing import Facts, Pairing, Split

MULTIMODAL = "multimodal"
"""Why a request stays whole unless images travel between roles, too."""
PREFILL, DECODE = "prefill", "decode"
_BROKEN = (DropReason.BREAKER_OPEN, DropReason.EJECTED, DropReason.PROBE_FAILING)
_CONDITIONAL_TOKENS, _CONDITIONAL_SHARE = 2048, 0.7


def never_split(ask: Ask, attempts_max: int, *, multimodal: bool = False) -> str:
    """Return why this request must not be split whatever it costs; "" when it may."""
    if ask.whole and not (ask.whole == MULTIMODAL and multimodal):
        return ask.whole
    return "pair_attempts" if ask.pairs >= attempts_max else ""


def wants_split(pairing: Pairing, uncached: float, tokens: int, pair_s: float, solo_s: float) -> bool:
    """Apply the decider to one request: `uncached` u on the best decode endpoint, `tokens` T."""
    options = pairing.options
    decider = options.decider
    if decider == "threshold":
        return uncached > options.min_uncached_tokens
    if decider == "always":
        return True
    if decider == "conditional":
        return not (uncached < _CONDITIONAL_TOKENS and uncached / max(1, tokens) < _CONDITIONAL_SHARE)
    return pair_s + options.margin_s < solo_s


def full(members: Iterable[EndpointState], dropped: tuple[Drop, ...]) -> bool:
    """Tell whether endpoints of a role live that are only full."""
    names = {member.name for member in members}
    return any(name in names and reason == DropReason.SATURATED for name, reason in dropped)


def broken(relaxed: tuple[str, ...], leg: str = "") -> bool:
    """Tell whether a leg has candidates only because nobody is left who is not believed broken."""
    return any(leg + reason in relaxed for reason in _BROKEN)


def never_fits(split: Split, ask: Ask) -> bool:
    """Tell whether the prompt is longer than anybody takes who would have to: no waiting helps (§3.1)."""
    floor, facts = ask.estimate_floor, split.facts
    decodes, prefills = split.decode.members, split.prefill.members
    able = [member for member in decodes if not _too_small(member, floor)]
    if decodes and not able:
        return True
    alone = any(facts[member.name].solo for member in able)
    return bool(prefills) and not alone and all(_too_small(member, floor) for member in prefills)


def missing(
    split: Split, ask: Ask, decodes: list[EndpointState] | None, prefills: list[EndpointState] | None = None
) -> list[str]:
    """Return what stands in a decision that picks nobody: the role without a candidate, or that none could ever be."""
    found = [str(DropReason.NEVER_FITS)] if never_fits(split, ask) else []
    if prefills is not None and not prefills and split.prefill.members:
        found.append(PREFILL)
    if not decodes and split.decode.members:
        found.append(DECODE)
    return found


def sees_images(facts: dict[str, Facts], members: Iterable[EndpointState]) -> bool:
    """Tell whether images may travel between all of these."""
    return all(facts[member.name].multimodal for member in members)


def _too_small(member: EndpointState, floor: int) -> bool:
    context, capacity = member.context_max, member.kv_capacity_tokens
    return (context is not None and floor > context) or (capacity is not None and floor > capacity)
