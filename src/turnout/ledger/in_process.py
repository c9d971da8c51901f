"""The database of a ledger, opened in the router itself: for tests, for tools, and for `own_process = false`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout.ledger import opening
from turnout.ledger.derivation import Derivation

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.core import options
    from turnout.ledger.backend import HotRoute, Statistics, Turn
    from turnout.ledger.sink import Sink
    from turnout.ledger.upgrade import OnEvent


class InProcess:
    """A `backend.Backend` that opens the database in this very process."""

    def __init__(
        self, options: options.Ledger, *, router_id: str, clock_ms: Callable[[], int], on_event: OnEvent, prices: str
    ) -> None:
        """Describe it; nothing is loaded before something is asked."""
        self.statistics: Statistics = Derivation(options)
        self._options = options
        self._router_id = router_id
        self._clock_ms = clock_ms
        self._on_event = on_event
        self._prices = prices

    def check(self) -> None:
        """Look at the file, or ask the server."""
        opening.check(self._options.url)

    def hurry(self) -> None:
        """The thread that opens it does not stand back anyway."""

    def open(self) -> Sink:
        """Open the store."""
        return opening.open_store(
            self._options,
            router_id=self._router_id,
            clock_ms=self._clock_ms,
            on_event=self._on_event,
            prices=self._prices,
        )

    def hot_routes(self, now_ms: int) -> list[HotRoute]:
        """Ask with a connection of its own."""
        return opening.hot_routes(self._options.url, now_ms)

    def recent_turns(self, since_ms: int, most: int) -> list[Turn]:
        """Ask with a connection of its own."""
        return opening.recent_turns(self._options.url, since_ms, most)

    def stats(self) -> dict[str, int | float]:
        """There is nothing to count."""
        return {}

    def close(self) -> None:
        """A thread that hangs in the database is left behind."""
