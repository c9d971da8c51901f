"""Why an endpoint was chosen, on its way to the call's row: sampled and rendered by the writer, never by a request.

The router keeps its newest decisions anyway. Each round of the writer looks at those that are new, renders as many of
them as the rate allows, spread evenly, and holds them until their call is stored: in the same transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from turnout.core.facts import CallFact
from turnout.ledger.entry import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnout.ledger.entry import Frame

Recent = list[tuple[str, Any]]
"""(call_id, decision), oldest first."""
# Of calls that are still open; at 4 kB each.
_HELD_MAX: Final = 1_024


class Explanations:
    """Belongs to the writer's thread."""

    def __init__(
        self,
        recent: Callable[[], Recent],
        render: Callable[[str, Any], bytes],
        *,
        per_s: int,
        monotonic: Callable[[], float],
    ) -> None:
        """Look at `recent`, whose entries stay the same objects while they are in it; render up to `per_s` a second."""
        self._recent, self._render = recent, render
        self._per_s, self._monotonic = per_s, monotonic
        self._allowed, self._looked_s = float(per_s), monotonic()
        self._last: object = None
        self._held: dict[str, bytes] = {}
        self._decode = msgspec.msgpack.Decoder(list[CallFact]).decode
        self.failed = 0

    def look(self) -> None:
        """Render some of the decisions that were made since the last look."""
        if not self._per_s:
            return
        now = self._monotonic()
        self._allowed = min(float(self._per_s), self._allowed + (now - self._looked_s) * self._per_s)
        self._looked_s = now
        recent = self._recent()
        new: Recent = []
        for entry in reversed(recent):
            if entry is self._last:
                break
            new.append(entry)
        if new:
            self._last = new[0]
        count = min(len(new), int(self._allowed))
        self._allowed -= count
        for number in range(count):
            call_id, decision = new[number * len(new) // count]
            try:
                self._held[call_id] = self._render(call_id, decision)
            except Exception:  # noqa: BLE001 - a bug in an explanation must not end the thread that stores calls
                self.failed += 1
        while len(self._held) > _HELD_MAX:
            del self._held[next(iter(self._held))]

    def joined(self, frames: list[Frame]) -> list[Frame]:
        """Give the closed calls their explanations, where there are any; other frames stay as they are."""
        held = self._held
        if not held:
            return frames
        return [frame if held.keys().isdisjoint(frame.closed) else self._explained(frame) for frame in frames]

    def stored(self, frames: Sequence[Frame]) -> None:
        """Let go of the explanations of calls whose rows are committed."""
        if self._held:
            for frame in frames:
                for call_id in frame.closed:
                    self._held.pop(call_id, None)

    def _explained(self, frame: Frame) -> Frame:
        held = self._held
        try:
            facts = self._decode(frame.payload)
        except msgspec.DecodeError:  # a fact that no column can hold: whoever stores the others says so
            return frame
        payload = encode(
            [
                msgspec.structs.replace(fact, decision=held[fact.call_id])
                if fact.outcome and fact.call_id in held
                else fact
                for fact in facts
            ]
        )
        return msgspec.structs.replace(frame, payload=payload)
