"""From the file as one value to what a running router can swap (resilience X5)."""

from __future__ import annotations

import time

from turnout.config.schema import Config
from turnout.gateway.principals import Principals
from turnout.gateway.recovery import RecoveryOptions
from turnout.gateway.reload import Snapshot


def snapshot_of(config: Config) -> Snapshot:
    """Return the parts of a configuration that a reload replaces."""
    continuation = frozenset(endpoint.name for endpoint in config.endpoint if endpoint.continuation)
    return Snapshot(
        endpoints=config.endpoint,
        models=config.model,
        # The model of the coordinator's engines exists before the first of them comes.
        further_models=[config.coordinator.model] if config.coordinator.enabled and config.coordinator.model else [],
        default_model=config.models.default,
        principals=Principals(config.key, open_mode=config.auth.mode == "open", utc_s=time.time),
        timeout=config.timeout,
        relay=config.relay,
        retry=config.retry,
        pool=config.pool,
        recovery=RecoveryOptions(
            config.admission, config.stream, config.resume, config.hedge, config.ejection, continuation
        ),
    )
