"""What a PostgreSQL server and its runtime login must be before anything is done with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import pytest
import sqlalchemy as sa
from psycopg import sql
from tests.support.postgresql import OWNER, PASSWORD, Server

from keybearer.errors import DatabaseError
from keybearer.store import guard, schema
from keybearer.store.db import Actor, Database, migrate
from keybearer.store.queries import lookups


@dataclass
class Login:
    """A runtime login of its own for one test, and its migrated database."""

    server: Server
    name: str
    database: str
    url: str
    direct_url: str

    def spoil(self, statement: str, *, inside: bool = False) -> None:
        """Execute as the superuser; ``{}`` is the login."""
        with self.server.connect(self.database if inside else None) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(self.name)))


@pytest.fixture
def login(postgresql_server: Server, fresh_postgresql: tuple[str, str]) -> Iterator[Login]:
    name = f"kbtest_{uuid4().hex}"
    url, direct_url = fresh_postgresql
    own = sa.make_url(url).set(username=name)
    database = str(own.database)
    login = Login(postgresql_server, name, database, own.render_as_string(hide_password=False), direct_url)
    login.spoil(f"CREATE ROLE {{}} LOGIN PASSWORD '{PASSWORD}'")
    yield login
    login.spoil("REASSIGN OWNED BY {} TO postgres", inside=True)
    login.spoil("DROP OWNED BY {}", inside=True)
    login.spoil("DROP ROLE {}")


async def test_the_login_that_a_migration_admits_is_fit(login: Login) -> None:
    await migrate(login.url, login.direct_url)
    db = await Database.open(login.url, login.direct_url)
    await db.ping()
    await db.close()


async def test_another_login_is_admitted_later_without_a_migration(login: Login) -> None:
    first = sa.make_url(login.url).set(username="kbtest_runtime").render_as_string(hide_password=False)
    await migrate(first, login.direct_url)
    with pytest.raises(DatabaseError, match="may not take the roles"):
        await Database.open(login.url)
    await migrate(login.url, login.direct_url)
    await (await Database.open(login.url)).close()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("ALTER ROLE {} SUPERUSER", "superuser"),
        ("GRANT postgres TO {}", "superuser"),
        ("ALTER ROLE {} BYPASSRLS", "bypasses row-level security"),
        ("GRANT pg_read_all_data TO {}", "reads or writes everything"),
        ("GRANT pg_write_all_data TO {} WITH INHERIT FALSE", "reads or writes everything"),
        (f"GRANT {OWNER} TO {{}}", "the owner of table"),
        (f"GRANT {OWNER} TO {{}} WITH INHERIT FALSE, SET TRUE", "the owner of table"),
        ("ALTER TABLE secret OWNER TO {}", "the owner of table secret"),
        ("GRANT keybearer_lookup TO {}", "keybearer_lookup"),
        (f"REVOKE keybearer_system FROM {{}} GRANTED BY {OWNER}", "may not take the roles"),
        ("ALTER TABLE secret NO FORCE ROW LEVEL SECURITY", "not forced on table secret"),
        ("ALTER TABLE secret DISABLE ROW LEVEL SECURITY", "not forced on table secret"),
        ("CREATE TABLE forgotten (owner_id uuid)", "not forced on table forgotten"),
    ],
)
async def test_a_wall_with_a_hole_is_refused(login: Login, statement: str, message: str) -> None:
    await migrate(login.url, login.direct_url)
    login.spoil(statement, inside=True)
    with pytest.raises(DatabaseError, match=message):
        await Database.open(login.url, login.direct_url)


async def test_the_owner_itself_is_refused(login: Login) -> None:
    await migrate(login.url, login.direct_url)
    with pytest.raises(DatabaseError, match="owner of table"):
        await Database.open(login.direct_url)


async def test_an_old_server_is_refused(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "OLDEST_POSTGRESQL", 99)
    with pytest.raises(DatabaseError, match="too old"):
        await migrate(login.url, login.direct_url)
    with pytest.raises(DatabaseError, match="too old"):
        await Database.open(login.url)


@pytest.fixture
def modest_owner(postgresql_server: Server, login: Login) -> Iterator[str]:
    """An owner that may not make roles, of a second deployment on the same server; its URL."""
    name = f"kbtest_{uuid4().hex}"
    with postgresql_server.connect() as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
        connection.execute(f'ALTER DATABASE "{login.database}" OWNER TO {name}')
    yield sa.make_url(login.direct_url).set(username=name).render_as_string(hide_password=False)
    with postgresql_server.connect(login.database) as connection:
        for statement in ("REASSIGN OWNED BY {} TO postgres", "DROP OWNED BY {} CASCADE", "DROP ROLE {}"):
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))


async def test_an_owner_that_may_not_make_roles_is_handed_them(
    login: Login, modest_owner: str, postgresql_server: Server
) -> None:
    with pytest.raises(DatabaseError, match="cannot be migrated: permission denied"):
        await migrate(login.url, modest_owner)
    owner = sa.make_url(modest_owner).username
    with postgresql_server.connect() as connection:
        # One by one: a migration of another test's database locks these roles in another order.
        for role in ("keybearer_app", "keybearer_system", "keybearer_lookup"):
            connection.execute(f"GRANT {role} TO {owner} WITH ADMIN OPTION")
    await migrate(login.url, modest_owner)
    db = await Database.open(login.url, modest_owner)
    async with db.read(Actor.lookup()) as tx:
        assert not await lookups.admin_exists(tx)
    await db.close()


async def test_nothing_is_left_on_a_connection_that_a_pooler_hands_on(login: Login) -> None:
    await migrate(login.url, login.direct_url)
    db = await Database.open(login.url, login.direct_url, pool_size=1)
    for _ in range(10):  # psycopg prepares what it sees often, unless told not to
        async with db.write(Actor.user(uuid4(), admin=True, system_keys=True)) as tx:
            await tx.execute(sa.select(schema.secret.c.id))
    async with db._writers.connect() as connection:
        statement = (
            "SELECT session_user = current_user, coalesce(current_setting('keybearer.user_id', true), ''),"
            " current_setting('statement_timeout'), (SELECT count(*) FROM pg_prepared_statements),"
            " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
        )
        assert tuple((await connection.execute(sa.text(statement))).one()) == (True, "", "0", 0, 0)
    await db.close()
