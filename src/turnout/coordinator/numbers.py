"""Server ids: never two open ones alike, and none given out again while a late reply for it may come."""

from __future__ import annotations

from collections import deque
from collections.abc import Container

from turnout.engines.megatron import SERVER_ID_MAX

CLOSED_MAX = 65_536


class ServerIds:
    """Counts from a start of chance, so that replies to a door that ran before meet no open id."""

    def __init__(self, start: int) -> None:
        self._next = start % SERVER_ID_MAX + 1
        self._order: deque[int] = deque()
        self._closed: set[int] = set()

    def take(self, taken: Container[int]) -> int:
        """The next id from 1 to 2^31 − 2 that is neither open nor among the last 65,536 closed."""
        while self._next in taken or self._next in self._closed:
            self._next = self._next % SERVER_ID_MAX + 1
        number = self._next
        self._next = number % SERVER_ID_MAX + 1
        return number

    def close(self, number: int) -> None:
        """Remember that this id was ours."""
        if len(self._order) >= CLOSED_MAX:
            self._closed.discard(self._order.popleft())
        self._order.append(number)
        self._closed.add(number)

    def was_ours(self, number: int) -> bool:
        """Say whether the id closed not long ago."""
        return number in self._closed
