"""Virtual time: what is due next happens next, ties in the order of asking. The same seed gives the same history."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Timer:
    """Something that will happen unless it is cancelled."""

    __slots__ = ("action", "at_s")

    def __init__(self, at_s: float, action: Action) -> None:
        self.at_s = at_s
        self.action: Action | None = action

    def cancel(self) -> None:
        """Make it not happen; any number of times."""
        self.action = None


class VirtualClock:
    """Monotonic seconds that pass only from one event to the next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Timer]] = []
        self._serial = 0
        self.events = 0

    def at(self, instant: float, action: Action) -> Timer:
        """Do something at an instant; one that has passed means now, after what is due already."""
        timer = Timer(max(instant, self.now), action)
        self._serial += 1
        heapq.heappush(self._heap, (timer.at_s, self._serial, timer))
        return timer

    def after(self, delay_s: float, action: Action) -> Timer:
        """Do something later."""
        return self.at(self.now + delay_s, action)

    def run(self, until_s: float, events_max: int) -> bool:
        """Let time pass until nothing is left or the instant is reached; False: there were too many events."""
        while self._heap and self._heap[0][0] <= until_s:
            at_s, _, timer = heapq.heappop(self._heap)
            if timer.action is None:
                continue
            self.now = at_s
            self.events += 1
            if self.events > events_max:
                return False
            timer.action()
        self.now = max(self.now, until_s)
        return True

    @property
    def pending(self) -> int:
        """Timers that still mean something."""
        return sum(1 for _, _, timer in self._heap if timer.action is not None)
