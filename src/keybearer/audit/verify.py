"""Proving that nothing is missing, changed or reordered: in the journals of this data directory and in the database.

Every chain is walked from its first entry, every line hashed, every column compared with what its line says, every usage record
with its use and outcome, and journal and database with each other. The start and the loss of every journal must stand in the
chain of management records. What a chain alone cannot show is that its end was cut off: that is what closing lines, and later
signed checkpoints, are for; a writer without a closing line is reported as ``lost after n``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.audit import lines, management, segments
from keybearer.audit.batch import Batch, Columns, Shapes
from keybearer.audit.lines import GENESIS, Entry, LineError
from keybearer.audit.segments import Broken, Tail
from keybearer.errors import AuditBroken
from keybearer.store import bulk
from keybearer.store.db import Actor, Database
from keybearer.store.queries import audit as queries
from keybearer.store.queries import usage as usage_queries
from keybearer.store.queries.audit import Spelled, Writer
from keybearer.store.queries.retention import EMPTIED
from keybearer.store.schema import audit_record

_CHUNK = 1000
"""Entries looked at together."""
_MOST_PROBLEMS = 20
"""Problems named for one writer; the first is what counts."""
NOBODY = UUID(int=0)
"""Whose the records are that are nobody's."""
_OF_USE = len(usage_queries.UsageRecord._fields) - len(usage_queries.OUTCOME_COLUMNS)
"""Columns of a usage record that the use tells; those after them are the outcome's, of which the first is how it ended."""
_SECRET = usage_queries.UsageRecord._fields.index("secret_id")
_EMPTIED = tuple(bulk.spelled(list(audit_record.c)[2:-2], [tuple(EMPTIED.values())])[0])
"""Columns of a record that retention has emptied, but for its place and its digests."""
_RECENT = 20_000
"""Uses without an outcome that are remembered."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One wrong record. ``where`` is ``journal``, ``database`` or ``usage``."""

    writer: UUID
    seq: int
    where: str
    what: str

    def __str__(self) -> str:
        place = self.where if self.writer == NOBODY else f"entry {self.seq} of writer {self.writer}, {self.where}"
        return f"{place}: {self.what}"


