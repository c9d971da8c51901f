"""Which models a selection may choose among: what its filters read of fleet, catalogue, key and observations."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from turnout.core.admission.precheck import estimate_floor
from turnout.core.fleet.registry import Fleet
from turnout.core.request import Request
from turnout.core.selection.bundle import Bundle
from turnout.core.selection.eligibility import Asked, Candidate, Eligible, eligible
from turnout.core.selection.observed import Observed
from turnout.core.selection.text import Texts, texts_of
from turnout.core.selection_options import Selection as Options
from turnout.gateway.catalogue import Catalogue
from turnout.gateway.extra import Refused
from turnout.gateway.principals import Principal
from turnout.gateway.selection_refusals import nobody

_CHARS_PER_TOKEN = 4.0


class Candidates:
    """The deployed models as one request's filters see them."""

    def __init__(self, options: Options, fleet: Fleet, catalogue: Catalogue) -> None:
        self._options, self._fleet, self._catalogue = options, fleet, catalogue
        self._excluded = frozenset(options.excluded_models)

    def eligible(
        self,
        bundle: Bundle | None,
        request: Request,
        principal: Principal,
        texts: Texts,
        barred: Collection[str],
        seen: Observed,
    ) -> Eligible:
        """Apply every filter of selection §6; without a bundle the fleet's models stand for the deployed ones."""
        names = bundle.models if bundle is not None else tuple(self._fleet.models)
        asked = Asked(
            _floor(request, _CHARS_PER_TOKEN),
            has_tools=request.tools_requested,
            has_images=texts.has_images,
            ceiling_in=principal.ceiling_in,
            ceiling_out=principal.ceiling_out,
            min_success_rate=self._options.min_success_rate,
        )
        barred = frozenset(barred)
        return eligible([self._candidate(name, bundle, request, principal, barred, seen) for name in names], asked)

    def nobody(self, found: Eligible, request: Request) -> Refused:
        """Return the refusal by the filter that left nobody."""
        contexts = [
            member.context_max
            for name, _ in found.dropped
            if (pool := self._fleet.pool(name)) is not None
            for member in pool.members
        ]
        return nobody(found, contexts, _floor(request, _CHARS_PER_TOKEN))

    def _candidate(
        self,
        model: str,
        bundle: Bundle | None,
        request: Request,
        principal: Principal,
        barred: frozenset[str],
        seen: Observed,
    ) -> Candidate:
        options, prompt = self._options, request.prompt
        pool = self._fleet.pool(model)
        members = pool.members if pool is not None else []
        if pool is not None and request.dialect not in pool.dialects:
            members = [member for member in members if request.dialect in member.dialects]
        chars = self._catalogue.entry(model).chars_per_token if pool is not None else _CHARS_PER_TOKEN
        providers = bundle.providers.get(model, ()) if bundle is not None else ()
        price_in, price_out = bundle.prices(model) if bundle is not None and principal.has_ceiling else (None, None)
        return Candidate(
            model,
            allowed=principal.may_use(model),
            excluded=model in self._excluded or (bool(providers) and barred.issuperset(providers)),
            contexts=tuple([member.context_max for member in members]),
            price_in=price_in,
            price_out=price_out,
            routable=any(not (member.gone or member.draining or member.unreachable) for member in members),
            tool_weak=model in options.tool_weak or model in seen.tool_weak,
            success_rate=seen.success_rate.get(model),
            agentic_weak=model in options.agentic_weak,
            image_input=model not in options.no_image_input,
            estimate_floor=_floor(request, chars) if chars != _CHARS_PER_TOKEN and not prompt.tokens else None,
        )


def read_texts(request: Request, *, conversation: bool) -> Texts:
    """Take the texts out of a request's body; what cannot be read has none."""
    try:
        body = msgspec.json.decode(request.body)
    except (msgspec.DecodeError, RecursionError):  # numbers out of range: legal on the wire, not read here
        return Texts("", "")
    return texts_of(body, conversation=conversation)


def _floor(request: Request, chars_per_token: float) -> int:
    prompt = request.prompt
    if prompt.tokens:
        return max(1, len(prompt.tokens))
    return estimate_floor(prompt.units, prompt.messages, prompt.tools_bytes, chars_per_token)
