"""What requests hold and answers show. Unknown fields are refused: a misspelled ``expires_at`` must not mean "never".

An answer about a secret has no field that could hold its value.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from keybearer.domain import Grade, OwnerKind, SecretType
from keybearer.vault.standing import Standing

Item = TypeVar("Item")

Name = Annotated[str, Field(min_length=1, max_length=200)]
Value = Annotated[SecretStr, Field(description="The secret itself: at most 64 kB. Never answered back.")]
Limit = Annotated[int, Field(ge=1, le=200)]
Parameters = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=64)]],
    Field(max_length=8, description="Parts of the provider's address: an Azure `resource`, an AWS `region`."),
]


class Request(BaseModel):
    """The base of request bodies."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    def given(self) -> dict[str, Any]:
        """Only the fields that the request had, secrets still wrapped."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class Answer(BaseModel):
    """The base of answers; built from the domain's dataclasses."""

    model_config = ConfigDict(from_attributes=True)


class Page(BaseModel, Generic[Item]):
    """One page of a list; ``next_cursor`` is ``null`` on the last."""

    items: list[Item]
    next_cursor: str | None


# ---- secrets ---------------------------------------------------------------------------------------------------------


RotationPeriod = Annotated[int | None, Field(ge=1, le=3650, description="Days after which the value should be replaced.")]


CheckEvery = Annotated[
    int | None,
    Field(ge=0, le=8760, description="Hours between two tests on a schedule; `0`: never; `null`: as the deployment does."),
]


class OAuthParts(Request):
    """What refreshing an OAuth token takes; all of it is sealed. Blank keeps a part, ``null`` takes it away."""

    client_id: SecretStr | None = None
    client_secret: SecretStr | None = None
    refresh_token: SecretStr | None = None
    token_endpoint: Annotated[SecretStr | None, Field(description="An https:// URL.")] = None
    scopes: Annotated[list[str] | None, Field(max_length=100)] = None


class ReferenceParts(Request):
    """Where a value is kept instead of here; which fields there are goes by the source."""

    source: Literal["aws", "openbao", "env"]
    region: Annotated[str | None, Field(max_length=64, description="`aws`: for example eu-central-1.")] = None
    id: Annotated[str | None, Field(max_length=1024, description="`aws`: a secret's name or ARN.")] = None
    mount: Annotated[str | None, Field(max_length=1024, description="`openbao`: of a KV engine, version 2.")] = None
    path: Annotated[str | None, Field(max_length=1024, description="`openbao`: of the secret below the mount.")] = None
    key: Annotated[str | None, Field(max_length=200, description="Of a JSON object the text that is meant.")] = None
    name: Annotated[str | None, Field(max_length=200, description="`env`: a variable of the server; for system secrets.")] = None


Reference = Annotated[
    ReferenceParts | Annotated[str, Field(max_length=2400)] | None,
    Field(
        description="Where the value is kept instead of here; then `value` is left out. In one line: "
        "`aws:eu-central-1/apps/openai#key`, `openbao:secret/apps/openai#key`, `env:NAME`."
    ),
]


class NewSecretRequest(Request):
    """A new secret."""

    provider: Annotated[str, Field(min_length=1, max_length=64)]
    secret_type: SecretType | None = None
    name: Name = "default"
    value: Annotated[Value | None, Field(description="Required unless there is a reference.")] = None
    reference: Reference = None
    description: Annotated[str, Field(max_length=2000)] = ""
    tags: Annotated[list[str], Field(max_length=50)] = []
    priority: Annotated[int, Field(ge=0, le=1000)] = 100
    allowed_models: list[str] | None = None
    allowed_tokens: list[str] | None = None
    expires_at: datetime | None = None
    rotation_period: RotationPeriod = None
    health_check_every: CheckEvery = None
    oauth: Annotated[OAuthParts | None, Field(description="For secrets of the type oauth_token.")] = None
    is_active: bool = True
    fetchable: bool = False
    fallback_allowed: Annotated[
        bool, Field(description="Where this key cannot be used, a team's or the system's may serve; else the call stops.")
    ] = False
    system: Annotated[bool, Field(description="A system key; administrators only.")] = False
    team_id: Annotated[UUID | None, Field(description="A team's key; its owners and admins only.")] = None
    save_anyway: Annotated[bool, Field(description="Save although the format looks wrong.")] = False
    parameters: Parameters = {}


