"""Fixtures for all tests: a migrated, empty database of either kind.

A test that takes ``database`` or ``database_urls`` runs twice, on SQLite and on PostgreSQL; nothing is skipped for want of a
server. ``KEYBEARER_TEST_DATABASE_URL`` names another server than the one that comes with the test packages, with a superuser's
login.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.support.mocking import mock_provider as mock_provider  # noqa: PLC0414 - a fixture for all tests
from tests.support.postgresql import OWNER, RUNTIME, Server, shared_server
from tests.support.tamper import Tamper, tamper_with

from keybearer.store.db import Database, migrate
from keybearer.store.schema import metadata

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the server does."""
    return "asyncio"


def _migrate(*urls: str) -> None:
    # In a thread: tests that are no coroutines take databases too, and those that are have a loop of their own.
    with ThreadPoolExecutor(1) as threads:
        threads.submit(asyncio.run, migrate(*urls)).result()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file that was migrated once; tests get copies."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    _migrate(f"sqlite+aiosqlite:///{path}")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The PostgreSQL server of this test run, shared by its workers."""
    given = os.environ.get("KEYBEARER_TEST_DATABASE_URL", "")
    if given:
        return Server(given)
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return shared_server(base.parent, os.getppid())
    return shared_server(base, os.getpid())


@pytest.fixture(scope="session")
def postgresql_database(postgresql_server: Server) -> Iterator[str]:
    """The name of this worker's migrated database."""
    run, worker = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid())), os.environ.get("PYTEST_XDIST_WORKER", "main")
    name = f"kbtest_{run[:8]}_{worker}"
    _migrate(*postgresql_server.create(name))
    yield name
    postgresql_server.drop(name)


@pytest.fixture
def emptied_postgresql(postgresql_server: Server, postgresql_database: str) -> tuple[str, str]:
    """``(url, direct_url)`` of this worker's PostgreSQL database, empty."""
    postgresql_server.empty(postgresql_database, list(metadata.tables))
    return postgresql_server.url(postgresql_database, RUNTIME), postgresql_server.url(postgresql_database, OWNER)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_urls(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """``(url, direct_url)`` of a migrated, empty database, for tests that start a server."""
    if request.param == "postgresql":
        urls: tuple[str, str] = request.getfixturevalue("emptied_postgresql")
        return urls
    path = tmp_path / "keybearer.db"
    shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
    return f"sqlite+aiosqlite:///{path}", ""


@pytest.fixture
def tamper(request: pytest.FixtureRequest, database_urls: tuple[str, str]) -> Tamper:
    """Execute a statement as somebody who has the whole database in their hands: no roles, no policies."""
    url = sa.make_url(database_urls[0])
    if url.drivername.startswith("postgresql"):
        admin = sa.make_url(request.getfixturevalue("postgresql_server").admin)
        url = admin.set(drivername="postgresql+psycopg", database=url.database)
    return tamper_with(url)


@pytest.fixture
async def database(database_urls: tuple[str, str]) -> AsyncIterator[Database]:
    """A migrated, empty database, closed after the test."""
    db = await Database.open(*database_urls)
    yield db
    await db.close()


WAITING = ("test_types.py", "e2e", "limits", "registry", "browser", "api")
"""What waits most, for servers, browsers and bounds that are seconds, in the order in which it is begun."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest (``--no-loadscope-reorder`` keeps that): begun last, they keep one worker from ending."""

    def place(item: pytest.Item) -> int:
        room = item.path.relative_to(HERE).parts[0]
        return WAITING.index(room) if room in WAITING else len(WAITING) + (room == "pure")

    items.sort(key=place)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI nothing is skipped for want of a part: a skipped test fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        os.environ.get("CI")
        and reporter is not None
        and reporter.stats.get("skipped")
        and session.exitstatus == pytest.ExitCode.OK
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
