"""The providers that an owner can name now: the catalogue, the administrators' edits and additions, the owner's own.

Rows that were not written here count for nothing: an address put into the database would be where the next key entered goes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import macs
from keybearer.catalog import (
    OPENAI,
    Catalog,
    Entry,
    Model,
    Provider,
    Registered,
    Registry,
    custom,
    with_base_url,
    with_models,
    with_registered,
    with_sharing,
)
from keybearer.crypto.keyring import Keyring
from keybearer.domain import SYSTEM_OWNER_ID, Owner, OwnerKind
from keybearer.errors import EnvelopeError, Invalid, ModelUnknown
from keybearer.store.queries import providers as rows
from keybearer.vault import reach

log = structlog.get_logger(__name__)


async def load(tx: AsyncConnection, keyring: Keyring, catalog: Catalog, owner_id: UUID) -> Registry:
    """The registry of an owner: a person's has their teams'; the system's own has nothing of any person's."""
    teams: tuple[UUID, ...] = ()
    if owner_id != SYSTEM_OWNER_ID:
        mine = await reach.load(tx, keyring, owner_id, shares=False)
        teams = tuple(team.team_id for team in mine.teams)
    owners = owners_of(owner_id, teams)
    known = written_here(keyring, await rows.of_owners(tx, owners))
    return build(catalog, known, models_written_here(keyring, await rows.models_of_owners(tx, owners)), owners)


def written_here(keyring: Keyring, provider_rows: Iterable[Any]) -> list[Any]:
    """The rows whose MAC is right; the others are logged."""
    return [row for row in provider_rows if _is_ours(keyring, row)]


def _is_ours(keyring: Keyring, row: Any) -> bool:
    try:
        keyring.check_row(row.mac, macs.PROVIDER, macs.provider_fields, row)
    except EnvelopeError:
        log.warning("a provider was changed outside Keybearer and is not used: look at the database's own logs", id=str(row.id))
        return False
    return True


def models_written_here(keyring: Keyring, model_rows: Iterable[Any]) -> list[Any]:
    """The rows that may steer calls: those whose MAC is right, and bare names, which steer none. The others are logged."""
    return [row for row in model_rows if _is_bare(row) or _is_our_model(keyring, row)]


def _is_bare(row: Any) -> bool:
    steering = (row.base_url, row.auth_style, row.auth_header, row.secret_id, row.parameters, row.aliases)
    return row.mac is None and all(value is None for value in steering)


def _is_our_model(keyring: Keyring, row: Any) -> bool:
    try:
        keyring.check_row(row.mac, macs.MODEL, macs.model_fields, row)
    except EnvelopeError:
        log.warning("a model was changed outside Keybearer and is not used: look at the database's own logs", id=str(row.id))
        return False
    return True


def owners_of(owner_id: UUID, teams: Iterable[UUID] = ()) -> tuple[UUID, ...]:
    """Whose providers and models an owner sees, in the order in which their names count.

    A team's never hides the system's: what people send there must not go where a team's admin says.
    """
    return tuple(dict.fromkeys((owner_id, SYSTEM_OWNER_ID, *teams)))


def build(catalog: Catalog, provider_rows: Iterable[Any], model_rows: Iterable[Any], owners: Sequence[UUID]) -> Registry:
    """Put rows and catalogue together, ``owners`` in their order: of one name, one's own counts before the system's and a team's."""
    known = list(provider_rows)
    listed, models = list(model_rows), defaultdict[str, list[Any]](list)
    for row in listed:
        models[row.provider].append(row)
    edited = {row.name: row.base_url for row in known if row.is_predefined and row.owner_id == SYSTEM_OWNER_ID}
    found = [
        with_models(
            with_base_url(provider, edited[name]) if name in edited else provider,
            map(_model, models.get(name, ())),
        )
        for name, provider in catalog.providers.items()
    ]
    own_first = sorted(known, key=lambda row: owners.index(row.owner_id))
    # They speak OpenAI's dialect, so a shared key may do there what it may do at OpenAI itself.
    sharing = catalog.get(OPENAI).apis[OPENAI].sharing
    customs = (_custom(row, models.get(row.name, ()), owners[0]) for row in own_first if not row.is_predefined)
    found.extend(with_sharing(provider, sharing) for provider in customs)
    return Registry(found, _entries(Registry(found), listed, owners))


def _entries(base: Registry, model_rows: Iterable[Any], owners: Sequence[UUID]) -> Iterable[Entry]:
    """What models say beyond their names: one's own before everybody's, and those before a team's."""
    for row in sorted(model_rows, key=lambda row: owners.index(row.owner_id)):
        provider = base.providers.get(row.provider)
        # A model of others is for their own provider of that name or a predefined one, not for one that the viewer named likewise.
        if row.mac is None or provider is None or (row.owner_id != owners[0] and provider.owner_id not in {None, row.owner_id}):
            continue
        aliases = tuple(row.aliases or ())
        if row.owner_id not in {owners[0], SYSTEM_OWNER_ID}:
            # What people send to a provider must not go where a team's admin says, under no name that means another's model.
            if row.base_url and provider.owner_id != row.owner_id:
                continue
            aliases = tuple(alias for alias in aliases if not _means_something(base, alias))
        try:
            yield Entry(with_registered(provider, registered_of(row, owners[0])), row.name, aliases)
        except Invalid as error:  # its address was fine for an earlier version
            log.warning("a model cannot be called", id=str(row.id), problem=error.message)


def _means_something(base: Registry, name: str) -> bool:
    try:
        base.locate(name)
    except ModelUnknown:
        return False
    except Invalid:  # several providers'
        return True
    return True


def registered_of(row: Any, viewer_id: UUID) -> Registered:
    """What a model's row says beyond its name, as ``viewer_id`` sees it."""
    kinds = {SYSTEM_OWNER_ID: OwnerKind.SYSTEM, viewer_id: OwnerKind.USER}
    return Registered(
        id=row.id,
        owner=Owner(kinds.get(row.owner_id, OwnerKind.TEAM), row.owner_id),
        secret_id=row.secret_id,
        base_url=row.base_url or "",
        auth_style=row.auth_style or "",
        auth_header=row.auth_header or "",
        parameters=MappingProxyType(json.loads(row.parameters) if row.parameters else {}),
    )


def _custom(row: Any, model_rows: Iterable[Any], owner_id: UUID) -> Provider:
    """A provider that somebody made, with the models that its owner and the viewer gave it, out of those for its name."""
    models = (_model(model) for model in model_rows if model.owner_id in {row.owner_id, owner_id})
    return custom(row.name, row.display_name, row.base_url, row.auth_style, row.auth_header, models, row.owner_id)


def _model(row: Any) -> Model:
    return Model(row.name, row.display_name, row.kind or "chat")
