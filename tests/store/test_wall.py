"""Row-level security on PostgreSQL: whose rows each role can read, insert, update, move and delete, in raw SQL.

``EXPECTED`` is the whole wall on one page; ``wall`` explains its letters. That it is these policies that hold it up is proved by
taking each away, or opening it, and seeing the page change.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql
from tests.store import wall
from tests.store.wall import Connection
from tests.support.postgresql import RUNTIME, Server

from keybearer.store.schema import metadata

EXPECTED = """
deployment      nobody               r:.
deployment      a                    r:.
deployment      a with system keys   r:.
deployment      admin c              r:.
deployment      system               r:. i:. u:.
root_key        nobody               r:. k:.
root_key        a                    r:. k:.
root_key        a with system keys   r:. k:.
root_key        admin c              r:. k:.
root_key        system               r:. k:. i:. u:.
owner           nobody               r:s
owner           a                    r:asTUV d:aT D:2
owner           a with system keys   r:asTUV d:aT D:2
owner           admin c              r:abcsdTUVWX i:abcdTUVWX d:abcd D:4
owner           system               r:abcsdTUVWX i:abcsdTUVWX
owner_key       nobody
owner_key       a                    r:adTUV k:adTUV i:aTU
owner_key       a with system keys   r:asdTUV k:asdTUV i:aTU
owner_key       admin c              r:cs k:cs i:cs
owner_key       system               r:abcsdTUVWX k:abcsdTUVWX i:abcsdTUVWX u:abcsdTUVWX m:abcsdTUVWX
key_rotation    nobody
key_rotation    a
key_rotation    a with system keys
key_rotation    admin c
key_rotation    system               r:. i:. u:.
key_holder      nobody
key_holder      a
key_holder      a with system keys
key_holder      admin c
key_holder      system               r:. i:. u:. d:. D:1
user_account    nobody               l1
user_account    a                    r:a u:a d:a D:1 l1
user_account    a with system keys   r:a u:a d:a D:1 l1
user_account    admin c              r:abcd i:abcd u:abcd d:abcd D:4 l1
user_account    system               r:abcd i:abcd u:abcd l1
one_time_link   nobody               l1
one_time_link   a                    l1
one_time_link   a with system keys   l1
one_time_link   admin c              l1
one_time_link   system               r:. i:. u:. d:. D:1 l1
session         nobody               l1
session         a                    r:a i:a u:a d:a D:1 l1
session         a with system keys   r:a i:a u:a d:a D:1 l1
session         admin c              r:abc i:c u:c d:abc D:3 l1
session         system               r:abc d:abc D:3 l1
access_token    nobody               l1
access_token    a                    r:a i:a u:a d:a D:1 l1
access_token    a with system keys   r:a i:a u:a d:a D:1 l1
access_token    admin c              r:abc i:c u:abc m:abc d:abc D:3 l1
access_token    system               r:abc u:abc l1
team            nobody
team            a                    r:TUVW u:TU
team            a with system keys   r:TUVW u:TU
team            admin c
team            system               r:TUVWX i:TUVWX
team_member     nobody
team_member     a                    r:123456780 i:1245 u:1245 m:1245 o:12 d:124570 D:6
team_member     a with system keys   r:123456780 i:1245 u:1245 m:1245 o:12 d:124570 D:6
team_member     admin c
team_member     system               r:1234567890!? i:1234567890!? u:1234567890!?
provider        nobody               r:s
provider        a                    r:asTUV i:aTU u:aTU d:aTU D:3
provider        a with system keys   r:asTUV i:aTU u:aTU d:aTU D:3
provider        admin c              r:cs i:cs u:cs d:cs D:2
provider        system               r:abcsTUVWX
model           nobody               r:s
model           a                    r:asTUV i:aTU u:aTU d:aTU D:3
model           a with system keys   r:asTUV i:aTU u:aTU d:aTU D:3
model           admin c              r:cs i:cs u:cs d:cs D:2
model           system               r:abcsTUVWX
secret          nobody
secret          a                    r:aefhTUV i:aTU u:afTU d:afTU D:4
secret          a with system keys   r:asefhTUV i:aTU u:afTU d:afTU D:4
secret          admin c              r:abcsdefghTUVWX i:cs u:cs d:cs D:2
secret          system               r:abcsdefghTUVWX u:abcsdefghTUVWX d:b D:1
secret_version  nobody
secret_version  a                    r:aefhTUV i:afTU u:afTU d:afTU D:4
secret_version  a with system keys   r:asefhTUV i:afTU u:afTU d:afTU D:4
secret_version  admin c              r:cs i:cs u:cs d:cs D:2
secret_version  system               r:abcsdefghTUVWX d:b D:1
secret_share    nobody
secret_share    a                    r:aefh i:a u:a d:ah D:2
secret_share    a with system keys   r:aefh i:a u:a d:ah D:2
secret_share    admin c
secret_share    system               r:aefgh
gateway_object  nobody
gateway_object  a                    r:a i:a d:a D:1
gateway_object  a with system keys   r:a i:a d:a D:1
gateway_object  admin c              r:c i:c d:c D:1
gateway_object  system               r:abc d:abc D:3
notification    nobody
notification    a                    r:a u:a
notification    a with system keys   r:a u:a
notification    admin c              r:c u:c
notification    system               r:abc i:abc u:abc m:abc
reminder_hook   nobody
reminder_hook   a                    r:a i:a u:a d:a D:1
reminder_hook   a with system keys   r:a i:a u:a d:a D:1
reminder_hook   admin c              r:c i:c u:c d:c D:1
reminder_hook   system               r:abc u:abc
budget          nobody
budget          a                    r:aTUV i:aT u:aT d:aT D:2
budget          a with system keys   r:aTUV i:aT u:aT d:aT D:2
budget          admin c              r:abcsTUVWX i:abcsTUVWX u:abcsTUVWX m:abcsTUVWX d:abcsTUVWX D:9
budget          system               r:abcsTUVWX
reservation     nobody
reservation     a
reservation     a with system keys
reservation     admin c
reservation     system               r:. i:. u:. d:. D:1
audit_writer    nobody               r:m. k:m i:m u:m
audit_writer    a                    r:m. k:m i:m u:m
audit_writer    a with system keys   r:m. k:m i:m u:m
audit_writer    admin c              r:m. k:m i:m u:m
audit_writer    system               r:m. k:m. i:m. u:m. m:m.
audit_record    nobody               i:abcsxTUVWX
audit_record    a                    r:axTU i:abcsxTUVWX
audit_record    a with system keys   r:axTU i:abcsxTUVWX
audit_record    admin c              r:abcsxTUVWX. i:abcsxTUVWX
audit_record    system               r:abcsxTUVWX. i:abcsxTUVWX. u:abcsxTUVWX. m:abcsxTUVWX.
audit_tree      nobody
audit_tree      a
audit_tree      a with system keys
audit_tree      admin c
audit_tree      system               r:. i:. u:.
audit_tile      nobody
audit_tile      a
audit_tile      a with system keys
audit_tile      admin c
audit_tile      system               r:. i:. u:.
audit_run       nobody
audit_run       a
audit_run       a with system keys
audit_run       admin c
audit_run       system               r:. i:.
audit_sealed    nobody
audit_sealed    a
audit_sealed    a with system keys
audit_sealed    admin c
audit_sealed    system               r:. i:. u:.
audit_note      nobody
audit_note      a
audit_note      a with system keys
audit_note      admin c
audit_note      system               r:. i:.
usage_record    nobody
usage_record    a                    r:axTU
usage_record    a with system keys   r:axTU
usage_record    admin c              r:abcsxTUVWX
usage_record    system               r:abcsxTUVWX i:abcsxTUVWX u:abcsxTUVWX m:abcsxTUVWX
change          nobody               i:abc.
change          a                    i:abc.
change          a with system keys   i:abc.
change          admin c              i:abc.
change          system               r:abc. i:abc. d:abc. D:4
"""


@pytest.fixture
def filled(postgresql_database: str, postgresql_server: Server, emptied_postgresql: tuple[str, str]) -> Iterator[Connection]:
    """The superuser's connection to a database with everybody's rows in it."""
    with postgresql_server.connect(postgresql_database) as connection:
        wall.fill(connection)
        yield connection


@pytest.fixture
def runtime(filled: Connection, postgresql_database: str, postgresql_server: Server) -> Iterator[Connection]:
    """The same database as the server's own login sees it."""
    url = sa.make_url(postgresql_server.url(postgresql_database, RUNTIME)).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
        yield connection
        connection.rollback()


