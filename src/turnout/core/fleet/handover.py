"""What is known of hand-overs between endpoints: per pair its count, times and quarantine, and the rooms in use.

Everything is bounded: pairs by the endpoints that exist (the oldest go first), rooms by their number and their age,
recent hand-overs per endpoint by their number.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from turnout.core.kit.rng import Rng

PAIRS_MAX = 4096
ROOMS_MAX = 262_144
ROOM_REST_S = 600.0
_ROOM_BITS = 63
_TIMES_KEPT = 128
_SILENT_KEPT = 16
_RECENT_MAX, _RECENT_S = 256, 60.0
_WEIGHT = 0.1
_QUARANTINE_GROWTH_MAX = 10.0


class PairState:
    """One (prefill, decode) pair of endpoint names."""

    __slots__ = (
        "count", "excess_s", "failures", "hangs", "quarantine_s", "quarantined_until", "silent", "times",
    )  # fmt: skip

    def __init__(self) -> None:
        self.count = 0
        self.failures = 0
        self.hangs = 0
        self.quarantine_s = 0.0
        self.quarantined_until = 0.0
        self.excess_s = 0.0
        """Measured less predicted hand-over time, recent ones more."""
        self.times: deque[float] = deque(maxlen=_TIMES_KEPT)
        self.silent: deque[float] = deque(maxlen=_SILENT_KEPT)

    def silently(self, now: float, most: int, within_s: float) -> bool:
        """A transfer failed that the answer did not show; True when there were `most` within this time."""
        silent = self.silent
        silent.append(now)
        while silent and silent[0] < now - within_s:
            silent.popleft()
        if len(silent) < most:
            return False
        silent.clear()
        return True

    def worked(self) -> None:
        """An attempt of this pair is complete."""
        self.count += 1
        self.hangs = 0

    def took(self, seconds: float, predicted_s: float) -> None:
        """A hand-over took this long."""
        self.times.append(seconds)
        self.excess_s += _WEIGHT * (seconds - predicted_s - self.excess_s)

    def failed(self, now: float, first_s: float) -> None:
        """A hand-over failed: the pair rests, twice as long each time in a row, at most ten times the first.

        In a row are failures with less than the last rest between its end and them: that a pair completes attempts
        says little, engines may compute in silence what was not transferred.
        """
        self.failures += 1
        if now < self.quarantined_until:
            return  # what was under way when the rest began makes it no longer
        in_a_row = now < self.quarantined_until + self.quarantine_s
        self.quarantine_s = min(2.0 * self.quarantine_s, _QUARANTINE_GROWTH_MAX * first_s) if in_a_row else first_s
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

    def draw(self, now: float, rng: Rng, ranks: int = 0, rank: int = 0) -> int:
        """Return a room that nobody can still be waiting in; with `ranks`, one that falls to this rank by its number.

        Raises ValueError when too many are open.
        """
        resting = self._resting
        while resting and (len(self._open) + len(resting) >= ROOMS_MAX or next(iter(resting.values())) <= now):
            resting.popitem(last=False)
        if len(self._open) >= ROOMS_MAX:
            raise ValueError(f"rooms open = {len(self._open)}: expected fewer than {ROOMS_MAX}")
        room = _fitting(rng.randrange(1 << _ROOM_BITS), ranks, rank)
        while room in self._open or room in resting:
            room = _fitting(rng.randrange(1 << _ROOM_BITS), ranks, rank)
        self._open.add(room)
        return room

    def leave(self, room: int, now: float) -> None:
        """The hand-over is over; unknown rooms are ignored."""
        if room in self._open:
            self._open.discard(room)
            self._resting[room] = now + ROOM_REST_S


def _fitting(room: int, ranks: int, rank: int) -> int:
    if not ranks:
        return room
    fitting = room - room % ranks + rank
    return fitting if fitting < 1 << _ROOM_BITS else fitting - ranks


class Ranks:
    """Open legs per data-parallel rank, where the router chooses it: the rank with the fewest, in turn among equals."""

    __slots__ = ("_open", "_turns")

    def __init__(self) -> None:
        self._open: dict[str, list[int]] = {}
        self._turns: dict[str, int] = {}

    def take(self, name: str, ranks: int) -> int:
        """Return a rank of an endpoint; `give` it back."""
        legs = self._open.get(name)
        if legs is None or len(legs) != ranks:
            legs = self._open[name] = [0] * ranks
        turn = self._turns.get(name, 0)
        rank = min(range(ranks), key=lambda each: (legs[each], (each - turn) % ranks))
        self._turns[name] = (rank + 1) % ranks
        legs[rank] += 1
        return rank

    def give(self, name: str, rank: int) -> None:
        """A leg has ended there."""
        legs = self._open.get(name, [])
        if rank < len(legs) and legs[rank] > 0:
            legs[rank] -= 1

    def open_legs(self, name: str) -> list[int]:
        """Return the open legs per rank."""
        return list(self._open.get(name, ()))


class _Handing:
    """One hand-over, known to both ends."""

    __slots__ = ("at", "blamed", "decode", "prefill")

    def __init__(self, at: float, prefill: str, decode: str) -> None:
        self.at, self.prefill, self.decode = at, prefill, decode
        self.blamed = False


class TransferCounters:
    """What engines count of failed transfers, laid to the pairs that handed over there last (row 7).

    A counter names no pair: as many of the latest hand-overs of that endpoint as it rose by are taken for the failed.
    """

    __slots__ = ("_counts", "_recent")

    def __init__(self) -> None:
        self._counts: dict[str, float] = {}
        self._recent: dict[str, deque[_Handing]] = {}

    def handing(self, prefill: str, decode: str, now: float) -> None:
        """A hand-over begins."""
        one = _Handing(now, prefill, decode)
        for name in (prefill, decode):
            recent = self._recent.get(name)
            if recent is None:
                recent = self._recent[name] = deque(maxlen=_RECENT_MAX)
            recent.append(one)

    def told(self, name: str, count: float, now: float) -> list[tuple[str, str]]:
        """Return the pairs of the failures that an endpoint's counter tells of; nothing for the first that is heard."""
        before = self._counts.get(name)
        self._counts[name] = count
        recent = self._recent.get(name)
        if before is None or count <= before or recent is None:
            return []
        found = []
        for _ in range(int(count - before)):
            if not recent or recent[-1].at < now - _RECENT_S:
                break
            one = recent.pop()
            if not one.blamed:  # both ends may count the same failure
                one.blamed = True
                found.append((one.prefill, one.decode))
        return found

    def forget(self, name: str) -> None:
        """A new incarnation counts from the start."""
        self._counts.pop(name, None)
        self._recent.pop(name, None)
