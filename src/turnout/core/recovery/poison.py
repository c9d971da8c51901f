"""The fence around a request that kills engines: after two deaths it is not tried a third time (resilience N8).

A death is an attempt whose connection was reset or cut with the request on it, or whose endpoint could no longer be
reached while it ran or within a second of its end, whatever ended it. A request that never arrived killed nobody.
Digests of such bodies are remembered for ten minutes, 1,024 of them; while none is, nobody computes a digest.
"""

from __future__ import annotations

from typing import Final

import xxhash

from turnout.core.errors import ErrorKind
from turnout.core.kit.lru import LruMap

DEATHS_MAX: Final = 2
COINCIDES_S: Final = 1.0
_FENCED_S: Final = 600.0
_DIGESTS_MAX: Final = 1024
_DEATHS: Final = frozenset((ErrorKind.CONNECTION_RESET, ErrorKind.STREAM_CUT))


def is_death(kind: ErrorKind) -> bool:
    """Tell whether an attempt that ended so may have killed its endpoint; a refused connection is nobody's poison."""
    return kind in _DEATHS


class PoisonFence:
    """Bodies that coincided with two deaths."""

    __slots__ = ("_digests", "active", "fenced_total")

    def __init__(self) -> None:
        self._digests: LruMap[bytes, float] = LruMap(_DIGESTS_MAX)
        self.active = False
        """Whether any body is fenced: while not, nobody needs to ask."""
        self.fenced_total = 0

    def __len__(self) -> int:
        return len(self._digests)

    def fence(self, body: bytes, now: float) -> None:
        """Keep this body away from engines for ten minutes."""
        self._digests.put(xxhash.xxh3_128_digest(body), now + _FENCED_S)
        self.fenced_total += 1
        self.active = True

    def holds(self, body: bytes, now: float) -> bool:
        """Tell whether this body is fenced; callers ask only while it is active."""
        digest = xxhash.xxh3_128_digest(body)
        until = self._digests.peek(digest)
        if until is None:
            return False
        if now >= until:
            self._digests.drop(digest)
            self.active = len(self._digests) > 0
            return False
        return True
