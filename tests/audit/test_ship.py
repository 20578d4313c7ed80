"""From the journal to the database, each entry exactly once."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from tests.audit.audit_samples import Person, add_person, outcome, rows
from tests.audit.sealing import sealer_of
from tests.audit.shipping import WRITER, of_writer, usage_of
from tests.support.tamper import Tamper

from keybearer.audit import segments, ship
from keybearer.audit.journal import Journal
from keybearer.audit.ship import Shipper
from keybearer.audit.verify import verify
from keybearer.errors import Unavailable
from keybearer.store import schema
from keybearer.store.db import Database

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
