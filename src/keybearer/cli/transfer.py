"""``keybearer import`` and ``export``: over HTTP as the token's person, or with ``--user`` or ``--system`` on the server's own data."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from keybearer import config
from keybearer.cli.operate import OPERATOR, DataDir, operate
from keybearer.cli.output import AsJson, print_json, print_rows, say
from keybearer.cli.progress import Show, bar
from keybearer.cli.use import client
from keybearer.errors import Conflict, Invalid, SettingsInvalid

if TYPE_CHECKING:
    from keybearer.cli.operator import Operator

FormatName = Literal["auto", "env", "json", "csv"]
RESULT_COLUMNS = ("place", "label", "outcome", "provider", "name", "reason")
TIMEOUT_S = 300.0
"""A server may take a while over a large file whose keys must be derived."""

transfers = typer.Typer()
"""Without a name: its commands are the root's own."""


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(transfers)


@transfers.command("import")
def import_secrets(
    file: Annotated[Path | None, typer.Argument(help="A .env, JSON or CSV file; - reads standard input.")] = None,
    *,
    form: Annotated[FormatName, typer.Option("--format", help="auto goes by the file's name.")] = "auto",
    from_environment: Annotated[
        bool,
        typer.Option("--from-environment", help="Well-known variables of the server's own environment; administrators only."),
    ] = False,
    openbao: Annotated[
        str, typer.Option(help="Address of an OpenBao or Vault whose KV engine (v2) is read, with BAO_TOKEN or VAULT_TOKEN.")
    ] = "",
    mount: Annotated[str, typer.Option(help="Where the KV engine is mounted.")] = "secret",
    path: Annotated[str, typer.Option(help="Only what is under this path of the KV engine.")] = "",
    encryption: Annotated[
        Path | None,
        typer.Option(help="JSON file that says how values are encrypted: the fields of 'encryption' in docs/import.md."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen; change nothing.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Give secrets of the same name the file's value.")] = False,
    skip_failed: Annotated[bool, typer.Option("--skip-failed", help="Leave out what cannot be stored; else nothing is.")] = False,
    keep_unknown: Annotated[bool, typer.Option("--keep-unknown", help="Store what is nobody's key, as custom secrets.")] = False,
    save_anyway: Annotated[bool, typer.Option("--save-anyway", help="Save although formats look wrong.")] = False,
    user: Annotated[str, typer.Option(help="On the server: for this person, by e-mail address.")] = "",
    system: Annotated[bool, typer.Option("--system", help="As the system's. Without --over-http: on the server.")] = False,
    over_http: Annotated[bool, typer.Option("--over-http", help="With --system: through the API, as an administrator.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Import secrets: all of a file or nothing. Exits 1 where nothing was stored that should have been."""
    if sum([file is not None, from_environment, bool(openbao)]) != 1:
        raise Invalid("Name one source: a file, --from-environment or --openbao.")
    body: dict[str, Any] = {
        "dry_run": dry_run,
        "replace": replace,
        "skip_failed": skip_failed,
        "keep_unknown": keep_unknown,
        "save_anyway": save_anyway,
        "system": system,
    }
    body |= {"format": "environment"} if from_environment else _source(file, form, openbao, mount, path)
    if encryption is not None:
        body["encryption"] = _object(encryption)
    with bar(quiet=as_json) as show:
        if user or (system and not over_http):
            report = operate(data_dir, lambda operator: _on_the_server(operator, user, body, show))
        else:
            show("the server imports", 0, 0)
            with client(TIMEOUT_S) as api:
                report = api.request("POST", "/import", json=body)
    _tell(report, as_json=as_json)


@transfers.command("export")
def export_secrets(
    file: Annotated[Path, typer.Argument(help="A new file (mode 0600); - writes to standard output.")],
    *,
    form: Annotated[Literal["json", "csv", "env"], typer.Option("--format", help="What to write.")] = "json",
    user: Annotated[str, typer.Option(help="On the server: this person's, by e-mail address.")] = "",
    system: Annotated[bool, typer.Option("--system", help="On the server: the system's.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Export secrets with their values, on record. A token gets what is fetchable; on the server all."""
    with bar(quiet=as_json) as show:
        if user or system:
            made = operate(data_dir, lambda operator: _export(operator, user, form, show))
        else:
            show("the server exports", 0, 0)
            with client(TIMEOUT_S) as api:
                made = api.request("POST", "/export", json={"format": form})
    content = made.pop("content")
    if str(file) == "-":
        sys.stdout.write(content)
        return
    try:
        with os.fdopen(
            os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8", newline=""
        ) as out:
            out.write(content)
    except OSError as error:
        raise Invalid(f"{file} cannot be written: {error.strerror}.", hint="Name a new file.") from None
    if as_json:
        print_json(made)
        return
    say(f"Exported {made['count']} secret(s) to {file}. Whoever has this file has the keys.")
    if made["left_out"]:
        print_rows(made["left_out"], ("provider", "name", "reason"), as_json=False)


async def _export(operator: Operator, user: str, form: Literal["json", "csv", "env"], show: Show) -> dict[str, Any]:
    caller = operator.caller(await operator.user(user)) if user else OPERATOR
    made = await operator.exports().run(caller, form, system=not user, progress=show)
    left_out = [{"provider": each.provider, "name": each.name, "reason": each.reason} for each in made.left_out]
    return {"format": form, "count": made.count, "left_out": left_out, "content": made.content.reveal().decode()}


async def _on_the_server(operator: Operator, user: str, body: dict[str, Any], show: Show) -> dict[str, Any]:
    from pydantic import ValidationError  # noqa: PLC0415  # the server extra

    from keybearer.api import transfer  # noqa: PLC0415  # likewise

    caller = operator.caller(await operator.user(user)) if user else OPERATOR
    try:
        request = transfer.ImportRequest.model_validate(body)
    except ValidationError as error:
        wrong = ", ".join(sorted({".".join(str(part) for part in each["loc"]) for each in error.errors(include_input=False)}))
        raise Invalid(f"Not of its form: {wrong}.") from None
    return (await transfer.run(operator.imports(), caller, request, show)).model_dump(mode="json")


def _tell(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        print_rows(report["results"], RESULT_COLUMNS, as_json=False)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in report["counts"].items())
        done = "Would import" if report["dry_run"] else "Imported"
        say(
            f"{done}: {counts}."
            if report["applied"]
            else f"Nothing {'would be' if report['dry_run'] else 'was'} stored: {counts}."
        )
    if not report["applied"]:
        raise Conflict(
            "Some entries cannot be stored, so none was.",
            hint="Correct them; or --skip-failed leaves them out, --replace takes the file's values, --save-anyway odd formats.",
        )


def _source(file: Path | None, form: FormatName, openbao: str, mount: str, path: str) -> dict[str, Any]:
    if file is None:
        return {"format": "json", "content": _from_kv(openbao, mount, path)}
    if str(file) == "-":
        return {
            "format": "env" if form == "auto" else form,
            "content": sys.stdin.buffer.read().decode("utf-8", "surrogateescape"),
        }
    known: dict[str, FormatName] = {".json": "json", ".csv": "csv"}
    return {"format": known.get(file.suffix.lower(), "env") if form == "auto" else form, "content": _text(file)}


def _from_kv(address: str, mount: str, path: str) -> str:
    from keybearer.client.kv import Kv  # noqa: PLC0415  # brings an HTTP client that the operator's commands need not load

    token, namespace = config.kv_environment()
    if not token:
        raise SettingsInvalid("Neither BAO_TOKEN nor VAULT_TOKEN is set.", hint="Export a token that may list and read the path.")
    kv = Kv(address, token, mount=mount, namespace=namespace)
    try:
        return json.dumps({"secrets": kv.read_all(path)})
    finally:
        kv.close()


def _text(file: Path) -> str:
    try:
        return _decoded(file.read_bytes(), str(file))
    except OSError as error:
        raise Invalid(f"{file} cannot be read: {error.strerror}.") from None


def _decoded(raw: bytes, source: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        pass  # raised below: this error holds the bytes
    raise Invalid(f"{source} is not UTF-8 text.", hint="Convert it, for example with iconv.")


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(file))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Invalid(f"{file} is no JSON object.", hint='{"scheme": "fernet", "keys": ["…"]}')
    return found
