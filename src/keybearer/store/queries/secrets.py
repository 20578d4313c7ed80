"""Secrets and their sealed values: rows in, rows out. Every query that changes something names the owner.

A secret's row comes with the envelope of its current version (``owner_key_id``, ``envelope``) where the transaction may see it;
on PostgreSQL an administrator's does not, for secrets of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store.schema import secret, secret_version

Row = sa.Row[Any]

Named = tuple[str, str, str]
"""Provider, type and name: an owner has one secret of each."""

_TOGETHER = 50
"""Names of one query: the event loop waits while its many values are bound."""

Standing = Literal["active", "inactive", "expiring", "expired", "failed", "unreadable", "deleted"]
"""What a secret is good for at a moment; ``vault.standing`` says which comes first."""

_WITH_VERSION = sa.select(
    secret,
    secret_version.c.owner_key_id,
    secret_version.c.envelope,
    secret_version.c.oauth_envelope,
    secret_version.c.created_at.label("value_at"),
).select_from(
    secret.outerjoin(
        secret_version,
        sa.and_(
            secret_version.c.secret_id == secret.c.id,
            secret_version.c.owner_id == secret.c.owner_id,
            secret_version.c.version == secret.c.version,
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Search:
    """What a listing is narrowed to; ``None``: not by this."""

    owners: tuple[UUID, ...] | None = None
    """``None``: everybody's, for an administrator."""
    shared: tuple[UUID, ...] = ()
    """These secrets too, whosesoever they are: those that are shared with the caller's teams."""
    provider: str | None = None
    secret_type: str | None = None
    name: str | None = None
    tag: str | None = None
    text: str | None = None
    """Part of name, provider or description, in any case."""
    is_active: bool | None = None
    expires_before: datetime | None = None
    standing: Standing | None = None
    """``None``: any but ``deleted``."""
    now: datetime = datetime.min  # noqa: DTZ901  # always given with a standing; a naive one would be refused
    soon: datetime = datetime.min  # noqa: DTZ901  # likewise
    """What expires or is to be replaced by then is ``expiring``."""


async def insert(tx: AsyncConnection, columns: Sequence[Mapping[str, Any]]) -> None:
    """New secrets, all with the same columns; their values follow with ``versions.insert``."""
    await tx.execute(sa.insert(secret), list(columns))


async def get(tx: AsyncConnection, secret_id: UUID, owners: Iterable[UUID] | None, *, deleted: bool | None = False) -> Row | None:
    """One secret of these owners (``None``: of anybody), with its current envelope. ``deleted=None``: deleted or not."""
    query = _WITH_VERSION.where(secret.c.id == secret_id, *_is_deleted(deleted))
    if owners is not None:
        query = query.where(secret.c.owner_id.in_(list(owners)))
    return (await tx.execute(query)).one_or_none()


async def lock(tx: AsyncConnection, secret_id: UUID, owners: Iterable[UUID], *, deleted: bool | None = False) -> Row | None:
    """One secret of these owners, which no other transaction changes until this one ends."""
    where = (secret.c.id == secret_id, secret.c.owner_id.in_(list(owners)))
    found = (await tx.execute(sa.select(secret.c.id).where(*where).with_for_update())).one_or_none()
    return None if found is None else await get(tx, secret_id, owners, deleted=deleted)


async def model_of(tx: AsyncConnection, secret_id: UUID) -> UUID | None:
    """The model whose own key a secret is."""
    return (await tx.execute(sa.select(secret.c.model_id).where(secret.c.id == secret_id))).scalar_one_or_none()


async def of_models(tx: AsyncConnection, after: UUID | None, limit: int) -> Sequence[Any]:
    """Id and owner of models' own keys, in the order of their ids."""
    query = sa.select(secret.c.id, secret.c.owner_id).where(secret.c.model_id.is_not(None))
    if after is not None:
        query = query.where(secret.c.id > after)
    return (await tx.execute(query.order_by(secret.c.id).limit(limit))).all()


