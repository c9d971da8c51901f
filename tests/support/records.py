"""What stands in for the ledger beside a router whose rows are not the subject."""

from __future__ import annotations

import collections
import functools
import threading
from typing import Any

from tests.support.loop import Loop, until

from turnout.core.admission.spending import Spending
from turnout.core.facts import CallFact, OpenedCall, StatsSnapshot
from turnout.core.pricing import PriceBook


class Records:
    """Takes the ledger's place and keeps what it was told."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._facts: list[CallFact] = []
        self.opened: list[OpenedCall] = []
        self.book = PriceBook.of(None, ())
        self.statistics = StatsSnapshot()
        self.filled = 0.0
        self._told = threading.Condition()

    @property
    def facts(self) -> list[CallFact]:
        """What has ended: the router records in the round after the last bytes of an answer."""
        self._loop.settle()
        return self._facts

    def start(self) -> None: ...

    def prices(self) -> PriceBook:
        return self.book

    def snapshot(self) -> StatsSnapshot:
        return self.statistics

    def session_sums(self, tenant: str, session: str) -> tuple[tuple[int, ...], frozenset[str]]:  # noqa: ARG002
        """No session has rows."""
        return (0,) * 7, frozenset()

    def fill(self) -> float:
        """Share of the last resort in use."""
        return self.filled

    @functools.cached_property
    def spending(self) -> Spending:
        """Nothing was spent before."""
        made = Spending()
        made.publish([], [])
        return made

    def explain(self, recent: Any, render: Any) -> None:
        """Nothing is stored, so nothing is explained."""

    def hot_routes(self) -> list[Any]:
        """No session was anywhere before."""
        return []

    def pages(self) -> Any:
        """Nothing can be read here: the ledger's pages are tested where there is a ledger."""

    def close(self, _: float) -> int:
        return 0

    def stats(self) -> dict[str, int]:
        return collections.defaultdict(int)

    def accepted(self, call: OpenedCall) -> None:
        self.opened.append(call)

    def record(self, fact: CallFact) -> None:
        with self._told:
            self._facts.append(fact)
            self._told.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait so long for anything to end."""
        with self._told:
            return self._told.wait(seconds)

    def fact(self, index: int = 0) -> CallFact:
        told = until(self._loop, self._told, lambda: len(self._facts) > index)
        assert told, f"{len(self._facts)} exchanges ended, expected more than {index}"
        return self._facts[index]
