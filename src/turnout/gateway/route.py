"""Decision-only paths (selection §10): what would be chosen, without an exchange, an attempt, a pin or a row.

The body is that of the real call. Errors are refusals in the path's dialect.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import msgspec

from turnout.core.errors import ENDINGS, Outcome
from turnout.core.request import Request
from turnout.core.selection.controls import KNOBS, InvalidControl, overrides
from turnout.core.types import Refusal
from turnout.dialects.anthropic import MESSAGES
from turnout.dialects.dialect import PATHS
from turnout.dialects.openai import CHAT
from turnout.gateway.controls import Controls, refusal, resolve
from turnout.gateway.extra import NeedsVector, Refused
from turnout.gateway.foresight import cached_share, foresee
from turnout.gateway.members import with_members
from turnout.gateway.prepare import Prepared
from turnout.gateway.principals import Principal

if TYPE_CHECKING:
    from turnout.gateway.embedding import Embedded
    from turnout.gateway.selecting import Selecting
    from turnout.gateway.service import Gateway
    from turnout.http.head import Head
    from turnout.http.server import Connection

PREVIEW = b"/v1/route/preview"
_RANKED_MAX = 10
_VARIANTS_MAX = 16
_TIMER_SLACK_S = 0.001
_NAMED: dict[str, Any] = {
    "reason": "named", "pin": None, "bundle": None, "knobs_hash": None, "clusters": [], "ranked": [], "dropped": [],
}  # fmt: skip
_DIALECTS = {"openai": CHAT, "anthropic": MESSAGES}


class _Variant(msgspec.Struct, forbid_unknown_fields=True):
    preset: str = ""
    knobs: dict[str, Any] = {}
    bundle_version: str = ""


class _Preview(msgspec.Struct, forbid_unknown_fields=True):
    request: msgspec.Raw
    dialect: str = "openai"
    variants: list[_Variant] = []


_PREVIEW = msgspec.json.Decoder(_Preview)


def route(gateway: Gateway, connection: Connection, head: Head, body: bytes, depth_max: int) -> None:
    """Answer one of the paths, at once or when an embedder off the loop has made the vector."""
    selecting, principal = gateway.selecting, head.prepared.identity
    assert selecting is not None  # the path exists only with it
    assert isinstance(principal, Principal)  # on_head refused everybody else
    asking = _Asking(gateway, selecting, connection, head, principal, body, depth_max)
    try:
        answer = asking.decide()
    except NeedsVector as needs:
        connection.attach(asking)
        selecting.embedding.start(needs.text, asking.embedded, selecting.decide_within_s)
    else:
        gateway.routed(connection, head, answer)


class _Asking:
    """One request for a decision (`http.handler.Exchanged` while it waits)."""

    def __init__(
        self,
        gateway: Gateway,
        selecting: Selecting,
        connection: Connection,
        head: Head,
        principal: Principal,
        body: bytes,
        depth_max: int,
    ) -> None:
        self._gateway, self._selecting, self._connection = gateway, selecting, connection
        self._head, self._principal, self._body, self._depth_max = head, principal, body, depth_max
        self._embedded: Embedded | None = None
        self._until_s = gateway.clock() + selecting.decide_within_s
        self._gone = False

    def client_gone(self) -> None:
        """Forget the answer."""
        self._gone = True

    def client_paused(self) -> None:
        """Nothing flows."""

    def client_resumed(self) -> None:
        """Nothing flows."""

    def embedded(self, result: Embedded) -> None:
        """Decide, now that the text has its vector or will have none."""
        if self._gone:
            return
        self._embedded = result
        self._gateway.routed(self._connection, self._head, self._late() or self.decide())

    def decide(self) -> bytes | Refusal:
        """Return the answer.

        Raises:
            NeedsVector: it takes an embedder that runs off the loop.

        """
        if self._head.path == PREVIEW:
            return self._preview()
        body = self._body
        named = self._head.prepared.dialect.decode()
        path = _DIALECTS[named or ("anthropic" if b"anthropic-version" in self._head.headers else "openai")]
        request = PATHS[path].decode(path, body, self._depth_max, self._gateway.catalogue.default)
        if isinstance(request, Refusal):
            return request
        prepared = with_members(self._head, request)
        if isinstance(prepared, Refusal):
            return prepared
        controls = resolve(prepared.controls, body if request.has_controls else None, self._principal)
        if isinstance(controls, Refusal):
            return controls
        return _answer(self._decided(request, controls, prepared))

    def _decided(self, request: Request, controls: Controls, prepared: Prepared) -> dict[str, Any] | Refusal:
        gateway, principal, selecting = self._gateway, self._principal, self._selecting
        named = gateway.catalogue.resolve(request.model)
        if named:
            if not principal.may_use(named):
                return Refusal(
                    403, "model_not_allowed", f"This key may not use the model {named!r}.", "model", "permission_error"
                )
            endpoint = self._endpoint(request, named)
            return {"model": named, "endpoint": endpoint, **_NAMED}
        if not selecting.wants(request.model):
            return Refusal(404, "model_not_found", f"The model {request.model[:64]!r} does not exist.", "model")
        try:
            chosen = selecting.decide(
                request,
                principal,
                controls,
                gateway.clock(),
                session=selecting.session_of(prepared, request),
                agent=prepared.agent,
                user=prepared.user,
                embedded=self._embedded,
                share=functools.partial(cached_share, gateway, request, prepared, principal),
            )
        except Refused as refused:
            return _refusal(refused)
        document = selecting.document(chosen, _RANKED_MAX)
        model = document["model"]
        return {"model": model, "endpoint": self._endpoint(request, model), **document}

    def _endpoint(self, request: Request, model: str) -> str | None:
        """Return where scheduling would send it now; None while no endpoint would take it."""
        decision = foresee(self._gateway, request, self._head.prepared, self._principal, model)
        return decision.picked.name if decision is not None and decision.picked is not None else None

    def _preview(self) -> bytes | Refusal:
        if "preview" not in self._principal.permissions:
            return Refusal(
                403, "path_not_allowed", "This key may not use the path /v1/route/preview.", type="permission_error"
            )
        try:
            asked = _PREVIEW.decode(self._body)
        except (msgspec.DecodeError, RecursionError) as error:
            return Refusal(400, "invalid_request", f"The body is no preview: {error}.")
        path = _DIALECTS.get(asked.dialect)
        if path is None or len(asked.variants) > _VARIANTS_MAX:
            known = " or ".join(_DIALECTS)
            return Refusal(400, "invalid_request", f"expected dialect {known} and at most {_VARIANTS_MAX} variants.")
        request = PATHS[path].decode(path, bytes(asked.request), self._depth_max, self._gateway.catalogue.default)
        if isinstance(request, Refusal):
            return request
        found = []
        for variant in asked.variants or _usual(self._selecting):
            document = self._late() or _variant(
                self._gateway, self._selecting, self._principal, request, variant, self._embedded
            )
            if isinstance(document, Refusal):
                return document
            found.append(document)
        return _answer({"variants": found})

    def _late(self) -> Refusal | None:
        if self._gateway.clock() < self._until_s - _TIMER_SLACK_S:
            return None
        ending = ENDINGS[Outcome.DEADLINE_EXCEEDED]
        limit_s = self._selecting.decide_within_s
        return Refusal(ending.status, ending.code, f"The decision took longer than {limit_s:g} s.", type=ending.type)


def _variant(
    gateway: Gateway,
    selecting: Selecting,
    principal: Principal,
    request: Request,
    variant: _Variant,
    embedded: Embedded | None,
) -> dict[str, Any] | Refusal:
    unknown = next((name for name in variant.knobs if name not in KNOBS), None)
    try:
        if unknown is not None:
            raise InvalidControl(f"knobs.{unknown}", unknown, "a knob")  # noqa: TRY301 - one mapping for both
        controls = Controls(overrides([], variant.knobs), variant.bundle_version)
    except InvalidControl as error:
        return refusal(error)
    try:
        chosen = selecting.decide(
            request, principal, controls, gateway.clock(), preset=variant.preset, embedded=embedded
        )
    except Refused as refused:
        return _refusal(refused)
    return {"asked": msgspec.to_builtins(variant), **selecting.previewed(chosen, controls, variant.preset)}


def _usual(selecting: Selecting) -> list[_Variant]:
    """What is shown to who asks for nothing special: the bundle's own knobs and each of its presets."""
    return [_Variant(), *[_Variant(preset=name) for name in selecting.presets()]][:_VARIANTS_MAX]


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
