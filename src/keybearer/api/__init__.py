"""The REST API under ``/api/v1``: routes by noun, errors as RFC 9457 problem details.

``problems``        how errors are answered
``authentication``  who calls: access token or session cookie; CSRF
``gate``            asking that before a body is read
``records``         audit and usage records as answers show them
``schemas``         what requests and answers hold; ``account_schemas`` and ``registry_schemas`` have those about people and providers
``auth`` ``me`` ``providers`` ``models`` ``secrets`` ``fetch`` ``chat`` ``teams`` ``tokens`` ``usage`` ``budgets`` ``audit``
``checkpoints`` ``users`` ``keys`` ``transfer`` ``health``   the routes
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI

from keybearer import __version__
from keybearer.api import (
    audit,
    auth,
    budgets,
    chat,
    checkpoints,
    fetch,
    gate,
    health,
    keys,
    me,
    models,
    problems,
    providers,
    secrets,
    teams,
    tokens,
    transfer,
    usage,
    users,
)
from keybearer.api.authentication import current_caller
from keybearer.errors import KeybearerError

VERSION = __version__


def description() -> dict[str, Any]:
    """What the OpenAPI document says of the API as a whole."""
    return {
        "version": VERSION,
        "description": "The vault's REST API. Errors are RFC 9457 problem details with a stable `code` and a `hint`.",
        "license_info": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    }


def install(app: FastAPI) -> None:
    """Mount all routes and error handlers."""
    problems.install(app)
    app.add_middleware(
        gate.Gate, covers=gate.needs_caller, ask=current_caller, refusals=(KeybearerError,), answer=problems.answer
    )
    v1 = APIRouter(prefix="/api/v1", responses=problems.RESPONSES)
    for routes in (
        auth,
        me,
        providers,
        models,
        fetch,
        secrets,
        teams,
        tokens,
        usage,
        budgets,
        audit,
        checkpoints,
        users,
        keys,
        transfer,
    ):
        v1.include_router(routes.router)
    v1.include_router(teams.shares)
    app.include_router(v1)
    app.include_router(chat.router, responses=problems.RESPONSES)
    app.include_router(health.router)
