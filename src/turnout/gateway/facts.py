"""From an ended run to the one fact that ledger and metrics take (ledger §2, §3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import msgspec

from turnout.core.errors import ENDINGS
from turnout.core.facts import AttemptFact, CallFact, OpenedCall
from turnout.core.pricing import Tokens
from turnout.gateway.extra import facts as extra_facts
from turnout.gateway.legs_facts import with_legs

if TYPE_CHECKING:
    from turnout.core.attempt import Attempt
    from turnout.gateway.open_run import OpenRun
    from turnout.gateway.run import Run


# Words of each outcome and of its class: the attribute `value` of an enumeration costs more than a look-up.
_ENDED: Final = {outcome: (outcome.value, ending.cls) for outcome, ending in ENDINGS.items()}


def opened_call(run: OpenRun) -> OpenedCall:
    """Return what is known of a run before its first attempt: its row, should the process be killed."""
    request, principal = run.request, run.principal
    return OpenedCall(
        run.call_id,
        run.request_id.decode(),
        run.started_ms,
        principal.tenant,
        principal.key_id,
        run.session,
        request.dialect,
        request.path,
        request.stream,
        request.model,
        run.catalogue.resolve(request.model),
        reserved_nusd=_reserved(run),
    )


def call_fact(run: OpenRun, now: float) -> CallFact:
    """Return the fact of a run that has its outcome.

    Instants of attempts are the exchange's start plus monotonic differences, so a clock step cannot reorder them.
    """
    exchange, request, outcome = run.exchange, run.request, run.outcome
    assert outcome is not None
    attempts = exchange.attempts if exchange is not None else []
    response = run.response
    # With a hedge the latest attempt need not be the one that answered.
    last = response.attempt if response is not None else attempts[-1] if attempts else None
    usage = last.usage if last is not None else None
    each = tuple([_attempt_fact(run, attempt, attempt is last) for attempt in attempts])
    final = each[last.no - 1] if last is not None and each else None
    facts = _and_legs(run, attempts, each)
    trouble, decision = (exchange.trouble, exchange.decision) if exchange is not None else (None, None)
    first_output_s = response.first_output_s if response is not None and request.stream else None
    started_s = run.started_s
    cost_nusd, cost_basis = _total(facts)
    said, cls = _ENDED[outcome]
    fact = CallFact(
        run.call_id,
        run.request_id.decode(),
        run.started_ms,
        run.started_ms + int((now - started_s) * 1000 + 0.5),
        int((now - started_s) * 1000 + 0.5),
        run.principal.tenant,
        run.principal.key_id,
        request.dialect,
        request.path,
        request.stream,
        request.model,
        said,
        cls,
        run.status,
        facts,
        run.gateway.router_id,
        int(trouble.queued_s * 1000 + 0.5) if trouble is not None and trouble.queued_s else None,
        int(run.decide_s * 1e6 + 0.5),
        int((first_output_s - started_s) * 1000 + 0.5) if first_output_s is not None else None,
        run.session,
        request.user,
        run.model,
        route=final.route if final is not None else None,
        prefix_blocks=decision.blocks if decision is not None else None,
        prefix_matched_blocks=decision.matched_blocks if decision is not None else None,
        error_kind=final.error_kind if final is not None else "",
        committed=last.committed if last is not None else False,
        resumed=trouble is not None and trouble.resumed is not None,
        hedged=trouble is not None and trouble.hedge is not None,
        est_tokens=run.floor or None,
        tokens_in=final.tokens_in if final is not None else None,
        tokens_out=final.tokens_out if final is not None else None,
        tokens_cached=final.tokens_cached if final is not None else None,
        tokens_cache_write=final.tokens_cache_write if final is not None else None,
        tokens_reasoning=usage.tokens_reasoning if usage is not None else None,
        usage_source=final.usage_source if final is not None else "none",
        tools_requested=request.tools_requested,
        tools_emitted=final.tools_emitted if final is not None else False,
        cost_nusd=cost_nusd,
        cost_basis=cost_basis,
        reserved_nusd=_reserved(run),
    )
    return fact if run.extra is None else msgspec.structs.replace(fact, **extra_facts(cast("Run", run)))


def _reserved(run: OpenRun) -> int | None:
    spending = run.gateway.spending
    if spending is None or run.principal.budget_nusd is None:
        return None
    return spending.reserved_nusd(run.call_id)


def spent(run: OpenRun) -> tuple[int | None, int | None, int | None, int | None]:
    """Return tokens (in, out, cached) and cost of a run whose answer is complete and about to be handed over."""
    if run.extra is not None and run.extra.replayed is not None:
        replayed = run.extra.replayed
        return replayed["tokens_in"], replayed["tokens_out"], replayed["tokens_cached"], replayed["cost_nusd"]
    exchange, response = run.exchange, run.response
    if exchange is None or response is None:
        return None, None, None, None
    last = response.attempt
    if last.usage is None:
        last.usage = response.usage if response.tap is None else response.tap.usage
    facts = tuple([_attempt_fact(run, attempt, attempt is last) for attempt in exchange.attempts])
    final = facts[last.no - 1]
    return final.tokens_in, final.tokens_out, final.tokens_cached, _total(_and_legs(run, exchange.attempts, facts))[0]


def _and_legs(run: OpenRun, attempts: list[Attempt], facts: tuple[AttemptFact, ...]) -> tuple[AttemptFact, ...]:
    for attempt in attempts:
        if attempt.legs is not None:
            return with_legs(run, attempts, facts)
    return facts


def _attempt_fact(run: OpenRun, attempt: Attempt, is_last: bool) -> AttemptFact:  # noqa: FBT001 - a fact about it
    endpoint = attempt.endpoint
    started_ms = run.started_ms + int((attempt.started_s - run.started_s) * 1000 + 0.5)
    e2e_ms = int((attempt.ended_s - attempt.started_s) * 1000 + 0.5)
    response = run.response if is_last else None
    usage = attempt.usage
    tokens_in = tokens_out = tokens_cached = tokens_written = ttft_ms = None
    source = "none"
    if response is not None:
        first_output_s, events = response.first_output_s, response.events
        tools = response.tap is not None and response.tap.tools
    else:
        first_output_s, events, tools = attempt.first_output_s, attempt.events, attempt.tools
    if first_output_s is not None and run.request.stream:
        ttft_ms = int((first_output_s - attempt.started_s) * 1000 + 0.5)
    if usage is None and events:
        tokens_in, tokens_out, source = attempt.tokens, events, "estimated"
    if usage is not None:
        tokens_in, tokens_out, tokens_cached = usage.tokens_in, usage.tokens_out, usage.tokens_cached
        tokens_written, source = usage.tokens_cache_write, "engine"
    kind = attempt.error_kind
    cost_nusd = list_nusd = version = None
    basis = ""
    book, said = attempt.book, usage.cost_usd if usage is not None else None
    if book is not None and (endpoint.flat_rate or said is not None or (book.version is not None and source != "none")):
        tokens = Tokens(tokens_in, tokens_out, tokens_cached, tokens_written)
        cost = book.cost(endpoint.provider, attempt.model, tokens, subscription=endpoint.flat_rate, reported=said)
        cost_nusd, basis, list_nusd, version = cost.cost_nusd, cost.basis, cost.list_nusd, cost.price_version
    return AttemptFact(
        attempt.no,
        "solo",
        run.gateway.route(endpoint, attempt.model),
        attempt.kind,
        started_ms,
        started_ms + e2e_ms,
        kind is None,
        attempt.counted,
        attempt.committed,
        kind.value if kind is not None else "",
        attempt.http_status,
        e2e_ms,
        ttft_ms,
        tokens_in,
        tokens_out,
        tokens_cached,
        tokens_written,
        source,
        tools_requested=run.request.tools_requested,
        tools_emitted=tools,
        cost_nusd=cost_nusd,
        cost_basis=basis,
        list_nusd=list_nusd,
        price_version=version,
    )


def _total(facts: tuple[AttemptFact, ...]) -> tuple[int | None, str]:
    """Add up what the rows of a call cost; of a split attempt only its legs have money (ledger §3)."""
    total, basis = None, ""
    for fact in facts:
        if fact.cost_nusd is not None:
            total = fact.cost_nusd if total is None else total + fact.cost_nusd
            basis = fact.cost_basis if basis in ("", fact.cost_basis) else "mixed"
    return total, basis
