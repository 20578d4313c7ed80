"""Operator commands: they work on the server's own data directory and database, and need the ``server`` extra."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from keybearer import config
from keybearer.cli.output import AsJson, print_json, print_rows, say
from keybearer.cli.serving import need_server_extra
from keybearer.domain import SYSTEM_OWNER_ID, Caller, Client, Role, Scope
from keybearer.errors import Invalid

if TYPE_CHECKING:
    from keybearer.cli.operator import Operator

Result = TypeVar("Result")

admins = typer.Typer(help="Administrators.", no_args_is_help=True)
people = typer.Typer(help="Accounts.", no_args_is_help=True)
tokens = typer.Typer(help="Access tokens.", no_args_is_help=True)

OPERATOR = Caller(SYSTEM_OWNER_ID, Role.ADMIN, frozenset(Scope), client=Client("", "keybearer command line"))
"""Whoever runs commands on the server and acts in nobody's name."""
DataDir = Annotated[Path | None, typer.Option(help="The server's data directory.")]
Email = Annotated[str, typer.Option(help="The person's e-mail address.")]
USER_COLUMNS = ("id", "email", "name", "role", "is_active", "created_at")
PAGE = 200
"""Rows of a list that are read at once."""
TOKEN_COLUMNS = ("id", "name", "scopes", "is_active", "expires_at", "last_used_at")


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(admins, name="admin")
    app.add_typer(people, name="user")
    app.add_typer(tokens, name="token")
    app.command("freeze")(freeze)
    app.command("unfreeze")(unfreeze)


def operate(data_dir: Path | None, work: Callable[[Operator], Awaitable[Result]]) -> Result:
    """Open the server's database and keys, do ``work``, close them."""
    try:
        from keybearer.cli.operator import opened  # noqa: PLC0415  # the server extra
    except ImportError as error:
        raise need_server_extra(error) from error

    async def run() -> Result:
        async with opened(config.load(data_dir=data_dir)) as operator:
            return await work(operator)

    return asyncio.run(run())


async def every(page: Callable[[str | None], Awaitable[tuple[list[Result], str | None]]]) -> list[Result]:
    """Read all pages of a list; ``page`` reads the one at a cursor and says which comes next."""
    found, following = await page(None)
    while following is not None:
        more, following = await page(following)
        found += more
    return found


def row_of(record: Any, columns: tuple[str, ...]) -> dict[str, Any]:
    """Make a printable row of a dataclass."""
    row = dataclasses.asdict(record)
    return {name: sorted(row[name]) if isinstance(row[name], frozenset) else row[name] for name in columns}


def _create_user(data_dir: Path | None, email: str, name: str, role: Role, *, as_json: bool) -> None:
    password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise Invalid("No password came on standard input.", hint="printf '%s' \"$PASSWORD\" | keybearer admin create …")

    async def work(operator: Operator) -> dict[str, Any]:
        return row_of(await operator.users.create(email, password, name, role, by=None), USER_COLUMNS)

    made = operate(data_dir, work)
    if as_json:
        print_json(made)
    else:
        print_rows([made], USER_COLUMNS, as_json=False)


@admins.command("create")
def admin_create(
    email: Email,
    *,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")],
    name: Annotated[str, typer.Option(help="The person's name.")] = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Create an administrator; the password comes on standard input."""
    del password_stdin  # the option is required so that nobody looks for --password, which others could read
    _create_user(data_dir, email, name, Role.ADMIN, as_json=as_json)


@people.command("create")
def user_create(
    email: Email,
    *,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")],
    name: Annotated[str, typer.Option(help="The person's name.")] = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Create a member; the password comes on standard input."""
    del password_stdin
    _create_user(data_dir, email, name, Role.MEMBER, as_json=as_json)


@people.command("list")
def user_list(*, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the accounts."""

    async def work(operator: Operator) -> list[dict[str, Any]]:
        return [row_of(user, USER_COLUMNS) for user in await every(lambda at: operator.users.page(OPERATOR, at, PAGE))]

    print_rows(operate(data_dir, work), USER_COLUMNS, as_json=as_json)


@people.command("delete")
def user_delete(
    email: Annotated[str, typer.Argument(help="The person's e-mail address.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Delete an account with its keys, secrets and tokens. Nothing brings it back; the audit trail stays."""
    if not yes:
        typer.confirm(f"Delete {email} and everything of theirs?", abort=True)

    async def work(operator: Operator) -> None:
        await operator.erasure.delete_user((await operator.user(email)).id, None)
        await operator.erasure.erase()

    operate(data_dir, work)
    say("Deleted.")


@tokens.command("create")
def token_create(
    user: Annotated[str, typer.Option(help="E-mail address of the person the token acts for.")],
    name: Annotated[str, typer.Option(help="What the token is for.")],
    *,
    scope: Annotated[list[Scope] | None, typer.Option(help="Repeatable; default gateway:use.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Create an access token in a person's name. It is printed once."""

    async def work(operator: Operator) -> dict[str, str]:
        from keybearer.access.tokens import NewToken  # noqa: PLC0415  # the server extra

        caller = operator.caller(await operator.user(user))
        wanted = NewToken(name=name, scopes=frozenset(scope or [Scope.GATEWAY_USE]))
        made, text = await operator.tokens.create(caller, wanted)
        return {"id": made.id, "token": text}

    made = operate(data_dir, work)
    if as_json:
        print_json(made)
    else:
        say(made["token"])


@tokens.command("list")
def token_list(
    user: Annotated[str, typer.Option(help="E-mail address.")], *, data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """List a person's access tokens."""

    async def work(operator: Operator) -> list[dict[str, Any]]:
        caller = operator.caller(await operator.user(user))
        found = await every(lambda at: operator.tokens.page(caller, cursor=at, limit=PAGE))
        return [row_of(token, TOKEN_COLUMNS) for token in found]

    print_rows(operate(data_dir, work), TOKEN_COLUMNS, as_json=as_json)


@tokens.command("revoke")
def token_revoke(
    token_id: Annotated[str, typer.Argument(help="The token's id.")],
    user: Annotated[str, typer.Option(help="E-mail address of its owner.")],
    *,
    data_dir: DataDir = None,
) -> None:
    """Revoke an access token, everywhere within a second."""

    async def work(operator: Operator) -> None:
        await operator.tokens.delete(operator.caller(await operator.user(user)), token_id)

    operate(data_dir, work)
    say("Revoked.")


def freeze(*, data_dir: DataDir = None) -> None:
    """Stop all use of keys, and values for access tokens, in every process within a second, until 'keybearer unfreeze'."""
    is_new = operate(data_dir, lambda operator: operator.freeze(OPERATOR))
    say("Frozen: no key is used any more. 'keybearer unfreeze' takes it back." if is_new else "It is frozen already.")


def unfreeze(*, data_dir: DataDir = None) -> None:
    """Let keys be used again."""
    is_new = operate(data_dir, lambda operator: operator.unfreeze(OPERATOR))
    say("Keys are used again." if is_new else "It is not frozen.")
