"""A whole database at once: read for a backup, filled for a restore.

On PostgreSQL both are the owner's work, as no runtime role may read all ciphertext, nor write all tables. For a backup the owner gets a
policy to read by, once: it gives the owner nothing that ALTER TABLE does not, and servers go on meanwhile. A restore is one transaction
that holds every table for itself alone: in it the database is made, filled, brought up to date and looked at, the owner not held to the
policies, which are forced again before the commit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keybearer.errors import DatabaseError
from keybearer.store import engine as engines
from keybearer.store import guard
from keybearer.store.db import Actor, Database, translated
from keybearer.store.migrate import upgrade_within
from keybearer.store.migrations import HEAD
from keybearer.store.schema import metadata

_WALLED = sa.text(
    "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relrowsecurity"
)
READS = "owner_reads"
"""The policy by which PostgreSQL's owner reads for a backup."""
_UNREADABLE = sa.text(
    "SELECT relname FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relrowsecurity"
    " AND NOT EXISTS (SELECT 1 FROM pg_policy WHERE polrelid = c.oid AND polname = :policy)"
)
_DIRECT = "Set KEYBEARER_DATABASE_DIRECT_URL to the role that owns the database."
_NOT_EMPTY = "The database is not empty: a restore never overwrites one."
_HINT = "Restore into a new data directory or a new database, and point the settings at it."


class Within(Database):
    """A database as it is inside a transaction that has not ended: whoever reads or writes does it there, and sees everything."""

    def __init__(self, tx: AsyncConnection) -> None:
        self.name = "postgresql" if tx.dialect.name == "postgresql" else "sqlite"
        self.direct_url = ""
        self.tx = tx

    def read(self, actor: Actor) -> AbstractAsyncContextManager[AsyncConnection]:
        """Give the transaction itself."""
        del actor
        return nullcontext(self.tx)

    def write(self, actor: Actor) -> AbstractAsyncContextManager[AsyncConnection]:
        """Give the transaction itself."""
        del actor
        return nullcontext(self.tx)


@asynccontextmanager
async def snapshot(db: Database) -> AsyncIterator[AsyncConnection]:
    """Begin a transaction that sees all rows of all tables as they are at this moment, however long it takes.

    Raises ``DatabaseError`` where PostgreSQL's owner is not known, ``Unavailable``.
    """
    if db.name == "sqlite":
        async with db.read(Actor.system()) as tx:
            yield tx
        return
    if not db.direct_url:
        raise DatabaseError("A backup is the owner's work.", hint=_DIRECT)
    engine = engines.postgresql(engines.parse(db.direct_url)[1], pool_size=1)
    try:
        with translated():
            async with engine.begin() as tx:
                # A table waits for whoever uses it, and all who come after wait with it: not for long.
                await tx.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
                for name in (await tx.execute(_UNREADABLE, {"policy": READS})).scalars().all():
                    quoted = tx.dialect.identifier_preparer.quote_identifier(name)
                    await tx.execute(sa.text(f"CREATE POLICY {READS} ON public.{quoted} FOR SELECT TO CURRENT_USER USING (true)"))
            options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            async with engine.execution_options(**options).begin() as tx:
                for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
                    await tx.execute(sa.text(f"SET LOCAL {setting} = 0"))
                names = ", ".join(f"public.{name}" for name in metadata.tables)
                await tx.execute(sa.text(f"LOCK TABLE {names} IN ACCESS SHARE MODE"))  # no migration comes between
                yield tx
    finally:
        await engine.dispose()


@asynccontextmanager
async def filling(url: str, direct_url: str, revision: str) -> AsyncIterator[Within]:
    """Open an empty database at ``revision``; commit at exit, or leave it as it was where anything raises.

    Raises ``DatabaseError`` where the database is not empty, is of a later revision, or cannot be made; ``Unavailable``.
    """
    name, parsed = engines.parse(url)
    made: Path | None = None
    if name == "sqlite":
        made = _missing(parsed)
        engines.secure_file(parsed)
        engine, login = engines.sqlite(parsed, pool_size=1, begin="BEGIN IMMEDIATE"), ""
    else:
        if not direct_url:
            raise DatabaseError("A restore is the owner's work.", hint=_DIRECT)
        login = await _login(parsed)
        engine = engines.postgresql(engines.parse(direct_url)[1], pool_size=1)
    try:
        with translated():
            async with engine.begin() as tx:
                await _begin(tx, login, revision)
                yield Within(tx)
                await _end(tx)
        made = None
    finally:
        await engine.dispose()
        if made is not None:
            _remove(made)


