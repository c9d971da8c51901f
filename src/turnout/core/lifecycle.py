"""Where an exchange can stand, what can happen to it, and what it asks its driver to do: one table, closed sets.

    OPENED ──► ATTEMPTING ──committed──► COMMITTED ──► CLOSED
      │         │   ▲    ▲                 │   ▲
      ▼         ▼   │    │                 └───┘ a rescue: the next attempt joins the stream of the first
    QUEUED ─────────┘  WAITING

Anything that the table does not hold raises and changes nothing.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from turnout.core.admission.queue import Ticket
from turnout.core.attempt import Attempt
from turnout.core.errors import ErrorKind, Outcome
from turnout.core.recovery.poison import DEATHS_MAX

_TIMEOUTS = (
    ErrorKind.TIMEOUT_FIRST_TOKEN,
    ErrorKind.TIMEOUT_RESPONSE,
    ErrorKind.TIMEOUT_CONNECT,
    ErrorKind.TIMEOUT_SEND,
)


class State(enum.IntEnum):
    """Where an exchange stands."""

    OPENED = 0
    ATTEMPTING = 1
    WAITING = 2
    COMMITTED = 3
    CLOSED = 4
    QUEUED = 5


class Happening(enum.IntEnum):
    """What can happen to an exchange."""

    ATTEMPT = 0
    PAUSE = 1
    COMMIT = 2
    CLOSE = 3
    QUEUE = 4


# One row per state, one column per happening; None is illegal.
NEXT: Final[tuple[tuple[State | None, ...], ...]] = (
    # ATTEMPT           PAUSE          COMMIT           CLOSE         QUEUE
    (State.ATTEMPTING, None, None, State.CLOSED, State.QUEUED),  # OPENED
    (State.ATTEMPTING, State.WAITING, State.COMMITTED, State.CLOSED, State.QUEUED),  # ATTEMPTING
    (State.ATTEMPTING, State.WAITING, None, State.CLOSED, State.QUEUED),  # WAITING
    (State.COMMITTED, None, None, State.CLOSED, None),  # COMMITTED
    (None, None, None, None, None),  # CLOSED
    (State.ATTEMPTING, None, None, State.CLOSED, None),  # QUEUED
)


class Open(msgspec.Struct, frozen=True, gc=False):
    """Open this attempt."""

    attempt: Attempt


class Wait(msgspec.Struct, frozen=True, gc=False):
    """Come back with `wait_over` at this instant (monotonic seconds)."""

    until_s: float


class Queued(msgspec.Struct, frozen=True, gc=False):
    """Wait for a place: call `turn` when one is free, `queue_expired` when the ticket's time is over."""

    ticket: Ticket


class GoOn(msgspec.Struct, frozen=True, gc=False):
    """Nothing to do: the other one of two open attempts goes on."""


class GiveUp(msgspec.Struct, frozen=True, gc=False):
    """No attempt can follow: answer with this outcome (`upstream_answered`: with the last upstream answer).

    `retry_after_s` is known when admission refused; `code` replaces the outcome's own error code when not empty.
    """

    outcome: Outcome
    retry_after_s: int | None = None
    code: str = ""


Next = Open | Wait | Queued | GoOn | GiveUp


class Trouble(msgspec.Struct):
    """What only exchanges need that meet trouble; the others do not even have it."""

    ticket: Ticket | None = None
    queued_s: float = 0.0
    """Time spent in queues."""
    holds_share: bool = False
    models: int = 1
    before_model: int = 0
    """Attempts on earlier models."""
    resumed: Attempt | None = None
    """The attempt that joined the broken stream."""
    hedge: Attempt | None = None


def poisoned(attempts: list[Attempt]) -> bool:
    """N8: tell whether the attempts of one exchange coincided with the deaths of too many endpoints."""
    return len({attempt.endpoint.name for attempt in attempts if attempt.coincided}) >= DEATHS_MAX


def ending_of(last: Attempt, *, answered: bool) -> Outcome:
    """N9: the last upstream answer if there is one, else an ending by the last kind."""
    kind = last.error_kind
    if kind in (ErrorKind.AUTH_ERROR, ErrorKind.PAYMENT_REQUIRED):
        return Outcome.UPSTREAM_CREDENTIAL
    if answered:
        return Outcome.UPSTREAM_ANSWERED
    if kind in _TIMEOUTS:
        return Outcome.UPSTREAM_TIMEOUT
    if kind is ErrorKind.BAD_RESPONSE or last.http_status is not None:
        return Outcome.UPSTREAM_INVALID
    return Outcome.UPSTREAM_UNREACHABLE
