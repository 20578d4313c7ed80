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


def install(app: FastAPI) -> None:
    """Answer every error of the application as a problem."""
    app.add_exception_handler(KeybearerError, deliberate)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


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


async def deliberate(_: Request, error: Exception) -> JSONResponse:
    """Answer a deliberate error, and log what is the server's own fault."""
    assert isinstance(error, KeybearerError)  # noqa: S101  # registered for this class only
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("request failed", code=error.code, reason=error.message)
    return response(error)


async def _validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for this class only
    problems = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return response(errors.InvalidJson())
    fields = tuple(FieldError(_path(problem["loc"]), str(problem["msg"])) for problem in problems)
    return response(errors.Invalid(fields=fields))


def _path(location: tuple[int | str, ...]) -> str:
    """``("body", "name")`` → ``name``; a query parameter keeps its name too."""
    return ".".join(str(part) for part in location if part not in {"body", "query", "path", "header"}) or "body"


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for this class only
    known: dict[int, KeybearerError] = {
        404: errors.NotFound("There is no such page or route.", hint="The API is described at /api/openapi.json."),
        405: errors.MethodNotAllowed(hint="The API is described at /api/openapi.json."),
    }
    return response(known.get(error.status_code) or errors.InvalidRequest(str(error.detail)))


async def _unexpected(_: Request, error: Exception) -> JSONResponse:
    log.error("unexpected error", exc_info=error)
    return response(KeybearerError("Something went wrong on the server.", hint="Its log has the details."))
