"""The nouns of Keybearer as frozen dataclasses: no behaviour that needs a clock, a database or a key.

A type that bears secret material redacts itself in ``repr``, ``str``, ``format`` and refuses pickling.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, NoReturn
from uuid import UUID

import msgspec

SYSTEM_OWNER_ID = UUID(int=0)
"""The owner of system secrets: one per deployment, so its id need not be random."""


class OwnerKind(StrEnum):
    """Who can own secrets, providers and models."""

    USER = "user"
    TEAM = "team"
    SYSTEM = "system"


class Role(StrEnum):
    """A person's role in this deployment."""

    ADMIN = "admin"
    MEMBER = "member"


class TeamRole(StrEnum):
    """What a member may do in a team: owners everything, admins all but end it and touch its owners, members use its keys."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"


class Grade(StrEnum):
    """What a share lets the team's members do with a secret."""

    USE = "use"
    MANAGE = "manage"
    """Use it, and change, test, rotate and delete it like its owner; not share it further."""


class SecretType(StrEnum):
    """What kind of credential a secret is; the provider decides the default."""

    API_KEY = "api_key"
    OAUTH_TOKEN = "oauth_token"
    WEBHOOK_SECRET = "webhook_secret"
    CONNECTION_STRING = "connection_string"
    CUSTOM = "custom"


class KeySource(StrEnum):
    """Whose key served a request: the value of ``x-keybearer-key-source``."""

    MODEL = "model"
    USER = "user"
    TEAM = "team"
    SYSTEM = "system"
    OPENROUTER = "openrouter"


class Scope(StrEnum):
    """What an access token may do. Nobody can give a token more than they have."""

    GATEWAY_USE = "gateway:use"
    SECRETS_USE = "secrets:use"
    SECRETS_READ = "secrets:read"
    SECRETS_WRITE = "secrets:write"
    MODELS_WRITE = "models:write"
    PROVIDERS_WRITE = "providers:write"
    TEAMS_WRITE = "teams:write"
    TOKENS_WRITE = "tokens:write"
    BUDGETS_WRITE = "budgets:write"
    USAGE_READ = "usage:read"
    AUDIT_READ = "audit:read"
    USERS_ACT_AS = "users:act-as"
    ADMIN = "admin"


MEMBER_SCOPES = frozenset(Scope) - {Scope.ADMIN, Scope.USERS_ACT_AS}
"""What a member has, and may therefore give a token. An admin has all."""


class SecretBytes:
    """Secret bytes that do not show themselves. ``reveal()`` is the only way to the value, so it can be searched for."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The value itself: for sealing, and for the one header it is sent in."""
        return self._value

    def __repr__(self) -> str:
        return "<secret>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "<secret>"

    def __eq__(self, other: object) -> bool:
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # equality of secrets is a timing question: compare explicitly

    def __reduce__(self) -> NoReturn:
        msg = "secrets are not pickled"
        raise TypeError(msg)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a secret."""

    kind: OwnerKind
    id: UUID


SYSTEM_OWNER = Owner(OwnerKind.SYSTEM, SYSTEM_OWNER_ID)


@dataclass(frozen=True, slots=True)
class Client:
    """Where a request came from: ``ip`` as text (from declared proxies only), ``user_agent`` cut to 256 characters."""

    ip: str = ""
    user_agent: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, after authentication. Exactly one of ``token_id`` and ``session_id`` is set, or neither for the operator."""

    user_id: UUID
    role: Role
    scopes: frozenset[Scope]
    token_id: str | None = None
    session_id: UUID | None = None
    client: Client = Client()
    allowed_providers: frozenset[str] | None = None
    """Providers that the token may use; ``None``: all."""
    allowed_models: frozenset[str] | None = None
    """``provider/model`` names that the token may use; ``None``: all."""

    @property
    def is_admin(self) -> bool:
        """An administrator acting with the ``admin`` scope."""
        return self.role is Role.ADMIN and Scope.ADMIN in self.scopes