@dataclass(frozen=True, slots=True)
class WriterReport:
    """What was found of one writer. ``state``: ``closed``, ``running``, ``lost after n``, or ``open on <another host>``."""

    writer: UUID
    kind: str
    state: str
    records: int
    """Entries that verify, in the database and beyond it in the journal."""
    unshipped: int
    """Those of them that only the journal has so far."""
    redacted: int
    """Those of them that retention has emptied."""
    torn_bytes: int
    """Of a write that a killed process or a power loss cut short, after the last whole entry."""


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a verification."""

    writers: tuple[WriterReport, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    """What is worth knowing though nothing is wrong."""

    @property
    def ok(self) -> bool:
        """Whether everything verifies."""
        return not self.problems

    def require(self) -> None:
        """Raise ``AuditBroken``, naming the first wrong record, unless everything verifies."""
        if self.problems:
            raise AuditBroken(f"The audit trail does not verify: {self.problems[0]}")

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return {
            "ok": self.ok,
            "problem": str(self.problems[0]) if self.problems else None,
            "problems": [
                {"writer": str(found.writer), "seq": found.seq, "where": found.where, "what": found.what}
                for found in self.problems
            ],
            "notes": list(self.notes),
            "writers": [
                {
                    "writer": str(found.writer),
                    "kind": found.kind,
                    "state": found.state,
                    "records": found.records,
                    "unshipped": found.unshipped,
                    "redacted": found.redacted,
                    "torn_bytes": found.torn_bytes,
                }
                for found in self.writers
            ],
        }


@dataclass(slots=True)
class _Walk:
    """Verification of one writer under way."""

    writer: UUID
    seq: int = 0
    h: bytes = GENESIS
    is_closed: bool = False
    read: int = -(2**63)
    """The last number read: none can hide below 1."""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    awaiting: dict[str, int] = field(default_factory=dict)
    """Uses whose usage record has an outcome that no record has told of yet: request id → number."""
    recent: dict[str, Columns] = field(default_factory=dict)
    """User, owner and secret of uses whose outcome has not come yet: saves asking the database for them."""
    shapes: Shapes = field(default_factory=Shapes)
    redactable: int = 0
    """Up to which number the management records tell of retention."""
    redacted: int = 0

    def blame(self, seq: int, where: str, what: str) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(Problem(self.writer, seq, where, what))


async def verify(db: Database, directory: Path, progress: Callable[[int], None] | None = None) -> Report:
    """Verify the database and the journals in ``directory``. Raises ``Unavailable``, never for what it finds.

    ``progress`` is told how many records more were checked.
    """
    journals = segments.journals(directory)
    # A process registers its writer before it writes, so this must be seen before the database is read.
    written = {writer for writer, path in journals.items() if _is_written(path)}
    async with db.read(Actor.system()) as tx:
        # The management records first: whether a journal is missing depends on them.
        writers = sorted(await queries.writers(tx), key=lambda writer: writer.id != management.WRITER)
        told = await _told(tx)
        unaccounted = await usage_queries.unaccounted(tx, _MOST_PROBLEMS, told.before)
    reports: list[WriterReport] = []
    problems: list[Problem] = []
    notes: list[str] = list(told.alarms)
    for row in writers:
        walk = _Walk(row.id, redactable=told.redacted.get(str(row.id), 0))
        writer = await _verify_database(db, walk, row, progress)
        if writer.id != management.WRITER:
            _check_registered(walk, writer, told)
        reports.append(await _verify_journal(db, walk, writer, journals.get(writer.id)))
        problems += walk.problems
        notes += walk.notes
    known = {writer.id for writer in writers}
    problems += [
        Problem(management.WRITER, seq, "database", f"missing: writer {subject}, of which this entry tells")
        for subject, seq in told.opened.items()
        if subject not in {str(writer_id) for writer_id in known}
    ]
    problems += [
        Problem(stranger, 1, "database", "missing: the writer of this journal is not registered")
        for stranger in sorted(written - known)
    ]
    problems += [Problem(NOBODY, 0, "usage", f"added: no record tells of {request_id}") for request_id in unaccounted]
    return Report(tuple(reports), tuple(problems), tuple(notes))


@dataclass(slots=True)
class _Told:
    """What management records tell of journals."""

    opened: dict[str, int] = field(default_factory=dict)
    """Writer → the number of the record that tells of its start."""
    lost: dict[str, dict[str, str]] = field(default_factory=dict)
    """Writer → where it ended."""
    redacted: dict[str, int] = field(default_factory=dict)
    """Writer → up to which number retention has emptied its records."""
    before: datetime | None = None
    """Until when there may be usage records whose use was emptied."""
    alarms: list[str] = field(default_factory=list)

    def emptied(self, managed: lines.Managed) -> None:
        """Take in what a record tells of retention; one that cannot be read allows nothing."""
        try:
            through, before = int(managed.detail["through"]), datetime.fromisoformat(managed.detail["before"])
        except (KeyError, ValueError):
            return
        self.redacted[managed.subject] = max(through, self.redacted.get(managed.subject, 0))
        self.before = max(before, self.before or before)


async def _told(tx: AsyncConnection) -> _Told:
    told = _Told()
    for record in await queries.with_actions(tx, management.WRITER, management.KEPT):
        try:
            managed = lines.decode_manage(record.line.encode())
        except ValueError:
            continue  # found and named when its chain is walked
        if managed.action == management.OPENED:
            told.opened[managed.subject] = record.seq
        elif managed.action == management.LOST:
            told.lost[managed.subject] = managed.detail
        elif managed.action == management.REDACTED:
            told.emptied(managed)
        else:
            entry, what = managed.detail.get("entry"), managed.detail.get("what")
            told.alarms.append(f"an alarm was raised at entry {entry} of writer {managed.subject}: {what}")
    return told


# --- the database


async def _verify_database(db: Database, walk: _Walk, writer: Writer, progress: Callable[[int], None] | None) -> Writer:
    """Walk what the database has of ``writer``; return its row as it is at the end, more having been shipped perhaps."""
    while True:
        async with db.read(Actor.system()) as tx:
            rows = await queries.chain(tx, writer.id, walk.read, _CHUNK)
            if not rows:
                writer = await queries.writer(tx, writer.id) or writer
                break
            await _check_meaning(tx, walk, rows, _check_chain(walk, writer, rows))
        if progress is not None:
            progress(len(rows))
    if (writer.shipped_seq, writer.shipped_hash) != (walk.seq, walk.h):
        wrong = walk.seq + 1 if writer.shipped_seq > walk.seq else max(1, min(walk.seq, writer.shipped_seq + 1))
        walk.blame(wrong, "database", f"truncated or changed: its writer's row tells of {writer.shipped_seq} entries")
    for request_id, seq in walk.awaiting.items():
        walk.blame(seq, "usage", f"changed: the outcome of {request_id} is told by no record")
    return writer


def _check_chain(walk: _Walk, writer: Writer, rows: Sequence[Spelled]) -> list[Entry]:
    """Check numbers, digests, the chain, and that it begins by naming its writer and ends at its closing line.

    Return the entries of the rows that hold some.
    """
    entries = []
    for row in rows:
        if row.seq != walk.seq + 1:
            walk.blame(walk.seq + 1, "database", f"missing: the next entry is {row.seq}")
        elif walk.is_closed:
            walk.blame(row.seq, "database", "the chain goes on after its end")
        try:
            entry = _entry(writer.id, row)
        except (TypeError, UnicodeError):  # SQLite keeps any kind of value in any column
            walk.blame(walk.seq + 1, "database", "changed: not a record")
            walk.read = row.seq
            continue
        if not entry.line:
            _check_emptied(walk, row, entry)
            continue
        # What ``check`` looks at; only it says what is wrong.
        if sha256(entry.nonce + entry.line).digest() != entry.d or sha256(walk.h + entry.d).digest() != entry.h:
            try:
                lines.check(entry, walk.h)
            except LineError as error:
                # After a gap the chain cannot fit; that is one finding, not two.
                if row.seq == walk.seq + 1 or "changed" in str(error):
                    walk.blame(row.seq, "database", str(error))
        if row.seq == 1 and not _names(entry.line, writer):
            walk.blame(1, "database", "changed: the first entry does not name this writer")
        walk.is_closed = entry.line.startswith(b'{"kind":"close",')
        walk.seq, walk.h, walk.read = entry.seq, entry.h, entry.seq
        entries.append(entry)
    return entries


def _check_emptied(walk: _Walk, row: Spelled, entry: Entry) -> None:
    """Check a record whose line is gone: by retention, which said so, and nothing but its place and digest is left."""
    if entry.seq > walk.redactable:
        walk.blame(entry.seq, "database", "missing: its line is gone, and no record tells of retention")
    elif row[2:-2] != _EMPTIED:
        walk.blame(entry.seq, "database", "changed: it holds what no emptied record holds")
    if entry.seq == walk.seq + 1 and lines.chain(walk.h, entry.d) != entry.h:
        walk.blame(entry.seq, "database", "out of place: it does not follow the entry before it")
    walk.seq, walk.h, walk.read, walk.is_closed = entry.seq, entry.h, entry.seq, False
    walk.redacted += 1


async def _check_meaning(tx: AsyncConnection, walk: _Walk, rows: Sequence[Spelled], entries: Sequence[Entry]) -> None:
    """Check columns and usage records: what shipping these entries anew would write must be what is there."""
    batch = Batch(walk.recent, walk.shapes)
    for entry in entries:
        try:
            batch.add(entry)
        except LineError as error:
            walk.blame(entry.seq, "database", str(error))
    request_ids = [ended.request_id for _, ended in batch.orphans]
    batch.adopt(await queries.uses(tx, walk.writer, request_ids, rows[0].seq))
    walk.recent.update(batch.facts)
    for request_id in batch.ended:
        walk.recent.pop(request_id, None)
    while len(walk.recent) > _RECENT:
        del walk.recent[next(iter(walk.recent))]
    expected = {record[1]: record for record in batch.records}
    for row in rows:
        known = expected.get(row.seq)
        if known is not None and row != known and not (walk.redacted and _lost_its_use(row, known)):
            columns = [name for name, is_, was in zip(Spelled._fields, row, known, strict=True) if is_ != was]
            walk.blame(row.seq, "database", f"changed: {', '.join(columns)}")
    await _check_usage(tx, walk, batch, rows)


def _lost_its_use(row: Spelled, known: bulk.Row) -> bool:
    """Whether all that differs is whose it was, which only its use told, and retention has emptied that."""
    return row.kind == "outcome" and tuple(known[5:8]) == (None, None, None) and (*row[:5], None, None, None, *row[8:]) == known


async def _check_usage(tx: AsyncConnection, walk: _Walk, batch: Batch, rows: Sequence[Spelled]) -> None:
    uses = dict(batch.usage())
    there = await usage_queries.by_request(tx, [*uses, *batch.late])
    seqs = {row.request_id: row.seq for row in rows if row.request_id and row.kind == "use"}
    ended = {row.request_id: row.seq for row in rows if row.request_id and row.kind == "outcome"}
    for request_id, use in uses.items():
        found = there.get(request_id)
        if found is None:
            walk.blame(seqs.get(request_id, rows[0].seq), "usage", f"missing: {request_id}")
        elif found[:_OF_USE] != use[:_OF_USE]:
            if not await _was_tried_again(tx, walk.writer, request_id, use[_SECRET]):
                walk.blame(seqs.get(request_id, rows[0].seq), "usage", f"changed: {request_id}")
        elif found[_OF_USE] != lines.UNKNOWN and use[_OF_USE] == lines.UNKNOWN:
            walk.awaiting[request_id] = seqs.get(request_id, rows[0].seq)
        elif found != use:
            walk.blame(seqs.get(request_id, rows[0].seq), "usage", f"changed: {request_id}")
    for request_id, columns in batch.late.items():
        walk.awaiting.pop(request_id, None)
        found = there.get(request_id)
        if found is None or found[_OF_USE:] != columns:
            walk.blame(ended.get(request_id, rows[0].seq), "usage", f"changed: {request_id}")


async def _was_tried_again(tx: AsyncConnection, writer: UUID, request_id: str, secret_id: str) -> bool:
    """Whether a later use of the same request, with another key, took the place of this one."""
    last = (await queries.uses(tx, writer, [request_id], 2**62)).get(request_id)
    return last is not None and last[-1] != secret_id


def _check_registered(walk: _Walk, writer: Writer, told: _Told) -> None:
    """Look for a process's writer in the chain of management records: its start, and its end if it did not tell that itself."""
    subject = str(writer.id)
    if subject not in told.opened:
        walk.blame(1, "database", "missing: no management record tells of this writer")
    if writer.closed_at is None or walk.is_closed:
        return
    end = told.lost.get(subject)
    if end is None:
        walk.blame(walk.seq + 1, "database", "missing: it is marked closed, but has no closing line")
    elif end.get("after") != str(walk.seq) or end.get("h") != walk.h.hex():
        walk.blame(walk.seq + 1, "database", f"missing: it was lost after {end.get('after')} entries")


