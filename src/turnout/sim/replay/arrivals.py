"""When requests come: an open trace at its own instants, faster by the load; sessions as a Poisson process, closed."""

from __future__ import annotations

import random
from collections.abc import Iterator

from turnout.sim.replay.options import ReplayOptions
from turnout.sim.replay.trace import Session, Trace, TraceRequest


class Running:
    """A session in progress."""

    __slots__ = ("position", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.position = 0


class Arrivals:
    """`left` requests have not arrived yet; `refused` never will: they are longer than the model accepts."""

    def __init__(self, trace: Trace, options: ReplayOptions, seed: int) -> None:
        self._options = options
        self._rng = random.Random(seed)
        # What a model cannot take is refused and changes nothing: it never arrives.
        longest = options.context
        self._requests = [each for each in trace.requests[: options.requests_max] if _length(each) <= longest]
        self._sessions = _within(trace.sessions[: options.requests_max], longest)
        asked = len(trace.requests[: options.requests_max])
        asked += sum(len(session.requests) for session in trace.sessions[: options.requests_max])
        self.left = len(self._requests) or sum(len(session.requests) for session in self._sessions)
        self.refused = asked - self.left

    def start(self) -> Iterator[tuple[float, TraceRequest, Running | None]]:
        """Yield what comes whatever the answers are: all requests, or the first of each session."""
        if not self._sessions:
            for request in self._requests:
                yield request.at_s / self._options.load, request, None
            return
        # Which session comes when is part of the seed: neighbours in a file are often of one user.
        sessions = list(self._sessions)
        self._rng.shuffle(sessions)
        at = 0.0
        for session in sessions:
            at += self._rng.expovariate(self._options.sessions_per_s)
            running = Running(session)
            yield at, session.requests[0], running

    def after(self, running: Running | None) -> TraceRequest | None:
        """Return the request that follows the one just answered."""
        if running is None:
            return None
        running.position += 1
        requests = running.session.requests
        return requests[running.position] if running.position < len(requests) else None


def _length(request: TraceRequest) -> int:
    return request.prompt_tokens + request.output_tokens


def _within(sessions: list[Session], longest: int) -> list[Session]:
    fitting = []
    for session in sessions:
        requests = [each for each in session.requests if _length(each) <= longest]
        if requests:
            fitting.append(session if len(requests) == len(session.requests) else Session(session.number, requests))
    return fitting