async def bring_up(within: Within, login_url: str) -> None:
    """Migrate what was filled in to this version's schema."""
    tx = within.tx
    if within.name == "postgresql":
        # A table with checks that wait for the commit cannot be altered.
        await tx.execute(sa.text("SET CONSTRAINTS ALL IMMEDIATE"))
    if await guard.revision(tx) != HEAD:
        await upgrade_within(tx, await _login(engines.parse(login_url)[1]) if within.name == "postgresql" else "")
    await _open_walls(tx)


def _missing(url: sa.URL) -> Path | None:
    """SQLite's file, if it is not there yet."""
    path = Path(str(url.database))
    return None if path.exists() else path


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        with suppress(OSError):
            path.with_name(path.name + suffix).unlink()


async def _begin(tx: AsyncConnection, login: str, revision: str) -> None:
    found = await guard.revision(tx)
    await upgrade_within(tx, login, revision)
    await _open_walls(tx)
    reflected = await tx.run_sync(lambda sync: set(sa.inspect(sync).get_table_names()))
    for table in metadata.sorted_tables:
        if table.name in reflected and (await tx.execute(sa.select(sa.literal(1)).select_from(table).limit(1))).first():
            raise DatabaseError(_NOT_EMPTY, hint=_HINT)
    if found is not None and found > revision:
        raise DatabaseError(
            "The database has tables of a later version than the backup.", hint="Restore into a database without any tables."
        )


async def _end(tx: AsyncConnection) -> None:
    if tx.dialect.name != "postgresql":
        return
    await tx.execute(sa.text("SET CONSTRAINTS ALL IMMEDIATE"))
    for table in metadata.sorted_tables:
        column = table.autoincrement_column
        if column is None or column.autoincrement is False or column.foreign_keys:
            continue
        sequence = (await tx.execute(sa.select(sa.func.pg_get_serial_sequence(f"public.{table.name}", column.name)))).scalar()
        if sequence is not None:
            last = sa.select(sa.func.coalesce(sa.func.max(column), 0) + 1).scalar_subquery()
            await tx.execute(sa.select(sa.func.setval(sa.cast(sequence, sa.Text), last, False)))
    for name in (await tx.execute(_WALLED)).scalars().all():
        await _alter(tx, name, "FORCE ROW LEVEL SECURITY")


async def _open_walls(tx: AsyncConnection) -> None:
    """Let the owner see and write all rows. Takes each table for this transaction alone: nobody sees it half open."""
    if tx.dialect.name != "postgresql":
        return
    await tx.execute(sa.text("SET LOCAL statement_timeout = 0"))
    await tx.execute(sa.text("SET LOCAL lock_timeout = '10s'"))
    for name in (await tx.execute(_WALLED)).scalars().all():
        await _alter(tx, name, "NO FORCE ROW LEVEL SECURITY")


async def _alter(tx: AsyncConnection, table: str, change: str) -> None:
    quoted = tx.dialect.identifier_preparer.quote_identifier(table)
    await tx.execute(sa.text(f"ALTER TABLE public.{quoted} {change}"))


async def _login(url: sa.URL) -> str:
    """The runtime login's name, which the owner lets take its roles."""
    runtime: AsyncEngine = engines.postgresql(url, pool_size=1)
    try:
        async with runtime.connect() as connection:
            return await guard.login(connection)
    except DBAPIError as error:
        raise DatabaseError(f"the database cannot be reached: {error.orig}", hint="Check KEYBEARER_DATABASE_URL.") from error
    finally:
        await runtime.dispose()
