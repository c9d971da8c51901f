"""What the door counts: plain integers, read by the metrics at scrape time. Label values are closed sets.

Each signal of a request is counted once per request, however many attempts it takes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

_BOUNDS_S = (
    0.000005, 0.00001, 0.00002, 0.00005, 0.0001, 0.00015, 0.0002, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05,
)  # fmt: skip


class Histogram:
    """Counts per bound (value ≤ bound), and one above all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self) -> None:
        self.bounds = _BOUNDS_S
        self.counts = [0] * (len(_BOUNDS_S) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds


class Tally:
    """All counters of one door."""

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()
        self.invalid: Counter[tuple[str, str]] = Counter()
        self.internal_errors: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.registrations: Counter[str] = Counter()
        self.unreachable: Counter[str] = Counter()
        self.lookups: Counter[str] = Counter()
        self.fallbacks: Counter[tuple[str, str]] = Counter()
        self.signals: Counter[str] = Counter()
        self.accepted = 0
        self.completed = 0
        self.aborted = 0
        self.resent = 0
        self.exhausted = 0
        self.unknown_sender = 0
        self.muted = 0
        self.contested = 0
        self.clients_refused = 0
        self.hash_mismatches = 0
        self.detokenize_failures = 0
        self.predicted_tokens = 0
        self.realised_tokens = 0
        self.schedule_s = Histogram()
        self.message_s: dict[str, Histogram] = {}

    def took(self, kind: str, seconds: float) -> None:
        """Count the handling of one message of this type."""
        histogram = self.message_s.get(kind)
        if histogram is None:
            histogram = self.message_s[kind] = Histogram()
        histogram.observe(seconds)
