"""A hand-over that outlives its attempt: made, paid for, and used by no decode engine yet (rows 8 and 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from turnout.engines import vllm_nixl

if TYPE_CHECKING:
    from turnout.core.attempt import Attempt

_LEASE_MARGIN_S = 5.0


class Kept(msgspec.Struct, frozen=True, gc=False):
    """A hand-over that no decode engine has used: good for one more, while its lease lasts."""

    handover: vllm_nixl.Handover
    prefill: str
    ready_s: float


def kept_of(attempts: list[Attempt], lease_s: float, now: float) -> Kept | None:
    """Return the hand-over that the last attempt has left unused, while its lease lasts (rows 8 and 9)."""
    legs = attempts[-1].legs if attempts else None
    kept = legs.handle if legs is not None else None
    return kept if isinstance(kept, Kept) and now - kept.ready_s < lease_s - _LEASE_MARGIN_S else None
