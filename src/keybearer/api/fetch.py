"""``POST /secrets/resolve``, described. It is answered before a request comes here (``gateway.fetch``): as fast as the gateway."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from keybearer.api.authentication import CurrentCaller
from keybearer.domain import SecretType
from keybearer.errors import InvalidRequest

router = APIRouter(prefix="/secrets", tags=["secrets"])


class SecretWanted(BaseModel):
    """Which secret's value is wanted: `id` alone; or `provider`, with `secret_type` and `name` if need be."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"oneOf": [{"required": ["id"]}, {"required": ["provider"]}]})

    id: UUID | None = None
    provider: Annotated[str | None, Field(max_length=64, description="Its name, for example `openai`.")] = None
    secret_type: Annotated[SecretType | None, Field(description="Without it: the provider's own.")] = None
    name: Annotated[str | None, Field(min_length=1, max_length=200, description="Without it: the first by priority.")] = None


class FetchedSecret(BaseModel):
    """A secret's value, and which it is. The headers `x-keybearer-request-id`, `-key-source` and `-secret-id` are its receipt."""

    id: UUID
    provider: str
    secret_type: SecretType
    name: str
    version: int
    expires_at: datetime | None
    value: str


@router.post("/resolve")
async def fetch_secret(body: SecretWanted, caller: CurrentCaller) -> FetchedSecret:
    """Fetch the value of a `fetchable` secret, for server-side code that truly needs it.

    By access token with the scope `secrets:read`, never by session. The first that serves is given: one's own by priority, then
    one's teams', then the system's where both sides allow that. What a person lends to a team is not given out. Each fetch is on
    record as a use before the value leaves; `x-keybearer-workflow` and `x-keybearer-node` are recorded with it. At most 4096 bytes.
    """
    del body, caller
    raise InvalidRequest("This is served by its exact path alone.", hint="Send POST /api/v1/secrets/resolve, without a query.")
