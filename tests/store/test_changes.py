"""The feed: how a process hears that something was revoked, and what it does when it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.errors import TrustLost
from keybearer.store import changes, schema
from keybearer.store.changes import Change, Feed, note, prune
from keybearer.store.db import Actor, Database


async def say(db: Database, subject_id: str) -> None:
    async with db.write(Actor.user(uuid4())) as tx:
        await note(db, tx, "token", subject_id)


async def until(condition: Callable[[], bool], *, within: float = 5.0) -> float:
    """Wait for a condition; return how long it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within, "did not happen in time"
        await asyncio.sleep(0.005)
    return time.monotonic() - start


@pytest.fixture
async def feed(database: Database) -> AsyncIterator[Feed]:
    feed = Feed(database)
    yield feed
    await feed.stop()


def hearing(feed: Feed) -> list[Change]:
    heard: list[Change] = []
    feed.subscribe(heard.append)
    return heard


async def test_a_change_is_heard_within_the_bound(database: Database, feed: Feed) -> None:
    heard = hearing(feed)
    await feed.start()
    user = uuid4()
    async with database.write(Actor.user(user)) as tx:
        await note(database, tx, "secret", "s1", user)
    assert await until(lambda: bool(heard)) < 1.0
    assert heard == [Change(feed.position, "secret", "s1", user)]
    assert feed.is_trusted()


async def test_what_a_process_changes_itself_it_hears_at_once(database: Database) -> None:
    feed = Feed(database, interval=30, trust=60)
    heard = hearing(feed)
    await feed.start()
    await say(database, "t1")
    await until(lambda: bool(heard))
    with contextlib.suppress(ZeroDivisionError):
        async with database.write(Actor.user(uuid4())) as tx:
            await note(database, tx, "token", "undone")
            raise ZeroDivisionError
    user = uuid4()
    async with database.write(Actor.user(user)) as tx:
        await changes.note_each(database, tx, "team", [("t2", user)])
    await until(lambda: len(heard) > 1)
    assert [change.subject_id for change in heard] == ["t1", "t2"]
    await feed.stop()


async def test_who_is_cancelled_at_any_moment_leaves_no_connection_behind(database: Database) -> None:
    async def look() -> None:
        async with database.watch() as tx:
            await tx.execute(sa.text("SELECT 1"))

    def taken() -> int:
        pool: Any = database._side.sync_engine.pool
        return int(pool.checkedout())

    for turns in range(120):
        await database._side.dispose()  # a connection is made anew
        looking = asyncio.create_task(look())
        for _ in range(turns):
            await asyncio.sleep(0)
        looking.cancel()
        await asyncio.wait([looking])
        await until(lambda: taken() == 0)


async def test_what_was_before_the_start_is_not_told(database: Database, feed: Feed) -> None:
    await say(database, "before")
    heard = hearing(feed)
    await feed.start()
    await say(database, "after")
    await until(lambda: bool(heard))
    assert [change.subject_id for change in heard] == ["after"]


async def test_what_is_rolled_back_is_not_told(database: Database, feed: Feed) -> None:
    heard = hearing(feed)
    await feed.start()

    async def fail() -> None:
        async with database.write(Actor.user(uuid4())) as tx:
            await note(database, tx, "token", "undone")
            raise RuntimeError("kbtest")

    with pytest.raises(RuntimeError, match="kbtest"):
        await fail()
    await say(database, "done")
    await until(lambda: bool(heard))
    # A number that was used up by the rollback may look like a gap; nothing undone is ever told as such.
    assert "undone" not in {change.subject_id for change in heard}


async def test_changes_are_told_in_the_order_of_commits(database: Database, feed: Feed) -> None:
    """Sixteen transactions at once, some slow to commit after they took their number: none is overtaken."""
    heard = hearing(feed)
    feed._interval = 0.01
    await feed.start()

    async def slow(number: int) -> None:
        async with database.write(Actor.user(uuid4())) as tx:
            await note(database, tx, "token", str(number))
            await asyncio.sleep(0.02 * (number % 3))

    await asyncio.gather(*(slow(number) for number in range(16)))
    await until(lambda: len(heard) >= 16)
    assert {change.subject_id for change in heard} == {str(number) for number in range(16)}
    assert [change.id for change in heard] == sorted({change.id for change in heard})


