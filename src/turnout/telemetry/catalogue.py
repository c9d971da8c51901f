"""Every metric Turnout exposes, once: name, kind, labels, meaning. The renderer and docs/metrics.md follow this table.

Names end in their unit; counters end in `_total`. Labels hold closed sets, configured names or capped names, never
what a client typed, never a tenant (hardening T07).
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]


class Metric(msgspec.Struct, frozen=True, gc=False):
    """One metric. `source` is the attribute or key that holds its value, where the name alone does not say it."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    source: str = ""


REQUESTS: tuple[Metric, ...] = (
    Metric(
        "turnout_requests_total", "counter", "Accepted requests by their one outcome.", ("model", "outcome", "class")
    ),
    Metric(
        "turnout_attempts_total", "counter", "Ended attempts and legs, ok or an error kind.", ("endpoint", "result")
    ),
    Metric("turnout_refusals_total", "counter", "Refusals before a request was accepted, by error code.", ("code",)),
    Metric("turnout_ttft_seconds", "histogram", "Complete head of the request to first output event.", ("model",)),
    Metric("turnout_itl_seconds", "histogram", "Gap between output events of a stream."),
    Metric("turnout_e2e_seconds", "histogram", "Complete head of the request to its outcome.", ("model",)),
    Metric("turnout_overhead_seconds", "histogram", "Own time up to the head, without queue and upstream waits."),
    Metric("turnout_tokens_in_total", "counter", "Prompt tokens as reported.", ("model",)),
    Metric("turnout_tokens_out_total", "counter", "Output tokens as reported.", ("model",)),
    Metric("turnout_tokens_cached_total", "counter", "Prompt tokens the engines found in their KV caches.", ("model",)),
    Metric(
        "turnout_prompt_overestimates_total",
        "counter",
        "Requests whose prompt had fewer tokens than estimated.",
        ("model",),
    ),
    Metric("turnout_queue_depth", "gauge", "Requests waiting for admission.", ("model",)),
)

SCHEDULING: tuple[Metric, ...] = (
    Metric("turnout_schedule_seconds", "histogram", "One scheduling decision, trace included."),
    Metric("turnout_schedule_candidates", "histogram", "Candidates of a decision after all filters."),
    Metric("turnout_schedule_picks_total", "counter", "Decisions that picked this endpoint.", ("endpoint",)),
    Metric("turnout_schedule_dropped_total", "counter", "Candidates dropped by a filter.", ("reason",)),
    Metric("turnout_schedule_held_total", "counter", "Requests that wait by choice: queue, cold_gate.", ("reason",)),
    Metric(
        "turnout_schedule_fallback_total",
        "counter",
        "Decisions without the policy's own signal: no_match, no_signal, relaxed.",
        ("policy", "reason"),
    ),
    Metric(
        "turnout_prefix_lookups_total",
        "counter",
        "One per decision: match, declined, stale, miss or no_hash.",
        ("result",),
    ),
    Metric("turnout_prefix_blocks_total", "counter", "Prompt blocks looked up.", source="prefix_blocks_total"),
    Metric(
        "turnout_prefix_matched_blocks_total",
        "counter",
        "Prompt blocks found at the endpoint picked.",
        source="prefix_matched_blocks_total",
    ),
)

_PLAIN: tuple[tuple[str, Kind, str], ...] = (
    ("connections_open", "gauge", "Client connections open."),
    ("connections_total", "counter", "Client connections accepted."),
    ("exchanges_open", "gauge", "Requests accepted and not ended."),
    ("bodies_held_bytes", "gauge", "Request bodies held by open exchanges."),
    ("upstream_connects_total", "counter", "Connections opened to endpoints."),
    ("upstream_connect_failures_total", "counter", "Connections to endpoints that could not be opened."),
    ("upstream_reuses_total", "counter", "Attempts sent on a kept-alive connection."),
    ("relay_events_inspected_total", "counter", "Stream events that were looked into."),
    ("relay_events_oversized_total", "counter", "Stream events relayed uninspected for their size (L10)."),
    ("relay_events_dropped_total", "counter", "Malformed stream events dropped (W6)."),
    ("relay_keepalives_total", "counter", "Keep-alive comments sent to waiting clients (W2)."),
    ("retry_budget_exhausted_total", "counter", "Extra attempts refused by the retry budget (N5)."),
    ("rerouted_total", "counter", "Attempts after the first that were sent to another endpoint (N10)."),
    ("rescues_tried_total", "counter", "Streams that broke after the commit point and were asked for again elsewhere."),
    ("rescues_completed_total", "counter", "Rescues that caught up with what the client had (resumed)."),
    ("rescues_mismatched_total", "counter", "Rescues whose text differed from what the client had."),
    ("hedges_sent_total", "counter", "Duplicates sent because the first token was late."),
    ("hedges_won_total", "counter", "Hedged requests that the duplicate answered."),
    ("ejections_total", "counter", "Endpoints ejected as outliers of their pool."),
    ("poison_fenced_total", "counter", "Request bodies fenced after two endpoint deaths (N8)."),
)
PLAIN: tuple[Metric, ...] = tuple(
    Metric("turnout_" + source, kind, text, source=source) for source, kind, text in _PLAIN
)
"""Attributes of `Meter` that the gateway increments in place; `source` is the attribute."""

