"""From a backup to an empty database, of either kind: read to its end first, then written, proved and committed as one transaction.

Read     every chunk opens at its place, every table's rows add up to its digest, the root key opens; nothing is written yet
Write    the schema of the backup's time, all rows, then the migrations since
Prove    the rows read back add up to the same digests; the keys open; a sample of values opens; the audit trail verifies
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any
from uuid import UUID

import sqlalchemy as sa

from keybearer.audit import management, segments, verify
from keybearer.audit.seal import Sealer
from keybearer.audit.sealed import verify_tree
from keybearer.crypto.keyring import Keyring, open_backup_key, unwrap_root_key
from keybearer.crypto.kms import Wrapper
from keybearer.domain import ManagementRecord, SecretBytes
from keybearer.errors import AuditBroken, BackupError, EnvelopeError, RootKeyError
from keybearer.store.migrations import HEAD
from keybearer.store.queries import tree as tree_queries
from keybearer.store.schema import metadata, root_key
from keybearer.store.whole import Within, bring_up, filling
from keybearer.vault.sealed_columns import OWNERS_TABLES, OwnersTable
from keybearer.vault.transfer import container, tables
from keybearer.vault.transfer.container import Header, Reader
from keybearer.vault.transfer.items import Progress

SAMPLE = 500
"""Values of each table that are opened, drawn at random."""
_TOGETHER = 500
_OTHER_VERSION = "Restore it with the version that made it."

FindWrapper = Callable[[str], Wrapper]
"""Gives the root key provider of a name. Raises ``RootKeyError`` where the settings do not have what it needs."""


@dataclass(slots=True)
class Contents:
    """What a backup holds, as its first reading found it."""

    header: Header
    rows: int = 0
    digests: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By table: rows and digest, in the backup's order."""
    columns: dict[str, list[sa.Column[Any]]] = field(default_factory=dict)
    root_keys: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Restored:
    """A backup that was restored, and what proved it."""

    id: UUID
    made_at: str
    rows: int
    tables: int
    sampled: int
    """Sealed values that were opened."""
    unreadable: int
    """Of these, those that did not open, as in the database that was backed up."""
    records: int
    """Entries of the audit trail that verify."""
    audit: str
    """``ok``, or the first problem, which was there before."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to restore to."""

    url: str
    direct_url: str
    journal_dir: Path
    find: FindWrapper
    despite_broken_audit: bool = False


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a backup. Raises ``BackupError``."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}.", hint="Check its path and mode.") from None


def header_of(path: Path) -> Header:
    """What can be told of a backup without its key: among it what that key is wrapped by. Raises ``BackupError``."""
    with opened(path) as file:
        return Reader(file).header


async def restore(path: Path, phrase: Wrapper | None, target: Target, progress: Progress) -> Restored:
    """Restore a backup into an empty database; see the module.

    Raises ``BackupError`` (no backup, damaged, cut short, newer, another passphrase), ``RootKeyError``, ``DatabaseError`` (not empty),
    ``AuditBroken``, ``Unavailable``: nothing was changed then.
    """
    header = header_of(path)
    if header.revision > HEAD:
        raise BackupError(
            f"The backup was made by a newer version ({header.version}, schema {header.revision}).",
            hint=f"This is schema {HEAD}: restore it with that version, or a later one.",
        )
    if segments.journals(target.journal_dir):
        raise BackupError(
            f"{target.journal_dir} holds journals of another time.",
            hint="Restore with a new data directory, or move them away and keep them: they tell of uses since the backup.",
        )
    key = await _key(header, phrase, target.find)
    contents = read_through(path, key, progress)
    await _prove_root_key(contents, target.find)
    async with filling(target.url, target.direct_url, header.revision) as within:
        await _write(within, path, key, contents, progress)
        await _compare(within, contents, progress)
        await bring_up(within, target.url)
        proved = await _prove(within, contents, target)
        detail = (("made_at", header.made_at), ("rows", str(contents.rows)), ("version", header.version))
        await management.record(within, within.tx, ManagementRecord("backup.restore", None, str(header.id), detail=detail))
    return proved


