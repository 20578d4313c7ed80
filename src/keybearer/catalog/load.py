"""Reading ``providers.yaml``. Strict: an unknown field, a missing one or a bad pattern is a programming error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import msgspec
import yaml

from keybearer.catalog.keys import KeyCheck, check_key, detect
from keybearer.catalog.provider import Api, Auth, AuthStyle, KeyPattern, Model, Provider, TestCall
from keybearer.domain import SecretType
from keybearer.errors import ProviderUnknown


class _Api(msgspec.Struct, forbid_unknown_fields=True):
    prefix: str
    auth: AuthStyle
    header: str = ""
    asks_usage: bool = False


class _Refused(msgspec.Struct, forbid_unknown_fields=True):
    pattern: str
    reason: str


class _Test(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    path: str
    dialect: str


class _Source(msgspec.Struct, forbid_unknown_fields=True):
    """Where the facts of an entry come from, and when they were last compared with it (ISO date)."""

    url: str
    checked: str


class _Provider(msgspec.Struct, forbid_unknown_fields=True):
    display_name: str
    base_url: str
    apis: dict[str, _Api]
    test: _Test
    sources: list[_Source]
    secret_type: SecretType = SecretType.API_KEY
    key_patterns: list[str] = []
    refused_patterns: list[_Refused] = []
    models: dict[str, str] = {}
    model_patterns: list[str] = []
    keys_url: str = ""
    docs_url: str = ""
    headers: dict[str, str] = {}


class _File(msgspec.Struct, forbid_unknown_fields=True):
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

    def check_key(self, provider: Provider, value: str) -> KeyCheck:
        """Check a value that is to be saved as ``provider``'s key; see ``keys.check_key``."""
        return check_key(provider, value, self.providers.values())


def parse(text: str) -> Catalog:
    """A catalogue from YAML. Raises ``msgspec.ValidationError`` or ``re.error`` for what does not fit."""
    # The C loader reads the file in a tenth of the time, which is a part of every start; both are the safe ones.
    raw = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    entries = msgspec.convert(raw, _File).providers
    return Catalog({name: _provider(name, entry) for name, entry in entries.items()})


def _provider(name: str, entry: _Provider) -> Provider:
    return Provider(
        name=name,
        display_name=entry.display_name,
        base_url=entry.base_url,
        apis=MappingProxyType({dialect: _api(dialect, api) for dialect, api in entry.apis.items()}),
        secret_type=entry.secret_type,
        key_patterns=tuple(KeyPattern(re.compile(pattern)) for pattern in entry.key_patterns),
        refused_patterns=tuple(KeyPattern(re.compile(known.pattern), known.reason) for known in entry.refused_patterns),
        test=TestCall(entry.test.method, entry.test.path, entry.test.dialect),
        models=tuple(Model(model, display) for model, display in entry.models.items()),
        model_patterns=tuple(re.compile(pattern) for pattern in entry.model_patterns),
        keys_url=entry.keys_url,
        docs_url=entry.docs_url,
        headers=tuple(entry.headers.items()),
        is_predefined=True,
        owner_id=None,
    )


def _api(dialect: str, api: _Api) -> Api:
    header = {"bearer": "authorization", "none": ""}.get(api.auth, api.header)
    return Api(dialect, api.prefix, Auth(api.auth, header), api.asks_usage)
