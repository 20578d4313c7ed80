"""What is particular to SQLite: the file, its modes, and several writers on it."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from keybearer.errors import Overloaded, Unavailable
from keybearer.store import engine as engines
from keybearer.store import schema
from keybearer.store.db import Actor, Database, migrate

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keybearer.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    await migrate(f"sqlite:///{path}")
    db = await Database.open(f"sqlite:///{path}")
    yield db
    await db.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_up(path: Path) -> None:
    path.touch()
    path.chmod(0o664)


async def test_only_its_owner_can_read_the_file(database: Database, path: Path) -> None:
    async with database.write(Actor.system()) as tx:
        await tx.execute(sa.insert(schema.owner).values(id=uuid4(), kind="user", created_at=NOW))
        files = [path, path.with_name("keybearer.db-wal"), path.with_name("keybearer.db-shm")]
        assert {mode(file) for file in files} == {0o600}


async def test_a_file_that_others_could_read_is_narrowed(path: Path) -> None:
    open_up(path)
    await migrate(f"sqlite:///{path}")
    assert mode(path) == 0o600
    open_up(path)
    await (await Database.open(f"sqlite:///{path}")).close()
    assert mode(path) == 0o600


@pytest.mark.parametrize(
    ("pragma", "value"),
    [
        ("journal_mode", "wal"),
        ("secure_delete", 1),
        ("synchronous", 2),
        ("foreign_keys", 1),
        ("busy_timeout", engines.BUSY_TIMEOUT_MS),
        ("temp_store", 2),
    ],
)
async def test_every_connection_is_set_up(database: Database, pragma: str, value: object) -> None:
    async with database.read(Actor.system()) as reader, database.write(Actor.system()) as writer, database.watch() as watcher:
        for tx in (reader, writer, watcher):
            assert (await tx.execute(sa.text(f"PRAGMA {pragma}"))).scalar_one() == value


async def test_what_is_deleted_is_overwritten_and_leaves_the_log(database: Database, path: Path) -> None:
    marker = b"kbtest-deleted-value-" * 40
    writer = uuid4()
    values = {"id": writer, "kind": "process", "host": "", "pid": 1, "started_at": NOW, "shipped_seq": 0}
    async with database.write(Actor.system()) as tx:
        await tx.execute(sa.insert(schema.audit_writer).values(values | {"shipped_hash": marker}))
    files = [path, path.with_name("keybearer.db-wal")]
    assert any(marker in file.read_bytes() for file in files)
    async with database.write(Actor.system()) as tx:
        await tx.execute(sa.delete(schema.audit_writer))
    await database.truncate_log()
    assert not any(marker[:21] in file.read_bytes() for file in files)
    assert files[1].stat().st_size == 0


async def test_a_log_that_a_reader_needs_is_not_passed_off_as_emptied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_MS", 50)
    await migrate(f"sqlite:///{path}")
    db = await Database.open(f"sqlite:///{path}")
    async with db.read(Actor.system()) as reader:
        await reader.execute(sa.select(schema.owner))
        async with db.write(Actor.system()) as tx:
            await tx.execute(sa.insert(schema.owner).values(id=uuid4(), kind="user", created_at=NOW))
        with pytest.raises(Unavailable):
            await db.truncate_log()
    await db.truncate_log()
    await db.close()


async def test_writers_of_one_process_take_turns(database: Database) -> None:
    async def add() -> None:
        async with database.write(Actor.system()) as tx:
            count = (await tx.execute(sa.select(sa.func.count()).select_from(schema.owner))).scalar_one()
            await asyncio.sleep(0.001)
            await tx.execute(sa.insert(schema.owner).values(id=uuid4(), kind="user", created_at=NOW))
            counts.append(count)

    counts: list[int] = []
    await asyncio.gather(*(add() for _ in range(30)))
    assert counts == list(range(30))


async def test_writers_of_two_processes_take_turns(database: Database, path: Path) -> None:
    other = await Database.open(f"sqlite:///{path}")

    async def add(db: Database) -> None:
        async with db.write(Actor.system()) as tx:
            counts.append((await tx.execute(sa.select(sa.func.count()).select_from(schema.owner))).scalar_one())
            await tx.execute(sa.insert(schema.owner).values(id=uuid4(), kind="user", created_at=NOW))

    counts: list[int] = []
    await asyncio.gather(*(add(db) for db in (database, other) * 10))
    assert counts == list(range(20))
    await other.close()


async def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    async with database.write(Actor.system()) as tx:
        await tx.execute(sa.insert(schema.owner).values(id=uuid4(), kind="user", created_at=NOW))
        async with asyncio.timeout(2), database.read(Actor.system()) as reader:
            assert (await reader.execute(sa.select(sa.func.count()).select_from(schema.owner))).scalar_one() == 0


async def test_a_lock_that_another_process_keeps_is_unavailable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_MS", 50)
    await migrate(f"sqlite:///{path}")
    db = await Database.open(f"sqlite:///{path}")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable):
        async with db.write(Actor.system()):
            pass
    other.execute("ROLLBACK")
    other.close()
    async with db.write(Actor.system()):
        pass
    await db.close()


async def test_a_writer_that_never_ends_does_not_make_others_wait_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_MS", 50)
    monkeypatch.setattr(engines, "POOL_TIMEOUT_S", 0.05)
    await migrate(f"sqlite:///{path}")
    db = await Database.open(f"sqlite:///{path}")
    async with db.write(Actor.system()):
        with pytest.raises(Overloaded):
            async with db.write(Actor.system()):
                pass
    await db.close()