ENDPOINTS: tuple[Metric, ...] = (
    Metric("turnout_in_flight", "gauge", "Attempts open at this endpoint, counted locally.", ("endpoint",)),
    Metric("turnout_endpoint_queue_depth", "gauge", "Requests waiting inside the engine, as reported.", ("endpoint",)),
    Metric("turnout_endpoint_kv_usage_ratio", "gauge", "KV cache in use, as reported.", ("endpoint",)),
    Metric("turnout_endpoint_unreachable", "gauge", "1 while no connection can be opened (O1).", ("endpoint",)),
    Metric("turnout_endpoint_probe_failing", "gauge", "1 while readiness probes fail (O4).", ("endpoint",)),
    Metric(
        "turnout_endpoint_breaker",
        "gauge",
        "1 for the state the breaker is in: closed, open or half_open.",
        ("endpoint", "state"),
    ),
)

PREFIX: tuple[Metric, ...] = (
    Metric("turnout_prefix_entries", "gauge", "Blocks in the prefix index.", source="entries"),
    Metric("turnout_prefix_bytes", "gauge", "Estimated memory of the prefix index.", source="bytes"),
    Metric("turnout_prefix_slots", "gauge", "Endpoint incarnations with a bit in the index.", source="slots"),
    Metric(
        "turnout_prefix_evictions_total", "counter", "Entries removed from the index.", ("reason",), source="evictions"
    ),
    Metric("turnout_prefix_purges_total", "counter", "Slots purged from the index.", source="purges"),
    Metric(
        "turnout_prefix_mode",
        "gauge",
        "Knowledge of the cache: 0 own history, 1 degraded, 2 exact.",
        ("endpoint",),
        source="mode",
    ),
    Metric(
        "turnout_prefix_precision",
        "gauge",
        "Share of predicted cached tokens that came true.",
        ("endpoint",),
        source="precision",
    ),
    Metric(
        "turnout_prefix_predicted_tokens_total",
        "counter",
        "Cached tokens predicted, where the engine told the truth.",
        ("endpoint",),
        source="predicted",
    ),
    Metric(
        "turnout_prefix_realised_tokens_total",
        "counter",
        "Those of them that were cached.",
        ("endpoint",),
        source="realised",
    ),
    Metric(
        "turnout_kv_events_total",
        "counter",
        "KV events by what they were or what was wrong.",
        ("endpoint", "type"),
        source="kv_events",
    ),
    Metric(
        "turnout_prefix_mode_changes_total",
        "counter",
        "Changes of knowledge.",
        ("from", "to", "reason"),
        source="mode_changes",
    ),
    Metric("turnout_prefix_tokenize_total", "counter", "Texts for an engine to tokenise.", ("result",), "tokenized"),
    Metric("turnout_render_parity", "gauge", "1: /tokenize counts chats truly.", ("endpoint",), "render_parity"),
    Metric(
        "turnout_load_report_age_seconds", "gauge", "Age of the last load report.", ("endpoint",), source="report_age"
    ),
    Metric(
        "turnout_load_signal_lost_total",
        "counter",
        "Signals that were known and then missing.",
        ("endpoint", "signal"),
        source="signal_lost",
    ),
    Metric(
        "turnout_load_headers_total",
        "counter",
        "Answers that told of load in a header: taken, empty (no name that is known) or bad.",
        ("endpoint", "result"),
        source="load_headers",
    ),
    Metric(
        "turnout_load_estimate_error",
        "gauge",
        "Requests by which the reckoned load is off when the next report comes, on average.",
        ("endpoint", "signal"),
        source="load_errors",
    ),
)
"""Keys of the prefix index's stats; an absent key gives no sample."""

