"""Which request meets which failure: named faults with a probability, a count and a match, drawn from a seed.

This file decides; `server` and `answers` carry the effect out. Only HTTP-level faults exist here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, get_args

import msgspec
import xxhash

FaultKind = Literal[
    "refuse",
    "accept_hang",
    "hang_before_first_byte",
    "reset",
    "garbage",
    "html",
    "empty",
    "context_error",
    "content_policy",
    "stall",
    "silence",
    "half_close",
    "trickle",
    "error_event",
    "no_terminator",
    "extra_bytes",
    "reset_mid_stream",
    "cut_mid_stream",
    "bad_sse",
    "wrong_length",
    "status",
    "slow",
    "health_lies",
    "metrics_stale",
    "metrics_missing",
    "metrics_zero",
    "exit",
    "restart_same_port",
    "event_drop",
    "event_dup",
    "event_reorder",
    "event_restart",
    "event_stop",
    "event_garbage",
    "transfer_fail",
    "transfer_slow",
    "lease_expire",
    "no_kv_params",
    "room_conflict",
]
KINDS: tuple[str, ...] = get_args(FaultKind)
MID_ANSWER: tuple[FaultKind, ...] = (
    "stall",
    "silence",
    "half_close",
    "trickle",
    "error_event",
    "no_terminator",
    "extra_bytes",
    "reset_mid_stream",
    "cut_mid_stream",
    "bad_sse",
    "wrong_length",
)
"""Kinds that strike while an answer is being written."""
STATUSES = (400, 401, 404, 408, 413, 422, 429, 500, 502, 503, 504, 529)
FAULTS_MAX = 64
HEADER = "x-sim-fault"
"""A request header that strikes the request which carries it: faults as on the command line, separated by `;`."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One failure to inject. Raises ValueError from the constructor, naming field, value and range."""

    kind: FaultKind
    probability: float = 1.0
    count: int | None = None
    """How often it strikes at most; None is without end."""
    after_requests: int = 0
    """This many matching requests pass unharmed first."""
    after_tokens: int = 1
    """Mid-answer kinds: output tokens written before the effect."""
    match: str | None = None
    """Starts with `/`: that path exactly. Anything else: a substring of the request body."""
    status: int = 500
    retry_after: str | None = None
    """`status`: value of the Retry-After header; absent when None."""
    lasts_s: float | None = None
    """In force this long after it was armed, or in each period."""
    every_s: float | None = None
    """Length of a period: the fault comes back, as one that flaps."""
    engine: str | None = None
    """Only the engine of this name; for faults in a request header, which every engine of a gateway sees."""
    seconds: float = 30.0
    """`stall`, `silence`: length of the gap. `refuse`: how long the listener stays closed (0: until the faults
    are cleared). `restart_same_port`: how long the process is away."""
    factor: float = 10.0
    """`slow`: step durations are multiplied by this. `trickle`: bytes per second."""

    def __post_init__(self) -> None:
        """Refuse values outside their range; NaN fails every comparison and is refused with them."""
        for field, low, high in (
            ("probability", 0, 1),
            ("count", 1, 2**31),
            ("after_requests", 0, 2**31),
            ("after_tokens", 0, 2**31),
            ("seconds", 0, 86_400),
            ("lasts_s", 0, 86_400),
            ("every_s", 1e-3, 86_400),
            ("factor", 1e-3, 1e6),
        ):
            value = getattr(self, field)
            if value is not None and not low <= value <= high:
                message = f"fault {self.kind}: {field} = {value!r}: expected a number from {low} to {high}"
                raise ValueError(message)
        if self.status not in STATUSES:
            message = f"fault {self.kind}: status = {self.status}: expected one of {', '.join(map(str, STATUSES))}"
            raise ValueError(message)


