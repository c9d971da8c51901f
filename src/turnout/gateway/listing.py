"""The catalogue as clients see it: only models that their key may use (request-path §1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout.core.types import Refusal
from turnout.gateway.principals import ANONYMOUS, Principal

if TYPE_CHECKING:
    from turnout.gateway.service import Gateway
    from turnout.http.head import Head

MODELS, MODEL = b"/v1/models", b"/v1/models/"


def models_document(gateway: Gateway, head: Head) -> dict[str, object] | Refusal:
    """Return the list of models, or one of them; 404 for one that this key does not see."""
    identity = head.prepared.identity
    principal = identity if isinstance(identity, Principal) else ANONYMOUS
    allowed = [model for model in gateway.catalogue.ids() if principal.may_use(model)]
    if head.path == MODELS:
        return {"object": "list", "data": [_entry(gateway, model) for model in allowed]}
    name = gateway.catalogue.resolve(head.path[len(MODEL) :].decode("latin-1"))
    if name not in allowed:
        shown = head.path[len(MODEL) :][:64].decode("latin-1")
        return Refusal(404, "model_not_found", f"The model {shown!r} does not exist.", "model")
    return _entry(gateway, name)


def _entry(gateway: Gateway, model: str) -> dict[str, object]:
    pool = gateway.fleet.pool(model)
    contexts = [member.context_max for member in pool.members if member.context_max] if pool is not None else []
    entry: dict[str, object] = {"id": model, "object": "model", "created": 0, "owned_by": "turnout"}
    if contexts:
        entry["max_model_len"] = max(contexts)
    return entry
