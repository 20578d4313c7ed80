"""What people say of a model beyond its name: address, key, aliases, defaults; and which secret is a model's own.

Columns only, all nullable: the version before goes on writing rows without them, which are bare names. Their policies are the
tables' own.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")
NULLABLE_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Add the columns."""
    columns: tuple[sa.Column[Any], ...] = (
        sa.Column("kind", sa.String(16), nullable=True),
        sa.Column("base_url", sa.Text(), nullable=True),
        sa.Column("auth_style", sa.String(16), nullable=True),
        sa.Column("auth_header", sa.String(64), nullable=True),
        sa.Column("secret_id", sa.Uuid(), nullable=True),
        sa.Column("parameters", sa.Text(), nullable=True),
        sa.Column("aliases", NULLABLE_JSON, nullable=True),
        sa.Column("updated_at", TIME, nullable=True),
        sa.Column("mac", sa.LargeBinary(), nullable=True),
    )
    for column in columns:
        op.add_column("model", column)
    op.add_column("secret", sa.Column("model_id", sa.Uuid(), nullable=True))
