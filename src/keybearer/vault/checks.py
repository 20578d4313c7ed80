"""Health checks: stored keys are tested on a schedule, where their owners, or the deployment, want that.

A check that is due is taken by one process for a while, in the secret's row; one that was killed has lost it by then, and another
process checks. Who settles late settles nothing. What a test finds is kept, whoever tested: of a key only its provider can say that it
is not known any more (``failed``), so nothing else that goes wrong marks it. Times are spread, so that a thousand keys stored at once
are not tested at once; a key that could not be tested is tested ever more seldom, up to a bound.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.domain import Credential, KeySource
from keybearer.errors import NotFound
from keybearer.store.db import Actor
from keybearer.store.queries import checks as rows
from keybearer.store.queries import secrets
from keybearer.vault.keeper import REASON_LIMIT, Keeper, State
from keybearer.vault.refresh import Refresher, owners_eyes
from keybearer.vault.sealed import credential_of

LEASE = timedelta(minutes=3)
"""For which a check is one process's; longer than reading a reference and the test together may take."""
SLOWEST = 8
"""However often a check fails: at most so many times the time between two."""
BATCH = 500
_STATES: dict[str, State] = {"ok": "ok", "invalid": "failed"}
_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Due:
    """A check that this process has taken."""

    secret_id: UUID
    owner_id: UUID
    version: int
    every: timedelta
    failures: int
    """In a row, before this one."""
    runner: UUID


class Checks:
    """Which secrets are to be tested, and what was found. ``every``: for whose owners did not decide; zero: never."""

    def __init__(self, keeper: Keeper, refresher: Refresher, every: timedelta) -> None:
        self._keeper = keeper
        self._refresher = refresher
        self._every = every

    def first(self, hours: int | None, now: datetime) -> datetime | None:
        """When a secret is checked for the first time; ``hours`` is what its owner said. At any moment of the first round."""
        every = self._every if hours is None else timedelta(hours=hours)
        return now + every * random.random() if every else None  # noqa: S311  # spreads load, hides nothing

    async def plan(self) -> None:
        """Plan first checks for secrets that are older than the deployment's wish for them. For a job."""
        after: UUID | None = None
        while self._every:
            now = datetime.now(UTC)
            async with self._keeper.db.write(Actor.system()) as tx:
                found = await rows.unscheduled(tx, after, BATCH)
                await rows.schedule(tx, {secret_id: self.first(None, now) or now for secret_id in found})
            if len(found) < BATCH:
                return
            after = found[-1]

    async def take(self) -> Due | None:
        """The check that is due for the longest, as this process's for ``LEASE``; ``None``: none is due."""
        now, runner = datetime.now(UTC), uuid4()
        async with self._keeper.db.write(Actor.system()) as tx:
            row = await rows.take(tx, runner, now, now + LEASE, by_default=bool(self._every))
        if row is None:
            return None
        every = self._every if row.check_every is None else timedelta(hours=row.check_every)
        return Due(row.id, row.owner_id, row.version, every, row.check_failures or 0, runner)

    async def open(self, due: Due) -> tuple[Credential, UUID | None] | None:
        """The secret to be tested, on record before it leaves, and the model whose own it is; ``None``: it is not there any more.

        A token that has expired is refreshed first. Raises ``Unreadable``, ``KeyExpired`` (a token that could not be refreshed),
        ``Frozen``, and for what is kept elsewhere what ``External.fresh`` does.
        """

        async def find(tx: AsyncConnection) -> Any:
            row = await secrets.lock(tx, due.secret_id, (due.owner_id,))
            if row is None or not row.is_active:
                raise NotFound
            return row

        async with self._keeper.marking():
            eyes = owners_eyes(due.owner_id)
            try:
                row, content = await self._refresher.opened(None, eyes, "secret.test", find, why="health check")
            except NotFound:
                return None
            value = await self._keeper.value(row, content)
        return credential_of(row, value, KeySource(row.owner_kind)), row.model_id

    async def settle(self, due: Due, *, is_good: bool, not_before: datetime | None = None) -> None:
        """Say when it is checked next."""
        failures = 0 if is_good else due.failures + 1
        wait = due.every * min(2**failures, SLOWEST) * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311  # likewise
        next_at = datetime.now(UTC) + wait
        async with self._keeper.db.write(Actor.system()) as tx:
            await rows.settle(tx, due.secret_id, due.runner, max(next_at, not_before or next_at), failures)

    async def keep(self, credential: Credential, status: str, message: str) -> bool:
        """Keep what a test found of a version; whether the secret's state is news. ``message`` is shown, and so has no key in it."""
        found = {"checked_at": datetime.now(UTC), "check_status": status, "check_reason": message[:REASON_LIMIT]}
        key = credential.secret_id, credential.secret_version
        async with self._keeper.db.write(Actor.system()) as tx:
            if await rows.keep(tx, *key, found):
                state = _STATES.get(status)
                return state is not None and await self._keeper.mark_within(tx, *key, state, message if state == "failed" else "")
        return status == "invalid" and await self._end_overlap(credential)

    async def _end_overlap(self, credential: Credential) -> bool:
        """The value before a rotation is refused as well: it is no fallback any more. Whether it was one."""
        async with self._keeper.marking(), self._keeper.db.write(owners_eyes(credential.owner.id)) as tx:
            row = await secrets.lock(tx, credential.secret_id, (credential.owner.id,))
            if row is None or row.fallback_version != credential.secret_version:
                return False
            await self._keeper.write(tx, row, {"fallback_version": None, "fallback_until": None})
            await self._keeper.note(tx, None, "secret.fallback_failed", row, version=str(credential.secret_version))
        return True

    async def keep_problem(self, due: Due, status: str, message: str) -> None:
        """Keep why a check could not be made."""
        found = {"checked_at": datetime.now(UTC), "check_status": status, "check_reason": message[:REASON_LIMIT]}
        async with self._keeper.db.write(Actor.system()) as tx:
            await rows.keep(tx, due.secret_id, due.version, found)


def scheduled(checks: Checks, row: Any, hours: int | None, now: datetime) -> dict[str, Any]:
    """The columns of a secret whose owner has decided anew; the same decision plans nothing anew."""
    if row.check_every == hours:
        return {}
    return {"check_every": hours, "check_at": checks.first(hours, now), "check_runner": None, "check_failures": 0}
