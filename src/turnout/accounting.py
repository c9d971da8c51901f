"""The part of the composition root that joins gateway and ledger: what is told, what is asked, what is counted."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import msgspec

from turnout.core.scheduling.explain import brief, explain
from turnout.gateway.authority import watch
from turnout.gateway.reading import Reading
from turnout.gateway.session_totals import SessionTotals
from turnout.learning import Learning
from turnout.ledger.remote import OwnProcess
from turnout.ledger.spool import STRIP_SHARE
from turnout.ledger.writer import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from turnout.config.schema import Config
    from turnout.coordinator.door import Door
    from turnout.core.scheduling.decision import Decision
    from turnout.gateway.service import Gateway
    from turnout.ledger.upgrade import OnEvent


def open_books(config: Config, router_id: str, now_ms: Callable[[], int], on_event: OnEvent) -> Ledger | None:
    """Describe the ledger that a configuration names, if it names one, with its database where it shall be."""
    section, prices = config.ledger, config.prices.file
    if not section.url:
        return None
    own = OwnProcess(section, router_id=router_id, on_event=on_event, prices=prices) if section.own_process else None
    return Ledger(section, router_id=router_id, clock_ms=now_ms, on_event=on_event, prices=prices, backend=own)


def keep_accounts(gateway: Gateway, ledger: Ledger | None, config: Config) -> None:
    """Let a ledger hear of every accepted request before its first attempt, and price attempts by its book."""
    if ledger is not None:
        gateway.spending = ledger.spending
        gateway.spending.status = config.budget.status
        watch(gateway)
        gateway.degraded = lambda: ledger.fill() > 0.0
        if config.ledger.on_failure == "reject":
            gateway.unkept = lambda: ledger.fill() >= STRIP_SHARE
        gateway.accepted = ledger.accepted
        gateway.book = ledger.prices
        gateway.reading = Reading(gateway, ledger.pages)
        gateway.totals = SessionTotals(gateway, ledger.session_sums)
        # One call in C, so the writer's thread may ask beside the loop that appends.
        ledger.explain(lambda: list(gateway.decisions), functools.partial(_stored, gateway))
        Learning(gateway, ledger).start()


def explained(gateway: Gateway, call_id: str, decision: Decision) -> dict[str, Any]:
    """Return the document of a decision, with the choice of the model where one was made."""
    document = explain(decision, call_id)
    selected = gateway.selecting.explained(call_id) if gateway.selecting is not None else None
    return document if selected is None else document | {"selection": selected}


def _stored(gateway: Gateway, call_id: str, decision: Decision) -> bytes:
    return msgspec.json.encode(brief(explained(gateway, call_id, decision)))


def keep_door_accounts(door: Door, gateway: Gateway, ledger: Ledger | None, model: str) -> None:
    """Let a ledger hear of the requests that native clients send to the coordinator door."""
    if ledger is not None:
        from turnout.coordinator.books import Books

        door.requests.books = Books(
            accepted=ledger.accepted,
            record=ledger.record,
            model=model,
            router_id=gateway.router_id,
            clock=gateway.clock,
            now_ms=gateway.now_ms,
            entropy=gateway.entropy,
        )


class LedgerSource:
    """What `console.ledger_pages` asks of a ledger; the first question loads the database's library."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def rows(self, table: str, filters: Mapping[str, str], limit: int, cursor: str) -> dict[str, Any]:
        """Return rows of a table."""
        return self._ledger.pages().rows(table, filters, limit, cursor)

    def sessions(self, window_ms: int, limit: int, cursor: str) -> dict[str, Any]:
        """Return sessions."""
        return self._ledger.pages().sessions(window_ms, limit, cursor)

    def document(self, name: str, window_s: int) -> dict[str, Any]:
        """Return a document."""
        return self._ledger.pages().document(name, window_s)

    def export(self, table: str, since_ms: int, cursor: str, limit: int) -> tuple[bytes, str, bool]:
        """Return a part of an export."""
        return self._ledger.pages().export(table, since_ms, cursor, limit)


def ledger_stats(ledger: Ledger | None) -> dict[str, Any]:
    """Return the ledger's figures by the labels of the metrics."""
    if ledger is None:
        return {}
    stats = ledger.stats()
    return {
        **stats,
        "rows": _labelled(stats, "rows_"),
        "dropped": {tuple(name.split("_", 1)): value for name, value in _labelled(stats, "dropped_").items()},
        "duplicates": {"calls": stats["duplicates_calls"]},
        "write_errors": _labelled(stats, "write_errors_"),
        "read_errors": _labelled(stats, "read_errors_"),
        "unpriced": _labelled(stats, "unpriced_"),
    }


def _labelled(stats: dict[str, int | float], prefix: str) -> dict[str, int | float]:
    return {name.removeprefix(prefix): value for name, value in stats.items() if name.startswith(prefix)}
