"""Where people are told by signed webhooks what reminders tell: an address and a signing key for each, sealed.

Compatible with the version before: it does not know the table, and tells nobody this way.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")
NULLABLE_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Create the table, and on PostgreSQL say who sees what."""
    op.create_table(
        "reminder_hook",
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("owner_key_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("preview", sa.String(300), nullable=False),
        sa.Column("kinds", NULLABLE_JSON, nullable=True),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["user_account.id"], name="fk_reminder_hook_owner_id_user_account", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["owner_id", "owner_key_id"],
            ["owner_key.owner_id", "owner_key.id"],
            name="fk_reminder_hook_owner_id_owner_key_id_owner_key",
            deferrable=True,
            initially="DEFERRED",
        ),
        sa.PrimaryKeyConstraint("owner_id", name="pk_reminder_hook"),
    )
    op.create_index("ix_reminder_hook_owner_key_id", "reminder_hook", ["owner_key_id"])
    if op.get_context().dialect.name == "postgresql":
        op.get_bind().exec_driver_sql(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
