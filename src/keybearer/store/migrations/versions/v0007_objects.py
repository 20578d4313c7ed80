"""Which objects at providers (files, batches, stored responses) were made by whom with a key of several people.

Compatible with the version before: it does not know the table, and serves such keys no call that names an object.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")


def upgrade() -> None:
    """Create the table, and on PostgreSQL say who sees what of it."""
    op.create_table(
        "gateway_object",
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("origin", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("object_id", sa.String(200), nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("token_id", sa.String(12), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name="fk_gateway_object_user_id_user_account", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("owner_id", "origin", "kind", "object_id", name="pk_gateway_object"),
    )
    op.create_index("ix_gateway_object_user_id", "gateway_object", ["user_id"])
    op.create_index("ix_gateway_object_created_at", "gateway_object", ["created_at"])
    if op.get_context().dialect.name == "postgresql":
        op.get_bind().exec_driver_sql(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
