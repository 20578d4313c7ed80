"""From the database to a backup: one snapshot of all tables, row by row, sealed as it is written.

The file is made beside its place and takes its name when it is whole and was read back: an interrupted backup leaves nothing that
looks like one, and running it again begins anew.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer import __version__
from keybearer.audit import management
from keybearer.crypto.envelope import KEY_BYTES
from keybearer.crypto.keyring import Keyring
from keybearer.crypto.kms import Wrapper
from keybearer.domain import ManagementRecord, SecretBytes
from keybearer.errors import BackupError
from keybearer.store.db import Actor, Database
from keybearer.store.migrations import HEAD
from keybearer.store.queries import keys
from keybearer.store.whole import snapshot
from keybearer.vault.transfer import container, tables
from keybearer.vault.transfer.container import Header, Reader, Writer
from keybearer.vault.transfer.items import Progress

_TOGETHER = 1000


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that was made."""

    id: UUID
    path: str
    bytes: int
    rows: int
    tables: int
    key_by: str
    root_keys: tuple[str, ...]
    """What must be there to restore it: provider and reference of each root key in use."""


async def make(db: Database, keyring: Keyring, path: Path, phrase: Wrapper | None, progress: Progress) -> Made:
    """Write a backup to ``path``, which must not be there yet. ``phrase``: what wraps its key; ``None``: the root key.

    Raises ``BackupError`` (path), ``Unavailable``, ``RootKeyError``.
    """
    key, backup_id = SecretBytes(os.urandom(KEY_BYTES)), uuid4()
    try:
        with _whole(path) as file:
            async with snapshot(db) as tx:
                header = await _header(tx, keyring, (backup_id, key), phrase)
                rows, count = await _write(tx, Writer(file, header, key), progress)
            size = file.tell()
            file.seek(0)
            for _ in Reader(file).lines(key):  # what a disk did not keep is found now, and not when it is needed
                pass
    except OSError as error:
        raise BackupError(f"{path} cannot be written: {error.strerror}.", hint="Check free space and permissions.") from None
    async with db.write(Actor.system()) as tx:
        detail = (("rows", str(rows)), ("key", header.key_by))
        await management.record(db, tx, ManagementRecord("backup.create", None, str(backup_id), detail=detail))
    needed = tuple(f"{each['provider']} {each['reference']}".strip() for each in header.root_keys if each["state"] != "retired")
    return Made(backup_id, str(path), size, rows, count, header.key_by, needed)


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A new file for the owner alone that has its name only once it is whole and synced. Raises ``BackupError``, ``OSError``."""
    if path.exists():
        raise BackupError(f"{path} is there already.", hint="Name a new file: a backup is never overwritten.")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with suppress(FileNotFoundError):
            partial.unlink()  # of a run that was interrupted
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)  # unlike a rename, it never replaces what somebody put there meanwhile
    finally:
        with suppress(OSError):
            partial.unlink()


async def _header(tx: AsyncConnection, keyring: Keyring, own: tuple[UUID, SecretBytes], phrase: Wrapper | None) -> Header:
    backup_id, key = own
    rows = await keys.root_keys(tx)
    root_keys = [{"id": str(row.id), "provider": row.provider, "reference": row.reference, "state": row.state} for row in rows]
    root_key = {}
    if phrase is not None:
        wrapped = await phrase.wrap(key.reveal(), container.wrapped_for(backup_id, keyring.deployment))
    else:
        active = await keyring.active_root_key(tx)
        wrapped = await keyring.seal_backup_key(tx, active.id, backup_id, key)
        root_key = {name: getattr(active, name) for name in ("provider", "reference")} | {"id": str(active.id)}
        root_key |= {name: b64encode(getattr(active, name) or b"").decode() for name in ("wrapped", "proof")}
    return Header(
        id=backup_id,
        deployment=keyring.deployment,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        revision=HEAD,
        key_by="root-key" if phrase is None else "passphrase",
        key=wrapped,
        root_keys=root_keys,
        root_key=root_key,
    )


async def _write(tx: AsyncConnection, writer: Writer, progress: Progress) -> tuple[int, int]:
    """Write all tables as the transaction sees them; return how many rows and tables that were."""
    kept = list(tables.kept())
    counts = {table.name: int((await tx.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()) for table in kept}
    total, done = sum(counts.values()), 0
    for table in kept:
        digest = tables.Digest()
        # Plain text, of SQLAlchemy's own kinds of it.
        writer.line({"table": str(table.name), "columns": [str(column.name) for column in table.c]})
        found = await tx.stream(sa.select(table))
        async for part in found.partitions(_TOGETHER):
            for row in part:
                written = tables.written(row)
                digest.add(written)
                writer.line(written)
            done += len(part)
            progress(table.name, done, total)
        writer.line({"end": str(table.name)} | digest.told())
    writer.line({"backup": "complete", "rows": done, "tables": len(kept)})
    writer.close()
    return done, len(kept)
