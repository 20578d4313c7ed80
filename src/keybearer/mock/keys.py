"""Which key a request brought, and whether it came in the provider's own header. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from keybearer.mock.routes import Route
from keybearer.mock.wire import ProviderError, Request

# Anthropic takes its API keys in either: its documentation says x-api-key, its SDK 2.x sends them as Bearer.
_HEADERS = {"openai": ("authorization",), "anthropic": ("x-api-key", "authorization"), "gemini": ("x-goog-api-key",)}
_PROVIDER_HEADERS = {"azure": ("api-key",)}
_CREDENTIAL_HEADERS = ("authorization", "x-api-key", "x-goog-api-key", "api-key")
_MARK = "kbtest-"
_SHORTEST_SHOWN = 12


def check(route: Route, request: Request, keys: Mapping[str, frozenset[str]]) -> str:
    """Return the key, if it is acceptable: one of ``keys`` for this provider, or, where none are given, any with ``kbtest-``.

    Raises ``ProviderError`` for a key that is missing, unknown, sent twice, or in a header or query of another dialect.
    """
    if route.dialect == "gemini" and route.name == "files.create" and "upload_id" in route.query:
        return ""  # the second half of an upload: its address is the permission
    own = _PROVIDER_HEADERS.get(route.provider, _HEADERS[route.dialect])
    misplaced = [name for name, _ in request.headers if name in _CREDENTIAL_HEADERS and name not in own]
    if misplaced or "key" in route.query:
        where = misplaced[0] if misplaced else "the query"
        raise ProviderError(401, f"Request had a credential in {where}; this provider expects it in {own[0]}.", "key_misplaced")
    sent = [(name, value) for name, value in request.headers if name in own]
    if not sent:
        if route.provider == "openrouter" and route.name == "models":
            return ""  # OpenRouter lists its models to everybody
        missing = "Method doesn't allow unregistered callers (callers without established identity)."
        message = missing if route.dialect == "gemini" else f"You didn't provide an API key. Send it in the header {own[0]}."
        raise ProviderError(403 if route.dialect == "gemini" else 401, message, "key_missing")
    name, key = sent[0]
    if name == "authorization":
        scheme, _, key = key.partition(" ")
        if scheme.lower() != "bearer":
            raise ProviderError(401, "You must send your API key as 'Authorization: Bearer KEY'.", "key_misplaced")
    if len(sent) > 1 or not _is_accepted(route.provider, key, keys):
        raise ProviderError(
            401, f"Incorrect API key provided: {_shown(key)}. API key not valid. Please pass a valid API key.", "key_invalid"
        )
    if route.dialect == "anthropic" and request.header("anthropic-version") is None:
        raise ProviderError(400, "anthropic-version: header is required")
    return key


def _is_accepted(provider: str, key: str, keys: Mapping[str, frozenset[str]]) -> bool:
    accepted = keys.get(provider)
    return key in accepted if accepted else _MARK in key


def _shown(key: str) -> str:
    return f"{key[:3]}****{key[-2:]}" if len(key) >= _SHORTEST_SHOWN else "****"
