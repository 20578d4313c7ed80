"""Errors as RFC 9457 problem details, with ``code``, ``hint``, and ``fields`` where fields are wrong.

Nothing a caller sent as a value is repeated: a mistyped key must not come back in an error.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from keybearer import errors
from keybearer.api.gate import OPEN
from keybearer.audit.refusals import Refusal, cut, harmless, is_refusal
from keybearer.domain import Caller, Client
from keybearer.errors import FieldError, KeybearerError

log = structlog.get_logger(__name__)


class Problem(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    """Stable: programs may rely on it."""
    hint: str = ""
    """What to do next."""
    fields: list[dict[str, str]] | None = None
    """For each wrong field its dotted path and what is wrong with it."""


RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {"model": Problem, "description": "An error", "content": {"application/problem+json": {}}}
}


KINDS: tuple[type[Exception], ...] = (KeybearerError, RequestValidationError, HTTPException, Exception)
"""What an application can raise; the last is a mistake of ours."""


def install(app: FastAPI) -> None:
    """Answer every error of the application as a problem."""
    for kind in KINDS:
        app.add_exception_handler(kind, answer)


def response(error: KeybearerError) -> JSONResponse:
    """Build the answer for a deliberate error."""
    fields = [{"field": wrong.field, "message": wrong.message} for wrong in error.fields] or None
    problem = Problem(
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.message,
        code=error.code,
        hint=error.hint,
        fields=fields,
    )
    # Said here too: the answer to an unexpected error passes no middleware.
    headers = {"cache-control": "no-store", "content-security-policy": "default-src 'none'", "x-content-type-options": "nosniff"}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    if isinstance(error, errors.Unauthenticated):
        headers["www-authenticate"] = 'Bearer realm="keybearer"'
    return JSONResponse(problem.model_dump(exclude_none=True), error.status, headers, "application/problem+json")


async def answer(request: Request, error: Exception) -> JSONResponse:
    """Answer any error as a problem; whoever is turned away is on record."""
    note_refusal(request, error)
    return response(told(error))


def note_refusal(request: Request, error: Exception) -> None:
    """Have a refusal recorded, unless who refused has done so."""
    if not isinstance(error, KeybearerError) or not is_refusal(error) or request.url.path in OPEN:
        return
    caller: Caller | None = request.scope.get("state", {}).get("caller")
    route = request.scope.get("route")
    secret_id = harmless(str(request.path_params.get("secret_id", "")))
    others = (harmless(str(value)) for value in request.path_params.values())
    refusal = Refusal(
        "secret.refuse" if secret_id else "api.refuse",
        error.code,
        caller.client if caller else Client(request.client.host if request.client else "", user_agent_of(request)),
        caller.user_id if caller else None,
        (caller.token_id if caller else None) or "",
        secret_id or next((found for found in others if found), ""),
        cut({"route": f"{request.method} {route.path if route else ''}".strip()}),
    )
    request.app.state.services.refusals.note(refusal)


def user_agent_of(request: Request) -> str:
    """Return what a request says of its program."""
    return request.headers.get("user-agent", "")[:256]


def told(error: Exception) -> KeybearerError:
    """What callers are told of an error; what is the server's own fault is logged."""
    match error:
        case KeybearerError():
            if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                log.warning("request failed", code=error.code, reason=error.message)
            return error
        case RequestValidationError():
            problems = error.errors()
            if any(problem["type"] == "json_invalid" for problem in problems):
                return errors.InvalidJson()
            return errors.Invalid(fields=tuple(FieldError(_path(found["loc"]), str(found["msg"])) for found in problems))
        case HTTPException(status_code=HTTPStatus.NOT_FOUND):
            return errors.NotFound("There is no such page or route.", hint="The API is described at /api/openapi.json.")
        case HTTPException(status_code=HTTPStatus.METHOD_NOT_ALLOWED):
            return errors.MethodNotAllowed(hint="The API is described at /api/openapi.json.")
        case HTTPException():
            return errors.InvalidRequest(str(error.detail))
    log.error("unexpected error", exc_info=error)
    return KeybearerError("Something went wrong on the server.", hint="Its log has the details.")


def _path(location: tuple[int | str, ...]) -> str:
    """``("body", "name")`` → ``name``; a query parameter keeps its name too."""
    return ".".join(str(part) for part in location if part not in {"body", "query", "path", "header"}) or "body"
