"""Reading ``providers.yaml``. Strict: an unknown field, a missing one or a bad pattern is a programming error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import msgspec
import yaml

from keybearer.catalog.keys import KeyCheck, check_key, detect
from keybearer.catalog.provider import (
    Api,
    Auth,
    AuthStyle,
    Category,
    KeyPattern,
    Model,
    ModelKind,
    Parameter,
    Place,
    Provider,
    TestCall,
)
from keybearer.catalog.sharing import NOT_SHARED, Call, Sharing, call_of
from keybearer.domain import SecretType
from keybearer.errors import ProviderUnknown


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    """What the file may hold, and nothing else."""


class _Api(_Strict):
    prefix: str
    auth: AuthStyle
    header: str = ""
    asks_usage: bool = False
    sharing: str = ""


class _Refused(_Strict):
    pattern: str
    reason: str


class _Test(_Strict):
    method: str
    path: str
    dialect: str
    body: dict[str, Any] | None = None
    base_url: str = ""


class _Parameter(_Strict):
    label: str
    pattern: str
    example: str


class _Place(_Strict):
    key_pattern: str
    base_url: str


class _Object(_Strict):
    creates: list[str] = []
    uses: list[str] = []
    yields: dict[str, str] = {}


class _Sharing(_Strict):
    free: list[str] = []
    objects: dict[str, _Object] = {}
    references: dict[str, str] = {}


class _Source(_Strict):
    """Where the facts of an entry come from, and when they were last compared with it (ISO date)."""

    url: str
    checked: str


class _Provider(_Strict):
    display_name: str
    category: Category
    logo: str
    sources: list[_Source]
    base_url: str = ""
    apis: dict[str, _Api] = {}
    test: _Test | None = None
    secret_type: SecretType = SecretType.API_KEY
    key_patterns: list[str] = []
    loose_patterns: list[str] = []
    refused_patterns: list[_Refused] = []
    parameters: dict[str, _Parameter] = {}
    places: list[_Place] = []
    models: dict[ModelKind, dict[str, str]] = {}
    model_patterns: list[str] = []
    keys_url: str = ""
    docs_url: str = ""
    headers: dict[str, str] = {}
    variables: list[str] = []


class _File(_Strict):
    sharing: dict[str, _Sharing]
    providers: dict[str, _Provider]


class Catalog:
    """The predefined providers, by name, in the file's order."""

    __slots__ = ("providers",)

    def __init__(self, providers: Mapping[str, Provider]) -> None:
        self.providers = MappingProxyType(dict(providers))

    @staticmethod
    @cache
    def load() -> Catalog:
        """The catalogue that comes with the package; read once."""
        text = files("keybearer.catalog").joinpath("providers.yaml").read_text(encoding="utf-8")
        return parse(text)

    def get(self, name: str) -> Provider:
        """The predefined provider of that name. Raises ``ProviderUnknown``."""
        try:
            return self.providers[name]
        except KeyError:
            raise ProviderUnknown from None

    def detect(self, value: str) -> tuple[str, ...]:
        """The providers whose key formats fit ``value``; exactly one: unambiguous."""
        return detect(self.providers.values(), value)

    def check_key(self, provider: Provider, value: str, secret_type: SecretType = SecretType.API_KEY) -> KeyCheck:
        """Check a value that is to be saved as ``provider``'s; see ``keys.check_key``."""
        return check_key(provider, value, self.providers.values(), secret_type)


def parse(text: str) -> Catalog:
    """A catalogue from YAML. Raises ``msgspec.ValidationError``, ``ValueError`` or ``re.error`` for what does not fit."""
    # The C loader reads the file in a tenth of the time, which is a part of every start; both are the safe ones.
    raw = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    found = msgspec.convert(raw, _File)
    shared = {name: _sharing(rules) for name, rules in found.sharing.items()} | {"": NOT_SHARED}
    return Catalog({name: _provider(name, entry, shared) for name, entry in found.providers.items()})


