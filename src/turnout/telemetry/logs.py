"""Structured logs that never block the event loop: the caller hands a record over, one thread renders and writes it.

The queue is bounded; a full one drops the record and counts it (F77). Each event name has a rate (L02). structlog is
imported by the writing thread: its import costs more than the whole start of the router may.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import IO, Any, Literal, NamedTuple

from turnout.core.options import Log
from turnout.telemetry.redaction import described, redacted, safe_text

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
Level = Literal["debug", "info", "warning", "error"]
Processor = Callable[[Any, str, MutableMapping[str, Any]], Any]

QUEUE_MAX = 2048
RATE_PER_S = 5
"""Records of one event name per second (L02); errors are counted like all others."""
EVENTS_MAX = 512
"""Event names with an own rate; they are literals of the source, so the cap is never met."""


class Record(NamedTuple):
    """One accepted record on its way to the writing thread."""

    at: float
    level: str
    event: str
    fields: Mapping[str, object]


class Logger:
    """Writes events with bound fields: `log.info("endpoint up", endpoint="a")`; fields are scalars or lists of them."""

    __slots__ = ("_bound", "_sink")

    def __init__(self, sink: LogSink, bound: Mapping[str, object]) -> None:
        self._sink = sink
        self._bound = bound

    def bind(self, **fields: object) -> Logger:
        """A logger that adds these fields to every record."""
        return Logger(self._sink, {**self._bound, **fields})

    def debug(self, event: str, /, **fields: object) -> None:
        """For someone who looks for a fault."""
        self._sink.put("debug", event, {**self._bound, **fields})

    def info(self, event: str, /, **fields: object) -> None:
        """A transition worth a line."""
        self._sink.put("info", event, {**self._bound, **fields})

    def warning(self, event: str, /, **fields: object) -> None:
        """Something works less well than it should."""
        self._sink.put("warning", event, {**self._bound, **fields})

    def error(self, event: str, /, **fields: object) -> None:
        """Something does not work and somebody should look."""
        self._sink.put("error", event, {**self._bound, **fields})

    def fault(self, event: str, cause: BaseException, **fields: object) -> None:
        """A bug of ours, as an error with the type and the frames of its exception, never its message."""
        self._sink.put("error", event, {**self._bound, **fields, **described(cause)})


class LogSink:
    """The bounded queue and its writing thread, which starts with the first record."""

    def __init__(
        self,
        options: Log,
        stream: IO[str] | None = None,
        *,
        queue_max: int = QUEUE_MAX,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._threshold = LEVELS[options.level]
        self._stream = stream if stream is not None else sys.stderr
        self._console = options.format == "console" or (options.format == "auto" and self._stream.isatty())
        self._queue_max = queue_max
        self._clock = clock
        self._queue: deque[Record] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._writing = False
        self._rates: dict[str, tuple[int, int]] = {}
        self._skipped: dict[str, int] = {}
        self.dropped = 0
        self.suppressed = 0

    def logger(self, **bound: object) -> Logger:
        """A logger on this sink with bound fields."""
        return Logger(self, bound)

    def stats(self) -> dict[str, int]:
        """Records lost to a slow sink and records over their rate, for the metrics."""
        return {"dropped": self.dropped, "suppressed": self.suppressed}

    def put(self, level: Level, event: str, fields: Mapping[str, object]) -> None:
        """Hand one record over; never blocks on the stream, never raises."""
        if LEVELS[level] < self._threshold:
            return
        at = self._clock()
        if not self._within_rate(event, int(at)):
            self.suppressed += 1
            return
        skipped = self._skipped.pop(event, 0)
        if skipped:
            fields = {**fields, "suppressed": skipped}
        record = Record(at, level, safe_text(event), redacted(fields))
        with self._wake:
            if self._closing or len(self._queue) >= self._queue_max:
                self.dropped += 1
                return
            self._queue.append(record)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="turnout-log", daemon=True)
                self._thread.start()
            self._wake.notify()

    def close(self, timeout_s: float = 1.0) -> int:
        """Write what is queued for at most `timeout_s`; returns how many records were left."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
        return len(self._queue) + self._writing

    def _within_rate(self, event: str, second: int) -> bool:
        since, n = self._rates.get(event, (second, 0))
        if since != second:
            since, n = second, 0
        if n >= RATE_PER_S:
            self._skipped[event] = self._skipped.get(event, 0) + 1
            return False
        if event in self._rates or len(self._rates) < EVENTS_MAX:
            self._rates[event] = (since, n + 1)
        return True

    def _run(self) -> None:
        processors = _processors(self._console)
        while True:
            with self._wake:
                while not self._queue and not self._closing:
                    self._wake.wait()
                if not self._queue:
                    return
                record = self._queue.popleft()
                self._writing = True
            try:
                self._stream.write(_rendered(record, processors) + "\n")
                self._stream.flush()
            except (OSError, ValueError, TypeError):
                # A closed pipe or a full disk: logs fail open, with a count.
                self.dropped += 1
            self._writing = False


def get_logger(sink: LogSink, name: str) -> Logger:
    """The logger of one component."""
    return sink.logger(component=name)


def _processors(console: bool) -> tuple[Processor, ...]:  # noqa: FBT001 - private, decided once per process
    import structlog

    if console:
        return (structlog.dev.ConsoleRenderer(colors=False, sort_keys=False),)
    return (structlog.processors.JSONRenderer(ensure_ascii=False),)


def _rendered(record: Record, processors: tuple[Processor, ...]) -> str:
    at = datetime.fromtimestamp(record.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    own = {"timestamp": at, "level": record.level, "event": record.event}
    event: Any = {**own, **{name: value for name, value in record.fields.items() if name not in own}}
    for processor in processors:
        event = processor(None, record.level, event)
    return str(event)
