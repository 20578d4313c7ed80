"""The feed that tells every process what changed, so that what caches hold is never older than a bound.

A change is a row written in the transaction of the change itself. Every process polls for new ones; a good poll extends the
*trust* in what its caches hold to the poll's own send time plus ``trust`` seconds. Whoever acts on a cached token or key checks
the trust as the bytes are written. So a revocation holds everywhere within ``trust`` (+ ``grace``) of its commit, or nothing is
sent: a process that cannot hear of revocations stops by itself. PostgreSQL's NOTIFY, and a process's own
commits, only make the next poll come sooner.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.errors import TrustLost
from keybearer.store.db import Actor, Database
from keybearer.store.schema import change

CHANNEL = "keybearer_change"

EVERYTHING = "everything"
"""The subject of a change that stands for unknown ones: drop all that is cached."""

BATCH = 10_000
"""More changes than this at once are answered with one ``everything``."""

_TOGETHER = 100
"""Rows of one step: between two of them the process serves others."""
_WAKE_SPACING_S = 0.02
_LISTEN_RETRY_S = 1.0
_STOP_LIMIT_S = 5.0

# Time asleep counts: a laptop that wakes up has heard nothing since. macOS counts it in CLOCK_MONOTONIC, Linux in CLOCK_BOOTTIME.
_now: Callable[[], float] = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """One change, as it was committed: ids grow in the order of commits.

    ``subject`` is ``token``, ``user``, ``team``, ``secret``, ``provider``, ``model``, ``budget``, ``deployment`` or ``everything``;
    ``user_id`` tells whose cached keys are concerned, ``None``: everybody's.
    """

    id: int
    subject: str
    subject_id: str
    user_id: UUID | None


Listener = Callable[[Change], None]


async def note(db: Database, tx: AsyncConnection, subject: str, subject_id: str, user_id: UUID | None = None) -> None:
    """Tell every process of a change made in ``tx``. Call it last: from here to the commit, others that note anything wait."""
    await note_each(db, tx, subject, [(subject_id, user_id)])


async def note_each(db: Database, tx: AsyncConnection, subject: str, concerned: Sequence[tuple[str, UUID | None]]) -> None:
    """As ``note``, of several: each a ``subject_id`` and whose cached keys are concerned.

    Who is concerned by what several share must have been read after ``db.lock_order``: else somebody may join between that and the
    commit, unheard of.
    """
    await db.lock_order(tx)
    at = datetime.now(UTC)
    values = [{"subject": subject, "subject_id": subject_id, "user_id": user_id, "at": at} for subject_id, user_id in concerned]
    if not values:
        return
    db.notes(tx)
    for start in range(0, len(values), _TOGETHER):
        # Inline: their numbers are not asked back, for the caller may write changes but not read them.
        await tx.execute(sa.insert(change).inline(), values[start : start + _TOGETHER])
    if db.name == "postgresql":
        await tx.execute(sa.select(sa.func.pg_notify(CHANNEL, "")))


async def newest(tx: AsyncConnection) -> int:
    """The id of the last change that was committed; 0: there is none."""
    found: int = (await tx.execute(sa.select(sa.func.coalesce(sa.func.max(change.c.id), 0)))).scalar_one()
    return found


async def prune(db: Database, *, keep: timedelta = timedelta(hours=1)) -> int:
    """Delete changes older than ``keep`` but for the newest of them, and return how many.

    That one stays as an anchor: a feed that no longer finds the last change it saw knows that it may have missed some.
    """
    newest_old = sa.select(sa.func.max(change.c.id)).where(change.c.at < datetime.now(UTC) - keep).scalar_subquery()
    async with db.write(Actor.system()) as tx:
        return (await tx.execute(sa.delete(change).where(change.c.id < newest_old))).rowcount


class Feed:
    """Hears of changes and tells its listeners, in order, each at least once, on the event loop.

    ``interval``: seconds between polls; ``trust``: seconds for which one poll vouches; ``grace``: seconds more, which trade the
    bound of a revocation for availability. A listener that raises is told again and again, and trust lapses meanwhile.
    """

    def __init__(self, db: Database, *, interval: float = 0.25, trust: float = 1.0, grace: float = 0.0) -> None:
        self.position = 0
        """The id of the last change that all listeners were told of."""
        self._db = db
        self._interval = interval
        self._trust = trust + grace
        # A poll that takes longer hangs on a dead connection: it is abandoned, and the next one connects anew.
        self._poll_limit = max(1.0, 2 * trust)
        self._round = 0
        self._anchor: tuple[Any, ...] | None = None
        self._trusted_until = 0.0
        self._listeners: list[Listener] = []
        self._wake = asyncio.Event()
        self._good_poll = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def subscribe(self, listener: Listener) -> None:
        """Call ``listener`` with every change from now on. It must not block, and may be told the same change twice."""
        self._listeners.append(listener)

    async def start(self) -> None:
        """Find the newest change and begin to poll. Raises ``Unavailable`` where the database does not answer."""
        await self._poll(first=True)
        self._db.on_noted(self._wake.set)
        self._spawn(self._run())
        if self._db.direct_url:
            self._spawn(self._listen())

    async def stop(self) -> None:
        """Stop polling; trust ends at once."""
        self._trusted_until = 0.0
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_LIMIT_S)

    def is_trusted(self) -> bool:
        """Whether what is cached may still be acted on, at this instant."""
        return _now() < self._trusted_until

    async def wait_trusted(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109  # the caller's patience is part of the interface
        """Return as soon as caches may be trusted; raise ``TrustLost`` after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not self.is_trusted():
                    self._good_poll.clear()
                    await self._good_poll.wait()
        except TimeoutError:
            raise TrustLost from None

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self) -> None:
        """Poll until cancelled, whatever happens: this loop is what revocations are heard through."""
        failing = False
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._interval)
                # A burst of commits is heard in one poll.
                await asyncio.sleep(_WAKE_SPACING_S)
            self._wake.clear()
            try:
                await self._poll_bounded()
            except Exception as error:  # noqa: BLE001  # named boundary: database trouble or a listener's; trust lapses meanwhile
                if not failing:
                    _log.warning("changes are not heard: %s", error, exc_info=True)
                failing = True
            else:
                if failing:
                    _log.warning("changes are heard again")
                failing = False

    async def _poll_bounded(self) -> None:
        """Poll within the limit, or leave the poll behind with its connection and raise ``TimeoutError``."""
        task = self._spawn(self._poll())
        done, _ = await asyncio.wait({task}, timeout=self._poll_limit)
        if not done:
            # Not awaited: cancelling speaks to the server first, which may be what hangs. Should it end after all, it is ignored.
            self._round += 1
            task.cancel()
            await self._db.abandon_watch()
            raise TimeoutError("the database did not answer a poll")
        await task

    async def _poll(self, *, first: bool = False) -> None:
        sent, current = _now(), self._round
        # From the newest back to the one seen last. Finding that one again proves that nothing between was missed.
        statement = (
            sa.select(change.c.id, change.c.subject, change.c.subject_id, change.c.user_id, change.c.at)
            .where(change.c.id >= self.position)
            .order_by(change.c.id.desc())
            .limit(1 if first else BATCH)
        )
        async with self._db.watch() as tx:
            rows = [tuple(row) for row in (await tx.execute(statement)).all()]
        if current != self._round:
            return
        rows.reverse()
        for heard in () if first else self._news(rows):
            for listener in self._listeners:
                listener(heard)
        self._anchor = rows[-1] if rows else None
        self.position = self._anchor[0] if self._anchor else 0
        self._trusted_until = sent + self._trust
        self._good_poll.set()

    def _news(self, rows: list[tuple[Any, ...]]) -> list[Change]:
        """Tell which of ``rows``, oldest first, are new; where some may be missing between, one ``everything`` instead.

        The row seen last is missing if it was pruned while this process was away, or the database is an older copy.
        """
        if self._anchor is not None:
            complete = bool(rows) and rows[0] == self._anchor
            new = rows[1:]
        else:
            complete = not rows or (rows[0][0] == 1 and len(rows) < BATCH)
            new = rows
        if complete:
            return [Change(*row[:4]) for row in new]
        return [Change(rows[-1][0] if rows else 0, EVERYTHING, "", None)]

    async def _listen(self) -> None:
        """Wake the poll where PostgreSQL says that there is something. Failing costs nothing but time: polling goes on."""
        # Imported by name, here: it brings PostgreSQL's driver, a part of every start that SQLite does not need.
        listen = import_module("keybearer.store.notifications").listen
        while True:
            await listen(self._db.direct_url, CHANNEL, self._wake.set)
            await asyncio.sleep(_LISTEN_RETRY_S)
