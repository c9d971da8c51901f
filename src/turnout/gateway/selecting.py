"""`model: auto` at the gateway: reads what the core needs from run and fleet, and carries its choice back to the run.

Nothing here decides by itself. A caller's mistake is a 400 that names it; anything that is ours (no bundle, no score,
no text to judge) goes by the failure policy: the configured default model, else 503 (selection §3, §8).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from turnout.core.admission.precheck import estimate_floor
from turnout.core.errors import Outcome
from turnout.core.fleet.registry import Fleet
from turnout.core.kit.lru import LruMap
from turnout.core.selection import pin as pins
from turnout.core.selection.blend import Blend, NotFinite, Weighted, centroid_shares
from turnout.core.selection.bundle import CacheThresholds
from turnout.core.selection.eligibility import Asked, Candidate, Eligible, eligible
from turnout.core.selection.embedder import length_feature, tail
from turnout.core.selection.explain import explain
from turnout.core.selection.knobs import InvalidKnobs
from turnout.core.selection.loaded import BundleSet
from turnout.core.selection.observed import Observations, Observed
from turnout.core.selection.selection import EmbedFailure, Selection, fallback, pinned, select
from turnout.core.selection.text import Texts, texts_of
from turnout.core.selection_options import Selection as Options
from turnout.core.types import Request
from turnout.gateway.catalogue import Catalogue
from turnout.gateway.controls import Controls
from turnout.gateway.embedding import Embedded, Embedding
from turnout.gateway.extra import NeedsVector, Refused
from turnout.gateway.foresight import cached_share
from turnout.gateway.principals import Principal
from turnout.gateway.selection_refusals import bad_selector, nobody

if TYPE_CHECKING:
    from turnout.gateway.instruments import Counts
    from turnout.gateway.run import Run

AUTO, AUTO_PRESET, POLICY = "auto", "auto:", "policy:"
_MICRO = 1e6


class Library(Protocol):
    """Where the bundles in force come from."""

    @property
    def current(self) -> BundleSet | None:
        """The snapshot; None while none could be loaded."""


class Chosen(msgspec.Struct, frozen=True):
    """A selection with what it was made from: the response cache reads the vector, the pin its session."""

    selection: Selection
    vector: Any = None
    embedder: str = ""
    text: str = ""
    session: bytes = b""
    tokens: int = 0
    embed_s: float = 0.0


class Selecting:
    """Chooses the models of requests that ask for `auto`."""

    def __init__(
        self,
        options: Options,
        *,
        library: Library,
        embedding: Embedding,
        fleet: Fleet,
        catalogue: Catalogue,
        clock: Callable[[], float],
        explained_max: int,
        warn: Callable[[str], None],
        took: tuple[Counts, Counts],
        observations: Observations,
    ) -> None:
        self._options, self._library, self.embedding = options, library, embedding
        self._fleet, self._catalogue, self._clock, self._warn = fleet, catalogue, clock, warn
        self._excluded = frozenset(options.excluded_models)
        self._pins = pins.Pins(options.pin_max_sessions, options.pin_ttl_s) if options.pin_enabled else None
        self._rule = pins.Rule(
            options.switch_threshold_usd, options.horizon_turns, pins.CACHED_PRICE_FACTOR, options.tier_upgrade,
            options.cold_follow_fresh,
        )  # fmt: skip
        self._explained: LruMap[str, Selection] = LruMap(explained_max)
        self.counts: Counter[tuple[str, ...]] = Counter()
        self._observations = observations
        self.took = took
        """Seconds of whole selections, and of their embeddings."""
        self.decide_within_s = 5.0
        """How long a decision-only path may take."""
        self.on_change: list[Callable[[BundleSet], None]] = []

    @staticmethod
    def wants(model: str) -> bool:
        """Tell whether a model name asks for a selection, well formed or not."""
        return model == AUTO or model.startswith((AUTO_PRESET, POLICY))

    def choose(self, run: Run) -> Chosen:
        """Choose for a run and keep the explanation.

        Raises:
            Refused: the request ends here.

        """
        prepared, request, extra = run.prepared, run.request, run.extra
        assert extra is not None  # made before
        explicit = prepared.session or (request.session if request.session != request.user else None)
        started_s = run.clock()
        chosen = self.decide(
            request,
            run.principal,
            extra.controls,
            run.started_s,
            session=explicit or prepared.session_fallback or "",
            agent=prepared.agent,
            embedded=extra.embedded,
            share=functools.partial(cached_share, run.gateway, request, prepared, run.principal),
        )
        self._explained.put(run.call_id, chosen.selection)
        self.took[0].observe(run.clock() - started_s)
        self.took[1].observe(chosen.embed_s if extra.embedded is None else started_s - run.started_s)
        return chosen

    def loaded(self) -> list[tuple[str, str]]:
        """Return version and digest of every loaded bundle."""
        current = self._library.current
        return [] if current is None else [(name, blend.bundle.digest) for name, blend in current.blends.items()]

    def decide(
        self,
        request: Request,
        principal: Principal,
        controls: Controls,
        now: float,
        *,
        session: str = "",
        agent: str = "",
        preset: str | None = None,
        embedded: Embedded | None = None,
        share: Callable[[str], float] = lambda _: 1.0,
    ) -> Chosen:
        """Make one selection; nothing is remembered of it but counters.

        Raises:
            Refused: a caller's error, nobody eligible, or no selector.
            NeedsVector: `embedded` is missing, and the embedder runs off the loop.

        """
        blend, weighted = self._weighted(
            request.model if preset is None else (AUTO_PRESET + preset if preset else AUTO), controls
        )
        if weighted is not None and weighted.warning:
            self._warn(weighted.warning)
        texts = _texts(request, conversation=self._options.embed_text == "conversation")
        tokens = -(-len(request.prompt.rendered) // 4) or len(request.prompt.tokens)
        key = pins.session_key(
            principal.tenant, session=session, agent=agent, user_id=request.user or "", first_text=texts.first
        )
        pin = None
        if self._pins is not None and weighted is not None:
            pin = self._pins.look(key, weighted.hash, now)
        seen = self._observations.now()
        candidates = self._eligible(blend, request, principal, texts, pin, seen)
        if blend is None or weighted is None:
            return Chosen(self._fall_back(candidates, EmbedFailure.NO_BUNDLE))
        try:
            embed_from_s = self._clock()
            vector = self._embed(texts.question) if embedded is None else embedded
            embed_s = self._clock() - embed_from_s
            if isinstance(vector, EmbedFailure):
                return Chosen(self._fall_back(candidates, vector))
            length = length_feature(len(texts.question.encode("utf-8", "surrogatepass")))
            selection, _, _ = select(blend, weighted, vector, length, candidates)
            if seen.at_ms:
                source = "observed" if self._options.timing_source == "observed" and seen.ttft_s else "bundle"
                selection = msgspec.structs.replace(selection, observed_at_ms=seen.at_ms, timing_source=source)
        except NotFinite:
            return Chosen(self._fall_back(candidates, EmbedFailure.EMBED_INVALID))
        if self._pins is not None:
            selection = pinned(selection, self._verdict(pin, selection, blend, tokens, now, share))
        self._count(selection)
        for _, reason in candidates.dropped:
            self.counts["dropped", str(reason)] += 1
        return Chosen(selection, vector, self.embedding.embedder.id, texts.question, key, tokens, embed_s)

    def ended(self, run: Run, outcome: Outcome) -> None:
        """Remember which model a session completed a turn with, or that it was refused."""
        chosen = run.extra.chosen if run.extra is not None else None
        if self._pins is None or chosen is None or not chosen.session:
            return
        knobs, now = chosen.selection.knobs_hash, run.clock()
        if outcome is Outcome.COMPLETED:
            attempts = run.exchange.attempts if run.exchange is not None else []
            usage = attempts[-1].usage if attempts else None
            tokens = usage.tokens_in if usage is not None and usage.tokens_in is not None else chosen.tokens
            provider = attempts[-1].endpoint.provider if attempts else ""
            self._pins.completed(chosen.session, knobs, model=run.model, provider=provider, tokens_in=tokens, now=now)
        elif outcome is Outcome.UPSTREAM_ANSWERED:
            self._pins.refused(chosen.session, knobs, status=run.status, now=now)

    def restore(
        self, tenant: str, session: str, knobs_hash: str, model: str, provider: str, tokens_in: int, at_s: float
    ) -> bool:
        """Remember a turn of an earlier process; False: it is known already, or pins are off."""
        if self._pins is None:
            return False
        key = pins.session_key(tenant, session=session)
        pin = pins.Pin(model, provider, at_s, at_s, tokens_in)
        return self._pins.restore(key, int(knobs_hash, 16), pin)

    def changed(self, loaded: BundleSet) -> None:
        """Hear that another snapshot is in force: answers of versions that left are worth nothing any more."""
        for heard in self.on_change:
            heard(loaded)

    def thresholds(self, version: str) -> CacheThresholds:
        """Return the least similarities that a bundle version sets for semantic matches."""
        loaded = self._library.current
        blend = loaded.blend(version) if loaded is not None and version else None
        return blend.bundle.cache if blend is not None else CacheThresholds()

    def explained(self, call_id: str) -> dict[str, Any] | None:
        """Return the explanation of a recent selection."""
        selection = self._explained.peek(call_id)
        return None if selection is None else explain(selection)

    def document(self, chosen: Chosen, ranked_max: int | None = None) -> dict[str, Any]:
        """Return a selection as JSON types."""
        return explain(chosen.selection, ranked_max)

    def shares(self, controls: Controls, preset: str) -> dict[str, float]:
        """Return the share of each model over the bundle's centroids: what these knobs mean for all prompts alike."""
        blend, weighted = self._weighted(AUTO_PRESET + preset if preset else AUTO, controls)
        return {} if blend is None or weighted is None else centroid_shares(blend, weighted)

    # -- steps of one selection ---------------------------------------------------------------------------------------

    def _weighted(self, model: str, controls: Controls) -> tuple[Blend | None, Weighted | None]:
        loaded = self._library.current
        preset = model[len(AUTO_PRESET) :] if model.startswith(AUTO_PRESET) else ""
        if model != AUTO and not preset:
            raise bad_selector(model, "auto or auto:<preset>")
        if loaded is None:
            return None, None
        blend = loaded.blend(controls.bundle_version)
        if blend is None:
            known = ", ".join(sorted(loaded.blends))
            raise bad_selector(controls.bundle_version, f"a loaded bundle version: {known}", "x-turnout-bundle-version")
        if preset and preset not in blend.bundle.defaults.presets:
            known = ", ".join(sorted(blend.bundle.defaults.presets))
            raise bad_selector(model, f"auto or auto: with one of {known}")
        if self._options.timing_source == "observed":
            blend = blend.timed(self._observations.now().ttft_s)
        try:
            return blend, blend.weigh(preset, controls.overrides)
        except InvalidKnobs as error:
            if error.ours:
                raise Refused(Outcome.SELECTOR_UNAVAILABLE, f"The selector cannot be used: {error}.") from None
            raise Refused(
                Outcome.INVALID_SELECTION, f"{error.param}: {error}.", code="invalid_routing_knobs", param=error.param
            ) from None

    def _eligible(
        self,
        blend: Blend | None,
        request: Request,
        principal: Principal,
        texts: Texts,
        pin: pins.Pin | None,
        seen: Observed,
    ) -> Eligible:
        names = blend.bundle.models if blend is not None else tuple(self._fleet.models)
        providers = blend.bundle.providers if blend is not None else {}
        barred = set(pin.barred) if pin is not None else set()
        candidates = [
            self._candidate(name, request, principal, providers.get(name, ()), barred, seen) for name in names
        ]
        prompt = request.prompt
        floor = (
            max(1, len(prompt.tokens))
            if prompt.tokens
            else estimate_floor(prompt.units, prompt.messages, prompt.tools_bytes, 4.0)
        )
        asked = Asked(
            floor, has_tools=request.tools_requested, has_images=texts.has_images,
            min_success_rate=self._options.min_success_rate,
        )  # fmt: skip
        found = eligible(candidates, asked)
        if found.outcome is not None:
            for _, reason in found.dropped:
                self.counts["dropped", str(reason)] += 1
            raise nobody(found, candidates, floor)
        return found

    def _candidate(
        self,
        model: str,
        request: Request,
        principal: Principal,
        providers: tuple[str, ...],
        barred: set[str],
        seen: Observed,
    ) -> Candidate:
        options, prompt = self._options, request.prompt
        pool = self._fleet.pool(model)
        members = pool.members if pool is not None else []
        if pool is not None and request.dialect not in pool.dialects:
            members = [member for member in members if request.dialect in member.dialects]
        chars = self._catalogue.entry(model).chars_per_token if pool is not None else 4.0
        own = None
        if chars != 4.0 and not prompt.tokens:  # noqa: PLR2004 - the default divisor
            own = estimate_floor(prompt.units, prompt.messages, prompt.tools_bytes, chars)
        return Candidate(
            model,
            allowed=principal.may_use(model),
            excluded=model in self._excluded or (bool(providers) and barred.issuperset(providers)),
            contexts=tuple([member.context_max for member in members]),
            routable=any(not (member.gone or member.draining or member.unreachable) for member in members),
            tool_weak=model in options.tool_weak or model in seen.tool_weak,
            success_rate=seen.success_rate.get(model),
            agentic_weak=model in options.agentic_weak,
            image_input=model not in options.no_image_input,
            estimate_floor=own,
        )

    def _embed(self, question: str) -> Embedded:
        text = tail(question, self._options.max_prompt_bytes)
        if self.embedding.inline:
            return self.embedding.now(text)
        if not text.strip():
            return EmbedFailure.NO_TEXT
        raise NeedsVector(text)

    def _fall_back(self, candidates: Eligible, failure: EmbedFailure) -> Selection:
        self.counts["embed_failure", str(failure)] += 1
        found = fallback(self._options.default_model, candidates, failure)
        if found is None:
            raise Refused(Outcome.SELECTOR_UNAVAILABLE, f"No model can be selected now ({failure}).")
        self._count(found)
        return found

    def _verdict(
        self,
        pin: pins.Pin | None,
        selection: Selection,
        blend: Blend,
        tokens: int,
        now: float,
        share: Callable[[str], float],
    ) -> pins.Verdict:
        fresh = selection.models[0]
        if pin is None:
            return pins.Verdict(pins.PinReason.NO_PIN, stays=False)
        tiers = self._options.tiers
        stakes = pins.Stakes(
            _price(blend, pin.model),
            _price(blend, fresh),
            tokens,
            cold=pins.is_cold(pin, now, tokens),
            cached_share=share(pin.model) if pin.model != fresh and pin.model in selection.models else 1.0,
            tier_pin=tiers.get(pin.model, 0),
            tier_new=tiers.get(fresh, 0),
        )
        return pins.decide(pin, fresh, eligible=pin.model in selection.models, stakes=stakes, rule=self._rule)

    def _count(self, selection: Selection) -> None:
        self.counts["selected", str(selection.reason), selection.preset, selection.models[0]] += 1
        if selection.pin is not None:
            self.counts["pin", str(selection.pin.reason)] += 1


def _texts(request: Request, *, conversation: bool) -> Texts:
    try:
        body = msgspec.json.decode(request.body)
    except (msgspec.DecodeError, RecursionError):  # numbers out of range: legal on the wire, not read here
        return Texts("", "")
    return texts_of(body, conversation=conversation)


def _price(blend: Blend, model: str) -> pins.InputPrice | None:
    bundle = blend.bundle
    if bundle.axes is None or model not in bundle.models:
        return None
    price = float(bundle.axes.price_in[bundle.models.index(model)])
    cached = bundle.price_cached.get(model)
    return (
        pins.InputPrice(price / _MICRO, None if cached is None else cached / _MICRO)
        if price == price  # noqa: PLR0124 - NaN is unknown
        else None
    )
