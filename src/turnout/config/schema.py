"""The whole configuration file as one value: each option section of the core is one table of the file."""

from __future__ import annotations

import msgspec

from turnout.core import coordinator_options, disagg_options, options, selection_options


class Config(options.Section, frozen=True, kw_only=True):
    """What one router process is told. `model`, `endpoint` and `key` are arrays of tables, the rest are tables."""

    server: options.Server = msgspec.field(default_factory=options.Server)
    relay: options.Relay = msgspec.field(default_factory=options.Relay)
    timeout: options.Timeout = msgspec.field(default_factory=options.Timeout)
    retry: options.Retry = msgspec.field(default_factory=options.Retry)
    breaker: options.Breaker = msgspec.field(default_factory=options.Breaker)
    probe: options.Probe = msgspec.field(default_factory=options.Probe)
    ejection: options.Ejection = msgspec.field(default_factory=options.Ejection)
    admission: options.Admission = msgspec.field(default_factory=options.Admission)
    stream: options.Stream = msgspec.field(default_factory=options.Stream)
    resume: options.Resume = msgspec.field(default_factory=options.Resume)
    hedge: options.Hedge = msgspec.field(default_factory=options.Hedge)
    pool: options.Pool = msgspec.field(default_factory=options.Pool)
    scheduling: options.Scheduling = msgspec.field(default_factory=options.Scheduling)
    prefix: options.Prefix = msgspec.field(default_factory=options.Prefix)
    load: options.Load = msgspec.field(default_factory=options.Load)
    kv_events: options.KvEvents = msgspec.field(default_factory=options.KvEvents)
    coordinator: coordinator_options.Coordinator = msgspec.field(default_factory=coordinator_options.Coordinator)
    disagg: disagg_options.Disagg = msgspec.field(default_factory=disagg_options.Disagg)
    affinity: coordinator_options.Affinity = msgspec.field(default_factory=coordinator_options.Affinity)
    selection: selection_options.Selection = msgspec.field(default_factory=selection_options.Selection)
    response_cache: selection_options.ResponseCache = msgspec.field(default_factory=selection_options.ResponseCache)
    drain: options.Drain = msgspec.field(default_factory=options.Drain)
    ledger: options.Ledger = msgspec.field(default_factory=options.Ledger)
    log: options.Log = msgspec.field(default_factory=options.Log)
    auth: options.Auth = msgspec.field(default_factory=options.Auth)
    prices: options.Prices = msgspec.field(default_factory=options.Prices)
    budget: options.Budget = msgspec.field(default_factory=options.Budget)
    models: options.Models = msgspec.field(default_factory=options.Models)
    model: list[options.Model] = msgspec.field(default_factory=list)
    endpoint: list[options.Endpoint] = msgspec.field(default_factory=list)
    key: list[options.Key] = msgspec.field(default_factory=list)
