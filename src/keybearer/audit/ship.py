"""Moving journals to the database: each entry exactly once, whoever is killed when.

The row of a writer says how far the database has come and with which ``h``; it is locked, compared and advanced in the same
transaction that inserts the entries, counts the uses and completes the usage records. So a shipper that dies or loses the
database in the middle, or whose commit was never answered, goes on from what the row says. An entry that does not fit what is
there (a cloned data directory, a changed file) raises an alarm, and that journal is left as it is, as evidence.

Each process ships its own journal, and those of dead writers beside it: their locks are free.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice, pairwise
from math import inf
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.audit import management, segments
from keybearer.audit.batch import Batch, Columns, Shapes
from keybearer.audit.journal import Journal
from keybearer.audit.lines import GENESIS, Entry, LineError
from keybearer.audit.segments import Broken, Tail
from keybearer.domain import ManagementRecord
from keybearer.errors import Conflict
from keybearer.store.bulk import Row
from keybearer.store.db import Actor, Database
from keybearer.store.queries import audit as queries
from keybearer.store.queries import budgets as budget_queries
from keybearer.store.queries import tree
from keybearer.store.queries import usage as usage_queries

WITHIN = 10.0
"""Seconds after which one turn of shipping ends, though there may be more."""
BATCH = 5000
"""Entries in one transaction: the pages of an index that a batch touches are written once for all of it."""
SLICE = 50
"""Entries handled before others get their turn on the event loop: a quarter of a millisecond."""
ROWS = 100
"""Rows handed to the driver at once: likewise."""
BUSY = 500
"""Entries in one turn that make it a busy time."""
REST = 1.0
"""Seconds from one turn to the next in busy times, when larger batches cost less than prompt ones."""
PATIENCE = 19
"""Times as long as it will work that shipping waits for an idle event loop: a twentieth of the time is the most it takes at a peak."""
PACE = 0.0001
"""Seconds that an entry takes, at most: half a second for a full batch."""
LOOK = 0.1
"""Seconds from one look at whether the event loop was idle to the next, at most."""
BACKLOG = 500_000
"""Entries waiting from which on it takes half: a peak that lasts must not fill the disk. About 350 MB."""
RECENT = 20_000
"""Uses without an outcome that are remembered."""
KEEP = 7 * 86400.0
"""Seconds for which shipped segments are kept."""
LOOK_AGAIN = 60.0
"""Seconds until a journal that is done with is looked at again."""

_SCHEDSTAT = Path("/proc/thread-self/schedstat")

_log = structlog.get_logger(__name__)


class _Stream:
    """One journal on its way: what was read and not yet committed."""

    def __init__(self, writer: UUID, path: Path, seq: int = 0, h: bytes = GENESIS) -> None:
        self.writer = writer
        self.tail = Tail(path, seq, h)
        self.before = h
        """``h`` before the first of ``unsent``."""
        self.unsent: list[Entry] = []
        self.recent: dict[str, Columns] = {}
        """Committed uses whose outcome has not come yet: saves asking the database for them."""
        self.shapes = Shapes()

    def committed(self, batch: Batch | None) -> None:
        """Go on: what was unsent is in the database."""
        self.unsent = []
        if batch is None:
            return
        self.recent.update(batch.facts)
        for request_id in batch.ended:
            self.recent.pop(request_id, None)
        while len(self.recent) > RECENT:
            del self.recent[next(iter(self.recent))]

    async def fill(self) -> bool:
        """Read the next entries; tell whether the end is reached. Raises ``Broken`` when those before the break are committed."""
        self.before = self.tail.h
        while len(self.unsent) < BATCH:
            try:
                entries = self.tail.read(SLICE)
            except Broken:
                if not self.unsent:
                    raise
                return False
            if not entries:
                return True
            self.unsent.extend(entries)
            await asyncio.sleep(0)
        return False

    async def batch(self, entries: Sequence[Entry]) -> Batch:
        """Return what ``entries`` mean. Raises ``_Misfit`` at one that does not say what its kind must say."""
        batch = Batch(self.recent, self.shapes)
        for index, entry in enumerate(entries):
            try:
                batch.add(entry)
            except LineError as error:
                raise _Misfit(entry.seq, str(error)) from error
            if index % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        return batch


class _Misfit(Exception):  # what it is: an entry that does not fit the database
    """The journal and the database contradict each other at entry ``seq``."""

    def __init__(self, seq: int, what: str) -> None:
        super().__init__(what)
        self.seq = seq
        self.what = what


class _Behind(Exception):  # no error: the database was restored from a backup
    """The database knows less than it did: ship again from what it knows."""


class Shipper:
    """Ships this process's journal and those of dead writers in ``directory``.

    ``keep`` is how many seconds fully shipped segments stay on disk; ``None``: for ever. ``alarms`` counts journals that do not
    fit the database; ``shipped`` counts entries.
    """

    def __init__(self, db: Database, directory: Path, journal: Journal | None, *, keep: float | None = KEEP) -> None:
        self.alarms = 0
        self.shipped = 0
        self._db = db
        self._directory = directory
        self._journal = journal
        self._keep = keep
        self._own: _Stream | None = None
        self._turn, self._own_turn = asyncio.Lock(), asyncio.Lock()
        self._rests_until = 0.0
        self._hurried = 0
        """How many wait for entries to be shipped: then calls must share the event loop."""
        self._done: dict[UUID, float] = {}
        """Dead writers of which everything is in the database, and when to look whether their files may go."""
        self._quarantined: set[UUID] = set()
        if journal is not None:
            journal.commit = self.ship_own

    async def ship_in_turn(self) -> int:
        """As ``ship_once``, for a job that asks several times a second: in busy times all but one of them a second are passed."""
        began = time.monotonic()
        if began < self._rests_until:
            return 0
        shipped = await self._ship(began + WITHIN)
        if shipped >= BUSY:
            self._rests_until = began + REST
        return shipped

    async def ship_once(self, within: float = WITHIN) -> int:
        """Ship what there is, for about ``within`` seconds at most; return the number of entries: 0 when all is shipped.

        Raises ``Unavailable`` where the database does not answer.
        """
        self._hurried += 1
        try:
            return await self._ship(time.monotonic() + within)
        finally:
            self._hurried -= 1

    async def _ship(self, until: float) -> int:
        shipped = await self.ship_own(until)
        async with self._turn:
            for writer, path in segments.journals(self._directory).items():
                if writer not in self._quarantined and (self._journal is None or writer != self._journal.writer):
                    shipped += await self._ship_dead(writer, path, until)
        return shipped

    async def ship_own(self, until: float = inf) -> int:
        """Ship this process's journal alone, until about then (monotonic); return the number of entries. Raises ``Unavailable``."""
        journal = self._journal
        if journal is None or journal.writer in self._quarantined:
            return 0
        async with self._own_turn:
            if self._own is None:
                self._own = _Stream(journal.writer, journal.path)
            before = self.shipped
            await self._pump(self._own, until)
            shipped = self.shipped - before
            if shipped and self._keep is not None:
                await self._prune(journal, self._own.tail.seq, self._keep)
        return shipped

    # --- one journal

    async def _ship_dead(self, writer: UUID, path: Path, until: float) -> int:
        """Ship the rest of a dead writer's journal; mark the writer closed by its own word, or lost after its last entry."""
        if time.monotonic() < self._done.get(writer, 0.0):
            return 0
        lock = segments.seize(path)
        if lock is None:
            return 0
        try:
            async with self._db.read(Actor.system()) as tx:
                row = await queries.writer(tx, writer)
            if row is None:
                return await self._meet_stranger(writer, path)
            if row.closed_at is not None:
                self._done[writer] = time.monotonic() + LOOK_AGAIN
                if self._keep is not None and _is_older(path, self._keep) and await self._sealed(writer) >= row.shipped_seq:
                    segments.remove(path)
                return 0
            stream = _Stream(writer, path, row.shipped_seq, row.shipped_hash)
            before = self.shipped
            try:
                if await self._pump(stream, until):
                    await self._mark_lost(stream)
            finally:
                stream.tail.close()
            return self.shipped - before
        finally:
            os.close(lock)

    async def _pump(self, stream: _Stream, until: float) -> bool:
        """Ship what ``stream`` has until about then; return whether that was all of it. An alarm ends it.

        What is written meanwhile waits for the next turn, or a busy journal would be shipped in ever so many small batches.
        Before it works long it rests, so that a backlog does not take the event loop from the calls that make it; what cannot be
        shipped at a peak waits in the journal.
        """
        size = self._waiting() if stream is self._own and not self._hurried else 0
        try:
            while True:
                if size >= BUSY and (self._journal is None or self._journal.durability != "database"):
                    await self._rest(PACE * min(size, BATCH))
                is_end = False
                if not stream.unsent:
                    is_end = await stream.fill()
                if stream.unsent:
                    size = len(stream.unsent)
                    await self._commit(stream)
                if is_end:
                    return True
                if time.monotonic() > until:
                    return False
        except _Behind:
            await self._rewind(stream)
        except _Misfit as misfit:
            await self._alarm(stream.writer, misfit.seq, misfit.what)
        except Broken as broken:
            await self._alarm(stream.writer, broken.seq, broken.what)
        return False

    async def _rest(self, work: float) -> None:
        """Leave the event loop to the calls until it was idle for as long as shipping will ``work``, but no more than so many times that.

        Half of the loop's time is shipping's if somebody waits for what is shipped, or if too much waits to be.
        """
        idle, until = 0.0, time.monotonic() + PATIENCE * work
        while True:
            began, used = time.monotonic(), _wanted()
            await asyncio.sleep(min(work, LOOK))
            now = time.monotonic()
            idle += now - began - (_wanted() - used)
            if idle > work / 2 or now > until or self._hurried or self._waiting() > BACKLOG:
                return

    def _waiting(self) -> int:
        """How many entries of this process's journal are not shipped yet."""
        return 0 if self._journal is None or self._own is None else self._journal.seq - self._own.tail.seq

    async def _commit(self, stream: _Stream) -> None:
        """One transaction: entries, usage, counters, and how far we are.

        What the entries mean is found out before it begins: it keeps others from writing, on SQLite everybody.
        """
        entries = stream.unsent
        batch: Batch | None = await stream.batch(entries)
        try:
            async with self._db.write(Actor.system()) as tx:
                fresh = _fresh(await queries.writer(tx, stream.writer, lock=True), entries, stream.before)
                if len(fresh) < len(entries):  # somebody else was here; or this was, and its commit was not answered
                    batch = await stream.batch(fresh) if fresh else None
                if batch is not None:
                    await _put(tx, batch, fresh)
        except Conflict:
            async with self._db.read(Actor.system()) as tx:
                known = await queries.hashes(tx, stream.writer, entries[0].seq, entries[-1].seq)
            other = next((entry.seq for entry in entries if known.get(entry.seq, entry.h) != entry.h), min(known, default=0))
            raise _Misfit(other, "the database holds another entry of this number") from None
        stream.committed(batch)
        self.shipped += len(fresh)
        if self._journal is not None and stream.writer == self._journal.writer:
            self._journal.committed(entries[-1].seq)
        entries.clear()  # ``fresh`` has them all still
        await _let_go(fresh)
        await _let_go(batch.records if batch else [])

    async def _rewind(self, stream: _Stream) -> None:
        """Begin again where the database is now, at the next round: it was set back."""
        _log.warning("audit.database_set_back", writer=str(stream.writer))
        if stream is self._own:
            async with self._db.read(Actor.system()) as tx:
                row = await queries.writer(tx, stream.writer)
            stream.tail.close()
            self._own = _Stream(stream.writer, stream.tail.path, row.shipped_seq, row.shipped_hash) if row else None

    async def _meet_stranger(self, writer: UUID, path: Path) -> int:
        """Handle a journal whose writer the database does not know: killed before it was registered, or not ours."""
        if any(segment.path.stat().st_size for segment in segments.segments(path)):
            await self._alarm(writer, 1, "the writer of this journal is not registered")
        else:
            segments.remove(path)
        return 0

    async def _mark_lost(self, stream: _Stream) -> None:
        """Close a dead writer that wrote no closing line: whatever it wrote after its last entry is lost."""
        async with self._db.write(Actor.system()) as tx:
            row = await queries.writer(tx, stream.writer, lock=True)
            if row is None or row.closed_at is not None or row.shipped_seq < stream.tail.seq:
                return
            await queries.advance_writer(tx, row.id, row.shipped_seq, row.shipped_hash, closed_at=datetime.now(UTC))
            detail = (("after", str(row.shipped_seq)), ("h", row.shipped_hash.hex()), ("torn_bytes", str(stream.tail.torn)))
            await management.record(self._db, tx, ManagementRecord(management.LOST, None, str(row.id), detail=detail))
        _log.warning("audit.writer_lost", writer=str(stream.writer), after=row.shipped_seq, torn_bytes=stream.tail.torn)

    async def _alarm(self, writer: UUID, seq: int, what: str) -> None:
        """Say it in the log, in the trail itself (once) and in the count, and leave this journal alone; said again if that fails."""
        await management.alarm(self._db, writer, seq, what)
        self.alarms += 1
        self._quarantined.add(writer)

    async def _prune(self, journal: Journal, shipped: int, keep: float) -> None:
        """Delete segments of a living journal whose entries are all in the database, and sealed, when they are old enough."""
        due = [
            (segment.path, following.first - 1)
            for segment, following in pairwise(segments.segments(journal.path))
            if following.first <= shipped + 1 and segment.path.stat().st_mtime <= time.time() - keep
        ]
        sealed = await self._sealed(journal.writer) if due else 0
        for path, last in due:
            if last <= sealed:
                path.unlink()

    async def _sealed(self, writer: UUID) -> int:
        """Up to which entry a writer is sealed: until then its journal is the only witness."""
        async with self._db.read(Actor.system()) as tx:
            seq, _ = await tree.sealed(tx, writer)
        return seq


