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

from turnout.core.errors import Outcome
from turnout.core.fleet.registry import Fleet
from turnout.core.kit.lru import LruMap
from turnout.core.request import Request
from turnout.core.selection import pin as pins
from turnout.core.selection.blend import Blend, NotFinite, Weighted, shares
from turnout.core.selection.bundle import CacheThresholds
from turnout.core.selection.eligibility import Eligible
from turnout.core.selection.embedder import length_feature, tail
from turnout.core.selection.explain import explain, norms
from turnout.core.selection.knobs import InvalidKnobs
from turnout.core.selection.loaded import BundleSet
from turnout.core.selection.observed import Observations
from turnout.core.selection.selection import EmbedFailure, Selection, fallback, pinned, select
from turnout.core.selection_options import Selection as Options
from turnout.gateway.candidates import Candidates, read_texts
from turnout.gateway.catalogue import Catalogue
from turnout.gateway.controls import Controls
from turnout.gateway.embedding import Embedded, Embedding
from turnout.gateway.extra import NeedsVector, Refused
from turnout.gateway.foresight import cached_share
from turnout.gateway.prepare import Prepared
from turnout.gateway.principals import Principal
from turnout.gateway.selection_refusals import bad_selector

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
        self._clock, self._warn = clock, warn
        self._candidates = Candidates(options, fleet, catalogue)
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
        started_s = run.clock()
        chosen = self.decide(
            request,
            run.principal,
            extra.controls,
            run.started_s,
            session=self.session_of(prepared, request),
            agent=prepared.agent,
            user=prepared.user,
            embedded=extra.embedded,
            share=functools.partial(cached_share, run.gateway, request, prepared, run.principal),
        )
        self._explained.put(run.call_id, chosen.selection)
        self.took[0].observe(run.clock() - started_s)
        self.took[1].observe(chosen.embed_s if extra.embedded is None else started_s - run.started_s)
        return chosen

    @staticmethod
    def session_of(prepared: Prepared, request: Request) -> str:
        """Return the session that a header or the body names, but not merely whom it is for (selection §9)."""
        named = prepared.session or (request.session if request.session != request.user else None)
        return named or prepared.session_fallback or ""

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
        user: str = "",
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
        texts = read_texts(request, conversation=self._options.embed_text == "conversation")
        tokens = -(-len(request.prompt.rendered) // 4) or len(request.prompt.tokens)
        key = pins.session_key(
            principal.tenant, session=session, agent=agent, user_id=request.user or user, first_text=texts.first
        )
        pin = None
        if self._pins is not None and weighted is not None:
            pin = self._pins.look(key, weighted.hash, now)
        seen = self._observations.now()
        candidates = self._candidates.eligible(
            blend.bundle if blend is not None else None, request, principal, texts, pin.barred if pin else (), seen
        )
        for _, reason in candidates.dropped:
            self.counts["dropped", str(reason)] += 1
        if candidates.outcome is not None:
            raise self._candidates.nobody(candidates, request)
        if blend is None or weighted is None:
            return Chosen(self._fall_back(candidates, EmbedFailure.NO_BUNDLE))
        try:
            embed_from_s = self._clock()
            vector = self._embed(texts.question) if embedded is None else embedded
            embed_s = self._clock() - embed_from_s
            if isinstance(vector, EmbedFailure):
                return Chosen(self._fall_back(candidates, vector))
            length = length_feature(len(texts.question.encode("utf-8", "surrogatepass")))
            selection = select(blend, weighted, vector, length, candidates)
            if seen.at_ms:
                source = "observed" if self._options.timing_source == "observed" and seen.ttft_s else "bundle"
                selection = msgspec.structs.replace(selection, observed_at_ms=seen.at_ms, timing_source=source)
        except NotFinite:
            return Chosen(self._fall_back(candidates, EmbedFailure.EMBED_INVALID))
        if self._pins is not None:
            selection = pinned(selection, self._verdict(pin, selection, blend, tokens, now, share))
        self._count(selection)
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

    def presets(self, version: str = "") -> list[str]:
        """Return the names of a version's presets."""
        loaded = self._library.current
        blend = loaded.blend(version) if loaded is not None else None
        return sorted(blend.bundle.defaults.presets) if blend is not None and blend.bundle.is_v2 else []

    def previewed(self, chosen: Chosen, controls: Controls, preset: str) -> dict[str, Any]:
        """Return a selection with what it was summed up from, and what these knobs mean for all prompts alike."""
        document = self.document(chosen)
        blend, weighted = self._weighted(AUTO_PRESET + preset if preset else AUTO, controls)
        if blend is None or weighted is None:
            return document
        near = chosen.selection.near
        document["norms"] = norms(blend, weighted, near) if near is not None else None
        document["shares"] = shares(blend, weighted)
        return document

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