def read_through(path: Path, key: SecretBytes, progress: Progress) -> Contents:
    """Read a backup to its end. Raises ``BackupError`` unless all of it is whole."""
    with opened(path) as file:
        reader = Reader(file)
        reading = _Reading(Contents(reader.header))
        for line in reader.lines(key):
            if isinstance(line, list):
                reading.row(line)
                if reading.contents.rows % 1000 == 0:
                    progress("reading", reading.contents.rows, 0)
            else:
                reading.mark(line)
    if not reading.ended:
        raise BackupError(container.CUT_SHORT)
    return reading.contents


@dataclass(slots=True)
class _Reading:
    """A backup on its first reading."""

    contents: Contents
    table: str = ""
    """Whose rows are read; empty: between two tables."""
    digest: tables.Digest = field(default_factory=tables.Digest)
    ended: bool = False

    def row(self, row: list[Any]) -> None:
        if not self.table:
            raise BackupError(container.DAMAGED)
        self.digest.add(row)
        self.contents.rows += 1
        values = tables.read(self.contents.columns[self.table], row)
        if self.table == root_key.name:
            self.contents.root_keys.append(values)

    def mark(self, mark: Any) -> None:
        """A line between rows: a table begins or ends, or all of it does."""
        match mark:
            case _ if self.ended:
                raise BackupError(container.DAMAGED)
            case {"table": str(name), "columns": list(names)} if not self.table and name not in self.contents.columns:
                if name not in metadata.tables:
                    raise BackupError(f"The backup has a table {name} that this version does not know.", hint=_OTHER_VERSION)
                self.contents.columns[name] = tables.columns_of(metadata.tables[name], names)
                self.digest, self.table = tables.Digest(), name
            case {"end": str(name), "rows": int(rows), "digest": str(digest)} if name == self.table:
                self.contents.digests[name] = {"rows": rows, "digest": digest}
                if self.digest.told() != self.contents.digests[name]:
                    raise BackupError(container.DAMAGED)
                self.table = ""
            case {"backup": "complete", "rows": self.contents.rows, "tables": int(count)} if not self.table:
                self.ended = count == len(self.contents.digests)
            case _:
                raise BackupError(container.DAMAGED)


async def _key(header: Header, phrase: Wrapper | None, find: FindWrapper) -> SecretBytes:
    """The backup's own key. Raises ``BackupError``, ``RootKeyError``."""
    if header.key_by == "passphrase":
        if phrase is None:
            raise BackupError("The backup is encrypted with a passphrase.", hint="Give it on standard input: --passphrase-stdin.")
        try:
            return SecretBytes(await phrase.unwrap(header.key, container.wrapped_for(header.id, header.deployment)))
        except RootKeyError:
            raise BackupError(
                "The backup does not open with this passphrase.", hint="It is another, or the file is damaged."
            ) from None
    try:
        row = SimpleNamespace(**{name: header.root_key[name] for name in ("id", "provider", "reference", "wrapped", "proof")})
        row.id, row.wrapped, row.proof = UUID(row.id), b64decode(row.wrapped), b64decode(row.proof)
    except (KeyError, ValueError, TypeError, Base64Error):
        raise BackupError(container.NO_BACKUP) from None
    root = await unwrap_root_key(header.deployment, find(row.provider), row)
    try:
        return open_backup_key(root, header.deployment, header.id, header.key)
    except EnvelopeError:
        raise BackupError(container.DAMAGED) from None


async def _prove_root_key(contents: Contents, find: FindWrapper) -> None:
    """Unwrap the root key that everything in the backup is under. Raises ``RootKeyError``, ``BackupError``."""
    active = [row for row in contents.root_keys if row["state"] == "active"]
    if len(active) != 1:
        raise BackupError("The backup does not hold one active root key: the database was damaged when it was made.")
    row = SimpleNamespace(**active[0])
    await unwrap_root_key(contents.header.deployment, find(row.provider), row)


