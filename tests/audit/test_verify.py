"""Whatever is missing, changed, added or reordered is found, and the first of it named."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from tests.audit.audit_samples import Person, outcome, rows
from tests.support.tamper import Tamper

from keybearer.audit import lines, management, segments
from keybearer.audit.journal import Journal
from keybearer.audit.ship import Shipper
from keybearer.audit.verify import Problem, Report, verify
from keybearer.domain import ManagementRecord
from keybearer.errors import AuditBroken
from keybearer.store import schema
from keybearer.store.db import Actor, Database
from keybearer.store.queries import usage as usage_queries

RECORD, WRITER, USAGE = schema.audit_record, schema.audit_writer, schema.usage_record
COLUMNS = [column.name for column in RECORD.c if column.name != "writer_id"]


class Trail:
    """A closed journal of eight entries, all shipped and still on disk, and a few management records."""

    def __init__(self, database: Database, directory: Path, journal: Journal) -> None:
        self.database = database
        self.directory = directory
        self.writer = journal.writer
        (self.segment,) = segments.segments(journal.path)

    async def verify(self) -> Report:
        return await verify(self.database, self.directory)

    async def first_problem(self) -> Problem:
        report = await self.verify()
        assert not report.ok
        with pytest.raises(AuditBroken, match=re.escape(str(report.problems[0]))):
            report.require()
        return report.problems[0]

    def record(self, seq: int) -> sa.ColumnElement[bool]:
        return sa.and_(RECORD.c.writer_id == self.writer, RECORD.c.seq == seq)


@pytest.fixture
async def trail(database: Database, who: Person, tmp_path: Path) -> Trail:
    journal = await Journal.open(database, tmp_path, "journal")
    shipper = Shipper(database, tmp_path, journal)
    journal.use(who.use("r1"))
    journal.use(who.use("r2"))
    journal.outcome(outcome("r1"))
    journal.flush()
    await shipper.ship_once()
    async with database.write(Actor.user(who.user_id)) as tx:
        await management.record(database, tx, ManagementRecord("secret.update", None, str(who.secret_id)))
    journal.outcome(outcome("r2"))
    journal.use(who.use("r3"))
    journal.use(who.use("r4"))
    await journal.close()
    await shipper.ship_once()
    return Trail(database, tmp_path, journal)


async def test_an_untouched_trail_verifies(trail: Trail) -> None:
    report = await trail.verify()
    assert report.ok
    report.require()
    assert {found.writer: (found.state, found.records) for found in report.writers} == {
        management.WRITER: ("running", 3),
        trail.writer: ("closed", 8),
    }
    as_dict = report.as_dict()
    assert (as_dict["ok"], as_dict["problem"], len(as_dict["writers"])) == (True, None, 2)


OTHER: dict[str, Any] = {
    "writer_id": management.WRITER,
    "seq": 77,
    "at": datetime(2020, 1, 1, tzinfo=UTC),
    "kind": "manage",
    "action": "secret.reveal",
    "user_id": UUID(int=9),
    "owner_id": UUID(int=9),
    "secret_id": UUID(int=9),
    "request_id": "r9",
    "outcome": "failed",
    "nonce": bytes(16),
    "line": '{"kind":"use"}',
    "d": bytes(32),
    "h": bytes(32),
}


@pytest.mark.parametrize("seq", [1, 3, 4, 8])
async def test_a_change_in_any_column_is_found(trail: Trail, tamper: Tamper, database: Database, seq: int) -> None:
    (row,) = await rows(database, RECORD, trail.record(seq))
    for column in COLUMNS:
        await tamper(sa.update(RECORD).where(trail.record(seq)).values({column: OTHER[column]}))
        problem = await trail.first_problem()
        assert (problem.writer, problem.seq, problem.where) == (trail.writer, seq, "database"), column
        at = trail.record(OTHER["seq"] if column == "seq" else seq)
        await tamper(sa.update(RECORD).where(at).values(**row._mapping))
    assert (await trail.verify()).ok


async def test_text_that_is_no_utf_8_is_found_in_sqlite(trail: Trail, tamper: Tamper, database: Database) -> None:
    if database.name != "sqlite":
        return  # holds nothing else in a text
    (row,) = await rows(database, RECORD, trail.record(3))
    for column in ("at", "kind", "action", "user_id", "request_id", "outcome", "line"):
        await tamper(sa.update(RECORD).where(trail.record(3)).values({column: sa.text("CAST(x'6b62ff' AS TEXT)")}))
        problem = await trail.first_problem()
        assert (problem.writer, problem.seq, problem.where) == (trail.writer, 3, "database"), column
        await tamper(sa.update(RECORD).where(trail.record(3)).values(**row._mapping))
    await tamper(sa.update(USAGE).where(USAGE.c.request_id == "r1").values(model=sa.text("CAST(x'6b62ff' AS TEXT)")))
    assert (await trail.first_problem()).where == "usage"


async def test_a_record_given_to_another_writer_is_found(trail: Trail, tamper: Tamper) -> None:
    await tamper(sa.update(RECORD).where(trail.record(4)).values(writer_id=management.WRITER))
    problem = await trail.first_problem()
    assert (problem.writer, problem.seq) == (management.WRITER, 4)


async def test_a_column_made_empty_is_found(trail: Trail, tamper: Tamper, database: Database) -> None:
    (row,) = await rows(database, RECORD, trail.record(3))
    for column in ("user_id", "owner_id", "secret_id", "request_id"):
        await tamper(sa.update(RECORD).where(trail.record(3)).values({column: None}))
        assert (await trail.first_problem()).seq == 3
        await tamper(sa.update(RECORD).where(trail.record(3)).values(**row._mapping))


async def test_a_changed_line_with_a_digest_that_fits_breaks_the_chain(trail: Trail, tamper: Tamper, database: Database) -> None:
    (row,) = await rows(database, RECORD, trail.record(3))
    line = row.line.replace("gpt-5-mini", "gpt-5-maxi")
    d = lines.digest(row.nonce, line.encode())
    await tamper(sa.update(RECORD).where(trail.record(3)).values(line=line, d=d))
    problem = await trail.first_problem()
    assert (problem.seq, "out of place" in problem.what) == (3, True)


async def test_a_chain_calculated_anew_does_not_fit_the_journal(trail: Trail, tamper: Tamper, database: Database) -> None:
    """Whoever can write everything in the database can make a chain that fits; the files still tell."""
    before, changed = bytes(32), []
    for row in sorted(await rows(database, RECORD, RECORD.c.writer_id == trail.writer), key=lambda row: int(row.seq)):
        line = row.line.replace("gpt-5-mini", "gpt-5-maxi")
        d = lines.digest(row.nonce, line.encode())
        before = lines.chain(before, d)
        changed.append({"seq": row.seq, "line": line, "d": d, "h": before})
    for values in changed:
        await tamper(sa.update(RECORD).where(trail.record(values["seq"])).values(values))
    await tamper(sa.update(WRITER).where(WRITER.c.id == trail.writer).values(shipped_hash=before))
    await tamper(sa.update(USAGE).values(model="gpt-5-maxi"))
    problem = await trail.first_problem()
    assert (problem.seq, problem.where) == (2, "journal")


@pytest.mark.parametrize("seq", [1, 4, 7])
async def test_a_missing_record_is_found(trail: Trail, tamper: Tamper, seq: int) -> None:
    await tamper(sa.delete(RECORD).where(trail.record(seq)))
    problem = await trail.first_problem()
    assert (problem.writer, problem.seq, problem.what.split(":")[0]) == (trail.writer, seq, "missing")


async def test_reordered_records_are_found(trail: Trail, tamper: Tamper) -> None:
    for old, new in ((3, 100), (5, 3), (100, 5)):
        await tamper(sa.update(RECORD).where(trail.record(old)).values(seq=new))
    assert (await trail.first_problem()).seq == 3


@pytest.mark.parametrize("seq", [0, -5, 9, 2**40])
async def test_an_added_record_is_found(trail: Trail, tamper: Tamper, database: Database, seq: int) -> None:
    (row,) = await rows(database, RECORD, trail.record(5))
    await tamper(sa.insert(RECORD).values({**row._mapping, "seq": seq}))
    problem = await trail.first_problem()
    assert (problem.writer, problem.where) == (trail.writer, "database")


async def test_a_database_cut_short_with_its_writers_row_is_found_by_what_the_rest_tells(
    trail: Trail, tamper: Tamper, database: Database
) -> None:
    (row,) = await rows(database, RECORD, trail.record(5))
    await tamper(sa.delete(RECORD).where(RECORD.c.writer_id == trail.writer, RECORD.c.seq > 5))
    await tamper(sa.delete(USAGE).where(USAGE.c.request_id.in_(["r3", "r4"])))
    await tamper(sa.update(WRITER).where(WRITER.c.id == trail.writer).values(shipped_seq=5, shipped_hash=row.h))
    trail.segment.path.unlink()
    problem = await trail.first_problem()
    assert (problem.seq, "no closing line" in problem.what) == (6, True)
    await tamper(sa.update(WRITER).where(WRITER.c.id == trail.writer).values(closed_at=None))
    report = await trail.verify()
    assert {found.writer: found.state for found in report.writers}[trail.writer] == "lost after 5"


async def test_a_writer_that_vanished_is_missed_by_the_management_records(trail: Trail, tamper: Tamper) -> None:
    await tamper(sa.delete(RECORD).where(RECORD.c.writer_id == trail.writer))
    await tamper(sa.delete(WRITER).where(WRITER.c.id == trail.writer))
    await tamper(sa.delete(USAGE))
    problem = await trail.first_problem()
    assert (problem.writer, problem.seq) == (management.WRITER, 2)
    assert str(trail.writer) in problem.what


async def test_a_writer_that_nobody_registered_is_found(trail: Trail, tamper: Tamper) -> None:
    stranger = uuid4()
    await tamper(
        sa.insert(WRITER).values(
            id=stranger, kind="process", host="", pid=0, started_at=datetime.now(UTC), shipped_seq=0, shipped_hash=bytes(32)
        )
    )
    problem = await trail.first_problem()
    assert (problem.writer, problem.seq) == (stranger, 1)


@pytest.mark.parametrize(
    "values", [{"shipped_seq": 7}, {"shipped_seq": 9}, {"shipped_hash": bytes(32)}, {"host": "elsewhere"}, {"pid": 0}]
)
async def test_a_change_in_a_writers_row_is_found(trail: Trail, tamper: Tamper, values: dict[str, Any]) -> None:
    await tamper(sa.update(WRITER).where(WRITER.c.id == trail.writer).values(values))
    assert (await trail.first_problem()).writer == trail.writer


# --- management records


async def test_a_change_in_a_management_record_is_found(trail: Trail, tamper: Tamper, database: Database) -> None:
    of_management = RECORD.c.writer_id == management.WRITER
    (row,) = await rows(database, RECORD, of_management, RECORD.c.seq == 3)
    for column in COLUMNS:
        value = {"kind": "use", "secret_id": None}.get(column, OTHER[column])
        await tamper(sa.update(RECORD).where(of_management, RECORD.c.seq == 3).values({column: value}))
        problem = await trail.first_problem()
        assert (problem.writer, problem.seq, problem.where) == (management.WRITER, 3, "database"), column
        seq = OTHER["seq"] if column == "seq" else 3
        await tamper(sa.update(RECORD).where(of_management, RECORD.c.seq == seq).values(**row._mapping))


async def test_a_missing_management_record_is_found(trail: Trail, tamper: Tamper) -> None:
    await tamper(sa.delete(RECORD).where(RECORD.c.writer_id == management.WRITER, RECORD.c.seq == 2))
    problem = await trail.first_problem()
    assert (problem.writer, problem.seq) == (management.WRITER, 2)


# --- usage records


@pytest.mark.parametrize(("request_id", "seqs"), [("r1", {2}), ("r2", {3, 5}), ("r3", {6})])
async def test_a_change_in_a_usage_record_is_found(
    trail: Trail, tamper: Tamper, database: Database, request_id: str, seqs: set[int]
) -> None:
    (row,) = await rows(database, USAGE, USAGE.c.request_id == request_id)
    others: dict[str, Any] = {**OTHER, "token_id": "x", "key_source": "x", "provider": "x", "model": "x", "operation": "x"}
    others |= {"streamed": False, "workflow": "x", "node": "x", "request_id": "x"}
    for column in USAGE.c:
        other = others.get(column.name, 7)
        await tamper(sa.update(USAGE).where(USAGE.c.request_id == request_id).values({column: other}))
        problem = await trail.first_problem()
        assert (problem.writer, problem.where) == (trail.writer, "usage"), column
        assert problem.seq in seqs
        changed = other if column.name == "request_id" else request_id
        await tamper(sa.update(USAGE).where(USAGE.c.request_id == changed).values(**row._mapping))
    assert (await trail.verify()).ok


@pytest.mark.parametrize("asked", [1, 2, 1000])
async def test_a_missing_and_an_added_usage_record_are_found(
    trail: Trail, tamper: Tamper, database: Database, monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    monkeypatch.setattr(usage_queries, "_ASKED", asked)
    (row,) = await rows(database, USAGE, USAGE.c.request_id == "r1")
    await tamper(sa.insert(USAGE).values({**row._mapping, "request_id": "r9"}))
    problem = await trail.first_problem()
    assert (problem.where, "r9" in problem.what) == ("usage", True)
    await tamper(sa.delete(USAGE).where(USAGE.c.request_id.in_(["r9", "r1"])))
    problem = await trail.first_problem()
    assert (problem.where, problem.seq) == ("usage", 2)


# --- journals


async def test_any_flipped_byte_in_a_journal_is_found(trail: Trail) -> None:
    whole = trail.segment.path.read_bytes()
    starts = [0]
    for line in whole.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    last = starts.pop() - 1
    for position in [*range(0, len(whole), 97), *starts, *(start - 1 for start in starts[1:])]:
        flipped = bytearray(whole)
        flipped[position] ^= 1
        trail.segment.path.write_bytes(flipped)
        problem = await trail.first_problem()
        line_number = sum(start <= position for start in starts)
        assert (problem.writer, problem.where, problem.seq) == (trail.writer, "journal", line_number)
    flipped = bytearray(whole)
    flipped[last] ^= 1  # the last line feed: like a line that was cut short, and the database has it whole
    trail.segment.path.write_bytes(flipped)
    report = await trail.verify()
    assert report.ok
    assert len(report.notes) == 1


async def test_a_journal_cut_short_after_it_was_shipped_is_noted(trail: Trail) -> None:
    whole = trail.segment.path.read_bytes().splitlines(keepends=True)
    trail.segment.path.write_bytes(b"".join(whole[:4]))
    report = await trail.verify()
    assert report.ok
    assert "ends at 4" in report.notes[0]


@pytest.mark.parametrize(
    ("order", "seq"), [([0, 1, 3, 2, 4, 5, 6, 7], 3), ([0, 1, 1, 2, 3, 4, 5, 6, 7], 3), ([0, 2, 3, 4, 5, 6, 7], 2), ([1, 2], 1)]
)
async def test_lines_out_of_order_repeated_or_missing_are_found(trail: Trail, order: list[int], seq: int) -> None:
    whole = trail.segment.path.read_bytes().splitlines(keepends=True)
    trail.segment.path.write_bytes(b"".join(whole[number] for number in order))
    problem = await trail.first_problem()
    assert (problem.seq, problem.where) == (seq, "journal")


async def test_a_journal_that_goes_on_after_its_end_is_found(trail: Trail) -> None:
    last = lines.parse(trail.segment.path.read_bytes().splitlines()[-1])
    extra = lines.next_entries(lines.entry_head(trail.writer), 8, os.urandom(16), last.h, [lines.close_line(1.0)])[1]
    trail.segment.path.write_bytes(trail.segment.path.read_bytes() + extra)
    problem = await trail.first_problem()
    assert (problem.seq, problem.where) == (9, "journal")


async def test_a_journal_under_another_writers_name_is_found(trail: Trail) -> None:
    stranger = uuid4()
    trail.segment.path.parent.rename(trail.directory / stranger.hex)
    problem = await trail.first_problem()
    assert problem.writer == stranger


async def test_a_server_that_starts_meanwhile_is_no_stranger(trail: Trail) -> None:
    begun = trail.directory / uuid4().hex
    begun.mkdir()  # its writer is registered after this process has read who is

    def progress(_: int) -> None:
        segments.segment_path(begun, 1).write_bytes(b"its first entry\n")

    report = await verify(trail.database, trail.directory, progress)
    assert segments.segments(begun)
    assert report.ok, report.problems


async def test_what_only_the_journal_has_is_verified_too(database: Database, who: Person, trail: Trail, tmp_path: Path) -> None:
    journal = await Journal.open(database, tmp_path, "journal")
    journal.use(who.use("r9"))
    report = await trail.verify()
    assert report.ok
    found = next(found for found in report.writers if found.writer == journal.writer)
    assert (found.state, found.records, found.unshipped) == ("running", 2, 2)
    (segment,) = segments.segments(journal.path)
    segment.path.write_bytes(segment.path.read_bytes().replace(b'"r9"', b'"r8"'))
    problem = await trail.first_problem()
    assert (problem.writer, problem.seq, problem.where) == (journal.writer, 2, "journal")
    await journal.close()


async def test_a_writer_of_another_machine_is_said_to_be_open_there(database: Database, tmp_path: Path) -> None:
    await management.register_writer(database, uuid4(), "other.example", 1)
    report = await verify(database, tmp_path)
    assert report.ok
    assert report.writers[1].state == "open on other.example"
    assert replace(report, problems=(Problem(uuid4(), 1, "database", "kbtest"),)).as_dict()["problem"].endswith("kbtest")
