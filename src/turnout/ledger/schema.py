"""The tables as they are at the newest revision; the migrations lead here and a test compares the two.

Column names, units and nullability are ledger §2 and §3. Importing this module loads SQLAlchemy (a quarter of a
second), so only the ledger's own threads and readers do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from turnout.ledger.rows import DECISION_MAX_BYTES

if TYPE_CHECKING:
    from sqlalchemy.sql.type_api import TypeEngine


metadata = sa.MetaData()

INT: TypeEngine[int] = sa.BigInteger()
# SQLite gives automatic row ids to a primary key declared exactly INTEGER, and to nothing else.
SEQ: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FLAG: TypeEngine[bool] = sa.Boolean(create_constraint=False).with_variant(sa.Integer(), "sqlite")


def _text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text(), nullable=False) for name in names]


def _text_or_null(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text()) for name in names]


def _int(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, INT, nullable=False) for name in names]


def _int_or_null(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, INT) for name in names]


def _flag(*names: str) -> list[sa.Column[bool]]:
    return [sa.Column(name, FLAG, nullable=False) for name in names]


def _flag_checks(table: str, *names: str) -> list[sa.CheckConstraint]:
    checks = (sa.CheckConstraint(f"{name} IN (0, 1)", name=f"ck_{table}_{name}") for name in names)
    return [check.ddl_if(dialect="sqlite") for check in checks]


def _money_checks(table: str, *names: str) -> list[sa.CheckConstraint]:
    return [sa.CheckConstraint(f"{name} >= 0", name=f"ck_{table}_{name}") for name in names]


# PostgreSQL does not check these two references (revision 0002): the writer takes both ids from its own transaction.
def _route(*, nullable: bool = True) -> sa.Column[int]:
    return sa.Column("route_id", INT, sa.ForeignKey("routes.route_id"), nullable=nullable)


def _writer() -> sa.Column[int]:
    return sa.Column("writer_id", INT, sa.ForeignKey("writers.writer_id"), nullable=False)


routes = sa.Table(
    "routes",
    metadata,
    sa.Column("route_id", SEQ, primary_key=True),
    *(sa.Column(name, sa.Text(), nullable=False, server_default="") for name in ("provider", "model", "replica")),
    sa.UniqueConstraint("provider", "model", "replica", name="uq_routes_key"),
)

writers = sa.Table(
    "writers",
    metadata,
    sa.Column("writer_id", SEQ, primary_key=True),
    *_text("router_id"),
    *_int("started_at_ms"),
)

calls = sa.Table(
    "calls",
    metadata,
    sa.Column("seq", SEQ, primary_key=True),
    *_text("call_id", "request_id", "router_id"),
    _writer(),
    *_int("started_at_ms", "ended_at_ms", "recorded_at_ms"),
    *_int_or_null("queue_ms", "decide_us", "ttft_ms"),
    *_int("e2e_ms"),
    *_text("tenant", "key_id"),
    *_text_or_null("session_id", "user_id"),
    *_text("dialect", "path"),
    *_flag("stream"),
    *_text("requested_model", "selected_model", "reason", "bundle_version", "knobs_hash", "clusters"),
    *_int_or_null("score_e9"),
    _route(),
    *_int("attempts_n"),
    *_int_or_null("prefix_blocks", "prefix_matched_blocks"),
    *_text("outcome", "class"),
    *_int("http_status"),
    *_text("error_kind"),
    *_flag("committed", "resumed", "hedged", "recovered"),
    *_int_or_null("est_tokens", "tokens_in", "tokens_out", "tokens_cached", "tokens_cache_write", "tokens_reasoning"),
    *_text("usage_source"),
    *_flag("tools_requested", "tools_emitted"),
    *_text("cache_match"),
    *_int_or_null("cache_similarity_e3"),
    *_text_or_null("cache_source"),
    *_int_or_null("saved_nusd", "cost_nusd"),
    *_text("cost_basis"),
    *_int_or_null("reserved_nusd"),
    sa.UniqueConstraint("call_id", name="uq_calls_call_id"),
    *_money_checks("calls", "saved_nusd", "cost_nusd", "reserved_nusd"),
    *_flag_checks("calls", "stream", "committed", "resumed", "hedged", "recovered", "tools_requested", "tools_emitted"),
)
sa.Index(
    "ix_calls_session",
    calls.c.tenant,
    calls.c.session_id,
    calls.c.ended_at_ms.desc(),
    calls.c.seq.desc(),
    sqlite_where=calls.c.session_id.is_not(None),
    postgresql_where=calls.c.session_id.is_not(None),
)
sa.Index("ix_calls_tenant_ended", calls.c.tenant, calls.c.ended_at_ms)
sa.Index("ix_calls_ended", calls.c.ended_at_ms)
# SQLite has one writer that never stamps backwards: `seq` is the order of (recorded_at_ms, seq) there (ADR 0011).
sa.Index("ix_calls_recorded", calls.c.recorded_at_ms, calls.c.seq).ddl_if(dialect="postgresql")

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("seq", SEQ, primary_key=True),
    *_text("call_id"),
    *_int("attempt_no"),
    *_text("phase"),
    _route(),
    *_text("kind"),
    _writer(),
    *_int("started_at_ms", "ended_at_ms", "recorded_at_ms"),
    *_int_or_null("e2e_ms", "ttft_ms"),
    *_flag("ok", "counted"),
    *_text("error_kind"),
    *_int_or_null("http_status"),
    *_flag("committed"),
    *_int_or_null("tokens_in", "tokens_out", "tokens_cached", "tokens_cache_write"),
    *_text("usage_source"),
    *_flag("tools_requested", "tools_emitted"),
    *_int_or_null("cost_nusd"),
    *_text("cost_basis"),
    *_int_or_null("list_nusd", "price_version"),
    sa.UniqueConstraint("call_id", "attempt_no", "phase", name="uq_attempts_key"),
    *_money_checks("attempts", "cost_nusd", "list_nusd"),
    *_flag_checks("attempts", "ok", "counted", "committed", "tools_requested", "tools_emitted"),
)
sa.Index("ix_attempts_ended", attempts.c.ended_at_ms)
sa.Index("ix_attempts_route", attempts.c.route_id, attempts.c.ended_at_ms.desc(), attempts.c.seq.desc())
sa.Index("ix_attempts_recorded", attempts.c.recorded_at_ms, attempts.c.seq).ddl_if(dialect="postgresql")

attempt_buckets = sa.Table(
    "attempt_buckets",
    metadata,
    *_int("bucket_ms"),
    _route(nullable=False),
    _writer(),
    *_int("n", "counted_n", "ok_n", "e2e_n", "e2e_sum_ms", "ttft_n", "ttft_sum_ms", "tools_n", "tools_emitted_n"),
    sa.PrimaryKeyConstraint("bucket_ms", "route_id", "writer_id", name="pk_attempt_buckets"),
    sqlite_with_rowid=False,
)

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("call_id", sa.Text(), primary_key=True),
    *_text("json"),
    sa.CheckConstraint(f"length(json) <= {DECISION_MAX_BYTES}", name="ck_decisions_json"),
)

# Buckets that a transaction changed long after they ended: readers who summed them up start over (ADR 0010).
late_buckets = sa.Table(
    "late_buckets",
    metadata,
    sa.Column("seq", SEQ, primary_key=True),
    *_int("recorded_at_ms", "bucket_ms"),
    _writer(),
)
sa.Index("ix_late_buckets_recorded", late_buckets.c.recorded_at_ms)

price_versions = sa.Table(
    "price_versions",
    metadata,
    sa.Column("version", SEQ, primary_key=True),
    *_int("effective_from_ms", "created_at_ms"),
    *_text("source", "note"),
)

prices = sa.Table(
    "prices",
    metadata,
    sa.Column("version", INT, sa.ForeignKey("price_versions.version"), nullable=False),
    *_text("provider", "model"),
    *_int_or_null("p_in", "p_out", "p_cached", "p_write", "above_tokens", "p_in_above", "p_out_above"),
    sa.PrimaryKeyConstraint("version", "provider", "model", name="pk_prices"),
    *_money_checks("prices", "p_in", "p_out", "p_cached", "p_write", "p_in_above", "p_out_above"),
)

rerated = sa.Table(
    "rerated",
    metadata,
    *_int("rerate_id"),
    *_text("call_id"),
    *_int("attempt_no"),
    *_text("phase"),
    *_int_or_null("cost_nusd", "list_nusd"),
    sa.PrimaryKeyConstraint("rerate_id", "call_id", "attempt_no", "phase", name="pk_rerated"),
    *_money_checks("rerated", "cost_nusd", "list_nusd"),
)
sa.Index("ix_rerated_call", rerated.c.call_id)

usage_hourly = sa.Table(
    "usage_hourly",
    metadata,
    *_int("hour_ms"),
    *_text("tenant", "key_id", "provider", "model", "requested_model", "outcome"),
    *_int("calls", "tokens_in", "tokens_out", "tokens_cached", "cost_nusd", "priced_n", "e2e_n", "e2e_sum_ms"),
    *_int("last_at_ms"),
    sa.PrimaryKeyConstraint(
        *("hour_ms", "tenant", "key_id", "provider", "model", "requested_model", "outcome"), name="pk_usage_hourly"
    ),
)

rollup_state = sa.Table(
    "rollup_state",
    metadata,
    sa.Column("name", sa.Text(), primary_key=True),
    *_int("covered_from_ms", "covered_until_ms"),
)

# What calls of a key that ended on a day (UTC) have cost: moves with the row of the call, and with `budget_moves`.
budgets = sa.Table(
    "budgets",
    metadata,
    *_text("tenant", "key_id"),
    *_int("day_ms", "spent_nusd"),
    sa.PrimaryKeyConstraint("tenant", "key_id", "day_ms", name="pk_budgets"),
    *_money_checks("budgets", "spent_nusd"),
)
sa.Index("ix_budgets_day", budgets.c.day_ms)

# By how much an attempt counts more, or less, in its key's budget than it was billed: since its last re-rating, by this
# version. The instant is the end of its call, which names the day of the budget.
budget_moves = sa.Table(
    "budget_moves",
    metadata,
    *_text("call_id"),
    *_int("attempt_no"),
    *_text("phase"),
    *_int("ended_at_ms", "price_version", "moved_nusd"),
    sa.PrimaryKeyConstraint("call_id", "attempt_no", "phase", name="pk_budget_moves"),
)
sa.Index("ix_budget_moves_ended", budget_moves.c.ended_at_ms)

dirty_hours = sa.Table("dirty_hours", metadata, sa.Column("hour_ms", INT, primary_key=True, autoincrement=False))
