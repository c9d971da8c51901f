"""When requests come: an open trace at its own instants, faster by the load; sessions by a Poisson process, closed loop."""

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
    """`left` requests have not arrived yet."""

    def __init__(self, trace: Trace, options: ReplayOptions, seed: int) -> None:
        self._options = options
        self._rng = random.Random(seed)
        self._requests = trace.requests[: options.requests_max]
        self._sessions = trace.sessions[: options.requests_max]
        self.left = len(self._requests) or sum(len(session.requests) for session in self._sessions)

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