async def named(tx: AsyncConnection, owner_id: UUID, provider: str, secret_type: str, name: str) -> UUID | None:
    """The id of the secret with this name."""
    query = sa.select(secret.c.id).where(
        secret.c.owner_id == owner_id,
        secret.c.provider == provider,
        secret.c.secret_type == secret_type,
        secret.c.name == name,
        *_is_deleted(False),
    )
    return (await tx.execute(query)).scalar_one_or_none()


async def lock_named(tx: AsyncConnection, owner_id: UUID, names: Iterable[Named]) -> dict[Named, Row]:
    """The owner's secrets of these names, with their envelopes, which no other transaction changes until this one ends."""
    named, wanted = (secret.c.provider, secret.c.secret_type, secret.c.name), list(names)
    mine = (secret.c.owner_id == owner_id, *_is_deleted(False))
    ids: list[UUID] = []
    for start in range(0, len(wanted), _TOGETHER):
        query = sa.select(secret.c.id).where(*mine, sa.tuple_(*named).in_(wanted[start : start + _TOGETHER]))
        ids += (await tx.execute(query)).scalars()
    # By id: of two who lock some of the same, neither waits for what the other is about to take.
    ids.sort()
    found: dict[Named, Row] = {}
    for start in range(0, len(ids), _TOGETHER):
        these = (*mine, secret.c.id.in_(ids[start : start + _TOGETHER]))
        await tx.execute(sa.select(secret.c.id).where(*these).order_by(secret.c.id).with_for_update())
        for row in await tx.execute(_WITH_VERSION.where(*these)):
            found[row.provider, row.secret_type, row.name] = row
    return found


async def for_provider(
    tx: AsyncConnection, owner_id: UUID, provider: str, secret_type: str, shared: Iterable[UUID] = ()
) -> Sequence[Row]:
    """An owner's secrets for a provider, and the ``shared`` ones, by priority (lower first), then age.

    With their envelopes; models' own are not among them.
    """
    where = (_whose((owner_id,), shared), secret.c.provider == provider, secret.c.secret_type == secret_type)
    query = _WITH_VERSION.where(*where, secret.c.model_id.is_(None), *_is_deleted(False))
    return (await tx.execute(query.order_by(secret.c.priority, secret.c.created_at, secret.c.id))).all()


async def usable(tx: AsyncConnection, owners: Iterable[UUID], now: datetime, shared: Iterable[UUID] = ()) -> Sequence[Any]:
    """Owner, provider, type and egress set of these secrets, if neither off nor expired nor marked."""
    query = sa.select(secret.c.id, secret.c.owner_id, secret.c.provider, secret.c.secret_type, secret.c.egress).where(
        _whose(owners, shared),
        secret.c.is_active.is_(True),
        secret.c.state == "ok",
        *_is_deleted(False),
        secret.c.model_id.is_(None),
        sa.or_(secret.c.expires_at.is_(None), secret.c.expires_at > now),
    )
    return (await tx.execute(query)).all()


async def due_for_refresh(tx: AsyncConnection, now: datetime, limit: int) -> Sequence[Any]:
    """Id and owner of the OAuth tokens that are to be refreshed by now, and that nobody refreshes, the longest due first."""
    query = sa.select(secret.c.id, secret.c.owner_id).where(
        secret.c.refresh_at <= now,
        sa.or_(secret.c.refresh_until.is_(None), secret.c.refresh_until <= now),
        secret.c.is_active.is_(True),
        secret.c.state.in_(("ok", "failed")),
        sa.or_(secret.c.expires_at.is_(None), secret.c.expires_at > now),
        *_is_deleted(False),
    )
    return (await tx.execute(query.order_by(secret.c.refresh_at).limit(limit))).all()


async def page(tx: AsyncConnection, search: Search, after: UUID | None, limit: int) -> Sequence[Row]:
    """Secrets after one of them in the order of their ids: that of their making, which no change disturbs."""
    query = _WITH_VERSION.where(*_conditions(tx, search))
    if after is not None:
        query = query.where(secret.c.id > after)
    return (await tx.execute(query.order_by(secret.c.id).limit(limit))).all()


