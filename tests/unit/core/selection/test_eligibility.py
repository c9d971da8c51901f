"""Who may serve: the order of hard filters, what an emptied set means, and soft filters that yield (selection §6)."""

from __future__ import annotations

import pytest

from turnout.core.errors import Outcome
from turnout.core.selection.eligibility import Asked, Candidate, Drop, eligible

GOOD = Candidate("z-good")


@pytest.mark.parametrize(
    ("bad", "asked", "reason", "outcome"),
    [
        (Candidate("m", allowed=False, excluded=True), Asked(), Drop.MODEL_NOT_ALLOWED, Outcome.MODEL_FORBIDDEN),
        (Candidate("m", excluded=True, routable=False), Asked(), Drop.EXCLUDED, Outcome.UNSERVABLE),
        (
            Candidate("m", contexts=(100, 50)),
            Asked(estimate_floor=101),
            Drop.CONTEXT_TOO_SMALL,
            Outcome.CONTEXT_EXCEEDED,
        ),
        (Candidate("m", price_in=5), Asked(ceiling_in=4), Drop.PRICE_CEILING, Outcome.UNSERVABLE),
        (Candidate("m", price_in=None), Asked(ceiling_in=4), Drop.PRICE_CEILING, Outcome.UNSERVABLE),
        (Candidate("m", routable=False), Asked(), Drop.NO_ENDPOINT, Outcome.NO_ENDPOINT),
    ],
)
def test_hard_filters(bad: Candidate, asked: Asked, reason: Drop, outcome: Outcome) -> None:
    alone = eligible([bad], asked)
    assert (alone.models, alone.dropped, alone.outcome) == ((), (("m", reason),), outcome)
    ceilings = Candidate("z-good", price_in=0, price_out=0)
    beside = eligible([bad, ceilings], asked)
    assert (beside.models, beside.dropped, beside.outcome) == (("z-good",), (("m", reason),), None)


def test_context_that_fits_exactly_or_is_unknown_passes() -> None:
    asked = Asked(estimate_floor=100)
    for contexts in ((100,), (50, None), (None,), ()):
        assert eligible([Candidate("m", contexts=contexts)], asked).models == ("m",)


def test_the_stage_that_empties_the_set_decides() -> None:
    found = eligible([Candidate("a", allowed=False), Candidate("b", excluded=True)], Asked())
    assert found.outcome is Outcome.UNSERVABLE
    assert found.dropped == (("a", Drop.MODEL_NOT_ALLOWED), ("b", Drop.EXCLUDED))


def test_ExcludedModelsEmptyingPool() -> None:
    assert (
        eligible([Candidate("a", excluded=True), Candidate("b", excluded=True)], Asked()).outcome is Outcome.UNSERVABLE
    )


def test_HasToolsFallsBackWhenFilterEmptiesPool() -> None:
    weak = [Candidate("a", tool_weak=True), Candidate("b", tool_weak=True)]
    found = eligible(weak, Asked(has_tools=True))
    assert (found.models, found.dropped, found.yielded) == (("a", "b"), (), (Drop.TOOL_WEAK,))
    found = eligible([*weak, GOOD], Asked(has_tools=True))
    assert (found.models, found.yielded) == (("z-good",), ())
    assert eligible([*weak, GOOD], Asked()).models == ("a", "b", "z-good")


def test_KeepsTextOnlyPoolWhenNoImageCapableCandidate() -> None:
    blind = [Candidate("a", image_input=False), Candidate("b", image_input=False)]
    assert eligible(blind, Asked(has_images=True)).models == ("a", "b")
    assert eligible([*blind, GOOD], Asked(has_images=True)).models == ("z-good",)


def test_unreliable_is_off_by_default_and_unknown_is_reliable() -> None:
    shaky = [Candidate("a", success_rate=0.4), Candidate("b", success_rate=None), Candidate("c", success_rate=0.9)]
    assert eligible(shaky, Asked()).models == ("a", "b", "c")
    assert eligible(shaky, Asked(min_success_rate=0.5)).models == ("b", "c")


def test_soft_filters_apply_one_after_the_other() -> None:
    found = eligible(
        [Candidate("a", agentic_weak=True), Candidate("b", tool_weak=True), Candidate("c", image_input=False)],
        Asked(has_tools=True, has_images=True),
    )
    assert found.models == ("c",)
    assert found.yielded == (Drop.NO_IMAGE_INPUT,)
