"""One request, decided: which provider, which API, which model, what bytes. Pure: values in, a ``Plan`` or an error out."""

from __future__ import annotations

import re
from typing import Final, Literal
from urllib.parse import quote

import msgspec

from keybearer.catalog import OPENAI, Api, Provider, Registry
from keybearer.errors import FieldError, Invalid, InvalidRequest, ModelUnknown, UnsupportedMediaType
from keybearer.gateway.body import Document, check_object, rename_inside
from keybearer.gateway.paths import Headers, Route, dialect_of, is_gateway_path, route

__all__ = ["Headers", "Plan", "Route", "dialect_of", "is_gateway_path", "plan", "route"]

_JSON_TYPES: Final = frozenset({b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"})
_JSON_TYPE: Final = re.compile(rb'application/json[ \t]*(?:;[ \t]*charset[ \t]*=[ \t]*"?utf-?8"?[ \t]*)?;?[ \t]*', re.IGNORECASE)
_ASKABLE: Final = frozenset({"chat.completions", "completions"})  # where OpenAI defines stream_options.include_usage


class Plan(msgspec.Struct, frozen=True):
    """What is to be sent, and what its answer will be like."""

    dialect: str
    operation: str
    method: bytes
    provider: Provider | None
    """``None`` where the gateway answers itself (``local``)."""
    api: Api | None
    model: str
    """As the provider names it; empty where the request names none."""
    streamed: bool
    path: bytes
    """The upstream request target: path and query."""
    body: bytes
    hide_usage: bool
    """The client did not ask for the usage event that the stream will end with: take it out (``dialect.UsageHider``)."""
    local: Literal["models"] | None = None


def plan(route: Route, body: bytes, content_type: bytes, registry: Registry) -> Plan:
    """Decide one request. ``body`` is whole, ``content_type`` the header's value (empty: none).

    Raises ``InvalidJson``, ``UnsupportedMediaType``, ``Invalid``, ``InvalidRequest``, ``ModelUnknown``, ``ModelAmbiguous``.
    """
    if route.needs_body:
        if content_type not in _JSON_TYPES:
            _check_content_type(content_type)
    elif body:
        raise InvalidRequest("This request takes no body.", hint="Send it without a body.")
    if route.is_local:
        return Plan(route.dialect, route.operation, route.method, None, None, "", False, b"", b"", False, "models")
    if route.model is not None:
        return _plan_by_path(route, body, registry, route.model)
    if not route.needs_body:
        provider, api = _api(route, registry.get(route.provider or OPENAI))
        return _sent(route, provider, api, "", body)
    return _plan_by_body(route, body, registry)


def _plan_by_body(route: Route, body: bytes, registry: Registry) -> Plan:
    """The model stands in the body: OpenAI's and Anthropic's operations."""
    document = Document(body)
    name = document.head.model
    if isinstance(name, str):
        found, model = registry.locate(name, route.provider)
    elif route.needs_model:
        raise Invalid("The body names no model.", fields=(FieldError("model", "is missing"),))
    else:
        found, model = registry.get(route.provider or OPENAI), ""
    provider, api = _api(route, found)
    if isinstance(name, str) and model != name:
        document.rename(model)
    return _sent(route, provider, api, model, document)


def _plan_by_path(route: Route, body: bytes, registry: Registry, name: str) -> Plan:
    """The model stands in the path: Gemini's operations, and one model's description."""
    found, model = registry.locate(name, route.provider)
    provider, api = _api(route, found)
    if route.needs_body:
        check_object(body)
        if model != name and route.operation in {"embedContent", "batchEmbedContents", "countTokens"}:
            body = rename_inside(body, name, model)
    return _sent(route, provider, api, model, body)


def _sent(route: Route, provider: Provider, api: Api, model: str, body: bytes | Document) -> Plan:
    streamed, hide_usage = route.streamed, False
    if isinstance(body, Document):
        streamed = body.head.stream is True
        if streamed and api.asks_usage and route.operation in _ASKABLE:
            hide_usage = body.ask_usage()
        body = body.spliced()
    path = provider.roots[api.dialect] + route.suffix
    if route.model is not None:
        path += quote(model, safe="/:@").encode("ascii") + route.tail
    if route.query:
        path += b"?" + route.query
    return Plan(route.dialect, route.operation, route.method, provider, api, model, streamed, path, body, hide_usage)


def _api(route: Route, provider: Provider) -> tuple[Provider, Api]:
    """The provider's API in the dialect that the client speaks. Raises ``ModelUnknown``: nothing is translated."""
    api = provider.apis.get(route.dialect)
    if api is None:
        spoken = ", ".join(sorted(provider.apis))
        raise ModelUnknown(
            f"{provider.display_name} cannot be called in this API's format.",
            hint=f"It speaks: {spoken}. For 'openai', call POST /v1/chat/completions with the model '{provider.name}/…'.",
        )
    return provider, api


def _check_content_type(content_type: bytes) -> None:
    if not _JSON_TYPE.fullmatch(content_type):
        sent = content_type[:80].decode("ascii", "replace") if content_type else "none"
        shown = "".join(character if character.isprintable() else "?" for character in sent)
        raise UnsupportedMediaType(f"The content type is '{shown}'; this route takes JSON.")
