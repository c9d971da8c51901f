"""Run revisions on the connection that `upgrade.prepare` holds its lock with; there is no other way to run them."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
with context.begin_transaction():
    context.run_migrations()
