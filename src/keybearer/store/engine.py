"""Engines for the two databases: how to connect, and what each connection is set to. Nothing here knows a table.

PostgreSQL runs with what PgBouncer in transaction mode allows: no server-side prepared statements, no session settings.
SQLite runs in WAL mode with ``secure_delete``, so that deleted ciphertext is overwritten and not left in free pages.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from operator import methodcaller
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from keybearer.errors import DatabaseError

Name = Literal["sqlite", "postgresql"]

BUSY_TIMEOUT_MS = 10_000
"""How long SQLite waits for another process's write transaction."""

POOL_TIMEOUT_S = 10.0

_TEXT = methodcaller("decode", "utf-8", "replace")
"""SQLite does not look whether text is UTF-8: where somebody wrote what is none, it is another text, and no query fails by it."""

_DRIVERS: dict[str, tuple[Name, str]] = {
    "sqlite": ("sqlite", "sqlite+aiosqlite"),
    "sqlite+aiosqlite": ("sqlite", "sqlite+aiosqlite"),
    "postgres": ("postgresql", "postgresql+psycopg"),
    "postgresql": ("postgresql", "postgresql+psycopg"),
    "postgresql+psycopg": ("postgresql", "postgresql+psycopg"),
}

# A peer that vanished is noticed within about 10 s, and not after the kernel's 2 hours. libpq ignores these on Unix sockets.
_POSTGRESQL_CONNECT = {
    "prepare_threshold": None,
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "application_name": "keybearer",
}


def parse(url: str) -> tuple[Name, sa.URL]:
    """Tell which database ``url`` names, and return it with the driver we use. Raises ``DatabaseError``, without the URL."""
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise DatabaseError("the database URL is malformed", hint="Write postgresql+psycopg://user:password@host/name.") from None
    known = _DRIVERS.get(parsed.drivername)
    if known is None:
        raise DatabaseError(
            f"databases of kind '{parsed.drivername}' are not supported",
            hint="Use postgresql+psycopg://… or leave KEYBEARER_DATABASE_URL empty for SQLite.",
        )
    name, driver = known
    if name == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise DatabaseError("SQLite needs a file: several connections share it", hint="Write sqlite+aiosqlite:////path/to/file.")
    return name, parsed.set(drivername=driver)


def postgresql(url: sa.URL, *, pool_size: int) -> AsyncEngine:
    """Return a pool of at most ``pool_size`` connections to PostgreSQL."""
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        # Errors are logged; parameters may hold hashes, addresses and envelopes.
        hide_parameters=True,
        # Spares each new connection a look-up of a type that is not used.
        use_native_hstore=False,
        connect_args=dict(_POSTGRESQL_CONNECT),
    )


def sqlite(url: sa.URL, *, pool_size: int, begin: Literal["BEGIN", "BEGIN IMMEDIATE"], read_only: bool = False) -> AsyncEngine:
    """Return a pool of connections to an SQLite file whose transactions start with ``begin``.

    A writer takes the lock at its start (``BEGIN IMMEDIATE``): a lock taken half-way fails at once where another writer was
    faster, whatever the busy time-out.
    """
    # At level debug the driver logs every parameter: addresses, password hashes, what people typed into the wrong field.
    logging.getLogger("aiosqlite").setLevel(logging.WARNING)
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S + BUSY_TIMEOUT_MS / 1000,
        hide_parameters=True,
        json_deserializer=_json,
    )

    @sa.event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # The driver's own transactions begin late and commit around DDL; ours begin below.
        connection.isolation_level = None
        connection.driver_connection.text_factory = _TEXT
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout = {BUSY_TIMEOUT_MS}",
            "journal_mode = WAL",
            # A commit survives power loss: revocations and management records are few, and must not come undone.
            "synchronous = FULL",
            "secure_delete = ON",
            "foreign_keys = ON",
            "temp_store = MEMORY",
            # In KiB, taken as needed. A batch of the shipper touches a few thousand pages; what does not fit is written twice.
            *([] if read_only else ["cache_size = -32768"]),
            f"query_only = {'ON' if read_only else 'OFF'}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine.sync_engine, "begin")
    def start(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _json(text: str) -> Any:
    """What a JSON column holds; where that is no JSON, an empty text, which none of ours holds (see ``columns``)."""
    try:
        return json.loads(text)
    except ValueError:
        return ""


def secure_file(url: sa.URL) -> None:
    """Make SQLite's file, or narrow it, to mode 0600 before anything is in it; WAL and shared memory files take its mode."""
    path = Path(str(url.database))
    try:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        for part in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            with suppress(FileNotFoundError):
                part.chmod(0o600)
    except OSError as error:
        raise DatabaseError(
            f"cannot open the database file {path}: {error.strerror}", hint="Check the directory and its permissions."
        ) from None
