"""How long an endpoint needs for a prompt, and how much prefill is queued there: seconds, learnt from first-byte times.

Theory of operation (scheduling §5.2). The work of a prompt of `T` tokens of which `u` are not cached is
`W = a·u + b·u·(T − u/2)`: linear layers plus attention over what stands before. The queue is a *virtual finish*: on
opening `v ← max(v, now) + W`; on each first byte or end `v ← now + work` with `work = Σ W` of the attempts still
without first byte. So `v − now` gives credit for work done in between, and the clamp keeps a wrong `a` from hiding it.

Each endpoint has its own fit; what counts is settled per pool. Replicas whose fits differ by less than noise share the
pool's model, so that equal endpoints stay equal and take turns: otherwise the one that was measured fastest by chance
would get every cold request of a quiet fleet. An endpoint without a sample of its own gets the pool's model, too.
"""

from __future__ import annotations

import msgspec

_DONE_MIN = 0.1  # at least this share of the open work is still to do, whatever the clock says
_KEEP = 0.97  # weight of the samples so far when one more comes: about the last 33 count
_LEARN_TOKENS = 256  # shorter prompts measure the step, not the prefill
_PRIOR_TOKENS = 2048.0  # the prior counts as this prompt ...
_PRIOR_WEIGHT = 2.0  # ... seen twice
_PRIOR_B_WEIGHT = 0.05
_EARLY = 8  # the first samples may move the estimate by _SPREAD each, later ones by _OUTLIER
_OUTLIER = 2.0
_SPREAD = 8.0  # scheduling §5.2: clamp around the pool's median
_ALIKE = 1.25  # fits that differ by less than this factor are noise
_TYPICAL_TOKENS = 4096.0  # fits are compared at a prompt of this length
_UNKNOWN = float("-inf")
_STEP_PRIOR_S = 0.02
_STEP_WEIGHT = 0.1
_STEP_MIN_S, _STEP_MAX_S = 1e-4, 10.0


class Sent(msgspec.Struct, frozen=True, gc=False):
    """Our own counts at the instant a scrape is sent: what is in the report is what was opened before."""

    at: float
    in_flight: int
    prefilling: int
    opened_s: float


