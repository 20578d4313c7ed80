"""Reminders of what expires or should be replaced, each a row once a person, occasion and channel; and who wants which by mail.

Compatible with the version before: it knows neither table nor column, and reminds nobody.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")
NULLABLE_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Create table, column and the indexes of the job, and on PostgreSQL say who sees what."""
    op.add_column("user_account", sa.Column("mailed", NULLABLE_JSON, nullable=True))
    op.create_table(
        "notification",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("secret_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("due_at", TIME, nullable=False),
        sa.Column("days", sa.Integer(), nullable=False),
        sa.Column("channel", sa.String(16), nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", TIME, nullable=False),
        sa.Column("runner", sa.Uuid(), nullable=True),
        sa.Column("read_at", TIME, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name="fk_notification_user_id_user_account", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_notification"),
        sa.UniqueConstraint("user_id", "secret_id", "kind", "due_at", "days", "channel", name="uq_notification_occasion"),
    )
    pending = sa.text("state = 'pending'")
    op.create_index("ix_notification_next_at", "notification", ["next_at"], sqlite_where=pending, postgresql_where=pending)
    for name in ("expires_at", "rotate_at"):
        looked_for = sa.text(f"{name} IS NOT NULL")
        op.create_index(f"ix_secret_{name}", "secret", [name], sqlite_where=looked_for, postgresql_where=looked_for)
    if op.get_context().dialect.name == "postgresql":
        op.get_bind().exec_driver_sql(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
