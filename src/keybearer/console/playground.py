"""The page to chat with any model. The conversation is in the browser alone: each turn is sent as one call of ``POST /api/chat``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response

from keybearer.api.authentication import CurrentServices
from keybearer.console.pages import CurrentVisitor, render
from keybearer.domain import Caller
from keybearer.services import Services

router = APIRouter(include_in_schema=False)

REGISTERED = 200
"""Registered models that are offered; others can be typed."""


@router.get("/playground")
async def playground(
    visitor: CurrentVisitor, services: CurrentServices, model: Annotated[str, Query(max_length=300)] = ""
) -> Response:
    """Show an empty conversation."""
    offered = await _offered(services, visitor.caller)
    chosen = model or (offered[0] if offered else "")
    return render("playground.html", **visitor.shown, page="/playground", offered=offered, chosen=chosen)


async def _offered(services: Services, caller: Caller) -> list[str]:
    """Names of models that can chat and for which there is a key, as calls have them; one's registered ones first."""
    registered, _ = await services.models.list(caller, limit=REGISTERED)
    keyed = {view.name: view for view in await services.providers.list(caller) if view.has_api_key and view.category == "model"}
    can_chat = [model for model in registered if model.kind == "chat" and (model.has_own_key or model.provider in keyed)]
    named = [f"{model.provider}/{model.name}" for model in can_chat]
    kinds = {(each.provider, each.name): each.kind for each in services.models.templates()}
    for view in keyed.values():
        named += [f"{view.name}/{name}" for name in view.models if kinds.get((view.name, name), "chat") == "chat"]
    return list(dict.fromkeys(named))
