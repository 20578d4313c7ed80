"""``/import`` and ``/export``: secrets brought in from files, and taken out again by who has just proved who they are."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field, SecretStr

from keybearer.api.authentication import CurrentCaller, CurrentServices
from keybearer.api.schemas import Answer, Request
from keybearer.api.secrets import secret_bytes
from keybearer.crypto import legacy
from keybearer.domain import Caller
from keybearer.errors import Invalid
from keybearer.vault.transfer.imports import Imports, Options, Outcome, Report
from keybearer.vault.transfer.items import CONTENT_LIMIT, Format, Progress, unwatched

router = APIRouter(tags=["transfer"])

Iterations = Annotated[int, Field(ge=1, le=legacy.MOST_ITERATIONS)]


class Encryption(Request):
    """How the values of a file are encrypted, and with what they open. Nothing of it is kept."""

    scheme: Annotated[
        Literal["fernet", "pbkdf2-fernet", "pbkdf2-aes-256-gcm"],
        Field(description="Fernet tokens; Fernet under a key derived for each user; AES-256-GCM under a derived key."),
    ]
    keys: Annotated[tuple[SecretStr, ...], Field(max_length=20, description="Of `fernet`: any of them may be the one.")] = ()
    passphrase: Annotated[SecretStr | None, Field(description="Of the others: what keys are derived from.")] = None
    salt: Annotated[
        str, Field(max_length=1000, description="`{user_id}` stands for the item's own; empty: items bring theirs.")
    ] = ""
    salt_encoding: legacy.Encoding = "utf8"
    iterations: Iterations = 100_000
    digest: legacy.Digest = "sha256"
    layout: Annotated[tuple[legacy.Part, ...], Field(max_length=4, description="Order of the parts of AES-256-GCM.")] = (
        "iv",
        "tag",
        "ciphertext",
    )
    encoding: Literal["base64", "hex"] = "base64"
    aad: Annotated[str, Field(max_length=1000, description="Additional authenticated data; `{user_id}` as in salt.")] = ""
    iv_bytes: Annotated[int, Field(ge=legacy.LEAST_IV, le=legacy.MOST_IV)] = 16
    salt_bytes: Annotated[int, Field(ge=1, le=128)] = 16


class ImportRequest(Request):
    """A file to be imported, or the server's own environment."""

    format: Annotated[Format | Literal["environment"], Field(description="`environment`: the server's own; administrators only.")]
    content: Annotated[SecretStr, Field(max_length=CONTENT_LIMIT, description="The file's text. Never answered back.")] = (
        SecretStr("")
    )
    encryption: Encryption | None = None
    dry_run: Annotated[bool, Field(description="Say what would happen, and change nothing.")] = False
    replace: Annotated[bool, Field(description="Secrets of the same name get the file's value as a new version.")] = False
    skip_failed: Annotated[bool, Field(description="Leave out what cannot be stored; else nothing is stored then.")] = False
    keep_unknown: Annotated[bool, Field(description="Store what is nobody's key as custom secrets.")] = False
    save_anyway: Annotated[bool, Field(description="Save although formats look wrong.")] = False
    system: Annotated[bool, Field(description="As the system's; administrators only.")] = False
    team_id: Annotated[UUID | None, Field(description="As a team's; its owners and admins only.")] = None


class ImportResult(Answer):
    """What became of one item of a file, or would."""

    place: Annotated[str, Field(description="Where it stands in the file.")]
    label: Annotated[str, Field(description="Its name there; empty where that might be a value.")]
    kind: Literal["secret", "model"]
    outcome: Outcome
    provider: str
    name: str
    preview: Annotated[str, Field(description="Of the value, as listings show it; empty for what is no secret here.")] = ""
    reason: str


class ImportAnswer(Answer):
    """What became of a file, or would. No value is in it."""

    dry_run: bool
    applied: Annotated[bool, Field(description="Whether the items were stored (in a dry run: would be). False: nothing changed.")]
    counts: dict[str, int]
    results: list[ImportResult]


def answer_of(report: Report) -> ImportAnswer:
    """Show a report."""
    results = [ImportResult.model_validate(result) for result in report.results]
    return ImportAnswer(dry_run=report.dry_run, applied=report.applied, counts=report.counts(), results=results)


def reader_of(wanted: Encryption | None) -> legacy.Reader | None:
    """Make the reader of an encrypted file. Raises ``Invalid``."""
    if wanted is None:
        return None
    if wanted.scheme == "fernet":
        return legacy.Fernet([secret_bytes(key) for key in wanted.keys])
    if wanted.passphrase is None:
        raise Invalid.of("encryption.passphrase", "is required")
    how = legacy.Derivation(secret_bytes(wanted.passphrase), wanted.salt, wanted.salt_encoding, wanted.iterations, wanted.digest)
    if wanted.scheme == "pbkdf2-fernet":
        return legacy.UserFernet(how)
    return legacy.AesGcm(
        how,
        layout=wanted.layout,
        encoding=wanted.encoding,
        aad=wanted.aad,
        iv_bytes=wanted.iv_bytes,
        salt_bytes=wanted.salt_bytes,
    )


async def run(imports: Imports, caller: Caller, body: ImportRequest, progress: Progress = unwatched) -> ImportAnswer:
    """Import what a request, or a command on the server, brings."""
    names = ("dry_run", "replace", "skip_failed", "keep_unknown", "save_anyway", "system", "team_id")
    options = Options(**{name: getattr(body, name) for name in names})
    if body.format == "environment":
        return answer_of(await imports.environment(caller, options, progress))
    reader = reader_of(body.encryption)
    return answer_of(await imports.run(caller, body.format, body.content.get_secret_value(), reader, options, progress))


@router.post("/import")
async def import_secrets(body: ImportRequest, caller: CurrentCaller, services: CurrentServices) -> ImportAnswer:
    """Import a file as one transaction: all of it, or nothing. Importing it again changes nothing."""
    return await run(services.imports, caller, body)


class ExportRequest(Request):
    """All of one's own secrets, with their values."""

    format: Format
    password: Annotated[
        SecretStr, Field(max_length=4096, description="One's own again; for people. A token needs `secrets:read` instead.")
    ] = SecretStr("")


class LeftOutAnswer(Answer):
    """A secret that is not in an export, and why."""

    provider: str
    name: str
    reason: str


class ExportAnswer(Answer):
    """A file with values. Keep it as you would keep the keys."""

    format: Format
    count: int
    left_out: list[LeftOutAnswer]
    content: str


@router.post("/export")
async def export_secrets(body: ExportRequest, caller: CurrentCaller, services: CurrentServices) -> ExportAnswer:
    """Hand out all of one's own secrets, on record one by one; to a token only those that it could fetch."""
    if caller.session_id is not None:
        await services.users.prove(caller, "secret.export", body.password.get_secret_value())
    made = await services.exports.run(caller, body.format)
    left_out = [LeftOutAnswer.model_validate(each) for each in made.left_out]
    return ExportAnswer(format=body.format, count=made.count, left_out=left_out, content=made.content.reveal().decode())
