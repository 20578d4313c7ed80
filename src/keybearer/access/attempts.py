"""Refused attempts, on record like the changes themselves: who tried what, on which thing, and what they were told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from keybearer.audit import management
from keybearer.audit.refusals import Refusal, Refusals
from keybearer.domain import Caller, Client, ManagementRecord
from keybearer.errors import Conflict, KeybearerError
from keybearer.store.db import Actor, Database

_SERVER_ERROR = 500


@asynccontextmanager
async def attempt(
    db: Database, action: str, caller: Caller | None, subject: str = "", detail: tuple[tuple[str, str], ...] = ()
) -> AsyncIterator[None]:
    """Run a change; where it is refused, record that in a transaction of its own and raise the refusal on.

    Of very many the rest is counted (``audit.refusals``). Goes around the change's own transaction, which has rolled back by then.
    Our own failures (5xx) are no refusals.
    """
    try:
        yield
    except KeybearerError as error:
        if error.status < _SERVER_ERROR:
            client = caller.client if caller else Client(dict(detail).get("ip", ""))
            user_id, token_id = (caller.user_id, caller.token_id or "") if caller else (None, "")
            if Refusals.of(db).admits(Refusal(action, error.code, client, user_id, token_id)):
                record = ManagementRecord(action, caller, subject, outcome=error.code, detail=detail)
                await record_alone(db, record)
            error.is_recorded = True
        raise


async def record_alone(db: Database, record: ManagementRecord) -> None:
    """Record what changes nothing. As the system: whoever was refused may be nobody."""
    async with db.write(Actor.system()) as tx:
        await management.record(db, tx, record)


@asynccontextmanager
async def taken(message: str, hint: str | None = None) -> AsyncIterator[None]:
    """Say in words what a unique constraint found: goes around a transaction that may end in ``Conflict``."""
    try:
        yield
    except Conflict as conflict:
        if conflict.message != Conflict.__doc__:
            raise  # said in words already
        raise Conflict(message, hint=hint) from None
