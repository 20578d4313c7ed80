"""The wall between tenants on PostgreSQL, tried out statement by statement: who may do what with whose rows.

Rows belong to two users, ``a`` and ``b``, an administrator ``c`` and the system ``s``; ``x`` is where ``b`` used what is ``a``'s;
``.`` belongs to nobody, ``m`` is the management writer.

Teams are capital letters: ``a`` is the owner of ``T``, an admin of ``U``, a member of ``V``, invited to ``W``, and nothing in ``X``.
``b`` is the owner of all others, and ``d`` a member of all. ``d`` shares ``e`` for use and ``f`` for management with ``V``, which
``a`` is in, and ``g`` with ``X``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import sqlalchemy as sa
from psycopg import sql
from psycopg.types.json import Jsonb

from keybearer.store.schema import UtcDateTime, metadata

Connection = psycopg.Connection[Any]
Row = dict[str, Any]

A, B, C, S = UUID(int=0xA), UUID(int=0xB), UUID(int=0xC), UUID(int=0)
D = UUID(int=0xD)
TEAMS = {team: UUID(int=0x100 + number) for number, team in enumerate("TUVWX")}
OWNERS = {"a": A, "b": B, "c": C, "s": S, "d": D, "e": D, "f": D, "g": D, "h": D} | TEAMS
MANAGEMENT, PROCESS = UUID(int=1), UUID(int=2)
ROOT_KEY = UUID(int=3)


@dataclass(frozen=True)
class Eyes:
    """A role and the caller's settings, as ``Actor`` sets them."""

    role: str
    user_id: str = ""
    admin: str = "off"
    system_keys: str = "off"


EYES = {
    "nobody": Eyes("keybearer_app"),
    "a": Eyes("keybearer_app", str(A)),
    "a with system keys": Eyes("keybearer_app", str(A), system_keys="on"),
    "admin c": Eyes("keybearer_app", str(C), admin="on"),
    "system": Eyes("keybearer_system"),
}

LOOKUPS = {
    "access_token": ("keybearer_token_by_id", "a"),
    "session": ("keybearer_session_by_hash", b"a"),
    "user_account": ("keybearer_user_by_email", "a"),
    "one_time_link": ("keybearer_link_by_hash", b"."),
}


# Each member's row by a letter: team, user, role.
MEMBERS = {
    "1": ("T", A, "owner"), "2": ("T", D, "member"),
    "3": ("U", B, "owner"), "4": ("U", A, "admin"), "5": ("U", D, "member"),
    "6": ("V", B, "owner"), "7": ("V", A, "member"), "8": ("V", D, "member"),
    "9": ("W", B, "owner"), "0": ("W", A, "member"),
    "!": ("X", B, "owner"), "?": ("X", D, "member"),
}  # fmt: skip
INVITED = "0"
# Each share by its secret's letter, but for ``a``'s own: team, grade.
SHARES = {"a": ("V", "use"), "e": ("V", "use"), "f": ("V", "manage"), "g": ("X", "manage"), "h": ("T", "use")}


def key_of(table: str, label: str) -> dict[str, Any]:
    """The primary key of the row ``label`` in ``table``."""
    keys: dict[str, dict[str, Any]] = {
        "deployment": {"singleton": 1},
        "root_key": {"id": ROOT_KEY},
        "owner": {"id": OWNERS.get(label)},
        "user_account": {"id": OWNERS.get(label)},
        "one_time_link": {"token_hash": b"."},
        "access_token": {"id": label},
        "team": {"id": OWNERS.get(label)},
        "secret_version": {"secret_id": _id("secret", label), "version": 1},
        "audit_writer": {"id": MANAGEMENT if label == "m" else PROCESS},
        "audit_record": {"writer_id": PROCESS if label == "." else MANAGEMENT, "seq": ord(label)},
        "audit_tree": {"singleton": 1},
        "audit_tile": {"level": 0, "number": 0},
        "audit_run": {"first_index": 0},
        "audit_sealed": {"writer_id": PROCESS},
        "audit_note": {"size": 1},
        "gateway_object": {"owner_id": OWNERS["s"], "origin": "https://api.example", "kind": "file", "object_id": label},
        "reminder_hook": {"owner_id": OWNERS.get(label)},
        "usage_record": {"request_id": label},
        "reservation": {"request_id": label},
        "change": {"id": ord(label)},
    }
    if table == "team_member":
        team, user, _ = MEMBERS[label]
        return {"team_id": TEAMS[team], "user_id": user}
    if table == "secret_share":
        return {"secret_id": _id("secret", label), "team_id": TEAMS[SHARES[label][0]]}
    return keys.get(table, {"id": _id(table, label)})


