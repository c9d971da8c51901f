"""How a selection that cannot be made is worded: a selector that names nothing, and models none of which may serve."""

from __future__ import annotations

from collections.abc import Iterable

from turnout.core.errors import Outcome
from turnout.core.selection.controls import InvalidControl
from turnout.core.selection.eligibility import Eligible
from turnout.gateway.extra import Refused


def bad_selector(seen: str, expected: str, param: str = "model") -> Refused:
    """Return the 400 of a model name or version that selects nothing."""
    error = InvalidControl(param, seen, expected)
    return Refused(Outcome.INVALID_SELECTION, f"{error}.", code="invalid_model_selector", param=param)


def nobody(found: Eligible, contexts: Iterable[int | None], floor: int) -> Refused:
    """Return the refusal by the filter that left nobody. `contexts` are those of the endpoints that were not enough."""
    outcome = found.outcome
    assert outcome is not None
    if outcome is Outcome.CONTEXT_EXCEEDED:
        largest = max((context for context in contexts if context is not None), default=0)
        message = (
            f"This request needs at least {floor} tokens, but the maximum context length of the models that could "
            f"serve it is {largest} tokens. Please reduce the length of the messages."
        )
        return Refused(outcome, message, max=largest, estimated_prompt_tokens=floor)
    reasons = sorted({str(reason) for _, reason in found.dropped})
    return Refused(outcome, f"No model can serve this request: {', '.join(reasons)}.")
