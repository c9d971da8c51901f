"""What scheduling would do with a request for a model now: nothing is opened, and nobody's turn moves."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from turnout.core.admission.precheck import estimate_floor
from turnout.core.request import Request
from turnout.core.scheduling.decision import Decision
from turnout.core.scheduling.foresight import foreseen
from turnout.gateway.asking import Asked
from turnout.gateway.prepare import Prepared
from turnout.gateway.principals import Principal

if TYPE_CHECKING:
    from turnout.gateway.service import Gateway


def foresee(
    gateway: Gateway, request: Request, prepared: Prepared, principal: Principal, model: str
) -> Decision | None:
    """Return the decision; None when no pool serves the model."""
    pool = gateway.fleet.pool(model)
    if pool is None:
        return None
    prompt, chars = request.prompt, gateway.catalogue.entry(model).chars_per_token
    floor = (
        max(1, len(prompt.tokens))
        if prompt.tokens
        else estimate_floor(prompt.units, prompt.messages, prompt.tools_bytes, chars)
    )
    order = gateway.fleet.scheduling.session_keys
    ask = gateway.asker.ask(Asked(request, prepared, principal, order, model, floor), pool)
    return foreseen(ask, pool, gateway.fleet, gateway.clock(), copy.copy(gateway.rng))


def cached_share(gateway: Gateway, request: Request, prepared: Prepared, principal: Principal, model: str) -> float:
    """Return the share of the input that the engine of a model is expected to hold; 1 when nothing is known of it.

    A provider's cache is not ours to know, and a prompt of less than a block leaves no trace in the index.
    """
    decision = foresee(gateway, request, prepared, principal, model)
    if decision is None or decision.picked is None or decision.picked.provider or not decision.blocks:
        return 1.0
    return min(1.0, decision.predicted / max(1, decision.tokens))
