"""The first start and the later ones: a root key file is made once, and never for a database that has one already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from tests.support.postgresql import Server

from keybearer.crypto.keyring import Keyring, held_by
from keybearer.crypto.kms import file
from keybearer.errors import DatabaseError, RootKeyError
from keybearer.store.db import Database, migrate


async def start(url: str, direct_url: str, path: Path) -> Keyring:
    """What the server does with key and database, in this order."""
    wrapper = file.obtain(path, may_create=await held_by(url) is None)
    await migrate(url, direct_url)
    db = await Database.open(url, direct_url)
    try:
        return await Keyring.open(db, wrapper)
    finally:
        await db.close()


def listed(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


class TestOnEitherDatabase:
    async def test_first_and_second_start(self, database_urls: tuple[str, str], tmp_path: Path) -> None:
        path = tmp_path / "root.key"
        assert await held_by(database_urls[0]) is None
        first = await start(*database_urls, path)
        made = path.read_bytes()
        assert await held_by(database_urls[0]) is not None
        assert (await start(*database_urls, path)).deployment == first.deployment
        assert path.read_bytes() == made

    async def test_a_lost_key_file_is_not_replaced(self, database_urls: tuple[str, str], tmp_path: Path) -> None:
        path = tmp_path / "root.key"
        await start(*database_urls, path)
        kept = path.rename(tmp_path / "backup.key")
        with pytest.raises(file.KeyFileMissing, match="is missing") as caught:
            await start(*database_urls, path)
        assert "put the file back from your backup" in caught.value.hint
        assert not path.exists()
        kept.rename(path)
        assert await start(*database_urls, path)

    async def test_a_wrong_key_file_is_refused_and_kept(self, database_urls: tuple[str, str], tmp_path: Path) -> None:
        await start(*database_urls, tmp_path / "root.key")
        other = tmp_path / "other.key"
        file.create(other)
        before = other.read_bytes()
        with pytest.raises(RootKeyError, match="Wrong root key") as caught:
            await start(*database_urls, other)
        assert str(other) in caught.value.message
        assert "backup" in caught.value.hint
        assert other.read_bytes() == before

    async def test_killed_after_making_the_key_and_before_the_database(
        self, database_urls: tuple[str, str], tmp_path: Path
    ) -> None:
        path = tmp_path / "root.key"
        made = file.obtain(path, may_create=True)
        await start(*database_urls, path)
        assert file.open(path).key_id == made.key_id


class TestOnSqlite:
    async def test_asking_makes_no_file(self, tmp_path: Path) -> None:
        assert await held_by(f"sqlite+aiosqlite:///{tmp_path}/keybearer.db") is None
        assert listed(tmp_path) == []

    async def test_from_nothing(self, tmp_path: Path) -> None:
        url = f"sqlite+aiosqlite:///{tmp_path}/keybearer.db"
        first = await start(url, "", tmp_path / "root.key")
        assert (await start(url, "", tmp_path / "root.key")).deployment == first.deployment

    async def test_an_empty_file_holds_no_key(self, tmp_path: Path) -> None:
        (tmp_path / "keybearer.db").touch()
        assert await held_by(f"sqlite+aiosqlite:///{tmp_path}/keybearer.db") is None

    async def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "keybearer.db").write_bytes(b"kbtest: no database at all\n" * 100)
        with pytest.raises(DatabaseError, match="cannot be read"):
            await held_by(f"sqlite+aiosqlite:///{tmp_path}/keybearer.db")

    async def test_a_malformed_url(self) -> None:
        with pytest.raises(DatabaseError):
            await held_by("not a url")


class TestOnPostgresql:
    @pytest.fixture
    def empty(self, postgresql_server: Server) -> Iterator[tuple[str, str, str]]:
        """Name and URLs of a database that was never migrated."""
        name = f"kbtest_first_{uuid4().hex[:12]}"
        yield name, *postgresql_server.create(name)
        postgresql_server.drop(name)

    async def test_from_nothing(self, empty: tuple[str, str, str], tmp_path: Path) -> None:
        _, url, direct_url = empty
        assert await held_by(url) is None
        first = await start(url, direct_url, tmp_path / "root.key")
        assert await held_by(url) is not None
        assert (await start(url, direct_url, tmp_path / "root.key")).deployment == first.deployment

    async def test_migrated_and_not_founded(self, empty: tuple[str, str, str], tmp_path: Path) -> None:
        _, url, direct_url = empty
        await migrate(url, direct_url)
        assert await held_by(url) is None

    async def test_tables_that_cannot_be_read_may_hold_a_key(
        self, empty: tuple[str, str, str], postgresql_server: Server, tmp_path: Path
    ) -> None:
        """A new runtime login, not yet admitted, on the database of a running deployment: no second key is made."""
        name, url, direct_url = empty
        await start(url, direct_url, tmp_path / "root.key")
        stranger = f"kbtest_stranger_{uuid4().hex[:12]}"
        with postgresql_server.connect(name) as connection:
            connection.execute(f"CREATE ROLE {stranger} LOGIN PASSWORD 'kbtest-password'")
            try:
                assert await held_by(postgresql_server.url(name, stranger)) is not None
            finally:
                connection.execute(f"DROP ROLE {stranger}")
