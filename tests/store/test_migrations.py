"""Migrations on both databases: from empty, again, together, and when they fail."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import create_async_engine
from tests.support.postgresql import RUNTIME, Server

import keybearer.store.migrate as module
from keybearer.errors import DatabaseError
from keybearer.store import migrations
from keybearer.store.db import Actor, Database, migrate
from keybearer.store.schema import metadata

Urls = tuple[str, str]

_POSTGRESQL_CATALOGUE = """
SELECT 'column', table_name::text, column_name::text,
    concat_ws(' ', data_type, character_maximum_length, is_nullable, column_default, is_identity)
  FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL SELECT 'constraint', conrelid::regclass::text, conname::text, pg_get_constraintdef(oid)
  FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL SELECT 'index', tablename::text, indexname::text, indexdef FROM pg_indexes WHERE schemaname = 'public'
"""


async def catalogue(url: str) -> set[tuple[str, ...]]:
    """All tables, columns, constraints and indexes, as the database tells them."""
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        if engine.name == "postgresql":
            rows = [tuple(row) for row in await connection.execute(sa.text(_POSTGRESQL_CATALOGUE))]
        else:
            found = (await connection.execute(sa.text("SELECT type, tbl_name, name, sql FROM sqlite_master"))).all()
            # The order of columns and constraints is no difference, nor is white space.
            rows = [(*row[:3], part) for row in found if row[3] for part in _parts(row[3])]
    await engine.dispose()
    return {tuple(str(part) for part in row) for row in rows if row[1] != "alembic_version"}


def _parts(statement: str) -> list[str]:
    # A column that was added later stands on the line of the last before it.
    added = re.sub(r", (?=[a-z_]+ [A-Z]+)", ",\n", statement)
    lines = added.replace(" CONSTRAINT ", "\nCONSTRAINT ").splitlines()
    return [" ".join(line.split()).rstrip(",") for line in lines if line.strip()]


async def test_what_the_migrations_build_is_what_the_schema_says(
    fresh_urls: Urls, tmp_path: Path, postgresql_server: Server
) -> None:
    url, direct_url = fresh_urls
    await migrate(url, direct_url)
    other = f"sqlite+aiosqlite:///{tmp_path}/other.db"
    if direct_url:
        other = postgresql_server.create("kbtest_metadata")[1]
    engine = create_async_engine(other)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await engine.dispose()
    migrated, declared = await catalogue(direct_url or url), await catalogue(other)
    if direct_url:
        postgresql_server.drop("kbtest_metadata")
    assert len(declared) > 150
    assert migrated == declared


async def test_migrating_again_changes_nothing(fresh_urls: Urls) -> None:
    url, direct_url = fresh_urls
    await migrate(url, direct_url)
    before = await catalogue(direct_url or url)
    await migrate(url, direct_url)
    assert await catalogue(direct_url or url) == before
    db = await Database.open(url, direct_url)
    await db.ping()
    await db.close()


async def test_servers_that_start_together_migrate_once(fresh_urls: Urls) -> None:
    await asyncio.gather(*(migrate(*fresh_urls) for _ in range(4)))
    db = await Database.open(*fresh_urls)
    async with db.read(Actor.system()) as tx:
        assert (await tx.execute(sa.text("SELECT version_num FROM alembic_version"))).scalars().all() == [migrations.HEAD]
    await db.close()


async def test_a_database_that_was_never_migrated_is_not_opened(fresh_urls: Urls) -> None:
    with pytest.raises(DatabaseError, match=r"needs a migration|may not take the roles"):
        await Database.open(*fresh_urls)


async def test_a_newer_database_is_opened_and_left_alone(fresh_urls: Urls) -> None:
    """While a new version is rolled out, and when it is rolled back, the version before runs on the new schema."""
    url, direct_url = fresh_urls
    await migrate(url, direct_url)
    engine = create_async_engine(direct_url or url)
    async with engine.begin() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    await engine.dispose()
    await migrate(url, direct_url)
    db = await Database.open(url, direct_url)
    await db.ping()
    await db.close()


async def test_a_migration_that_fails_leaves_nothing_behind(fresh_urls: Urls) -> None:
    url, direct_url = fresh_urls
    engine = create_async_engine(direct_url or url)
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE audit_writer (kbtest integer)"))
    await engine.dispose()
    before = await catalogue(direct_url or url)
    with pytest.raises(DatabaseError, match="cannot be migrated"):
        await migrate(url, direct_url)
    assert await catalogue(direct_url or url) == before


def test_at_the_newest_schema_alembic_is_not_even_imported(database_urls: Urls) -> None:
    """It would be a third of the time that a second start takes."""
    program = (
        "import asyncio, sys; from keybearer.store.db import Database, migrate\n"
        "async def start(*urls):\n"
        "    await migrate(*urls)\n"
        "    await (await Database.open(*urls)).close()\n"
        "asyncio.run(start(*sys.argv[1:])); print('alembic' in sys.modules)"
    )
    source = str(Path(module.__file__).parents[2])
    arguments = [sys.executable, "-c", program, *database_urls]
    result = subprocess.run(arguments, env={"PYTHONPATH": source}, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_head_is_the_newest_revision_and_there_is_one_line_of_them() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [migrations.HEAD]
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert revisions == [f"{number:04}" for number in range(len(revisions), 0, -1)]


def test_migrations_do_not_lean_on_the_schema_of_the_day() -> None:
    versions = sorted((Path(migrations.__file__).parent / "versions").glob("v*.py"))
    assert versions
    for path in versions:
        assert "keybearer" not in path.read_text(), path.name


async def test_postgresql_is_migrated_by_its_owner_only(fresh_postgresql: Urls) -> None:
    with pytest.raises(DatabaseError, match="needs a migration") as caught:
        await migrate(fresh_postgresql[0])
    assert "KEYBEARER_DATABASE_DIRECT_URL" in caught.value.hint


async def test_the_owner_is_no_runtime_login(fresh_postgresql: Urls) -> None:
    owner = fresh_postgresql[1]
    with pytest.raises(DatabaseError, match="owner of the tables"):
        await migrate(owner, owner)


@pytest.mark.parametrize("missing", ["runtime", "owner"])
async def test_a_server_that_does_not_answer_is_told_without_its_password(
    fresh_postgresql: Urls, tmp_path: Path, missing: str
) -> None:
    nowhere = f"postgresql+psycopg://kbtest_runtime:kbtest-password@/kbtest?host={tmp_path}"
    urls = (nowhere, fresh_postgresql[1]) if missing == "runtime" else (fresh_postgresql[0], nowhere)
    with pytest.raises(DatabaseError, match=r"cannot be (reached|migrated)") as caught:
        await migrate(*urls)
    assert "kbtest-password" not in f"{caught.value.message} {caught.value.hint}"


async def test_a_migration_does_not_wait_for_locks_for_ever(fresh_postgresql: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a lock on a table makes all who come after wait too."""
    monkeypatch.setattr(module, "LOCK_TIMEOUT", "100ms")
    dsn = sa.make_url(fresh_postgresql[1]).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn) as other:
        other.execute("CREATE TABLE audit_writer (kbtest integer)")  # not committed
        with pytest.raises(DatabaseError, match="lock timeout"):
            await migrate(*fresh_postgresql)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://kbtest@localhost/x", "not supported"),
        ("sqlite+aiosqlite://", "needs a file"),
        ("sqlite+aiosqlite:///:memory:", "needs a file"),
        ("no url at all", "malformed"),
        ("sqlite+aiosqlite:////nowhere/at/all.db", "cannot open the database file"),
    ],
)
async def test_urls_that_name_no_database(url: str, message: str) -> None:
    for use in (migrate, Database.open):
        with pytest.raises(DatabaseError, match=message):
            await use(url)


