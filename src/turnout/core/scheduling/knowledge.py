"""What each candidate probably holds of a prompt: KV events where they may be believed, else our own history (§3.2)."""

from __future__ import annotations

from turnout.core.fleet.endpoint import EndpointState
from turnout.core.fleet.precision import Mode
from turnout.core.fleet.registry import Fleet
from turnout.core.scheduling.ask import Ask
from turnout.core.scheduling.decision import Decision


def told(decision: Decision, ask: Ask, fleet: Fleet) -> None:
    """Put what the engines say in place of our history, where a candidate's mode and block size allow it.

    Between dispatch and event our own dispatch stands in, so that siblings of a burst stay together.
    """
    exact = fleet.exact
    if fleet.predicted.due <= decision.now:
        fleet.predicted.advance(decision.now)
    found = {size: exact.match(chain, exact.live) for size, chain in ask.chains.items()}
    block, tokens = ask.block_tokens, ask.tokens
    blocks_max = decision.blocks or max([len(chain) for chain in ask.chains.values()])
    depths: list[int] = []
    credits: list[float] = []  # noqa: A001 - the word of the spec
    modes: list[Mode] = []
    predicted: dict[int, dict[int, int]] = {}
    for member, depth in zip(decision.members, decision.depths, strict=True):
        size = member.block_tokens
        credit = depth * block
        mode = member.mode
        if mode is Mode.APPROXIMATE or size not in found:
            credit = min(credit, tokens)
            depths.append(depth)
            credits.append(credit)
            modes.append(Mode.APPROXIMATE)
            continue
        owners = found[size]
        blocks = 0.0
        for stream in member.streams:
            held = owners.get(stream.bit, 0.0)
            blocks = held if held > blocks else blocks  # noqa: FURB136 - a call costs as much as this loop
        if size not in predicted:
            predicted[size] = fleet.predicted.match(ask.chains[size], fleet.predicted.live)
        own = predicted[size].get(member.bit, 0)
        known = (own if own > blocks else blocks) * size  # noqa: FURB136
        if mode is Mode.DEGRADED and credit > known:
            known = credit
        known = min(known, tokens)
        reach = int(known / block)
        depths.append(reach if reach < blocks_max else blocks_max)  # noqa: FURB136
        credits.append(known)
        modes.append(mode)
    decision.depths, decision.credits, decision.modes = depths, credits, modes
    decision.blocks = blocks_max
    decision.prefix_result = "match" if any(depths) else "miss" if decision.blocks else "no_hash"


def held_by_rank(endpoint: EndpointState, ask: Ask, fleet: Fleet) -> list[float]:
    """Blocks of a prompt that each rank of one endpoint says it holds."""
    streams = endpoint.streams
    alive = 0
    for stream in streams:
        alive |= stream.bit
    held = fleet.exact.match(ask.chains.get(endpoint.block_tokens, []), alive)
    return [held.get(stream.bit, 0.0) for stream in streams]


def expected(decision: Decision, ask: Ask) -> list[float]:
    """Tokens believed to be cached per candidate: what it holds, times how far that kind of knowledge is true."""
    members = decision.members
    if decision.modes:
        return [
            member.precisions[mode].value * credit
            for member, mode, credit in zip(members, decision.modes, decision.credits, strict=True)
        ]
    block, tokens = ask.block_tokens, ask.tokens
    return [
        member.precision * min(depth * block, tokens) if depth else 0.0
        for member, depth in zip(members, decision.depths)  # noqa: B905 - parallel by construction
    ]
