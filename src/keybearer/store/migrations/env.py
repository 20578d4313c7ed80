"""What Alembic runs: it is handed an open connection, inside the transaction that holds the migration lock."""

from __future__ import annotations

from alembic import context

from keybearer.store.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
