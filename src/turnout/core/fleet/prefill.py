"""How long an endpoint needs for a prompt, and how much prefill is queued there: seconds, learnt from first-byte times.

Theory of operation (scheduling §5.2). The work of a prompt of `T` tokens of which `u` are not cached is
`W = a·u + b·u·(T − u/2)`: linear layers plus attention over what stands before. The queue is a *virtual finish*: on
opening `v ← max(v, now) + W`; on each first byte or end `v ← now + work` with `work = Σ W` of the attempts still
without first byte. So `v − now` gives credit for work done in between, and the clamp keeps a wrong `a` from hiding it.

The shape, `a` and `b`, is fitted per pool from everybody's samples; an endpoint has a speed of its own, one factor on
both. Two parameters per endpoint would be fitted to a few dozen samples each, and whoever was measured wrongly would
stay so: an endpoint believed slow gets no requests to disprove it. Speeds that differ by less than noise are equal, so
that equal endpoints take turns. An endpoint without samples of its own has the pool's model.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

_DONE_MIN: Final = 0.1  # at least this share of the open work is still to do, whatever the clock says
_KEEP: Final = 0.97  # weight of the samples so far when one more comes: about the last 33 count
_LEARN_TOKENS: Final = 256  # shorter prompts measure the step, not the prefill
_PRIOR_WEIGHT: Final = 2.0  # samples that the prior is worth
_PRIOR_B_WEIGHT: Final = 0.05
_PRIOR_KEEP: Final = 0.9
_EARLY: Final = 8  # the first samples may move the estimate by _SPREAD each, later ones by _OUTLIER
_OUTLIER: Final = 2.0
_SPREAD: Final = 8.0  # scheduling §5.2: clamp around the pool's median
_ALIKE: Final = 1.25  # fits that differ by less than this factor are noise
_SPEED_PRIOR: Final = 4.0  # samples that the pool's speed is worth against an endpoint's own
_SPEED_SAMPLES: Final = 32.0  # later samples count as one of so many
_UNKNOWN: Final = float("-inf")
_STEP_PRIOR_S: Final = 0.02
_STEP_UP: Final = 0.01  # a low quantile: what prefill adds to a step is counted as prefill, not here
_STEP_DOWN: Final = 0.1
_PACE_TAU_S: Final = 20.0  # about the life of an answer
_STEP_MIN_S: Final = 0.0001
_STEP_MAX_S: Final = 10.0


class Sent(msgspec.Struct, frozen=True, gc=False):
    """Our own counts at the instant a scrape is sent: what is in the report is what was opened before."""

    at: float
    in_flight: int
    prefilling: int
    opened_s: float
    attempts: int = 0
    """Attempts ever opened: the answer may know those that were opened while it was under way."""


class Prefill:
    """The prefill of one endpoint incarnation: `a`, `b` in seconds per token and token², queue in seconds."""

    __slots__ = (
        "_count",
        "_linear",
        "_linear_time",
        "_mixed",
        "_paced_at",
        "_paced_s",
        "_square",
        "_square_time",
        "a",
        "b",
        "blind_s",
        "context_tokens",
        "factor",
        "finish_s",
        "foreign_s",
        "heard_until",
        "opened_s",
        "prefilling",
        "prior",
        "reported_s",
        "samples",
        "shared",
        "slowness",
        "step_s",
        "work_s",
    )

    def __init__(self, tokens_per_s: float) -> None:
        self.a = self.prior = 1.0 / tokens_per_s
        self.b = 0.0
        self.shared = (self.a, 0.0)
        """The pool's `a` and `b`; the endpoint's own are these times `factor`."""
        self.factor = 1.0
        self.slowness = 0.0
        """Logarithm of its measured times over the pool's model."""
        self.step_s = _STEP_PRIOR_S
        self.samples = 0
        self.prefilling = 0
        self.work_s = 0.0
        self.finish_s = 0.0
        self.blind_s = 0.0
        """When the work of attempts should be done whose first byte nobody sees: answers that come as a whole."""
        self.opened_s = 0.0
        """Σ W of every attempt ever opened: two readings tell what was opened in between."""
        self.context_tokens = 0.0
        """Tokens before a token of the pool's prompts, on average: what reported tokens cost depends on it."""
        self.heard_until = _UNKNOWN
        """The endpoint's latest report is fresh until then."""
        self.reported_s = _UNKNOWN
        """Reported waiting tokens in seconds, less what had been opened when the scrape was sent."""
        self._paced_s = self._paced_at = 0.0
        self.foreign_s = 0.0
        """Queued work of others, when only their number is known."""
        self._linear = self._mixed = self._square = self._linear_time = self._square_time = self._count = 0.0

    def work_of(self, tokens: float, uncached: float) -> float:
        """Seconds of prefill for `uncached` of `tokens`."""
        return self.a * uncached + self.b * uncached * (tokens - 0.5 * uncached)

    def opened(self, work_s: float, now: float) -> None:
        """An attempt opens with this much work."""
        self.prefilling += 1
        self.work_s += work_s
        self.opened_s += work_s
        self.finish_s = max(now, self.finish_s) + work_s
        self._paced_s = self._paced_s * math.exp(min(0.0, self._paced_at - now) / _PACE_TAU_S) + work_s
        self._paced_at = now

    def opened_blind(self, work_s: float, now: float) -> None:
        """An attempt opens whose answer comes as a whole: only the clock tells when its prompt is done."""
        self.opened_s += work_s
        self.blind_s = (max(now, self.blind_s)) + work_s

    def closed(self, work_s: float, now: float) -> None:
        """Its first byte came, or it ended without one; once per attempt, with the work it was opened with."""
        self.prefilling -= 1
        # Sums of floats do not return to zero by themselves.
        rest = self.work_s - work_s if self.prefilling else 0.0
        self.work_s = rest = max(0.0, rest)
        self.finish_s = now + rest

    def pace(self, now: float) -> float:
        """Return the share of its recent time that it was given as prefill; over 1 when it was given too much."""
        paced = self._paced_s
        return paced * math.exp(min(0.0, self._paced_at - now) / _PACE_TAU_S) / _PACE_TAU_S if paced else 0.0

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
        if now < self.blind_s:
            queue += self.blind_s - now
        if now < self.heard_until:
            queue = max(queue + self.foreign_s, self.reported_s + self.opened_s)
        return queue

    def stepped(self, seconds_per_token: float) -> None:
        """Take in the mean time between output tokens of one attempt."""
        if _STEP_MIN_S <= seconds_per_token <= _STEP_MAX_S:
            gap = seconds_per_token - self.step_s
            self.step_s += (_STEP_UP if gap > 0.0 else _STEP_DOWN) * gap

    def reported(self, sent: Sent, waiting: int | None, waiting_tokens: float | None, mean_uncached: float) -> None:
        """Take in what the engine said of its queue; `mean_uncached` stands in when it counts requests only."""
        per_token = self.a + self.b * self.context_tokens
        self.reported_s = _UNKNOWN if waiting_tokens is None else per_token * waiting_tokens - sent.opened_s
        others = 0 if waiting is None or waiting_tokens is not None else waiting - sent.prefilling
        self.foreign_s = per_token * mean_uncached * others if others > 0 else 0.0

    def learn(self, tokens: float, uncached: float, seconds: float) -> bool:
        """Take in the time to the first byte of a request that met a short queue; True when it told something.

        Least squares of the relative error with forgetting. A sample may move the estimate by a bounded factor only: a
        prompt whose prefix had been evicted, or one that waited behind others' work, is no measure of this engine.
        """
        if uncached < _LEARN_TOKENS or not seconds > 0.0:
            return False
        # The last step of the batch in progress and its own are decoding time, not prefill.
        seconds = max(seconds - self.step_s, 0.5 * seconds)
        expected = self.work_of(tokens, uncached)
        limit = _SPREAD if self.samples < _EARLY else _OUTLIER
        seconds = min(max(seconds, expected / limit), expected * limit)
        self.samples += 1
        a, b = self.shared
        pooled = a * uncached + b * uncached * (tokens - 0.5 * uncached)
        weight = 1.0 / min(self.samples + _SPEED_PRIOR, _SPEED_SAMPLES)
        self.slowness += weight * (math.log(seconds / pooled) - self.slowness)
        # What the pool's engine would have needed: a slow endpoint must not slow the others' model.
        seconds /= self.factor
        linear = uncached / seconds
        square = uncached * (tokens - 0.5 * uncached) / seconds
        self._count = _KEEP * self._count + 1.0
        self._linear = _KEEP * self._linear + linear * linear
        self._mixed = _KEEP * self._mixed + linear * square
        self._square = _KEEP * self._square + square * square
        self._linear_time = _KEEP * self._linear_time + linear
        self._square_time = _KEEP * self._square_time + square
        return True