async def _let_go(rows: list[Any]) -> None:
    """Free what will not be needed, a few at a time: a batch at once would hold up all calls for 20 ms."""
    while rows:
        del rows[-SLICE:]
        await asyncio.sleep(0)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """As many rows at a time as are handed to the driver at once."""
    rest = iter(rows)
    while chunk := list(islice(rest, ROWS)):
        yield chunk


def _wanted() -> float:
    """Seconds for which this thread ran, or would have, had others not had the processor (Linux says so, ``schedstat``)."""
    try:
        delayed = int(_SCHEDSTAT.read_bytes().split()[1]) * 1e-9
    except (OSError, IndexError, ValueError):
        delayed = 0.0
    return time.thread_time() + delayed


def _fresh(row: queries.Writer | None, entries: list[Entry], before: bytes) -> list[Entry]:
    """Return the entries that the database does not have yet. Raises ``_Misfit`` if those it has are others."""
    first = entries[0].seq
    if row is None:
        raise _Misfit(first, "the writer of this journal is not registered")
    if row.shipped_seq < first - 1:
        raise _Behind
    if row.shipped_seq > entries[-1].seq:
        raise _Misfit(entries[-1].seq + 1, "the database holds entries that this journal has not")
    known = before if row.shipped_seq == first - 1 else entries[row.shipped_seq - first].h
    if known != row.shipped_hash:
        raise _Misfit(row.shipped_seq, "the database holds another entry of this number")
    if row.closed_at is not None and row.shipped_seq < entries[-1].seq:
        raise _Misfit(row.shipped_seq + 1, "the journal goes on after its end")
    return entries[row.shipped_seq - first + 1 :]


