"""The page of the access log: what was done with one's keys, by secret, action, outcome and time; and as a file."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from fastapi.responses import Response

from keybearer.api.authentication import CurrentServices
from keybearer.api.records import audit_answer
from keybearer.console.forms import an_id, start_of_day
from keybearer.console.names import secret_names, user_names
from keybearer.console.pages import CurrentVisitor, render
from keybearer.errors import KeybearerError

router = APIRouter(include_in_schema=False)
Asked = Annotated[str, Query(max_length=200)]

ROWS = 50
ACTIONS = (
    "secret.use", "secret.create", "secret.update", "secret.rotate", "secret.test", "secret.share", "secret.reveal",
    "secret.import", "secret.export", "secret.delete", "secret.restore", "secret.purge", "secret.refuse", "token.create",
    "token.delete", "session.sign_in",
)  # fmt: skip
"""Offered as one types; others can be asked for, too."""
OUTCOMES = ("ok", "unknown", "upstream_error", "failed", "aborted", "refused", "forbidden")


@router.get("/access-log")
async def access_log(
    visitor: CurrentVisitor,
    services: CurrentServices,
    *,
    secret: Asked = "",
    action: Asked = "",
    outcome: Asked = "",
    provider: Asked = "",
    model: Asked = "",
    workflow: Asked = "",
    since: Asked = "",
    until: Asked = "",
    cursor: str | None = None,
) -> Response:
    """Show what was done with one's keys, all of it or what is asked for."""
    asked = {"secret": secret, "action": action, "outcome": outcome, "provider": provider, "model": model}
    asked |= {"workflow": workflow, "since": since, "until": until}
    wanted = {name: text.strip() for name, text in asked.items() if text.strip()}
    shown: dict[str, Any] = {"page": "/access-log", "asked": asked, "wanted": wanted, "actions": ACTIONS, "outcomes": OUTCOMES}
    shown |= {
        "secret_names": await secret_names(services, visitor.caller),
        "user_names": await user_names(services, visitor.caller),
    }
    try:
        narrowed = narrowing(wanted)
    except KeybearerError as error:
        nothing: dict[str, Any] = {"records": [], "next_cursor": None, "download": ""}
        return render("access_log.html", status=error.status, **visitor.shown, **shown, **nothing, error=error)
    log = await audit_answer(services, visitor.caller, limit=ROWS, cursor=cursor, **narrowed)
    download = urlencode({name: str(value) for name, value in narrowed.items()})
    return render("access_log.html", **visitor.shown, **shown, records=log.items, next_cursor=log.next_cursor, download=download)


def narrowing(wanted: Mapping[str, str]) -> dict[str, Any]:
    """What the page asks for, as the API takes it; ``until`` is a day that still counts. Raises ``Invalid``."""
    narrowed: dict[str, Any] = {name: text for name, text in wanted.items() if name not in {"secret", "since", "until"}}
    if "secret" in wanted:
        narrowed["secret_id"] = an_id(wanted["secret"], "secret")
    if "since" in wanted:
        narrowed["since"] = start_of_day(wanted["since"], "since")
    if "until" in wanted:
        narrowed["until"] = min(start_of_day(wanted["until"], "until"), _LAST_DAY) + timedelta(days=1)
    return narrowed


_LAST_DAY = datetime(9999, 12, 30, tzinfo=UTC)
