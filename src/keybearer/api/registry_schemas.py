"""What the API takes and answers about providers and models."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, SecretStr

from keybearer.api.schemas import Answer, Name, Parameters, Request
from keybearer.domain import OwnerKind, SecretType

# ---- providers -------------------------------------------------------------------------------------------------------


class NewProviderRequest(Request):
    """A custom provider; ``api_key`` becomes the caller's own secret named ``default``."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    display_name: Annotated[str, Field(max_length=200)] = ""
    base_url: Annotated[str, Field(min_length=1, max_length=2000)]
    api_key: SecretStr | None = None
    models: list[str] = []
    auth_style: Literal["bearer", "header", "none"] = "bearer"
    auth_header: Annotated[str, Field(max_length=64)] = ""
    system: Annotated[bool, Field(description="For everybody; administrators only.")] = False
    team_id: Annotated[UUID | None, Field(description="For this team; its owners and admins only.")] = None
    save_anyway: Annotated[bool, Field(description="Save the key although its format looks wrong.")] = False


class ProviderChange(Request):
    """Only the fields given are changed."""

    display_name: Annotated[str, Field(max_length=200)] | None = None
    base_url: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    api_key: SecretStr | None = None
    models: list[str] | None = None
    auth_style: Literal["bearer", "header", "none"] | None = None
    auth_header: Annotated[str, Field(max_length=64)] | None = None
    parameters: Parameters | None = None
    save_anyway: bool = False


class ParameterAnswer(Answer):
    """A part of a provider's address that each account has its own of; given with a key."""

    name: str
    label: str
    example: str


class ProviderAnswer(Answer):
    """A provider as this caller sees it."""

    id: str
    name: str
    display_name: str
    base_url: str
    is_predefined: bool
    owner_kind: OwnerKind
    team_id: UUID | None
    has_api_key: bool
    auth_style: str
    auth_header: str
    models: list[str]
    secret_type: SecretType
    keys_url: str
    docs_url: str
    category: str
    logo: str
    parameters: list[ParameterAnswer]
    can_test: bool


class NewProviderModel(Request):
    """A model of a provider."""

    name: Name
    display_name: Annotated[str, Field(max_length=200)] = ""


class ProviderModel(Answer):
    """A model of a provider."""

    id: str
    provider: str
    name: str
    display_name: str
    kind: str
    is_predefined: bool


# ---- models ----------------------------------------------------------------------------------------------------------

ModelKind = Literal["chat", "embedding", "rerank", "image", "audio", "moderation"]
AuthStyle = Literal["bearer", "header", "none"]


class NewModelRequest(Request):
    """A model to be registered."""

    provider: Annotated[str, Field(min_length=1, max_length=64, description="A provider's name.")]
    name: Annotated[str, Field(min_length=1, max_length=200, description="As the provider names it.")]
    display_name: Annotated[str, Field(max_length=200)] = ""
    kind: ModelKind = "chat"
    base_url: Annotated[str, Field(max_length=2000, description="Its own address; empty: the provider's.")] | None = None
    api_key: Annotated[SecretStr, Field(description="Its own key; empty: what resolution finds.")] | None = None
    auth_style: Annotated[AuthStyle | None, Field(description="How its key is sent; `null`: as the provider takes it.")] = None
    auth_header: Annotated[str, Field(max_length=64)] = ""
    parameters: Annotated[dict[str, Any], Field(max_length=50, description="Defaults of requests that do not set them.")] = {}
    aliases: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=20)] = []
    system: Annotated[bool, Field(description="For everybody; administrators only.")] = False
    team_id: Annotated[UUID | None, Field(description="For this team; its owners and admins only.")] = None
    save_anyway: Annotated[bool, Field(description="Save the key although its format looks wrong.")] = False


class ModelChange(Request):
    """Only the fields given are changed; `null` takes `base_url`, `api_key` and `auth_style` off the model."""

    display_name: Annotated[str, Field(max_length=200)] | None = None
    kind: ModelKind | None = None
    base_url: Annotated[str, Field(max_length=2000)] | None = None
    api_key: Annotated[SecretStr, Field(description="Empty: as it is.")] | None = None
    auth_style: AuthStyle | None = None
    auth_header: Annotated[str, Field(max_length=64)] | None = None
    parameters: Annotated[dict[str, Any], Field(max_length=50)] | None = None
    aliases: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=20)] | None = None
    save_anyway: bool = False


class ModelAnswer(Answer):
    """A registered model as this caller sees it."""

    id: UUID
    owner_kind: OwnerKind
    team_id: UUID | None
    provider: str
    name: str
    display_name: str
    kind: str
    base_url: str | None
    auth_style: str | None
    auth_header: str
    has_own_key: bool
    secret_id: UUID | None
    parameters: dict[str, Any]
    aliases: list[str]
    created_at: datetime
    updated_at: datetime


class TemplateAnswer(Answer):
    """A well-known model, ready to be registered."""

    provider: str
    provider_name: str
    name: str
    display_name: str
    kind: str
    base_url: str
    auth_style: str
