"""A trail that is sealed, and what is needed to seal more of it."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from tests.audit.audit_samples import Person, add_person, outcome

from keybearer.audit import management
from keybearer.audit.journal import Journal
from keybearer.audit.seal import Sealer, Target
from keybearer.audit.ship import Shipper
from keybearer.crypto.keyring import Keyring
from keybearer.crypto.kms import env
from keybearer.domain import ManagementRecord
from keybearer.errors import Unavailable
from keybearer.store.db import Actor, Database

ROOT_KEY = base64.b64encode(os.urandom(32)).decode()


@dataclass
class Place:
    """Somewhere checkpoints are pushed to, which may be out of reach."""

    notes: list[str] = field(default_factory=list)
    is_away: bool = False

    async def push(self, note: str) -> None:
        if self.is_away:
            raise Unavailable("the place is away")
        self.notes.append(note)


async def keyring_of(database: Database) -> Keyring:
    return await Keyring.open(database, env.parse(ROOT_KEY))


async def sealer_of(database: Database, target: Target | None = None) -> Sealer:
    return Sealer(database, await keyring_of(database), target)


async def written(database: Database, directory: Path, calls: int = 3, who: Person | None = None) -> UUID:
    """A journal of so many calls (two entries each, and two more), shipped; return its writer."""
    who = who or await add_person(database)
    journal = await Journal.open(database, directory, "journal")
    shipper = Shipper(database, directory, journal)
    for number in range(calls):
        request_id = f"{journal.writer.hex[:8]}-{number}"
        journal.use(who.use(request_id))
        journal.outcome(outcome(request_id))
    await journal.close()
    await shipper.ship_once()
    return journal.writer


async def managed(database: Database, count: int = 1) -> None:
    """So many changes on record."""
    for number in range(count):
        async with database.write(Actor.system()) as tx:
            await management.record(database, tx, ManagementRecord("secret.update", None, f"kbtest {number}"))
