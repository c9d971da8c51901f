"""Which other model may serve a request whose own has nobody left (resilience N6): configured, allowed, able."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout.core.admission.precheck import context_exceeded
from turnout.core.lifecycle import State
from turnout.core.retry_loop import Route

if TYPE_CHECKING:
    from turnout.gateway.run import Run


def candidates(run: Run, *, joins: bool = False) -> tuple[str, ...]:
    """The fallback models that are left, in the configured order; `joins`: those that may go on with a stream."""
    exchange, chosen = run.exchange, run.extra.chosen if run.extra is not None else None
    if not run.prepared.fallback or exchange is None:
        return ()
    if chosen is None:
        listed = run.catalogue.entry(run.asked_model).fallback
    elif joins:
        listed = chosen.selection.models
    else:
        return ()  # `auto` goes down its own list, from admission on (`extra.next_model`)
    barred = (run.model, *run.models_tried, *[attempt.model for attempt in exchange.attempts])
    return tuple([model for model in listed if model not in barred and _may_serve(run, model)])


def next_model(run: Run) -> Route | None:
    """Set out the next one, as if it had been asked for in the first place."""
    joins = run.exchange is not None and run.exchange.state is State.COMMITTED
    for model in candidates(run, joins=joins):
        pool = run.gateway.fleet.pool(model)
        run.models_tried = (*run.models_tried, model)
        if pool is None:
            continue
        before, run.model = run.model, model  # block keys are those of the other model
        ask = run.gateway.asker.ask(run, pool)
        run.model = before
        return Route(ask, pool, run.gateway.budget(model), run.gateway.recovery.doors.gate(model))
    return None


def _may_serve(run: Run, model: str) -> bool:
    """Model list of the key and context are checked again for each model (T85)."""
    if not run.principal.may_use(model) or not run.catalogue.knows(model):
        return False
    pool = run.gateway.fleet.pool(model)
    if pool is None or not pool.members:
        return False
    return context_exceeded(run.floor, [member.context_max for member in pool.members]) is None