async def test_objects_whose_owner_is_gone_go_and_the_others_stay(fresh_urls: Urls, postgresql_server: Server) -> None:
    url, direct_url = fresh_urls
    engine = create_async_engine(direct_url or url)
    async with engine.begin() as connection:
        await module.upgrade_within(connection, RUNTIME if direct_url else "", "0012")
    await engine.dispose()
    admin = url
    if direct_url:
        parsed = sa.make_url(postgresql_server.admin)
        admin = parsed.set(drivername="postgresql+psycopg", database=sa.make_url(url).database).render_as_string(
            hide_password=False
        )
    engine = create_async_engine(admin)
    ada, gone, at = uuid4(), uuid4(), datetime.now(UTC)
    tables = metadata.tables
    person = {"id": ada, "email": "ada@example.com", "name": "", "role": "member", "is_active": True, "mac": b"x"}
    made = {"origin": "https://api.example", "kind": "file", "provider": "openai", "user_id": ada, "token_id": "", "mac": b"x"}
    async with engine.begin() as connection:
        await connection.execute(sa.insert(tables["owner"]).values(id=ada, kind="user", created_at=at))
        values = person | {"fallback_allowed": True, "created_at": at, "updated_at": at}
        await connection.execute(sa.insert(tables["user_account"]).values(values))
        for owner_id, name in ((ada, "kept"), (gone, "dropped")):
            values = made | {"owner_id": owner_id, "object_id": name, "created_at": at}
            await connection.execute(sa.insert(tables["gateway_object"]).values(values))
    await migrate(url, direct_url)
    async with engine.connect() as connection:
        assert (await connection.execute(sa.select(tables["gateway_object"].c.object_id))).scalars().all() == ["kept"]
    await engine.dispose()
