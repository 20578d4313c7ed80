"""The tree over all records as the database holds it: what its leaves are, and proofs from its tiles.

::

    leaf = writer id 16 | sequence number u64, big-endian | d 32

Leaves stand in the order in which records arrived in the database, as the sealer found them; a *run* says which records some
neighbouring leaves are. Writer and number are in the leaf, so that a record keeps its place when its line is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.audit import merkle
from keybearer.audit.merkle import Span, Tile
from keybearer.errors import AuditBroken, Invalid, NotFound
from keybearer.store.queries import tree as queries
from keybearer.store.queries.tree import Digest

SLICE = 256
"""Leaves hashed before others get their turn on the event loop: a third of a millisecond."""


@dataclass(frozen=True, slots=True)
class Inclusion:
    """That a record is a leaf of the tree: ``hashes`` lead from ``leaf`` to the root of the ``note``."""

    index: int
    size: int
    leaf: bytes
    hashes: tuple[bytes, ...]
    note: str


def leaf_hash(writer: UUID, seq: int, d: bytes) -> bytes:
    """Return the hash of a record's leaf."""
    return merkle.leaf_hash(writer.bytes + seq.to_bytes(8, "big") + d)


async def leaf_hashes(writer: UUID, rows: Sequence[Digest]) -> bytes:
    """Return the hashes of many leaves, one after the other, giving way to others now and then."""
    head = b"\x00" + writer.bytes
    found = []
    for number, row in enumerate(rows):
        found.append(sha256(head + row.seq.to_bytes(8, "big") + row.d).digest())
        if number % SLICE == SLICE - 1:
            await asyncio.sleep(0)
    return b"".join(found)


async def inclusion(tx: AsyncConnection, writer: UUID, seq: int, d: bytes) -> Inclusion:
    """Prove that a record, whose ``d`` the caller has read, is in the tree of the newest checkpoint.

    Raises ``NotFound`` if it is not sealed yet, ``AuditBroken`` if the stored tree is damaged or holds another record there.
    """
    run, note = await queries.run_of(tx, writer, seq), await queries.latest_note(tx)
    if run is None or note is None:
        raise NotFound("The record is not sealed yet.", hint="Records are sealed within a minute; ask again.")
    index = run.first_index + seq - run.first_seq
    leaf = leaf_hash(writer, seq, d)
    spans = merkle.inclusion(index, note.size)
    *hashes, stored = await _hashes(tx, [*spans, (index, index + 1)])
    if stored != leaf:
        raise AuditBroken(f"Entry {seq} of writer {writer} was changed since it was sealed.")
    return Inclusion(index, note.size, leaf, tuple(hashes), note.note)


async def consistency(tx: AsyncConnection, old: int, new: int) -> list[bytes]:
    """Prove that the tree of ``old`` leaves is the beginning of that of ``new``. Raises ``Invalid`` for sizes it never had."""
    row = await queries.get(tx)
    if row is None or not 0 < old <= new <= row.size:
        raise Invalid(
            "'from' and 'to' are sizes of the tree, the smaller first.", hint="GET /api/v1/audit/checkpoint tells its size."
        )
    return await _hashes(tx, merkle.consistency(old, new))


async def _hashes(tx: AsyncConnection, spans: Sequence[Span]) -> list[bytes]:
    stored = await queries.tiles(tx, sorted(merkle.tiles_of(spans)))
    try:
        return merkle.hashes_of(spans, {Tile(*name): hashes for name, hashes in stored.items()})
    except merkle.ProofError as error:
        raise AuditBroken(f"The sealed tree is damaged: {error}.") from None
