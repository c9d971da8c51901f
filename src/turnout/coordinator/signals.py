"""Carry out one control signal: the state of the door, and who is told of it."""

from __future__ import annotations

from turnout.coordinator.control import TRANSITIONS
from turnout.coordinator.peers import Send
from turnout.coordinator.roster import Roster
from turnout.engines import megatron as wire
from turnout.engines.megatron import Header


def apply(header: Header, epoch: int | None, roster: Roster, out: list[Send]) -> int | None:
    """Change the state and tell the engines that can take it; how many, or None when the state does not allow it."""
    rule = TRANSITIONS[header]
    if roster.state not in rule.allowed:
        return None
    engines = [engine for engine in roster.live.values() if engine.control in rule.told]
    payload = wire.signal(header, epoch)
    for engine in engines:
        out.append(Send(engine.identity, payload, control=engine.control))
        engine.control = rule.becomes or engine.control
    if rule.becomes is not None:
        roster.state = rule.after or rule.becomes
        roster.changed()
    return len(engines)
