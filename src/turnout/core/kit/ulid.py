"""ULIDs: 48 bits of Unix milliseconds and 80 bits of entropy as 26 characters that sort by time.

Format: https://github.com/ulid/spec (Crockford base 32). Time and entropy are arguments.
"""

from __future__ import annotations

from typing import Final

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Two characters at a time: 13 look-ups instead of 26, on a path that runs once per request.
_PAIRS: Final = [high + low for high in _ALPHABET for low in _ALPHABET]
_MS_MASK: Final = (1 << 48) - 1
_HALF_MASK: Final = (1 << 40) - 1


def ulid(ms: int, entropy80: int) -> str:
    """Encode one ULID; `ms` takes its low 48 bits, `entropy80` its low 80."""
    return _before(ms, entropy80 >> 40 & _HALF_MASK) + _last(entropy80 & _HALF_MASK)


class UlidSource:
    """Strictly increasing ULIDs of one process, also within a millisecond and when the clock steps back."""

    __slots__ = ("_high", "_low", "_prefix", "ms")

    def __init__(self) -> None:
        self.ms = -1
        # Halves of the entropy, 40 bits each: they stay machine numbers, and what precedes the low one is kept as text.
        self._high = self._low = 0
        self._prefix = ""

    def next(self, ms: int, entropy80: int) -> str:
        """Return the next ULID: fresh entropy in a new millisecond, the previous value plus one inside the same.

        `entropy80` is read only when `ms` is later than the attribute of that name.
        """
        if ms <= self.ms and self._low < _HALF_MASK:
            self._low += 1
            return self._prefix + _last(self._low)
        if ms > self.ms:
            self.ms = ms
            self._high, self._low = entropy80 >> 40 & _HALF_MASK, entropy80 & _HALF_MASK
        else:
            self._low = 0
            self._high += 1
            if self._high > _HALF_MASK:  # the millisecond is used up; borrowing the next keeps the order
                self.ms += 1
                self._high = 0
        self._prefix = _before(self.ms, self._high)
        return self._prefix + _last(self._low)


def _before(ms: int, high40: int) -> str:
    """The first 18 characters: two zero bits, 48 of time, 40 of entropy."""
    pairs = _PAIRS
    ms &= _MS_MASK
    middle = (ms & 1023) << 40 | high40  # 50 bits; the 38 above them are 4 pairs with two bits to spare
    return (
        f"{pairs[ms >> 40]}{pairs[ms >> 30 & 1023]}{pairs[ms >> 20 & 1023]}{pairs[ms >> 10 & 1023]}"
        f"{pairs[middle >> 40]}{pairs[middle >> 30 & 1023]}{pairs[middle >> 20 & 1023]}"
        f"{pairs[middle >> 10 & 1023]}{pairs[middle & 1023]}"
    )


def _last(low40: int) -> str:
    pairs = _PAIRS
    return f"{pairs[low40 >> 30]}{pairs[low40 >> 20 & 1023]}{pairs[low40 >> 10 & 1023]}{pairs[low40 & 1023]}"
