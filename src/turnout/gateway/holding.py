"""How a response is taken, and how much of it is held back so that a failure stays invisible (resilience §4)."""

from __future__ import annotations

import enum
from typing import Final

from turnout.core.options import Stream, StreamSafety

_NEVER: Final = float("inf")
_GATE_EVENTS: Final = 64  # G1: what may be held before the first output event
_GATE_BYTES: Final = 262144


class Mode(enum.IntEnum):
    """How the response is taken."""

    NONE = 0
    STREAM = 1
    HOLD = 2
    REFUSED = 3
    THROUGH = 4


class Hold:
    """One mode of stream safety. `validates`: events that are no JSON are dropped instead of relayed."""

    __slots__ = ("_bytes_max", "_events_max", "_outputs", "seconds", "validates")

    def __init__(
        self, outputs: float, seconds: float, events_max: float, bytes_max: int, *, validates: bool = True
    ) -> None:
        self._outputs = outputs
        self.seconds = seconds
        self._events_max = events_max
        self._bytes_max = bytes_max
        self.validates = validates

    def goes_on(self, outputs: int, events: int, held_bytes: int, first_output_s: float | None, now: float) -> bool:
        """Tell whether the client still has to wait."""
        if outputs >= self._outputs or events > self._events_max or held_bytes > self._bytes_max:
            return False
        return first_output_s is None or now - first_output_s < self.seconds


FAST: Final = Hold(1, _NEVER, _GATE_EVENTS, _GATE_BYTES, validates=False)


def modes(options: Stream) -> dict[str, Hold]:
    """The hold of each mode under these options."""
    return {
        "fast": FAST,
        "guarded": Hold(options.guard_events, options.guard_ms / 1000, _NEVER, _GATE_BYTES),
        "buffered": Hold(_NEVER, _NEVER, _NEVER, options.buffer_max_bytes),
    }


MODES: Final[tuple[StreamSafety, ...]] = ("fast", "guarded", "buffered")
