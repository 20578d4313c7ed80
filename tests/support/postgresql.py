"""A real PostgreSQL for the tests: one server for all workers of a test run, and databases on it."""

from __future__ import annotations

import contextlib
import fcntl
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

OWNER, RUNTIME = "kbtest_owner", "kbtest_runtime"
PASSWORD = "kbtest-password"


@dataclass(frozen=True)
class Server:
    """A server on which databases may be made; ``admin`` is the URL of a superuser."""

    admin: str

    def connect(self, database: str | None = None) -> psycopg.Connection[Any]:
        """Sign in as the administrator, each statement by itself."""
        url = sa.make_url(self.admin)
        return psycopg.connect(_dsn(url.set(database=database) if database else url), autocommit=True)

    def url(self, database: str, login: str) -> str:
        """The URL of a database for one of the test logins."""
        url = sa.make_url(self.admin).set(drivername="postgresql+psycopg", database=database, username=login, password=PASSWORD)
        return url.render_as_string(hide_password=False)

    def create(self, database: str) -> tuple[str, str]:
        """Make an empty database anew; return its ``(url, direct_url)``."""
        with self.connect() as connection:
            self._make_roles(connection)
            connection.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
            connection.execute(f'CREATE DATABASE "{database}" OWNER {OWNER}')
        return self.url(database, RUNTIME), self.url(database, OWNER)

    def drop(self, database: str) -> None:
        with self.connect() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def empty(self, database: str, tables: Sequence[str]) -> None:
        """Empty the tables; end all connections, which killed servers for example leave behind."""
        with self.connect(database) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            # Measured: 3 ms, where TRUNCATE takes 200. A replica checks no foreign keys, so any order will do.
            deletions = "; ".join(f'DELETE FROM public."{table}"' for table in tables)
            connection.execute(f"SET session_replication_role = replica; {deletions}; RESET session_replication_role")
            connection.execute(
                "SELECT setval(oid, 1, false) FROM pg_class WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace"
            )

    def _make_roles(self, connection: psycopg.Connection[Any]) -> None:
        for name, may in ((OWNER, "CREATEROLE"), (RUNTIME, "")):
            # Another worker may be making it at the same time.
            with contextlib.suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                connection.execute(f"CREATE ROLE {name} LOGIN {may} PASSWORD '{PASSWORD}'")


def shared_server(directory: Path, keeper: int) -> Server:
    """The server of this test run: started by whoever asks first, stopped when process ``keeper`` has ended.

    ``directory`` is common to all workers of the run. Raises ``RuntimeError`` with the server's log if it does not start.
    """
    with _locked(directory / "postgresql.lock"):
        note = directory / "postgresql.url"
        if not note.exists():
            log = (directory / "postgresql.log").open("wb")
            command = [sys.executable, str(Path(__file__).with_name("postgresql_server.py")), str(note), str(keeper)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            log.close()
            while not note.exists():
                if process.poll() is not None:
                    text = (directory / "postgresql.log").read_text(errors="replace")
                    raise RuntimeError(f"PostgreSQL did not start:\n{text}")
                time.sleep(0.02)
            # Not ours to wait for: it outlives this worker.
            process.returncode = 0
        return Server(note.read_text())


@contextlib.contextmanager
def new_database(server: Server) -> Iterator[tuple[str, str]]:
    """``(url, direct_url)`` of a database with nothing in it, dropped at the end."""
    name = f"kbtest_{secrets.token_hex(8)}"
    urls = server.create(name)
    try:
        yield urls
    finally:
        server.drop(name)


@contextlib.contextmanager
def database_settings(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Settings of a server that name an empty database of the kind that a fixture's parameter says."""
    if request.param == "sqlite":
        yield {}
        return
    with new_database(request.getfixturevalue("postgresql_server")) as (url, direct_url):
        yield {"database_url": url, "database_direct_url": direct_url}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _dsn(url: sa.URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
