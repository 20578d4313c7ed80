"""Whose the objects are that were made at providers with keys of several people: files, batches, stored responses.

An object is recorded before the answer that tells its id reaches who made it, so it is known as theirs, in every process, as soon as
they can name it. What is recorded never changes hands, so what was found once is remembered for a while; what was not found is
looked for each time. A row whose MAC is wrong was not written here and gives nothing.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Final

import structlog

from keybearer.access import macs
from keybearer.crypto.keyring import Keyring
from keybearer.errors import EnvelopeError, NotFound, Unavailable
from keybearer.gateway.ready import SECONDS, now
from keybearer.gateway.sharing import Asked, Named
from keybearer.store.db import Actor, Database
from keybearer.store.queries import objects as rows

log = structlog.get_logger(__name__)

_REMEMBERED: Final = 10_000
_ATTEMPTS: Final = 8
_RETRY_SECONDS: Final = 0.5
_PRUNED_KINDS: Final = ("response",)
_PRUNED_AFTER: Final = timedelta(days=60)
"""Providers keep responses for 30 days (OpenAI, Azure, xAI); what they keep longer ends with its deletion."""


class Objects:
    """The recorded objects of one deployment, as one process knows them."""

    def __init__(self, db: Database, keyring: Keyring) -> None:
        self._db = db
        self._keyring = keyring
        self._known: dict[tuple[Asked, str, str], float] = {}

    def unknown(self, asked: Asked, named: Named) -> Named:
        """Of the objects that a call names those of which it is not at hand that they are the caller's."""
        at = now()
        return frozenset(pair for pair in named if self._known.get((asked, *pair), 0.0) <= at)

    async def find(self, asked: Asked, named: Named) -> None:
        """Look whether all of these are the caller's. Raises ``NotFound``: one of them is not, or there is none."""
        started = now()
        ids = {object_id for _, object_id in named}
        async with self._db.read(Actor.user(asked.user_id)) as tx:
            found = await rows.made_by(tx, asked.owner_id, asked.origin, asked.user_id, ids)
        mine = set()
        for row in found:
            try:
                self._keyring.check_row(row.mac, macs.OBJECT, macs.object_fields, row)
            except EnvelopeError:
                log.warning("a row was changed outside Keybearer and gives no access", table=macs.OBJECT, object=row.object_id)
            else:
                mine.add((row.kind, row.object_id))
        missing = sorted(named - mine)
        if missing:
            kind, object_id = missing[0]
            raise NotFound(
                f"With this key you have made no {kind.replace('_', ' ')} '{object_id[:60]}'.",
                hint="With a team's or the system's key, only what you made with it yourself can be used.",
            )
        self._remember(asked, named, started)

    async def record(self, asked: Asked, named: Named) -> bool:
        """Note that these were made by the caller; whether that worked. Tried for a few seconds while the database is away."""
        at = datetime.now(UTC)
        made = []
        for kind, object_id in sorted(named):
            row = asked._asdict() | {"kind": kind, "object_id": object_id, "created_at": at}
            made.append(row | {"mac": self._keyring.row_mac(macs.OBJECT, *macs.object_fields(SimpleNamespace(**row)))})
        for _ in range(_ATTEMPTS):
            try:
                async with self._db.write(Actor.user(asked.user_id)) as tx:
                    await rows.insert(tx, made)
            except NotFound:
                return False  # who made it, or whose key it was, is gone: nobody is left who could ask for it
            except Unavailable:
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return True
        return False

    async def forget(self, asked: Asked, named: tuple[str, str]) -> None:
        """An object was deleted at the provider."""
        self._known.pop((asked, *named), None)
        async with self._db.write(Actor.user(asked.user_id)) as tx:
            await rows.delete(tx, asked.owner_id, asked.origin, asked.user_id, named)

    async def prune(self) -> None:
        """Forget whose objects are that no provider keeps so long."""
        while True:
            async with self._db.write(Actor.system()) as tx:
                if not await rows.prune(tx, _PRUNED_KINDS, datetime.now(UTC) - _PRUNED_AFTER):
                    return

    def _remember(self, asked: Asked, named: Named, started: float) -> None:
        for pair in named:
            while len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[asked, *pair] = started + SECONDS
