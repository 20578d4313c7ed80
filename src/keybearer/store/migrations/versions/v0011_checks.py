"""Keys are tested on a schedule: how often, when next and by whom, what the last test found, and since when a key is refused.

Columns of ``secret`` only, all nullable: the version before goes on writing rows without them, and checks nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")


def upgrade() -> None:
    """Add the columns, the indexes of the jobs, and on PostgreSQL what jobs may write."""
    columns: tuple[sa.Column[Any], ...] = (
        sa.Column("check_every", sa.Integer(), nullable=True),
        sa.Column("check_at", TIME, nullable=True),
        sa.Column("check_runner", sa.Uuid(), nullable=True),
        sa.Column("check_failures", sa.Integer(), nullable=True),
        sa.Column("checked_at", TIME, nullable=True),
        sa.Column("check_status", sa.String(16), nullable=True),
        sa.Column("check_reason", sa.Text(), nullable=True),
        sa.Column("failed_at", TIME, nullable=True),
    )
    for column in columns:
        op.add_column("secret", column)
    for name in ("check_at", "failed_at"):
        looked_for = sa.text(f"{name} IS NOT NULL")
        op.create_index(f"ix_secret_{name}", "secret", [name], sqlite_where=looked_for, postgresql_where=looked_for)
    if op.get_context().dialect.name == "postgresql":
        op.get_bind().exec_driver_sql(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
