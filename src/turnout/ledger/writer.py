"""The one door into the ledger: `record` never waits, one thread of the process writes behind it.

Nothing of the database is loaded before that thread runs: importing SQLAlchemy takes longer than serving the first
request may.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from turnout.core.admission.spending import Spending
from turnout.ledger import opening, upgrade
from turnout.ledger.drain import Drain
from turnout.ledger.entry import Entry, encode
from turnout.ledger.explanations import Explanations
from turnout.ledger.in_process import InProcess
from turnout.ledger.slots import Slots, recover
from turnout.ledger.snapshot import Refresher
from turnout.ledger.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnout.core import options
    from turnout.core.facts import CallFact, OpenedCall, StatsSnapshot
    from turnout.core.pricing import PriceBook
    from turnout.ledger.backend import Backend, HotRoute, Turn
    from turnout.ledger.explanations import Recent
    from turnout.ledger.pages import Pages
    from turnout.ledger.sink import Sink
    from turnout.ledger.upgrade import OnEvent

_PRUNE_EVERY_S: Final = 60.0
_PRUNE_PAUSE_S: Final = 0.05
# The database is opened this long after `start`: first the door is open, then libraries are loaded.
_OPEN_DELAY_S: Final = 0.05
# The first requests wait so long for prices and budgets, then a database that does not answer is taken for down.
_KNOWN_WAIT_S: Final = 5.0
# A thread that has no reason to wait any longer ends in this time.
_ENDS_S: Final = 0.2
_ATTEMPTS_SHARE: Final = 0.8
# So many waiting calls are spooled at once, by a thread that gets the core even where the writer does not.
_SPILL_AT: Final = 2_048
_FRAME_CALLS: Final = 32
# A server does most of the work of a call in its own process, so more of them go there directly.
_SERVER_BATCHES: Final = 3


class Ledger:
    """Records calls and stores them in the background. `start` once, `close` once."""

    def __init__(
        self,
        options: options.Ledger,
        *,
        router_id: str,
        clock_ms: Callable[[], int],
        on_event: OnEvent | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        open_delay_s: float = _OPEN_DELAY_S,
        open_sink: Callable[[], Sink] | None = None,
        prices: str = "",
        backend: Backend | None = None,
    ) -> None:
        """Describe the ledger of one router process, with the file of its prices; touches no file yet.

        `backend` is where the database is opened; in this process, if not given.

        Raises:
            LedgerRefusedError: `options.url` names neither a file nor a server.
        """
        self._options = options
        self._clock_ms = clock_ms
        self._monotonic = monotonic
        self._on_event: OnEvent = on_event or _ignore
        self._has_prices = bool(prices)
        self._backend: Backend = backend or InProcess(
            options, router_id=router_id, clock_ms=clock_ms, on_event=self._on_event, prices=prices
        )
        self._path = upgrade.base_of(options.url, options.spool_path)
        self._queue: deque[Entry] = deque()
        self._queue_max = options.queue_max
        self._attempts_max = int(options.queue_max * _ATTEMPTS_SHARE)
        self._spill_at = min(_SPILL_AT, max(1, options.queue_max // 2))
        self._spill = threading.Event()
        self._dropped_full = self._dropped_closed = self._dropped_attempts = self._dropped_invalid = 0
        self._slots: Slots | None = None
        self._slots_unreadable = 0
        self._recovered = 0
        # Ids of calls that found the queue full: their slots still have them.
        self._overflow: deque[str] = deque()
        self.spending = Spending()
        self._refresher = Refresher(
            options, self._backend.statistics, clock_ms=clock_ms, yields=opening.stand_back, spending=self.spending
        )
        self._closed = False
        self._deadline = 0.0
        self._next_prune = 0.0
        self._wake = threading.Event()
        # Only the writer can tell what is settled: from outside, a batch between queue and database is invisible.
        self._round_done = threading.Condition()
        self._rounds = 0
        self._in_round = False
        self._settled = False
        self._name = f"{clock_ms():013d}-{os.getpid()}"
        sizes = {"max_bytes": options.spool_max_bytes, "frame_calls": _FRAME_CALLS, "read_calls": options.batch_max}
        self._spool = Spool(self._path, name=self._name, **sizes)
        self._drain = Drain(
            self._queue,
            self._spool,
            batch_max=options.batch_max,
            interval_s=options.flush_interval_ms / 1000,
            monotonic=monotonic,
            on_event=self._on_event,
            on_safe=self._free,
            on_overflow=self._spill.set,
            direct_max=options.batch_max * (1 if upgrade.is_file(options.url) else _SERVER_BATCHES),
            spending=self.spending,
        )
        self._opener = opening.Opener(
            open_sink or self._backend.open,
            delay_s=open_delay_s,
            on_event=self._on_event,
            on_open=self._opened,
            spool_bytes=lambda: self._spool.size_bytes,
        )
        self._pages: Pages | None = None
        # Daemons: a database that hangs must not keep the process from ending; `close` is what loses nothing.
        self._writer = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._spiller = threading.Thread(target=self._spill_over, name="ledger-spiller", daemon=True)

    def start(self) -> None:
        """Begin writing in the background; where prices or budgets are configured, wait until they are known.

        Raises:
            LedgerRefusedError: the schema of the database does not fit this code.
        """
        awaited = self._has_prices or self.spending.days
        if awaited:
            self._backend.hurry()
        self._backend.check()
        if self._options.slots:
            # Without a place for the file requests are served all the same; `ledger_down` says what is wrong there.
            with contextlib.suppress(OSError):
                self._slots = Slots(self._path.with_name(f"{self._path.name}.slots-{self._name}"), self._options.slots)
        self._writer.start()
        self._opener.start()
        self._spiller.start()
        self._refresher.start()
        if awaited:
            self._refresher.wait(_KNOWN_WAIT_S)

    def accepted(self, call: OpenedCall) -> None:
        """Keep what is known of an accepted request, so that its row survives a kill. Never waits, never raises."""
        if self._slots is not None:
            self._slots.claim(call)

    def record(self, call: CallFact) -> None:
        """Keep one closed exchange with its attempts, or attempts of one that is still open (`outcome` empty).

        Never waits, never raises. Without room a call is taken from its slot later, or counted; attempts get at most
        80 % of the room.
        """
        try:
            payload = encode(call)
        except (ValueError, OverflowError, TypeError):  # text that is not UTF-8, an integer beyond 64 bits
            self._dropped_invalid += 1
            self._free([call.call_id] if call.outcome else [])
            return
        waiting = len(self._queue)
        if not call.outcome:
            if not self._closed and waiting < self._attempts_max:
                self._queue.append(Entry("", payload))
            else:
                self._dropped_attempts += len(call.attempts)
            return
        slots = self._slots
        if slots is not None:
            slots.end(call, payload)
        if self._closed:
            self._dropped_closed += 1
        elif waiting < self._queue_max:
            self._queue.append(Entry(call.call_id, payload))
            if waiting == self._spill_at:
                self._spill.set()
        elif slots is not None and slots.holds(call.call_id):
            self._overflow.append(call.call_id)
        else:
            self._dropped_full += 1

    def explain(self, recent: Callable[[], Recent], render: Callable[[str, Any], bytes]) -> None:
        """Store explanations of some of the `recent` decisions with their calls; before `start`."""
        per_s = self._options.decisions_per_s
        self._drain.explanations = Explanations(recent, render, per_s=per_s, monotonic=self._monotonic)

    def snapshot(self) -> StatsSnapshot:
        """Give the derived statistics: the same object until the next refresh, empty when older than 30 s."""
        return self._refresher.fresh(self._clock_ms())

    def prices(self) -> PriceBook:
        """Give the version of the price book in force, as of the last refresh; empty before the first."""
        return self._refresher.book

    def hot_routes(self) -> list[HotRoute]:
        """Give (tenant, session, hot route, instant) of the last hour, to start with. Blocks."""
        return self._backend.hot_routes(self._clock_ms())

    def recent_turns(self, since_ms: int, most: int) -> list[Turn]:
        """Give the newest turn of each session, newest first, to start with. Blocks."""
        return self._backend.recent_turns(since_ms, most)

    def session_sums(self, tenant: str, session: str) -> tuple[tuple[int, ...], frozenset[str]]:
        """Give the sums over a session's rows and the ids of the newest of them. Blocks."""
        return self.pages().session_sums(tenant, session)

    def pages(self) -> Pages:
        """Give the documents of the admin endpoints; loads the database library, so not on the event loop."""
        if self._pages is None:
            from turnout.ledger.pages import Pages

            self._pages = Pages(self._options, clock_ms=self._clock_ms, snapshot=self.snapshot, stats=self.stats)
        return self._pages

    def fill(self) -> float:
        """Give the share of the last resort in use: memory, when neither database nor file take calls; usually 0."""
        return self._spool.memory_fill

    def flush(self, timeout_s: float) -> int:
        """Wait until everything recorded is in the database; return the calls that are not after `timeout_s`.

        Calls in spool files of earlier processes count as one.
        """
        settled = self._spool.empty
        if self._writer.is_alive():
            with self._round_done:
                # A round under way may have looked at the queue before the last call was put there.
                enough = self._rounds + 1 + self._in_round
                self._wake.set()
                settled = self._round_done.wait_for(lambda: self._rounds >= enough and self._settled, timeout_s)
        waiting = len(self._queue) + len(self._drain.inflight)
        return waiting or (0 if settled else 1)

    def close(self, timeout_s: float = 5.0) -> int:
        """Refuse new calls, store the rest within `timeout_s`, spool what is left; return the calls in neither."""
        # The writer leaves its loop at the next round after `_closed`, and must find until when it may store.
        self._deadline = self._monotonic() + timeout_s
        self._closed = True
        self._refresher.close(0.0)
        self._opener.close()
        self._wake.set()
        self._spill.set()
        if self._writer.is_alive():
            self._writer.join(timeout_s + _ENDS_S)
        self._backend.close()
        if self._writer.is_alive():
            self._writer.join(_ENDS_S)  # what it waited for may be gone
        if self._writer.is_alive():
            # The writer hangs in the database. Its batch goes to the spool as well: stored twice changes nothing.
            self._spool.append_encoded([entry.payload for entry in self._drain.inflight])
        refused = self._spool.calls_refused
        self._from_slots(len(self._overflow))
        self._drain.spool_queue()
        lost = self._spool.close() + self._spool.calls_refused - refused
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.remove()
        return lost

    def stats(self) -> dict[str, int | float]:
        """Give counters and gauges of this process by name."""
        drain, spool, written = self._drain, self._spool, self._drain.written
        return {
            "queue_depth": len(self._queue),
            "rows_calls": written.calls,
            "rows_attempts": written.attempts,
            "rows_routes": written.routes,
            "rows_decisions": written.decisions,
            "duplicates_calls": written.duplicates,
            "dropped_calls_queue_full": self._dropped_full,
            "dropped_calls_closed": self._dropped_closed,
            "dropped_calls_spool_full": spool.calls_refused,
            "dropped_calls_invalid": self._dropped_invalid + written.invalid + spool.calls_unencodable,
            "dropped_attempts_spool_full": spool.calls_stripped,
            "dropped_decisions_too_large": written.decisions_too_large,
            "dropped_decisions_unexplained": drain.explanations.failed if drain.explanations is not None else 0,
            "spool_bytes": spool.size_bytes,
            "spool_memory_bytes": spool.memory_used_bytes,
            "spool_replayed": drain.replayed,
            "spool_torn": spool.torn,
            "spool_unreadable": spool.unreadable,
            "commits": written.commits,
            "last_commit_s": drain.last_commit_s,
            "write_errors": sum(drain.write_errors.values()),
            **{f"write_errors_{kind}": n for kind, n in sorted(drain.write_errors.items())},
            **{f"unpriced_{provider}": n for provider, n in sorted(written.unpriced.items())},
            "down": int(drain.down),
            "dropped_attempts_queue_full": self._dropped_attempts,
            "recovered": self._recovered,
            "slots_taken": self._slots.taken if self._slots is not None else 0,
            "slots_missed": self._slots.missed if self._slots is not None else 0,
            "slots_unreadable": self._slots_unreadable,
            **self._refresher.stats(),
            **self._backend.stats(),
        }

    def _opened(self) -> None:
        self._wake.set()
        self._refresher.begin()

    def _run(self) -> None:
        opening.stand_back()
        wait_s = self._options.flush_interval_ms / 1000
        adopted = self._spool.adopt()
        if adopted:
            self._on_event("ledger_spool_adopted", segments=adopted, spool_bytes=self._spool.size_bytes)
        self._recover()
        while not self._closed:
            self._wake.wait(wait_s)
            if self._overflow:
                self._from_slots(self._queue_max - len(self._queue))
            with self._round_done:
                self._in_round = True
                self._wake.clear()
            self._drain.sink = self._opener.sink
            wait_s = self._drain.round()
            settled = self._drain.settled
            if settled:
                wait_s = self._prune(wait_s)
            with self._round_done:
                self._in_round = False
                self._rounds += 1
                self._settled = settled
                self._round_done.notify_all()
        self._opener.done.wait(max(0.0, self._deadline - self._monotonic()))
        self._drain.sink = self._opener.sink
        self._drain.finish(self._deadline)
        if self._drain.sink is not None:
            self._drain.sink.close()

    def _spill_over(self) -> None:
        """Bring a queue that grows to the spool: at saturation the writer hardly runs, and that costs memory."""
        while not self._closed:
            self._spill.wait()
            self._spill.clear()
            self._drain.spool_queue()

    def _recover(self) -> None:
        """Make the requests that a killed process left open into rows, by way of the spool: its file is safe."""

        def keep(calls: list[CallFact]) -> None:
            if calls:
                self._spool.append(calls)
                self._spool.sync()

        self._recovered, self._slots_unreadable = recover(self._path, keep, self._clock_ms())
        if self._recovered or self._slots_unreadable:
            self._on_event("ledger_recovered", calls=self._recovered, unreadable=self._slots_unreadable)

    def _free(self, call_ids: Sequence[str]) -> None:
        slots = self._slots
        if slots is not None:
            slots.free(call_ids)

    def _from_slots(self, room: int) -> None:
        """Take calls that once found no room from their slots."""
        slots = self._slots
        with contextlib.suppress(IndexError):  # a writer that hung may come back while `close` does this for it
            for _ in range(room):
                call = slots.ended(self._overflow.popleft()) if slots is not None else None
                if call is None:
                    self._dropped_full += 1
                else:
                    self._queue.append(Entry(call.call_id, encode(call)))

    def _prune(self, wait_s: float) -> float:
        """Delete one chunk when it is time; return the pause until the next round."""
        if self._drain.sink is None or self._monotonic() < self._next_prune:
            return wait_s
        if self._drain.prune():
            return min(wait_s, _PRUNE_PAUSE_S)
        self._next_prune = self._monotonic() + _PRUNE_EVERY_S
        return wait_s


def _ignore(name: str, /, **fields: object) -> None:
    """Take no notice."""
