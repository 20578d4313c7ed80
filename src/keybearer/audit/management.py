"""Management records: a change and the record of it commit together, or neither does.

They form one chain for the whole deployment. The start of every journal, its end where a process was killed, and every alarm are
records of it too, so that a journal cannot be taken away without a trace.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.audit import lines
from keybearer.domain import ManagementRecord
from keybearer.store.db import Actor, Database
from keybearer.store.queries import audit as queries

WRITER = UUID(int=1)
"""The writer of management records: one per deployment, so its id need not be random."""
OPENED, LOST, ALARM, REDACTED = "audit.open", "audit.lost", "audit.alarm", "audit.redact"
"""Actions about writers, their subject: begun, lost, contradicted, emptied by retention."""
KEPT = (OPENED, LOST, ALARM, REDACTED)
"""What retention keeps: without it nothing could be verified."""

TOGETHER = 25
"""Records of one step, which takes some 2 ms: between two of them the process serves others."""

_log = structlog.get_logger(__name__)


async def record(db: Database, tx: AsyncConnection, entry: ManagementRecord) -> None:
    """Chain ``entry`` into ``tx``, the transaction of the change it tells of.

    Takes ``db.lock_order`` until that transaction ends, so call it late in it. What people typed is cut to length, and what is
    not printable in it is escaped; secrets do not belong in ``detail`` at all.
    """
    await record_all(db, tx, [entry])


async def record_all(db: Database, tx: AsyncConnection, entries: Iterable[ManagementRecord]) -> None:
    """As ``record``, of several in their order."""
    await db.lock_order(tx)
    writer = await queries.writer(tx, WRITER, lock=True)
    rows: list[queries.Record] = []
    if writer is None:
        writer = queries.Writer(WRITER, "management", "", 0, datetime.now(UTC), None, 0, lines.GENESIS)
        await queries.add_writer(tx, writer)
        opened = lines.Opened(WRITER, time.time(), socket.gethostname(), os.getpid(), "")
        rows.append(_row(1, lines.GENESIS, lines.open_line(opened)))
    seq, h = (rows[-1].seq, rows[-1].h) if rows else (writer.shipped_seq, writer.shipped_hash)
    for entry in entries:
        rows.append(_row(seq + 1, h, lines.manage_line(entry, time.time())))
        seq, h = rows[-1].seq, rows[-1].h
        if len(rows) == TOGETHER:
            await queries.add_written(tx, rows)
            rows.clear()
    await queries.add_written(tx, rows)
    await queries.advance_writer(tx, WRITER, seq, h)


async def register_writer(db: Database, writer: UUID, host: str, pid: int) -> None:
    """Make a process's writer known before it serves."""
    host = lines.clean(host, lines.HOST)
    async with db.write(Actor.system()) as tx:
        await queries.add_writer(tx, queries.Writer(writer, "process", host, pid, datetime.now(UTC), None, 0, lines.GENESIS))
        await record(db, tx, ManagementRecord(OPENED, None, str(writer), detail=(("host", host), ("pid", str(pid)))))


async def alarm(db: Database, writer: UUID, seq: int, what: str) -> None:
    """Say in the log, and once in the trail itself, that a writer's records are not what they must be."""
    _log.critical("audit.alarm", writer=str(writer), entry=seq, reason=what)
    async with db.write(Actor.system()) as tx:
        for known in await queries.with_actions(tx, WRITER, (ALARM,)):
            with suppress(ValueError):  # one that was changed tells nothing; verification names it
                if lines.decode_manage(known.line.encode()).subject == str(writer):
                    return
        detail = (("entry", str(seq)), ("what", what))
        await record(db, tx, ManagementRecord(ALARM, None, str(writer), "failed", detail=detail))


def _row(seq: int, before: bytes, line: bytes) -> queries.Record:
    nonce = os.urandom(lines.NONCE_BYTES)
    d = lines.digest(nonce, line)
    facts = lines.facts(line, lambda _: None)
    return queries.Record(WRITER, seq, *facts, nonce, line.decode(), d, lines.chain(before, d))
