"""The ledger's rows of attempts with two legs: one row for the attempt, and one per leg under it (ledger §3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from turnout.core.errors import UNCOUNTED, ErrorKind
from turnout.core.facts import AttemptFact

if TYPE_CHECKING:
    from turnout.core.attempt import Attempt
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
                usage_source="none",
            )
        )
        rows += [_prefill(run, attempt, legs, fact), _decode(run, attempt, legs, fact)]
    return tuple(rows)


def _prefill(run: OpenRun, attempt: Attempt, legs: Legs, fact: AttemptFact) -> AttemptFact:
    """The prompt's counts stand here."""
    route = run.gateway.route(legs.prefill, attempt.model)
    if attempt.endpoint is legs.prefill:
        return msgspec.structs.replace(fact, phase="prefill", route=route, committed=False, ttft_ms=None)
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
