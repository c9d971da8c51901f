"""Step 9 of request-path §1: whoever may not spend more, or whose row could not be kept, is refused.

Only keys with a budget, and routers that are told to reject what they cannot record, come here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from turnout.core.errors import Outcome
from turnout.core.pricing import Tokens, usd

if TYPE_CHECKING:
    from turnout.gateway.run import Run
    from turnout.gateway.service import Gateway

_BYTES_PER_TOKEN: Final = 4
_OUTPUT_TOKENS: Final = 4_096


class Over(NamedTuple):
    """Why a request is refused: with sums its budget is spent, without the ledger is no authority now."""

    message: str
    budget_nusd: int = 0
    spent_nusd: int | None = None


def watch(gateway: Gateway) -> None:
    """Let what was spent be read as far back as some key's budget looks."""
    if gateway.spending is not None:
        gateway.spending.days = gateway.principals.budget_days


def check(run: Run) -> Over | None:
    """Reserve what a run may cost; None: it may go on.

    The last request may go over by what it costs; the next one finds that spent.
    """
    gateway, principal = run.gateway, run.principal
    if gateway.unkept is not None and gateway.unkept():
        return Over("What is asked cannot be recorded at the moment.")
    spending, budget = gateway.spending, principal.budget_nusd
    if spending is None or budget is None:
        return None
    who = (principal.tenant, principal.key_id)
    spent = spending.spent_nusd(who, principal.budget_days, run.started_ms)
    if spent is None:
        return Over("What this key has spent is not known at the moment.")
    if spent < budget:
        spending.reserve(run.call_id, who, _ceiling_nusd(run))
        return None
    days = principal.budget_days
    return Over(f"This key has spent its budget: {usd(spent)} of {usd(budget)} USD in {days} days.", budget, spent)


def refuse(run: Run, over: Over) -> None:
    """End a run that `check` did not let through."""
    if over.spent_nusd is None or run.gateway.spending is None:
        run.refuse(Outcome.AUTHORITY_UNAVAILABLE, over.message)
        return
    extra = (("budget", usd(over.budget_nusd)), ("spent", usd(over.spent_nusd)))
    run.refuse(Outcome.QUOTA_EXHAUSTED, over.message, extra=extra, status=run.gateway.spending.status)


def _ceiling_nusd(run: Run) -> int:
    """Return the most that a run may cost (C7): at the dearest offer of its model, or of any model for `auto`."""
    request, fleet, book = run.request, run.gateway.fleet, run.gateway.book()
    if book is None:
        return 0
    tokens = Tokens(len(request.body) // _BYTES_PER_TOKEN, (request.max_tokens or _OUTPUT_TOKENS) * request.n)
    model = run.catalogue.resolve(request.model)
    most = 0
    for name in [model] if model else fleet.models:
        pool = fleet.pool(name)
        for provider in {member.provider for member in pool.members} if pool is not None else ():
            most = max(most, book.list_nusd(provider, name, tokens) or 0)
    return most
