"""The tables. Core only: no ORM classes, no relationships; queries are named functions in ``store.queries``.

Those of the audit trail and of what was used stand in ``trail``, and are found here too; what columns are made of, in ``columns``.
Ids are UUIDs made before the insert. Times are UTC. Every table with tenant data has ``owner_id`` or ``user_id`` and, on
PostgreSQL, a forced row-level-security policy (``migrations``); a test fails if one lacks it.
"""

from __future__ import annotations

import sqlalchemy as sa

from keybearer.store.columns import BigWhole, Id, Json, NullableJson, UtcDateTime, Whole, created_at, id_column, metadata
from keybearer.store.trail import (
    NOT_OUTCOME,
    audit_note,
    audit_record,
    audit_run,
    audit_sealed,
    audit_tile,
    audit_tree,
    audit_writer,
    usage_record,
)

# Beside the tables below: all tables have one place to be looked up at.
__all__ = [
    "NOT_OUTCOME",
    "UtcDateTime",
    "audit_note",
    "audit_record",
    "audit_run",
    "audit_sealed",
    "audit_tile",
    "audit_tree",
    "audit_writer",
    "metadata",
    "usage_record",
]

deployment = sa.Table(
    "deployment",
    metadata,
    sa.Column("singleton", Whole, sa.CheckConstraint("singleton = 1", name="singleton"), primary_key=True),
    sa.Column("id", Id(), nullable=False),
    sa.Column("row_mac_key", sa.LargeBinary, nullable=True, comment="envelope under the system owner key"),
    sa.Column("frozen_at", UtcDateTime(), nullable=True, comment="set: no key leaves"),
    created_at(),
)

root_key = sa.Table(
    "root_key",
    metadata,
    id_column(),
    sa.Column("provider", sa.String(32), nullable=False),
    sa.Column("reference", sa.Text, nullable=False, comment="KMS key name, path or empty"),
    sa.Column(
        "wrapped", sa.LargeBinary, nullable=True, comment="the root key as the KMS wrapped it; NULL where the provider holds it"
    ),
    sa.Column("state", sa.String(16), sa.CheckConstraint("state IN ('staged','active','retired')", name="state"), nullable=False),
    sa.Column(
        "proof",
        sa.LargeBinary,
        nullable=False,
        comment="envelope of a known value: a wrong root key is told apart from a broken row",
    ),
    created_at(),
    sa.Column("emptied_at", UtcDateTime(), nullable=True, comment="of a retired one: when nothing was sealed under it any more"),
)

owner = sa.Table(
    "owner",
    metadata,
    id_column(),
    sa.Column("kind", sa.String(16), sa.CheckConstraint("kind IN ('user','team','system')", name="kind"), nullable=False),
    created_at(),
)