async def _put(tx: AsyncConnection, batch: Batch, entries: Sequence[Entry]) -> None:
    """Write what ``entries`` mean, which is ``batch``, and that they are here. The row of their writer is locked."""
    last = entries[-1]
    request_ids = [ended.request_id for _, ended in batch.orphans]
    batch.adopt(await queries.uses(tx, last.writer, request_ids, entries[0].seq))
    for rows in _chunks(batch.records):
        await queries.add_records(tx, rows)
    for rows in _chunks(use for _, use in batch.usage()):
        await usage_queries.put_uses(tx, rows)
    for rows in _chunks(batch.reserved.values()):
        await budget_queries.put_reservations(tx, rows)
    await usage_queries.put_outcomes(tx, batch.late)
    await usage_queries.count_secret_uses(tx, batch.secrets())
    await usage_queries.touch_tokens(tx, {token: datetime.fromtimestamp(at, UTC) for token, at in batch.tokens.items()})
    await queries.advance_writer(tx, last.writer, last.seq, last.h, closed_at=batch.closed_at)


def _is_older(path: Path, seconds: float) -> bool:
    """Whether nothing in a journal was touched for so long."""
    newest = max((segment.path.stat().st_mtime for segment in segments.segments(path)), default=0.0)
    return newest <= time.time() - seconds
