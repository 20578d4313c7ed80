"""What tests of shipping look at: a writer's records, usage, alarms; and a journal left as a killed process leaves it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.audit.audit_samples import rows

from keybearer.audit import lines, management
from keybearer.audit.journal import Journal
from keybearer.store import schema
from keybearer.store.db import Database

RECORD, WRITER, USAGE = schema.audit_record, schema.audit_writer, schema.usage_record


async def of_writer(database: Database, writer: UUID) -> list[Any]:
    return sorted(await rows(database, RECORD, RECORD.c.writer_id == writer), key=lambda record: record.seq)


async def usage_of(database: Database) -> dict[str, Any]:
    return {row.request_id: row for row in await rows(database, USAGE)}


async def alarms(database: Database) -> list[lines.Managed]:
    found = await rows(database, RECORD, RECORD.c.action == management.ALARM)
    return [lines.decode_manage(record.line.encode()) for record in found]


async def die(journal: Journal, tmp_path: Path) -> Path:
    """Leave the journal as a killed process does: no closing line, no lock."""
    journal._timer = journal._timer.cancel() if journal._timer else None  # type: ignore[func-returns-value]
    os.close(journal._lock)
    os.close(journal._descriptor)
    journal._closed = True
    return journal.path
