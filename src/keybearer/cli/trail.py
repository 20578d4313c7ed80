"""The audit trail on the server's own data: verifying, exporting, the newest checkpoint. An archive is verified without a server."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import typer

from keybearer.cli.operate import OPERATOR, DataDir, operate
from keybearer.cli.output import AsJson, print_json, say
from keybearer.cli.progress import bar
from keybearer.cli.serving import need_server_extra
from keybearer.errors import AuditBroken, Invalid, OperatorError

if TYPE_CHECKING:
    from keybearer.audit.notes import Verifier
    from keybearer.cli.operator import Operator

Form = Literal["jsonl", "csv", "archive"]
Checkpoints = Annotated[
    list[Path] | None, typer.Option("--checkpoint", help="File of checkpoints that were kept elsewhere; repeatable.")
]
PublicKey = Annotated[str, typer.Option(help="The log's public key as you noted it down: name+id+base64.")]

audits = typer.Typer(help="The audit trail.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(audits, name="audit")


# ---- verifying -------------------------------------------------------------------------------------------------------


@audits.command("verify")
def audit_verify(
    *,
    archive: Annotated[
        Path | None, typer.Option(help="Verify this file, made by 'audit export', instead of the server's data.")
    ] = None,
    proof: Annotated[
        Path | None, typer.Option(help="Verify this proof of one record: what GET /api/v1/audit/{writer_id}/{seq}/proof answers.")
    ] = None,
    consistency: Annotated[
        Path | None,
        typer.Option(help="With --proof: what GET /api/v1/audit/consistency answers for its size and a kept checkpoint's."),
    ] = None,
    checkpoint: Checkpoints = None,
    public_key: PublicKey = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Prove that no record is missing, changed or reordered; exits 1 and names the first wrong one otherwise.

    With --archive or --proof nothing but these files is looked at: no server, no database.
    """
    kept = checkpoint or []
    if proof is not None:
        report = _verify_proof(proof, consistency, kept, public_key)
    elif archive is not None:
        report = _verify_archive(archive, kept, public_key)
    else:
        report = operate(data_dir, lambda operator: _verify(operator, kept, public_key))
    if as_json:
        print_json(report)
    elif proof is not None:
        _say_proved(report)
    else:
        _say_report(report)
    if not report["ok"]:
        raise AuditBroken(str(report["problem"]))


def _say_proved(report: dict[str, Any]) -> None:
    say(f"Record {report['seq']} of writer {report['writer']} is in the log of {report['size']} records.")
    say(f"checkpoints kept elsewhere that tell of the same log: {report['compared']}")
    for note in report["notes"]:
        say(f"note: {note}")


def _say_report(report: dict[str, Any]) -> None:
    for writer in report.get("writers", ()):
        redacted = f"  {writer['redacted']} emptied by retention" if writer.get("redacted") else ""
        say(f"{writer['writer']}  {writer['records']} records  {writer['state']}{redacted}")
    tree = report["tree"]
    say(
        f"sealed: {tree['size']} records; checkpoints that agree: {tree['checkpoints']} of its own, {tree['pushed']} from elsewhere"
    )
    for note in report.get("notes", ()):
        say(f"note: {note}")
    say("The audit trail verifies." if report["ok"] else f"The audit trail does NOT verify: {report['problem']}")


async def _verify(operator: Operator, files: Sequence[Path], public_key: str) -> dict[str, Any]:
    """Walk every chain, then the tree."""
    from keybearer.audit import verify  # noqa: PLC0415  # the server extra
    from keybearer.audit.seal import Sealer  # noqa: PLC0415  # likewise
    from keybearer.audit.sealed import verify_tree  # noqa: PLC0415  # likewise

    verifier = await Sealer(operator.db, operator.keyring).verifier()
    if public_key and _verifier(public_key) != verifier:
        raise AuditBroken("The log in this database has another public key than the one given.")
    pushed, missing = _kept(files, operator.settings.audit_checkpoints)
    with _progress("records") as told:
        chains = await verify.verify(operator.db, operator.settings.journal_dir, told)
    with _progress("tree") as told:
        tree = await verify_tree(operator.db, verifier, pushed, told)
    report: dict[str, Any] = chains.as_dict()
    problems = [*chains.problems, *tree.problems]
    report |= {"ok": not problems, "problem": str(problems[0]) if problems else None, "tree": tree.as_dict()}
    report["notes"] = [*report["notes"], *missing]
    report["problems"] = [str(problem) for problem in problems]
    return report


def _kept(files: Sequence[Path], pushed_to: str) -> tuple[list[str], list[str]]:
    """Return the checkpoints in ``files`` and in the file that they are pushed to, and a note where that is gone."""
    if not pushed_to or "://" in pushed_to:
        return _notes(files), []
    own = Path(pushed_to)
    if not own.exists():
        return _notes(files), [f"{own}, where checkpoints are pushed to, is not there"]
    return _notes(list(dict.fromkeys([*files, own]))), []


def _verify_archive(archive: Path, files: Sequence[Path], public_key: str) -> dict[str, Any]:
    try:
        from keybearer.audit import archive as archives  # noqa: PLC0415  # the server extra
        from keybearer.audit.notes import NoteError  # noqa: PLC0415  # likewise
    except ImportError as error:
        raise need_server_extra(error) from error

    verifier = _verifier(public_key) if public_key else None
    try:
        with _opened(archive) as file, _progress("records") as told:
            tree, redacted = archives.verify(file, verifier, _notes(files), told)
    except NoteError as error:
        raise AuditBroken(f"{archive}: {error}.") from None
    notes = [] if verifier else ["the public key is the archive's own: give --public-key, as you noted it down"]
    if redacted:
        notes.append(f"{redacted} records were emptied by retention")
    if tree.later:
        notes.append(f"{tree.later} of the checkpoints are newer than the archive")
    problems = [str(problem) for problem in tree.problems]
    return {
        "ok": not problems,
        "problem": problems[0] if problems else None,
        "problems": problems,
        "notes": notes,
        "tree": tree.as_dict(),
    }


