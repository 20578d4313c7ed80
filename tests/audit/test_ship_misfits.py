"""Journals and databases that contradict each other: cloned, changed, set back, or of nobody here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from tests.audit.audit_samples import Person, rows
from tests.audit.shipping import RECORD, USAGE, WRITER, alarms, die, of_writer, usage_of
from tests.support.tamper import Tamper

from keybearer.audit import management, segments
from keybearer.audit.journal import Journal
from keybearer.audit.ship import Shipper
from keybearer.audit.verify import verify
from keybearer.errors import Unavailable
from keybearer.store import schema
from keybearer.store.db import Database


async def test_a_cloned_journal_raises_an_alarm_and_is_left_alone(
    database: Database, who: Person, journal: Journal, shipper: Shipper, tmp_path: Path
) -> None:
    journal.use(who.use("r1"))
    shutil.copytree(journal.path, tmp_path / "clone" / journal.path.name)
    clone = Journal(journal.writer, tmp_path / "clone" / journal.path.name, os.dup(journal._lock), "journal")
    clone._descriptor = os.open(segments.segments(clone.path)[0].path, os.O_WRONLY | os.O_APPEND)
    clone._seq, clone._h, clone._size = journal._seq, journal._h, journal._size
    other = Shipper(database, tmp_path / "clone", clone)
    journal.use(who.use("here"))
    clone.use(who.use("there"))
    clone.use(who.use("there too"))
    await shipper.ship_once()
    assert await other.ship_once() == 0
    assert (other.alarms, shipper.alarms) == (1, 0)
    assert await other.ship_once() == 0
    assert other.alarms == 1
    (alarm,) = await alarms(database)
    assert (alarm.subject, alarm.detail["entry"]) == (str(journal.writer), "3")
    assert set(await usage_of(database)) == {"r1", "here"}
    assert (await verify(database, tmp_path / "journal")).ok
    report = await verify(database, tmp_path / "clone")
    assert (report.problems[0].seq, report.problems[0].where) == (3, "journal")
    assert len(report.notes) == 1
    await clone.close()


async def test_an_alarm_that_could_not_be_recorded_is_raised_again(
    database: Database, who: Person, journal: Journal, shipper: Shipper, tamper: Tamper, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.use(who.use("r1"))
    await shipper.ship_once()
    await tamper(sa.update(WRITER).where(WRITER.c.id == journal.writer).values(shipped_hash=bytes(32)))
    journal.use(who.use("r2"))

    async def away(*_: object) -> None:
        raise Unavailable("the database is away")

    again = Shipper(database, journal.path.parent, journal)
    with monkeypatch.context() as patch:
        patch.setattr(management, "alarm", away)
        with pytest.raises(Unavailable):
            await again.ship_once()
    assert await again.ship_once() == 0
    assert again.alarms == 1
    assert len(await alarms(database)) == 1


async def test_the_same_entry_there_already_is_compared_not_written_twice(
    database: Database, who: Person, journal: Journal, shipper: Shipper
) -> None:
    """As after a commit whose answer was lost."""
    journal.use(who.use("r1"))
    await shipper.ship_once()
    journal.use(who.use("r2"))
    assert shipper._own is not None
    await shipper._own.fill()
    assert await Shipper(database, journal.path.parent, journal).ship_once() == 1
    assert await shipper.ship_once() == 0
    assert shipper.alarms == 0
    (secret,) = await rows(database, schema.secret)
    assert secret.usage_count == 2


async def test_a_row_of_the_same_number_with_another_hash_raises_an_alarm(
    database: Database, who: Person, journal: Journal, shipper: Shipper, tamper: Tamper
) -> None:
    journal.use(who.use("r1"))
    await shipper.ship_once()
    await tamper(sa.update(WRITER).where(WRITER.c.id == journal.writer).values(shipped_seq=1))
    first = (await of_writer(database, journal.writer))[0]
    await tamper(sa.update(WRITER).where(WRITER.c.id == journal.writer).values(shipped_hash=first.h))
    await tamper(sa.update(RECORD).where(RECORD.c.seq == 2, RECORD.c.writer_id == journal.writer).values(h=bytes(32)))
    journal.use(who.use("r2"))
    again = Shipper(database, journal.path.parent, journal)
    assert await again.ship_once() == 0
    assert again.alarms == 1
    (alarm,) = await alarms(database)
    assert alarm.detail["entry"] == "2"


async def test_a_database_that_was_set_back_is_filled_again(
    database: Database, who: Person, journal: Journal, shipper: Shipper, tamper: Tamper, tmp_path: Path
) -> None:
    for number in range(6):
        journal.use(who.use(f"r{number}"))
    await shipper.ship_once()
    third = (await of_writer(database, journal.writer))[2]
    await tamper(sa.delete(RECORD).where(RECORD.c.seq > 3, RECORD.c.writer_id == journal.writer))
    await tamper(sa.delete(USAGE).where(USAGE.c.request_id.in_(["r2", "r3", "r4", "r5"])))
    await tamper(sa.update(WRITER).where(WRITER.c.id == journal.writer).values(shipped_seq=3, shipped_hash=third.h))
    journal.use(who.use("r6"))
    await shipper.ship_once()
    assert await shipper.ship_once() == 5
    assert set(await usage_of(database)) == {f"r{number}" for number in range(7)}
    assert (await verify(database, tmp_path / "journal")).ok


async def test_a_changed_journal_is_shipped_up_to_the_change_and_kept(
    database: Database, who: Person, journal: Journal, tmp_path: Path
) -> None:
    for number in range(5):
        journal.use(who.use(f"r{number}"))
    dead = await die(journal, tmp_path)
    (segment,) = segments.segments(dead)
    segment.path.write_bytes(segment.path.read_bytes().replace(b'"r3"', b'"r9"'))
    successor = Shipper(database, tmp_path / "journal", None, keep=0)
    assert await successor.ship_once() == 4
    assert await successor.ship_once() == 0
    assert successor.alarms == 1
    (writer,) = await rows(database, WRITER, WRITER.c.id == journal.writer)
    assert (writer.shipped_seq, writer.closed_at) == (4, None)
    assert segment.path.exists()
    later = Shipper(database, tmp_path / "journal", None)
    await later.ship_once()
    assert later.alarms == 1
    (alarm,) = await alarms(database)  # told once, whoever finds it again
    assert alarm.detail["entry"] == "5"


async def test_a_journal_of_an_unknown_writer_raises_an_alarm(database: Database, who: Person, tmp_path: Path) -> None:
    path, lock = segments.create(tmp_path / "journal", uuid4())
    stranger = Journal(UUID(path.name), path, lock, "journal")
    stranger.begin("host", 1)
    await stranger.close()
    shipper = Shipper(database, tmp_path / "journal", None)
    await shipper.ship_once()
    assert shipper.alarms == 1
    assert (await verify(database, tmp_path / "journal")).problems[0].writer == stranger.writer
