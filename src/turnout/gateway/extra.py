"""What a run carries beyond the usual: controls, a selection, a place in the response cache. Most runs carry nothing.

A request for a named model without controls has no `Extra` and pays one test of an attribute for each place where one
might matter. Nothing here imports the libraries that selection needs.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from turnout.core.errors import RETRY, ErrorKind, Outcome
from turnout.gateway.controls import NO_CONTROLS, Controls

if TYPE_CHECKING:
    from turnout.gateway.embedding import Embedded
    from turnout.gateway.run import Run
    from turnout.gateway.selecting import Chosen
    from turnout.gateway.stored_answers import Ticket


_ANOTHER_MODEL: Final = frozenset(
    (
        Outcome.NO_ENDPOINT,
        Outcome.SHED,
        Outcome.UPSTREAM_ANSWERED,
        Outcome.UPSTREAM_CREDENTIAL,
        Outcome.UPSTREAM_INVALID,
        Outcome.UPSTREAM_TIMEOUT,
        Outcome.UPSTREAM_UNREACHABLE,
    )
)


_TIMER_SLACK_S: Final = 0.002


class Refused(Exception):
    """A choice that ends the request: outcome, message, and what the error object holds beside the table's."""

    def __init__(self, outcome: Outcome, message: str, **extra: object) -> None:
        super().__init__(message)
        self.outcome, self.message, self.extra = outcome, message, tuple(extra.items())


class NeedsVector(Exception):
    """A choice that cannot be made before an embedder off the loop has made the vector of `text`."""

    def __init__(self, text: str) -> None:
        super().__init__("the text has no vector yet")
        self.text = text


class Extra:
    """Mutable companion of one run. `told` are the response headers that tell of it."""

    __slots__ = ("chosen", "controls", "embedded", "models", "replayed", "ticket", "told")

    def __init__(self, controls: Controls = NO_CONTROLS) -> None:
        self.controls = controls
        self.chosen: Chosen | None = None
        self.embedded: Embedded | None = None
        """What an embedder off the loop made of the text."""
        self.ticket: Ticket | None = None
        self.replayed: dict[str, Any] | None = None
        self.models: list[tuple[int, str]] = []
        """(attempts made before it was turned to, model) of each model but the first."""
        self.told = b""

    def model_of(self, attempt_no: int, current: str) -> str:
        """Return the model that an attempt was made for."""
        if not self.models or self.chosen is None:
            return current
        turned_to = [model for before, model in self.models if before < attempt_no]
        return turned_to[-1] if turned_to else self.chosen.selection.models[0]


def choose(run: Run) -> str:
    """Return the model of a run whose name is none of the catalogue's; "" when the run has been refused."""
    selecting, name = run.gateway.selecting, run.request.model
    if selecting is None or not selecting.wants(name):
        run.refuse(Outcome.MODEL_NOT_FOUND, f"The model {name[:64]!r} does not exist.")
        return ""
    extra = run.extra = run.extra or Extra()
    try:
        chosen = extra.chosen = selecting.choose(run)
    except Refused as refused:
        run.refuse(refused.outcome, refused.message, extra=refused.extra)
        return ""
    except NeedsVector as needs:
        gateway = run.gateway
        gateway.runs.add(run)
        run.client.attach(run)
        selecting.embedding.start(needs.text, functools.partial(_embedded, run), run.total_s())
        return ""
    selection = chosen.selection
    extra.told += b"".join([f"{name}: {value}\r\n".encode() for name, value in selection.headers])
    return selection.models[0]


def _embedded(run: Run, result: Embedded) -> None:
    """Begin again, now that the text has its vector or will have none."""
    if run.outcome is not None or run.extra is None:
        return
    if run.clock() >= run.started_s + run.total_s() - _TIMER_SLACK_S:
        run.interrupt(Outcome.DEADLINE_EXCEEDED, ErrorKind.DEADLINE)
        return
    run.extra.embedded = result
    run.begin()


def next_model(run: Run, outcome: Outcome) -> str:
    """Return the model to go on with before the commit point; "" when the outcome stands.

    Only what another model could do better is tried again: never the client's own fault, never against its wish, and
    within the bounds of models, attempts and retry budget that hold for every exchange.
    """
    extra, exchange, options = run.extra, run.exchange, run.gateway.retry_options
    if extra is None or extra.chosen is None or exchange is None or not run.prepared.fallback or run.head_sent:
        return ""
    models, done = extra.chosen.selection.models, len(extra.models) + 1
    attempts = exchange.attempts
    kind = attempts[-1].error_kind if attempts else None
    helps = kind is None or RETRY[kind].other
    if not helps or outcome not in _ANOTHER_MODEL or done >= min(options.models, len(models)):
        return ""
    now = run.clock()
    if len(attempts) >= options.attempts or now >= exchange.deadline_s or not run.gateway.budget(run.model).take(now):
        return ""
    extra.models.append((len(attempts), models[done]))
    if done == 1:
        extra.told += b"x-turnout-fallback-from: %b\r\n" % models[0].encode()
    return models[done]


def looked_up(run: Run) -> bool:
    """Tell whether the response cache has answered a run, or holds it until an equal one is answered."""
    cache = run.gateway.response_cache
    return cache is not None and cache.look(run)


def ended(run: Run, outcome: Outcome) -> None:
    """Tell selection and response cache how a run ended."""
    gateway, extra = run.gateway, run.extra
    assert extra is not None  # only runs with an Extra come here
    if gateway.selecting is not None and extra.chosen is not None:
        gateway.selecting.ended(run, outcome)
    if gateway.response_cache is not None and extra.ticket is not None:
        gateway.response_cache.ended(run, outcome)


def facts(run: Run) -> dict[str, Any]:
    """Return the ledger's fields of selection and replay."""
    extra = run.extra
    assert extra is not None  # only runs with an Extra come here
    found: dict[str, Any] = dict(extra.replayed or {})
    if extra.chosen is not None:
        selection = extra.chosen.selection
        score = selection.score_of(run.model)
        found |= {
            "reason": str(selection.reason),
            "bundle_version": selection.bundle_version,
            "knobs_hash": f"{selection.knobs_hash:016x}",
            "clusters": ",".join(map(str, selection.clusters)),
            "score_e9": None if score is None else round(score * 1e9),
        }
    return found
