"""Whoever is killed when: what was acknowledged is on record, once."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from tests.audit.audit_samples import Person, rows
from tests.audit.shipping import RECORD, alarms, die, usage_of

from keybearer.audit import lines, management, segments
from keybearer.audit.journal import Journal
from keybearer.audit.ship import Shipper
from keybearer.audit.verify import verify
from keybearer.store import schema
from keybearer.store.db import Database


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