def parse_fault(text: str) -> Fault:
    """A fault from `kind=status,status=503,probability=0.1`. Raises ValueError."""
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            message = f"fault {text!r}: {part!r}: expected key=value"
            raise ValueError(message)
        fields[key.strip()] = value.strip()
    try:
        return msgspec.convert(fields, Fault, strict=False)
    except msgspec.ValidationError as error:
        message = f"fault {text!r}: {error}; kinds are {', '.join(KINDS)}"
        raise ValueError(message) from error


def parse_header(text: str) -> tuple[Fault, ...]:
    """The faults of a request header; `count` and `after_requests` mean nothing there. Raises ValueError."""
    parts = [part for part in text.split(";") if part.strip()]
    if len(parts) > FAULTS_MAX:
        message = f"{HEADER}: {len(parts)} faults: expected at most {FAULTS_MAX}"
        raise ValueError(message)
    return tuple(parse_fault(part) for part in parts)


class _Armed:
    """One fault with what it has done so far."""

    __slots__ = ("armed_at", "draws", "fault", "passed", "struck")

    def __init__(self, fault: Fault, now: float) -> None:
        self.fault = fault
        self.armed_at = now
        self.draws = 0
        self.passed = 0
        self.struck = 0

    @property
    def spent(self) -> bool:
        return self.fault.count is not None and self.struck >= self.fault.count

    def in_force(self, now: float) -> bool:
        """Whether its time has not passed, or has come again."""
        fault = self.fault
        if fault.lasts_s is None:
            return True
        passed = now - self.armed_at
        return (passed if fault.every_s is None else passed % fault.every_s) < fault.lasts_s


class FaultPlan:
    """The faults in force. The same seed and the same order of draws strike the same requests.

    `clock` gives seconds, for faults that last or flap; `engine` is the name that a fault may be meant for.
    """

    def __init__(
        self,
        seed: int,
        faults: tuple[Fault, ...] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        engine: str = "",
    ) -> None:
        self._seed = seed
        self._clock = clock
        self._engine = engine
        self._armed: list[_Armed] = []
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        """Put one more fault in force. Raises ValueError beyond `FAULTS_MAX`."""
        if len(self._armed) >= FAULTS_MAX:
            message = f"faults = {len(self._armed) + 1}: expected at most {FAULTS_MAX}; DELETE /sim/faults clears them"
            raise ValueError(message)
        self._armed.append(_Armed(fault, self._clock()))

    def clear(self) -> None:
        """Lift every fault."""
        self._armed.clear()

    def listing(self) -> list[dict[str, object]]:
        """Each fault with how often it struck."""
        return [{**msgspec.structs.asdict(armed.fault), "struck": armed.struck} for armed in self._armed]

    def draw(
        self,
        kind: FaultKind,
        *,
        path: str = "",
        body: bytes = b"",
        by_path_only: bool = False,
        own: tuple[Fault, ...] = (),
    ) -> Fault | None:
        """The first fault of this kind that strikes this request, counted.

        `by_path_only`: the request is no generation, so only a fault whose match is its path applies. `own`: the faults
        that the request itself asked for.
        """
        for fault in own:
            if fault.kind == kind and fault.engine in (None, self._engine):
                return fault
        for armed in self._armed:
            fault = armed.fault
            if fault.kind != kind or armed.spent or fault.engine not in (None, self._engine):
                continue
            if not _matches(fault, path, body, by_path_only=by_path_only) or not armed.in_force(self._clock()):
                continue
            if armed.passed < fault.after_requests:
                armed.passed += 1
                continue
            armed.draws += 1
            if fault.probability < 1 and self._chance(armed.draws, kind) >= fault.probability:
                continue
            armed.struck += 1
            return fault
        return None

    def _chance(self, draw: int, kind: str) -> float:
        return xxhash.xxh3_64_intdigest(f"{kind}:{draw}".encode(), self._seed) / 2**64


def _matches(fault: Fault, path: str, body: bytes, *, by_path_only: bool) -> bool:
    if fault.match is None:
        return not by_path_only
    if fault.match.startswith("/"):
        return path == fault.match
    return not by_path_only and fault.match.encode() in body
