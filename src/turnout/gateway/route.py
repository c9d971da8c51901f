"""Decision-only paths (selection §10): what would be chosen, without an exchange, an attempt, a pin or a row.

The body is that of the real call. Errors are refusals in the path's dialect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from turnout.core.errors import ENDINGS
from turnout.core.selection.controls import KNOBS, InvalidControl, overrides
from turnout.core.types import Refusal, Request
from turnout.dialects.openai import CHAT, decode
from turnout.gateway.controls import Controls, refusal, resolve
from turnout.gateway.extra import Refused
from turnout.gateway.principals import Principal

if TYPE_CHECKING:
    from turnout.gateway.selecting import Selecting
    from turnout.gateway.service import Gateway
    from turnout.http.head import Head

PREVIEW = b"/v1/route/preview"
_RANKED_MAX = 10
_VARIANTS_MAX = 16


class _Variant(msgspec.Struct, forbid_unknown_fields=True):
    preset: str = ""
    knobs: dict[str, Any] = {}
    bundle_version: str = ""


class _Preview(msgspec.Struct, forbid_unknown_fields=True):
    request: msgspec.Raw
    dialect: str = "openai"
    variants: list[_Variant] = []


_PREVIEW = msgspec.json.Decoder(_Preview)


def route(gateway: Gateway, head: Head, body: bytes, depth_max: int) -> bytes | Refusal:
    """Answer one of the paths."""
    selecting, principal = gateway.selecting, head.prepared.identity
    assert selecting is not None  # the path exists only with it
    assert isinstance(principal, Principal)  # on_head refused everybody else
    if head.path == PREVIEW:
        if "preview" not in principal.permissions:
            return Refusal(
                403, "path_not_allowed", "This key may not use the path /v1/route/preview.", type="permission_error"
            )
        return _preview(gateway, selecting, principal, body, depth_max)
    request = decode(CHAT, body, depth_max, gateway.catalogue.default)
    if isinstance(request, Refusal):
        return request
    controls = resolve(head.prepared.controls, body if request.has_controls else None, principal)
    if isinstance(controls, Refusal):
        return controls
    session = head.prepared.session or head.prepared.session_fallback or ""
    return _answer(_decided(gateway, selecting, request, principal, controls, session))


def _decided(
    gateway: Gateway,
    selecting: Selecting,
    request: Request,
    principal: Principal,
    controls: Controls,
    session: str = "",
) -> dict[str, Any] | Refusal:
    named = gateway.catalogue.resolve(request.model)
    if named:
        if not principal.may_use(named):
            return Refusal(
                403, "model_not_allowed", f"This key may not use the model {named!r}.", "model", "permission_error"
            )
        return {"model": named, "endpoint": None, "reason": "named", "pin": None, "bundle": None, "ranked": []}
    if not selecting.wants(request.model):
        return Refusal(404, "model_not_found", f"The model {request.model[:64]!r} does not exist.", "model")
    try:
        chosen = selecting.decide(request, principal, controls, gateway.clock(), session=session)
    except Refused as refused:
        return _refusal(refused)
    document = selecting.document(chosen, _RANKED_MAX)
    return {"model": document["model"], "endpoint": None, **document}


def _preview(
    gateway: Gateway, selecting: Selecting, principal: Principal, body: bytes, depth_max: int
) -> bytes | Refusal:
    try:
        asked = _PREVIEW.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        return Refusal(400, "invalid_request", f"The body is no preview: {error}.")
    if asked.dialect != "openai" or len(asked.variants) > _VARIANTS_MAX:
        return Refusal(400, "invalid_request", f"expected dialect openai and at most {_VARIANTS_MAX} variants.")
    request = decode(CHAT, bytes(asked.request), depth_max, gateway.catalogue.default)
    if isinstance(request, Refusal):
        return request
    found = []
    for variant in asked.variants or [_Variant()]:
        document = _variant(gateway, selecting, principal, request, variant)
        if isinstance(document, Refusal):
            return document
        found.append(document)
    return _answer({"variants": found})


def _variant(
    gateway: Gateway, selecting: Selecting, principal: Principal, request: Request, variant: _Variant
) -> dict[str, Any] | Refusal:
    unknown = next((name for name in variant.knobs if name not in KNOBS), None)
    try:
        if unknown is not None:
            raise InvalidControl(f"knobs.{unknown}", unknown, "a knob")  # noqa: TRY301 - one mapping for both
        controls = Controls(overrides([], variant.knobs), variant.bundle_version)
    except InvalidControl as error:
        return refusal(error)
    try:
        chosen = selecting.decide(request, principal, controls, gateway.clock(), preset=variant.preset)
    except Refused as refused:
        return _refusal(refused)
    return {
        "asked": msgspec.to_builtins(variant),
        **selecting.document(chosen),
        "shares": selecting.shares(controls, variant.preset),
    }


def _answer(document: dict[str, Any] | Refusal) -> bytes | Refusal:
    return document if isinstance(document, Refusal) else msgspec.json.encode(document)


def _refusal(refused: Refused) -> Refusal:
    ending, extra = ENDINGS[refused.outcome], dict(refused.extra)
    return Refusal(
        ending.status,
        str(extra.get("code") or ending.code),
        refused.message,
        str(extra["param"]) if extra.get("param") else None,
        ending.type,
        ending.retry_after_s,
    )
