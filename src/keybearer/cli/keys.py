"""``keybearer key``: make a root key, look at the keys, rotate them. On the server's data directory and database."""

from __future__ import annotations

import asyncio
import secrets
import sys
from base64 import b64encode
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from keybearer import config
from keybearer.cli.operate import DataDir, operate
from keybearer.cli.output import AsJson, print_json, print_rows, say
from keybearer.cli.progress import bar
from keybearer.cli.serving import need_server_extra
from keybearer.config import RootKeyProvider
from keybearer.domain import SYSTEM_OWNER_ID
from keybearer.errors import Invalid, NotFound

if TYPE_CHECKING:
    from keybearer.cli.operator import Operator
    from keybearer.crypto.kms import Wrapper
    from keybearer.vault.rotate import Rotation

keys = typer.Typer(help="The root key and the owners' keys.", no_args_is_help=True)

PassphraseOnStdin = Annotated[bool, typer.Option("--passphrase-stdin", help="Read the passphrase from standard input.")]
STEPS = {
    "stage": "wrapping a new root key",
    "prove": "waiting for running processes to unwrap it",
    "promote": "promoting it",
    "reseal": "sealing owner keys",
    "retire": "retiring the old one",
    "turn": "making owner keys",
    "system": "sealing the system's keys",
    "seal": "sealing values",
    "done": "done",
}
ROOT_COLUMNS = ("id", "state", "provider", "reference", "owner_keys", "created_at", "emptied_at")
OWNER_COLUMNS = ("version", "state", "keys", "rows")
PROCESS_COLUMNS = ("host", "pid", "root_key_id", "seen_at", "problem")


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(keys, name="key")


@keys.command("generate")
def key_generate() -> None:
    """Print a new root key for KEYBEARER_ROOT_KEY. Keep a copy: without it nothing can be read."""
    say(b64encode(secrets.token_bytes(32)).decode())


