"""``kill -9`` at every step of a rotation, and processes that were stopped through one: real processes, both databases."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from tests.vault.test_rotation import Story
from tests.vault.test_rotation import story as story  # noqa: PLC0414  # a fixture

from keybearer.domain import OwnerKind
from keybearer.store.db import Actor, Database
from keybearer.store.queries import keys
from keybearer.store.schema import owner_key, root_key

ROOT = Path(__file__).resolve().parent.parent.parent
PROCESS = "tests.vault.rotating_process"


def command(what: str, urls: tuple[str, str], *more: str) -> tuple[list[str], dict[str, str]]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("KEYBEARER_")}
    return [sys.executable, "-m", PROCESS, what, *urls, *more], environment | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}


ROOT_STEPS = [
    ("stage", "within"),
    ("stage", "after"),
    ("prove", "within"),
    ("prove", "after"),
    ("promote", "within"),
    ("promote", "after"),
    ("reseal", "within"),
    ("reseal", "after"),
    ("reseal", "within:2"),
    ("retire", "within"),
    ("retire", "after"),
]
OWNER_STEPS = [
    ("turn", "within"),
    ("turn", "after"),
    ("turn", "within:2"),
    ("system", "within"),
    ("system", "after"),
    ("seal", "within"),
    ("seal", "after"),
    ("seal", "within:2"),
]


@pytest.mark.parametrize(
    ("kind", "step", "when"), [("root", *each) for each in ROOT_STEPS] + [("owners", *each) for each in OWNER_STEPS]
)
async def test_killed_at_a_step_it_is_gone_on_with_and_everything_opens(
    story: Story, database_urls: tuple[str, str], kind: str, step: str, when: str
) -> None:
    arguments, environment = command("rotate", database_urls, kind, step, when)
    done = await asyncio.to_thread(
        subprocess.run, arguments, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    await story.open_all()  # also as it lies there
    secret_id = await story.add(story.people[0])  # and people go on
    left = await story.rotations.under_way()
    if left is None:
        assert (step, when) in {("retire", "after"), ("seal", "within:2")}
    else:
        finished = await story.rotations.finish(left)
        assert (finished.state, finished.unreadable, finished.done) == ("finished", 0, finished.total)
    assert secret_id in story.values
    await story.open_all()
    roots = await story.rows(root_key)
    owners = await story.rows(owner_key)
    if kind == "root":
        assert sorted(row.state for row in roots) == ["active", "retired"]
        (active,) = [row for row in roots if row.state == "active"]
        assert {row.root_key_id for row in owners} == {active.id}
        assert all(row.emptied_at for row in roots if row.state == "retired")
    else:
        status = await story.rotations.status(None)
        assert {row["state"]: row["rows"] for row in status.owner_keys} == {"active": story.versions, "retired": 0}
        assert {row.version for row in owners if row.state == "active"} == {2}


@contextmanager
def sealing(urls: tuple[str, str], owner_id: UUID, what: str = "seal") -> Iterator[subprocess.Popen[str]]:
    """Another process of the deployment, which has opened its keys."""
    arguments, environment = command(what, urls, str(owner_id))
    process = subprocess.Popen(
        arguments, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert heard(process) == "ready"
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(10)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def tell(process: subprocess.Popen[str]) -> None:
    stdin: IO[str] | None = process.stdin
    assert stdin is not None
    stdin.write("go\n")
    stdin.flush()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def new_owner(db: Database) -> UUID:
    owner_id = uuid4()
    async with db.write(Actor.system()) as tx:
        await keys.insert_owner(tx, owner_id, OwnerKind.USER, datetime.now(UTC))
    return owner_id


async def key_row(story: Story, said: str) -> keys.Row:
    assert said.startswith("sealed "), said
    (row,) = [row for row in await story.rows(owner_key) if row.id == UUID(said.removeprefix("sealed "))]
    found: keys.Row = row
    return found


class TestStopped:
    """A process stopped by SIGSTOP through promote and retire, then continued, seals nothing under the old key."""

    @pytest.fixture
    def urls(self, emptied_postgresql: tuple[str, str]) -> tuple[str, str]:
        return emptied_postgresql

    @pytest.fixture(params=["postgresql"])
    def database_urls(self, urls: tuple[str, str]) -> tuple[str, str]:
        return urls

    async def test_through_a_root_rotation(self, story: Story, urls: tuple[str, str]) -> None:
        owner_id = await new_owner(story.world.db)
        with sealing(urls, owner_id) as process:
            process.send_signal(signal.SIGSTOP)
            tell(process)
            await story.rotations.finish(await story.rotations.begin_root(None))
            process.send_signal(signal.SIGCONT)
            row = await key_row(story, await asyncio.to_thread(heard, process))
        (active,) = [root for root in await story.rows(root_key) if root.state == "active"]
        assert row.root_key_id == active.id

    async def test_through_an_owners_rotation(self, story: Story, urls: tuple[str, str]) -> None:
        ada = story.people[0].user_id
        with sealing(urls, ada) as process:
            tell(process)  # its key is in memory from now on
            before = await key_row(story, await asyncio.to_thread(heard, process))
            process.send_signal(signal.SIGSTOP)
            tell(process)
            await story.rotations.finish(await story.rotations.begin_owners(None, ada))
            process.send_signal(signal.SIGCONT)
            after = await key_row(story, await asyncio.to_thread(heard, process))
        assert (before.version, after.version, after.state) == (1, 2, "active")

    @pytest.mark.parametrize("kind", ["root", "owner"])
    async def test_in_mid_transaction_it_is_waited_for(self, story: Story, urls: tuple[str, str], kind: str) -> None:
        """It holds the locks: the rotation comes after its commit, and sees what it sealed."""
        owner_id = await new_owner(story.world.db) if kind == "root" else story.people[0].user_id
        with sealing(urls, owner_id, "hold") as process:
            tell(process)
            assert await asyncio.to_thread(heard, process) == "locked"
            process.send_signal(signal.SIGSTOP)
            begun = await (story.rotations.begin_root(None) if kind == "root" else story.rotations.begin_owners(None, owner_id))
            rotating = asyncio.create_task(story.rotations.finish(begun))
            await asyncio.sleep(1.5)
            assert not rotating.done()
            found = await story.rotations.under_way()
            assert found is not None
            assert found.step == ("promote" if kind == "root" else "turn")
            process.send_signal(signal.SIGCONT)
            tell(process)
            assert (await asyncio.to_thread(heard, process)).startswith("sealed ")
            await rotating
        (active,) = [root for root in await story.rows(root_key) if root.state == "active"]
        assert {row.root_key_id for row in await story.rows(owner_key)} == {active.id}
        await story.open_all()

    @pytest.mark.parametrize("kind", ["root", "owner"])
    async def test_whoever_sleeps_too_long_in_a_transaction_commits_nothing(
        self, story: Story, urls: tuple[str, str], kind: str
    ) -> None:
        """PostgreSQL ends its session (here at once, else after a minute idle): the rotation gets on, the sleeper is refused."""
        owner_id = await new_owner(story.world.db) if kind == "root" else story.people[0].user_id
        with sealing(urls, owner_id, "hold") as process:
            tell(process)
            assert await asyncio.to_thread(heard, process) == "locked"
            process.send_signal(signal.SIGSTOP)
            begun = await (story.rotations.begin_root(None) if kind == "root" else story.rotations.begin_owners(None, owner_id))
            await end_idle_sessions(urls)
            await story.rotations.finish(begun)
            process.send_signal(signal.SIGCONT)
            tell(process)
            assert (await asyncio.to_thread(heard, process)).startswith("refused ")
            tell(process)
            assert await asyncio.to_thread(heard, process) == "locked"
            tell(process)
            row = await key_row(story, await asyncio.to_thread(heard, process))
        (active,) = [root for root in await story.rows(root_key) if root.state == "active"]
        assert (row.root_key_id, row.state) == (active.id, "active")
        assert row.version == (1 if kind == "root" else 2)


async def end_idle_sessions(urls: tuple[str, str]) -> None:
    """As PostgreSQL's own time-out for idle transactions does."""
    engine = create_async_engine(urls[0])
    async with engine.connect() as connection:
        ended = await connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND state = 'idle in transaction' AND pid <> pg_backend_pid()"
            )
        )
        assert ended.all()
    await engine.dispose()