async def _write(within: Within, path: Path, key: SecretBytes, contents: Contents, progress: Progress) -> None:
    """Insert all rows. The file is read anew, and authenticated anew: it may have changed since."""
    held: list[Mapping[str, Any]] = []
    name, done = "", 0
    with opened(path) as file:
        for line in Reader(file).lines(key):
            if isinstance(line, list):
                held.append(tables.read(contents.columns[name], line))
            if held and (not isinstance(line, list) or len(held) == _TOGETHER):
                # Without the schema's defaults: at an earlier revision it may lack columns.
                columns = (sa.column(column.name, column.type) for column in contents.columns[name])
                await within.tx.execute(sa.insert(sa.table(name, *columns)), held)
                done += len(held)
                held = []
                progress(name, done, contents.rows)
            if isinstance(line, dict):
                name = line.get("table", name)


async def _compare(within: Within, contents: Contents, progress: Progress) -> None:
    """Read everything back. Raises ``BackupError`` where it is not what was written."""
    done = 0
    for name, told in contents.digests.items():
        digest = tables.Digest()
        found = await within.tx.stream(sa.select(*contents.columns[name]))
        async for part in found.partitions(_TOGETHER):
            for row in part:
                digest.add(tables.written(row))
            done += len(part)
            progress("comparing", done, contents.rows)
        if digest.told() != told:
            raise BackupError(f"Table {name} read back from the database is not what was written.", hint="Try another database.")


async def _prove(within: Within, contents: Contents, target: Target) -> Restored:
    """Open the keys and a sample of values, and verify the audit trail. Raises ``RootKeyError``, ``BackupError``, ``AuditBroken``."""
    active = next(row for row in contents.root_keys if row["state"] == "active")
    keyring = await Keyring.open(within, target.find(active["provider"]), target.find)
    sampled = unreadable = 0
    for table in OWNERS_TABLES:
        drawn = sa.select(table.table).order_by(sa.func.random()).limit(SAMPLE).cte("drawn")
        for row in (await within.tx.execute(table.source(drawn))).all():
            opens, not_opening = await _sample(within, keyring, table, row)
            sampled, unreadable = sampled + opens, unreadable + not_opening
    if unreadable and not sampled:
        raise BackupError("None of the values in the backup opens.", hint="It is of a damaged database: take an earlier one.")
    records, problem = await _verify(within, keyring, target)
    if problem and not target.despite_broken_audit:
        raise AuditBroken(
            f"The audit trail in the backup does not verify: {problem}",
            hint="Nothing was changed. --despite-broken-audit restores it as it is, wrong record and all.",
        )
    header = contents.header
    return Restored(
        header.id, header.made_at, contents.rows, len(contents.digests), sampled, unreadable, records, problem or "ok"
    )


async def _sample(within: Within, keyring: Keyring, table: OwnersTable, row: Any) -> tuple[int, int]:
    """Open all envelopes of a row: how many do, and do not."""
    opens = not_opening = 0
    for column, bind in table.envelopes.items():
        envelope = getattr(row, column)
        if envelope is None:
            continue
        try:
            key = await keyring.opening_key(within.tx, row.owner_key_id, row.owner_id)
            keyring.unseal(key, bind(row, keyring.deployment), bytes(envelope))
            opens += 1
        except EnvelopeError:
            not_opening += 1
    return opens, not_opening


async def _verify(within: Within, keyring: Keyring, target: Target) -> tuple[int, str]:
    """How many entries of the audit trail verify, and the first problem."""
    report = await verify.verify(within, target.journal_dir)
    problems = [str(problem) for problem in report.problems]
    if await tree_queries.get(within.tx) is not None:
        tree = await verify_tree(within, await Sealer(within, keyring).verifier())
        problems += [str(problem) for problem in tree.problems]
    return sum(writer.records for writer in report.writers), problems[0] if problems else ""