class SecretChange(Request):
    """Only the fields given are changed; a blank ``value`` keeps the old one."""

    name: Name | None = None
    value: Value | None = None
    reference: Reference = None
    description: Annotated[str, Field(max_length=2000)] | None = None
    tags: Annotated[list[str], Field(max_length=50)] | None = None
    priority: Annotated[int, Field(ge=0, le=1000)] | None = None
    allowed_models: list[str] | None = None
    allowed_tokens: list[str] | None = None
    expires_at: Annotated[datetime | None, Field(description="`null`: never.")] = None
    rotation_period: RotationPeriod = None
    health_check_every: CheckEvery = None
    oauth: OAuthParts | None = None
    is_active: bool | None = None
    fallback_allowed: bool | None = None
    fetchable: bool | None = None
    save_anyway: bool = False
    parameters: Parameters | None = None


class ShareAnswer(Answer):
    """A secret shared with a team."""

    team_id: UUID
    team_name: str
    grade: Grade
    shared_by: UUID
    shared_by_name: str
    created_at: datetime


class Rotation(Request):
    """A new value in the place of the one in force."""

    value: Value
    overlap_seconds: Annotated[
        int,
        Field(ge=0, le=30 * 86_400, description="For how long the value before serves where the provider refuses the new one."),
    ] = 0
    save_anyway: Annotated[bool, Field(description="Save although the format looks wrong.")] = False


class Rollback(Request):
    """An earlier value, put in force again as a new version."""

    version: Annotated[int | None, Field(ge=1, le=2**31 - 1, description="`null`: the one before.")] = None


class Restoration(Request):
    """A deleted secret, brought back."""

    name: Annotated[Name | None, Field(description="Another name, where the old one is taken.")] = None


class HealthAnswer(Answer):
    """How the provider answers to a key, as far as the process that answers knows: it is in no database, and others may see otherwise."""

    state: Annotated[
        Literal["ok", "cooling", "refused"],
        Field(
            description="`cooling`: the provider asked for a pause (429), other keys of the scope serve. `refused`: it refused the key "
            "(401, 402, 403), which serves only where there is no other. Some hold for one model; `reason` names it."
        ),
    ]
    until: Annotated[datetime | None, Field(description="When one call will try it again.")]
    reason: str
    last_status: Annotated[int | None, Field(description="The provider's last answer to it here; `null`: there was none.")]


class SecretAnswer(BaseModel):
    """A secret without its value."""

    id: UUID
    owner_kind: OwnerKind
    owner_id: UUID
    provider: str
    secret_type: SecretType
    name: str
    has_api_key: bool
    preview: str
    description: str
    tags: list[str]
    is_active: bool
    priority: int
    allowed_models: list[str] | None
    allowed_tokens: list[str] | None
    fetchable: bool
    egress: list[str]
    expires_at: datetime | None
    state: Annotated[
        Standing, Field(description="The first that holds of: deleted, inactive, unreadable, failed, expired, expiring.")
    ]
    state_reason: str
    version: int
    fallback_version: Annotated[int | None, Field(description="After a rotation: serves where the value in force is refused.")]
    fallback_until: datetime | None
    rotation_period: int | None
    rotate_at: Annotated[datetime | None, Field(description="When the value should be replaced.")]
    oauth: Annotated[
        dict[str, str] | None, Field(description="Of an OAuth token the parts that are stored, each with its preview.")
    ]
    token_expires_at: Annotated[datetime | None, Field(description="Of an OAuth token that is refreshed; `null`: not known.")]
    refresh_at: Annotated[datetime | None, Field(description="When it is refreshed next; `null`: never.")]
    refresh_problem: Annotated[str, Field(description="What went wrong the last time.")]
    health_check_every: Annotated[
        int | None, Field(description="Hours between tests; `0`: never; `null`: as the deployment does.")
    ]
    next_check_at: datetime | None
    checked_at: Annotated[datetime | None, Field(description="When its value was tested last, by whomever.")]
    check_status: Annotated[str | None, Field(description="What that test found, as a test answers it.")]
    check_reason: str
    failed_at: Annotated[datetime | None, Field(description="Since when its provider refuses it.")]
    reference: Annotated[
        dict[str, str] | None,
        Field(
            description="Where the value is kept instead of here; `leave`: who permitted it, `admin` or an operator's `prefix`."
        ),
    ]
    deleted_at: datetime | None
    purged_at: Annotated[datetime | None, Field(description="Of a deleted secret: until when it can be restored.")]
    encryption_key_id: UUID | None
    created_by: UUID
    created_at: datetime
    updated_at: datetime
    last_used_at: datetime | None
    usage_count: int
    last_used_in_workflow: str | None
    fallback_allowed: bool
    access: Grade | None
    """What the caller may do with it; ``null``: nothing but look, as administrators do."""
    shares: list[ShareAnswer]
    """With which of the caller's teams it is shared."""
    model_id: UUID | None
    """The registered model whose own key it is: then it serves no other call."""
    health: Annotated[
        HealthAnswer, Field(description="How the provider answers to it, as far as this one server process knows, in memory.")
    ]


