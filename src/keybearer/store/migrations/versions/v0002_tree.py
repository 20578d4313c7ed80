"""The sealed tree over the audit trail: its tiles, what its leaves are, signed checkpoints (policies: ``v0002_tree.sql``)."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "audit_tree",
        sa.Column("singleton", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("key_envelope", sa.LargeBinary(), nullable=False),
        sa.Column("holder", sa.Uuid(), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("leased_until", TIME, nullable=True),
        sa.Column("pushed_size", sa.BigInteger(), nullable=False),
        sa.Column("push_error", sa.String(200), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.CheckConstraint("singleton = 1", name=op.f("ck_audit_tree_singleton")),
        sa.PrimaryKeyConstraint("singleton", name="pk_audit_tree"),
    )
    op.create_table(
        "audit_tile",
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("hashes", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "number", name="pk_audit_tile"),
    )
    op.create_table(
        "audit_run",
        sa.Column("first_index", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("writer_id", sa.Uuid(), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("first_index", name="pk_audit_run"),
        sa.UniqueConstraint("writer_id", "first_seq", name="uq_audit_run_writer_id_first_seq"),
    )
    op.create_table(
        "audit_sealed",
        sa.Column("writer_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("h", sa.LargeBinary(), nullable=False),
        sa.Column("redacted_seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("writer_id", name="pk_audit_sealed"),
    )
    op.create_table(
        "audit_note",
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("size", name="pk_audit_note"),
    )
    if op.get_context().dialect.name == "postgresql":
        op.get_bind().exec_driver_sql(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
