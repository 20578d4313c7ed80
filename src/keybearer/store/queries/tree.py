"""The sealed tree: what its leaves are, its tiles, its checkpoints, and who may append. All the system's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.store import bulk
from keybearer.store.queries.audit import GENESIS
from keybearer.store.schema import audit_note, audit_record, audit_run, audit_sealed, audit_tile, audit_tree, audit_writer

TileName = tuple[int, int]
"""Level and number."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The row of ``audit_tree``."""

    size: int
    public_key: bytes
    key_envelope: bytes
    holder: UUID | None
    fence: int
    leased_until: datetime | None
    pushed_size: int
    push_error: str


class Unsealed(NamedTuple):
    """A writer with records that are not in the tree; ``seq`` and ``h`` are those of the last one that is."""

    writer_id: UUID
    shipped_seq: int
    seq: int
    h: bytes


class Run(NamedTuple):
    """Neighbouring leaves that are neighbouring records of one writer."""

    first_index: int
    writer_id: UUID
    first_seq: int
    length: int


class Digest(NamedTuple):
    """What of a record goes into the tree, and ``h``."""

    seq: int
    d: bytes
    h: bytes


class Note(NamedTuple):
    """A signed checkpoint."""

    size: int
    at: datetime
    note: str


# --- the tree and its lease


async def get(tx: AsyncConnection, *, lock: bool = False) -> Tree | None:
    """Return the tree; with ``lock`` nobody else may append until this transaction ends."""
    columns = [audit_tree.c[name] for name in Tree.__dataclass_fields__]
    query = sa.select(*columns)
    row = (await tx.execute(query.with_for_update() if lock else query)).one_or_none()
    return Tree(*row) if row else None


async def found(tx: AsyncConnection, public_key: bytes, key_envelope: bytes, at: datetime) -> None:
    """Begin the tree. Raises ``IntegrityError`` if there is one."""
    row = {"singleton": 1, "size": 0, "public_key": public_key, "key_envelope": key_envelope, "fence": 0}
    await tx.execute(sa.insert(audit_tree).values(**row, pushed_size=0, push_error="", created_at=at))


async def lease(tx: AsyncConnection, holder: UUID, now: datetime, until: datetime) -> int | None:
    """Take the right to append, or prolong it; return the fence, ``None`` while another holds it."""
    c = audit_tree.c
    is_free = sa.or_(c.holder.is_(None), c.holder == holder, c.leased_until < now)
    fence = c.fence + sa.case((c.holder == holder, 0), else_=1)
    changed = await tx.execute(sa.update(audit_tree).where(is_free).values(holder=holder, fence=fence, leased_until=until))
    if not changed.rowcount:
        return None
    fenced: int = (await tx.execute(sa.select(c.fence))).scalar_one()
    return fenced


async def release(tx: AsyncConnection, holder: UUID) -> None:
    """Give the lease back, if it is this holder's."""
    await tx.execute(sa.update(audit_tree).where(audit_tree.c.holder == holder).values(leased_until=None, holder=None))


async def grow(tx: AsyncConnection, size: int, until: datetime) -> None:
    """Note the new size and prolong the lease."""
    await tx.execute(sa.update(audit_tree).values(size=size, leased_until=until))


async def pushed(tx: AsyncConnection, *, size: int | None = None, error: str = "") -> None:
    """Note that the checkpoint of this size was pushed elsewhere, or why it could not be."""
    values = {"push_error": error} if size is None else {"push_error": error, "pushed_size": size}
    await tx.execute(sa.update(audit_tree).values(**values))


# --- leaves


async def unsealed(tx: AsyncConnection) -> list[Unsealed]:
    """Return the writers that have records which are not in the tree, in one order."""
    w, s = audit_writer.c, audit_sealed.c
    seq = sa.func.coalesce(s.seq, 0)
    rows = await tx.execute(
        sa.select(w.id, w.shipped_seq, seq, s.h)
        .select_from(audit_writer.outerjoin(audit_sealed, s.writer_id == w.id))
        .where(w.shipped_seq > seq)
        .order_by(w.started_at, w.id)
    )
    return [Unsealed(row[0], row[1], row[2], row[3] or GENESIS) for row in rows]


async def digests(tx: AsyncConnection, writer_id: UUID, first: int, last: int) -> list[Digest]:
    """Return what of the records from ``first`` to ``last`` goes into the tree, in order."""
    c = audit_record.c
    rows = await tx.execute(
        sa.select(c.seq, c.d, c.h).where(c.writer_id == writer_id, c.seq.between(first, last)).order_by(c.seq)
    )
    return [Digest(*row) for row in rows]


class Evidence(NamedTuple):
    """What of a record an archive holds."""

    seq: int
    nonce: bytes
    line: str
    d: bytes
    h: bytes


