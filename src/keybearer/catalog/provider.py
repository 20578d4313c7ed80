"""A provider and its parts. Frozen values; what is needed for each request is worked out once, when a value is made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal
from urllib.parse import urlsplit
from uuid import UUID

from keybearer.catalog.sharing import NOT_SHARED, Sharing
from keybearer.domain import Owner, SecretType
from keybearer.errors import FieldError, Invalid

OPENAI: Final = "openai"
ANTHROPIC: Final = "anthropic"
GEMINI: Final = "gemini"
HTTP: Final = "http"
"""Not a dialect of models: any other HTTP API, whose calls are passed on as they are."""
DIALECTS: Final = (OPENAI, ANTHROPIC, GEMINI, HTTP)

AuthStyle = Literal["bearer", "header", "none"]
Category = Literal["model", "integration", "database"]
ModelKind = Literal["chat", "embedding", "rerank", "image", "audio", "moderation"]

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")  # RFC 9110, section 5.6.2: token
# A key in one of these would frame the request or choose its host (RFC 9110, section 7.6.1; RFC 9112, section 6).
_NOT_FOR_KEYS: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect"}
    | {"accept-encoding", "content-type", "content-encoding", "range"}
    | {"x-http-method-override", "x-http-method", "x-method-override"}
)
_BASE_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,=:@-]+)*/?")
_DOT_SEGMENT: Final = re.compile(r"/\.{1,2}(?:/|$)")
_PROVIDER_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Auth:
    """How the key is sent: ``Authorization: Bearer``, alone in ``header`` (lower case), or not at all."""

    style: AuthStyle
    header: str


NO_AUTH: Final = Auth("none", "")


@dataclass(frozen=True, slots=True)
class Api:
    """One way to speak to a provider.

    ``prefix`` follows the base URL: ``/v1`` makes ``https://api.openai.com/v1/chat/completions``. A base URL that
    already ends with it does not get it twice, because people write both.
    """

    dialect: str
    prefix: str
    auth: Auth
    asks_usage: bool
    """Whether a streamed answer states its usage only when asked by ``stream_options.include_usage``."""
    sharing: Sharing = NOT_SHARED
    """Which calls a team's or the system's key may serve."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that a provider is known to have. ``name`` is the provider's own."""

    name: str
    display_name: str
    kind: ModelKind = "chat"


@dataclass(frozen=True, slots=True)
class TestCall:
    """The cheapest call that tells a good key from a bad one: ``path`` follows the API's prefix."""

    __test__ = False  # not a test, whatever pytest thinks of the name

    method: str
    path: str
    dialect: str
    body: str = ""
    """JSON, for the providers that have no cheap call without one."""
    base_url: str = ""
    """Where the call goes if not to the provider's own address: then ``path`` is all of the path, and keys are bound to both."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A part of a provider's address that each account has its own of: a resource's or a region's name.

    ``pattern`` lets through nothing that could end a host's label or name another host.
    """

    name: str
    label: str
    pattern: re.Pattern[str]
    example: str


@dataclass(frozen=True, slots=True)
class Place:
    """Another address of the same provider, for the keys that fit ``key_pattern``."""

    key_pattern: re.Pattern[str]
    base_url: str


@dataclass(frozen=True, slots=True)
class KeyPattern:
    """A form of key. ``reason`` is set for forms that are refused, and says why."""

    pattern: re.Pattern[str]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Registered:
    """What somebody said of one model beyond its name; a provider that has it stands for that model alone."""

    id: UUID
    owner: Owner
    secret_id: UUID | None = None
    """Its own key; ``None``: what resolution finds."""
    base_url: str = ""
    """Its own; empty: the provider's."""
    auth_style: str = ""
    """Empty: the provider's."""
    auth_header: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Defaults for requests that do not set them."""

    @property
    def needs_no_key(self) -> bool:
        """Whether it is somewhere of its own where no key is sent: a model server on one's network, mostly."""
        return self.auth_style == "none" and bool(self.base_url) and self.secret_id is None


