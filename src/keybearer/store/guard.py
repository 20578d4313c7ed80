"""What a database must be before it is used.

Of the right revision, and on PostgreSQL a wall that the runtime login cannot step around. Checked at every start, because grants
change behind a program's back.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.errors import DatabaseError
from keybearer.store.migrations import HEAD

OLDEST_POSTGRESQL = 16
"""Role memberships with their own INHERIT and SET options came with 16."""

RUNTIME_ROLES = ("keybearer_app", "keybearer_system")
"""What the runtime login may become, one transaction at a time."""

_HINT = "Give KEYBEARER_DATABASE_URL a login of its own that owns nothing; docs/postgresql.md has the statements."

# Each row: what is wrong. The login itself and every role it can become count: a member of a superuser is one.
_FAULTS = """
SELECT 'the runtime login is, or can become, a superuser' FROM pg_roles
  WHERE rolsuper AND pg_has_role(session_user, oid, 'MEMBER')
UNION ALL
SELECT 'the runtime login is, or can become, a role that bypasses row-level security' FROM pg_roles
  WHERE rolbypassrls AND pg_has_role(session_user, oid, 'MEMBER')
UNION ALL
SELECT 'the runtime login can become ' || rolname || ', which reads or writes everything' FROM pg_roles
  WHERE rolname IN ('pg_read_all_data', 'pg_write_all_data', 'pg_execute_server_program')
    AND NOT rolsuper AND pg_has_role(session_user, oid, 'MEMBER')
UNION ALL
SELECT 'the runtime login is, or can become, the owner of table ' || relname FROM pg_class
  WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND pg_has_role(session_user, relowner, 'MEMBER')
UNION ALL
SELECT 'the runtime login can become keybearer_lookup' FROM pg_roles
  WHERE rolname = 'keybearer_lookup' AND pg_has_role(session_user, oid, 'MEMBER')
UNION ALL
SELECT 'row-level security is not forced on table ' || relname FROM pg_class
  WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relname <> 'alembic_version'
    AND NOT (relrowsecurity AND relforcerowsecurity)
"""


async def check(connection: AsyncConnection) -> None:
    """Raise ``DatabaseError`` where the database is not fit for use by this version of the code."""
    if connection.dialect.name == "postgresql":
        await check_server(connection)
        fault = (await connection.execute(sa.text(_FAULTS))).scalar()
        if fault is not None:
            raise DatabaseError(str(fault), hint=_HINT)
        if not await _is_admitted(connection):
            raise DatabaseError("the runtime login may not take the roles it needs", hint=_HINT)
        await _become_app(connection)
    found = await revision(connection)
    if found is None or found < HEAD:
        raise DatabaseError("the database needs a migration", hint="'keybearer serve' migrates it at its start.")


async def check_server(connection: AsyncConnection) -> None:
    """Raise ``DatabaseError`` where PostgreSQL is older than we can work with."""
    number = int((await connection.execute(sa.text("SELECT current_setting('server_version_num')"))).scalar_one())
    if number < OLDEST_POSTGRESQL * 10_000:
        raise DatabaseError(f"PostgreSQL {number // 10_000} is too old", hint=f"Use PostgreSQL {OLDEST_POSTGRESQL} or newer.")


async def login(connection: AsyncConnection) -> str:
    """Return the name that a connection signed in with, behind a pooler too."""
    return str((await connection.execute(sa.text("SELECT session_user"))).scalar_one())


async def is_ready(connection: AsyncConnection) -> bool:
    """Tell, as PostgreSQL's runtime login, whether there is nothing to migrate and nothing to grant."""
    if not await _is_admitted(connection):
        return False
    await _become_app(connection)
    found = await revision(connection)
    return found is not None and found >= HEAD


async def revision(connection: AsyncConnection) -> str | None:
    """Return the schema's revision; ``None``: the database is empty. Revisions are four digits: they compare as text."""
    if connection.dialect.name == "postgresql":
        exists = "SELECT 1 FROM pg_class WHERE relname = 'alembic_version' AND relnamespace = 'public'::regnamespace"
    else:
        exists = "SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"
    if (await connection.execute(sa.text(exists))).scalar() is None:
        return None
    found = (await connection.execute(sa.text("SELECT version_num FROM alembic_version"))).scalar()
    return None if found is None else str(found)


async def admit(connection: AsyncConnection, runtime_login: str) -> None:
    """Let ``runtime_login`` take the runtime roles, and have nothing of theirs without taking one. As PostgreSQL's owner."""
    owner = await login(connection)
    if owner == runtime_login:
        raise DatabaseError("the runtime login is the owner of the tables", hint=_HINT)
    quoted = connection.dialect.identifier_preparer.quote_identifier(runtime_login)
    await connection.execute(sa.text(f"GRANT {', '.join(RUNTIME_ROLES)} TO {quoted} WITH INHERIT FALSE, SET TRUE"))


async def _is_admitted(connection: AsyncConnection) -> bool:
    statement = sa.text("SELECT count(*) FROM pg_roles WHERE rolname = ANY(:names) AND pg_has_role(session_user, oid, 'SET')")
    found = (await connection.execute(statement, {"names": list(RUNTIME_ROLES)})).scalar_one()
    return bool(found == len(RUNTIME_ROLES))


async def _become_app(connection: AsyncConnection) -> None:
    await connection.execute(sa.text("SET LOCAL ROLE keybearer_app"))
