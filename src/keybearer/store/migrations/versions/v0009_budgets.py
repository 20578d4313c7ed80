"""Budgets and limits, and what calls reserved of them; PostgreSQL's grants and policies are in ``v0009_budgets.sql``.

Compatible with the version before: it knows neither table. While it serves, limits are not kept by it.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "budget",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("subject", sa.String(16), nullable=False),
        sa.Column("subject_id", sa.String(64), nullable=False),
        sa.Column("token_id", sa.String(12), nullable=True),
        sa.Column("secret_id", sa.Uuid(), nullable=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("is_hard", sa.Boolean(), nullable=False),
        sa.Column("by_admin", sa.Boolean(), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["owner.id"], name="fk_budget_owner_id_owner", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["token_id"], ["access_token.id"], name="fk_budget_token_id_access_token", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["secret_id"], ["secret.id"], name="fk_budget_secret_id_secret", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_budget"),
        sa.UniqueConstraint("subject", "subject_id", "kind", "by_admin", name="uq_budget_subject_subject_id_kind_by_admin"),
    )
    for name in ("owner_id", "token_id", "secret_id"):
        op.create_index(f"ix_budget_{name}", "budget", [name])
    op.create_table(
        "reservation",
        sa.Column("request_id", sa.String(40), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=True),
        sa.Column("micro_usd", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("request_id", name="pk_reservation"),
    )
    op.create_index("ix_reservation_at", "reservation", ["at"])
    if op.get_context().dialect.name == "postgresql":
        op.get_bind().exec_driver_sql(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
