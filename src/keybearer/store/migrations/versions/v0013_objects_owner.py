"""An object at a provider goes with the owner whose key it was made with, as all that has an owner does.

Rows whose owner is gone are dropped: with the key, nobody reaches those objects any more. Compatible with the version before, which
writes no others.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")
KEY = "fk_gateway_object_owner_id_owner"
ORPHANS = "owner_id NOT IN (SELECT id FROM owner)"
INDEXES = {"ix_gateway_object_user_id": "user_id", "ix_gateway_object_created_at": "created_at"}


def upgrade() -> None:
    """Add the foreign key; SQLite has it in a table made anew only."""
    if op.get_context().dialect.name == "postgresql":
        # Forced policies hold the owner too: for this transaction, which has both tables for itself, they do not.
        for table in ("gateway_object", "owner"):
            op.execute(f"ALTER TABLE public.{table} NO FORCE ROW LEVEL SECURITY")
        op.execute(f"DELETE FROM public.gateway_object WHERE {ORPHANS}")  # noqa: S608  # our own words
        op.create_foreign_key(KEY, "gateway_object", "owner", ["owner_id"], ["id"], ondelete="CASCADE")
        for table in ("gateway_object", "owner"):
            op.execute(f"ALTER TABLE public.{table} FORCE ROW LEVEL SECURITY")
        return
    for name in INDEXES:
        op.drop_index(name, "gateway_object")
    op.rename_table("gateway_object", "gateway_object_before")
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
        sa.ForeignKeyConstraint(["owner_id"], ["owner.id"], name=KEY, ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name="fk_gateway_object_user_id_user_account", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("owner_id", "origin", "kind", "object_id", name="pk_gateway_object"),
    )
    columns = "owner_id, origin, kind, object_id, provider, user_id, token_id, mac, created_at"
    copied = f"INSERT INTO gateway_object ({columns}) SELECT {columns} FROM gateway_object_before WHERE NOT {ORPHANS}"  # noqa: S608  # our own words
    op.execute(copied)
    op.drop_table("gateway_object_before")
    for name, column in INDEXES.items():
        op.create_index(name, "gateway_object", [column])
