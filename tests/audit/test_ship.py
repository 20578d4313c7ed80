"""From the journal to the database, each entry exactly once, whoever is killed when."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from tests.audit.audit_samples import Person, add_person, outcome, rows
from tests.audit.sealing import sealer_of
from tests.support.tamper import Tamper

from keybearer.audit import lines, management, segments, ship
from keybearer.audit.journal import Journal
from keybearer.audit.ship import Shipper
from keybearer.audit.verify import verify
from keybearer.errors import Unavailable
from keybearer.store import schema
from keybearer.store.db import Database

RECORD, WRITER, USAGE = schema.audit_record, schema.audit_writer, schema.usage_record


@pytest.fixture
async def who(database: Database) -> Person:
    return await add_person(database)


@pytest.fixture
async def journal(database: Database, tmp_path: Path) -> AsyncIterator[Journal]:
    opened = await Journal.open(database, tmp_path / "journal", "journal")
    yield opened
    await opened.close()


@pytest.fixture
def shipper(database: Database, tmp_path: Path, journal: Journal) -> Shipper:
    return Shipper(database, tmp_path / "journal", journal)


async def of_writer(database: Database, writer: UUID) -> list[Any]:
    return sorted(await rows(database, RECORD, RECORD.c.writer_id == writer), key=lambda record: record.seq)


async def usage_of(database: Database) -> dict[str, Any]:
    return {row.request_id: row for row in await rows(database, USAGE)}


async def alarms(database: Database) -> list[lines.Managed]:
    found = await rows(database, RECORD, RECORD.c.action == management.ALARM)
    return [lines.decode_manage(record.line.encode()) for record in found]


# --- what is shipped


async def test_a_use_and_its_outcome_become_audit_and_usage_records(
    database: Database, who: Person, journal: Journal, shipper: Shipper
) -> None:
    use = who.use("r1")
    journal.use(use)
    journal.outcome(outcome("r1"))
    journal.use(who.use("r2", workflow=""))
    assert await shipper.ship_once() == 4
    assert await shipper.ship_once() == 0
    records = await of_writer(database, journal.writer)
    assert [(record.seq, record.kind) for record in records] == [(1, "open"), (2, "use"), (3, "outcome"), (4, "use")]
    for record in records[1:3]:
        assert (record.user_id, record.owner_id, record.secret_id) == (who.user_id, who.user_id, who.secret_id)
        assert record.request_id == "r1"
    usage = await usage_of(database)
    first = usage["r1"]
    assert (first.outcome, first.status, first.duration_ms, first.first_byte_ms) == ("ok", 200, 12.5, 3.25)
    assert (first.input_tokens, first.output_tokens, first.cached_tokens, first.reasoning_tokens) == (100, 20, 10, 5)
    assert (first.cost_micro_usd, first.provider, first.model, first.key_source) == (1234, "openai", "gpt-5-mini", "user")
    assert first.at.timestamp() == pytest.approx(use.at, abs=1e-5)
    assert (usage["r2"].outcome, usage["r2"].status, usage["r2"].cost_micro_usd) == ("unknown", None, None)
    (secret,) = await rows(database, schema.secret)
    assert (secret.usage_count, secret.last_used_in_workflow) == (2, "nightly")
    (token,) = await rows(database, schema.access_token)
    assert token.last_used_at == secret.last_used_at == usage["r2"].at


async def test_an_outcome_may_come_in_a_later_batch(database: Database, who: Person, journal: Journal, shipper: Shipper) -> None:
    journal.use(who.use("r1"))
    await shipper.ship_once()
    assert (await usage_of(database))["r1"].outcome == "unknown"
    journal.outcome(outcome("r1", outcome="aborted", status=499))
    journal.flush()
    assert await shipper.ship_once() == 1
    usage = await usage_of(database)
    assert (usage["r1"].outcome, usage["r1"].status, usage["r1"].input_tokens) == ("aborted", 499, 100)
    assert (await of_writer(database, journal.writer))[-1].user_id == who.user_id
    (secret,) = await rows(database, schema.secret)
    assert secret.usage_count == 1


async def test_a_second_key_for_the_same_request_takes_the_place_of_the_first(
    database: Database, who: Person, journal: Journal, shipper: Shipper, tmp_path: Path
) -> None:
    other = await add_person(database)
    journal.use(who.use("r1"))
    await shipper.ship_once()
    journal.use(who.use("r1", secret_id=other.secret_id))
    journal.outcome(outcome("r1"))
    journal.flush()
    await shipper.ship_once()
    usage = await usage_of(database)
    assert (usage["r1"].secret_id, usage["r1"].outcome) == (other.secret_id, "ok")
    assert {secret.usage_count for secret in await rows(database, schema.secret)} == {1}
    assert (await verify(database, tmp_path / "journal")).ok


async def test_a_request_id_that_repeats_does_not_write_over_another_users_record(
    database: Database, who: Person, journal: Journal, shipper: Shipper
) -> None:
    other = await add_person(database)
    journal.use(who.use("r1"))
    await shipper.ship_once()
    journal.use(other.use("r1"))
    await shipper.ship_once()
    assert (await usage_of(database))["r1"].user_id == who.user_id


async def test_hostile_text_and_figures_are_shipped(
    database: Database, who: Person, journal: Journal, shipper: Shipper, tmp_path: Path
) -> None:
    journal.use(who.use("r1", model="\x00" * 500, workflow="\ud800\u202e" * 300, node='"}\n{', operation="x" * 90))
    journal.outcome(outcome("r1", outcome="y" * 50, cost_micro_usd=2**70))
    journal.flush()
    assert await shipper.ship_once() == 3
    row = (await usage_of(database))["r1"]
    assert (len(row.model), len(row.workflow), len(row.operation), len(row.outcome)) == (200, 200, 40, 16)
    assert (row.node, row.cost_micro_usd) == (r'"}\n{', None)
    assert (await verify(database, tmp_path / "journal")).ok


async def test_the_first_start_of_a_deleted_secret_does_not_stop_shipping(
    database: Database, who: Person, journal: Journal, shipper: Shipper
) -> None:
    journal.use(who.use("r1", secret_id=uuid4(), token_id="gone"))
    journal.use(who.use("r2", token_id=""))
    assert await shipper.ship_once() == 3
    assert len(await usage_of(database)) == 2


async def test_a_closed_journal_closes_its_writer(
    database: Database, who: Person, journal: Journal, shipper: Shipper, tmp_path: Path
) -> None:
    journal.use(who.use("r1"))
    await journal.close()
    assert await shipper.ship_once() == 3
    (writer,) = await rows(database, WRITER, WRITER.c.id == journal.writer)
    assert (writer.shipped_seq, writer.closed_at is not None) == (3, True)
    report = await verify(database, tmp_path / "journal")
    assert report.ok
    assert {found.writer: found.state for found in report.writers}[journal.writer] == "closed"


async def test_many_entries_are_shipped_whatever_their_number(
    database: Database, who: Person, journal: Journal, shipper: Shipper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows go to the driver in blocks and statements; none may fall between two, in one transaction or over several."""
    monkeypatch.setattr(ship, "BATCH", 700)
    others = [await add_person(database) for _ in range(3)]
    total = 0
    for round_ in (1, 49, 50, 51, 1201):
        for number in range(round_):
            journal.use([who, *others][number % 4].use(f"r{round_}-{number}"))
            if number % 3:
                journal.outcome(outcome(f"r{round_}-{number - 1}"))
        total += round_
        journal.flush()
        while await shipper.ship_once():
            pass
    assert len(await usage_of(database)) == total
    assert sum(secret.usage_count for secret in await rows(database, schema.secret)) == total
    assert (await verify(database, tmp_path / "journal")).problems == ()


