"""The providers that an owner can name now: the catalogue, the administrators' edits and additions, the owner's own.

Rows that were not written here count for nothing: an address put into the database would be where the next key entered goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import macs
from keybearer.catalog import Catalog, Model, Provider, Registry, custom, with_base_url, with_models
from keybearer.crypto.keyring import Keyring
from keybearer.domain import SYSTEM_OWNER_ID
from keybearer.errors import EnvelopeError
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
    return build(catalog, known, await rows.models_of_owners(tx, owners), owners)


def written_here(keyring: Keyring, provider_rows: Iterable[Any]) -> list[Any]:
    """The rows whose MAC is right; the others are logged."""
    return [row for row in provider_rows if _is_ours(keyring, row)]


def _is_ours(keyring: Keyring, row: Any) -> bool:
    try:
        keyring.check_row_mac(bytes(row.mac), macs.PROVIDER, *macs.provider_fields(row))
    except EnvelopeError:
        log.warning("a provider was changed outside Keybearer and is not used: look at the database's own logs", id=str(row.id))
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
    models = list(model_rows)
    edited = {row.name: row.base_url for row in known if row.is_predefined and row.owner_id == SYSTEM_OWNER_ID}
    found = [
        with_models(
            with_base_url(provider, edited[name]) if name in edited else provider,
            (Model(row.name, row.display_name) for row in models if row.provider == name),
        )
        for name, provider in catalog.providers.items()
    ]
    own_first = sorted(known, key=lambda row: owners.index(row.owner_id))
    found.extend(_custom(row, models, owners[0]) for row in own_first if not row.is_predefined)
    return Registry(found)


def _custom(row: Any, model_rows: Iterable[Any], owner_id: UUID) -> Provider:
    """A provider that somebody made, with the models that its owner and the viewer gave it."""
    models = (
        Model(model.name, model.display_name)
        for model in model_rows
        if model.provider == row.name and model.owner_id in {row.owner_id, owner_id}
    )
    return custom(row.name, row.display_name, row.base_url, row.auth_style, row.auth_header, models, row.owner_id)
