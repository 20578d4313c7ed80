"""The tables of the audit trail, of the sealed tree over it, and of what was used, which is read off it."""

from __future__ import annotations

import sqlalchemy as sa

from keybearer.store.columns import BigWhole, Id, UtcDateTime, Whole, created_at, id_column, metadata

audit_writer = sa.Table(
    "audit_writer",
    metadata,
    id_column(),
    sa.Column("kind", sa.String(16), nullable=False, comment="process or management"),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("started_at", UtcDateTime(), nullable=False),
    sa.Column("closed_at", UtcDateTime(), nullable=True),
    sa.Column("shipped_seq", sa.BigInteger, nullable=False, default=0),
    sa.Column(
        "shipped_hash", sa.LargeBinary, nullable=False, comment="h of the last shipped line; 32 zero bytes before the first"
    ),
)

NOT_OUTCOME = sa.text("kind <> 'outcome'")
"""Every second audit record is the outcome of a use, and is never looked for: in no index, it costs half to write."""

audit_record = sa.Table(
    "audit_record",
    metadata,
    sa.Column("writer_id", sa.Uuid(), sa.ForeignKey("audit_writer.id"), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("at", UtcDateTime(), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False, comment="use, outcome, open, close or manage"),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("user_id", sa.Uuid(), nullable=True, comment="who acted"),
    sa.Column("owner_id", sa.Uuid(), nullable=True, comment="whose secret"),
    sa.Column("secret_id", sa.Uuid(), nullable=True),
    sa.Column("request_id", sa.String(40), nullable=True),
    sa.Column("outcome", sa.String(40), nullable=False),
    sa.Column("nonce", sa.LargeBinary, nullable=False),
    sa.Column("line", sa.Text, nullable=False, comment="the exact text that was hashed"),
    sa.Column("d", sa.LargeBinary, nullable=False),
    sa.Column("h", sa.LargeBinary, nullable=False),
    *(
        sa.Index(f"ix_audit_record_{name}", *columns, sqlite_where=NOT_OUTCOME, postgresql_where=NOT_OUTCOME)
        for name, columns in {
            "at": ("at",),
            "owner_at": ("owner_id", "at"),
            "user_at": ("user_id", "at"),
            "secret_at": ("secret_id", "at"),
            "request_id": ("request_id",),
        }.items()
    ),
)

# The sealed tree over the trail (``audit.seal``); its leaves are records, of which a run names neighbours.

audit_tree = sa.Table(
    "audit_tree",
    metadata,
    sa.Column("singleton", sa.Integer, sa.CheckConstraint("singleton = 1", name="singleton"), primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False, comment="leaves"),
    sa.Column("public_key", sa.LargeBinary, nullable=False, comment="Ed25519"),
    sa.Column("key_envelope", sa.LargeBinary, nullable=False, comment="the private key, under the system owner key"),
    sa.Column("holder", sa.Uuid(), nullable=True, comment="which process seals"),
    sa.Column("fence", sa.BigInteger, nullable=False, comment="counts holders: a former one writes nothing more"),
    sa.Column("leased_until", UtcDateTime(), nullable=True),
    sa.Column("pushed_size", sa.BigInteger, nullable=False, comment="of the last checkpoint that was pushed elsewhere"),
    sa.Column("push_error", sa.String(200), nullable=False, comment="why the last attempt failed; empty: it did not"),
    created_at(),
)

audit_tile = sa.Table(
    "audit_tile",
    metadata,
    sa.Column("level", sa.Integer, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("hashes", sa.LargeBinary, nullable=False, comment="up to 256 of 32 bytes"),
)

audit_run = sa.Table(
    "audit_run",
    metadata,
    sa.Column("first_index", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("writer_id", sa.Uuid(), nullable=False),
    sa.Column("first_seq", sa.BigInteger, nullable=False),
    sa.Column("length", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("writer_id", "first_seq"),
)

audit_sealed = sa.Table(
    "audit_sealed",
    metadata,
    sa.Column("writer_id", sa.Uuid(), primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False, comment="sealed up to here"),
    sa.Column("h", sa.LargeBinary, nullable=False, comment="h of that record"),
    sa.Column("redacted_seq", sa.BigInteger, nullable=False, comment="retention has emptied the records up to here"),
)

audit_note = sa.Table(
    "audit_note",
    metadata,
    sa.Column("size", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("at", UtcDateTime(), nullable=False),
    sa.Column("note", sa.Text, nullable=False, comment="signed"),
)

usage_record = sa.Table(
    "usage_record",
    metadata,
    sa.Column("request_id", sa.String(40), primary_key=True),
    sa.Column("at", UtcDateTime(), nullable=False),
    sa.Column("user_id", Id(), nullable=False),
    sa.Column("token_id", sa.String(12), nullable=False),
    sa.Column("secret_id", Id(), nullable=False),
    sa.Column("owner_id", Id(), nullable=False, comment="who paid"),
    sa.Column("key_source", sa.String(16), nullable=False),
    sa.Column("provider", sa.String(64), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("operation", sa.String(40), nullable=False),
    sa.Column("streamed", sa.Boolean, nullable=False),
    sa.Column("workflow", sa.String(200), nullable=False),
    sa.Column("node", sa.String(200), nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False, comment="unknown until the outcome line arrives"),
    sa.Column("status", Whole, nullable=True),
    sa.Column("duration_ms", sa.Float, nullable=True),
    sa.Column("first_byte_ms", sa.Float, nullable=True),
    sa.Column("input_tokens", BigWhole, nullable=True),
    sa.Column("output_tokens", BigWhole, nullable=True),
    sa.Column("cached_tokens", BigWhole, nullable=True),
    sa.Column("reasoning_tokens", BigWhole, nullable=True),
    sa.Column("cost_micro_usd", BigWhole, nullable=True, comment="NULL: unknown"),
    sa.Index("ix_usage_record_at", "at"),
    sa.Index("ix_usage_record_secret_at", "secret_id", "at"),
    sa.Index("ix_usage_record_user_at", "user_id", "at"),
    sa.Index("ix_usage_record_owner_at", "owner_id", "at"),
)