@dataclass(frozen=True, slots=True, eq=False)
class Provider:
    """A service that takes a key. Compared by identity: two users' providers of one name are not the same."""

    name: str
    display_name: str
    base_url: str
    """``https://host[:port][/path]``, without a trailing slash, query or user information; ``{name}`` stands for a parameter.

    Empty where the secret itself says where it goes: a connection string.
    """
    apis: Mapping[str, Api]
    """By dialect."""
    secret_type: SecretType
    key_patterns: tuple[KeyPattern, ...]
    refused_patterns: tuple[KeyPattern, ...]
    test: TestCall | None
    """``None``: this provider is not reached by HTTP."""
    models: tuple[Model, ...]
    model_patterns: tuple[re.Pattern[str], ...]
    """Bare model names that can only be this provider's."""
    keys_url: str
    """Where people make keys; empty where unknown."""
    docs_url: str
    headers: tuple[tuple[str, str], ...]
    """Sent where the caller did not set them: names in lower case."""
    is_predefined: bool
    owner_id: UUID | None
    """Who made a custom provider, or the address of one of its models; ``None``: predefined."""
    category: Category = "model"
    logo: str = ""
    """The name of its logo; empty: none."""
    loose_patterns: tuple[KeyPattern, ...] = ()
    """Forms of keys that other providers' keys have, too: they are no reason to warn, and tell nothing."""
    parameters: tuple[Parameter, ...] = ()
    places: tuple[Place, ...] = ()
    variables: tuple[str, ...] = ()
    """Environment variables that people keep its key in, the usual one first."""
    registered: Registered | None = None
    roots: Mapping[str, bytes] = field(init=False, repr=False)
    """By dialect, the upstream path that an operation's own path follows: base path and prefix."""
    base: bytes = field(init=False, repr=False)
    """The base URL's own path, without a trailing slash: what follows it under ``/p/{provider}``."""

    def __post_init__(self) -> None:
        base = _base_path(self.base_url) if self.base_url else ""
        object.__setattr__(self, "base", base.encode("ascii"))
        roots = {dialect: _join(base, api.prefix).encode("ascii") for dialect, api in self.apis.items()}
        object.__setattr__(self, "roots", MappingProxyType(roots))

    @property
    def auth(self) -> Auth:
        """How its key is sent, for those who look at it; APIs may differ."""
        if self.test is not None:
            return self.apis[self.test.dialect].auth
        return next((api.auth for api in self.apis.values()), NO_AUTH)


def with_base_url(provider: Provider, base_url: str) -> Provider:
    """The same provider elsewhere: an administrator's edit. Raises ``Invalid`` for a URL that is none."""
    test = provider.test
    if test is not None and test.base_url:
        test = TestCall("GET", "/models", test.dialect)
    return replace(provider, base_url=_clean_base_url(base_url), test=test, parameters=(), places=())


def with_auth(provider: Provider, style: str, header: str) -> Provider:
    """The same provider, which takes its key in another way. Raises ``Invalid``."""
    auth = _auth(style, header)
    return replace(provider, apis=MappingProxyType({name: replace(api, auth=auth) for name, api in provider.apis.items()}))


def with_sharing(provider: Provider, sharing: Sharing) -> Provider:
    """The same provider, whose APIs let a key of several people serve these calls."""
    return replace(provider, apis=MappingProxyType({name: replace(api, sharing=sharing) for name, api in provider.apis.items()}))


def with_models(provider: Provider, models: Iterable[Model]) -> Provider:
    """The same provider with further models; names that it has already stay as they are."""
    known = {model.name for model in provider.models}
    added = {model.name: model for model in models if model.name not in known}
    return replace(provider, models=(*provider.models, *added.values()))


