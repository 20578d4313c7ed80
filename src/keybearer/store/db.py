"""Transactions: the one way to the database. The differences between SQLite and PostgreSQL end here and in ``engine``.

Every transaction is somebody's: an :class:`Actor`. On PostgreSQL it sets the role and the caller for that transaction alone, and
row-level security does the rest; on SQLite the queries' own conditions are the only wall, and both have them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, Self
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keybearer.errors import Conflict, DatabaseError, Invalid, NotFound, Overloaded, Unavailable
from keybearer.store import engine as engines
from keybearer.store import guard
from keybearer.store.migrate import migrate

__all__ = ["Actor", "Database", "migrate"]

ORDER_LOCK = 0x6B62_6F72_6465_7231
"""Advisory lock under which changes and management records get their numbers ("kborder1")."""

_SQLITE_READERS = 4
_RELEASE_LIMIT_S = 5.0
"""How long closing waits for transactions that are being rolled back: a server that hangs does not hold up the end."""

# One round trip for all of it. `true`: for this transaction only, as a pooler hands the connection to others afterwards.
_BEGIN = sa.text(
    "SELECT set_config('role', :role, true), set_config('keybearer.user_id', :user_id, true),"
    " set_config('keybearer.admin', :admin, true), set_config('keybearer.system_keys', :system_keys, true),"
    " set_config('statement_timeout', '30s', true), set_config('lock_timeout', '10s', true),"
    " set_config('idle_in_transaction_session_timeout', '60s', true)"
)

_BECOME = sa.text("SELECT set_config('role', :role, true)")

# SQLSTATE classes in which trying again later may help: connection, resources, operator intervention, locks and deadlocks,
# object in use, system error (PostgreSQL, appendix A).
_PASSING = ("08", "40", "53", "55", "57", "58")
_SQLITE_PASSING = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_PROTOCOL")


@dataclass(frozen=True, slots=True)
class Actor:
    """Whose eyes a transaction has."""

    role: Literal["keybearer_app", "keybearer_system"]
    user_id: UUID | None = None
    admin: bool = False
    system_keys: bool = False

    @classmethod
    def user(cls, user_id: UUID, *, admin: bool = False, system_keys: bool = False) -> Self:
        """Be a person or their token. ``system_keys``: may read the system's secrets and owner keys, to resolve with them."""
        return cls("keybearer_app", user_id, admin, system_keys)

    @classmethod
    def system(cls) -> Self:
        """Be a job or the operator: narrow grants, all owners."""
        return cls("keybearer_system")

    @classmethod
    def lookup(cls) -> Self:
        """Be nobody yet: the caller is unknown. Sees nothing but what ``queries.lookups`` finds by an unguessable value."""
        return cls("keybearer_app")

    def settings(self) -> dict[str, str]:
        """Return the parameters of the transaction's first statement on PostgreSQL."""
        return {
            "role": self.role,
            "user_id": str(self.user_id) if self.user_id else "",
            "admin": "on" if self.admin else "off",
            "system_keys": "on" if self.system_keys else "off",
        }


