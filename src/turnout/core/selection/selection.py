"""One selection, embedding to ordered models: clusters, scores, eligible ones in order, the pin's verdict, all kept.

`Selection` is part of the decision: it carries every term and every drop, so that it can be explained afterwards
without having been narrated while it was made. It also names what happened instead when no score could be had.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from turnout.core.selection.arrays import Floats32
from turnout.core.selection.blend import Blend, Scores, Weighted
from turnout.core.selection.clusters import Nearest
from turnout.core.selection.eligibility import Drop, Eligible
from turnout.core.selection.knobs import hash_text
from turnout.core.selection.pin import Verdict

TRACED_MAX = 32


class Reason(enum.StrEnum):
    """How the model of a request came about: header `x-turnout-reason`, metric label, ledger column."""

    __hash__ = str.__hash__

    NAMED = "named"
    SELECTED = "selected"
    SESSION_PIN = "session_pin"
    FALLBACK_DEFAULT = "fallback_default"


class EmbedFailure(enum.StrEnum):
    """Why there is no embedding (selection §3)."""

    __hash__ = str.__hash__

    EMBED_TIMEOUT = "embed_timeout"
    EMBED_ERROR = "embed_error"
    EMBED_BUSY = "embed_busy"
    EMBED_INVALID = "embed_invalid"
    NO_TEXT = "no_text"
    NO_BUNDLE = "no_bundle"


class Scored(msgspec.Struct, frozen=True, gc=False):
    """One model of the ordered list, with what each axis gave it."""

    model: str
    score: float
    quality: float
    cost: float
    speed: float
    untimed: bool = False
    unpriced: bool = False


class Selection(msgspec.Struct, frozen=True):
    """The choice and all that it rests on. `models` is best first; failover goes down this list."""

    reason: Reason
    models: tuple[str, ...]
    scores: Scores | None = None
    names: tuple[str, ...] = ()
    """Columns of `scores`."""
    dropped: tuple[tuple[str, Drop], ...] = ()
    yielded: tuple[Drop, ...] = ()
    near: Nearest | None = None
    bundle_version: str = ""
    bundle_digest: str = ""
    preset: str = ""
    weighted: Weighted | None = None
    pin: Verdict | None = None
    out_of_domain: bool = False
    failure: EmbedFailure | None = None
    observed_at_ms: int = 0
    """When the statistics were derived that took part; 0: none did."""
    timing_source: str = "bundle"

    @property
    def clusters(self) -> tuple[int, ...]:
        """The clusters of the text, nearest first."""
        return self.near.nearest_first if self.near is not None else ()

    @property
    def similarities(self) -> tuple[float, ...]:
        """Aligned with `clusters`."""
        return self.near.similarities if self.near is not None else ()

    @property
    def knobs_hash(self) -> int:
        """The hash of the effective knobs; 0 for a v1 bundle or a fallback."""
        return self.weighted.hash if self.weighted is not None else 0

    @property
    def ranked(self) -> tuple[Scored, ...]:
        """The first models with their terms, best first by the blend; made when somebody asks for the explanation."""
        if self.scores is None or self.weighted is None:
            return ()
        eligible = frozenset(self.models)
        columns = [column for column in self.scores.order.tolist() if self.names[column] in eligible]
        return scored(self.names, self.weighted, self.scores, columns[:TRACED_MAX])

    def score_of(self, model: str) -> float | None:
        """Return the score of one model; None when there was none."""
        if self.scores is None or model not in self.names:
            return None
        return float(self.scores.score[self.names.index(model)])

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The response headers of a selection, beside `x-turnout-model`."""
        said = [("x-turnout-reason", str(self.reason))]
        if self.failure is not None:
            said.append(("x-turnout-reason-detail", str(self.failure)))
        if self.weighted is not None:
            said.append(("x-turnout-bundle", self.bundle_version))
            said.append(("x-turnout-knobs", hash_text(self.knobs_hash)))
        if self.pin is not None:
            said.append(("x-turnout-pin", str(self.pin.reason)))
        return tuple(said)


def select(blend: Blend, weighted: Weighted, vector: Floats32, length: float, candidates: Eligible) -> Selection:
    """Choose among the eligible models, given a text's embedding and length feature.

    Raises:
        blend.NotFinite: no model may be picked.

    """
    bundle = blend.bundle
    near = blend.nearest(vector, length)
    scores = blend.score(weighted, near)
    names = bundle.models
    models = tuple(map(names.__getitem__, scores.order.tolist()))
    if candidates.models != names:
        allowed = frozenset(candidates.models)
        models = tuple([name for name in models if name in allowed])
    return Selection(
        Reason.SELECTED,
        models,
        scores,
        names,
        candidates.dropped,
        candidates.yielded,
        near,
        bundle.version,
        bundle.digest,
        weighted.preset,
        weighted,
        out_of_domain=scores.out_of_domain,
    )


def scored(names: tuple[str, ...], weighted: Weighted, scores: Scores, columns: Sequence[int]) -> tuple[Scored, ...]:
    """Return the rows of some models with their terms and flags."""
    nothing = (False,) * len(names)
    untimed, unpriced = weighted.untimed or nothing, weighted.unpriced or nothing
    score, quality, cost, speed = [part.tolist() for part in (scores.score, scores.quality, scores.cost, scores.speed)]
    return tuple(
        [
            Scored(
                names[column],
                score[column],
                quality[column],
                cost[column],
                speed[column],
                untimed[column],
                unpriced[column],
            )
            for column in columns
        ]
    )


def pinned(selection: Selection, verdict: Verdict) -> Selection:
    """Return the selection with the pin's verdict: a pinned model that stays goes first, the rest keeps its order.

    A pin that agrees with the fresh choice changes nothing: the choice is a fresh one, and may be replayed as such.
    """
    if not verdict.stays or verdict.pinned not in selection.models or verdict.pinned == selection.models[0]:
        return msgspec.structs.replace(selection, pin=verdict)
    models = (verdict.pinned, *(model for model in selection.models if model != verdict.pinned))
    return msgspec.structs.replace(selection, pin=verdict, models=models, reason=Reason.SESSION_PIN)


def fallback(default: str, candidates: Eligible, failure: EmbedFailure) -> Selection | None:
    """Return the configured default model when it is eligible; None: the selector is unavailable (503)."""
    if not default or default not in candidates.models:
        return None
    return Selection(
        Reason.FALLBACK_DEFAULT, (default,), dropped=candidates.dropped, yielded=candidates.yielded, failure=failure
    )
