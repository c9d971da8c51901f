"""Leaving without cutting anything off: not ready at once, closed to new requests later, patient with the rest.

Resilience §10: whoever sends traffic here needs `drain.notice_s` to see that this router is no longer ready; until then
requests are served as ever. What was accepted, waiting requests included, has `drain.grace_s` to end by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from turnout.core.options import Drain

if TYPE_CHECKING:
    from turnout.gateway.service import Gateway
    from turnout.http.listener import Listener

_LOOK_S = 0.02
_HURRIED_S = 5.0  # X3


async def drain(gateway: Gateway, listener: Listener, options: Drain, hurried: Callable[[], bool]) -> float:
    """End every open exchange, by itself or with `shutdown`; return the seconds of grace that are left.

    Args:
        gateway: whose exchanges end.
        listener: what accepts connections.
        options: the section `drain`.
        hurried: tells whether a second signal came.

    """
    clock = gateway.clock
    gateway.ready = False
    open_until_s = clock() + options.notice_s
    while clock() < open_until_s and not hurried():  # noqa: ASYNC110 - the clock may be one of a simulation
        await asyncio.sleep(_LOOK_S)
    gateway.draining = True
    listener.drain()
    until_s = clock() + options.grace_s
    while gateway.runs and clock() < until_s:
        if hurried():
            until_s = min(until_s, clock() + _HURRIED_S)
        await asyncio.sleep(_LOOK_S)
    gateway.interrupt_all()
    return max(0.0, until_s - clock())
