"""Step 9 of request-path §1 for keys with a budget: reserve what the request may cost, or refuse it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout.core.errors import Outcome
from turnout.core.pricing import Tokens, usd

if TYPE_CHECKING:
    from turnout.core.admission.spending import Spending
    from turnout.gateway.run import Run

_BYTES_PER_TOKEN: Final = 4
_OUTPUT_TOKENS: Final = 4_096


def reserve(run: Run, spending: Spending) -> tuple[int, int] | None:
    """Reserve for a run, and return (budget, spent) when its key has nothing left; None: it may go on.

    The last request may go over by what it costs; the next one finds that spent.
    """
    principal = run.principal
    who, budget = (principal.tenant, principal.key_id), principal.budget_nusd
    assert budget is not None  # the caller asks only for keys that have one
    spent = spending.spent_nusd(who, principal.budget_days, run.started_ms)
    if spent is None:
        return budget, -1
    if spent >= budget:
        return budget, spent
    spending.reserve(run.call_id, who, _ceiling_nusd(run))
    return None


def refuse(run: Run, spending: Spending, budget: int, spent: int) -> None:
    """Refuse what `reserve` did not take."""
    if spent < 0:
        run.refuse(Outcome.AUTHORITY_UNAVAILABLE, "What this key has spent is not known at the moment.")
        return
    extra = (("budget", usd(budget)), ("spent", usd(spent)))
    message = f"This key has spent its budget: {usd(spent)} of {usd(budget)} USD in {run.principal.budget_days} days."
    run.refuse(Outcome.QUOTA_EXHAUSTED, message, extra=extra, status=spending.status)


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
