"""What keys have spent per day, settled with their calls.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Calls that are there already have been billed; what retention deleted is older than most budgets look back.
_FILL = sa.text(
    "INSERT INTO budgets (tenant, key_id, day_ms, spent_nusd)"
    " SELECT tenant, key_id, ended_at_ms - ended_at_ms % 86400000 AS day, SUM(cost_nusd) FROM calls"
    " WHERE cost_nusd > 0 GROUP BY tenant, key_id, day"
)


def upgrade() -> None:
    """Create the table and settle the calls that are stored."""
    op.create_table(
        "budgets",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("day_ms", sa.BigInteger(), nullable=False),
        sa.Column("spent_nusd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key_id", "day_ms", name="pk_budgets"),
        sa.CheckConstraint("spent_nusd >= 0", name="ck_budgets_spent_nusd"),
    )
    op.create_index("ix_budgets_day", "budgets", ["day_ms"])
    op.get_bind().execute(_FILL)