async def test_trust_ends_when_polls_stop(database: Database, feed: Feed) -> None:
    await feed.start()
    assert feed.is_trusted()
    await feed.stop()
    assert not feed.is_trusted()
    with pytest.raises(TrustLost):
        await feed.wait_trusted(timeout=0.05)


async def test_trust_counts_from_the_time_a_poll_was_sent(
    database: Database, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(changes, "_now", lambda: clock[0])
    feed._db = Slow(database, clock, 0.4)
    await feed._poll(first=True)
    assert feed._trusted_until == 1001.0
    clock[0] = 1000.999
    assert feed.is_trusted()
    clock[0] = 1001.0
    assert not feed.is_trusted()


async def test_grace_prolongs_trust(database: Database) -> None:
    feed = Feed(database, trust=0.05, grace=60)
    await feed.start()
    await feed.stop()
    feed = Feed(database, trust=0.05, grace=60)
    await feed._poll(first=True)
    await asyncio.sleep(0.1)
    assert feed.is_trusted()


class Slow(Database):
    """The same database, whose answers take a while by the test's clock."""

    def __init__(self, db: Database, clock: list[float], seconds: float) -> None:
        super().__init__(db.name, db._readers, db._writers, db._side, db.direct_url)
        self.clock, self.seconds = clock, seconds

    def watch(self) -> AbstractAsyncContextManager[AsyncConnection]:
        self.clock[0] += self.seconds
        return super().watch()


async def test_a_failing_listener_costs_trust_and_is_told_again(database: Database) -> None:
    feed = Feed(database, interval=0.02, trust=0.2)
    told: list[str] = []
    broken = [True]

    def listener(change: Change) -> None:
        told.append(change.subject_id)
        if broken[0]:
            raise RuntimeError("kbtest")

    feed.subscribe(listener)
    await feed.start()
    await say(database, "x")
    await until(lambda: not feed.is_trusted())
    assert len(told) > 1
    broken[0] = False
    await feed.wait_trusted(timeout=5)
    assert set(told) == {"x"}
    await feed.stop()


async def test_a_gap_is_told_as_everything(database: Database, feed: Feed) -> None:
    await say(database, "first")
    heard = hearing(feed)
    await feed._poll(first=True)
    for number in range(3):
        await say(database, str(number))
    async with database.write(Actor.system()) as tx:
        await tx.execute(sa.delete(schema.change).where(schema.change.c.subject_id.in_(["first", "0"])))
    await feed._poll()
    assert [(change.subject, change.subject_id) for change in heard] == [("everything", "")]
    await say(database, "next")
    await feed._poll()
    assert heard[-1].subject_id == "next"


async def test_a_database_put_back_is_told_as_everything(database: Database, feed: Feed) -> None:
    for number in range(3):
        await say(database, str(number))
    heard = hearing(feed)
    await feed._poll(first=True)
    async with database.write(Actor.system()) as tx:
        await tx.execute(sa.delete(schema.change))
    await feed._poll()
    assert [change.subject for change in heard] == ["everything"]


async def test_very_many_changes_are_told_as_everything(database: Database, feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "BATCH", 3)
    await say(database, "first")
    heard = hearing(feed)
    await feed._poll(first=True)
    for number in range(5):
        await say(database, str(number))
    await feed._poll()
    assert [change.subject for change in heard] == ["everything"]
    assert not [change for change in heard if change.subject_id]


async def test_pruning_keeps_an_anchor_and_loses_nothing_that_is_new(database: Database, feed: Feed) -> None:
    for number in range(5):
        await say(database, str(number))
    heard = hearing(feed)
    await feed._poll(first=True)
    long_ago = datetime.now(UTC) - timedelta(hours=2)
    async with database.write(Actor.system()) as tx:
        rows = (await tx.execute(sa.select(schema.change.c.id).order_by(schema.change.c.id))).scalars().all()
        last = (await tx.execute(sa.select(schema.change).where(schema.change.c.id == rows[-1]))).one()
        await tx.execute(sa.delete(schema.change))
        old = [{"id": row, "subject": "token", "subject_id": "old", "user_id": None, "at": long_ago} for row in rows[:-1]]
        await tx.execute(sa.insert(schema.change), [*old, dict(last._mapping)])
    assert await prune(database) == 3
    await say(database, "new")
    await feed._poll()
    assert [change.subject_id for change in heard] == ["new"]
