"""The ledger's rows of attempts with two legs: one row for the attempt, and one per leg under it (ledger §3).

Tokens and money stand with the legs alone, so that rows can be added up: each leg costs what its own tokens do where it
ran, and what an answer says of its cost stands with the leg that gave it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from turnout.core.errors import UNCOUNTED, ErrorKind
from turnout.core.facts import AttemptFact
from turnout.core.pricing import Tokens

if TYPE_CHECKING:
    from turnout.core.attempt import Attempt
    from turnout.core.fleet.endpoint import EndpointState
    from turnout.core.scheduling.legs import Legs
    from turnout.gateway.open_run import OpenRun


def with_legs(run: OpenRun, attempts: list[Attempt], facts: tuple[AttemptFact, ...]) -> tuple[AttemptFact, ...]:
    """Return the rows of all attempts, those of legs after the row of their attempt."""
    rows: list[AttemptFact] = []
    for attempt, fact in zip(attempts, facts, strict=True):
        legs = attempt.legs
        if legs is None:
            rows.append(fact)
            continue
        rows.append(
            msgspec.structs.replace(
                fact,
                phase="pair",
                route=None,
                tokens_in=None,
                tokens_out=None,
                tokens_cached=None,
                tokens_cache_write=None,
                usage_source="none",
                cost_nusd=None,
                cost_basis="",
                list_nusd=None,
                price_version=None,
            )
        )
        prefill, decode = _prefill(run, attempt, legs, fact), _decode(run, attempt, legs, fact)
        rows += [_priced(prefill, attempt, legs.prefill), _priced(decode, attempt, legs.decode)]
    return tuple(rows)


def _priced(row: AttemptFact, attempt: Attempt, endpoint: EndpointState) -> AttemptFact:
    """Give a leg its own cost; what used nothing that is known has none, as its attempt."""
    book = attempt.book
    if book is None or (row.usage_source == "none" and not row.cost_basis):
        return row
    tokens = Tokens(row.tokens_in, row.tokens_out, row.tokens_cached, row.tokens_cache_write)
    said = None
    if row.cost_basis == "reported":
        said = attempt.usage.cost_usd if attempt.usage is not None and endpoint is attempt.endpoint else 0
    cost = book.cost(endpoint.provider, attempt.model, tokens, subscription=endpoint.flat_rate, reported=said)
    return msgspec.structs.replace(
        row,
        cost_nusd=cost.cost_nusd,
        cost_basis=cost.basis,
        list_nusd=cost.list_nusd,
        price_version=cost.price_version,
    )


def _prefill(run: OpenRun, attempt: Attempt, legs: Legs, fact: AttemptFact) -> AttemptFact:
    """The prompt's counts stand here."""
    route = run.gateway.route(legs.prefill, attempt.model)
    if attempt.endpoint is legs.prefill:
        return msgspec.structs.replace(
            fact, phase="prefill", route=route, committed=False, ttft_ms=None, tokens_out=None
        )
    done_s = legs.prefilled_s
    ended_ms = fact.ended_at_ms
    if done_s is not None:
        ended_ms = fact.started_at_ms + max(0, int((done_s - attempt.started_s) * 1000 + 0.5))
    row = msgspec.structs.replace(
        fact,
        phase="prefill",
        route=route,
        ended_at_ms=ended_ms,
        e2e_ms=ended_ms - fact.started_at_ms,
        committed=False,
        ttft_ms=None,
        tokens_out=None,
        tools_emitted=False,
    )
    return row if fact.ok else _settled(row, ok=done_s is not None)


def _decode(run: OpenRun, attempt: Attempt, legs: Legs, fact: AttemptFact) -> AttemptFact:
    """The output's counts stand here."""
    row = msgspec.structs.replace(
        fact,
        phase="decode",
        route=run.gateway.route(legs.decode, attempt.model),
        tokens_in=None,
        tokens_cached=None,
        tokens_cache_write=None,
    )
    return row if attempt.endpoint is not legs.prefill else _settled(row, ok=False)


def _settled(row: AttemptFact, *, ok: bool) -> AttemptFact:
    """The other leg failed: this one had succeeded, or was given up."""
    kind = None if ok else ErrorKind.CANCELLED
    return msgspec.structs.replace(
        row,
        ok=ok,
        counted=kind not in UNCOUNTED,
        error_kind="" if kind is None else kind.value,
        http_status=200 if ok else None,
    )
