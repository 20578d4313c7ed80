"""The pages of import and export.

The server only draws the forms. What they bring, the browser sends to the API itself: a file's text stays in the page until it is
imported, is never part of a form that browsers keep, and no page is ever made of it.
"""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from keybearer.api.authentication import CurrentServices
from keybearer.console.pages import CurrentVisitor, render
from keybearer.gateway.limits import Limits
from keybearer.vault.transfer.items import ITEMS_LIMIT

router = APIRouter(include_in_schema=False)

_FILE_BYTES = Limits().api_body_bytes // 2
"""The file's text goes to the API in JSON, where its quotes and line breaks take two bytes each."""


@router.get("/import")
async def import_page(visitor: CurrentVisitor, services: CurrentServices) -> Response:
    """Show the form that takes a file, previews it and imports it."""
    teams = [team for team in await services.teams.list(visitor.caller) if team.leads]
    limits = {"kilobytes": _FILE_BYTES // 1024, "entries": f"{ITEMS_LIMIT:,}"}
    is_admin = visitor.caller.is_admin
    return render("import.html", **visitor.shown, page="/", teams=teams, limits=limits, limit=_FILE_BYTES, is_admin=is_admin)


@router.get("/export")
async def export_page(visitor: CurrentVisitor) -> Response:
    """Show the form that asks for the password and saves all of one's secrets as a file."""
    return render("export.html", **visitor.shown, page="/")
