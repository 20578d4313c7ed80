"""Answers of our own in the shape of the dialect that was called, and the one change to a provider's stream. Pure.

Sources: OpenAI API reference (error codes; streaming), Anthropic API (errors; streaming), Google API design guide (AIP-193)
and Gemini API (models); compared 2026-11-21.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, Final

import msgspec

from keybearer.catalog import ANTHROPIC, GEMINI, Registry
from keybearer.errors import (
    Forbidden,
    Frozen,
    Invalid,
    KeybearerError,
    KeyUnusable,
    ModelUnknown,
    NotFound,
    RateLimited,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UpstreamTimeout,
)
from keybearer.usage.search import USAGE, usage_at

JSON: Final = b"application/json"

_ANTHROPIC_TYPES: Final[tuple[tuple[type[KeybearerError], str], ...]] = (
    (Unauthenticated, "authentication_error"),
    (TooLarge, "request_too_large"),
    (RateLimited, "rate_limit_error"),
    (NotFound, "not_found_error"),
    (Forbidden, "permission_error"),
    (KeyUnusable, "permission_error"),
    (UpstreamTimeout, "timeout_error"),
    (Unavailable, "overloaded_error"),
)
_GOOGLE_STATUS: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "INVALID_ARGUMENT",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def error_body(dialect: str, error: KeybearerError, request_id: str) -> tuple[int, bytes, bytes]:
    """An error as that dialect's provider would answer it: status, content type and body, with our code and hint added."""
    return _status(error), JSON, msgspec.json.encode(_error(dialect, error, request_id))


def _status(error: KeybearerError) -> int:
    """Answer 400 for what our own API calls 422: no provider tells the two apart, and SDKs map 400 to a bad request."""
    return HTTPStatus.BAD_REQUEST if error.status == HTTPStatus.UNPROCESSABLE_ENTITY else error.status


def error_event(dialect: str, operation: str, error: KeybearerError, request_id: str) -> bytes:
    """An error in the middle of an event stream, as that dialect's SDKs understand it. Send it between two events only."""
    if operation == "responses":
        event = {"type": "error", "code": error.code, "message": _message(error), "param": None, "sequence_number": 0}
        return _event("error", {**event, "hint": error.hint, "request_id": request_id})
    name = "error" if dialect == ANTHROPIC else ""
    return _event(name, _error(dialect, error, request_id))


def models_body(
    dialect: str,
    registry: Registry,
    *,
    allowed_providers: frozenset[str] | None = None,
    allowed_models: frozenset[str] | None = None,
) -> bytes:
    """The models that a caller can name, as ``provider/model``, then aliases. ``allowed_…`` (the token's) ``None``: all."""
    named = {
        (provider.name, model.name): (
            provider,
            model,
            model.name if model.name.startswith(f"{provider.name}/") else f"{provider.name}/{model.name}",
        )
        for provider, model in registry.models()
        if allowed_providers is None or provider.name in allowed_providers
    }
    named = {key: entry for key, entry in named.items() if allowed_models is None or entry[2] in allowed_models}
    aliases = [(named[key][0], named[key][1], alias) for alias, key in registry.aliases.items() if key in named]
    shown = [*named.values(), *aliases]
    if dialect == ANTHROPIC:
        data = [{"type": "model", "id": name, "display_name": model.display_name} for _, model, name in shown]
        ends = {"first_id": shown[0][2] if shown else None, "last_id": shown[-1][2] if shown else None}
        return msgspec.json.encode({"data": data, "has_more": False, **ends})
    if dialect == GEMINI:
        return msgspec.json.encode(
            {"models": [{"name": f"models/{name}", "displayName": model.display_name} for _, model, name in shown]}
        )
    entries = [{"id": name, "object": "model", "created": 0, "owned_by": provider.name} for provider, _, name in shown]
    return msgspec.json.encode({"object": "list", "data": entries})


def _error(dialect: str, error: KeybearerError, request_id: str) -> dict[str, Any]:
    if dialect == ANTHROPIC:
        detail = {"type": _anthropic_type(error), "message": _message(error), "code": error.code, "hint": error.hint}
        return {"type": "error", "error": detail, "request_id": request_id}
    if dialect == GEMINI:
        return {"error": _google_error(error, request_id)}
    return {
        "error": {
            "message": _message(error),
            "type": _openai_type(error),
            "param": next((wrong.field for wrong in error.fields if wrong.field), None),
            # OpenAI's own code where SDKs and agents look for one.
            "code": "model_not_found" if isinstance(error, ModelUnknown) else error.code,
            "hint": error.hint,
            "request_id": request_id,
        }
    }


def _message(error: KeybearerError) -> str:
    """What is wrong and what to do: SDKs and the programs built on them often show nothing but the message."""
    return f"{error.message} {error.hint}".rstrip()


def _openai_type(error: KeybearerError) -> str:
    if isinstance(error, Unauthenticated):
        return "authentication_error"
    if isinstance(error, Forbidden | KeyUnusable):
        return "permission_error"
    if isinstance(error, RateLimited):
        return "rate_limit_error"
    return "invalid_request_error" if error.status < 500 else "server_error"  # noqa: PLR2004