def settle(models: list[Prefill]) -> None:
    """Fit the pool's `a` and `b` to everybody's samples, and give each replica its speed."""
    if not any(model.samples for model in models):
        return  # whoever learnt has left the pool
    shared = _solved(models)
    _rebase(models, shared)
    known = sorted(model.slowness for model in models if model.samples >= _EARLY)
    # Speeds are relative to the middle one; what they have in common belongs to the model.
    middle = known[(len(known) - 1) // 2] if known else 0.0
    alike = math.log(_ALIKE)
    most = math.log(_SPREAD)
    for model in models:
        model.factor = 1.0
        if model.samples >= _EARLY:
            slowness = min(max(model.slowness - middle, -most), most)
            if abs(slowness) > alike:
                model.factor = math.exp(slowness)
        model.shared = shared
        model.a, model.b = shared[0] * model.factor, shared[1] * model.factor


def _rebase(models: list[Prefill], shared: tuple[float, float]) -> None:
    """Say speeds that still average first samples relative to the new model: those met one that was the prior.

    What the usual prompt's time has moved is taken off, and nothing else. Whoever learns nothing for a while, because
    its queue is never short, keeps its speed relative to the others and must not drift away from them.
    """
    linear = sum([model._linear_time for model in models])
    square = sum([model._square_time for model in models])
    new = shared[0] * linear + shared[1] * square
    for model in models:
        old = model.shared[0] * linear + model.shared[1] * square
        if 0 < model.samples < _SPEED_SAMPLES and new > 0.0 and old > 0.0:
            model.slowness -= math.log(new / old)


def _solved(models: list[Prefill]) -> tuple[float, float]:
    """Solve the two normal equations over all samples; a negative `b` is taken for none.

    The prior weighs as much as so many of these samples, whatever their speed, and is forgotten as they come: engines
    much faster or slower than it are learnt all the same.
    """
    count = s11 = s12 = s22 = t1 = t2 = 0.0
    for model in models:
        count += model._count
        s11 += model._linear
        s12 += model._mixed
        s22 += model._square
        t1 += model._linear_time
        t2 += model._square_time
    weight = _PRIOR_WEIGHT * _PRIOR_KEEP**count * s11 / count
    s11 += weight
    t1 += weight * models[0].prior
    s22 *= 1.0 + _PRIOR_B_WEIGHT * _PRIOR_WEIGHT / count
    det = s11 * s22 - s12 * s12
    b = (s11 * t2 - s12 * t1) / det if det > 0.0 else 0.0
    if b > 0.0:
        a = (t1 - s12 * b) / s11
        if a > 0.0:
            return a, b
    return t1 / s11, 0.0