# --- the journal


async def _verify_journal(db: Database, walk: _Walk, writer: Writer, path: Path | None) -> WriterReport:
    """Walk the journal of ``writer``, if it is here, comparing it with the database."""
    records, unshipped, torn = walk.seq, 0, 0
    is_running = path is not None and segments.is_held(path)
    there = [] if path is None else segments.segments(path)
    if path is not None and there:
        tail = await _begin(db, writer, path, there[0].first)
        try:
            unshipped = await _compare(db, walk, writer, tail)
        finally:
            tail.close()
        torn = 0 if is_running else tail.torn
        if tail.seq < walk.seq and not walk.problems:
            walk.notes.append(f"the journal of writer {writer.id} ends at {tail.seq}; the database has it up to {walk.seq}")
        records = max(records, tail.seq)
    state = _state(walk, writer, is_running=is_running, is_here=path is not None, last=records)
    return WriterReport(writer.id, writer.kind, state, records, unshipped, walk.redacted, torn)


async def _begin(db: Database, writer: Writer, path: Path, first: int) -> Tail:
    """Read from ``first``, with which the oldest segment begins; the entry before it must be in the database."""
    if first == 1:
        return Tail(path)
    async with db.read(Actor.system()) as tx:
        before = await queries.hashes(tx, writer.id, first - 1, first - 1)
    return Tail(path, first - 1, before.get(first - 1, GENESIS))


