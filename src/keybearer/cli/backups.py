"""``keybearer backup`` and ``restore``: everything, as one encrypted file. On the server's data directory and database."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keybearer import config
from keybearer.cli.operate import DataDir, operate
from keybearer.cli.output import AsJson, print_json, say
from keybearer.cli.progress import bar
from keybearer.cli.serving import need_server_extra

if TYPE_CHECKING:
    from keybearer.cli.operator import Operator
    from keybearer.crypto.kms import Wrapper

PassphraseOnStdin = Annotated[
    bool, typer.Option("--passphrase-stdin", help="Read a passphrase from standard input; else the root key opens the backup.")
]

backups = typer.Typer()
"""Without a name: its commands are the root's own."""


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(backups)


@backups.command("backup")
def backup(
    file: Annotated[Path, typer.Argument(help="A new file.")],
    *,
    passphrase_stdin: PassphraseOnStdin = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Write everything to one encrypted file, while servers go on serving. The root key is not in it: keep that apart."""

    async def work(operator: Operator) -> dict[str, Any]:
        from keybearer.vault.transfer import backup as backing  # noqa: PLC0415  # the server extra

        phrase = _phrase() if passphrase_stdin else None
        with bar(quiet=as_json) as show:
            return asdict(await backing.make(operator.db, operator.keyring, file, phrase, show))

    made = operate(data_dir, work)
    if as_json:
        print_json(made)
        return
    say(f"Written to {made['path']}: {made['rows']} rows of {made['tables']} tables, {made['bytes']} bytes.")
    say(f"To restore it, these root keys must be there: {'; '.join(made['root_keys'])}. 'keybearer key backup' keeps them.")


@backups.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(help="What 'keybearer backup' wrote.")],
    *,
    passphrase_stdin: PassphraseOnStdin = False,
    despite_broken_audit: Annotated[
        bool, typer.Option("--despite-broken-audit", help="Restore although the audit trail in the backup does not verify.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into an empty database, of either kind, and prove it. The root key must be there first."""
    try:
        from keybearer.cli import operator  # noqa: PLC0415  # the server extra
    except ImportError as error:
        raise need_server_extra(error) from error
    settings = config.load(data_dir=data_dir)
    phrase = _phrase() if passphrase_stdin else None
    with bar(quiet=as_json) as show:
        done = asyncio.run(operator.restore(settings, file, phrase, show, despite_broken_audit=despite_broken_audit))
    if as_json:
        print_json(asdict(done))
        return
    say(f"Restored {done.rows} rows of {done.tables} tables as they were at {done.made_at}.")
    say(f"Proved: {done.sampled} values open, {done.records} entries of the audit trail verify.")
    if done.unreadable:
        print(f"warning: {done.unreadable} value(s) do not open, as before.", file=sys.stderr)  # noqa: T201  # what the operator must know
    if done.audit != "ok":
        print(f"warning: the audit trail does not verify: {done.audit}", file=sys.stderr)  # noqa: T201  # likewise
    say("Tokens and shares are as they were then: revoke what was revoked since. People sign in again.")


def _phrase() -> Wrapper:
    from keybearer.crypto.kms import passphrase  # noqa: PLC0415  # the server extra

    text = str(typer.prompt("Passphrase", hide_input=True)) if sys.stdin.isatty() else sys.stdin.readline()
    return passphrase.parse(text, named="The passphrase")