def expected(table: str) -> dict[str, str]:
    lines = [line for line in EXPECTED.splitlines() if line.split()[:1] == [table]]
    return {line[16:37].strip(): line[37:] for line in lines}


def test_everybody_can_do_what_is_theirs_and_nothing_else(runtime: Connection) -> None:
    seen = {table: wall.observe(runtime, table) for table in wall.LABELS}
    page = [f"{table:<15} {name:<20} {worked}".rstrip() for table, names in seen.items() for name, worked in names.items()]
    assert page == EXPECTED.strip().splitlines()


def test_counting_tells_no_more_than_reading(runtime: Connection) -> None:
    for table in wall.LABELS:
        for name, eyes in wall.EYES.items():
            seen = expected(table)[name].removeprefix("r:").split(" ")[0] if "r:" in expected(table)[name] else None
            with wall.seeing(runtime, eyes) as counted, wall.tolerated(counted):
                query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
                (count,) = runtime.execute(query).fetchone() or (None,)
                assert count == len(seen or ""), (table, name)


def test_every_table_has_a_forced_policy(filled: Connection) -> None:
    tables = filled.execute(
        "SELECT relname, relrowsecurity AND relforcerowsecurity,"
        " (SELECT count(*) FROM pg_policy WHERE polrelid = c.oid) FROM pg_class c"
        " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relname <> 'alembic_version'"
    ).fetchall()
    owned = {name for name, table in metadata.tables.items() if {"owner_id", "user_id"} & set(table.columns.keys())}
    assert owned <= {name for name, *_ in tables}
    assert [name for name, forced, policies in tables if not forced or not policies] == []
    # And every one of them is tried above.
    assert {name for name, *_ in tables} == set(wall.LABELS) == set(metadata.tables)


