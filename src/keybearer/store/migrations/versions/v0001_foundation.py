"""The first tables, with PostgreSQL's roles, grants and policies beside them (``v0001_postgresql.sql``)."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(32), "sqlite")
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
NULLABLE_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Build everything in an empty database."""
    _keys()
    _people()
    _proofs()
    _registry()
    _secrets()
    _records()
    _usage()
    _changes()
    if op.get_context().dialect.name == "postgresql":
        script = Path(__file__).with_name("v0001_postgresql.sql").read_text(encoding="utf-8")
        op.get_bind().exec_driver_sql(script.replace("%", "%%"))  # psycopg's sign for a parameter


def _keys() -> None:
    """Create the deployment and the chain of keys: root keys seal owner keys."""
    op.create_table(
        "deployment",
        sa.Column("singleton", sa.Integer(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("row_mac_key", sa.LargeBinary(), nullable=True),
        sa.Column("frozen_at", TIME, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.CheckConstraint("singleton = 1", name=op.f("ck_deployment_singleton")),
        sa.PrimaryKeyConstraint("singleton", name="pk_deployment"),
    )
    op.create_table(
        "root_key",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("provider", sa.String(32), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("proof", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.CheckConstraint("state IN ('staged','active','retired')", name=op.f("ck_root_key_state")),
        sa.PrimaryKeyConstraint("id", name="pk_root_key"),
    )
    op.create_table(
        "owner",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.CheckConstraint("kind IN ('user','team','system')", name=op.f("ck_owner_kind")),
        sa.PrimaryKeyConstraint("id", name="pk_owner"),
    )
    op.create_table(
        "owner_key",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("root_key_id", sa.Uuid(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["owner.id"], name="fk_owner_key_owner_id_owner", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["root_key_id"], ["root_key.id"], name="fk_owner_key_root_key_id_root_key"),
        sa.CheckConstraint("state IN ('active','retired')", name=op.f("ck_owner_key_state")),
        sa.PrimaryKeyConstraint("id", name="pk_owner_key"),
        sa.UniqueConstraint("owner_id", "id", name="uq_owner_key_owner_id_id"),
        sa.UniqueConstraint("owner_id", "version", name="uq_owner_key_owner_id_version"),
    )
    op.create_index("ix_owner_key_owner_id", "owner_key", ["owner_id"])
    op.create_index("ix_owner_key_root_key_id", "owner_key", ["root_key_id"])


def _people() -> None:
    """Create accounts, and links that make them."""
    op.create_table(
        "user_account",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.String(320), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("fallback_allowed", sa.Boolean(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["id"], ["owner.id"], name="fk_user_account_id_owner", ondelete="CASCADE"),
        sa.CheckConstraint("role IN ('admin','member')", name=op.f("ck_user_account_role")),
        sa.PrimaryKeyConstraint("id", name="pk_user_account"),
        sa.UniqueConstraint("email", name="uq_user_account_email"),
    )
    op.create_table(
        "one_time_link",
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("used_at", TIME, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("token_hash", name="pk_one_time_link"),
    )


def _proofs() -> None:
    """Create what proves who calls."""
    op.create_table(
        "session",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("ip", sa.String(64), nullable=False),
        sa.Column("user_agent", sa.String(256), nullable=False),
        sa.Column("last_seen_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["user_account.id"], name="fk_session_user_id_user_account", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_session"),
        sa.UniqueConstraint("token_hash", name="uq_session_token_hash"),
    )
    op.create_index("ix_session_user_id", "session", ["user_id"])
    op.create_table(
        "access_token",
        sa.Column("id", sa.String(12), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("scopes", JSON, nullable=False),
        sa.Column("allowed_providers", NULLABLE_JSON, nullable=True),
        sa.Column("allowed_models", NULLABLE_JSON, nullable=True),
        sa.Column("ip_allowlist", JSON, nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name="fk_access_token_user_id_user_account", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_access_token"),
    )
    op.create_index("ix_access_token_user_id", "access_token", ["user_id"])


def _registry() -> None:
    """Create providers and models that admins and users add."""
    op.create_table(
        "provider",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("is_predefined", sa.Boolean(), nullable=False),
        sa.Column("display_name", sa.String(200), nullable=False),
        sa.Column("base_url", sa.Text(), nullable=False),
        sa.Column("auth_style", sa.String(16), nullable=False),
        sa.Column("auth_header", sa.String(64), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["owner.id"], name="fk_provider_owner_id_owner", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_provider"),
        sa.UniqueConstraint("owner_id", "id", name="uq_provider_owner_id_id"),
        sa.UniqueConstraint("owner_id", "name", name="uq_provider_owner_id_name"),
    )
    op.create_index("ix_provider_owner_id", "provider", ["owner_id"])
    op.create_table(
        "model",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("display_name", sa.String(200), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["owner.id"], name="fk_model_owner_id_owner", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_model"),
        sa.UniqueConstraint("owner_id", "provider", "name", name="uq_model_owner_id_provider_name"),
    )
    op.create_index("ix_model_owner_id", "model", ["owner_id"])


def _secrets() -> None:
    """Create secrets and their sealed values."""
    op.create_table(
        "secret",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("owner_kind", sa.String(16), nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("secret_type", sa.String(32), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("preview", sa.String(200), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("allowed_models", NULLABLE_JSON, nullable=True),
        sa.Column("allowed_tokens", NULLABLE_JSON, nullable=True),
        sa.Column("fetchable", sa.Boolean(), nullable=False),
        sa.Column("egress", JSON, nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.Column("usage_count", sa.BigInteger(), nullable=False),
        sa.Column("last_used_in_workflow", sa.String(200), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["owner.id"], name="fk_secret_owner_id_owner", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_secret"),
        sa.UniqueConstraint("owner_id", "id", name="uq_secret_owner_id_id"),
        sa.UniqueConstraint("owner_id", "provider", "secret_type", "name", name="uq_secret_owner_id_provider_secret_type_name"),
    )
    op.create_table(
        "secret_version",
        sa.Column("secret_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("owner_key_id", sa.Uuid(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["owner_id", "owner_key_id"],
            ["owner_key.owner_id", "owner_key.id"],
            name="fk_secret_version_owner_id_owner_key_id_owner_key",
            deferrable=True,
            initially="DEFERRED",
        ),
        sa.ForeignKeyConstraint(
            ["owner_id", "secret_id"],
            ["secret.owner_id", "secret.id"],
            name="fk_secret_version_owner_id_secret_id_secret",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("secret_id", "version", name="pk_secret_version"),
    )
    op.create_index("ix_secret_version_owner_key_id", "secret_version", ["owner_key_id"])


def _records() -> None:
    """Create the tables of the audit trail: who writes, and what was written."""
    op.create_table(
        "audit_writer",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("closed_at", TIME, nullable=True),
        sa.Column("shipped_seq", sa.BigInteger(), nullable=False),
        sa.Column("shipped_hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_writer"),
    )
    op.create_table(
        "audit_record",
        sa.Column("writer_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("owner_id", sa.Uuid(), nullable=True),
        sa.Column("secret_id", sa.Uuid(), nullable=True),
        sa.Column("request_id", sa.String(40), nullable=True),
        sa.Column("outcome", sa.String(40), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.Column("d", sa.LargeBinary(), nullable=False),
        sa.Column("h", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["writer_id"], ["audit_writer.id"], name="fk_audit_record_writer_id_audit_writer"),
        sa.PrimaryKeyConstraint("writer_id", "seq", name="pk_audit_record"),
    )
    looked_for = sa.text("kind <> 'outcome'")
    for name, columns in (
        ("at", ["at"]),
        ("owner_at", ["owner_id", "at"]),
        ("request_id", ["request_id"]),
        ("secret_at", ["secret_id", "at"]),
        ("user_at", ["user_id", "at"]),
    ):
        op.create_index(f"ix_audit_record_{name}", "audit_record", columns, sqlite_where=looked_for, postgresql_where=looked_for)


def _usage() -> None:
    """Create the table of what each call consumed."""
    op.create_table(
        "usage_record",
        sa.Column("request_id", sa.String(40), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("token_id", sa.String(12), nullable=False),
        sa.Column("secret_id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("key_source", sa.String(16), nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("operation", sa.String(40), nullable=False),
        sa.Column("streamed", sa.Boolean(), nullable=False),
        sa.Column("workflow", sa.String(200), nullable=False),
        sa.Column("node", sa.String(200), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("duration_ms", sa.Float(), nullable=True),
        sa.Column("first_byte_ms", sa.Float(), nullable=True),
        sa.Column("input_tokens", sa.BigInteger(), nullable=True),
        sa.Column("output_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=True),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cost_micro_usd", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("request_id", name="pk_usage_record"),
    )
    op.create_index("ix_usage_record_at", "usage_record", ["at"])
    op.create_index("ix_usage_record_owner_at", "usage_record", ["owner_id", "at"])
    op.create_index("ix_usage_record_secret_at", "usage_record", ["secret_id", "at"])
    op.create_index("ix_usage_record_user_at", "usage_record", ["user_id", "at"])


def _changes() -> None:
    """Create the list of what every process must hear of."""
    op.create_table(
        "change",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("subject", sa.String(16), nullable=False),
        sa.Column("subject_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_change"),
        sqlite_autoincrement=True,
    )