class Database:
    """An open database. ``name`` tells which kind, for the few queries that differ."""

    def __init__(
        self, name: engines.Name, readers: AsyncEngine, writers: AsyncEngine, side: AsyncEngine, direct_url: str
    ) -> None:
        """Use :meth:`open`."""
        self.name = name
        self.direct_url = direct_url
        self._readers = readers
        self._writers = writers
        self._side = side
        self._told: list[Callable[[], None]] = []
        self._noting: set[AsyncConnection] = set()
        self._releasing: set[asyncio.Task[None]] = set()
        self._abandoned = 0

    @classmethod
    async def open(cls, url: str, direct_url: str = "", *, pool_size: int = 10) -> Self:
        """Connect and prove that the database is fit for use.

        Raises ``DatabaseError`` where the schema is missing or too old, or, on PostgreSQL, where the login of ``url`` could step
        around row-level security (superuser, BYPASSRLS, owner of a table); ``Unavailable`` where nobody answers.
        """
        name, parsed = engines.parse(url)
        if name == "sqlite":
            engines.secure_file(parsed)
            db = cls(
                name,
                readers=engines.sqlite(parsed, pool_size=_SQLITE_READERS, begin="BEGIN", read_only=True),
                # One connection: this process's writers queue here, in order, and do not wait for each other by polling.
                writers=engines.sqlite(parsed, pool_size=1, begin="BEGIN IMMEDIATE"),
                side=engines.sqlite(parsed, pool_size=1, begin="BEGIN", read_only=True),
                direct_url="",
            )
        else:
            pool = engines.postgresql(parsed, pool_size=pool_size)
            side = engines.postgresql(parsed, pool_size=1)
            # As on SQLite, a reader sees one state throughout and cannot write.
            snapshot = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            db = cls(
                name,
                readers=pool.execution_options(**snapshot),
                writers=pool,
                side=side.execution_options(**snapshot),
                direct_url=direct_url,
            )
        async with AsyncExitStack() as stack:
            stack.push_async_callback(db.close)
            with translated():
                async with db._side.connect() as connection:
                    await guard.check(connection)
            stack.pop_all()
        return db

    def read(self, actor: Actor) -> AbstractAsyncContextManager[AsyncConnection]:
        """Begin a transaction that sees one state throughout and cannot write. Raises ``Unavailable``."""
        return self._transaction(self._readers, actor, writes=False)

    def write(self, actor: Actor) -> AbstractAsyncContextManager[AsyncConnection]:
        """Begin a transaction that commits at exit and rolls back on any exception.

        Raises ``Conflict`` where a unique value exists, ``NotFound`` where a row that is referred to does not, ``Unavailable``
        where the database does not answer (a commit may then have happened or not). Never begin one inside another: on SQLite the
        inner one waits for the outer one until it times out.
        """
        return self._transaction(self._writers, actor, writes=True)

    def watch(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Begin a read transaction of the system's on a connection of its own: a busy pool must not look like a lost database."""
        return self._transaction(self._side, Actor.system(), writes=False)

    async def abandon_watch(self) -> None:
        """Forget the connection of :meth:`watch` as it is, hanging perhaps; the next one is new."""
        self._abandoned += 1
        await self._side.dispose(close=False)

    def on_noted(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` after each commit of this process that noted a change (``changes``): it need not wait for its next poll."""
        self._told.append(tell)

    def notes(self, tx: AsyncConnection) -> None:
        """This transaction notes a change."""
        self._noting.add(tx)

    async def lock_order(self, tx: AsyncConnection) -> None:
        """Let transactions that number things commit in the order of their numbers: one at a time, until commit.

        Take it as late as possible, before the first numbered row. SQLite has one writer at a time anyway.
        """
        if self.name == "postgresql":
            await tx.execute(sa.select(sa.func.pg_advisory_xact_lock(ORDER_LOCK)))

    @asynccontextmanager
    async def as_system(self, tx: AsyncConnection) -> AsyncIterator[None]:
        """Look with the system's eyes for a moment, within a caller's transaction: at whom a change concerns, for example.

        What is found so must not be shown to the caller. Where the block raises, the transaction is to end.
        """
        if self.name != "postgresql":
            yield
            return
        role = (await tx.execute(sa.select(sa.func.current_setting("role")))).scalar_one()
        await tx.execute(_BECOME, {"role": "keybearer_system"})
        yield
        await tx.execute(_BECOME, {"role": role})

    async def ping(self) -> None:
        """Ask the database for an answer. Raises ``Unavailable``."""
        async with self.read(Actor.lookup()) as tx:
            await tx.execute(sa.text("SELECT 1"))

    async def truncate_log(self) -> None:
        """Empty SQLite's write-ahead log, which after a purge still holds pages as they were. PostgreSQL: nothing to do here.

        Raises ``Unavailable`` where a reader needs the old pages for longer than the busy time-out.
        """
        if self.name == "sqlite":
            with translated():
                async with self._writers.connect() as connection:
                    raw = await connection.get_raw_connection()
                    cursor = await raw.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]
                    (busy, _, _) = await cursor.fetchone()
                    await cursor.close()
            if busy:
                raise Unavailable("The write-ahead log is in use, and still holds what was deleted.")

    async def erase(self, *tables: str) -> None:
        """Have the live files of ``tables`` forget deleted rows, as far as a running database can.

        SQLite overwrites what is deleted, so emptying the log is all. PostgreSQL vacuums, as the tables' owner: without the direct
        URL its own autovacuum does that later. Raises ``Unavailable``.
        """
        await self.truncate_log()
        if self.name != "postgresql" or not self.direct_url:
            return
        _, parsed = engines.parse(self.direct_url)
        owner = engines.postgresql(parsed, pool_size=1)
        try:
            with translated():
                # Outside any transaction, as VACUUM must be.
                async with owner.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                    names = ", ".join(
                        f"public.{connection.dialect.identifier_preparer.quote_identifier(name)}" for name in tables
                    )
                    await connection.execute(sa.text(f"VACUUM (SKIP_LOCKED) {names}"))
        finally:
            await owner.dispose()

    async def close(self) -> None:
        """Close all connections."""
        if self._releasing:
            await asyncio.wait(self._releasing, timeout=_RELEASE_LIMIT_S)
        for engine in {id(each): each for each in (self._readers, self._writers, self._side)}.values():
            await engine.dispose()

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine, actor: Actor, *, writes: bool) -> AsyncIterator[AsyncConnection]:
        with translated():
            abandoned = self._abandoned
            connection = await self._begin(engine, actor)
            try:
                yield connection
                if writes:
                    await connection.commit()
                    if connection in self._noting:
                        for tell in self._told:
                            tell()
            finally:
                self._noting.discard(connection)
                if engine is self._side and abandoned != self._abandoned:
                    await connection.invalidate()  # its pool is gone
                await self._release(connection)

    async def _connect(self, engine: AsyncEngine) -> AsyncConnection:
        """Take a connection from the pool. Whoever is cancelled meanwhile leaves none behind: it goes back once it is there."""

        async def connect() -> AsyncConnection:
            return await engine.connect()

        connecting = asyncio.create_task(connect())
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            self._finish(self._give_back(connecting))
            raise

    async def _give_back(self, connecting: asyncio.Task[AsyncConnection]) -> None:
        with suppress(Exception):  # nobody waits for it any more
            await (await connecting).close()

    async def _release(self, connection: AsyncConnection) -> None:
        """Roll back what was not committed, and give the connection back.

        Whoever waits for that may be cancelled, again and again where a client leaves: it goes on, and ``close`` waits for it.
        """
        await asyncio.shield(self._finish(connection.close()))

    def _finish(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do what ``close`` is to wait for."""
        releasing = asyncio.create_task(work)
        self._releasing.add(releasing)
        releasing.add_done_callback(self._releasing.discard)
        return releasing

    async def _begin(self, engine: AsyncEngine, actor: Actor) -> AsyncConnection:
        """Return a connection with a transaction begun.

        A pooled connection may have died unnoticed (the database restarted). Nothing of the caller's was sent yet, so a second
        attempt is safe; SQLAlchemy empties the pool at the first.
        """
        for attempt in (1, 2):
            try:
                async with AsyncExitStack() as stack:
                    connection = await self._connect(engine)
                    stack.push_async_callback(self._release, connection)
                    if self.name == "postgresql":
                        await connection.execute(_BEGIN, actor.settings())
                    else:
                        await connection.begin()
                    stack.pop_all()
                    return connection
            except DBAPIError as error:
                if not error.connection_invalidated or attempt == 2:  # noqa: PLR2004  # the last
                    raise
        raise AssertionError  # pragma: no cover  # the loop returns or raises


@contextmanager
def translated() -> Iterator[None]:
    """Turn database exceptions into ours: the one seam. What is left untranslated is a defect of the program.

    Causes are cut off where they would repeat a row's values, as PostgreSQL's DETAIL does.
    """
    try:
        yield
    except PoolTimeout:
        raise Overloaded("The database connections are all in use.") from None
    except IntegrityError as error:
        kind = _violation(error)
        if kind == "unique":
            raise Conflict from None
        if kind == "foreign":
            raise NotFound from None
        raise DatabaseError(f"a row breaks a rule of the schema: {_rule(error)}") from None
    except DataError:
        raise Invalid("A value is too long, or has characters that text may not have.") from None
    except DBAPIError as error:
        if _is_passing(error):
            raise Unavailable("The database does not answer.") from error
        raise


def _violation(error: IntegrityError) -> str:
    state = getattr(error.orig, "sqlstate", None)
    name = getattr(error.orig, "sqlite_errorname", "")
    if state == "23505" or name in {"SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"}:
        return "unique"
    if state == "23503" or name == "SQLITE_CONSTRAINT_FOREIGNKEY":
        return "foreign"
    return "other"


def _rule(error: IntegrityError) -> str:
    """Name the constraint, without the row that breaks it."""
    diagnosis = getattr(error.orig, "diag", None)
    if diagnosis is None:
        return str(error.orig)  # SQLite names it and nothing else
    return str(diagnosis.constraint_name or diagnosis.message_primary)


def _is_passing(error: DBAPIError) -> bool:
    """Whether trying again later may help."""
    name = getattr(error.orig, "sqlite_errorname", None)
    if name is not None:
        return str(name).startswith(_SQLITE_PASSING)
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_PASSING)
    # psycopg's own: no connection, or it broke before the server could say why.
    return error.connection_invalidated or isinstance(error, sa.exc.OperationalError)
