"""One request, decided: which provider, which API, which model, what bytes. Pure: values in, a ``Plan`` or an error out.

``read`` takes from the body what decides, ``plan`` decides, ``compose`` gives the body that goes on. A plan knows nothing of the body
but that: all requests to one route that name the same model, streamed or not, have the same plan.
"""

from __future__ import annotations

import re
from typing import Final, Literal
from urllib.parse import quote

import msgspec

from keybearer.catalog import HTTP, OPENAI, Api, Provider, Registry
from keybearer.errors import FieldError, Invalid, InvalidRequest, ModelUnknown, ProviderUnknown, UnsupportedMediaType
from keybearer.gateway.body import Document, check_object, rename_inside
from keybearer.gateway.endpoints import Metering, Route, Takes
from keybearer.gateway.form import Form, is_form
from keybearer.gateway.paths import Headers, dialect_of, is_gateway_path, is_probe, route

__all__ = [
    "Document",
    "Form",
    "Headers",
    "Plan",
    "Route",
    "compose",
    "dialect_of",
    "is_gateway_path",
    "is_probe",
    "plan",
    "read",
    "rerouted",
    "route",
]

_JSON_TYPES: Final = frozenset({b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"})
_JSON_TYPE: Final = re.compile(
    # No white space could be two parts' of it: of 60 kB it would be tried in as many ways as that has pairs.
    rb'application/json[ \t]*(?:;[ \t]*(?:charset[ \t]*=[ \t]*"?utf-?8"?[ \t]*(?:;[ \t]*)?)?)?',
    re.IGNORECASE,
)
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
    local: Literal["models", "probe"] | None = None
    metering: Metering = "answer"
    call: str = ""
    """The path that the catalogue's rules for shared keys are asked about; empty: they know of no such call."""
    takes: Takes = "json"


def read(route: Route, body: bytes, content_type: bytes) -> Document | Form | None:
    """What decides in a body, where something does. ``body`` is whole, ``content_type`` the header's value (empty: none).

    Raises ``InvalidJson``, ``UnsupportedMediaType``, ``Invalid``, ``InvalidRequest``.
    """
    takes = route.takes
    if takes == "json":
        if content_type not in _JSON_TYPES:
            _check_content_type(content_type)
    elif takes == "nothing":
        if body:
            raise InvalidRequest("This request takes no body.", hint="Send it without a body.")
        return None
    elif takes == "anything":
        return None
    elif takes == "form" or is_form(content_type):
        return Form(body, content_type)
    else:
        _check_content_type(content_type)
    if route.model is None or route.from_base:
        return Document(body)
    check_object(body)
    return None


def plan(route: Route, document: Document | Form | None, registry: Registry) -> Plan:
    """Decide one request. ``document``: what ``read`` gave. Raises ``ModelUnknown``, ``ModelAmbiguous``, ``Invalid``."""
    if route.local:
        return Plan(route.dialect, route.operation, route.method, None, None, "", "", False, b"", False, route.local)
    if route.operation == HTTP:
        return _passed(route, registry)
    name = document.head.model if document is not None and route.model is None else route.model
    if isinstance(name, str):
        found, model = registry.locate(name, route.provider)
    elif route.needs_model:
        raise Invalid("The body names no model.", fields=(FieldError("model", "is missing"),))
    else:
        found, name, model = registry.get(route.provider or OPENAI), "", ""
    provider, api = _api(route, found)
    streamed = route.streamed if document is None else document.head.stream is True
    path = (provider.base if route.from_base else provider.roots[api.dialect]) + route.suffix
    call = route.call or route.suffix
    if route.model is not None:
        named = quote(model, safe="/:@").encode("ascii") + route.tail
        path += named
        call = route.call or call + named
    if route.query:
        path += b"?" + route.query
    return Plan(
        route.dialect,
        route.operation,
        route.method,
        provider,
        api,
        # What stands in the path was written there: nothing in the body is to be renamed.
        model if route.from_base else name,
        model,
        streamed,
        path,
        asks_usage=streamed and api.asks_usage and route.operation in _ASKABLE,
        metering=route.metering,
        call=call.decode("ascii"),
        takes=route.takes,
    )


def _passed(route: Route, registry: Registry) -> Plan:
    """``/p/{provider}/…``: the provider's own path after its base URL. Raises ``ProviderUnknown``."""
    provider = registry.get(route.provider or "")
    if not provider.apis:
        raise ProviderUnknown(f"{provider.display_name} is not reached by HTTP.", hint="See GET /api/v1/providers.")
    # The longest root that the path lies under is the API that is called; of two equal ones the first.
    below = [api for api in provider.apis.values() if _is_below(provider.base + route.suffix, provider.roots[api.dialect])]
    api = max(below, key=lambda api: len(provider.roots[api.dialect]), default=next(iter(provider.apis.values())))
    path = provider.base + route.suffix
    call = path[len(provider.roots[api.dialect]) :].decode("ascii") if below else ""
    if route.query:
        path += b"?" + route.query
    return Plan(
        api.dialect,
        route.operation,
        route.method,
        provider,
        api,
        "",
        "",
        streamed=False,
        path=path,
        asks_usage=False,
        metering="nothing",
        call=call,
        takes=route.takes,
    )


def _is_below(path: bytes, root: bytes) -> bool:
    return path.startswith(root) and (not root or path[len(root) : len(root) + 1] == b"/")


def rerouted(planned: Plan, provider: Provider, model: str) -> Plan:
    """The same chat at another provider of OpenAI's dialect, where its model has another name."""
    api = provider.apis[OPENAI]
    query = planned.path.partition(b"?")[2]
    path = provider.roots[OPENAI] + b"/chat/completions" + (b"?" + query if query else b"")
    asks_usage = planned.streamed and api.asks_usage
    return msgspec.structs.replace(planned, provider=provider, api=api, model=model, path=path, asks_usage=asks_usage)


def compose(planned: Plan, body: bytes, document: Document | Form | None) -> tuple[bytes, bool]:
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
    if route.from_base and provider.name != route.provider:
        raise ModelUnknown(f"This path is {route.provider}'s own.", hint="Call POST /v1/chat/completions for other providers.")
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