@keys.command("status")
def key_status(*, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show every version of every key, how many rows refer to it, which processes hold the root key, and rotations."""

    async def work(operator: Operator) -> dict[str, Any]:
        return asdict(await operator.rotations.status(None))

    status = operate(data_dir, work)
    if as_json:
        print_json(status)
        return
    say("Root keys, and the owner keys that each seals")
    print_rows(status["root_keys"], ROOT_COLUMNS, as_json=False)
    say("\nOwner keys by version, and the values that they seal")
    print_rows(status["owner_keys"], OWNER_COLUMNS, as_json=False)
    say("\nRunning processes, and the newest root key that each has unwrapped")
    print_rows(status["processes"], PROCESS_COLUMNS, as_json=False)
    if status["rotation"]:
        say("\nLast rotation" if status["rotation"]["state"] == "finished" else "\nRotation under way")
        columns = ("kind", "state", "step", "done", "total", "unreadable", "updated_at", "problem")
        print_rows([status["rotation"]], columns, as_json=False)


@keys.command("rotate")
def key_rotate(
    *,
    to: Annotated[RootKeyProvider | None, typer.Option(help="Move the root key to this provider.")] = None,
    owner: Annotated[str, typer.Option(help="Rotate one owner's key instead: an e-mail address, an id, or 'system'.")] = "",
    all_owners: Annotated[bool, typer.Option("--all-owners", help="Rotate every owner's key instead.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a rotation that was interrupted.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Rotate the root key, or owners' keys, while servers go on serving. May be interrupted at any time, and resumed."""
    if sum([to is not None, bool(owner), all_owners, resume]) > 1:
        raise Invalid("Give one of --to, --owner, --all-owners and --resume.", hint="One rotation at a time.")

    async def work(operator: Operator) -> Rotation:
        rotations = operator.rotations
        if resume:
            begun = await rotations.under_way()
            if begun is None:
                raise NotFound("No rotation is under way.", hint="'keybearer key status' shows the last one.")
        elif owner or all_owners:
            begun = await rotations.begin_owners(None, await _owner_id(operator, owner) if owner else None)
        else:
            begun = await rotations.begin_root(None, to.value if to else None)
        try:
            with bar(quiet=as_json) as show:
                return await rotations.finish(begun, lambda now: show(_step(now), now.done, now.total))
        finally:
            await rotations.release()

    done = operate(data_dir, work)
    if as_json:
        print_json(asdict(done))
        return
    say("The root key was rotated." if done.kind == "root" else "Rotated.")
    if done.unreadable:
        print(  # noqa: T201  # what the operator must know
            f"warning: {done.unreadable} row(s) do not open and stay under the old key; see docs/troubleshooting.md.",
            file=sys.stderr,
        )
    if done.kind == "root" and to is not None:
        say(
            f"Set KEYBEARER_ROOT_KEY_PROVIDER={to.value} before the next start, and keep the old provider as long as a backup needs it."
        )


@keys.command("drop")
def key_drop(
    root_key: Annotated[str, typer.Argument(help="The id of a retired root key; without it, retired owner keys.")] = "",
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Delete a retired root key that seals nothing any more, or all retired owner keys that no value is sealed under."""
    try:
        key_id = UUID(root_key) if root_key else None
    except ValueError:
        raise NotFound("There is no root key with this id.", hint="'keybearer key status' lists them.") from None
    if key_id is not None and not yes:
        typer.confirm("Backups made while it was in force will open no more. Drop it?", abort=True)

    async def work(operator: Operator) -> int:
        if key_id is None:
            return await operator.rotations.drop_owner_keys(None)
        await operator.rotations.drop_root_key(None, key_id)
        return 1

    dropped = operate(data_dir, work)
    if as_json:
        print_json({"dropped": dropped})
    else:
        say("The root key is dropped." if key_id is not None else f"{dropped} retired owner key(s) dropped.")


@keys.command("backup")
def key_backup(
    path: Annotated[Path, typer.Argument(help="A new file; keep it apart from the database and the passphrase.")],
    *,
    passphrase_stdin: PassphraseOnStdin,
    data_dir: DataDir = None,
) -> None:
    """Write the root keys to a file, wrapped by a passphrase: for the day the provider's key is lost."""
    del passphrase_stdin

    async def work(operator: Operator) -> list[UUID]:
        from keybearer.vault import recovery  # noqa: PLC0415  # the server extra

        backup, lost = await recovery.make(operator.db, operator.keyring, _phrase())
        recovery.write(path, backup)
        return lost

    lost = operate(data_dir, work)
    say(f"Written to {path}. Make a new one after each root-key rotation.")
    if lost:
        print(  # noqa: T201  # what the operator must know
            f"warning: {len(lost)} retired root key(s) are not in it: their provider is not set up any more.", file=sys.stderr
        )


@keys.command("restore")
def key_restore(
    path: Annotated[Path, typer.Argument(help="What 'keybearer key backup' wrote.")],
    *,
    passphrase_stdin: PassphraseOnStdin,
    data_dir: DataDir = None,
) -> None:
    """Have the provider of the settings hold the root keys of a backup, when the one before is lost. Stop all servers first."""
    del passphrase_stdin
    try:
        from keybearer.cli.operator import restore_root_keys  # noqa: PLC0415  # the server extra
    except ImportError as error:
        raise need_server_extra(error) from error
    settings = config.load(data_dir=data_dir)
    restored = asyncio.run(restore_root_keys(settings, path, _phrase()))
    say(f"{restored} root key(s) are held by {settings.root_key_provider.value} now.")


def _step(rotation: Rotation) -> str:
    return STEPS.get(rotation.step, rotation.step) + (f": {rotation.problem}" if rotation.problem else "")


def _phrase() -> Wrapper:
    from keybearer.crypto.kms import passphrase  # noqa: PLC0415  # the server extra

    return passphrase.parse(sys.stdin.readline(), named="The passphrase")


async def _owner_id(operator: Operator, owner: str) -> UUID:
    """Whom the operator means. Raises ``NotFound``."""
    if owner == "system":
        return SYSTEM_OWNER_ID
    try:
        return UUID(owner)
    except ValueError:
        return (await operator.user(owner)).id
