"""What re-ratings moved budgets by, attempt by attempt; re-rated costs are found by their call, to go with it.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and the index."""
    op.create_table(
        "budget_moves",
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("attempt_no", sa.BigInteger(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("price_version", sa.BigInteger(), nullable=False),
        sa.Column("moved_nusd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("call_id", "attempt_no", "phase", name="pk_budget_moves"),
    )
    op.create_index("ix_budget_moves_ended", "budget_moves", ["ended_at_ms"])
    op.create_index("ix_rerated_call", "rerated", ["call_id"])