class VersionAnswer(Answer):
    """A version of a secret's value, without the value."""

    version: int
    state: Literal["current", "fallback", "old"]
    preview: str
    encryption_key_id: Annotated[UUID, Field(validation_alias="key_id")]
    created_by: UUID | None
    created_at: datetime
    retired_at: Annotated[datetime | None, Field(description="When another version took its place.")]


class RevealAnswer(BaseModel):
    """The value of a secret that may be fetched. The only answer that holds one."""

    id: UUID
    provider: str
    name: str
    version: int
    value: str


class NotificationAnswer(Answer):
    """One reminder."""

    id: UUID
    kind: Annotated[
        Literal["expiry", "rotation", "failure"],
        Field(description="`expiry`: it ends; `rotation`: it should be replaced; `failure`: its provider refuses it."),
    ]
    secret_id: UUID
    provider: str
    name: str
    due_at: datetime
    days: Annotated[int, Field(description="How many days before `due_at` this reminds.")]
    created_at: datetime
    read_at: datetime | None


class NotificationPreferences(Request):
    """Which reminders come by mail."""

    mail: Annotated[list[Literal["expiry", "rotation", "failure"]], Field(max_length=3)]


Kinds = Annotated[
    list[Literal["expiry", "rotation", "failure"]] | None,
    Field(max_length=3, description="What it is told; `null`: all."),
]


class HookRequest(Request):
    """Where one's reminders are posted as signed messages (Standard Webhooks)."""

    url: Annotated[
        SecretStr, Field(max_length=2048, description="Its path may be what gives the right to post; never answered back.")
    ]
    kinds: Kinds = None


class HookAnswer(Answer):
    """Where one's reminders are posted."""

    preview: Annotated[str, Field(description="Scheme and host of the address.")]
    kinds: list[str] | None
    is_active: Annotated[bool, Field(description="`false`: the address said that it is gone (410).")]
    problem: Annotated[str, Field(description="What went wrong last; empty: nothing.")]
    updated_at: datetime


class HookMadeAnswer(HookAnswer):
    """A new address, and the only time that its signing key is shown."""

    signing_key: str


class HookTestAnswer(BaseModel):
    """What came of a test message."""

    is_taken: bool
    problem: str


class SecretTest(Request):
    """How a secret is tested that has no call of its own."""

    method: Annotated[
        Literal["HEAD", "GET", "POST"] | None,
        Field(description="Of custom providers and webhooks; default: `GET`, for a webhook's address `HEAD`, signed `POST`."),
    ] = None
    path: Annotated[str, Field(max_length=500, description="Of a custom provider, behind its base URL.")] = ""
    url: Annotated[str, Field(max_length=2048, description="Where a secret that signs webhooks sends a signed test.")] = ""


class UnsavedSecretTest(SecretTest):
    """Test a value before it is saved."""

    provider: Annotated[str, Field(min_length=1, max_length=64)]
    value: Value | None = None
    reference: Reference = None
    team_id: Annotated[UUID | None, Field(description="For a team secret's reference.")] = None
    parameters: Parameters = {}
    system: Annotated[bool, Field(description="As a system secret is; administrators only.")] = False


class TestAnswer(Answer):
    """What a connection test found."""

    status: str
    latency_ms: float
    models: list[str]
    message: str


class Detect(Request):
    """A pasted value whose provider is to be guessed."""

    value: Value


class Detected(BaseModel):
    """The providers whose keys look like the value; one: unambiguous."""

    providers: list[str]
