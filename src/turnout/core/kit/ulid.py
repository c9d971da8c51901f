"""ULIDs: 48 bits of Unix milliseconds and 80 bits of entropy as 26 characters that sort by time.

Format: https://github.com/ulid/spec (Crockford base 32). Time and entropy are arguments.
"""

from __future__ import annotations

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Two characters at a time: 13 look-ups instead of 26, on a path that runs once per request.
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_ENTROPY = 1 << 80
_LOW_MASK = (1 << 70) - 1


def ulid(ms: int, entropy80: int) -> str:
    """Encode one ULID; `ms` takes its low 48 bits, `entropy80` its low 80."""
    value = (ms & 0xFFFFFFFFFFFF) << 80 | entropy80 & (_ENTROPY - 1)
    return _high(value >> 70) + _low(value & _LOW_MASK)


class UlidSource:
    """Strictly increasing ULIDs of one process, also within a millisecond and when the clock steps back."""

    __slots__ = ("_entropy", "_prefix", "ms")

    def __init__(self) -> None:
        self.ms = -1
        self._entropy = 0
        self._prefix = ""

    def next(self, ms: int, entropy80: int) -> str:
        """Return the next ULID: fresh entropy in a new millisecond, the previous value plus one inside the same.

        `entropy80` is read only when `ms` is later than the attribute of that name.
        """
        if ms > self.ms:
            self.ms = ms
            entropy = entropy80 & (_ENTROPY - 1)
        else:
            entropy = self._entropy + 1
            if entropy & _LOW_MASK:  # the usual case inside a millisecond: only the low part moves
                self._entropy = entropy
                return self._prefix + _low(entropy & _LOW_MASK)
            if entropy == _ENTROPY:
                # The millisecond is used up; borrowing the next keeps the order.
                self.ms += 1
                entropy = 0
        self._entropy = entropy
        self._prefix = _high(((self.ms & 0xFFFFFFFFFFFF) << 80 | entropy) >> 70)
        return self._prefix + _low(entropy & _LOW_MASK)


def _high(bits58: int) -> str:
    pairs = _PAIRS
    # The value has 128 bits and 26 characters hold 130, so the first pair has two leading zero bits.
    return (
        f"{pairs[bits58 >> 50]}{pairs[bits58 >> 40 & 1023]}{pairs[bits58 >> 30 & 1023]}{pairs[bits58 >> 20 & 1023]}"
        f"{pairs[bits58 >> 10 & 1023]}{pairs[bits58 & 1023]}"
    )


def _low(bits70: int) -> str:
    pairs = _PAIRS
    return (
        f"{pairs[bits70 >> 60]}{pairs[bits70 >> 50 & 1023]}{pairs[bits70 >> 40 & 1023]}{pairs[bits70 >> 30 & 1023]}"
        f"{pairs[bits70 >> 20 & 1023]}{pairs[bits70 >> 10 & 1023]}{pairs[bits70 & 1023]}"
    )
