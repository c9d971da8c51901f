"""What derived statistics, prices and hourly sums need, and fewer indexes on the way of a call.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

metadata = sa.MetaData()

INT = sa.BigInteger()
SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text(), nullable=False) for name in names]


def _int(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, INT, nullable=False) for name in names]


def _int_or_null(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, INT) for name in names]


def _money_checks(table: str, *names: str) -> list[sa.CheckConstraint]:
    return [sa.CheckConstraint(f"{name} >= 0", name=f"ck_{table}_{name}") for name in names]


# Only the column that others refer to: the table itself is revision 0001's.
_writers = sa.Table("writers", metadata, sa.Column("writer_id", SEQ, primary_key=True))

# Buckets that a transaction changed long after they ended: readers who summed them up start over (ADR 0010).
late_buckets = sa.Table(
    "late_buckets",
    metadata,
    sa.Column("seq", SEQ, primary_key=True),
    *_int("recorded_at_ms", "bucket_ms"),
    sa.Column("writer_id", INT, sa.ForeignKey("writers.writer_id"), nullable=False),
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

dirty_hours = sa.Table("dirty_hours", metadata, sa.Column("hour_ms", INT, primary_key=True, autoincrement=False))


def upgrade() -> None:
    """Create the new tables and replace the indexes."""
    bind = op.get_bind()
    metadata.create_all(bind, tables=[t for t in metadata.sorted_tables if t is not _writers], checkfirst=False)
    op.drop_index("ix_attempts_stats", "attempts")
    op.create_index("ix_attempts_ended", "attempts", ["ended_at_ms"])
    if bind.dialect.name == "sqlite":
        op.drop_index("ix_calls_recorded", "calls")
        op.drop_index("ix_attempts_recorded", "attempts")
    else:
        # Checking two references of every row is a fifth of the server's work; the ids come from the same transaction.
        for table in ("calls", "attempts", "attempt_buckets"):
            for column in ("route_id", "writer_id"):
                op.drop_constraint(f"{table}_{column}_fkey", table, type_="foreignkey")