owner_key = sa.Table(
    "owner_key",
    metadata,
    id_column(),
    sa.Column("owner_id", Id(), sa.ForeignKey("owner.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("version", Whole, nullable=False),
    sa.Column("root_key_id", Id(), sa.ForeignKey("root_key.id"), nullable=False, index=True),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.String(16), sa.CheckConstraint("state IN ('active','retired')", name="state"), nullable=False),
    created_at(),
    sa.UniqueConstraint("owner_id", "version"),
    sa.UniqueConstraint("owner_id", "id"),
)

RUNNING = sa.text("state = 'running'")

key_rotation = sa.Table(
    "key_rotation",
    metadata,
    id_column(),
    sa.Column("kind", sa.String(16), sa.CheckConstraint("kind IN ('root','owner','owners')", name="kind"), nullable=False),
    sa.Column("state", sa.String(16), sa.CheckConstraint("state IN ('running','finished')", name="state"), nullable=False),
    sa.Column("step", sa.String(16), nullable=False),
    sa.Column("provider", sa.String(32), nullable=False, comment="of kind root: what holds the new one"),
    sa.Column("root_key_id", Id(), nullable=True, comment="of kind root: the new one"),
    sa.Column("owner_id", Id(), nullable=True, comment="of kind owner: whose; NULL: everybody's"),
    sa.Column("place", Id(), nullable=True, comment="how far its step has come, in the order of ids"),
    sa.Column("done", BigWhole, nullable=False),
    sa.Column("total", BigWhole, nullable=False),
    sa.Column("unreadable", BigWhole, nullable=False, comment="what did not open, and stays as it is"),
    sa.Column("problem", sa.Text, nullable=False, comment="what it waits for; empty: nothing"),
    sa.Column("runner", Id(), nullable=True, comment="which process works on it"),
    sa.Column("leased_until", UtcDateTime(), nullable=True),
    created_at(),
    sa.Column("updated_at", UtcDateTime(), nullable=False),
    # One at a time: what one begins, another would have to wait for anyway.
    sa.Index("uq_key_rotation_running", "state", unique=True, sqlite_where=RUNNING, postgresql_where=RUNNING),
)

key_holder = sa.Table(
    "key_holder",
    metadata,
    id_column(),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("pid", Whole, nullable=False),
    sa.Column("seen_at", UtcDateTime(), nullable=False),
    sa.Column("root_key_id", Id(), nullable=True, comment="the newest root key that this process could unwrap"),
    sa.Column("problem", sa.Text, nullable=False, comment="why it cannot unwrap a newer one"),
    created_at(),
)

user = sa.Table(
    "user_account",
    metadata,
    sa.Column("id", Id(), sa.ForeignKey("owner.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("email", sa.String(320), nullable=False, unique=True, comment="lower-cased"),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("password_hash", sa.Text, nullable=True, comment="Argon2id"),
    sa.Column("role", sa.String(16), sa.CheckConstraint("role IN ('admin','member')", name="role"), nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False, default=True),
    sa.Column("fallback_allowed", sa.Boolean, nullable=False, default=True, comment="the user's own say in KEYBEARER_FALLBACK"),
    sa.Column("mac", sa.LargeBinary, nullable=False, comment="row MAC over id, role, is_active"),
    created_at(),
    sa.Column("updated_at", UtcDateTime(), nullable=False),
    sa.Column("mailed", NullableJson, nullable=True, comment="kinds of reminders wanted by mail; NULL: all"),
)

one_time_link = sa.Table(
    "one_time_link",
    metadata,
    sa.Column("token_hash", sa.LargeBinary, primary_key=True, comment="SHA-256"),
    sa.Column("purpose", sa.String(16), nullable=False, comment="setup"),
    sa.Column("expires_at", UtcDateTime(), nullable=False),
    sa.Column("used_at", UtcDateTime(), nullable=True),
    created_at(),
)

session = sa.Table(
    "session",
    metadata,
    id_column(),
    sa.Column("token_hash", sa.LargeBinary, nullable=False, unique=True, comment="SHA-256 of the cookie"),
    sa.Column("user_id", Id(), sa.ForeignKey("user_account.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("ip", sa.String(64), nullable=False),
    sa.Column("user_agent", sa.String(256), nullable=False),
    sa.Column("last_seen_at", UtcDateTime(), nullable=False),
    sa.Column("expires_at", UtcDateTime(), nullable=False, comment="absolute"),
    sa.Column("mac", sa.LargeBinary, nullable=False, comment="row MAC over id, token_hash, user_id, expires_at"),
    created_at(),
)

access_token = sa.Table(
    "access_token",
    metadata,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("token_hash", sa.LargeBinary, nullable=False, comment="SHA-256 of the whole token"),
    sa.Column("user_id", Id(), sa.ForeignKey("user_account.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("scopes", Json, nullable=False),
    sa.Column("allowed_providers", NullableJson, nullable=True),
    sa.Column("allowed_models", NullableJson, nullable=True),
    sa.Column("ip_allowlist", Json, nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False, default=True),
    sa.Column("expires_at", UtcDateTime(), nullable=True),
    sa.Column("last_used_at", UtcDateTime(), nullable=True),
    sa.Column("mac", sa.LargeBinary, nullable=False, comment="row MAC over every column but name and last_used_at"),
    created_at(),
)

provider = sa.Table(
    "provider",
    metadata,
    id_column(),
    sa.Column("owner_id", Id(), sa.ForeignKey("owner.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("is_predefined", sa.Boolean, nullable=False, comment="an admin's edit of a catalogue entry (owner: system)"),
    sa.Column("display_name", sa.String(200), nullable=False),
    sa.Column("base_url", sa.Text, nullable=False),
    sa.Column("auth_style", sa.String(16), nullable=False, comment="bearer, header or none"),
    sa.Column("auth_header", sa.String(64), nullable=False),
    sa.Column("mac", sa.LargeBinary, nullable=False),
    created_at(),
    sa.Column("updated_at", UtcDateTime(), nullable=False),
    sa.UniqueConstraint("owner_id", "name"),
    sa.UniqueConstraint("owner_id", "id"),
)

model = sa.Table(
    "model",
    metadata,
    id_column(),
    sa.Column("owner_id", Id(), sa.ForeignKey("owner.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("provider", sa.String(64), nullable=False, comment="name: predefined, or custom of the same owner"),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("display_name", sa.String(200), nullable=False),
    created_at(),
    sa.Column("kind", sa.String(16), nullable=True, comment="chat, embedding …; NULL: chat"),
    sa.Column("base_url", sa.Text, nullable=True, comment="its own; NULL: the provider's"),
    sa.Column("auth_style", sa.String(16), nullable=True, comment="NULL: the provider's"),
    sa.Column("auth_header", sa.String(64), nullable=True),
    sa.Column("secret_id", Id(), nullable=True, comment="its own key; NULL: what resolution finds"),
    sa.Column("parameters", sa.Text, nullable=True, comment="JSON text, whose MAC is over its letters: defaults of requests"),
    sa.Column("aliases", NullableJson, nullable=True),
    sa.Column("updated_at", UtcDateTime(), nullable=True),
    sa.Column(
        "mac", sa.LargeBinary, nullable=True, comment="row MAC over all that steers a call; NULL: a bare name, which steers none"
    ),
    sa.UniqueConstraint("owner_id", "provider", "name"),
)

REFRESHED = sa.text("refresh_at IS NOT NULL")
DELETED = sa.text("deleted_at IS NOT NULL")
RETIRED = sa.text("retired_at IS NOT NULL")
EXPIRES = sa.text("expires_at IS NOT NULL")
ROTATES = sa.text("rotate_at IS NOT NULL")
CHECKED = sa.text("check_at IS NOT NULL")
FAILED = sa.text("failed_at IS NOT NULL")
"""What jobs look for among very many rows that they do not."""

secret = sa.Table(
    "secret",
    metadata,
    id_column(),
    sa.Column("owner_id", Id(), sa.ForeignKey("owner.id", ondelete="CASCADE"), nullable=False),
    sa.Column("owner_kind", sa.String(16), nullable=False),
    sa.Column("provider", sa.String(64), nullable=False),
    sa.Column("secret_type", sa.String(32), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("preview", sa.String(200), nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("tags", Json, nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False),
    sa.Column("priority", Whole, nullable=False, comment="lower first"),
    sa.Column("allowed_models", NullableJson, nullable=True),
    sa.Column("allowed_tokens", NullableJson, nullable=True),
    sa.Column("fetchable", sa.Boolean, nullable=False),
    sa.Column("egress", Json, nullable=False, comment="canonical scheme://host:port list, bound into the envelope"),
    sa.Column("expires_at", UtcDateTime(), nullable=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("state_reason", sa.Text, nullable=False),
    sa.Column("version", Whole, nullable=False),
    sa.Column("created_by", Id(), nullable=False),
    created_at(),
    sa.Column("updated_at", UtcDateTime(), nullable=False),
    sa.Column("last_used_at", UtcDateTime(), nullable=True),
    sa.Column("usage_count", BigWhole, nullable=False, default=0),
    sa.Column("last_used_in_workflow", sa.String(200), nullable=True),
    sa.Column(
        "fallback_allowed",
        sa.Boolean,
        nullable=False,
        server_default=sa.false(),
        comment="where it cannot be used, teams and the system may serve instead",
    ),
    sa.Column("rotation_period", Whole, nullable=True, comment="days after which a value should be replaced"),
    sa.Column("rotate_at", UtcDateTime(), nullable=True, comment="when the current value should be replaced"),
    sa.Column("oauth", NullableJson, nullable=True, comment="previews of the OAuth fields sealed beside the value"),
    sa.Column("reference", NullableJson, nullable=True, comment="where the value is kept instead of here"),
    sa.Column("fallback_version", Whole, nullable=True, comment="the version before a rotation, while it may still serve"),
    sa.Column("fallback_until", UtcDateTime(), nullable=True),
    sa.Column("deleted_at", UtcDateTime(), nullable=True, comment="set: deleted, and restorable for a while"),
    sa.Column("deleted_name", sa.String(200), nullable=True, comment="its name before; the column name then holds the id"),
    sa.Column("mac", sa.LargeBinary, nullable=True, comment="row MAC over what may be done with it; NULL: older than these MACs"),
    sa.Column("model_id", Id(), nullable=True, comment="the model whose own key it is: then it serves no other call"),
    sa.Column("token_expires_at", UtcDateTime(), nullable=True, comment="of an OAuth token that is refreshed; NULL: not known"),
    sa.Column("refresh_at", UtcDateTime(), nullable=True, comment="when to refresh next; NULL: never"),
    sa.Column("refresh_attempts", Whole, nullable=True, comment="failures in a row"),
    sa.Column("refresh_problem", sa.Text, nullable=True),
    sa.Column("refresh_until", UtcDateTime(), nullable=True, comment="the lease of the process that refreshes"),
    sa.Column("refresh_fence", BigWhole, nullable=True, comment="grows with each lease: a late process writes nothing"),
    sa.Column("check_every", Whole, nullable=True, comment="hours between health checks; 0: never; NULL: the deployment's"),
    sa.Column("check_at", UtcDateTime(), nullable=True, comment="when next; while somebody checks, until when it is theirs"),
    sa.Column("check_runner", Id(), nullable=True, comment="who checks"),
    sa.Column("check_failures", Whole, nullable=True, comment="in a row"),
    sa.Column("checked_at", UtcDateTime(), nullable=True, comment="when it was tested last, by whomever"),
    sa.Column("check_status", sa.String(16), nullable=True, comment="what that test found"),
    sa.Column("check_reason", sa.Text, nullable=True),
    sa.Column("failed_at", UtcDateTime(), nullable=True, comment="since when its provider refuses it; NULL: it does not"),
    sa.UniqueConstraint("owner_id", "provider", "secret_type", "name"),
    sa.UniqueConstraint("owner_id", "id"),
    sa.Index("ix_secret_deleted_at", "deleted_at", sqlite_where=DELETED, postgresql_where=DELETED),
    sa.Index("ix_secret_expires_at", "expires_at", sqlite_where=EXPIRES, postgresql_where=EXPIRES),
    sa.Index("ix_secret_rotate_at", "rotate_at", sqlite_where=ROTATES, postgresql_where=ROTATES),
    sa.Index("ix_secret_refresh_at", "refresh_at", sqlite_where=REFRESHED, postgresql_where=REFRESHED),
    sa.Index("ix_secret_check_at", "check_at", sqlite_where=CHECKED, postgresql_where=CHECKED),
    sa.Index("ix_secret_failed_at", "failed_at", sqlite_where=FAILED, postgresql_where=FAILED),
)

secret_version = sa.Table(
    "secret_version",
    metadata,
    sa.Column("secret_id", Id(), primary_key=True),
    sa.Column("version", Whole, primary_key=True),
    sa.Column("owner_id", Id(), nullable=False),
    sa.Column("owner_key_id", Id(), nullable=False, index=True),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
    created_at(),
    sa.Column("egress", NullableJson, nullable=True, comment="what the envelope is bound to; NULL: as the secret's row says"),
    sa.Column("fetchable", sa.Boolean, nullable=True, comment="likewise"),
    sa.Column("oauth_envelope", sa.LargeBinary, nullable=True),
    sa.Column("preview", sa.String(200), nullable=True),
    sa.Column("created_by", Id(), nullable=True),
    sa.Column("retired_at", UtcDateTime(), nullable=True, comment="when another version took its place"),
    sa.Index("ix_secret_version_retired_at", "retired_at", sqlite_where=RETIRED, postgresql_where=RETIRED),
    sa.ForeignKeyConstraint(["owner_id", "secret_id"], ["secret.owner_id", "secret.id"], ondelete="CASCADE"),
    # With the owner in it, so that another owner's key id is as good as an unknown one. Deferred, because an owner's deletion
    # reaches the keys before the values.
    sa.ForeignKeyConstraint(
        ["owner_id", "owner_key_id"], ["owner_key.owner_id", "owner_key.id"], deferrable=True, initially="DEFERRED"
    ),
)

team = sa.Table(
    "team",
    metadata,
    sa.Column("id", Id(), sa.ForeignKey("owner.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("created_by", Id(), nullable=False),
    sa.Column("mac", sa.LargeBinary, nullable=False, comment="row MAC over every column but updated_at"),
    created_at(),
    sa.Column("updated_at", UtcDateTime(), nullable=False),
)

team_member = sa.Table(
    "team_member",
    metadata,
    sa.Column("team_id", Id(), sa.ForeignKey("team.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("user_id", Id(), sa.ForeignKey("user_account.id", ondelete="CASCADE"), primary_key=True, index=True),
    sa.Column("role", sa.String(16), sa.CheckConstraint("role IN ('owner','admin','member')", name="role"), nullable=False),
    sa.Column("priority", Whole, nullable=False, comment="among the user's teams; lower first"),
    sa.Column("added_by", Id(), nullable=False),
    sa.Column("accepted_at", UtcDateTime(), nullable=True, comment="NULL: invited, and a member in nothing yet"),
    sa.Column("mac", sa.LargeBinary, nullable=False, comment="row MAC over every column"),
    created_at(),
)

secret_share = sa.Table(
    "secret_share",
    metadata,
    sa.Column("secret_id", Id(), primary_key=True),
    sa.Column("team_id", Id(), sa.ForeignKey("team.id", ondelete="CASCADE"), primary_key=True, index=True),
    sa.Column("owner_id", Id(), nullable=False, index=True, comment="whose secret it is"),
    sa.Column("grade", sa.String(16), sa.CheckConstraint("grade IN ('use','manage')", name="grade"), nullable=False),
    sa.Column("mac", sa.LargeBinary, nullable=False, comment="row MAC over every column"),
    created_at(),
    sa.ForeignKeyConstraint(["owner_id", "secret_id"], ["secret.owner_id", "secret.id"], ondelete="CASCADE"),
)

gateway_object = sa.Table(
    "gateway_object",
    metadata,
    sa.Column(
        "owner_id",
        Id(),
        sa.ForeignKey("owner.id", ondelete="CASCADE"),
        primary_key=True,
        comment="whose key it was made with",
    ),
    sa.Column("origin", sa.String(255), primary_key=True, comment="scheme://host:port it is kept at"),
    sa.Column("kind", sa.String(32), primary_key=True, comment="file, batch, response …, as the catalogue calls them"),
    sa.Column("object_id", sa.String(200), primary_key=True, comment="the provider's id"),
    sa.Column("provider", sa.String(64), nullable=False),
    sa.Column("user_id", Id(), sa.ForeignKey("user_account.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("token_id", sa.String(12), nullable=False),
    sa.Column("mac", sa.LargeBinary, nullable=False, comment="row MAC over every column"),
    sa.Column("created_at", UtcDateTime(), nullable=False, index=True),
)

PENDING = sa.text("state = 'pending'")

notification = sa.Table(
    "notification",
    metadata,
    id_column(),
    sa.Column("user_id", Id(), sa.ForeignKey("user_account.id", ondelete="CASCADE"), nullable=False, comment="whom it tells"),
    sa.Column("secret_id", Id(), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False, comment="expiry, rotation or failure"),
    sa.Column("due_at", UtcDateTime(), nullable=False, comment="when it expires, or should be replaced"),
    sa.Column("days", Whole, nullable=False, comment="how many days before"),
    sa.Column("channel", sa.String(16), nullable=False, comment="console, mail or webhook"),
    sa.Column("provider", sa.String(64), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, comment="pending, sent, dropped or failed"),
    sa.Column("attempts", Whole, nullable=False),
    sa.Column("next_at", UtcDateTime(), nullable=False, comment="not before; while somebody sends it, until when it is theirs"),
    sa.Column("runner", Id(), nullable=True, comment="who sends it"),
    sa.Column("read_at", UtcDateTime(), nullable=True),
    created_at(),
    sa.UniqueConstraint("user_id", "secret_id", "kind", "due_at", "days", "channel", name="uq_notification_occasion"),
    sa.Index("ix_notification_next_at", "next_at", sqlite_where=PENDING, postgresql_where=PENDING),
)

reminder_hook = sa.Table(
    "reminder_hook",
    metadata,
    sa.Column(
        "owner_id",
        Id(),
        sa.ForeignKey("user_account.id", ondelete="CASCADE"),
        primary_key=True,
        comment="whom it tells",
    ),
    sa.Column("owner_key_id", Id(), nullable=False, index=True),
    sa.Column("version", Whole, nullable=False),
    sa.Column("envelope", sa.LargeBinary, nullable=False, comment="address and signing key"),
    sa.Column("preview", sa.String(300), nullable=False, comment="scheme and host of the address"),
    sa.Column("kinds", NullableJson, nullable=True, comment="kinds of reminders wanted there; NULL: all"),
    sa.Column("is_active", sa.Boolean, nullable=False, comment="false: it said that it is gone"),
    sa.Column("problem", sa.Text, nullable=False, comment="what went wrong last; empty: nothing"),
    created_at(),
    sa.Column("updated_at", UtcDateTime(), nullable=False),
    sa.ForeignKeyConstraint(
        ["owner_id", "owner_key_id"], ["owner_key.owner_id", "owner_key.id"], deferrable=True, initially="DEFERRED"
    ),
)

budget = sa.Table(
    "budget",
    metadata,
    id_column(),
    sa.Column("owner_id", Id(), sa.ForeignKey("owner.id", ondelete="CASCADE"), nullable=False, index=True, comment="whose"),
    sa.Column("subject", sa.String(16), nullable=False, comment="token, user, team, secret, provider or deployment"),
    sa.Column("subject_id", sa.String(64), nullable=False, comment="its id or name; empty for the deployment"),
    sa.Column("token_id", sa.String(12), sa.ForeignKey("access_token.id", ondelete="CASCADE"), nullable=True, index=True),
    sa.Column("secret_id", Id(), sa.ForeignKey("secret.id", ondelete="CASCADE"), nullable=True, index=True),
    sa.Column("kind", sa.String(16), nullable=False, comment="usd_day, usd_month, requests_minute or tokens_minute"),
    sa.Column("amount", BigWhole, nullable=False, comment="millionths of a US dollar, requests or tokens"),
    sa.Column("is_hard", sa.Boolean, nullable=False, comment="refuses; else it only shows"),
    sa.Column("by_admin", sa.Boolean, nullable=False, comment="set by an administrator: nobody else changes it"),
    sa.Column("created_by", Id(), nullable=False),
    sa.Column("mac", sa.LargeBinary, nullable=False, comment="row MAC over every column but updated_at"),
    created_at(),
    sa.Column("updated_at", UtcDateTime(), nullable=False),
    sa.UniqueConstraint("subject", "subject_id", "kind", "by_admin"),
)

reservation = sa.Table(
    "reservation",
    metadata,
    sa.Column("request_id", sa.String(40), primary_key=True),
    sa.Column("at", UtcDateTime(), nullable=False, index=True),
    sa.Column("tokens", BigWhole, nullable=True, comment="the most that the call could use; NULL: no limit asked"),
    sa.Column("micro_usd", BigWhole, nullable=True, comment="likewise, and cost"),
)

change = sa.Table(
    "change",
    metadata,
    sa.Column("id", BigWhole().with_variant(Whole, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("subject", sa.String(16), nullable=False, comment="token, user, team, secret, provider, model, budget, deployment"),
    sa.Column("subject_id", sa.String(64), nullable=False),
    sa.Column("user_id", Id(), nullable=True, comment="whose cached keys are concerned; NULL: everybody's"),
    sa.Column("at", UtcDateTime(), nullable=False),
    sqlite_autoincrement=True,
)