# Which rows there are, and which column an update tries: one that the role may write, where only some are granted.
LABELS: Mapping[str, str] = {
    "deployment": ".",
    "root_key": ".",
    "owner": "abcsdTUVWX",
    "owner_key": "abcsdTUVWX",
    "key_rotation": ".",
    "key_holder": ".",
    "user_account": "abcd",
    "one_time_link": ".",
    "session": "abc",
    "access_token": "abc",
    "team": "TUVWX",
    "team_member": "".join(MEMBERS),
    "provider": "abcsTUVWX",
    "model": "abcsTUVWX",
    "secret": "abcsdefghTUVWX",
    "secret_version": "abcsdefghTUVWX",
    "secret_share": "".join(SHARES),
    "gateway_object": "abc",
    "notification": "abc",
    "reminder_hook": "abc",
    "budget": "abcsTUVWX",
    "reservation": ".",
    "audit_writer": "m.",
    "audit_record": "abcsxTUVWX.",
    "audit_tree": ".",
    "audit_tile": ".",
    "audit_run": ".",
    "audit_sealed": ".",
    "audit_note": ".",
    "usage_record": "abcsxTUVWX",
    "change": "abc.",
}
_OWNED_BY = {
    "owner_key": "owner_id",
    "session": "user_id",
    "access_token": "user_id",
    "provider": "owner_id",
    "model": "owner_id",
    "secret": "owner_id",
    "secret_version": "owner_id",
    "secret_share": "owner_id",
    "budget": "owner_id",
    "reminder_hook": "owner_id",
    "team_member": "user_id",
    "audit_writer": "id",
    "audit_record": "owner_id",
    "gateway_object": "user_id",
    "notification": "user_id",
    "usage_record": "owner_id",
    "change": "user_id",
}
_LOCKED: Mapping[str, LiteralString] = {"root_key": " FOR SHARE", "owner_key": " FOR SHARE", "audit_writer": " FOR UPDATE"}
_UPDATED = {
    "access_token": "last_used_at",
    "team_member": "priority",
    "secret": "usage_count",
    "audit_record": "outcome",
    "notification": "read_at",
    "reminder_hook": "is_active",
    "change": "subject",
}


_PLAIN: Mapping[type, Any] = {
    sa.Uuid: UUID(int=9),
    sa.String: "",
    sa.Integer: 1,
    sa.Boolean: True,
    sa.LargeBinary: b"x",
    sa.JSON: Jsonb([]),
    UtcDateTime: datetime(2026, 1, 1, tzinfo=UTC),
}


def _plain(kind: sa.types.TypeEngine[Any]) -> Any:
    return next(value for each, value in _PLAIN.items() if isinstance(kind, each))


def row(table: str, label: str) -> Row:
    """A whole row of ``table`` that belongs to ``label``."""
    owner = OWNERS.get(label, A if label == "x" else None)
    said = {
        "owner_id": owner,
        "user_id": B if label == "x" else owner,
        "token_hash": label.encode(),
        "root_key_id": ROOT_KEY,
        "owner_key_id": _id("owner_key", "d" if label in "efgh" else label),
        "kind": {"owner": _kind(label), "audit_writer": "process", "key_rotation": "root"}.get(table, "manage"),
        "state": "running" if table == "key_rotation" else "active",
        # What jobs may take away: b's.
        **({"deleted_at": _PLAIN[UtcDateTime], "retired_at": _PLAIN[UtcDateTime]} if label == "b" else {}),
        "role": MEMBERS[label][2] if table == "team_member" else "member",
        "accepted_at": None if label == INVITED else datetime(2026, 1, 1, tzinfo=UTC),
        # What an administrator set: b's, and U's, which a leads.
        **({"by_admin": label in "bU", "subject_id": label} if table == "budget" else {}),
        "grade": SHARES.get(label, ("", "use"))[1],
        **dict.fromkeys(("name", "display_name", "email"), label),
    }
    columns = metadata.tables[table].columns
    plain = {column.name: _plain(column.type) for column in columns if not column.nullable}
    return plain | {name: value for name, value in said.items() if name in columns} | key_of(table, label)


def _kind(label: str) -> str:
    return "system" if label == "s" else "team" if label in TEAMS else "user"


def fill(connection: Connection) -> None:
    """Insert all rows, as somebody whom no policy holds."""
    for table, labels in LABELS.items():
        for label in labels:
            insert(connection, table, row(table, label))