def _verify_proof(path: Path, consistency: Path | None, files: Sequence[Path], public_key: str) -> dict[str, Any]:
    try:
        from keybearer.audit import proof  # noqa: PLC0415  # the server extra
        from keybearer.audit.merkle import ProofError  # noqa: PLC0415  # likewise
        from keybearer.audit.notes import NoteError  # noqa: PLC0415  # likewise
    except ImportError as error:
        raise need_server_extra(error) from error

    if not public_key:
        raise Invalid.of("--public-key", "is required with --proof")
    contents = [_content(each) for each in (path, consistency) if each is not None]
    try:
        found = proof.check(contents[0], _verifier(public_key), _notes(files), contents[1] if consistency else None)
    except (ProofError, NoteError) as error:
        raise AuditBroken(f"{path}: {error}.") from None
    except ValueError:
        raise OperatorError(
            f"{path} or its --consistency is no answer of the API.", hint="Keep the answers as they came."
        ) from None
    left = f"{found.uncompared} of the checkpoints kept elsewhere are of other sizes: ask for the consistency with theirs"
    return {
        "ok": True,
        "problem": None,
        "writer": str(found.proof.writer_id),
        "seq": found.proof.seq,
        "size": found.size,
        "compared": found.compared,
        "notes": [left] if found.uncompared else [],
    }


def _content(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


def _verifier(public_key: str) -> Verifier:
    from keybearer.audit.notes import NoteError, Verifier  # noqa: PLC0415  # the server extra

    try:
        return Verifier.parse(public_key)
    except NoteError as error:
        raise Invalid(f"--public-key: {error}.", hint="'keybearer audit checkpoint' prints it.") from None


def _notes(files: Sequence[Path]) -> list[str]:
    """Read checkpoints kept elsewhere. Raises ``OperatorError`` for a file that cannot be read or holds none."""
    from keybearer.audit import notes  # noqa: PLC0415  # the server extra

    found: list[str] = []
    for path in files:
        with _opened(path) as file:
            some = notes.split(file.read().decode("utf-8", "replace"))
        if not some:
            raise OperatorError(f"{path} holds no checkpoint.", hint="It is what KEYBEARER_AUDIT_CHECKPOINTS writes.")
        found += some
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}.", hint="Check the path.") from None


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int], None]]:
    """Yield what is told how many more were done."""
    done = 0
    with bar() as show:
        show(what, done, 0)

        def told(more: int) -> None:
            nonlocal done
            done += more
            show(what, done, 0)

        yield told


# ---- exporting -------------------------------------------------------------------------------------------------------


@audits.command("export")
def audit_export(
    *,
    form: Annotated[
        Form, typer.Option("--format", help="jsonl and csv to read; archive: everything, to verify anywhere.")
    ] = "jsonl",
    output: Annotated[Path | None, typer.Option(help="File to write; default: standard output.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Write the audit trail to a file. The export is itself on record."""
    operate(data_dir, lambda operator: _export(operator, form, output))


async def _export(operator: Operator, form: Form, output: Path | None) -> None:
    from keybearer.access.attempts import record_alone  # noqa: PLC0415  # the server extra
    from keybearer.audit import archive, export  # noqa: PLC0415  # likewise
    from keybearer.audit.access_log import AccessLog  # noqa: PLC0415  # likewise
    from keybearer.audit.seal import Sealer  # noqa: PLC0415  # likewise
    from keybearer.domain import ManagementRecord  # noqa: PLC0415  # likewise
    from keybearer.store.queries.audit import Filter  # noqa: PLC0415  # likewise

    sealer = Sealer(operator.db, operator.keyring)
    await record_alone(operator.db, ManagementRecord("audit.export", OPERATOR, "", detail=(("format", form),)))
    if form == "archive":
        await sealer.seal(rests=False)
        await sealer.release()
        chunks: AsyncIterator[bytes] = archive.write(operator.db, await sealer.verifier())
    else:
        chunks = export.lines(AccessLog(operator.db), OPERATOR, Filter(None), form)
    try:
        with output.open("xb") if output else contextlib.nullcontext(sys.stdout.buffer) as file, _progress("pages") as told:
            async for chunk in chunks:
                file.write(chunk)
                told(1)
    except OSError as error:
        raise OperatorError(
            f"{output or 'standard output'} cannot be written: {error.strerror}.", hint="Name a new file."
        ) from None


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@audits.command("checkpoint")
def audit_checkpoint(*, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Print the newest signed checkpoint and the public key: keep both where nobody can reach them from here."""
    found = operate(data_dir, _newest)
    if as_json:
        print_json(found)
    else:
        say(f"{found['checkpoint']}\npublic key: {found['public_key']}")


async def _newest(operator: Operator) -> dict[str, Any]:
    from keybearer.audit.seal import Sealer  # noqa: PLC0415  # the server extra
    from keybearer.errors import NotFound  # noqa: PLC0415  # likewise
    from keybearer.store.db import Actor  # noqa: PLC0415  # likewise
    from keybearer.store.queries import tree as queries  # noqa: PLC0415  # likewise

    sealer = Sealer(operator.db, operator.keyring)
    await sealer.seal(rests=False)
    await sealer.release()
    async with operator.db.read(Actor.system()) as tx:
        note = await queries.latest_note(tx)
    if note is None:
        raise NotFound("Nothing is sealed yet.")
    return {"checkpoint": note.note, "size": note.size, "at": note.at, "public_key": str(await sealer.verifier())}
