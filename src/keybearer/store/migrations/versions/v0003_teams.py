"""Teams, their members, and secrets shared with them; PostgreSQL's grants and policies are in ``v0003_teams.sql``.

Compatible with the version before: it knows none of the new tables, and the new column of ``secret`` has a default.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")


def upgrade() -> None:
    """Add the tables and the column."""
    _teams()
    _shares()
    op.add_column("secret", sa.Column("fallback_allowed", sa.Boolean(), nullable=False, server_default=sa.false()))
    if op.get_context().dialect.name == "postgresql":
        script = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
        op.get_bind().exec_driver_sql(script.replace("%", "%%"))  # psycopg's sign for a parameter


def _teams() -> None:
    op.create_table(
        "team",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["id"], ["owner.id"], name="fk_team_id_owner", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_team"),
    )
    op.create_table(
        "team_member",
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("added_by", sa.Uuid(), nullable=False),
        sa.Column("accepted_at", TIME, nullable=True),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.CheckConstraint("role IN ('owner','admin','member')", name=op.f("ck_team_member_role")),
        sa.ForeignKeyConstraint(["team_id"], ["team.id"], name="fk_team_member_team_id_team", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user_id"], ["user_account.id"], name="fk_team_member_user_id_user_account", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("team_id", "user_id", name="pk_team_member"),
    )
    op.create_index("ix_team_member_user_id", "team_member", ["user_id"])


def _shares() -> None:
    op.create_table(
        "secret_share",
        sa.Column("secret_id", sa.Uuid(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("grade", sa.String(16), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.CheckConstraint("grade IN ('use','manage')", name=op.f("ck_secret_share_grade")),
        sa.ForeignKeyConstraint(
            ["owner_id", "secret_id"],
            ["secret.owner_id", "secret.id"],
            name="fk_secret_share_owner_id_secret_id_secret",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["team_id"], ["team.id"], name="fk_secret_share_team_id_team", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("secret_id", "team_id", name="pk_secret_share"),
    )
    op.create_index("ix_secret_share_owner_id", "secret_share", ["owner_id"])
    op.create_index("ix_secret_share_team_id", "secret_share", ["team_id"])
