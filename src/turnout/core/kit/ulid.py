"""ULIDs: 48 bits of Unix milliseconds and 80 bits of entropy as 26 characters that sort by time.

Format: https://github.com/ulid/spec (Crockford base 32). Time and entropy are arguments.
"""

from __future__ import annotations

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Two characters at a time: 13 look-ups instead of 26, on a path that runs once per request.
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_ENTROPY = 1 << 80


def ulid(ms: int, entropy80: int) -> str:
    """Encode one ULID; `ms` takes its low 48 bits, `entropy80` its low 80."""
    value = (ms & 0xFFFFFFFFFFFF) << 80 | entropy80 & (_ENTROPY - 1)
    pairs = _PAIRS
    # The value has 128 bits and 26 characters hold 130, so the first pair has two leading zero bits.
    high = value >> 70
    low = value & 0x3FFFFFFFFFFFFFFFFF
    return (
        f"{pairs[high >> 50]}{pairs[high >> 40 & 1023]}{pairs[high >> 30 & 1023]}{pairs[high >> 20 & 1023]}"
        f"{pairs[high >> 10 & 1023]}{pairs[high & 1023]}{pairs[low >> 60]}{pairs[low >> 50 & 1023]}"
        f"{pairs[low >> 40 & 1023]}{pairs[low >> 30 & 1023]}{pairs[low >> 20 & 1023]}{pairs[low >> 10 & 1023]}"
        f"{pairs[low & 1023]}"
    )


class UlidSource:
    """Strictly increasing ULIDs of one process, also within a millisecond and when the clock steps back."""

    __slots__ = ("_entropy", "_ms")

    def __init__(self) -> None:
        self._ms = -1
        self._entropy = 0

    def next(self, ms: int, entropy80: int) -> str:
        """Return the next ULID: fresh entropy in a new millisecond, the previous value plus one inside the same."""
        if ms > self._ms:
            self._ms = ms
            self._entropy = entropy80 & (_ENTROPY - 1)
        else:
            self._entropy += 1
            if self._entropy == _ENTROPY:
                # The millisecond is used up; borrowing the next keeps the order.
                self._ms += 1
                self._entropy = 0
        return ulid(self._ms, self._entropy)