LEDGER: tuple[Metric, ...] = (
    Metric("turnout_ledger_rows_total", "counter", "Rows committed.", ("table",), source="rows"),
    Metric("turnout_ledger_dropped_total", "counter", "Facts given up.", ("table", "reason"), source="dropped"),
    Metric("turnout_ledger_queue_depth", "gauge", "Facts waiting for the writer.", source="queue_depth"),
    Metric("turnout_ledger_write_errors_total", "counter", "Batches that failed.", ("kind",), source="write_errors"),
    Metric("turnout_ledger_commits_total", "counter", "Transactions committed.", source="commits"),
    Metric("turnout_ledger_commit_seconds", "gauge", "Duration of the last transaction.", source="last_commit_s"),
    Metric("turnout_ledger_unpriced_total", "counter", "Attempts without a known price.", ("provider",), "unpriced"),
    Metric("turnout_ledger_down", "gauge", "1 while the database takes no batch.", source="down"),
    Metric("turnout_ledger_spool_memory_bytes", "gauge", "Batches kept in memory.", source="spool_memory_bytes"),
    Metric("turnout_ledger_spool_torn_total", "counter", "Torn tails cut off the spool.", source="spool_torn"),
    Metric("turnout_ledger_spool_bytes", "gauge", "Size of the spool.", source="spool_bytes"),
    Metric("turnout_ledger_spool_replayed_total", "counter", "Facts replayed from the spool.", source="spool_replayed"),
    Metric("turnout_ledger_recovered_total", "counter", "Calls recovered after a crash.", source="recovered"),
    Metric("turnout_ledger_duplicates_total", "counter", "Facts already stored.", ("table",), source="duplicates"),
    Metric("turnout_ledger_slots_taken", "gauge", "Requests whose row would survive a kill.", source="slots_taken"),
    Metric("turnout_ledger_slots_missed_total", "counter", "Requests served without a slot.", source="slots_missed"),
    Metric(
        "turnout_ledger_slots_unreadable_total", "counter", "Damaged slots after a crash.", source="slots_unreadable"
    ),
    Metric("turnout_ledger_snapshot_age_seconds", "gauge", "Age of the derived statistics.", source="snapshot_age_s"),
    Metric("turnout_ledger_derive_seconds", "gauge", "Duration of their last derivation.", source="derive_s"),
    Metric("turnout_ledger_process_restarts_total", "counter", "Restarts of its process.", source="process_restarts"),
    Metric("turnout_ledger_read_errors_total", "counter", "Queries that failed.", ("query",), source="read_errors"),
)
"""Keys of the ledger's stats (ledger §10); an absent key gives no sample."""

