"""Faults as one reads and writes them on a command line."""

from __future__ import annotations

import math

from turnout.sim.replay.options import Fault

_PARTS = {"dead": 4, "slow": 5}


def parse_fault(text: str) -> Fault:
    """Read `dead:ENGINE:FROM:UNTIL` or `slow:ENGINE:FROM:UNTIL:FACTOR`; an empty UNTIL is never.

    Raises ValueError with what was expected.
    """
    kind, *rest = text.split(":")
    wanted = "dead:ENGINE:FROM:UNTIL or slow:ENGINE:FROM:UNTIL:FACTOR"
    if len(rest) + 1 != _PARTS.get(kind):
        raise ValueError(f"fault = {text!r}: expected {wanted}")
    try:
        engine, since = int(rest[0]), float(rest[1])
        until = float(rest[2]) if rest[2] else math.inf
        factor = float(rest[3]) if kind == "slow" else 2.0
    except ValueError:
        raise ValueError(f"fault = {text!r}: expected {wanted} with numbers") from None
    if kind == "slow":
        if not 0.01 <= factor <= 100.0:  # noqa: PLR2004 - two decades either way
            raise ValueError(f"fault = {text!r}: the factor is {factor}, expected 0.01 to 100")
        return Fault(kind="slow", engine=engine, from_s=since, until_s=until, factor=factor)
    return Fault(kind="dead", engine=engine, from_s=since, until_s=until)
