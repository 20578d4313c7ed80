"""``/admin/keys``: every version of every key, what refers to it, and rotation, for administrators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field

from keybearer.api.authentication import CurrentCaller, CurrentServices
from keybearer.api.schemas import Answer, Request
from keybearer.errors import Invalid

router = APIRouter(prefix="/admin/keys", tags=["admin"])


class RootKeyAnswer(Answer):
    """One root key, never with the key itself."""

    id: UUID
    state: Literal["staged", "active", "retiring", "retired"]
    provider: str
    reference: str
    """Which key of the provider."""
    owner_keys: int
    """How many owner keys it seals."""
    created_at: datetime
    emptied_at: datetime | None
    """Of a retired one: since when it seals nothing."""


class OwnerKeysAnswer(Answer):
    """All owner keys of one version and state."""

    version: int
    state: Literal["active", "retired"]
    keys: int
    rows: int
    """How many values they seal."""


class KeyHolderAnswer(Answer):
    """A running process, and the newest root key that it has unwrapped."""

    host: str
    pid: int
    seen_at: datetime
    root_key_id: UUID | None
    problem: str
    """Why it cannot unwrap a newer one; empty: it can."""


class RotationAnswer(Answer):
    """How far a rotation is."""

    id: UUID
    kind: Literal["root", "owner", "owners"]
    state: Literal["running", "finished"]
    step: str
    provider: str
    root_key_id: UUID | None
    owner_id: UUID | None
    done: int
    total: int
    unreadable: int
    """Rows that did not open, and stay under the old key."""
    problem: str
    """What it waits for; empty: nothing."""
    created_at: datetime
    updated_at: datetime


class KeysAnswer(Answer):
    """The state of all keys."""

    root_keys: list[RootKeyAnswer]
    owner_keys: list[OwnerKeysAnswer]
    processes: list[KeyHolderAnswer]
    rotation: RotationAnswer | None
    """The one under way, else the last."""


class NewRotation(Request):
    """What to rotate: the root key, one owner's key, or every owner's."""

    kind: Literal["root", "owner", "owners"]
    to: Annotated[str | None, Field(max_length=32, description="Of kind root: the provider to move to; default: as now.")] = None
    owner_id: Annotated[UUID | None, Field(description="Of kind owner: a user, a team, or nil for the system.")] = None


@router.get("")
async def get_keys(caller: CurrentCaller, services: CurrentServices) -> KeysAnswer:
    """Show every version of every key, how many rows refer to it, and the rotation under way or last."""
    return KeysAnswer.model_validate(await services.rotations.status(caller))


@router.post("/rotate", status_code=202)
async def rotate_keys(body: NewRotation, caller: CurrentCaller, services: CurrentServices) -> RotationAnswer:
    """Begin a rotation; the servers work on it. `GET /api/v1/admin/keys` tells how far it is."""
    if (body.to is not None and body.kind != "root") or ((body.owner_id is not None) != (body.kind == "owner")):
        wrong = "to" if body.to is not None and body.kind != "root" else "owner_id"
        message = "does not go with this kind" if getattr(body, wrong) is not None else "is missing"
        raise Invalid.of(wrong, message)
    if body.kind == "root":
        return RotationAnswer.model_validate(await services.rotations.begin_root(caller, body.to))
    return RotationAnswer.model_validate(await services.rotations.begin_owners(caller, body.owner_id))
