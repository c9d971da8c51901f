"""The part of the composition root that builds selection and response cache, only where they are configured.

numpy and all that stands on it is imported here and by nothing else that a router without them loads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnout.config.schema import Config
from turnout.gateway.service import Gateway
from turnout.telemetry.meter import SCHEDULE_S, Histogram

if TYPE_CHECKING:
    from starlette.routing import Route

    from turnout.bundles.library import Library
    from turnout.bundles.watch import Watch
    from turnout.core.facts import RouteKey
    from turnout.core.selection.bundle import Price
    from turnout.core.selection.embedder import Embedder
    from turnout.core.selection.loaded import BundleSet
    from turnout.core.selection_options import Selection
    from turnout.core.usage import Usage
    from turnout.gateway.selecting import Selecting
    from turnout.ledger.writer import Ledger
    from turnout.telemetry.logs import Logger


def choose_and_replay(gateway: Gateway, config: Config, log: Logger, ledger: Ledger | None) -> Watch | None:
    """Equip a gateway; returns what keeps its bundles current.

    Raises:
        BundleError: the bundle in force cannot be used, which ends the start.

    """
    selection, cache = config.selection, config.response_cache
    if not (selection.bundle_dir or cache.enabled):
        return None
    # Read as numpy is loaded: a product of a few microseconds must not wake another core and wait for it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    embedder, watch = _embedder(selection), None
    if selection.bundle_dir:
        from turnout.bundles.watch import Watch, open_library
        from turnout.core.facts import StatsSnapshot
        from turnout.core.selection.observed import Observations
        from turnout.gateway.embedding import Embedding
        from turnout.gateway.selecting import Selecting

        def book() -> dict[str, Price]:
            return {} if ledger is None or selection.price_source == "bundle" else _prices(gateway, ledger)

        library = open_library(selection, embedder, frozenset(gateway.fleet.models), book)
        selecting = gateway.selecting = Selecting(
            selection,
            library=library,
            embedding=Embedding(
                embedder,
                timeout_s=selection.embed_timeout_ms / 1000,
                concurrency=selection.embed_concurrency,
                queue_max=selection.embed_queue_max,
            ),
            fleet=gateway.fleet,
            catalogue=gateway.catalogue,
            clock=gateway.clock,
            explained_max=config.scheduling.decisions_max,
            warn=lambda text: log.warning("extreme_routing_knobs", knobs=text),
            observations=Observations(
                StatsSnapshot if ledger is None else ledger.snapshot,
                gateway.now_ms,
                lambda: gateway.fleet.models,
                functools.partial(_routes, gateway),
                selection.observed_max_age_s,
            ),
            took=(Histogram(SCHEDULE_S), Histogram(SCHEDULE_S)),
        )
        watch = Watch(
            library,
            changed=lambda loaded: _changed(selecting, loaded, log),
            complain=lambda text: log.warning("bundle_refused", problem=text),
        )
        gateway.told = b"x-turnout-reason: named\r\n"
        _rehearse(library, embedder)
    if cache.enabled:
        from turnout.gateway.response_cache import Replaying

        gateway.response_cache = Replaying(cache, gateway, embedder, selection.max_prompt_bytes, Histogram(SCHEDULE_S))
        if ledger is not None:
            gateway.response_cache.cost = functools.partial(_cost, ledger)
        gateway.response_cache.audit = lambda dropped, filters: log.warning(
            "response_cache_purged", dropped=dropped, filters=dict(filters)
        )
        gateway.told += b"x-turnout-cache: bypass\r\n"
    return watch


def _changed(selecting: Selecting, loaded: BundleSet, log: Logger) -> None:
    """Let a reload take effect, and say so: from here on other models may be chosen."""
    selecting.changed(loaded)
    log.info("bundles_loaded", default=loaded.default, versions=sorted(loaded.blends))


def _rehearse(library: Library, embedder: Embedder) -> None:
    """Make one choice: what the libraries set up at their first use must not hold up the first request."""
    from turnout.core.selection.blend import NotFinite
    from turnout.core.selection.eligibility import Eligible
    from turnout.core.selection.selection import select

    blend = library.current.blend() if library.current is not None else None
    if blend is None:
        return
    if embedder.inline:
        embedder.embed("a first choice")
    vector = blend.bundle.centroids[0].astype("float32")
    with contextlib.suppress(NotFinite):
        select(blend, blend.weigh(), vector, 0.0, Eligible(blend.bundle.models))


def _embedder(options: Selection) -> Embedder:
    """Return what bundles must have been fitted with; the libraries of an exported encoder load only with one."""
    if options.embedder_dir:
        from turnout.bundles.onnx import open_onnx

        return open_onnx(Path(options.embedder_dir))
    from turnout.core.selection.embedder import Hashgram

    return Hashgram()


def _routes(gateway: Gateway, model: str) -> list[RouteKey]:
    """Return the routes that serve a model."""
    pool = gateway.fleet.pool(model)
    return [gateway.route(member, model) for member in pool.members] if pool is not None else []


def _cost(ledger: Ledger, provider: str, model: str, usage: Usage) -> int | None:
    """Return what a call costs by the price book in force, in nano-USD."""
    from turnout.core.pricing import Tokens

    tokens = Tokens(usage.tokens_in, usage.tokens_out, usage.tokens_cached)
    return ledger.prices().cost(provider, model, tokens).cost_nusd


def _prices(gateway: Gateway, ledger: Ledger) -> dict[str, Price]:
    """Return what the price book in force says about the models of the fleet."""
    from turnout.core.selection.bundle import Price

    found, book = {}, ledger.prices()
    for model in gateway.fleet.models:
        pool = gateway.fleet.pool(model)
        provider = pool.members[0].provider if pool is not None and pool.members else ""
        price = book.price(provider, model)
        if price is not None:
            found[model] = Price(price.p_in, price.p_out, price.p_cached)
    return found


async def restore_pins(gateway: Gateway, config: Config, ledger: Ledger | None) -> int:
    """Rebuild the session pins from the ledger; returns how many. Without an answer sessions start afresh."""
    selecting, options = gateway.selecting, config.selection
    if selecting is None or not options.pin_enabled or ledger is None or not config.ledger.url:
        return 0
    now_ms = gateway.now_ms()
    since_ms = now_ms - int(options.pin_ttl_s * 1000)
    turns = await asyncio.to_thread(ledger.recent_turns, since_ms, options.pin_max_sessions)
    now = gateway.clock()
    found = [(one, now - (now_ms - one.ended_at_ms) / 1000) for one in reversed(turns)]
    return sum(
        selecting.restore(one.tenant, one.session, one.knobs_hash, one.model, one.provider, one.tokens_in or 0, at_s)
        for one, at_s in found
    )


def choice_pages(gateway: Gateway, watch: Watch | None) -> list[Route]:
    """Return the pages of response cache and bundles, where there are any."""
    from turnout.console.choice_pages import bundle_routes, cache_routes

    pages = cache_routes(gateway.response_cache) if gateway.response_cache is not None else []
    return pages + (bundle_routes(watch.reloaded) if watch is not None else [])


def choice_stats(gateway: Gateway, watch: Watch | None) -> dict[str, Any]:
    """Return the figures of selection and response cache by the `source` keys of the metrics catalogue."""
    found: dict[str, Any] = {}
    selecting, cache = gateway.selecting, gateway.response_cache
    if selecting is not None:
        found |= _by_first(selecting.counts)
        found["selection"], found["embed"] = ({(): histogram} for histogram in selecting.took)
        found["bundles"] = {(name, digest[:16]): 1 for name, digest in selecting.loaded()}
    if watch is not None:
        found["reloads"] = dict(watch.results)
    if cache is not None:
        found |= _by_first(cache.counts)
        found["rejections"] = {str(kind): count for kind, count in cache.store.rejections.items()}
        found["evictions"] = dict(cache.store.evictions)
        found["entries"], found["bytes"], found["looked"] = cache.store.entries, cache.store.bytes, {(): cache.took}
    return found


def _by_first(counts: Mapping[tuple[str, ...], int]) -> dict[str, Counter[Any]]:
    """Split counts by the first part of their key; the other parts are label values."""
    found: dict[str, Counter[Any]] = {}
    for (kind, *labels), count in list(counts.items()):
        found.setdefault(kind, Counter())[tuple(labels)] += count
    return found
