"""One request, decided: which provider, which API, which model, what bytes. Pure: values in, a ``Plan`` or an error out.

``read`` takes from the body what decides, ``plan`` decides, ``compose`` gives the body that goes on. A plan knows nothing of the body
but that: all requests to one route that name the same model, streamed or not, have the same plan.
"""

from __future__ import annotations

import re
from typing import Final, Literal
from urllib.parse import quote

import msgspec

from keybearer.catalog import OPENAI, Api, Provider, Registry
from keybearer.errors import FieldError, Invalid, InvalidRequest, ModelUnknown, UnsupportedMediaType
from keybearer.gateway.body import Document, check_object, rename_inside
from keybearer.gateway.paths import Headers, Route, dialect_of, is_gateway_path, route

__all__ = ["Document", "Headers", "Plan", "Route", "compose", "dialect_of", "is_gateway_path", "plan", "read", "route"]

_JSON_TYPES: Final = frozenset({b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"})
_JSON_TYPE: Final = re.compile(rb'application/json[ \t]*(?:;[ \t]*charset[ \t]*=[ \t]*"?utf-?8"?[ \t]*)?;?[ \t]*', re.IGNORECASE)
_NAMED_INSIDE: Final = frozenset({"embedContent", "batchEmbedContents", "countTokens"})  # their bodies repeat the path's model
_ASKABLE: Final = frozenset({"chat.completions", "completions"})  # where OpenAI defines stream_options.include_usage


class Plan(msgspec.Struct, frozen=True):
    """What is to be sent, and what its answer will be like."""

    dialect: str
    operation: str
    method: bytes
    provider: Provider | None
    """``None`` where the gateway answers itself (``local``)."""
    api: Api | None
    asked: str
    """The model as the client names it; empty where the request names none."""
    model: str
    """As the provider names it."""
    streamed: bool
    path: bytes
    """The upstream request target: path and query."""
    asks_usage: bool
    """The provider must be asked for the usage event at the stream's end."""
    local: Literal["models"] | None = None


def read(route: Route, body: bytes, content_type: bytes) -> Document | None:
    """What decides in a body, where something does. ``body`` is whole, ``content_type`` the header's value (empty: none).

    Raises ``InvalidJson``, ``UnsupportedMediaType``, ``Invalid``, ``InvalidRequest``.
    """
    if not route.needs_body:
        if body:
            raise InvalidRequest("This request takes no body.", hint="Send it without a body.")
        return None
    if content_type not in _JSON_TYPES:
        _check_content_type(content_type)
    if route.model is None:
        return Document(body)
    check_object(body)
    return None


def plan(route: Route, document: Document | None, registry: Registry) -> Plan:
    """Decide one request. ``document``: what ``read`` gave. Raises ``ModelUnknown``, ``ModelAmbiguous``, ``Invalid``."""
    if route.is_local:
        return Plan(route.dialect, route.operation, route.method, None, None, "", "", False, b"", False, "models")
    name = route.model if document is None else document.head.model
    if isinstance(name, str):
        found, model = registry.locate(name, route.provider)
    elif route.needs_body and route.needs_model:
        raise Invalid("The body names no model.", fields=(FieldError("model", "is missing"),))
    else:
        found, name, model = registry.get(route.provider or OPENAI), "", ""
    provider, api = _api(route, found)
    streamed = route.streamed if document is None else document.head.stream is True
    path = provider.roots[api.dialect] + route.suffix
    if route.model is not None:
        path += quote(model, safe="/:@").encode("ascii") + route.tail
    if route.query:
        path += b"?" + route.query
    asks_usage = streamed and api.asks_usage and route.operation in _ASKABLE
    return Plan(route.dialect, route.operation, route.method, provider, api, name, model, streamed, path, asks_usage)


def compose(planned: Plan, body: bytes, document: Document | None) -> tuple[bytes, bool]:
    """The body that goes on, and whether the stream will end with a usage event that the client did not ask for.

    Such an event is taken out on the way back (``dialect.UsageHider``). Raises ``Invalid``.
    """
    if document is None:
        if planned.model != planned.asked and planned.operation in _NAMED_INSIDE:
            body = rename_inside(body, planned.asked, planned.model)
        return body, False
    if planned.model != planned.asked:
        document.rename(planned.model)
    registered = None if planned.provider is None else planned.provider.registered
    if registered is not None and registered.parameters:
        document.put_defaults(registered.parameters)
    hide_usage = planned.asks_usage and document.ask_usage()
    return document.spliced(), hide_usage


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
