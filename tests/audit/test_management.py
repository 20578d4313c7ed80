"""A change and the record of it commit together, in one chain."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from tests.audit.audit_samples import NOW, add_person, rows

from keybearer.audit import lines, management
from keybearer.audit.journal import Journal
from keybearer.audit.verify import verify
from keybearer.domain import MEMBER_SCOPES, Caller, Client, ManagementRecord, Owner, OwnerKind, Role
from keybearer.errors import JournalFailed
from keybearer.store import schema
from keybearer.store.db import Actor, Database

RECORD = schema.audit_record


async def chain(database: Database) -> list[lines.Managed]:
    found = await rows(database, RECORD, RECORD.c.kind == "manage")
    return [lines.decode_manage(record.line.encode()) for record in sorted(found, key=lambda record: int(record.seq))]


async def test_a_record_commits_or_rolls_back_with_its_change(database: Database, tmp_path: Path) -> None:
    user_id = uuid4()

    async def change(*, fails: bool) -> None:
        async with database.write(Actor.system()) as tx:
            await tx.execute(sa.insert(schema.owner).values(id=uuid4(), kind="user", created_at=NOW))
            await management.record(database, tx, ManagementRecord("user.create", None, str(user_id)))
            if fails:
                raise RuntimeError("kbtest")

    with pytest.raises(RuntimeError, match="kbtest"):
        await change(fails=True)
    assert await chain(database) == []
    assert await rows(database, schema.owner) == []
    await change(fails=False)
    assert [(record.action, record.subject, record.outcome) for record in await chain(database)] == [
        ("user.create", str(user_id), "ok")
    ]
    assert (await verify(database, tmp_path)).ok


async def test_everybody_adds_to_the_one_chain_in_the_order_of_commits(database: Database, tmp_path: Path) -> None:
    people = [await add_person(database) for _ in range(4)]
    actors = [Actor.user(person.user_id) for person in people] + [Actor.system(), Actor.lookup()]

    async def add(actor: Actor, number: int) -> None:
        async with database.write(actor) as tx:
            await management.record(database, tx, ManagementRecord("token.create", None, f"t{number}"))

    await asyncio.gather(*(add(actor, number) for number, actor in enumerate(actors * 5)))
    assert {record.subject for record in await chain(database)} == {f"t{number}" for number in range(30)}
    report = await verify(database, tmp_path)
    assert report.ok
    assert report.writers[0].records == 31


async def test_a_record_tells_who_from_where_and_whose(database: Database) -> None:
    caller = Caller(uuid4(), Role.MEMBER, MEMBER_SCOPES, session_id=uuid4(), client=Client("192.0.2.7", "agent\x1b]0;x\x07"))
    secret_id, owner = uuid4(), Owner(OwnerKind.USER, uuid4())
    detail = (("name", "n" * 300), ("fields", "a\r\nb\u202e"))
    async with database.write(Actor.user(caller.user_id)) as tx:
        record = ManagementRecord("secret.update", caller, str(secret_id), "key_refused", owner, detail)
        await management.record(database, tx, record)
    (row,) = await rows(database, RECORD, RECORD.c.kind == "manage")
    assert (row.writer_id, row.seq, row.action, row.outcome) == (management.WRITER, 2, "secret.update", "key_refused")
    assert (row.user_id, row.owner_id, row.secret_id, row.request_id) == (caller.user_id, owner.id, secret_id, None)
    (managed,) = await chain(database)
    assert managed.client == Client("192.0.2.7", r"agent\x1b]0;x\x07")
    assert managed.session_id == caller.session_id
    assert managed.detail == {"name": "n" * 199 + "…", "fields": r"a\r\nb\u202e"}


async def test_a_refused_attempt_may_name_anything(database: Database, tmp_path: Path) -> None:
    async with database.write(Actor.lookup()) as tx:
        await management.record(database, tx, ManagementRecord("secret.read", None, "no id\x00" * 100, "not_found"))
    (row,) = await rows(database, RECORD, RECORD.c.kind == "manage")
    assert row.secret_id is None
    assert (await verify(database, tmp_path)).ok


async def test_every_journal_is_told_of_before_it_serves(database: Database, tmp_path: Path) -> None:
    journal = await Journal.open(database, tmp_path, "journal")
    (managed,) = await chain(database)
    assert (managed.action, UUID(managed.subject)) == (management.OPENED, journal.writer)
    await journal.close()


async def test_a_journal_that_cannot_be_written_stops_the_start(database: Database, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JournalFailed):
        await Journal.open(database, tmp_path / "file", "journal")
    assert await chain(database) == []
