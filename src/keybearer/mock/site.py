"""From a whole request to the script of its answer: route, key, behaviour, operation, faults. Pure but for the given time."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from keybearer.mock import behaviour as behaviours
from keybearer.mock import keys, refusal, routes
from keybearer.mock.behaviour import PLAIN, Behaviour, BehaviourError
from keybearer.mock.wire import Answer, Call, Exchange, ProviderError, Request, json_answer, script

_OPTIONAL_MODELS = {"moderations": "omni-moderation-latest"} | dict.fromkeys(
    ("images.generations", "images.edits"), "gpt-image-1"
)
REDIRECTED = "/_mock/redirected"


@dataclass(frozen=True, slots=True)
class Options:
    """How a mock provider is set up."""

    keys: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Accepted keys by provider name; a provider without an entry accepts any key that holds ``kbtest-``."""
    record: int = 1000
    """How many of the last requests are kept; 0: none, for benchmarks."""
    certificate: Path | None = None
    """PEM certificate chain: serve HTTPS."""
    private_key: Path | None = None
    """PEM private key, where the certificate's file has none."""

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return "http" if self.certificate is None else "https"


def parse_keys(given: list[str]) -> dict[str, frozenset[str]]:
    """``provider=key`` texts to accepted keys by provider. Raises ``ValueError``."""
    found: dict[str, set[str]] = defaultdict(set)
    for text in given:
        provider, _, key = text.partition("=")
        if provider not in routes.PROVIDERS or not key:
            message = f"--key {provider}=…: needs one of {', '.join(routes.PROVIDERS)}, and a key"
            raise ValueError(message)
        found[provider].add(key)
    return {provider: frozenset(keys) for provider, keys in found.items()}


def answer(request: Request, options: Options, now: float) -> Exchange:
    """Decide what to play for a request. ``now`` is Unix time, for dates in headers. Never raises: refusals are answers."""
    try:
        route = routes.find(request, options.keys)
    except ProviderError as refused:
        provider, dialect = routes.guess_dialect(request)
        plain = refusal.answer(provider, dialect, refused)
        return Exchange(script(plain, request), plain.status, provider)
    call = Call(route.provider, route.dialect, route.name, route.model, {}, request, PLAIN, route.query, "")
    try:
        call = _understood(call, route, options)
        said = _said(call, route, options, now)
    except ProviderError as refused:
        said = refusal.answer(call.provider, call.dialect, refused)
    except BehaviourError as error:
        said = refusal.answer(call.provider, call.dialect, ProviderError(404, str(error)))
    asked = call.behaviour
    # What holds a date is not the same a second later.
    constant = not asked.is_error
    return Exchange(script(said, request, asked), said.status, call.provider, call.operation, call.model, constant)


def _understood(call: Call, route: routes.Route, options: Options) -> Call:
    key = keys.check(route, call.request, options.keys)
    document = _document(call.request) if route.takes in {"json", "document"} else {}
    model = call.model
    if route.takes in {"json", "form"} and not model:
        told = _field(call.request, b"model") if route.takes == "form" else document.get("model")
        named = told or _OPTIONAL_MODELS.get(route.name)
        if not isinstance(named, str) or not named:
            raise ProviderError(400, "you must provide a model parameter")
        model = named
    return replace(call, key=key, document=document, model=model, behaviour=_behaviour(model, key))


def _said(call: Call, route: routes.Route, options: Options, now: float) -> Answer:
    if call.behaviour.redirect:
        host = call.request.header("host") or "localhost"
        return json_answer({"redirect": True}, 307, (("location", f"{options.scheme}://{host}{REDIRECTED}"),))
    if call.behaviour.is_error:
        return refusal.asked_for(call, now)
    return route.operation(call)


def _behaviour(model: str, key: str) -> Behaviour:
    """Ask the model's name first; a key may ask too, for calls that name no model."""
    asked = behaviours.of_model(model)
    return asked if asked != PLAIN else behaviours.of_key(key)


def _field(request: Request, name: bytes) -> str:
    """The text of a form's field; empty: there is none. Read as leniently as a provider might. Raises ``ProviderError``."""
    if not (request.header("content-type") or "").lower().startswith("multipart/form-data"):
        raise ProviderError(415, "Unsupported content type: send multipart/form-data.")
    found = re.search(rb'name="?' + name + rb'"?[^\n]*\r?\n(?:[^\n]+\n)*?\r?\n([^\r\n]*)', request.body)
    return found[1].decode("utf-8", "replace") if found else ""


def _document(request: Request) -> dict[str, Any]:
    kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ProviderError(415 if kind else 400, f"Unsupported content type {kind!r}: send application/json.")
    try:
        document = msgspec.json.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProviderError(400, f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(document, dict):
        raise ProviderError(400, "The JSON body of your request must be an object.")
    return document