def with_registered(provider: Provider, registered: Registered) -> Provider:
    """The provider as it is called for one model. Raises ``Invalid`` for an address or a way to send keys that is none.

    At an address of its own it is whoever's the model is: private hosts are for administrators' models alone, connections are
    not shared with other owners, keys of the provider's form are not expected, and no key of the system's is sent there.
    """
    if registered.base_url:
        moved = with_base_url(provider, registered.base_url)
        provider = replace(
            moved,
            owner_id=registered.owner.id,
            is_predefined=False,
            key_patterns=(),
            loose_patterns=(),
            refused_patterns=(),
        )
    if registered.auth_style:
        provider = with_auth(provider, registered.auth_style, registered.auth_header)
    return replace(provider, registered=registered)


def custom(
    name: str,
    display_name: str,
    base_url: str,
    auth_style: str,
    auth_header: str,
    models: Iterable[Model],
    owner_id: UUID,
) -> Provider:
    """A provider that somebody made: an OpenAI-compatible API at ``base_url``, as its SDKs' ``base_url`` is written.

    ``auth_header`` matters for the style ``header`` only. Raises ``Invalid`` with the fields that are wrong.
    """
    wrong: list[FieldError] = []
    if not _PROVIDER_NAME.fullmatch(name):
        wrong.append(FieldError("name", "lower-case letters, digits, dots, dashes and underscores; at most 64"))
    wrong.extend(_wrong_auth(auth_style, auth_header))
    if wrong:
        raise Invalid(fields=tuple(wrong))
    auth = _auth(auth_style, auth_header)
    return Provider(
        name=name,
        display_name=display_name,
        base_url=_clean_base_url(base_url),
        apis=MappingProxyType({OPENAI: Api(OPENAI, "", auth, asks_usage=True)}),
        secret_type=SecretType.API_KEY,
        key_patterns=(),
        refused_patterns=(),
        test=TestCall("GET", "/models", OPENAI),
        models=tuple(models),
        model_patterns=(),
        keys_url="",
        docs_url="",
        headers=(),
        is_predefined=False,
        owner_id=owner_id,
    )


def _wrong_auth(style: str, header: str) -> list[FieldError]:
    """What is wrong with a way to send a key; ``header`` matters for the style ``header`` only."""
    if style not in {"bearer", "header", "none"}:
        return [FieldError("auth_style", "one of bearer, header and none")]
    if style == "header" and not _HEADER_NAME.fullmatch(header):
        return [FieldError("auth_header", "not a header name")]
    if style == "header" and header.lower() in _NOT_FOR_KEYS:
        return [FieldError("auth_header", "a header that steers the connection, which no key goes in")]
    return []


def _auth(style: str, header: str) -> Auth:
    wrong = _wrong_auth(style, header)
    if wrong:
        raise Invalid(fields=tuple(wrong))
    named = {"bearer": "authorization", "header": header.lower()}.get(style, "")
    return Auth(style, named)  # type: ignore[arg-type]


def _clean_base_url(url: str) -> str:
    """The URL without a trailing slash. The host itself is the egress policy's business."""
    url = url.strip().rstrip("/")
    _base_path(url)
    return url


def _base_path(url: str) -> str:
    """The path of a base URL, checked: it becomes the start of every request line to that provider."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _bad_url("not a URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise _bad_url("https://host, optionally with a port and a path")
    if parts.username is not None or parts.password is not None:
        raise _bad_url("no user name or password in a URL: store the key as a secret")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise _bad_url("no query and no fragment")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise _bad_url("only ASCII characters; write an international host name as xn--…")
    if not _BASE_PATH.fullmatch(parts.path) or _DOT_SEGMENT.search(parts.path):
        raise _bad_url("the path has characters or segments that do not belong there")
    return parts.path.rstrip("/")


def _bad_url(message: str) -> Invalid:
    return Invalid("The base URL is wrong.", fields=(FieldError("base_url", message),))


def _join(base: str, prefix: str) -> str:
    return base if prefix and base.endswith(prefix) else base + prefix
