"""Retired keys that nothing needs can be dropped: on PostgreSQL by grants and policies, in ``v0014_dropped_keys.sql``.

Compatible with the version before: it drops none.
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let jobs delete what is retired."""
    if op.get_context().dialect.name == "postgresql":
        op.get_bind().exec_driver_sql(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
