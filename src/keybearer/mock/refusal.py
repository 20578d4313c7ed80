"""Errors in each provider's own shape, from the first byte on and in mid-stream. Pure.

Shapes: OpenAI https://platform.openai.com/docs/guides/error-codes · Anthropic https://docs.anthropic.com/en/api/errors ·
Gemini https://ai.google.dev/gemini-api/docs/troubleshooting and google.rpc.Status · OpenRouter https://openrouter.ai/docs/api-reference/errors.
Two oddities are kept, because gateways stumble over them: Gemini and xAI answer 400 to a key they do not know, and Gemini's
OpenAI-compatible endpoint wraps its errors in an array.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any

import msgspec

from keybearer.mock.behaviour import PLAIN, Behaviour
from keybearer.mock.wire import Answer, Call, ProviderError, json_answer, sse

_MESSAGES = {
    400: "The request is invalid.",
    401: "The API key is not valid.",
    402: "Your credit balance is too low. Please add credits.",
    403: "Your API key may not use this resource.",
    404: "The model does not exist or you do not have access to it.",
    429: "Rate limit reached. Please try again later.",
    500: "The server had an error while processing your request.",
    503: "The model is overloaded. Please try again later.",
    529: "Overloaded",
}
_OPENAI = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    402: ("insufficient_quota", "insufficient_quota"),
    403: ("invalid_request_error", "permission_denied"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
}
_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_GEMINI = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
_RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
_TOO_MANY = 429
REQUEST_ID = "req_mock0000000000000000"


def asked_for(call: Call, now: float) -> Answer:
    """Make the error that the behaviour asks for, from the first byte on. ``now`` is Unix time, for dates in headers."""
    behaviour = call.behaviour
    status = behaviour.status
    if behaviour.overloaded:
        status = 529 if call.dialect == "anthropic" else 503
    elif behaviour.quota:
        status = {"anthropic": 400}.get(call.dialect, 402 if call.provider == "openrouter" else 429)
    message = _MESSAGES.get(status, "The server had an error while processing your request.")
    if behaviour.quota:
        message = "Your credit balance is too low to access the API. You exceeded your current quota, please check your plan."
    return answer(call.provider, call.dialect, ProviderError(status, message), behaviour, call.key, now)


def answer(
    provider: str, dialect: str, refused: ProviderError, behaviour: Behaviour = PLAIN, key: str = "", now: float = 0.0
) -> Answer:
    """``refused`` as this provider says it; with ``behaviour.echo_key`` its message repeats the key."""
    status = refused.status
    if refused.reason == "key_invalid" and (dialect == "gemini" or provider in {"gemini", "xai"}):
        status = 400
    document = _document(provider, dialect, refused, behaviour, _message(refused.message, behaviour, key))
    headers: tuple[tuple[str, str], ...] = (("request-id" if dialect == "anthropic" else "x-request-id", REQUEST_ID),)
    if status in {_TOO_MANY, 503, 529}:
        headers += _retry(provider, dialect, behaviour, now)
    if behaviour.echo_key:
        headers += (("x-echoed-credential", key),)
    return json_answer(document, status, headers)


def event(call: Call) -> bytes:
    """Make the error event that strikes in mid-stream, where the behaviour asks for one."""
    if call.behaviour.error_after is None:
        return b""
    status = 529 if call.dialect == "anthropic" else 503
    refused = ProviderError(status, _MESSAGES[status])
    document = _document(call.provider, call.dialect, refused, PLAIN, _message(refused.message, call.behaviour, call.key))
    if call.dialect == "anthropic":
        return sse(document, "error")
    if call.operation == "responses":
        error = document["error"]
        fields = {"type": "error", "code": "server_error", "message": error["message"], "param": None, "sequence_number": 0}
        return sse(fields, "error")
    if call.dialect == "gemini":
        if call.query.get("alt") == "sse":
            return sse(document, newline=b"\r\n")
        before = b",\r\n" if call.behaviour.error_after else b"["
        return before + msgspec.json.encode(document) + b"]"
    return sse(document)


def _message(message: str, behaviour: Behaviour, key: str) -> str:
    return f"{message} You sent: {key}" if behaviour.echo_key else message


def _document(provider: str, dialect: str, refused: ProviderError, behaviour: Behaviour, message: str) -> Any:
    if dialect == "anthropic":
        kind = _ANTHROPIC.get(refused.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": REQUEST_ID}
    if dialect == "gemini":
        return _google(refused, behaviour, message)
    if provider == "gemini":
        return [_google(refused, behaviour, message)]
    if provider == "openrouter":
        return {"error": {"code": refused.status, "message": message, "metadata": {"provider_name": "Mock"}}}
    if provider == "xai":
        return {
            "code": "Client specified an invalid argument" if refused.status < _TOO_MANY else "Try again later",
            "error": message,
        }
    kind, code = _OPENAI.get(refused.status, ("server_error", None))
    if behaviour.quota:
        kind, code = "insufficient_quota", "insufficient_quota"
    if refused.reason in {"path", "method", "key_missing"}:
        code = None
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _google(refused: ProviderError, behaviour: Behaviour, message: str) -> dict[str, Any]:
    status = 400 if refused.reason == "key_invalid" else refused.status
    error: dict[str, Any] = {"code": status, "message": message, "status": _GEMINI.get(status, "INTERNAL")}
    if refused.reason == "key_invalid":
        metadata = {"service": "generativelanguage.googleapis.com"}
        error["details"] = [{"@type": _ERROR_INFO, "reason": "API_KEY_INVALID", "domain": "googleapis.com", "metadata": metadata}]
    elif status == _TOO_MANY and behaviour.retry_form == "native":
        error["details"] = [{"@type": _RETRY_INFO, "retryDelay": f"{behaviour.retry_after:g}s"}]
    return {"error": error}


def _retry(provider: str, dialect: str, behaviour: Behaviour, now: float) -> tuple[tuple[str, str], ...]:
    """When to try again, in the form asked for or the provider's own: Gemini tells it in the body only."""
    seconds = behaviour.retry_after
    match behaviour.retry_form:
        case "seconds":
            return (("retry-after", f"{seconds:g}"),)
        case "date":
            return (("retry-after", formatdate(now + seconds, usegmt=True)),)
        case "ms":
            return (("retry-after-ms", f"{seconds * 1000:g}"),)
        case "none":
            return ()
    if dialect == "anthropic":
        reset = datetime.fromtimestamp(now + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        limits = (("anthropic-ratelimit-requests-remaining", "0"), ("anthropic-ratelimit-requests-reset", reset))
        return (("retry-after", f"{seconds:g}"), *limits)
    if provider == "gemini":
        return ()
    if provider == "openrouter":
        return (("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", f"{(now + seconds) * 1000:.0f}"))
    return (
        ("retry-after", f"{seconds:g}"),
        ("retry-after-ms", f"{seconds * 1000:g}"),
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", f"{seconds:g}s"),
    )
