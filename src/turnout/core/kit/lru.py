"""A map that never holds more than its bound: the entry unused for longest makes room."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LruMap(Generic[K, V]):
    """`put` and `use` renew an entry; `peek` looks without renewing."""

    __slots__ = ("_items", "maximum")

    def __init__(self, maximum: int) -> None:
        if maximum < 1:
            raise ValueError(f"maximum is {maximum}, expected at least 1")
        self.maximum = maximum
        # OrderedDict and not dict: finding the oldest of a dict that is emptied from the front is quadratic.
        self._items: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: K) -> bool:
        return key in self._items

    def put(self, key: K, value: V) -> None:
        """Store as the youngest entry."""
        items = self._items
        items[key] = value
        items.move_to_end(key)
        if len(items) > self.maximum:
            items.popitem(last=False)

    def use(self, key: K) -> V | None:
        """Return the value and renew it; None when absent."""
        value = self._items.get(key)
        if value is not None:
            self._items.move_to_end(key)
        return value

    def peek(self, key: K) -> V | None:
        """Return the value without renewing it; None when absent."""
        return self._items.get(key)

    def drop(self, key: K) -> None:
        """Forget one entry; absent is fine."""
        self._items.pop(key, None)
