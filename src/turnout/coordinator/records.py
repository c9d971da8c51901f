"""What the door has to say for the log, held back to ten records a second per reason, and who is no longer heard.

Never a payload: a prompt or a key must not reach a log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from turnout.core.kit.lru import LruMap

PER_SECOND_MAX = 10
_REASONS_MAX = 256
_HELD_MAX = 1000
OFFENCES = 10
WINDOW_S = 60.0
MUTED_S = 60.0
_OFFENDERS_MAX = 4096
_PEER_BYTES = 16  # 32 hex digits


Report = Callable[[str, str, dict[str, Any]], object]
"""Takes level, event and fields of one record."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One structured log record."""

    level: str
    event: str
    fields: dict[str, Any]


class Records:
    """Collects records until the shell takes them."""

    def __init__(self) -> None:
        self._held: list[Record] = []
        self._rates: LruMap[str, list[float]] = LruMap(_REASONS_MAX)

    def add(self, level: str, event: str, now: float, /, **fields: Any) -> None:
        """Keep a record unless its event and reason were over the rate; what was left out is counted in the next."""
        key = f"{event}:{fields.get('reason', '')}"
        rate = self._rates.use(key)
        if rate is None:
            rate = [now, 0.0, 0.0]
            self._rates.put(key, rate)
        if now - rate[0] >= 1.0:
            rate[0], rate[1] = now, 0.0
        if rate[1] >= PER_SECOND_MAX or len(self._held) >= _HELD_MAX:
            rate[2] += 1
            return
        rate[1] += 1
        if rate[2]:
            fields["suppressed"] = int(rate[2])
            rate[2] = 0.0
        self._held.append(Record(level, event, fields))

    def message_error(
        self,
        error_type: str,
        kind: str,
        reason: str,
        frames: Sequence[bytes],
        now: float,
        number: int | None = None,
        server_id: int | None = None,
    ) -> None:
        """A message that was not acted on: the peer's fault is a warning, ours an error."""
        self.add(
            "warning" if error_type == "client_error" else "error",
            "coordinator_message_error",
            now,
            error_type=error_type,
            message_type=kind,
            reason=reason,
            peer=peer_text(frames[0]) if frames else "",
            frames=len(frames),
            bytes=sum(map(len, frames[1:])),
            **({} if number is None else {"client_request_id": number}),
            **({} if server_id is None else {"server_id": server_id}),
        )

    def take(self) -> list[Record]:
        """Hand over what was kept."""
        held, self._held = self._held, []
        return held


class Offenders:
    """Peers that are neither engine nor client and send nothing valid: after ten in a minute they are not heard."""

    def __init__(self) -> None:
        self._seen: LruMap[bytes, list[float]] = LruMap(_OFFENDERS_MAX)

    def is_muted(self, identity: bytes, now: float) -> bool:
        """Say whether this peer's messages are dropped unread."""
        entry = self._seen.peek(identity)
        return entry is not None and now < entry[2]

    def offended(self, identity: bytes, now: float) -> None:
        """Count one invalid message."""
        entry = self._seen.use(identity)
        if entry is None or now - entry[0] >= WINDOW_S:
            self._seen.put(identity, [now, 1.0, 0.0])
            return
        entry[1] += 1
        if entry[1] >= OFFENCES:
            entry[2] = now + MUTED_S
            entry[0], entry[1] = now, 0.0

    def forget(self, identity: bytes) -> None:
        """A peer that became known starts anew."""
        self._seen.drop(identity)


def peer_text(identity: bytes) -> str:
    """A peer in a record: at most 32 hex digits."""
    return identity[:_PEER_BYTES].hex()
