"""Versions of secrets, soft deletion, rotation periods, OAuth fields, and a MAC over what may be done with a secret.

Columns only, all nullable: the version before goes on writing rows without them. A secret that is deleted gives up its name (its
``name`` becomes its id) and its state (``deleted``), so that the version before neither serves it nor finds its name taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")
NULLABLE_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Add the columns, the indexes of the jobs, and on PostgreSQL what the jobs may do."""
    secret: tuple[sa.Column[Any], ...] = (
        sa.Column("rotation_period", sa.Integer(), nullable=True),
        sa.Column("rotate_at", TIME, nullable=True),
        sa.Column("oauth", NULLABLE_JSON, nullable=True),
        sa.Column("reference", NULLABLE_JSON, nullable=True),
        sa.Column("fallback_version", sa.Integer(), nullable=True),
        sa.Column("fallback_until", TIME, nullable=True),
        sa.Column("deleted_at", TIME, nullable=True),
        sa.Column("deleted_name", sa.String(200), nullable=True),
        sa.Column("mac", sa.LargeBinary(), nullable=True),
    )
    version: tuple[sa.Column[Any], ...] = (
        sa.Column("egress", NULLABLE_JSON, nullable=True),
        sa.Column("fetchable", sa.Boolean(), nullable=True),
        sa.Column("oauth_envelope", sa.LargeBinary(), nullable=True),
        sa.Column("preview", sa.String(200), nullable=True),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("retired_at", TIME, nullable=True),
    )
    for table, columns in (("secret", secret), ("secret_version", version)):
        for column in columns:
            op.add_column(table, column)
    for table, name in (("secret", "deleted_at"), ("secret_version", "retired_at")):
        looked_for = sa.text(f"{name} IS NOT NULL")
        op.create_index(f"ix_{table}_{name}", table, [name], sqlite_where=looked_for, postgresql_where=looked_for)
    if op.get_context().dialect.name == "postgresql":
        op.get_bind().exec_driver_sql(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
