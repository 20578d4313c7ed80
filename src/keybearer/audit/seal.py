"""Sealing: what has arrived in the database becomes leaves of one tree, and each new size of it is signed.

What is signed cannot be taken back unseen: a record changed, removed, moved or added below that size gives another root, and a
tree that was cut off is shorter than the checkpoint that somebody else has. So checkpoints are pushed to a place that the
database's writer cannot reach.

One process seals at a time: it holds a lease on the tree, and appends only where lease, fence and size are as it found them, in
the transaction that signs. So two checkpoints of one size are never signed, however long a process slept. A writer whose records
do not follow each other is not sealed beyond that: an alarm tells of it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID, uuid4

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keybearer.audit import lines, management, merkle
from keybearer.audit.merkle import Tile
from keybearer.audit.notes import Checkpoint, Signer, Verifier
from keybearer.audit.tree import leaf_hashes
from keybearer.crypto.envelope import key_id_of
from keybearer.crypto.keyring import Binding, Keyring
from keybearer.domain import SYSTEM_OWNER_ID, ManagementRecord
from keybearer.errors import AuditBroken, Conflict, EnvelopeError, KeybearerError
from keybearer.store.db import Actor, Database
from keybearer.store.queries import tree as queries
from keybearer.store.queries.tree import Digest, Note, Run, Tree, Unsealed

BATCH = 4096
"""Leaves of one transaction."""
LEASE = timedelta(seconds=60)
RETRY = (5.0, 600.0)
"""Seconds until a checkpoint that could not be pushed is tried again: doubled from the first to the second."""
PUSHED = "audit.push"

_log = structlog.get_logger(__name__)


class Target(Protocol):
    """Where checkpoints are pushed."""

    async def push(self, note: str) -> None:
        """Bring the note there. Raises ``KeybearerError``."""
        ...


@dataclass(frozen=True, slots=True)
class _Part:
    """Records of one writer on their way into the tree."""

    writer: UUID
    first_seq: int
    hashes: bytes
    h: bytes
    """Of the last of them."""

    @property
    def count(self) -> int:
        return len(self.hashes) // merkle.HASH


class Sealer:
    """Seals, signs and pushes. ``alarms`` counts writers that could not be sealed; ``push_failures`` attempts that failed."""

    def __init__(self, db: Database, keyring: Keyring, target: Target | None = None) -> None:
        self.alarms = 0
        self.push_failures = 0
        self._db = db
        self._keyring = keyring
        self._target = target
        self._id = uuid4()
        self._signer: Signer | None = None
        self._quarantined: set[UUID] = set()
        self._turn = asyncio.Lock()
        self._failed = 0
        self._retry_at = 0.0

    async def turn(self) -> int:
        """Seal what there is, and push the newest checkpoint; return how many records were sealed. Raises ``Unavailable``."""
        sealed = await self.seal()
        await self.push()
        return sealed

    async def seal(self, *, rests: bool = True) -> int:
        """Seal what there is; return how many records that was: 0 if another process is at it.

        ``rests``: sleep as long as each batch took, so that a backlog does not take the event loop from the calls.
        """
        sealed = 0
        async with self._turn:
            fence: int | None = None
            while True:
                began = time.monotonic()
                tree, parts = await self._gather()
                if not parts:
                    return sealed
                if fence is None and (fence := await self._lease()) is None:
                    return sealed
                if not await self._append(tree, fence, parts):
                    return sealed
                sealed += sum(part.count for part in parts)
                if rests and sealed >= BATCH:
                    await asyncio.sleep(time.monotonic() - began)

    async def verifier(self) -> Verifier:
        """Return the public key that checkpoints are checked with, from the sealed private one. Raises ``AuditBroken``."""
        return (await self._signing()).verifier

    async def push(self) -> None:
        """Push the newest checkpoint, unless that is done or the last attempt failed too recently. A failure is recorded."""
        if self._target is None or time.monotonic() < self._retry_at:
            return
        async with self._db.read(Actor.system()) as tx:
            tree, note = await queries.get(tx), await queries.latest_note(tx)
        if tree is None or note is None or note.size <= tree.pushed_size or await self._lease() is None:
            return
        try:
            await self._target.push(note.note)
        except KeybearerError as error:
            await self._push_failed(tree, note, error)
            return
        self._failed, self._retry_at = 0, 0.0
        async with self._db.write(Actor.system()) as tx:
            await queries.pushed(tx, size=note.size)
            if tree.push_error:
                await management.record(self._db, tx, ManagementRecord(PUSHED, None, str(note.size)))
        if tree.push_error:
            _log.info("audit.push_works_again", size=note.size)

    async def release(self) -> None:
        """Let another process seal at once: this one stops."""
        async with self._db.write(Actor.system()) as tx:
            await queries.release(tx, self._id)

    # --- sealing

    async def _gather(self) -> tuple[Tree, list[_Part]]:
        """Read what is not sealed, a batch of it at most, and hash it."""
        await self._signing()
        async with self._db.read(Actor.system()) as tx:
            tree = await queries.get(tx)
            if tree is None:
                raise AuditBroken("The sealed tree is missing from the database.")
            parts, room, misfits = [], BATCH, []
            for writer in await queries.unsealed(tx):
                if writer.writer_id in self._quarantined or room <= 0:
                    continue
                rows = await queries.digests(tx, writer.writer_id, writer.seq + 1, min(writer.shipped_seq, writer.seq + room))
                fitting = _fitting(writer, rows)
                if len(fitting) < min(writer.shipped_seq - writer.seq, room):
                    misfits.append((writer.writer_id, writer.seq + len(fitting) + 1))
                if fitting:
                    hashes = await leaf_hashes(writer.writer_id, fitting)
                    parts.append(_Part(writer.writer_id, fitting[0].seq, hashes, fitting[-1].h))
                    room -= len(fitting)
        for writer_id, seq in misfits:
            await self._alarm(writer_id, seq)
        return tree, parts

    async def _append(self, tree: Tree, fence: int, parts: list[_Part]) -> bool:
        """Append to the tree as it was read, sign what it is now, commit; ``False`` if another process has been at it."""
        signer = await self._signing()
        edge = [tile for tile in merkle.edge_of(tree.size) if merkle.tile_width(tile, tree.size)]
        async with self._db.read(Actor.system()) as tx:
            stored = await queries.tiles(tx, edge)
        try:
            grown = merkle.Tree(tree.size, [stored.get(tile, b"") for tile in merkle.edge_of(tree.size)])
        except ValueError:
            raise AuditBroken("The sealed tree is damaged: a tile at its edge is missing or cut.") from None
        runs, index = [], tree.size
        tiles: dict[Tile, bytes] = {}
        for part in parts:
            runs.append(Run(index, part.writer, part.first_seq, part.count))
            index += part.count
            tiles |= grown.append(part.hashes)
            await asyncio.sleep(0)
        ends = {part.writer: (part.first_seq + part.count - 1, part.h) for part in parts}
        now = datetime.now(UTC)
        async with self._db.write(Actor.system()) as tx:
            row = await queries.get(tx, lock=True)
            if row is None or (row.holder, row.fence, row.size) != (self._id, fence, tree.size):
                return False
            await queries.append(tx, runs, ends)
            await queries.put_tiles(tx, [(*tile, hashes) for tile, hashes in tiles.items()])
            await queries.grow(tx, grown.size, now + LEASE)
            note = signer.sign(Checkpoint(signer.name, grown.size, grown.root).text)
            await queries.add_note(tx, Note(grown.size, now, note))
        return True

    async def _lease(self) -> int | None:
        """Take the lease; return its fence. Clocks that differ cost an attempt, never a second signature."""
        now = datetime.now(UTC)
        async with self._db.write(Actor.system()) as tx:
            return await queries.lease(tx, self._id, now, now + LEASE)

    async def _alarm(self, writer: UUID, seq: int) -> None:
        await management.alarm(self._db, writer, seq, "not sealed: it does not follow the record before it")
        self.alarms += 1
        self._quarantined.add(writer)

    # --- signing

    async def _signing(self) -> Signer:
        """Return the log's signing key, made where there is none. Raises ``AuditBroken`` if it does not open."""
        if self._signer is not None:
            return self._signer
        async with self._db.read(Actor.system()) as tx:
            tree = await queries.get(tx)
        if tree is None:
            await self._found()
        async with self._db.read(Actor.system()) as tx:
            tree = await queries.get(tx)
            try:
                envelope = tree.key_envelope if tree else b""
                owner_key = await self._keyring.opening_key(tx, key_id_of(envelope), SYSTEM_OWNER_ID)
                raw = self._keyring.unseal(owner_key, self._binding(), envelope).reveal()
            except EnvelopeError:
                raise AuditBroken("The key that signs checkpoints cannot be opened: its row was changed.") from None
        self._signer = Signer(f"keybearer/{self._keyring.deployment}", Ed25519PrivateKey.from_private_bytes(raw))
        return self._signer

    async def _found(self) -> None:
        """Begin the tree with a new signing key, or leave it where another process was first."""
        key = Ed25519PrivateKey.generate()
        try:
            async with self._db.write(Actor.system()) as tx:
                owner_key = await self._keyring.sealing_key(tx, SYSTEM_OWNER_ID)
                envelope = self._keyring.seal(owner_key, self._binding(), key.private_bytes_raw())
                await queries.found(tx, key.public_key().public_bytes_raw(), envelope, datetime.now(UTC))
        except Conflict:
            return

    def _binding(self) -> Binding:
        return Binding(self._keyring.deployment, 1, "key", purpose="audit-signing-key")

    # --- pushing

    async def _push_failed(self, tree: Tree, note: Note, error: KeybearerError) -> None:
        """Keep why, and record it when it is news; the next attempt comes later and later."""
        self.push_failures += 1
        self._retry_at = time.monotonic() + min(RETRY[0] * 2.0 ** min(self._failed, 16), RETRY[1])
        self._failed += 1
        async with self._db.write(Actor.system()) as tx:
            await queries.pushed(tx, error=lines.clean(error.message, lines.DETAIL_VALUE))
            if not tree.push_error:
                detail = (("reason", error.message),)
                await management.record(self._db, tx, ManagementRecord(PUSHED, None, str(note.size), error.code, detail=detail))
        if not tree.push_error:
            _log.error("audit.push_failed", size=note.size, reason=error.message)


def _fitting(writer: Unsealed, rows: list[Digest]) -> list[Digest]:
    """Return the records that follow the last one sealed, and each other."""
    seq, h = writer.seq, writer.h
    for number, row in enumerate(rows):
        if row.seq != seq + 1 or lines.chain(h, row.d) != row.h:
            return rows[:number]
        seq, h = row.seq, row.h
    return rows
