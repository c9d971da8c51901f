"""What each candidate probably holds of a prompt: KV events where they may be believed, else our own history (§3.2)."""

from __future__ import annotations

from turnout.core.fleet.precision import Mode
from turnout.core.fleet.registry import Fleet
from turnout.core.scheduling.types import Ask, Decision


def told(decision: Decision, ask: Ask, fleet: Fleet) -> None:
    """Put what the engines say in place of our history, where a candidate's mode and block size allow it.

    Between dispatch and event our own dispatch stands in, so that siblings of a burst stay together.
    """
    exact = fleet.exact
    if fleet.predicted.due <= decision.now:
        fleet.predicted.advance(decision.now)
    found = {size: exact.match(chain, exact.live) for size, chain in ask.chains.items()}
    block, tokens = ask.block_tokens, ask.tokens
    depths: list[int] = []
    credits: list[float] = []  # noqa: A001 - the word of the spec
    modes: list[Mode] = []
    predicted: dict[int, dict[int, int]] = {}
    for member, depth in zip(decision.members, decision.depths, strict=True):
        size = member.block_tokens
        credit = min(depth * block, float(tokens))
        mode = member.mode
        if mode == Mode.APPROXIMATE or size not in found:
            depths.append(depth)
            credits.append(credit)
            modes.append(Mode.APPROXIMATE)
            continue
        owners = found[size]
        blocks = max([owners.get(stream.bit, 0.0) for stream in member.streams], default=0.0)
        if size not in predicted:
            predicted[size] = fleet.predicted.match(ask.chains[size], fleet.predicted.live)
        known = min(max(blocks, predicted[size].get(member.bit, 0)) * size, tokens)
        credit = max(known, credit) if mode == Mode.DEGRADED else known
        depths.append(min(int(credit / block), decision.blocks or len(ask.chains[size])))
        credits.append(credit)
        modes.append(mode)
    decision.depths, decision.credits, decision.modes = depths, credits, modes
    decision.blocks = decision.blocks or max(len(chain) for chain in ask.chains.values())
    decision.prefix_result = "match" if any(depths) else "miss" if decision.blocks else "no_hash"


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
