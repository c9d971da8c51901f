"""Which deployed models may serve this request (selection §6): hard filters in order, then soft ones that may yield.

The first reason of each drop is kept. The hard stage that empties the set decides the outcome; a soft filter that would
empty it is not applied, because endpoints' capabilities are enforced by scheduling anyway.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence

import msgspec

from turnout.core.errors import Outcome


class Drop(enum.StrEnum):
    """Why a model is not a candidate. The value is metric label and part of the explanation."""

    __hash__ = str.__hash__

    MODEL_NOT_ALLOWED = "model_not_allowed"
    EXCLUDED = "excluded"
    CONTEXT_TOO_SMALL = "context_too_small"
    PRICE_CEILING = "price_ceiling"
    NO_ENDPOINT = "no_endpoint"
    TOOL_WEAK = "tool_weak"
    AGENTIC_WEAK = "agentic_weak"
    NO_IMAGE_INPUT = "no_image_input"
    UNRELIABLE = "unreliable"


EMPTIED = {
    Drop.MODEL_NOT_ALLOWED: Outcome.MODEL_FORBIDDEN,
    Drop.EXCLUDED: Outcome.UNSERVABLE,
    Drop.CONTEXT_TOO_SMALL: Outcome.CONTEXT_EXCEEDED,
    Drop.PRICE_CEILING: Outcome.UNSERVABLE,
    Drop.NO_ENDPOINT: Outcome.NO_ENDPOINT,
}


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """What the filters read about one deployed model, for one request.

    `contexts` are the context limits of its pool, None where unknown. Prices are micro-USD per 1M tokens, None unknown.
    `success_rate` is None with too few attempts or a snapshot that is too old.
    """

    model: str
    allowed: bool = True
    excluded: bool = False
    contexts: tuple[int | None, ...] = ()
    price_in: int | None = None
    price_out: int | None = None
    routable: bool = True
    tool_weak: bool = False
    agentic_weak: bool = False
    image_input: bool = True
    success_rate: float | None = None
    estimate_floor: int | None = None
    """Where this model counts characters per token in its own way."""


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What the filters read about the request and its key."""

    estimate_floor: int = 1
    has_tools: bool = False
    has_images: bool = False
    ceiling_in: int | None = None
    ceiling_out: int | None = None
    min_success_rate: float = 0.0


class Eligible(msgspec.Struct, frozen=True, gc=False):
    """The models that are left, the drops with their reasons, and the outcome when a hard stage left none."""

    models: tuple[str, ...]
    dropped: tuple[tuple[str, Drop], ...] = ()
    outcome: Outcome | None = None
    yielded: tuple[Drop, ...] = ()
    """Soft filters that would have emptied the set."""


_Test = Callable[[Candidate, Asked], bool]


def context_too_small(candidate: Candidate, asked: Asked) -> bool:
    """Tell whether no member of the pool can hold the request for certain (C1): equal passes, one unknown passes."""
    known = [context for context in candidate.contexts if context is not None]
    return (
        bool(known)
        and len(known) == len(candidate.contexts)
        and max(known) < (candidate.estimate_floor or asked.estimate_floor)
    )


def _too_dear(candidate: Candidate, asked: Asked) -> bool:
    return _above(candidate.price_in, asked.ceiling_in) or _above(candidate.price_out, asked.ceiling_out)


def _above(price: int | None, ceiling: int | None) -> bool:
    return ceiling is not None and (price is None or price > ceiling)


EARLY: tuple[tuple[Drop, _Test], ...] = (
    (Drop.MODEL_NOT_ALLOWED, lambda candidate, _: not candidate.allowed),
    (Drop.EXCLUDED, lambda candidate, _: candidate.excluded),
    (Drop.CONTEXT_TOO_SMALL, context_too_small),
    (Drop.PRICE_CEILING, _too_dear),
)
"""The hard filters before admission: their survivors are the models whose pools admission looks at."""
LATE: tuple[tuple[Drop, _Test], ...] = ((Drop.NO_ENDPOINT, lambda candidate, _: not candidate.routable),)
SOFT: tuple[tuple[Drop, _Test], ...] = (
    (Drop.TOOL_WEAK, lambda candidate, asked: asked.has_tools and candidate.tool_weak),
    (Drop.AGENTIC_WEAK, lambda candidate, asked: asked.has_tools and candidate.agentic_weak),
    (Drop.NO_IMAGE_INPUT, lambda candidate, asked: asked.has_images and not candidate.image_input),
    (
        Drop.UNRELIABLE,
        lambda candidate, asked: candidate.success_rate is not None and candidate.success_rate < asked.min_success_rate,
    ),
)


def eligible(candidates: Iterable[Candidate], asked: Asked) -> Eligible:
    """Apply every filter of §6 in its order."""
    left = list(candidates)
    dropped: list[tuple[str, Drop]] = []
    for reason, test in (*EARLY, *LATE):
        kept = _kept(left, asked, reason, test, dropped)
        if left and not kept:
            return Eligible((), tuple(dropped), EMPTIED[reason])
        left = kept
    yielded: list[Drop] = []
    for reason, test in SOFT:
        tried: list[tuple[str, Drop]] = []
        kept = _kept(left, asked, reason, test, tried)
        if kept:
            left = kept
            dropped += tried
        elif left:
            yielded.append(reason)
    return Eligible(tuple(candidate.model for candidate in left), tuple(dropped), yielded=tuple(yielded))


def _kept(
    candidates: Sequence[Candidate], asked: Asked, reason: Drop, test: _Test, dropped: list[tuple[str, Drop]]
) -> list[Candidate]:
    kept = []
    for candidate in candidates:
        if test(candidate, asked):
            dropped.append((candidate.model, reason))
        else:
            kept.append(candidate)
    return kept
