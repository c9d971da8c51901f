"""The part of the composition root that builds selection and response cache, only where they are configured.

numpy and all that stands on it is imported here and by nothing else that a router without them loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout.config.schema import Config
from turnout.gateway.service import Gateway

if TYPE_CHECKING:
    from turnout.bundles.watch import Watch
    from turnout.telemetry.logs import Logger


def choose_and_replay(gateway: Gateway, config: Config, log: Logger) -> Watch | None:
    """Equip a gateway; returns what keeps its bundles current.

    Raises:
        BundleError: the bundle in force cannot be used, which ends the start.

    """
    selection, cache = config.selection, config.response_cache
    if not (selection.bundle_dir or cache.enabled):
        return None
    from turnout.core.selection.embedder import Hashgram

    embedder, watch = Hashgram(), None
    if selection.bundle_dir:
        from turnout.bundles.watch import Watch, open_library
        from turnout.gateway.selecting import Selecting

        library = open_library(selection, embedder, frozenset(gateway.fleet.models))
        selecting = gateway.selecting = Selecting(
            selection,
            library=library,
            embedder=embedder,
            fleet=gateway.fleet,
            catalogue=gateway.catalogue,
            explained_max=config.scheduling.decisions_max,
            warn=lambda text: log.warning("extreme_routing_knobs", knobs=text),
        )
        watch = Watch(
            library,
            changed=selecting.changed,
            complain=lambda text: log.warning("bundle_refused", problem=text),
        )
        gateway.told = b"x-turnout-reason: named\r\n"
    if cache.enabled:
        from turnout.gateway.response_cache import Replaying

        gateway.response_cache = Replaying(cache, gateway, embedder, selection.max_prompt_bytes)
        gateway.told += b"x-turnout-cache: bypass\r\n"
    return watch