def _provider(name: str, entry: _Provider, shared: Mapping[str, Sharing]) -> Provider:
    made = Provider(
        name=name,
        display_name=entry.display_name,
        base_url=entry.base_url,
        apis=MappingProxyType({dialect: _api(dialect, api, shared) for dialect, api in entry.apis.items()}),
        secret_type=entry.secret_type,
        key_patterns=_patterns(entry.key_patterns),
        refused_patterns=tuple(KeyPattern(re.compile(known.pattern), known.reason) for known in entry.refused_patterns),
        test=None if entry.test is None else _test(entry.test),
        models=tuple(Model(model, shown, kind) for kind, models in entry.models.items() for model, shown in models.items()),
        model_patterns=tuple(re.compile(pattern) for pattern in entry.model_patterns),
        keys_url=entry.keys_url,
        docs_url=entry.docs_url,
        headers=tuple(entry.headers.items()),
        is_predefined=True,
        owner_id=None,
        category=entry.category,
        logo=entry.logo,
        loose_patterns=_patterns(entry.loose_patterns),
        parameters=tuple(
            Parameter(name, known.label, re.compile(known.pattern, re.ASCII), known.example)
            for name, known in entry.parameters.items()
        ),
        variables=tuple(entry.variables),
        places=tuple(Place(re.compile(place.key_pattern), place.base_url) for place in entry.places),
    )
    _check_addresses(made)
    return made


def _check_addresses(provider: Provider) -> None:
    """Templates have one parameter, in the host; places have one path: an operation's path is decided before the key is known."""
    parts = urlsplit(provider.base_url)
    named = [parameter.name for parameter in provider.parameters]
    if len(named) > 1 or (named and provider.places) or bool(provider.base_url) != bool(provider.apis):
        raise ValueError(f"{provider.name}: one parameter or several places, and an address where there are APIs")
    if provider.base_url.count("{") != len(named) or any(f"{{{name}}}" not in parts.netloc for name in named):
        raise ValueError(f"{provider.name}: a parameter stands once, in the host")
    if any(urlsplit(place.base_url).path != parts.path for place in provider.places):
        raise ValueError(f"{provider.name}: all places have the same path")
    if any(not parameter.pattern.fullmatch(parameter.example) for parameter in provider.parameters):
        raise ValueError(f"{provider.name}: an example is of its own form")
    if provider.test is not None and provider.test.dialect not in provider.apis:
        raise ValueError(f"{provider.name}: the test call is for an API that it has")


def _patterns(texts: list[str]) -> tuple[KeyPattern, ...]:
    return tuple(KeyPattern(re.compile(text)) for text in texts)


def _test(test: _Test) -> TestCall:
    body = "" if test.body is None else msgspec.json.encode(test.body).decode()
    return TestCall(test.method, test.path, test.dialect, body, test.base_url)


def _api(dialect: str, api: _Api, shared: Mapping[str, Sharing]) -> Api:
    header = {"bearer": "authorization", "none": ""}.get(api.auth, api.header)
    return Api(dialect, api.prefix, Auth(api.auth, header), api.asks_usage, shared[api.sharing])


def _sharing(rules: _Sharing) -> Sharing:
    def calls(texts: Mapping[str, list[str]], *, names_object: bool) -> tuple[tuple[str, Call], ...]:
        return tuple((kind, call_of(text, names_object=names_object)) for kind, listed in texts.items() for text in listed)

    named = {*rules.references.values(), *(kind for known in rules.objects.values() for kind in known.yields.values())}
    unknown = named - rules.objects.keys()
    if unknown:
        raise ValueError(f"references to objects that there are not: {', '.join(sorted(unknown))}")
    return Sharing(
        free=tuple(call_of(text) for text in rules.free),
        creates=calls({kind: known.creates for kind, known in rules.objects.items()}, names_object=False),
        uses=calls({kind: known.uses for kind, known in rules.objects.items()}, names_object=True),
        references=MappingProxyType(dict(rules.references)),
        yields=MappingProxyType({kind: MappingProxyType(known.yields) for kind, known in rules.objects.items()}),
    )
