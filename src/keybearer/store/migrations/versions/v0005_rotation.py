"""Rotation of keys: what is under way, which processes hold which root key, and when a retired one was empty."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")


def upgrade() -> None:
    """Create the tables; the version before neither knows nor needs them."""
    op.add_column("root_key", sa.Column("emptied_at", TIME, nullable=True))
    op.create_table(
        "key_rotation",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("step", sa.String(16), nullable=False),
        sa.Column("provider", sa.String(32), nullable=False),
        sa.Column("root_key_id", sa.Uuid(), nullable=True),
        sa.Column("owner_id", sa.Uuid(), nullable=True),
        sa.Column("place", sa.Uuid(), nullable=True),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("unreadable", sa.BigInteger(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=False),
        sa.Column("runner", sa.Uuid(), nullable=True),
        sa.Column("leased_until", TIME, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.CheckConstraint("kind IN ('root','owner','owners')", name=op.f("ck_key_rotation_kind")),
        sa.CheckConstraint("state IN ('running','finished')", name=op.f("ck_key_rotation_state")),
        sa.PrimaryKeyConstraint("id", name="pk_key_rotation"),
    )
    running = sa.text("state = 'running'")
    op.create_index(
        "uq_key_rotation_running", "key_rotation", ["state"], unique=True, sqlite_where=running, postgresql_where=running
    )
    op.create_table(
        "key_holder",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("seen_at", TIME, nullable=False),
        sa.Column("root_key_id", sa.Uuid(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_key_holder"),
    )
    if op.get_context().dialect.name == "postgresql":
        op.get_bind().exec_driver_sql(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
