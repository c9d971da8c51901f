"""What is known of hand-overs between endpoints: per pair its count, times and quarantine, and the rooms in use.

Both are bounded: pairs by the endpoints that exist (the oldest go first), rooms by their number and their age.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from turnout.core.kit.rng import Rng

PAIRS_MAX = 4096
ROOMS_MAX = 262_144
ROOM_REST_S = 600.0
_ROOM_BITS = 63
_TIMES_KEPT = 128
_WEIGHT = 0.1
_QUARANTINE_GROWTH_MAX = 10.0


class PairState:
    """One (prefill, decode) pair of endpoint names."""

    __slots__ = ("count", "excess_s", "failures", "hangs", "quarantine_s", "quarantined_until", "times")

    def __init__(self) -> None:
        self.count = 0
        self.failures = 0
        self.hangs = 0
        self.quarantine_s = 0.0
        self.quarantined_until = 0.0
        self.excess_s = 0.0
        """Measured less predicted hand-over time, recent ones more."""
        self.times: deque[float] = deque(maxlen=_TIMES_KEPT)

    def took(self, seconds: float, predicted_s: float) -> None:
        """A hand-over took this long; a pair that works again is trusted again."""
        self.times.append(seconds)
        self.excess_s += _WEIGHT * (seconds - predicted_s - self.excess_s)
        self.quarantine_s = 0.0
        self.hangs = 0

    def failed(self, now: float, first_s: float) -> None:
        """A hand-over failed: the pair rests, twice as long each time in a row, at most ten times the first."""
        self.failures += 1
        self.quarantine_s = min(max(first_s, 2.0 * self.quarantine_s), _QUARANTINE_GROWTH_MAX * first_s)
        self.quarantined_until = now + self.quarantine_s

    def percentile(self, share: float) -> float | None:
        """Return a percentile of the recent hand-over times; None without any."""
        if not self.times:
            return None
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class PairBook:
    """All pairs that were ever used, by names."""

    __slots__ = ("_pairs",)

    def __init__(self) -> None:
        self._pairs: OrderedDict[tuple[str, str], PairState] = OrderedDict()

    def pair(self, prefill: str, decode: str) -> PairState:
        """Return the state of a pair, made on first use."""
        key = (prefill, decode)
        state = self._pairs.get(key)
        if state is None:
            if len(self._pairs) >= PAIRS_MAX:
                self._pairs.popitem(last=False)
            state = self._pairs[key] = PairState()
        return state

    def peek(self, prefill: str, decode: str) -> PairState | None:
        """Return the state of a pair, or None when it was never used."""
        return self._pairs.get((prefill, decode))

    def quarantined(self, now: float) -> int:
        """Return how many pairs rest."""
        return sum(state.quarantined_until > now for state in self._pairs.values())

    def items(self) -> list[tuple[tuple[str, str], PairState]]:
        """Return every pair in the order of names."""
        return sorted(self._pairs.items(), key=lambda item: item[0])


class Rooms:
    """Rendezvous numbers of concurrent hand-overs: none twice while open or within ten minutes after."""

    __slots__ = ("_open", "_resting")

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._resting: OrderedDict[int, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def draw(self, now: float, rng: Rng) -> int:
        """Return a room that nobody can still be waiting in. Raises ValueError when too many are open."""
        resting = self._resting
        while resting and (len(self._open) + len(resting) >= ROOMS_MAX or next(iter(resting.values())) <= now):
            resting.popitem(last=False)
        if len(self._open) >= ROOMS_MAX:
            raise ValueError(f"rooms open = {len(self._open)}: expected fewer than {ROOMS_MAX}")
        room = rng.randrange(1 << _ROOM_BITS)
        while room in self._open or room in resting:
            room = rng.randrange(1 << _ROOM_BITS)
        self._open.add(room)
        return room

    def leave(self, room: int, now: float) -> None:
        """The hand-over is over; unknown rooms are ignored."""
        if room in self._open:
            self._open.discard(room)
            self._resting[room] = now + ROOM_REST_S