async def test_in_busy_times_a_job_ships_once_a_second_and_at_other_times_at_once(
    database: Database, who: Person, journal: Journal, shipper: Shipper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "BUSY", 10)
    for expected in (2, 1, 10):  # the first time with the line that opens the journal
        for _ in range(expected - (expected == 2)):
            journal.use(who.use(uuid4().hex))
        assert await shipper.ship_in_turn() == expected
    journal.use(who.use("late"))
    assert await shipper.ship_in_turn() == 0
    shipper._rests_until -= ship.REST
    assert await shipper.ship_in_turn() == 1


class Starved:
    """What the kernel says of a thread that always waits for the processor: others have it."""

    def read_bytes(self) -> bytes:
        return b"0 %d 0" % time.monotonic_ns()


@pytest.mark.parametrize(("case", "rests"), [("idle", 1), ("saturated", 5), ("starved", 5), ("hurried", 1), ("behind", 1)])
async def test_between_batches_it_waits_for_an_idle_loop_unless_somebody_waits_for_it_or_too_much_does(
    journal: Journal, shipper: Shipper, monkeypatch: pytest.MonkeyPatch, case: str, rests: int
) -> None:
    monkeypatch.setattr(ship, "PATIENCE", 5)
    monkeypatch.setattr(ship, "BACKLOG", -1 if case == "behind" else 1000)
    monkeypatch.setattr(time, "thread_time", (lambda: 0.0) if case in {"idle", "starved"} else time.monotonic)
    monkeypatch.setattr(ship, "_SCHEDSTAT", Starved() if case == "starved" else Path("/none"))
    if case == "hurried":
        shipper._hurried = 1
    began = time.monotonic()
    await shipper._rest(0.02)
    took = time.monotonic() - began
    assert took >= rests * 0.02 * 0.99
    if rests == 1:
        assert took < 5 * 0.02