def _policies(connection: Connection) -> list[tuple[str, str, str | None, str | None]]:
    return connection.execute(
        "SELECT tablename, policyname, qual, with_check FROM pg_policies WHERE schemaname = 'public'"
        # The one that a backup makes is the owner's, which is not on the page; tests/vault/test_backup.py looks at it.
        " AND policyname <> 'owner_reads' ORDER BY 1, 2"
    ).fetchall()


def test_each_policy_is_missed_when_it_is_dropped(filled: Connection) -> None:
    policies = _policies(filled)
    assert len(policies) > len(wall.LABELS)
    for table, name, _, _ in policies:
        with filled.transaction(force_rollback=True):
            filled.execute(sql.SQL("DROP POLICY {} ON {}").format(sql.Identifier(name), sql.Identifier(table)))
            assert wall.observe(filled, table) != expected(table), f"nobody misses {name} on {table}"


@pytest.mark.parametrize("clause", ["USING", "WITH CHECK"])
def test_each_clause_is_missed_when_it_lets_everything_through(filled: Connection, clause: str) -> None:
    tried = 0
    for table, name, using, check in _policies(filled):
        if (using if clause == "USING" else check) in {None, "true"}:
            continue
        with filled.transaction(force_rollback=True):
            opened = sql.SQL("ALTER POLICY {} ON {} " + clause + " (true)")
            filled.execute(opened.format(sql.Identifier(name), sql.Identifier(table)))
            assert wall.observe(filled, table) != expected(table), f"nobody misses {clause} of {name} on {table}"
        tried += 1
    assert tried > 5


def test_without_a_role_the_login_reads_nothing(runtime: Connection) -> None:
    for table in wall.LABELS:
        with pytest.raises(psycopg.errors.InsufficientPrivilege), runtime.transaction():
            runtime.execute(sql.SQL("SELECT 1 FROM {}").format(sql.Identifier(table)))


def test_a_caller_that_was_never_set_sees_what_nobody_sees(runtime: Connection) -> None:
    runtime.execute("SET LOCAL ROLE keybearer_app")
    for table in ("secret", "owner_key", "access_token", "usage_record", "audit_record"):
        assert runtime.execute(sql.SQL("SELECT 1 FROM {}").format(sql.Identifier(table))).fetchall() == []