async def _compare(db: Database, walk: _Walk, writer: Writer, tail: Tail) -> int:
    """Read the journal to its end; return how many entries only it has."""
    unshipped = 0
    is_closed = False
    while True:
        try:
            entries = tail.read(_CHUNK)
        except Broken as broken:
            walk.blame(broken.seq, "journal", broken.what)
            return unshipped
        except FileNotFoundError:  # fully shipped, and deleted while we read
            return unshipped
        if not entries:
            walk.is_closed = walk.is_closed or is_closed
            return unshipped
        async with db.read(Actor.system()) as tx:
            known = await queries.hashes(tx, writer.id, entries[0].seq, entries[-1].seq)
        for entry in entries:
            if is_closed:
                walk.blame(entry.seq, "journal", "the journal goes on after its end")
            is_closed = entry.line.startswith(b'{"kind":"close",')
            if entry.seq == 1 and not _names(entry.line, writer):
                walk.blame(1, "journal", "changed: the first entry does not name this writer")
            if entry.seq not in known:
                unshipped += 1
            elif known[entry.seq] != entry.h:
                walk.blame(entry.seq, "journal", "the database holds another entry of this number")


def _is_written(path: Path) -> bool:
    """Whether a journal holds anything; it may be shipped and deleted while we look."""
    try:
        return any(segment.path.stat().st_size for segment in segments.segments(path))
    except FileNotFoundError:
        return False


def _state(walk: _Walk, writer: Writer, *, is_running: bool, is_here: bool, last: int) -> str:
    if writer.id == management.WRITER:
        return "running"
    if walk.is_closed:
        return "closed"
    if is_running:
        return "running"
    if is_here or writer.closed_at is not None or writer.host == lines.clean(socket.gethostname(), lines.HOST):
        return f"lost after {last}"
    return f"open on {writer.host}"


def _names(line: bytes, writer: Writer) -> bool:
    """Whether a first line opens the chain of ``writer``."""
    try:
        opened = lines.decode_open(line)
    except ValueError:
        return False
    if not line.startswith(b'{"kind":"open",') or opened.writer != writer.id:
        return False
    return writer.id == management.WRITER or (opened.host, opened.pid) == (writer.host, writer.pid)


def _entry(writer: UUID, row: Spelled) -> Entry:
    """Return the entry in a row. Raises ``TypeError`` or ``UnicodeError`` where its values are of no such kind."""
    if not (isinstance(row.seq, int) and isinstance(row.line, str) and {type(row.nonce), type(row.d), type(row.h)} == {bytes}):
        raise TypeError
    return Entry(writer, row.seq, row.nonce, row.d, row.h, row.line.encode())