_DOOR = "turnout_coordinator_"
_AT_THE_DOOR: tuple[tuple[str, Kind, str, tuple[str, ...], str], ...] = (
    ("messages_total", "counter", "Valid messages by type.", ("type",), "messages"),
    ("invalid_total", "counter", "Messages not acted on, by type and reason.", ("type", "reason"), "invalid"),
    ("internal_errors_total", "counter", "Messages that met a fault of ours.", ("type",), "internal_errors"),
    (
        "unknown_sender_total",
        "counter",
        "Messages of peers that never introduced themselves.",
        (),
        "unknown_sender",
    ),
    ("muted_total", "counter", "Messages of muted strangers, dropped unread.", (), "muted"),
    ("unreachable_total", "counter", "Peers found gone: engine or client.", ("peer",), "unreachable"),
    ("active_engines", "gauge", "Engines at the door.", (), "active_engines"),
    ("clients", "gauge", "Clients known.", (), "clients"),
    ("open_requests", "gauge", "Requests at engines.", (), "open_requests"),
    ("pending", "gauge", "Requests that wait for an engine.", (), "pending"),
    ("state", "gauge", "1 for the state of the control signals.", ("state",), "state"),
    ("replies_dropped_total", "counter", "Late, unknown, foreign or aborted.", ("reason",), "replies_dropped"),
    ("accepted_total", "counter", "Requests accepted.", (), "accepted"),
    ("completed_total", "counter", "Requests that got their engine's final reply.", (), "completed"),
    ("aborted_total", "counter", "Requests aborted by their client.", (), "aborted"),
    ("resent_total", "counter", "Further attempts opened after an engine was lost.", (), "resent"),
    ("failed_total", "counter", "Requests ended without an engine's reply.", ("reason",), "failed"),
    ("exhausted_total", "counter", "Requests that lost as many engines as they may.", (), "exhausted"),
    ("registrations_total", "counter", "Engines that joined: new, again or adopted.", ("kind",), "registrations"),
    ("contested_total", "counter", "Registrations too frequent for restarts.", (), "contested"),
    (
        "clients_refused_total",
        "counter",
        "Greetings not answered because the house was full.",
        (),
        "clients_refused",
    ),
    ("signals_total", "counter", "Control signals carried out.", ("signal",), "signals"),
    ("lookups_total", "counter", "One per request: match, declined, stale, miss, no_hash.", ("result",), "lookups"),
    ("fallback_total", "counter", "Requests without the policy's own signal.", ("policy", "reason"), "fallback"),
    ("predicted_tokens_total", "counter", "Prompt tokens expected in the engines' caches.", (), "predicted_tokens"),
    ("realised_tokens_total", "counter", "Prompt tokens the engines found there.", (), "realised_tokens"),
    ("detokenize_failures_total", "counter", "Replies whose tokens gave no text.", (), "detokenize_failures"),
    ("hash_mismatches_total", "counter", "Engines that hash blocks otherwise.", (), "hash_mismatches"),
    ("index_entries", "gauge", "Blocks remembered.", (), "index_entries"),
    ("index_slots", "gauge", "Engine incarnations with an own bit.", (), "index_slots"),
    ("index_evictions_total", "counter", "Blocks forgotten.", ("reason",), "index_evictions"),
    ("index_purges_total", "counter", "Engines purged from the index.", (), "index_purges"),
    ("schedule_seconds", "histogram", "One pick of an engine.", (), "schedule"),
    (
        "message_seconds",
        "histogram",
        "One message from the socket until its answers are sent.",
        ("type",),
        "message",
    ),
)
COORDINATOR: tuple[Metric, ...] = tuple(
    Metric(_DOOR + name, kind, text, labels, source=source) for name, kind, text, labels, source in _AT_THE_DOOR
)
"""Keys of the coordinator door's stats; an absent key gives no sample."""

_CHOICES: tuple[tuple[str, Kind, str, tuple[str, ...], str], ...] = (
    ("selection_total", "counter", "Selections by how they came about.", ("reason", "preset", "model"), "selected"),
    ("selection_seconds", "histogram", "One selection, embedding included.", (), "selection"),
    ("embed_seconds", "histogram", "One text made a vector.", (), "embed"),
    ("embed_failures_total", "counter", "Selections without a score.", ("cause",), "embed_failure"),
    ("selection_dropped_total", "counter", "Models dropped by a filter.", ("reason",), "dropped"),
    ("pin_total", "counter", "Verdicts on session pins.", ("reason",), "pin"),
    ("bundle_info", "gauge", "1 for each loaded bundle.", ("version", "digest"), "bundles"),
    ("bundle_reloads_total", "counter", "Looks at the bundle directory.", ("result",), "reloads"),
    ("response_cache_lookups_total", "counter", "exact, semantic or miss.", ("result",), "lookup"),
    (
        "response_cache_bypass_total",
        "counter",
        "Requests kept out of the response cache, or out of its semantic look-ups only.",
        ("reason",),
        "bypass",
    ),
    ("response_cache_guard_rejections_total", "counter", "Near answers to another question.", ("kind",), "rejections"),
    ("response_cache_stores_total", "counter", "Answers offered: stored, unfit, too_large.", ("result",), "store"),
    ("response_cache_evictions_total", "counter", "Stored answers dropped.", ("reason",), "evictions"),
    ("response_cache_entries", "gauge", "Stored answers.", (), "entries"),
    ("response_cache_bytes", "gauge", "Their counted size.", (), "bytes"),
    ("response_cache_followers_total", "counter", "Requests that waited for an equal one.", ("result",), "follower"),
    ("response_cache_lookup_seconds", "histogram", "One look-up.", (), "looked"),
)
CHOICES: tuple[Metric, ...] = tuple(
    Metric("turnout_" + name, kind, text, labels, source=source) for name, kind, text, labels, source in _CHOICES
)
"""Keys of the stats of selection and response cache; absent where they are not configured."""