async def evidence(tx: AsyncConnection, writer_id: UUID, first: int, last: int, limit: int) -> list[Evidence]:
    """Return the evidence of the records from ``first`` to ``last``, in order, ``limit`` of them at most."""
    c = audit_record.c
    rows = await tx.execute(
        sa.select(c.seq, c.nonce, c.line, c.d, c.h)
        .where(c.writer_id == writer_id, c.seq.between(first, last))
        .order_by(c.seq)
        .limit(limit)
    )
    return [Evidence(*row) for row in rows]


async def append(tx: AsyncConnection, runs: Sequence[Run], ends: Mapping[UUID, tuple[int, bytes]]) -> None:
    """Say what the new leaves are; ``ends``: the last record sealed of each writer, its number and ``h``."""
    await bulk.insert(tx, audit_run, runs)
    rows = [(writer_id, seq, h, 0) for writer_id, (seq, h) in ends.items()]
    await bulk.insert(
        tx, audit_sealed, rows, on_conflict="ON CONFLICT (writer_id) DO UPDATE SET seq = excluded.seq, h = excluded.h"
    )


async def run_of(tx: AsyncConnection, writer_id: UUID, seq: int) -> Run | None:
    """Return the run that holds a record; ``None`` if the record is not in the tree."""
    c = audit_run.c
    rows = await tx.execute(
        sa.select(audit_run).where(c.writer_id == writer_id, c.first_seq <= seq).order_by(c.first_seq.desc()).limit(1)
    )
    run = next((Run(*row) for row in rows), None)
    return run if run and seq < run.first_seq + run.length else None


async def runs(tx: AsyncConnection, first: int, limit: int) -> list[Run]:
    """Return runs from leaf ``first`` on, in order."""
    c = audit_run.c
    rows = await tx.execute(sa.select(audit_run).where(c.first_index >= first).order_by(c.first_index).limit(limit))
    return [Run(*row) for row in rows]


async def sealed(tx: AsyncConnection, writer_id: UUID) -> tuple[int, int]:
    """Return up to which number a writer's records are in the tree, and up to which retention has emptied them."""
    c = audit_sealed.c
    row = (await tx.execute(sa.select(c.seq, c.redacted_seq).where(c.writer_id == writer_id))).one_or_none()
    return (row.seq, row.redacted_seq) if row else (0, 0)


async def ends(tx: AsyncConnection) -> dict[UUID, tuple[int, bytes]]:
    """Return the last sealed record of each writer: its number and ``h``."""
    c = audit_sealed.c
    return {row.writer_id: (row.seq, row.h) for row in await tx.execute(sa.select(c.writer_id, c.seq, c.h))}


# --- tiles


async def put_tiles(tx: AsyncConnection, tiles: Iterable[tuple[int, int, bytes]]) -> None:
    """Write tiles (level, number, hashes), or what they have grown to."""
    await bulk.insert(
        tx, audit_tile, list(tiles), on_conflict="ON CONFLICT (level, number) DO UPDATE SET hashes = excluded.hashes"
    )


async def tiles(tx: AsyncConnection, names: Iterable[TileName]) -> dict[TileName, bytes]:
    """Return those of these tiles that are there."""
    wanted = list(names)
    if not wanted:
        return {}
    c = audit_tile.c
    rows = await tx.execute(
        sa.select(audit_tile).where(sa.or_(*(sa.and_(c.level == level, c.number == n) for level, n in wanted)))
    )
    return {(row.level, row.number): row.hashes for row in rows}


async def tile_range(tx: AsyncConnection, level: int, first: int, last: int) -> dict[int, bytes]:
    """Return the tiles of a level from number ``first`` to ``last``, by number."""
    c = audit_tile.c
    rows = await tx.execute(sa.select(c.number, c.hashes).where(c.level == level, c.number.between(first, last)))
    return {row.number: row.hashes for row in rows}


# --- checkpoints


async def add_note(tx: AsyncConnection, note: Note) -> None:
    """Keep a signed checkpoint."""
    await tx.execute(sa.insert(audit_note).values(**note._asdict()))


async def latest_note(tx: AsyncConnection) -> Note | None:
    """Return the newest checkpoint."""
    row = (await tx.execute(sa.select(audit_note).order_by(audit_note.c.size.desc()).limit(1))).one_or_none()
    return Note(*row) if row else None


async def notes(tx: AsyncConnection, after: int, last: int) -> list[Note]:
    """Return checkpoints of more than ``after`` leaves and up to ``last``, in order."""
    c = audit_note.c
    rows = await tx.execute(sa.select(audit_note).where(c.size > after, c.size <= last).order_by(c.size))
    return [Note(*row) for row in rows]
