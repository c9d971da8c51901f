"""Where each recorded call goes next: straight into the database, or into the spool until there is time for it.

The database costs thirty times what the spool costs, and the writer shares its interpreter with the event loop. So a
round inserts at most `direct_max` calls (one batch, three on a server); more than that arriving per interval goes to
the spool. It is replayed in order once no more comes in than could go straight to the database, a batch faster than
that, or once it is half full. While the spool holds anything, new calls are appended to it: order is kept.

Rounds belong to the writer. `spool_queue` may be called by another thread at the same time, for a writer that is put
aside or waits for the database; no lock is held meanwhile that the other would have to wait for.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from turnout.ledger import entry, messages
from turnout.ledger.sink import Sink, SinkDownError, Written

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Sequence

    from turnout.core.admission.spending import Spending
    from turnout.ledger.entry import Entry, Frame
    from turnout.ledger.explanations import Explanations
    from turnout.ledger.spool import Spool
    from turnout.ledger.upgrade import OnEvent

RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 5.0
# Pause after a replayed batch as a multiple of its duration: a tenth of the time while calls arrive, half otherwise.
_PAUSE_BUSY: Final = 9.0
_PAUSE_IDLE: Final = 1.0
# A spool this full must shrink before it drops calls, whatever that takes from requests: a third of the time.
_PRESSURE: Final = 0.5
_PAUSE_PRESSURE: Final = 2.0
_PAUSE_MIN_S: Final = 0.001


class Drain:
    """Empties the queue, one `round` at a time. Starts no thread and never waits itself."""

    def __init__(
        self,
        queue: deque[Entry],
        spool: Spool,
        *,
        batch_max: int,
        interval_s: float,
        monotonic: Callable[[], float],
        on_event: OnEvent,
        on_safe: Callable[[Sequence[str]], None] = lambda _call_ids: None,
        on_overflow: Callable[[], None] | None = None,
        direct_max: int = 0,
        spending: Spending | None = None,
    ) -> None:
        """Take calls from `queue`, without a sink until `sink` is set.

        `on_safe` hears what is stored or in a file; `on_overflow` sees to it that another thread calls `spool_queue`
        (None: a round does it itself). A round stores up to `direct_max` calls (0: one batch) without the spool.
        """
        self.sink: Sink | None = None
        self.inflight: list[Entry] = []
        self.explanations: Explanations | None = None
        self.written = Written()
        self.replayed = 0
        self.write_errors: dict[str, int] = {}
        self.last_commit_s = 0.0
        self._queue = queue
        self._spool = spool
        self._batch_max = batch_max
        self._direct_max = max(batch_max, direct_max)
        self._interval_s = interval_s
        self._monotonic = monotonic
        self._on_event = on_event
        self._on_safe = on_safe
        self._on_overflow = on_overflow or self.spool_queue
        self._spending = spending
        # One item per call of `spool_queue` under way, since a counter would not be exact between threads.
        self._spooling: list[None] = []
        self._spooled = 0
        self._spooled_before = 0
        self._down = False
        self._retry_at = 0.0
        self._retry_s = RETRY_FIRST_S

    @property
    def settled(self) -> bool:
        """Every call taken so far is in the database."""
        # In this order: what leaves the queue is counted as being spooled until it is in the spool.
        return not self._queue and not self._spooling and not self.inflight and self._spool.empty

    @property
    def down(self) -> bool:
        """The last try to store a batch failed."""
        return self._down

    def round(self) -> float:
        """Do one round of work; return the seconds until the next one is due."""
        round_started = self._monotonic()
        if self.explanations is not None:
            self.explanations.look()
        # What another thread spooled since the last round came in as well.
        spooled = self._spooled
        waiting = len(self._queue)
        fresh = max(waiting, spooled - self._spooled_before)
        self._spooled_before = spooled
        ready = self.sink is not None and round_started >= self._retry_at
        if waiting and not (ready and self._spool.empty and fresh <= self._direct_max and self._insert_direct()):
            self._on_overflow()
            self._spooled_before = self._spooled
        pressure = self._spool.fill_ratio >= _PRESSURE
        if not ready or self._spool.empty or (fresh > self._direct_max and not pressure):
            return max(_PAUSE_MIN_S, round_started + self._interval_s - self._monotonic())
        # One batch more than came in: a server that could take it all directly must not lose ground to its own spool.
        batches = 1 if pressure else 1 + fresh // self._batch_max
        started = self._monotonic()
        for _ in range(batches):
            if not self.replay_one():
                break
        now = self._monotonic()
        pause = _PAUSE_PRESSURE if pressure else _PAUSE_BUSY if fresh else _PAUSE_IDLE
        due_s = self._interval_s if batches == 1 else round_started + self._interval_s - now
        return max(_PAUSE_MIN_S, min(due_s, (now - started) * pause))

    def finish(self, deadline: float) -> None:
        """Store everything until `deadline` (monotonic seconds); what is left then is in the spool."""
        while not self.settled and self.sink is not None and not self._down and self._monotonic() < deadline:
            if not self._spool.empty:
                self.spool_queue()
                self.replay_one()
            else:
                self._insert_fresh()
        self.spool_queue()

    def spool_queue(self) -> None:
        """Append all that waits to the spool."""
        self._spooling.append(None)
        try:
            entries: list[Entry] = []
            self._take(entries, len(self._queue))
            self._to_spool(entries)
        finally:
            self._spooling.pop()

    def replay_one(self) -> bool:
        """Store the oldest batch of the spool and remove it; False when there is none or the database is down."""
        frames = self._spool.read()
        if not frames or not self._write(frames):
            return False
        self._spool.advance()
        self.replayed += sum([frame.calls for frame in frames])
        self._on_safe([call_id for frame in frames for call_id in frame.closed])
        return True

    def prune(self) -> bool:
        """Delete one chunk of old rows; True while there is more."""
        if self.sink is None or self._down:
            return False
        try:
            return self.sink.prune()
        except SinkDownError as error:
            self._failed(error)
            return False

    def _insert_direct(self) -> bool:
        for _ in range(-(-self._direct_max // self._batch_max)):
            if self._queue and not self._insert_fresh():
                return False
        return True

    def _insert_fresh(self) -> bool:
        """Store one batch straight from the queue; False when the database did not take it (it is in the spool)."""
        self._take(self.inflight, self._batch_max)
        stored = self._write(entry.frames(self.inflight, messages.PART))
        if stored:
            self._on_safe([waiting.call_id for waiting in self.inflight if waiting.call_id])
        else:
            self._to_spool(self.inflight)
        self.inflight = []
        return stored

    def _take(self, entries: list[Entry], most: int) -> None:
        """Move at most so many entries from the queue to a list that others may look at meanwhile."""
        with contextlib.suppress(IndexError):  # another thread takes, too
            entries.extend(self._queue.popleft() for _ in range(min(most, len(self._queue))))

    def _to_spool(self, entries: list[Entry]) -> None:
        if not entries:
            return
        self._spool.append_encoded([waiting.payload for waiting in entries])
        self._spooled += len(entries)
        # What the kernel has survives a kill, as slots do; the disk is waited for after that.
        if not self._spool.memory_used_bytes:
            self._on_safe([waiting.call_id for waiting in entries if waiting.call_id])
        self._spool.sync()

    def _write(self, frames: list[Frame]) -> bool:
        assert self.sink is not None, "callers ask first"
        started = self._monotonic()
        explanations = self.explanations
        try:
            explained = frames if explanations is None else explanations.joined(frames)
            written = self.sink.write([frame.payload for frame in explained])
        except SinkDownError as error:
            self._failed(error)
            return False
        if explanations is not None:
            explanations.stored(frames)
        if self._spending is not None and self._spending.days:
            self._spending.stored([call_id for frame in frames for call_id in frame.closed])
        self.last_commit_s = self._monotonic() - started
        self.written = self.written.plus(written)
        if written.invalid:
            self._on_event("ledger_invalid_calls", calls=written.invalid)
        if self._down:
            self._down = False
            self._retry_at, self._retry_s = 0.0, RETRY_FIRST_S
            self._on_event("ledger_up", spool_bytes=self._spool.size_bytes)
        return True

    def _failed(self, error: SinkDownError) -> None:
        self.write_errors[error.kind] = self.write_errors.get(error.kind, 0) + 1
        if not self._down:
            self._on_event("ledger_down", kind=error.kind, error=error.detail)
        self._down = True
        self._retry_at = self._monotonic() + self._retry_s
        self._retry_s = min(RETRY_MAX_S, self._retry_s * 2)