@pytest.mark.parametrize(("uses", "by", "waits"), [(100, "job", True), (100, "who waits", False), (5, "job", False)])
async def test_a_peak_is_served_before_what_it_leaves_behind_is_shipped(
    who: Person, journal: Journal, shipper: Shipper, monkeypatch: pytest.MonkeyPatch, *, uses: int, by: str, waits: bool
) -> None:
    await shipper.ship_once()
    monkeypatch.setattr(ship, "BUSY", 50)
    monkeypatch.setattr(ship, "PATIENCE", 5)
    monkeypatch.setattr(time, "thread_time", time.monotonic)  # the event loop is never idle
    monkeypatch.setattr(ship, "_SCHEDSTAT", Path("/none"))
    monkeypatch.setattr(ship, "PACE", 0.002)
    for _ in range(uses):
        journal.use(who.use(uuid4().hex))
    began = time.monotonic()
    assert await (shipper.ship_in_turn() if by == "job" else shipper.ship_once()) == uses
    assert (time.monotonic() - began >= 5 * 100 * 0.002) is waits


async def test_what_is_written_while_a_turn_ships_waits_for_the_next(
    database: Database, who: Person, journal: Journal, shipper: Shipper
) -> None:
    """A busy journal never ends: a turn that ran after its end would ship it in ever so many small batches."""
    journal.use(who.use("r1"))
    turn = asyncio.create_task(shipper.ship_once())
    while not turn.done():
        journal.use(who.use(uuid4().hex))
        await asyncio.sleep(0)
    first = shipper.shipped
    assert await shipper.ship_once() > 0
    assert 2 <= first < shipper.shipped


# --- killed