def observe(connection: Connection, table: str) -> dict[str, str]:
    """Try everything on ``table`` with all eyes; say by labels with which rows it worked.

    ``r`` read, ``k`` lock, ``i`` insert, ``u`` update, ``m`` move to another owner, ``o`` make an owner of a team's member, ``d``
    delete; ``D``: how many rows a deletion
    takes that reads nothing, and so is not held to what may be read; ``l1``: the look-up function found its row.
    The connection must be inside a transaction; nothing of what is tried remains.
    """
    return {name: _observe_as(connection, table, eyes) for name, eyes in EYES.items()}


def _observe_as(connection: Connection, table: str, eyes: Eyes) -> str:
    worked = dict.fromkeys("rkiumod", "")
    for label in LABELS[table]:
        key = key_of(table, label)
        updated = _UPDATED.get(table, next(iter(key)))
        statements = {
            "r": sql.SQL("SELECT 1 FROM {}").format(sql.Identifier(table)),
            "u": sql.SQL("UPDATE {} SET {} = {}").format(*map(sql.Identifier, (table, updated, updated))),
            "d": sql.SQL("DELETE FROM {}").format(sql.Identifier(table)),
        }
        if table in _LOCKED:
            statements["k"] = sql.SQL("SELECT 1 FROM {}").format(sql.Identifier(table))
        if table in _OWNED_BY:
            moved = sql.SQL("UPDATE {} SET {} = {}")
            other = sql.Literal(A if label == "b" else B)
            statements["m"] = moved.format(sql.Identifier(table), sql.Identifier(_OWNED_BY[table]), other)
        if table == "team_member":
            statements["o"] = sql.SQL("UPDATE {} SET role = 'owner'").format(sql.Identifier(table))
        for action, statement in statements.items():
            if _works(connection, eyes, statement, key, _LOCKED[table] if action == "k" else ""):
                worked[action] += label
        if _may_insert(connection, eyes, table, row(table, label)):
            worked["i"] += label
    worked["D"] = _deleted_blindly(connection, eyes, table)
    seen = " ".join(f"{action}:{labels}" for action, labels in worked.items() if labels)
    return f"{seen} l{_looked_up(connection, eyes, *LOOKUPS[table])}".strip() if table in LOOKUPS else seen


def _works(connection: Connection, eyes: Eyes, statement: sql.Composed, key: Row, lock: LiteralString) -> bool:
    where = sql.SQL(" AND ").join(sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder()) for name in key)
    with seeing(connection, eyes) as worked, tolerated(worked), connection.cursor() as cursor:
        cursor.execute(statement + sql.SQL(" WHERE ") + where + sql.SQL(lock), list(key.values()))
        worked.append(cursor.rowcount == 1)
    return worked == [True]


def _deleted_blindly(connection: Connection, eyes: Eyes, table: str) -> str:
    with seeing(connection, eyes) as worked, tolerated(worked):
        return str(connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table))).rowcount or "")
    return ""


def _may_insert(connection: Connection, eyes: Eyes, table: str, values: Row) -> bool:
    with seeing(connection, eyes) as worked, tolerated(worked):
        insert(connection, table, values)
    return worked == [True]


def _looked_up(connection: Connection, eyes: Eyes, function: str, value: object) -> int:
    found: list[Any] = []
    with seeing(connection, eyes) as refused, tolerated(refused):
        found += connection.execute(sql.SQL("SELECT * FROM {}(%s)").format(sql.Identifier(function)), [value]).fetchall()
    return len(found)


@contextmanager
def seeing(connection: Connection, eyes: Eyes) -> Iterator[list[bool]]:
    """Look with these eyes, then undo all. Yields a list to put results in that survive."""
    connection.execute("SAVEPOINT tried")
    connection.execute(
        "SELECT set_config('role', %s, true), set_config('keybearer.user_id', %s, true),"
        " set_config('keybearer.admin', %s, true), set_config('keybearer.system_keys', %s, true)",
        [eyes.role, eyes.user_id, eyes.admin, eyes.system_keys],
    )
    try:
        yield []
    finally:
        connection.execute("ROLLBACK TO SAVEPOINT tried")


@contextmanager
def tolerated(worked: list[bool]) -> Iterator[None]:
    """A row that exists already, or is referred to, was allowed to be tried with: policies are asked before keys are."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege:
        worked.append(False)
    except (psycopg.errors.UniqueViolation, psycopg.errors.ForeignKeyViolation):
        worked.append(True)


def insert(connection: Connection, table: str, values: Row, *, check_now: bool = False) -> None:
    """Insert a row; ``check_now``: have deferred foreign keys checked, as the commit would."""
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(sql.Placeholder() for _ in values),
    )
    connection.execute(statement, list(values.values()))
    if check_now:
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")


def _id(table: str, label: str) -> UUID:
    return UUID(bytes=f"{table[:7]:>8}{label:>8}".encode())
