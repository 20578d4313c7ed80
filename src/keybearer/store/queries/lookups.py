"""What must be read before the caller is known: each by one unguessable or exact value, at most one row.

On PostgreSQL these are functions of the role ``keybearer_lookup``, which is all that a transaction without a caller can reach; on
SQLite they are plain selects with the same columns.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store import schema

_USER_STATE = (
    schema.user.c.role.label("user_role"),
    schema.user.c.is_active.label("user_is_active"),
    schema.user.c.mac.label("user_mac"),
)


async def token_by_id(tx: AsyncConnection, token_id: str) -> sa.Row[Any] | None:
    """Find an access token by its public id: its columns, and its owner's ``user_role``, ``user_is_active``, ``user_mac``."""
    return await _one(
        tx, "keybearer_token_by_id", token_id, _with_user(schema.access_token, schema.access_token.c.id == token_id)
    )


async def session_by_hash(tx: AsyncConnection, token_hash: bytes) -> sa.Row[Any] | None:
    """Find a session by its cookie's SHA-256: its columns, and its owner's ``user_role``, ``user_is_active``, ``user_mac``."""
    query = _with_user(schema.session, schema.session.c.token_hash == token_hash)
    return await _one(tx, "keybearer_session_by_hash", token_hash, query)


async def user_by_email(tx: AsyncConnection, email: str) -> sa.Row[Any] | None:
    """Find an account, for sign-in, by its e-mail address in lower case: all its columns that matter before one is signed in."""
    columns = [column for column in schema.user.c if column is not schema.user.c.mailed]
    return await _one(tx, "keybearer_user_by_email", email, sa.select(*columns).where(schema.user.c.email == email))


async def link_by_hash(tx: AsyncConnection, token_hash: bytes) -> sa.Row[Any] | None:
    """Find a one-time link by its token's keyed hash, used and expired ones too: all its columns."""
    link = schema.one_time_link
    return await _one(tx, "keybearer_link_by_hash", token_hash, sa.select(link).where(link.c.token_hash == token_hash))


async def admin_exists(tx: AsyncConnection) -> bool:
    """Tell whether any administrator's account exists, active or not."""
    if tx.dialect.name == "postgresql":
        query = sa.select(sa.func.public.keybearer_admin_exists(type_=sa.Boolean))
    else:
        query = sa.select(sa.exists().where(schema.user.c.role == "admin"))
    return bool((await tx.execute(query)).scalar_one())


def _with_user(table: sa.Table, condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return sa.select(table, *_USER_STATE).join(schema.user, schema.user.c.id == table.c.user_id).where(condition)


async def _one(tx: AsyncConnection, function: str, value: str | bytes, query: sa.Select[Any]) -> sa.Row[Any] | None:
    """Run ``query``, or on PostgreSQL the function that does the same with the columns of ``query``."""
    if tx.dialect.name == "postgresql":
        columns = [sa.column(column.name, column.type) for column in query.selected_columns]
        query = sa.select(getattr(sa.func.public, function)(value).table_valued(*columns, name="found"))
    found: sa.Row[Any] | None = (await tx.execute(query)).one_or_none()
    return found
