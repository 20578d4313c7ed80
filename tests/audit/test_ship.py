"""From the journal to the database, each entry exactly once."""

from __future__ import annotations

from pathlib import Path

from tests.audit.audit_samples import add_person, outcome, rows

from keybearer.audit.journal import Journal
from keybearer.audit.ship import Shipper
from keybearer.store import schema
from keybearer.store.db import Database


async def test_a_use_and_its_outcome_become_audit_and_usage_records(database: Database, tmp_path: Path) -> None:
    who = await add_person(database)
    journal = await Journal.open(database, tmp_path / "journal", "journal")
    shipper = Shipper(database, tmp_path / "journal", journal)
    journal.use(who.use("r1"))
    journal.outcome(outcome("r1"))
    journal.use(who.use("r2"))
    assert await shipper.ship_once() == 4
    assert await shipper.ship_once() == 0
    records = await rows(database, schema.audit_record, schema.audit_record.c.writer_id == journal.writer)
    assert [(record.seq, record.kind) for record in records] == [(1, "open"), (2, "use"), (3, "outcome"), (4, "use")]
    usage = {row.request_id: row for row in await rows(database, schema.usage_record)}
    assert (usage["r1"].outcome, usage["r1"].input_tokens, usage["r1"].cost_micro_usd) == ("ok", 100, 1234)
    assert usage["r2"].outcome == "unknown"
    (secret,) = await rows(database, schema.secret)
    assert (secret.usage_count, secret.last_used_in_workflow) == (2, "nightly")
    (token,) = await rows(database, schema.access_token)
    assert token.last_used_at == usage["r2"].at
    await journal.close()
    await shipper.ship_once()
    (writer,) = await rows(database, schema.audit_writer, schema.audit_writer.c.id == journal.writer)
    assert writer.closed_at is not None
    assert writer.shipped_seq == 5
