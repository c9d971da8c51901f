"""A duplicate of a stream that is slow to begin, for models that opted in (resilience Z1 to Z3).

A timer per eligible attempt, none for the others. The first output event wins; the loser's connection is closed in the
same instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout.core.options import Hedge
from turnout.core.recovery.hedging import HedgeTrigger

if TYPE_CHECKING:
    from turnout.gateway.response import AttemptResponse
    from turnout.gateway.run import Run


class Hedges:
    """The triggers of all models, and what hedging came to."""

    __slots__ = ("_options", "_triggers", "lost", "sent", "won")

    def __init__(self, options: Hedge) -> None:
        self._options = options
        self._triggers: dict[str, HedgeTrigger] = {}
        self.sent = self.won = self.lost = 0

    def reconfigure(self, options: Hedge) -> None:
        """Take new options; what was learnt under the old ones is learnt again."""
        self._options = options
        self._triggers.clear()

    def trigger(self, model: str) -> HedgeTrigger:
        """What is known about one model."""
        trigger = self._triggers.get(model)
        if trigger is None:
            trigger = self._triggers[model] = HedgeTrigger(self._options)
        return trigger

    def watch(self, run: Run, response: AttemptResponse) -> None:
        """An attempt of a hedged model was sent: look again when it is late."""
        now = run.clock()
        trigger = self.trigger(run.model)
        trigger.attempted(now)
        after_s = trigger.due_after_s(now)
        if after_s is not None and run.rival is None:
            run.gateway.loop.call_later(after_s, self._late, run, response)

    def first_token(self, run: Run, response: AttemptResponse) -> None:
        """Learn how long a first token took."""
        now = run.clock()
        self.trigger(run.model).first_token(now - response.attempt.started_s, now)

    def _late(self, run: Run, response: AttemptResponse) -> None:
        """The first token has not come within what is usual: ask somebody else, too."""
        exchange, gateway = run.exchange, run.gateway
        if run.outcome is not None or run.response is not response or response.first_output_s is not None:
            return
        if exchange is None or run.rival is not None or gateway.draining or not response.attempt.is_open:
            return
        now = run.clock()
        if not self.trigger(run.model).take(now):
            return
        attempt = exchange.hedge(now)
        if attempt is None:
            return
        self.sent += 1
        run.open_rival(attempt)

    def settle(self, run: Run, winner: AttemptResponse) -> None:
        """The first output came: the other attempt is cancelled."""
        rival, first = run.rival, run.response
        if rival is None or first is None or run.exchange is None:
            return
        loser = first if winner is rival else rival
        run.rival = None
        run.response = winner
        run.cancel(loser)
        loser.attempt.note(loser.first_output_s, loser.events, tools=False)
        run.exchange.hedge_lost(loser.attempt, run.clock())
        if winner is rival:
            self.won += 1
        else:
            self.lost += 1
        loser.release()