_DISAGG: tuple[tuple[str, Kind, str, tuple[str, ...], str], ...] = (
    (
        "decisions_total",
        "counter",
        "Requests split or served whole, by reason.",
        ("pool", "result", "reason"),
        "decisions",
    ),
    ("legs_total", "counter", "Ended legs; outcome is ok or the error kind.", ("endpoint", "phase", "outcome"), "legs"),
    ("failures_total", "counter", "Failures of legs by row of the failure table.", ("row", "flow"), "failures"),
    ("rerouted_total", "counter", "Attempts after the first whose legs were sent.", ("pool",), "rerouted"),
    ("reprefilled_total", "counter", "Prompts prefilled once more.", ("pool",), "reprefilled"),
    ("handle_reused_total", "counter", "Hand-overs given to another decode endpoint.", ("pool",), "handle_reused"),
    ("handover_empty_total", "counter", "Prefill answers without anything to fetch.", ("pool",), "handover_empty"),
    (
        "handover_refused_total",
        "counter",
        "Prefill answers that named a foreign address.",
        ("endpoint",),
        "handover_refused",
    ),
    ("lease_expired_total", "counter", "Hand-overs whose lease had passed.", ("pool",), "lease_expired"),
    ("aborts_total", "counter", "Legs closed by the router.", ("flow", "leg"), "aborts"),
    ("abort_seconds", "histogram", "From the cause to the closed leg.", ("flow", "leg"), "abort_seconds"),
    ("prefill_seconds", "histogram", "Prefill legs, from their start to their answer.", ("pool",), "prefill_seconds"),
    (
        "handover_seconds",
        "histogram",
        "From the prefill's answer to the decode endpoint that has the request.",
        ("pool",),
        "handover_seconds",
    ),
    (
        "first_byte_after_prefill_seconds",
        "histogram",
        "From the prefill's answer to the first output.",
        ("pool",),
        "first_byte_after_prefill_seconds",
    ),
    ("kv_orphaned_seconds_total", "counter", "Time that blocks stay pinned for nobody.", (), "orphaned"),
    ("rejected_total", "counter", "Refused by a full queue, by the role that was full.", ("reason",), "rejected"),
    ("pairs_quarantined", "gauge", "Pairs at rest after failed hand-overs.", (), "quarantined"),
    ("rooms_open", "gauge", "Bootstrap rooms in use.", (), "rooms"),
    ("queue_depth", "gauge", "Requests waiting in engines, by role.", ("role",), "queue_depth"),
    ("in_flight", "gauge", "Open legs and whole requests, by role.", ("role",), "in_flight"),
    ("handovers_total", "counter", "Hand-overs that came to an answer.", ("flow",), "handovers"),
    ("transfer_failures_total", "counter", "Hand-overs that failed or hung.", ("flow",), "transfer_failures"),
)
DISAGG: tuple[Metric, ...] = tuple(
    Metric("turnout_disagg_" + name, kind, text, labels, source=source) for name, kind, text, labels, source in _DISAGG
)
"""Keys of the stats of requests in two legs; absent while every endpoint does both."""

PROCESS: tuple[Metric, ...] = (
    Metric("turnout_build_info", "gauge", "Always 1; the labels say what runs.", ("version", "python")),
    Metric("turnout_log_dropped_total", "counter", "Log records lost to a slow sink.", source="dropped"),
    Metric("turnout_log_suppressed_total", "counter", "Log records over the rate of their event.", source="suppressed"),
)

METRICS: tuple[Metric, ...] = (
    REQUESTS + SCHEDULING + PLAIN + ENDPOINTS + PREFIX + LEDGER + COORDINATOR + CHOICES + DISAGG + PROCESS
)
BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}

_TITLES: tuple[tuple[str, tuple[Metric, ...]], ...] = (
    ("Requests", REQUESTS),
    ("Scheduling and prefix match", SCHEDULING),
    ("Connections and relay", PLAIN),
    ("Endpoints", ENDPOINTS),
    ("Prefix index", PREFIX),
    ("Ledger", LEDGER),
    ("Coordinator door", COORDINATOR),
    ("Selection and response cache", CHOICES),
    ("Prefill and decode legs", DISAGG),
    ("Process", PROCESS),
)


def page() -> str:
    """The reference tables of docs/metrics.md, from the catalogue."""
    parts = []
    for title, metrics in _TITLES:
        rows = [f"| `{m.name}` | {m.kind} | {', '.join(f'`{x}`' for x in m.labels)} | {m.help} |" for m in metrics]
        parts.append("\n".join([f"## {title}", "", "| Metric | Kind | Labels | Meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"
