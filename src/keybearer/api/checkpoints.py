"""``/audit`` beyond the access log: signed checkpoints of it, proofs under them, and the log as a file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from keybearer.access import policy
from keybearer.access.attempts import attempt, record_alone
from keybearer.api.audit import aware
from keybearer.api.authentication import CurrentCaller, CurrentServices
from keybearer.audit import archive, export, tree
from keybearer.audit.access_log import AccessLog
from keybearer.domain import Caller, ManagementRecord, Scope
from keybearer.errors import NotFound
from keybearer.services import Services
from keybearer.store.db import Actor
from keybearer.store.queries import audit as records
from keybearer.store.queries import tree as queries
from keybearer.store.queries.audit import Filter

router = APIRouter(prefix="/audit", tags=["audit"])

ExportFormat = Literal["jsonl", "csv", "archive"]
EXPORTED = "audit.export"


class CheckpointAnswer(BaseModel):
    """The newest signed checkpoint."""

    checkpoint: str
    """A C2SP signed note: the log's name, its size, its root, the signature."""
    size: int
    at: datetime
    public_key: str
    """``name+id+base64``: note it down elsewhere, it is what checkpoints are checked with."""
    pushed_size: int
    """Size of the last checkpoint that was pushed elsewhere; 0: none was."""
    push_error: str
    """Why the last attempt to push failed; empty: it did not."""


class ProofAnswer(BaseModel):
    """That a record is in the log of the checkpoint (RFC 6962): ``hashes`` lead from the leaf's hash to the root."""

    writer_id: UUID
    seq: int
    index: int
    d: str
    """Base64. The leaf is writer id (16 bytes) | seq (8, big-endian) | d; its hash SHA-256(00 | leaf)."""
    leaf_hash: str
    hashes: list[str]
    checkpoint: str


class ConsistencyAnswer(BaseModel):
    """That the log of the first size is the beginning of that of the second (RFC 6962)."""

    first: int
    second: int
    hashes: list[str]


@router.get("/checkpoint")
async def newest_checkpoint(caller: CurrentCaller, services: CurrentServices) -> CheckpointAnswer:
    """Return the newest checkpoint and the key that it is signed with."""
    policy.require(caller, Scope.AUDIT_READ)
    async with services.db.read(Actor.system()) as tx:
        row, note = await queries.get(tx), await queries.latest_note(tx)
    if row is None or note is None:
        raise NotFound("Nothing is sealed yet.", hint="Records are sealed within a minute; ask again.")
    return CheckpointAnswer(
        checkpoint=note.note,
        size=note.size,
        at=note.at,
        public_key=str(await services.sealer.verifier()),
        pushed_size=row.pushed_size,
        push_error=row.push_error if caller.is_admin else "",
    )


@router.get("/consistency")
async def consistency_proof(
    caller: CurrentCaller,
    services: CurrentServices,
    first: Annotated[int, Query(alias="from", ge=1, le=2**62)],
    second: Annotated[int, Query(alias="to", ge=1, le=2**62)],
) -> ConsistencyAnswer:
    """Prove that nothing was changed between two checkpoints."""
    policy.require(caller, Scope.AUDIT_READ)
    async with services.db.read(Actor.system()) as tx:
        hashes = await tree.consistency(tx, first, second)
    return ConsistencyAnswer(first=first, second=second, hashes=_encoded(hashes))


@router.get("/{writer_id}/{seq}/proof")
async def inclusion_proof(writer_id: UUID, seq: int, caller: CurrentCaller, services: CurrentServices) -> ProofAnswer:
    """Prove that a record which the caller may see is in the log."""
    policy.require(caller, Scope.AUDIT_READ)
    wanted = Filter(None if caller.is_admin else caller.user_id)
    async with services.db.read(policy.actor_of(caller)) as tx:
        row = await records.visible(tx, wanted, writer_id, seq) if 0 < seq < 2**62 else None
    if row is None:
        raise NotFound
    async with services.db.read(Actor.system()) as tx:
        proof = await tree.inclusion(tx, writer_id, seq, row.d)
    d, leaf, *hashes = _encoded([row.d, proof.leaf, *proof.hashes])
    return ProofAnswer(writer_id=writer_id, seq=seq, index=proof.index, d=d, leaf_hash=leaf, hashes=hashes, checkpoint=proof.note)


@router.get("/export", response_class=StreamingResponse)
async def export_log(
    caller: CurrentCaller,
    services: CurrentServices,
    *,
    form: Annotated[ExportFormat, Query(alias="format")] = "jsonl",
    user_id: UUID | None = None,
    secret_id: UUID | None = None,
    action: Annotated[str | None, Query(max_length=64)] = None,
    outcome: Annotated[str | None, Query(max_length=40)] = None,
    provider: Annotated[str | None, Query(max_length=64)] = None,
    model: Annotated[str | None, Query(max_length=200)] = None,
    workflow: Annotated[str | None, Query(max_length=200)] = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> StreamingResponse:
    """Stream the access log as JSON lines or CSV; ``archive``: the whole sealed log, for administrators, to verify anywhere."""
    async with attempt(services.db, EXPORTED, caller, detail=(("format", form),)):
        policy.require(caller, Scope.AUDIT_READ)
        if form == "archive":
            policy.require_admin(caller)
    wanted = Filter(
        None,
        secret_id=secret_id,
        user_id=user_id,
        action=action,
        outcome=outcome,
        since=aware(since),
        until=aware(until),
        provider=provider,
        model=model,
        workflow=workflow,
    )
    await record_alone(services.db, ManagementRecord(EXPORTED, caller, "", detail=(("format", form),)))
    name = f"keybearer-audit-{datetime.now(UTC):%Y%m%d-%H%M%S}.{'csv' if form == 'csv' else 'jsonl'}"
    media_type = archive.MEDIA_TYPE if form == "archive" else export.MEDIA_TYPES[form]
    headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
    return StreamingResponse(await _begun(_chunks(services, caller, wanted, form)), media_type=media_type, headers=headers)


async def _chunks(services: Services, caller: Caller, wanted: Filter, form: ExportFormat) -> AsyncIterator[bytes]:
    if form == "archive":
        async for chunk in archive.write(services.db, await services.sealer.verifier()):
            yield chunk
    else:
        async for chunk in export.lines(AccessLog(services.db), caller, wanted, form):
            yield chunk


async def _begun(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Have the first part before the answer begins, so that what is refused is answered with an error."""
    first = await anext(chunks, b"")

    async def all_of_them() -> AsyncIterator[bytes]:
        yield first
        async for chunk in chunks:
            yield chunk

    return all_of_them()


def _encoded(hashes: list[bytes]) -> list[str]:
    return [b64encode(each).decode() for each in hashes]