async def update(tx: AsyncConnection, owner_id: UUID, secret_id: UUID, columns: Mapping[str, Any]) -> None:
    """Change columns of a secret."""
    where = (secret.c.id == secret_id, secret.c.owner_id == owner_id)
    await tx.execute(sa.update(secret).where(*where).values(**columns))


async def mark(
    tx: AsyncConnection, secret_id: UUID, version: int, state: str, reason: str, failed_at: datetime | None
) -> Row | None:
    """Change the state of a secret, if its value is still that version and its state another; its id and owner if so."""
    where = (secret.c.id == secret_id, secret.c.version == version, secret.c.state != state, *_is_deleted(False))
    query = sa.update(secret).where(*where).values(state=state, state_reason=reason, failed_at=failed_at)
    return (await tx.execute(query.returning(secret.c.id, secret.c.owner_id, secret.c.owner_kind))).one_or_none()


async def delete(tx: AsyncConnection, owner_id: UUID, secret_id: UUID) -> None:
    """Remove a secret with all its values."""
    await tx.execute(sa.delete(secret).where(secret.c.id == secret_id, secret.c.owner_id == owner_id))


def _whose(owners: Iterable[UUID], shared: Iterable[UUID]) -> sa.ColumnElement[bool]:
    """These owners' secrets, or these secrets. Without the latter no OR stands in the way of the owners' index."""
    owned, lent = secret.c.owner_id.in_(list(owners)), list(shared)
    return sa.or_(owned, secret.c.id.in_(lent)) if lent else owned


def _is_deleted(deleted: bool | None) -> tuple[sa.ColumnElement[bool], ...]:  # noqa: FBT001  # a condition's value
    if deleted is None:
        return ()
    return (secret.c.deleted_at.is_not(None) if deleted else secret.c.deleted_at.is_(None),)


def _conditions(tx: AsyncConnection, search: Search) -> list[sa.ColumnElement[bool]]:
    found = _standing(search)
    if search.owners is not None:
        found.append(_whose(search.owners, search.shared))
    shown_name = secret.c.deleted_name if search.standing == "deleted" else secret.c.name
    if search.name is not None:
        found.append(shown_name == search.name)
    exact = ("provider", "secret_type", "is_active")
    found.extend(secret.c[name] == getattr(search, name) for name in exact if getattr(search, name) is not None)
    if search.expires_before is not None:
        found.append(secret.c.expires_at <= search.expires_before)
    if search.text:
        columns = (shown_name, secret.c.provider, secret.c.description)
        found.append(sa.or_(*(column.icontains(search.text, autoescape=True) for column in columns)))
    if search.tag is not None:
        found.append(_has_tag(tx, search.tag))
    return found


def _standing(search: Search) -> list[sa.ColumnElement[bool]]:
    """The conditions of one standing: each secret has exactly one at a moment, in the order of ``vault.standing``."""
    if search.standing in {None, "deleted"}:
        return [*_is_deleted(search.standing == "deleted")]
    found = [*_is_deleted(False), secret.c.is_active.is_(search.standing != "inactive")]
    if search.standing in {"unreadable", "failed"}:
        return [*found, secret.c.state == search.standing]
    if search.standing == "inactive":
        return found
    expired = sa.and_(secret.c.expires_at.is_not(None), secret.c.expires_at <= search.now)
    due = (secret.c.expires_at, secret.c.rotate_at)
    expiring = sa.or_(*(sa.and_(at.is_not(None), at <= search.soon) for at in due))
    found.append(secret.c.state.not_in(("unreadable", "failed")))
    if search.standing == "expired":
        return [*found, expired]
    return [*found, ~expired, expiring if search.standing == "expiring" else ~expiring]


def _has_tag(tx: AsyncConnection, tag: str) -> sa.ColumnElement[bool]:
    if tx.dialect.name == "postgresql":
        return secret.c.tags.op("@>", is_comparison=True)(sa.literal([tag], secret.c.tags.type))
    each = sa.func.json_each(secret.c.tags).table_valued("value", name="tag")
    return sa.exists(sa.select(1).select_from(each).where(each.c.value == tag))