class Prefill:
    """The prefill of one endpoint incarnation: `a`, `b` in seconds per token and token², queue in seconds."""

    __slots__ = (
        "_linear",
        "_linear_time",
        "_mixed",
        "_prior",
        "_square",
        "_square_time",
        "a",
        "b",
        "finish_s",
        "fit",
        "foreign_s",
        "heard_until",
        "opened_s",
        "prefilling",
        "reported_s",
        "samples",
        "step_s",
        "work_s",
    )

    def __init__(self, tokens_per_s: float) -> None:
        self.a = self._prior = 1.0 / tokens_per_s
        self.b = 0.0
        self.fit = (self.a, 0.0)
        """What its own samples say; `a` and `b` are what counts."""
        self.step_s = _STEP_PRIOR_S
        self.samples = 0
        self.prefilling = 0
        self.work_s = 0.0
        self.finish_s = 0.0
        self.opened_s = 0.0
        """Σ W of every attempt ever opened: two readings tell what was opened in between."""
        self.heard_until = 0.0
        """A report is fresh until then; 0 when none ever came."""
        self.reported_s = _UNKNOWN
        """Reported waiting tokens in seconds, less what had been opened when the scrape was sent."""
        self.foreign_s = 0.0
        """Queued work of others, when only their number is known."""
        self._linear = self._mixed = self._square = self._linear_time = self._square_time = 0.0

    def work_of(self, tokens: float, uncached: float) -> float:
        """Seconds of prefill for `uncached` of `tokens`."""
        return self.a * uncached + self.b * uncached * (tokens - 0.5 * uncached)

    def opened(self, work_s: float, now: float) -> None:
        """An attempt opens with this much work."""
        self.prefilling += 1
        self.work_s += work_s
        self.opened_s += work_s
        self.finish_s = (max(now, self.finish_s)) + work_s

    def closed(self, work_s: float, now: float) -> None:
        """Its first byte came, or it ended without one; once per attempt, with the work it was opened with."""
        self.prefilling -= 1
        # Sums of floats do not return to zero by themselves.
        rest = self.work_s - work_s if self.prefilling else 0.0
        self.work_s = rest = max(0.0, rest)
        self.finish_s = now + rest

    def queue_s(self, now: float) -> float:
        """Seconds of prefill queued before a request that opens now; reports count while they are fresh."""
        work = self.work_s
        queue = 0.0
        if work:
            queue = self.finish_s - now
            least = _DONE_MIN * work
            if queue < least:
                queue = least
            elif queue > work:
                queue = work
        if now < self.heard_until:
            queue = max(queue + self.foreign_s, self.reported_s + self.opened_s)
        return queue

    def stepped(self, seconds_per_token: float) -> None:
        """Take in the mean time between output tokens of one attempt."""
        if _STEP_MIN_S <= seconds_per_token <= _STEP_MAX_S:
            self.step_s += _STEP_WEIGHT * (seconds_per_token - self.step_s)

    def reported(
        self, until: float, sent: Sent, waiting: int | None, waiting_tokens: float | None, mean_uncached: float
    ) -> None:
        """Take in what the engine said of its queue; `mean_uncached` stands in when it counts requests only."""
        self.heard_until = until
        self.reported_s = _UNKNOWN if waiting_tokens is None else self.a * waiting_tokens - sent.opened_s
        others = 0 if waiting is None or waiting_tokens is not None else waiting - sent.prefilling
        self.foreign_s = self.a * mean_uncached * others if others > 0 else 0.0

    def learn(self, tokens: float, uncached: float, seconds: float) -> bool:
        """Take in the time to the first byte of a request that met a short queue; True when it told something.

        Least squares of the relative error with forgetting. A sample may move the estimate by a bounded factor only: a
        prompt whose prefix had been evicted, or one that waited behind others' work, is no measure of this engine.
        """
        if uncached < _LEARN_TOKENS or not seconds > 0.0:
            return False
        # The last step of the batch in progress and its own are decoding time, not prefill.
        seconds = max(seconds - self.step_s, 0.5 * seconds)
        a, b = self.fit
        expected = a * uncached + b * uncached * (tokens - 0.5 * uncached)
        limit = _SPREAD if self.samples < _EARLY else _OUTLIER
        seconds = min(max(seconds, expected / limit), expected * limit)
        self.samples += 1
        linear = uncached / seconds
        square = uncached * (tokens - 0.5 * uncached) / seconds
        self._linear = _KEEP * self._linear + linear * linear
        self._mixed = _KEEP * self._mixed + linear * square
        self._square = _KEEP * self._square + square * square
        self._linear_time = _KEEP * self._linear_time + linear
        self._square_time = _KEEP * self._square_time + square
        self.fit = self._solved()
        return True

    def _solved(self) -> tuple[float, float]:
        """Solve the two normal equations, with the prior as two more samples; a negative `b` is taken for none."""
        weight = _PRIOR_WEIGHT / (self._prior * self._prior)
        s11 = self._linear + weight
        s22 = self._square + _PRIOR_B_WEIGHT * weight * _PRIOR_TOKENS * _PRIOR_TOKENS
        t1 = self._linear_time + _PRIOR_WEIGHT / self._prior
        det = s11 * s22 - self._mixed * self._mixed
        b = (s11 * self._square_time - self._mixed * t1) / det if det > 0.0 else 0.0
        if b > 0.0:
            a = (t1 - self._mixed * b) / s11
            if a > 0.0:
                return a, b
        return t1 / s11, 0.0


def settle(models: list[Prefill]) -> None:
    """Decide which `a` and `b` count for the replicas of one pool, from the fits of those that have samples."""
    learnt = sorted((_typical(model), model.fit) for model in models if model.samples)
    if not learnt:
        return
    median, shared = learnt[len(learnt) // 2]
    for model in models:
        ratio = _typical(model) / median if model.samples else 1.0
        if 1.0 / _ALIKE <= ratio <= _ALIKE:
            model.a, model.b = shared
        else:
            factor = min(max(ratio, 1.0 / _SPREAD), _SPREAD) / ratio
            model.a, model.b = model.fit[0] * factor, model.fit[1] * factor


def _typical(model: Prefill) -> float:
    a, b = model.fit
    return a + 0.5 * b * _TYPICAL_TOKENS
