"""OAuth tokens are refreshed: when, with which outcome, and by whom at the moment.

Columns of ``secret`` only, all nullable, under the table's own policies: the version before goes on writing rows without them.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")


def upgrade() -> None:
    """Add the columns, and the index of the job."""
    columns: tuple[sa.Column[Any], ...] = (
        sa.Column("token_expires_at", TIME, nullable=True),
        sa.Column("refresh_at", TIME, nullable=True),
        sa.Column("refresh_attempts", sa.Integer(), nullable=True),
        sa.Column("refresh_problem", sa.Text(), nullable=True),
        sa.Column("refresh_until", TIME, nullable=True),
        sa.Column("refresh_fence", sa.BigInteger(), nullable=True),
    )
    for column in columns:
        op.add_column("secret", column)
    due = sa.text("refresh_at IS NOT NULL")
    op.create_index("ix_secret_refresh_at", "secret", ["refresh_at"], sqlite_where=due, postgresql_where=due)
