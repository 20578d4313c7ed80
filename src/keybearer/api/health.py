"""``/healthz``: the process runs. ``/readyz``: it can serve: the database answers and revocations are heard."""

from __future__ import annotations

from fastapi import APIRouter

from keybearer.api.authentication import CurrentServices
from keybearer.errors import TrustLost

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Answer as long as the process runs."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(services: CurrentServices) -> dict[str, str]:
    """Answer 200 if calls can be served, 503 otherwise."""
    if not services.feed.is_trusted():
        raise TrustLost
    await services.db.ping()
    return {"status": "ready"}
