"""An engine as the router experiences it: places, a queue, a first token, tokens, and the moods that break them.

Durations are those of an idle engine times `slowness`; requests beyond `slots` wait in its own queue, as in a real one.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Protocol

from turnout.core.errors import ErrorKind
from turnout.core.kit.rng import Rng
from turnout.sim.world.clock import Timer, VirtualClock

_REFUSED_S = 0.001
_ERROR_S = 0.005


class Mood(enum.Enum):
    """What is wrong with an engine."""

    WELL = "well"
    DOWN = "down"
    """Connections are refused; those that are open are reset."""
    FROZEN = "frozen"
    """Accepts everything, answers nothing."""
    BROKEN = "broken"
    """Answers 503."""


class Listener(Protocol):
    """Whoever waits for an answer."""

    def first_token(self) -> None:
        """The prompt is done."""

    def token(self) -> None:
        """One more token."""

    def completed(self) -> None:
        """The answer is complete."""

    def failed(self, kind: ErrorKind, status: int | None) -> None:
        """There will be no complete answer."""


class Generation:
    """One request at an engine."""

    __slots__ = ("engine", "left", "listener", "started", "timer")

    def __init__(self, engine: Engine, listener: Listener, tokens: int) -> None:
        self.engine = engine
        self.listener = listener
        self.left = tokens
        self.started = False
        self.timer: Timer | None = None

    def cancel(self) -> None:
        """The client has closed the connection."""
        self.engine.end(self)


class Engine:
    """One simulated engine of the world."""

    def __init__(self, name: str, clock: VirtualClock, rng: Rng, *, slots: int = 8) -> None:
        self.name = name
        self.slots = slots
        self.mood = Mood.WELL
        self.slowness = 1.0
        self.error_share = 0.0
        self.cut_share = 0.0
        self.ttft_s = 0.05
        self.itl_s = 0.02
        self.incarnation = 1
        self.received = 0
        self.completed_total = 0
        self.last_byte_at = float("-inf")
        self._clock = clock
        self._rng = rng
        self._running: dict[Generation, None] = {}  # in order: what dies together dies in the same order again
        self._waiting: deque[Generation] = deque()

    @property
    def load(self) -> int:
        """Requests that it holds."""
        return len(self._running) + len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that it works on."""
        return len(self._running)

    def request(self, listener: Listener, tokens: int) -> Generation:
        """A request arrives; its answer comes later."""
        generation = Generation(self, listener, tokens)
        if self.mood is Mood.DOWN:
            generation.timer = self._clock.after(_REFUSED_S, lambda: listener.failed(ErrorKind.CONNECT_ERROR, None))
            return generation
        self.received += 1
        if self.mood is Mood.BROKEN or self._rng.random() < self.error_share:
            generation.timer = self._clock.after(_ERROR_S, lambda: listener.failed(ErrorKind.OVERLOADED, 503))
        elif len(self._running) < self.slots:
            self._start(generation)
        else:
            self._waiting.append(generation)
        return generation

    def probe(self) -> bool | None:
        """Ask for readiness: None is a time-out."""
        return None if self.mood is Mood.FROZEN else self.mood is not Mood.DOWN

    def set_mood(self, mood: Mood) -> None:
        """Break the engine or mend it."""
        self.mood = mood
        if mood is Mood.DOWN:
            self.incarnation += 1
            dying = [*self._running, *self._waiting]
            self._running.clear()
            self._waiting.clear()
            for generation in dying:
                self._stop(generation)
                kind = ErrorKind.STREAM_CUT if generation.started else ErrorKind.CONNECTION_RESET
                self._clock.after(_REFUSED_S, lambda g=generation, k=kind: g.listener.failed(k, None))  # type: ignore[misc]
        elif mood is Mood.WELL:
            for generation in list(self._running):
                if generation.timer is None:
                    self._next(generation)

    def end(self, generation: Generation) -> None:
        """A generation ends in any way: the next one gets its place."""
        self._stop(generation)
        if generation in self._running:
            del self._running[generation]
            while self._waiting and len(self._running) < self.slots:
                self._start(self._waiting.popleft())
        elif generation in self._waiting:
            self._waiting.remove(generation)

    def _start(self, generation: Generation) -> None:
        self._running[generation] = None
        self._next(generation)

    def _next(self, generation: Generation) -> None:
        if self.mood is Mood.FROZEN:
            generation.timer = None  # goes on when the engine does
            return
        delay = (self.itl_s if generation.started else self.ttft_s) * self.slowness
        delay *= 0.8 + 0.4 * self._rng.random()
        generation.timer = self._clock.after(delay, lambda: self._advance(generation))

    def _advance(self, generation: Generation) -> None:
        if self.mood is Mood.FROZEN:
            generation.timer = None
            return
        self.last_byte_at = self._clock.now
        if not generation.started:
            generation.started = True
            generation.listener.first_token()
        elif self._rng.random() < self.cut_share:
            self.end(generation)
            generation.listener.failed(ErrorKind.STREAM_CUT, 200)
            return
        else:
            generation.listener.token()
        generation.left -= 1
        if generation.left > 0:
            self._next(generation)
            return
        self.completed_total += 1
        self.end(generation)
        generation.listener.completed()

    @staticmethod
    def _stop(generation: Generation) -> None:
        if generation.timer is not None:
            generation.timer.cancel()
            generation.timer = None
