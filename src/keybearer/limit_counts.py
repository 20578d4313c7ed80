"""From the settings to where limits are counted: in Valkey, or by one process alone; and what must not be counted by several."""

from __future__ import annotations

from importlib import import_module
from uuid import UUID

from keybearer.config import Settings
from keybearer.errors import Conflict, SettingsInvalid
from keybearer.gateway.counts import Counts, Records
from keybearer.gateway.own_counts import OwnCounts
from keybearer.store.changes import Feed
from keybearer.store.db import Actor, Database
from keybearer.store.queries import budgets
from keybearer.vault.holders import KeyHolder


def counts_of(settings: Settings, deployment: UUID, holder: KeyHolder, feed: Feed, records: Records) -> Counts:
    """Where limits are counted: in Valkey for several processes, else in the memory of one."""
    if settings.redis_url is None:
        return OwnCounts(records, holder.claim)
    # Imported by name, here: it brings the client library, which one process does not need.
    shared = import_module("keybearer.gateway.shared_counts").SharedCounts
    counts: Counts = shared(settings.redis_url.get_secret_value(), deployment, records, feed, holder.id, holder.running)
    return counts


async def check_counts(holder: KeyHolder, settings: Settings) -> None:
    """Refuse limits that each of several processes would count for itself. Raises ``Conflict``."""
    if settings.redis_url is None and (settings.workers > 1 or await holder.others()):
        raise Conflict(
            "Several processes serve this deployment, and each would count for itself.",
            hint="Set KEYBEARER_REDIS_URL, or serve with one worker. A process that was killed counts as running for 20 seconds.",
        )


async def check_limits(db: Database, settings: Settings) -> None:
    """Refuse several workers where limits are set and nothing shares their counts, or cannot. Raises ``SettingsInvalid``."""
    if settings.redis_url is not None:
        await import_module("keybearer.gateway.valkey").check(settings.redis_url.get_secret_value())
    elif settings.workers > 1:
        async with db.read(Actor.system()) as tx:
            if await budgets.exist(tx):
                raise SettingsInvalid(
                    "Budgets and limits are set, and each of several workers would count for itself.",
                    hint="Set KEYBEARER_REDIS_URL, serve with --workers 1, or delete the limits first: 'keybearer budget list'.",
                )
