"""Retention takes lines and persons from old records, and leaves every proof as it was."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa
from tests.audit.audit_samples import add_person, outcome, rows
from tests.audit.sealing import Place, managed, sealer_of
from tests.support.tamper import Tamper

from keybearer.audit import archive, lines, management, merkle, notes, tree
from keybearer.audit.journal import Journal
from keybearer.audit.retention import AuditRetention
from keybearer.audit.sealed import verify_tree
from keybearer.audit.ship import Shipper
from keybearer.audit.verify import verify
from keybearer.store import schema
from keybearer.store.db import Actor, Database

RECORD = schema.audit_record
OLD = (datetime.now(UTC) - timedelta(days=40)).timestamp()


async def old_and_new(database: Database, directory: Path) -> UUID:
    """A journal of 40 days ago and today: 1 open, 2 to 5 old, 6 an old use's late outcome, 7 and 8 new, 9 close; shipped."""
    who = await add_person(database)
    journal = await Journal.open(database, directory, "journal")
    shipper = Shipper(database, directory, journal, keep=None)
    for name in ("old1", "old2"):
        journal.use(who.use(name, at=OLD))
    journal.outcome(outcome("old1", at=OLD))
    journal.use(who.use("old3", at=OLD))
    journal.outcome(outcome("old2"))
    journal.use(who.use("new1"))
    journal.outcome(outcome("new1"))
    await journal.close()
    await shipper.ship_once()
    return journal.writer


async def test_old_records_keep_their_place_and_lose_the_rest(database: Database, tmp_path: Path, tamper: Tamper) -> None:
    writer = await old_and_new(database, tmp_path)
    # The opening line was written today; as if it had been 40 days ago, retention must get past it.
    old = datetime.fromtimestamp(OLD, UTC)
    (first,) = await rows(database, RECORD, sa.and_(RECORD.c.writer_id == writer, RECORD.c.seq == 1))
    await tamper(sa.update(RECORD).where(RECORD.c.writer_id == writer, RECORD.c.seq == 1).values(at=old))
    place = Place()
    sealer = await sealer_of(database, place)
    retention = AuditRetention(database, 30)
    assert await retention.turn() == 0  # nothing is sealed
    await sealer.turn()
    before = {row.seq: row for row in await rows(database, RECORD, RECORD.c.writer_id == writer)}
    assert await retention.turn() == 4
    assert await retention.turn() == 0
    await tamper(sa.update(RECORD).where(RECORD.c.writer_id == writer, RECORD.c.seq == 1).values(at=first.at))
    after = {row.seq: row for row in await rows(database, RECORD, RECORD.c.writer_id == writer)}
    assert [seq for seq, row in sorted(after.items()) if not row.line] == [2, 3, 4, 5]
    for seq, row in after.items():
        assert (row.d, row.h) == (before[seq].d, before[seq].h)
        if not row.line:
            assert (row.user_id, row.owner_id, row.secret_id, row.request_id, row.nonce) == (None, None, None, None, b"")
    # Everything verifies, and says how many were emptied; proofs of emptied records are as good as ever.
    await sealer.turn()
    report = await verify(database, tmp_path)
    assert report.problems == ()
    assert {found.writer: found.redacted for found in report.writers}[writer] == 4
    checked = await verify_tree(database, await sealer.verifier(), place.notes)
    assert (checked.problems, checked.pushed) == ((), len(place.notes))
    async with database.read(Actor.system()) as tx:
        proof = await tree.inclusion(tx, writer, 3, after[3].d)
    signed = notes.opened(proof.note, await sealer.verifier())
    merkle.check_inclusion(tree.leaf_hash(writer, 3, after[3].d), proof.index, signed.size, proof.hashes, signed.root)
    file = b"".join([chunk async for chunk in archive.write(database, await sealer.verifier())])
    assert b'"old1"' not in file
    of_archive, emptied = archive.verify(file.splitlines(keepends=True), await sealer.verifier(), place.notes)
    assert (of_archive.problems, emptied) == ((), 4)


async def test_what_somebody_else_emptied_is_found(database: Database, tmp_path: Path, tamper: Tamper) -> None:
    writer = await old_and_new(database, tmp_path)
    sealer = await sealer_of(database)
    await sealer.turn()
    for seq in (3, 7):
        at = sa.and_(RECORD.c.writer_id == writer, RECORD.c.seq == seq)
        (row,) = await rows(database, RECORD, at)
        await tamper(sa.update(RECORD).where(at).values(line="", nonce=b"", kind="outcome", action="redacted"))
        problem = (await verify(database, tmp_path)).problems[0]
        assert (problem.writer, problem.seq, "no record tells of retention" in problem.what) == (writer, seq, True)
        await tamper(sa.update(RECORD).where(at).values(**row._mapping))


async def test_an_emptied_record_holds_nothing_else(database: Database, tmp_path: Path, tamper: Tamper) -> None:
    writer = await old_and_new(database, tmp_path)
    await tamper(
        sa.update(RECORD).where(RECORD.c.writer_id == writer, RECORD.c.seq == 1).values(at=datetime.fromtimestamp(OLD, UTC))
    )
    sealer = await sealer_of(database)
    await sealer.turn()
    assert await AuditRetention(database, 30).turn() == 4
    at = sa.and_(RECORD.c.writer_id == writer, RECORD.c.seq == 3)
    (row,) = await rows(database, RECORD, at)
    others = {
        "at": datetime.now(UTC),
        "kind": "use",
        "action": "secret.use",
        "user_id": writer,
        "owner_id": writer,
        "secret_id": writer,
        "request_id": "x",
        "outcome": "ok",
        "nonce": bytes(16),
        "d": bytes(32),
        "h": bytes(32),
    }
    for column, other in others.items():
        await tamper(sa.update(RECORD).where(at).values({column: other}))
        problems = (await verify(database, tmp_path)).problems
        assert any((problem.writer, problem.seq) == (writer, 3) for problem in problems), column
        await tamper(sa.update(RECORD).where(at).values(**row._mapping))


async def test_management_records_keep_what_verifying_needs(database: Database, tmp_path: Path, tamper: Tamper) -> None:
    await old_and_new(database, tmp_path)
    await managed(database, 3)
    sealer = await sealer_of(database)
    await sealer.turn()
    await AuditRetention(database, 36500).turn()
    later = datetime.now(UTC) + timedelta(days=2)
    assert await AuditRetention(database, 1, lambda: later).turn() > 3
    kept = await rows(database, RECORD, sa.and_(RECORD.c.writer_id == management.WRITER, RECORD.c.line != ""))
    actions = {lines.decode_manage(row.line.encode()).action for row in kept if row.kind == "manage"}
    assert actions == {"audit.open", "audit.redact"}
    await sealer.turn()
    assert (await verify(database, tmp_path)).problems == ()
    assert (await verify_tree(database, await sealer.verifier())).problems == ()


async def test_nothing_goes_by_default(database: Database, tmp_path: Path) -> None:
    await old_and_new(database, tmp_path)
    await (await sealer_of(database)).turn()
    assert await AuditRetention(database, 0).turn() == 0
