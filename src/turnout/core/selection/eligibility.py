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

    @property
    def has_ceiling(self) -> bool:
        """Tell whether prices decide anything."""
        return self.ceiling_in is not None or self.ceiling_out is not None


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
    largest = 0
    for context in candidate.contexts:
        if context is None:
            return False
        largest = max(largest, context)
    return 0 < largest < (candidate.estimate_floor or asked.estimate_floor)


def _too_dear(candidate: Candidate, asked: Asked) -> bool:
    return _above(candidate.price_in, asked.ceiling_in) or _above(candidate.price_out, asked.ceiling_out)


def _above(price: int | None, ceiling: int | None) -> bool:
    return ceiling is not None and (price is None or price > ceiling)


_HARD: tuple[tuple[Drop, _Test], ...] = (
    (Drop.MODEL_NOT_ALLOWED, lambda candidate, _: not candidate.allowed),
    (Drop.EXCLUDED, lambda candidate, _: candidate.excluded),
    (Drop.CONTEXT_TOO_SMALL, context_too_small),
    (Drop.PRICE_CEILING, _too_dear),
    (Drop.NO_ENDPOINT, lambda candidate, _: not candidate.routable),
)
"""The survivors of all but the last are the models whose pools admission looks at."""
_HARD_WITHOUT_CEILING = tuple([stage for stage in _HARD if stage[0] is not Drop.PRICE_CEILING])
_FOR_TOOLS: tuple[tuple[Drop, _Test], ...] = (
    (Drop.TOOL_WEAK, lambda candidate, _: candidate.tool_weak),
    (Drop.AGENTIC_WEAK, lambda candidate, _: candidate.agentic_weak),
)
_FOR_IMAGES: tuple[tuple[Drop, _Test], ...] = ((Drop.NO_IMAGE_INPUT, lambda candidate, _: not candidate.image_input),)
_FOR_SUCCESS: tuple[tuple[Drop, _Test], ...] = (
    (
        Drop.UNRELIABLE,
        lambda candidate, asked: candidate.success_rate is not None and candidate.success_rate < asked.min_success_rate,
    ),
)


def eligible(candidates: Iterable[Candidate], asked: Asked) -> Eligible:
    """Apply every filter of §6 in its order."""
    left: Sequence[Candidate] = list(candidates)
    dropped: list[tuple[str, Drop]] = []
    for reason, test in _HARD if asked.has_ceiling else _HARD_WITHOUT_CEILING:
        kept = _kept(left, asked, reason, test, dropped)
        if left and not kept:
            return Eligible((), tuple(dropped), EMPTIED[reason])
        left = kept
    yielded: list[Drop] = []
    for reason, test in _soft(asked):
        tried: list[tuple[str, Drop]] = []
        kept = _kept(left, asked, reason, test, tried)
        if kept:
            left = kept
            dropped += tried
        elif left:
            yielded.append(reason)
    return Eligible(tuple(candidate.model for candidate in left), tuple(dropped), yielded=tuple(yielded))


def _soft(asked: Asked) -> tuple[tuple[Drop, _Test], ...]:
    """Return the soft filters that this request has a use for, in their order; mostly none."""
    for_tools = _FOR_TOOLS if asked.has_tools else ()
    for_images = _FOR_IMAGES if asked.has_images else ()
    return (*for_tools, *for_images, *(_FOR_SUCCESS if asked.min_success_rate > 0.0 else ()))


def _kept(
    candidates: Sequence[Candidate], asked: Asked, reason: Drop, test: _Test, dropped: list[tuple[str, Drop]]
) -> Sequence[Candidate]:
    bad = [candidate for candidate in candidates if test(candidate, asked)]
    if not bad:
        return candidates
    dropped += [(candidate.model, reason) for candidate in bad]
    return [candidate for candidate in candidates if not test(candidate, asked)]
