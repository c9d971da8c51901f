"""What happened to each request of a run, as columns in order of arrival: the only thing reports are made from."""

from __future__ import annotations

from array import array
from typing import Any

import msgspec

from turnout.sim.replay.arrivals import Running
from turnout.sim.replay.itl import GapHistogram
from turnout.sim.replay.trace import TraceRequest


class Job:
    """One request on its way. Instants are virtual seconds; −1 is not yet."""

    __slots__ = (
        "arrived_at",
        "ask",
        "attempts",
        "ended_at",
        "engine",
        "epoch",
        "failed",
        "first_at",
        "held_s",
        "legs",
        "number",
        "predicted",
        "realised",
        "request",
        "router",
        "seat",
        "session",
        "shadows",
        "stage",
    )

    def __init__(self, number: int, request: TraceRequest, arrived_at: float, session: Running | None = None) -> None:
        self.number = number
        self.request = request
        self.arrived_at = arrived_at
        self.session = session
        self.attempts = 0
        self.engine = -1
        self.first_at = -1.0
        self.ended_at = -1.0
        self.held_s = 0.0
        self.failed = False
        self.predicted = 0
        self.realised = 0
        # What its router keeps with it: the router itself, the question, the seat there and those on other routers.
        self.router: Any = None
        self.ask: Any = None
        self.seat: Any = None
        self.shadows: list[Any] = []
        self.epoch = 0
        self.legs: Any = None
        """The prefill leg, when it is split; `stage` is 1 while that runs, 2 from then on, 0 without one."""
        self.stage = 0


class Record(msgspec.Struct):
    """Columns parallel to one another, one entry per request in order of arrival."""

    arrived_s: array[float]
    prompt_tokens: array[int]
    output_tokens: array[int]
    ttft_s: array[float]
    """-1: no first token."""
    e2e_s: array[float]
    """-1: not ended well."""
    held_s: array[float]
    engine: array[int]
    predicted_tokens: array[int]
    realised_tokens: array[int]
    attempts: array[int]
    order: list[TraceRequest]
    gaps: GapHistogram
    spread: float
    """Mean over arrivals of the coefficient of variation of the engines' load."""
    steps: int
    preemptions: int
    busy_s: list[float]
    fallbacks: dict[str, int]
    drops: dict[str, int]
    held: dict[str, int]
    ended_s: float
    refused: int = 0
    """Requests that are longer than the model accepts: not in the columns."""
    split: int = 0
    """Requests whose last attempt had two legs."""


def record_of(jobs: list[Job]) -> Record:
    """Lay out what the jobs know; the caller fills in what the engines know."""
    return Record(
        arrived_s=array("d", [job.arrived_at for job in jobs]),
        prompt_tokens=array("q", [job.request.prompt_tokens for job in jobs]),
        output_tokens=array("q", [job.request.output_tokens for job in jobs]),
        ttft_s=array("d", [job.first_at - job.arrived_at if job.first_at >= 0 else -1.0 for job in jobs]),
        e2e_s=array("d", [-1.0 if job.failed or job.ended_at < 0 else job.ended_at - job.arrived_at for job in jobs]),
        held_s=array("d", [job.held_s for job in jobs]),
        engine=array("q", [job.engine for job in jobs]),
        predicted_tokens=array("q", [job.predicted for job in jobs]),
        realised_tokens=array("q", [job.realised for job in jobs]),
        attempts=array("q", [job.attempts for job in jobs]),
        order=[job.request for job in jobs],
        gaps=GapHistogram(),
        split=sum(job.legs is not None for job in jobs),
        spread=0.0,
        steps=0,
        preemptions=0,
        busy_s=[],
        fallbacks={},
        drops={},
        held={},
        ended_s=0.0,
    )