@dataclass(frozen=True, slots=True)
class Grant:
    """A verified access token as the gateway caches it (at most 60 s, and only while revocations are heard)."""

    token_id: str
    user_id: UUID
    role: Role
    scopes: frozenset[Scope]
    allowed_providers: frozenset[str] | None
    """``None``: all."""
    allowed_models: frozenset[str] | None
    """``provider/model`` names; ``None``: all."""
    ip_allowlist: tuple[str, ...]
    """CIDRs; empty: any address."""
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Share:
    """A secret shared with a team."""

    secret_id: UUID
    team_id: UUID
    team_name: str
    grade: Grade
    shared_by: UUID
    """Whose secret it is."""
    shared_by_name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret as listings show it: everything but its value."""

    id: UUID
    owner: Owner
    provider: str
    secret_type: SecretType
    name: str
    preview: str
    description: str
    tags: tuple[str, ...]
    is_active: bool
    priority: int
    allowed_models: tuple[str, ...] | None
    allowed_tokens: tuple[str, ...] | None
    fetchable: bool
    egress: tuple[str, ...]
    expires_at: datetime | None
    state: str
    """``ok``, ``failed`` (the provider refused it) or ``unreadable`` (it does not open)."""
    state_reason: str
    version: int
    key_id: UUID | None
    """The owner key that sealed the current version; ``None`` where a listing may not tell (an administrator's, of others)."""
    created_by: UUID
    created_at: datetime
    updated_at: datetime
    last_used_at: datetime | None
    usage_count: int
    last_used_in_workflow: str | None
    fallback_allowed: bool = False
    """Whether a team's or the system's key may serve where this one cannot; else it stops the call."""
    access: Grade | None = Grade.MANAGE
    """What the caller may do with it; ``None``: nothing but look, as administrators do."""
    shares: tuple[Share, ...] = ()
    """With which of the caller's teams it is shared."""
    rotation_period: int | None = None
    """Days after which a value should be replaced; ``None``: whenever."""
    rotate_at: datetime | None = None
    """When the current value should be."""
    oauth: tuple[tuple[str, str], ...] | None = None
    """Of an OAuth token the parts that are sealed beside the value, each with its preview."""
    fallback_version: int | None = None
    """After a rotation, the version before it ..."""
    fallback_until: datetime | None = None
    """... and until when it serves where the new value is refused."""
    deleted_at: datetime | None = None
    model_id: UUID | None = None
    """The registered model whose own key it is: then it serves no other call."""
    reference: tuple[tuple[str, str], ...] | None = None
    """Where the value is kept instead of here, field by field."""
    token_expires_at: datetime | None = None
    """Of an OAuth token that is refreshed, if its endpoint says so."""
    refresh_at: datetime | None = None
    """When it is refreshed next; ``None``: never."""
    refresh_problem: str = ""
    """What went wrong the last time."""
    health_check_every: int | None = None
    """Hours between two tests on a schedule; 0: never; ``None``: as the deployment does."""
    next_check_at: datetime | None = None
    checked_at: datetime | None = None
    """When its value was tested last, on a schedule or because somebody asked ..."""
    check_status: str | None = None
    """... and what was found (``gateway.verdict``) ..."""
    check_reason: str = ""
    """... in words."""
    failed_at: datetime | None = None
    """Since when its provider refuses it."""


@dataclass(frozen=True, slots=True)
class SecretVersion:
    """One version of a secret's value, without the value."""

    version: int
    state: str
    """``current``, ``fallback`` (serves where the current one is refused) or ``old`` (can be rolled back to)."""
    preview: str
    key_id: UUID
    """The owner key that sealed it."""
    created_by: UUID | None
    created_at: datetime
    retired_at: datetime | None
    """When another version took its place."""


@dataclass(frozen=True, slots=True)
class Revealed:
    """The value of a ``fetchable`` secret, opened for whoever may see it."""

    secret: Secret
    value: SecretBytes


class BudgetSubject(StrEnum):
    """What a limit is set for: calls with this token, by this user, with this team's keys, with this secret, to this provider, all."""

    TOKEN = "token"  # a kind of thing
    USER = "user"
    TEAM = "team"
    SECRET = "secret"  # likewise
    PROVIDER = "provider"
    DEPLOYMENT = "deployment"


class BudgetKind(StrEnum):
    """What a limit counts, and over which time; days and months are the calendar's, minutes the clock's, all in UTC."""

    USD_DAY = "usd_day"
    USD_MONTH = "usd_month"
    REQUESTS_MINUTE = "requests_minute"
    TOKENS_MINUTE = "tokens_minute"  # likewise


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit. ``amount``: millionths of a US dollar, requests or tokens."""

    id: UUID
    owner_id: UUID
    subject: BudgetSubject
    subject_id: str
    """An id, a provider's name, or empty for the deployment."""
    kind: BudgetKind
    amount: int
    is_hard: bool
    """It refuses calls; a soft one only shows that it is exceeded."""
    by_admin: bool
    """An administrator set it: nobody else changes it."""
    created_by: UUID
    created_at: datetime
    updated_at: datetime
    is_tampered: bool = False
    """Its row was changed outside Keybearer: nothing may pass it."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret resolved and opened for one provider: what the gateway may send, where, and for whom."""

    secret_id: UUID
    secret_version: int
    owner: Owner
    provider: str
    source: KeySource
    value: SecretBytes
    egress: tuple[str, ...]
    allowed_models: frozenset[str] | None
    expires_at: datetime | None
    is_fallback: bool = False
    """The version before a rotation: serves only where the one in force is refused."""
    priority: int = 0
    """Among the keys of its scope: lower first; those of one number take turns."""
    may_fall_back: bool = False
    """One's own, of which its owner said that others' may serve where it cannot."""


class Asked(NamedTuple):
    """Which secret's value a program asks for: one by its id; or the first of a provider and type, or of these the one of a name."""

    id: UUID | None = None
    provider: str = ""
    secret_type: SecretType | None = None
    """``None``: the provider's own."""
    name: str | None = None
    """``None``: any."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A ``fetchable`` secret, resolved and opened for the program that asked for its value."""

    credential: Credential
    secret_type: SecretType
    name: str


# The three that are made for every call are structs: made in C, a UseRecord takes 0.2 µs, as a dataclass 1.0, as a frozen one 4.3.


class Usage(msgspec.Struct):
    """What one answer consumed. ``None``: the provider did not say. ``input_tokens`` includes cached ones."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    """Input tokens read from a cache."""
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    """Part of ``output_tokens``."""
    model: str | None = None
    """The model's name as the provider answered it."""
    cost_usd: float | None = None
    """Only if the provider itself stated a cost."""
    long_cache_write_tokens: int | None = None
    """Part of ``cache_write_tokens``: kept for an hour instead of minutes, at a higher price (Anthropic)."""


class MediaUsage(Usage):
    """What an answer consumed where some of the tokens were no text: they have prices of their own."""

    audio_tokens: int = 0
    """Part of ``input_tokens``, and so are the next."""
    image_tokens: int = 0
    audio_output_tokens: int = 0
    """Part of ``output_tokens``."""


class UseRecord(msgspec.Struct):
    """The journal's line written before a key leaves."""

    request_id: str
    at: float
    """Unix time in seconds."""
    user_id: UUID
    token_id: str
    secret_id: UUID
    secret_version: int
    owner: Owner
    source: KeySource
    provider: str
    model: str
    operation: str
    """For example ``chat.completions``, ``messages``, ``generateContent``."""
    streamed: bool
    workflow: str
    node: str
    client: Client


class OutcomeRecord(msgspec.Struct):
    """The journal's line written after an answer ended, however it ended."""

    request_id: str
    at: float
    status: int
    """The HTTP status that the client was answered; 499: the client left before one."""
    outcome: str
    """``ok``, ``refused``, ``upstream_error``, ``aborted`` or ``failed``."""
    duration_ms: float
    first_byte_ms: float | None
    usage: Usage = msgspec.field(default_factory=Usage)
    cost_micro_usd: int | None = None
    """Millionths of a US dollar; ``None``: unknown, never shown as 0."""


@dataclass(frozen=True, slots=True)
class ManagementRecord:
    """A change to what Keybearer keeps, or a refused attempt at one; committed with the change itself."""

    action: str
    """``noun.verb``: ``secret.create``, ``token.revoke``, ``session.sign_in``, …"""
    caller: Caller | None
    subject: str
    """The id of what was changed."""
    outcome: str = "ok"
    """``ok`` or an error code."""
    owner: Owner | None = None
    detail: tuple[tuple[str, str], ...] = ()
    """Names and values of harmless facts: provider, name, which fields changed. Never a value of a secret."""
