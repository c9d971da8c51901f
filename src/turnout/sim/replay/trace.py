"""Traffic as values: requests at instants (open loop), or sessions whose next request follows the answer (closed).

Prompts are chains of block keys: equal keys mean equal text up to and including that block. Only complete blocks have
a key; a request of unknown text has none.
"""

from __future__ import annotations

import msgspec


class TraceRequest(msgspec.Struct, gc=False):
    """One request. `at_s` is its instant in an open trace; `think_s` its pause after the answer before in a session."""

    prompt_tokens: int
    output_tokens: int
    keys: list[int]
    at_s: float = 0.0
    think_s: float = 0.0
    session: int = 0


class Session(msgspec.Struct, gc=False):
    """Requests of one conversation, each sent after the answer of the one before."""

    number: int
    requests: list[TraceRequest]


class Trace(msgspec.Struct):
    """All traffic of the files. Either `requests` or `sessions` is filled; `notes` says what was left out and why."""

    name: str
    format: str
    block_tokens: int
    requests: list[TraceRequest] = []
    sessions: list[Session] = []
    notes: list[str] = []

    @property
    def closed(self) -> bool:
        """Whether requests wait for answers."""
        return bool(self.sessions)

    @property
    def size(self) -> int:
        """Requests in all."""
        return len(self.requests) or sum(len(session.requests) for session in self.sessions)


class BadTrace(Exception):
    """A trace cannot be read; the message names the file, the line, the field, the value seen and what was expected."""


class Keys:
    """Hands out one integer per distinct chain of block ids; equal prefixes have equal keys, whatever the ids are."""

    def __init__(self) -> None:
        self._next = 1
        self._runs: dict[tuple[int, object], list[int]] = {}

    def extend(self, chain: list[int], scope: object, first: int, count: int) -> None:
        """Append the keys of `count` consecutive ids from `first`; ids of different scopes are different.

        A caller must join runs that follow on one another, so that one prefix is always cut in the same way.
        """
        parent = chain[-1] if chain else 0
        name = (parent, (scope, first))
        keys = self._runs.get(name)
        if keys is None:
            keys = self._runs[name] = []
        missing = count - len(keys)
        if missing > 0:
            keys.extend(range(self._next, self._next + missing))
            self._next += missing
        chain += keys[:count]

    def chain(self, scope: object, ids: list[int]) -> list[int]:
        """Return the keys of these ids in order."""
        chain: list[int] = []
        start = 0
        for place in range(1, len(ids) + 1):
            if place == len(ids) or ids[place] != ids[place - 1] + 1:
                self.extend(chain, scope, ids[start], place - start)
                start = place
        return chain