def _anthropic_type(error: KeybearerError) -> str:
    for kind, name in _ANTHROPIC_TYPES:
        if isinstance(error, kind):
            return "api_error" if isinstance(error, Frozen) else name
    return "invalid_request_error" if error.status < 500 else "api_error"  # noqa: PLR2004


def _google_error(error: KeybearerError, request_id: str) -> dict[str, Any]:
    details: list[dict[str, Any]] = [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": error.code.upper(),
            "domain": "keybearer",
            "metadata": {"code": error.code, "hint": error.hint, "request_id": request_id},
        }
    ]
    if isinstance(error, Invalid) and error.fields:
        violations = [{"field": wrong.field, "description": wrong.message} for wrong in error.fields]
        details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations})
    if error.retry_after is not None:
        delay = f"{error.retry_after:g}s"
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    status = _GOOGLE_STATUS.get(_status(error), "INTERNAL")
    return {"code": _status(error), "message": _message(error), "status": status, "details": details}


def _event(name: str, data: dict[str, Any]) -> bytes:
    """One server-sent event. The data is one line: JSON escapes line breaks."""
    head = f"event: {name}\n".encode() if name else b""
    return b"".join((head, b"data: ", msgspec.json.encode(data), b"\n\n"))


# --- the usage event that the client did not ask for ------------------------------------------------------------------

_HELD_LIMIT: Final = 64 * 1024  # a usage event has some hundred bytes; what is longer is none and is let through
_BLANK_LINE: Final = b"\n\n"
"""Ends an event, with all providers we know. The standard has two more."""
_EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class _Chunk(msgspec.Struct):
    choices: msgspec.Raw = msgspec.Raw(b"null")
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


_CHUNK: Final = msgspec.json.Decoder(_Chunk)


class UsageHider:
    """Takes OpenAI's usage event (``usage`` an object, no ``choices``) out of a stream; every other byte passes as it came.

    An event is held back until its end has come, at most 64 kB: a client can do nothing with half an event.
    """

    __slots__ = ("_held", "_passing")

    def __init__(self) -> None:
        self._held = b""
        self._passing = False

    def feed(self, data: bytes) -> bytes:
        """What may go on to the client, now that ``data`` has come."""
        held = self._held
        if not held and not self._passing and data.endswith(_BLANK_LINE):
            at = usage_at(data)
            if at < 0:
                return data
            if b"\r" not in data:
                return self._judge_some(data, at)
        if self._passing or b"\r" in data or b"\r" in held:
            return self._feed_slowly(data)
        if held:
            data = held + data
        end = data.rfind(_BLANK_LINE, max(len(held) - 1, 0)) + len(_BLANK_LINE)
        if end < len(_BLANK_LINE):
            end = 0
        if len(data) - end > _HELD_LIMIT:
            self._held = b""
            return self._feed_slowly(data)
        data, self._held = data[:end], data[end:]
        at = usage_at(data)
        return data if at < 0 else self._judge_some(data, at)

    def finish(self) -> bytes:
        """What was held back when the stream ended."""
        held, self._held = self._held, b""
        return self._judge(held)

    def _feed_slowly(self, data: bytes) -> bytes:
        searched = max(len(self._held) - 3, 0)  # what was held has no end of an event, but may have a part of one
        data = self._held + data
        passed: list[bytes] = []
        at = 0
        for end in _EVENT_END.finditer(data, searched):
            passed.append(self._judge(data[at : end.end()]))
            at = end.end()
        rest = data[at:]
        if self._passing or len(rest) > _HELD_LIMIT:
            end_of_rest = len(rest.rstrip(b"\r\n"))  # line breaks stay: they may be the first half of the event's end
            passed.append(rest[:end_of_rest])
            self._passing, rest = True, rest[end_of_rest:]
        self._held = rest
        return b"".join(passed)

    def _judge_some(self, data: bytes, searched: int) -> bytes:
        """What passes of whole events whose lines end with a line feed alone: those that cannot state usage are not looked at."""
        passed: list[bytes] = []
        at = 0
        for match in USAGE.finditer(data, searched):
            if match.start() < at:
                continue
            before = data.rfind(_BLANK_LINE, at, match.start())
            start = at if before < 0 else before + 2
            end = data.index(_BLANK_LINE, match.end()) + 2
            passed += (data[at:start], self._judge(data[start:end]))
            at = end
        passed.append(data[at:])
        return b"".join(passed) if at else data

    def _judge(self, event: bytes) -> bytes:
        """What passes of a whole event, or of the rest of one whose beginning has passed."""
        passing, self._passing = self._passing, False
        if passing or len(event) > _HELD_LIMIT or not _is_usage(event):
            return event
        return event[: len(event) - len(event.lstrip(b"\r\n"))]


def _is_usage(event: bytes) -> bool:
    if USAGE.search(event) is None:
        return False
    data = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
    try:
        chunk = _CHUNK.decode(data)
    except (ValueError, RecursionError):
        return False
    if bytes(chunk.usage)[:1] != b"{" or bytes(chunk.error) != b"null":
        return False
    return bytes(chunk.choices).translate(None, b" \t\r\n") in {b"[]", b"null"}
