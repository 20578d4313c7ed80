"""Bring a database to the newest schema; at the newest already, find so in a few milliseconds.

One transaction holds a lock for all of it, so of several servers that start at once one migrates and the others wait. On
PostgreSQL it runs as the owner role (``direct_url``), makes the roles and lets the runtime login of ``url`` take them.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keybearer.errors import DatabaseError
from keybearer.store import engine as engines
from keybearer.store import guard
from keybearer.store.migrations import HEAD

MIGRATION_LOCK = 0x6B62_6D69_6772_6174
"""Advisory lock ("kbmigrat")."""

LOCK_TIMEOUT = "5s"
"""A migration that waits for a lock makes all who come after it wait too, so it gives up soon."""

STATEMENT_TIMEOUT = "5min"

_NO_DIRECT_URL = "Set KEYBEARER_DATABASE_DIRECT_URL to the role that owns the database."


async def migrate(url: str, direct_url: str = "") -> None:
    """Upgrade to ``HEAD``. Raises ``DatabaseError``; leaves the database as it was where anything fails."""
    name, parsed = engines.parse(url)
    if name == "sqlite":
        engines.secure_file(parsed)
        engine = engines.sqlite(parsed, pool_size=1, begin="BEGIN IMMEDIATE")
        try:
            await _upgrade(engine)
        except DBAPIError as error:
            raise DatabaseError(f"the database cannot be migrated: {error.orig}") from error
        finally:
            await engine.dispose()
    else:
        await _migrate_postgresql(parsed, direct_url)


async def _migrate_postgresql(url: sa.URL, direct_url: str) -> None:
    runtime = engines.postgresql(url, pool_size=1)
    try:
        async with runtime.connect() as connection:
            login = await guard.login(connection)
            if await guard.is_ready(connection):
                return
    except DBAPIError as error:
        raise DatabaseError(f"the database cannot be reached: {error.orig}", hint="Check KEYBEARER_DATABASE_URL.") from error
    finally:
        await runtime.dispose()
    if not direct_url:
        raise DatabaseError("the database needs a migration", hint=_NO_DIRECT_URL)
    _, parsed = engines.parse(direct_url)
    owner = engines.postgresql(parsed, pool_size=1)
    try:
        await _upgrade(owner, login)
    except DBAPIError as error:
        raise DatabaseError(
            f"the database cannot be migrated: {error.orig}", hint="Nothing was changed. " + _NO_DIRECT_URL
        ) from error
    finally:
        await owner.dispose()


async def _upgrade(engine: AsyncEngine, login: str = "") -> None:
    """Upgrade, and on PostgreSQL let ``login`` take the runtime roles, in one transaction under the migration lock."""
    async with engine.begin() as connection:
        await upgrade_within(connection, login)


async def upgrade_within(connection: AsyncConnection, login: str = "", revision: str = HEAD) -> None:
    """Upgrade to ``revision``, within a transaction of PostgreSQL's owner role, or of SQLite's writer."""
    if connection.dialect.name == "postgresql":
        await guard.check_server(connection)
        # Waiting for another server's migration may take as long as that migration may.
        await connection.execute(sa.text(f"SET LOCAL lock_timeout = '{STATEMENT_TIMEOUT}'"))
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        await connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        await connection.execute(sa.text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"))
    found = await guard.revision(connection)
    if found is None or found < revision:
        await _run_alembic(connection, revision)
    if connection.dialect.name == "postgresql":
        await guard.admit(connection, login)


async def _run_alembic(connection: AsyncConnection, revision: str) -> None:
    # Imported here alone: it takes longer than all else of a start that has nothing to migrate.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")

    def upgrade(sync: sa.Connection) -> None:
        config.attributes["connection"] = sync
        command.upgrade(config, revision)

    await connection.run_sync(upgrade)
