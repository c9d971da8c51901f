"""A new configuration for a router that runs: taken as a whole, in one step, or not at all (resilience X5, F76).

Open exchanges keep the catalogue, time-outs and principal that they began with. Endpoints that are described as before
keep their state. What a listener or the ledger was opened with cannot change: such differences are named, not applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from turnout.core import options
from turnout.gateway.catalogue import Catalogue
from turnout.gateway.principals import Principals
from turnout.gateway.recovery import RecoveryOptions

if TYPE_CHECKING:
    from turnout.gateway.fleet_changes import FleetChanges
    from turnout.gateway.service import Gateway


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What can be swapped."""

    endpoints: list[options.Endpoint]
    models: list[options.Model]
    further_models: list[str] = []
    """Models that exist although no configured endpoint serves them."""
    default_model: str
    principals: Principals
    timeout: options.Timeout
    relay: options.Relay
    retry: options.Retry
    pool: options.Pool
    recovery: RecoveryOptions


def apply(gateway: Gateway, changes: FleetChanges, snapshot: Snapshot) -> dict[str, list[str]]:
    """Swap, between two events of the loop; returns what became of the endpoints."""
    told = changes.replace(snapshot.endpoints, snapshot.pool, snapshot.timeout.connect_s)
    fleet = gateway.fleet
    fleet.reconfigure(tuple(snapshot.models))
    gateway.relay_options = snapshot.relay
    if snapshot.retry != gateway.retry_options:
        gateway.retry_options = snapshot.retry
        gateway.budgets.clear()
    gateway.timeout_options = snapshot.timeout
    served = [*fleet.models, *snapshot.further_models]
    gateway.catalogue = Catalogue(snapshot.models, served, snapshot.default_model, snapshot.timeout)
    gateway.recovery.reconfigure(snapshot.recovery)
    gateway.swapped(snapshot.principals)
    return told