class Killed:
    """Processes that write and ship, to be killed."""

    def __init__(self, urls: tuple[str, str], directory: Path, who: Person) -> None:
        self.directory = directory
        given = {"urls": urls, "directory": str(directory), "user_id": str(who.user_id), "secret_id": str(who.secret_id)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.audit.writing_process", json.dumps(given | {"token_id": who.token_id})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": "src:."},
        )
        assert self._answer() == "ready"

    def start(self, work: str) -> int:
        assert self.process.stdin
        self.process.stdin.write(work + "\n")
        self.process.stdin.flush()
        return int(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def acknowledged(self) -> list[str]:
        path = self.directory / "acknowledged"
        return path.read_text().splitlines() if path.exists() else []

    def end(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def killed(database_urls: tuple[str, str], tmp_path: Path, who: Person) -> Iterator[Killed]:
    processes = Killed(database_urls, tmp_path, who)
    yield processes
    processes.end()


async def until(is_so: Callable[[], bool]) -> None:
    """Other processes send no events: look again and again."""
    while not is_so():  # noqa: ASYNC110  # see above
        await asyncio.sleep(0.005)


def is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


async def test_killed_twenty_times_every_acknowledged_use_is_on_record_once(
    database: Database, who: Person, killed: Killed, tmp_path: Path
) -> None:
    chance = random.Random(20)
    for _ in range(20):
        before = len(killed.acknowledged())
        process = killed.start("write")
        await until(lambda: len(killed.acknowledged()) >= before + 5)  # noqa: B023  # awaited at once
        await asyncio.sleep(chance.random() * 0.1)
        os.kill(process, signal.SIGKILL)
        await until(lambda: is_gone(process))  # noqa: B023  # awaited at once
    shipper = Shipper(database, tmp_path / "journal", None)
    while await shipper.ship_once(within=0):  # each turn but a little, to go on in the middle of journals
        pass
    assert shipper.alarms == 0
    acknowledged = killed.acknowledged()
    uses = [record.request_id for record in await rows(database, RECORD, RECORD.c.kind == "use")]
    assert len(acknowledged) == len(set(acknowledged)) > 100
    assert len(uses) == len(set(uses))
    assert set(acknowledged) <= set(uses)
    assert len(uses) - len(acknowledged) <= 20  # written, but killed before the acknowledgement
    assert set(await usage_of(database)) == set(uses)
    (secret,) = await rows(database, schema.secret)
    assert secret.usage_count == len(uses)
    report = await verify(database, tmp_path / "journal")
    assert report.problems == ()
    states = [found.state for found in report.writers if found.kind == "process"]
    assert len(states) == 20
    assert all(state.startswith("lost after ") for state in states)


async def test_shippers_of_several_processes_do_not_ship_twice(
    database: Database, who: Person, killed: Killed, tmp_path: Path
) -> None:
    for count in range(1, 5):
        process = killed.start("write")
        await until(lambda: len(killed.acknowledged()) >= 200 * count)  # noqa: B023  # awaited at once
        os.kill(process, signal.SIGKILL)
        await until(lambda: is_gone(process))  # noqa: B023  # awaited at once
    others = [killed.start("ship") for _ in range(3)]
    here = [Shipper(database, tmp_path / "journal", None) for _ in range(2)]
    await asyncio.gather(*(shipper.ship_once(60) for shipper in here))
    for process in others:
        await until(lambda: is_gone(process))  # noqa: B023  # awaited at once
    await here[0].ship_once(60)
    uses = [record.request_id for record in await rows(database, RECORD, RECORD.c.kind == "use")]
    assert set(killed.acknowledged()) <= set(uses)
    (secret,) = await rows(database, schema.secret)
    assert secret.usage_count == len(uses) == len(set(uses)) == len(await usage_of(database))
    assert await alarms(database) == []
    assert (await verify(database, tmp_path / "journal")).problems == ()


async def test_a_torn_last_line_is_reported_and_no_error(
    database: Database, who: Person, journal: Journal, shipper: Shipper, tmp_path: Path
) -> None:
    journal.use(who.use("r1"))
    journal.use(who.use("r2"))
    dead = await die(journal, tmp_path)
    (segment,) = segments.segments(dead)
    whole = segment.path.read_bytes()
    segment.path.write_bytes(whole[:-100])
    successor = Shipper(database, tmp_path / "journal", None)
    assert await successor.ship_once() == 2
    report = await verify(database, tmp_path / "journal")
    assert report.ok
    (found,) = (found for found in report.writers if found.writer == journal.writer)
    assert (found.state, found.records) == ("lost after 2", 2)
    assert found.torn_bytes == len(whole.splitlines()[-1]) + 1 - 100
    (lost,) = await rows(database, RECORD, RECORD.c.action == management.LOST)
    assert lines.decode_manage(lost.line.encode()).detail["after"] == "2"


async def die(journal: Journal, tmp_path: Path) -> Path:
    """Leave the journal as a killed process does: no closing line, no lock."""
    journal._timer = journal._timer.cancel() if journal._timer else None  # type: ignore[func-returns-value]
    os.close(journal._lock)
    os.close(journal._descriptor)
    journal._closed = True
    return journal.path


async def test_a_process_killed_before_its_first_line_leaves_nothing_behind(database: Database, tmp_path: Path) -> None:
    _, lock = segments.create(tmp_path / "journal", uuid4())
    registered = uuid4()
    _, other = segments.create(tmp_path / "journal", registered)
    await management.register_writer(database, registered, "host", 1)
    os.close(lock)
    os.close(other)
    assert await Shipper(database, tmp_path / "journal", None).ship_once() == 0
    assert list(segments.journals(tmp_path / "journal")) == [registered]
    report = await verify(database, tmp_path / "journal")
    assert report.ok
    assert {found.writer: found.state for found in report.writers}[registered] == "lost after 0"


# --- what does not fit


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


# --- files that may go


async def test_shipped_segments_go_when_they_are_old_enough(database: Database, who: Person, tmp_path: Path) -> None:
    journal = await Journal.open(database, tmp_path / "journal", "journal", segment_bytes=4000)
    for keep in (3600.0, None):
        for number in range(20):
            journal.use(who.use(f"r{number}-{keep}"))
        before = segments.segments(journal.path)
        assert await Shipper(database, tmp_path / "journal", journal, keep=keep).ship_once() > 0
        assert segments.segments(journal.path) == before
    short = Shipper(database, tmp_path / "journal", journal, keep=0)
    journal.use(who.use("r20"))
    await short.ship_once()
    assert len(segments.segments(journal.path)) > 1  # nothing is sealed, so the files are the only witness
    sealer = await sealer_of(database)
    await sealer.seal()
    journal.use(who.use("r21"))
    await short.ship_once()
    assert len(segments.segments(journal.path)) == 1
    report = await verify(database, tmp_path / "journal")
    assert report.ok
    assert {found.writer: found.state for found in report.writers}[journal.writer] == "running"
    await journal.close()
    await short.ship_once()
    await Shipper(database, tmp_path / "journal", None, keep=None).ship_once()
    await Shipper(database, tmp_path / "journal", None, keep=0).ship_once()
    assert journal.path.exists()
    await sealer.seal()
    await Shipper(database, tmp_path / "journal", None, keep=0).ship_once()
    assert not journal.path.exists()
    report = await verify(database, tmp_path / "journal")
    assert report.ok
    assert {found.writer: found.state for found in report.writers}[journal.writer] == "closed"


# --- the database as durability, and its outage


async def test_with_database_durability_a_use_is_in_the_database_when_it_is_durable(
    database: Database, who: Person, tmp_path: Path
) -> None:
    journal = await Journal.open(database, tmp_path / "journal", "database")
    Shipper(database, tmp_path / "journal", journal)
    assert journal.needs_wait
    await asyncio.gather(*(journal.durable(journal.use(who.use(f"r{number}"))) for number in range(50)))
    assert len(await usage_of(database)) == 50
    await journal.durable(journal.use(who.use("last")))
    assert "last" in await usage_of(database)
    await journal.close()


@asynccontextmanager
async def outage(database: Database, tamper: Tamper) -> AsyncIterator[None]:
    """PostgreSQL: connections are cut and none is let in. SQLite: somebody else holds the write lock."""
    if database.name == "postgresql":
        name = sa.make_url(database.direct_url).database
        await tamper(sa.text(f'ALTER DATABASE "{name}" CONNECTION LIMIT 0'))
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        await tamper(sa.text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))
        yield
        await tamper(sa.text(f'ALTER DATABASE "{name}" CONNECTION LIMIT -1'))
        return
    async with database._writers.connect() as connection:
        await connection.exec_driver_sql("PRAGMA busy_timeout = 50")
        await connection.rollback()
    with closing(sqlite3.connect(database._writers.url.database or "", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def test_an_outage_of_the_database_is_survived_by_a_backlog(
    database: Database, who: Person, journal: Journal, shipper: Shipper, tamper: Tamper
) -> None:
    journal.use(who.use("r1"))
    async with outage(database, tamper):
        with pytest.raises(Unavailable):
            await shipper.ship_once()
        for number in range(2, 50):
            journal.use(who.use(f"r{number}"))
            journal.outcome(outcome(f"r{number}"))
    journal.flush()
    assert await shipper.ship_once() == 98
    assert len(await usage_of(database)) == 49