def test_the_caller_does_not_outlive_the_transaction(runtime: Connection) -> None:
    with wall.seeing(runtime, wall.EYES["admin c"]):
        assert runtime.execute("SELECT count(*) FROM secret").fetchone() == (len(wall.LABELS["secret"]),)
    runtime.commit()
    runtime.execute("SET LOCAL ROLE keybearer_app")
    assert runtime.execute("SELECT count(*) FROM secret").fetchone() == (0,)


@pytest.mark.parametrize("column", ["secret_id", "owner_key_id"])
def test_a_foreign_key_does_not_tell_another_owners_id_from_an_unknown_one(runtime: Connection, column: str) -> None:
    def answer(value: object) -> tuple[str | None, ...]:
        row = wall.row("secret_version", "a") | {"version": 2, column: value}
        with wall.seeing(runtime, wall.EYES["a"]), pytest.raises(psycopg.errors.ForeignKeyViolation) as caught:
            wall.insert(runtime, "secret_version", row, check_now=True)
        details = caught.value.diag
        return details.sqlstate, details.constraint_name, (details.message_detail or "").replace(str(value), "…")

    assert answer(wall.row("secret_version", "b")[column]) == answer(uuid4())


def test_look_up_functions_are_few_pinned_and_nobody_becomes_their_owner(filled: Connection) -> None:
    functions = filled.execute(
        "SELECT proname, proowner::regrole::text, proconfig, proacl::text FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace AND prosecdef ORDER BY proname"
    ).fetchall()
    names = ["admin_exists", "link_by_hash", "people", "session_by_hash", "teams", "token_by_id", "user_by_email"]
    assert [name for name, *_ in functions] == [f"keybearer_{name}" for name in names]
    for _, owner, settings, rights in functions:
        assert (owner, settings) == ("keybearer_lookup", ["search_path=pg_catalog, pg_temp"])
        assert "{=X" not in rights
        assert ",=X" not in rights
    assert filled.execute("SELECT pg_has_role(%s, 'keybearer_lookup', 'MEMBER')", [RUNTIME]).fetchone() == (False,)
    assert filled.execute("SELECT has_schema_privilege('keybearer_lookup', 'public', 'CREATE')").fetchone() == (False,)


def test_a_temporary_table_does_not_shadow_what_look_ups_read(runtime: Connection) -> None:
    runtime.execute("SET LOCAL ROLE keybearer_app")
    runtime.execute("CREATE TEMPORARY TABLE user_account (role text) ON COMMIT DROP")
    runtime.execute("INSERT INTO pg_temp.user_account VALUES ('admin')")
    assert runtime.execute("SELECT public.keybearer_admin_exists()").fetchone() == (False,)


def test_fellow_members_are_known_by_name_and_nobody_else(runtime: Connection) -> None:
    """``a`` is in teams with ``b`` and ``d``; whoever is in none, and whoever is nobody, knows none but themselves."""
    for eyes, people in (("a", ["a", "b", "d"]), ("nobody", []), ("admin c", [])):
        with wall.seeing(runtime, wall.EYES[eyes]):
            found = runtime.execute("SELECT name FROM public.keybearer_people() ORDER BY name").fetchall()
            assert [name for (name,) in found] == people, eyes


@pytest.mark.parametrize("column", ["secret_id", "team_id"])
def test_a_share_does_not_tell_a_foreign_id_from_an_unknown_one(runtime: Connection, column: str) -> None:
    def answer(value: object) -> tuple[type[psycopg.Error], str | None, str]:
        row = wall.row("secret_share", "a") | {column: value}
        with wall.seeing(runtime, wall.EYES["a"]), pytest.raises(psycopg.Error) as caught:
            wall.insert(runtime, "secret_share", row, check_now=True)
        details = caught.value.diag
        return type(caught.value), details.constraint_name, (details.message_detail or "").replace(str(value), "…")

    foreign = wall.TEAMS["X"] if column == "team_id" else wall.row("secret", "g")["id"]
    assert answer(foreign) == answer(uuid4())
