"""Providers and models as one caller sees them. Pure: rows in, views out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from keybearer.catalog import Parameter, Provider, Registry
from keybearer.domain import SYSTEM_OWNER_ID, OwnerKind, SecretBytes, SecretType
from keybearer.errors import ProviderUnknown
from keybearer.gateway.egress import placed
from keybearer.vault.reach import Reach


@dataclass(frozen=True, slots=True)
class NewProvider:
    """A custom provider: an OpenAI-compatible API at ``base_url``."""

    name: str
    base_url: str
    display_name: str = ""
    api_key: SecretBytes | None = None
    """Becomes the caller's own secret named ``default``."""
    models: tuple[str, ...] = ()
    auth_style: str = "bearer"
    """``bearer``, ``header`` or ``none``."""
    auth_header: str = ""
    system: bool = False
    """For everybody; administrators only."""
    team_id: UUID | None = None
    """For this team; its owners and admins only."""
    save_anyway: bool = False


@dataclass(frozen=True, slots=True)
class ProviderView:
    """A provider as one caller sees it."""

    id: str
    """A predefined provider's name, a custom one's UUID."""
    name: str
    display_name: str
    base_url: str
    is_predefined: bool
    owner_kind: OwnerKind
    team_id: UUID | None
    """Whose it is, where a team's."""
    has_api_key: bool
    """This caller has a usable key."""
    auth_style: str
    auth_header: str
    secret_type: SecretType
    models: tuple[str, ...]
    keys_url: str
    docs_url: str
    category: str
    logo: str
    parameters: tuple[Parameter, ...]
    """What a key must be stored with: parts of the address that each account has its own of."""
    can_test: bool


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model of a provider as one caller sees it."""

    id: str
    """A UUID; ``provider/name`` for those of the catalogue."""
    provider: str
    name: str
    display_name: str
    kind: str
    is_predefined: bool


@dataclass(frozen=True, slots=True)
class Keys:
    """Secrets that may be used at this moment: the caller's own, their teams', the system's where they serve this caller."""

    own: Sequence[Any]
    teams: Sequence[tuple[UUID, Any]]
    """Each with the team that owns it, or that it is shared with."""
    system: Sequence[Any]

    def serve(self, provider: Provider) -> bool:
        """Whether one of them is for this provider and may be sent to where it is."""
        is_everybodys = provider.owner_id in {None, SYSTEM_OWNER_ID}
        systems = self.system if is_everybodys else ()
        teams = (row for team_id, row in self.teams if is_everybodys or team_id == provider.owner_id)
        return any(
            row.provider == provider.name
            and row.secret_type == provider.secret_type.value
            and placed(provider, row.egress) is not None
            for row in (*self.own, *teams, *systems)
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """All that one owner sees, as read in one transaction."""

    mine: Reach
    registry: Registry
    providers: Sequence[Any]
    models: Sequence[Any]

    def row_of(self, provider: Provider) -> Any:
        """The row of a custom provider; of a predefined one the administrator's edit, or ``None``."""
        owner_id = provider.owner_id or SYSTEM_OWNER_ID
        return next((row for row in self.providers if row.name == provider.name and row.owner_id == owner_id), None)

    def find(self, key: str) -> Provider:
        """A provider by id or name. Raises ``ProviderUnknown``."""
        by_id = next((row for row in self.providers if str(row.id) == key.lower() and not row.is_predefined), None)
        found = self.registry.providers.get(key if by_id is None else by_id.name)
        if found is None or (by_id is not None and found.owner_id != by_id.owner_id):
            raise ProviderUnknown
        return found


def view_of(seen: Seen, provider: Provider, keys: Keys) -> ProviderView:
    """A provider for an answer."""
    auth = provider.auth
    team = None if provider.owner_id is None else seen.mine.team(provider.owner_id)
    is_systems = provider.owner_id in {None, SYSTEM_OWNER_ID}
    return ProviderView(
        id=provider.name if provider.is_predefined else str(seen.row_of(provider).id),
        name=provider.name,
        display_name=provider.display_name,
        base_url=provider.base_url,
        is_predefined=provider.is_predefined,
        owner_kind=OwnerKind.SYSTEM if is_systems else OwnerKind.USER if team is None else OwnerKind.TEAM,
        team_id=None if team is None else team.team_id,
        has_api_key=keys.serve(provider),
        auth_style=auth.style,
        auth_header=auth.header,
        secret_type=provider.secret_type,
        models=tuple(model.name for model in provider.models),
        keys_url=provider.keys_url,
        docs_url=provider.docs_url,
        category=provider.category,
        logo=provider.logo,
        parameters=provider.parameters,
        can_test=provider.test is not None or provider.secret_type is SecretType.CONNECTION_STRING,
    )


def model_views_of(seen: Seen, provider: Provider) -> Iterable[ModelView]:
    """A provider's models for an answer."""
    added = {row.name: str(row.id) for row in seen.models if row.provider == provider.name}
    return (
        ModelView(
            added.get(model.name, f"{provider.name}/{model.name}"),
            provider.name,
            model.name,
            model.display_name,
            model.kind,
            is_predefined=model.name not in added,
        )
        for model in provider.models
    )


def columns_of(provider: Provider) -> dict[str, Any]:
    """The columns of a provider that its owner can change."""
    auth = provider.auth
    return {
        "display_name": provider.display_name,
        "base_url": provider.base_url,
        "auth_style": auth.style,
        "auth_header": auth.header,
    }
