"""A database that breaks, hangs or goes away under a running process, and what the feed makes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.support.proxy import Proxy, before_postgresql

from keybearer.errors import TrustLost, Unavailable
from keybearer.store.changes import Change, Feed, note
from keybearer.store.db import Actor, Database


async def say(db: Database, subject_id: str) -> None:
    async with db.write(Actor.user(uuid4())) as tx:
        await note(db, tx, "token", subject_id)


async def until(condition: Callable[[], bool], *, within: float = 10.0) -> float:
    """Wait for a condition; return how long it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within, "did not happen in time"
        await asyncio.sleep(0.005)
    return time.monotonic() - start


@pytest.fixture
async def near(emptied_postgresql: tuple[str, str]) -> AsyncIterator[Database]:
    """PostgreSQL as another process sees it, whose network works."""
    db = await Database.open(*emptied_postgresql)
    yield db
    await db.close()


@pytest.fixture
async def proxied(emptied_postgresql: tuple[str, str]) -> AsyncIterator[tuple[Proxy, Database]]:
    """PostgreSQL behind a network that fails on demand. Without the direct URL: polling alone must do."""
    async with before_postgresql(emptied_postgresql[0]) as (proxy, url):
        db = await Database.open(url)
        yield proxy, db
        proxy.heal()
        await db.close()


@pytest.fixture
async def feed(proxied: tuple[Proxy, Database]) -> AsyncIterator[Feed]:
    feed = Feed(proxied[1], interval=0.05)
    yield feed
    proxied[0].heal()
    await feed.stop()


def hearing(feed: Feed) -> list[Change]:
    heard: list[Change] = []
    feed.subscribe(heard.append)
    return heard


async def test_closing_waits_until_the_server_has_heard_of_who_was_cancelled_twice(
    proxied: tuple[Proxy, Database],
) -> None:
    """Else the connection is nobody's, and stays open until the collector finds it."""
    proxy, db = proxied
    inside: asyncio.Queue[None] = asyncio.Queue()

    async def stay(begun: AbstractAsyncContextManager[AsyncConnection]) -> None:
        async with begun as tx:
            await tx.execute(sa.text("SELECT 1"))
            inside.put_nowait(None)
            await asyncio.Event().wait()

    staying = [asyncio.create_task(stay(begun)) for begun in (db.read(Actor.system()), db.write(Actor.system()), db.watch())]
    for _ in staying:
        await inside.get()
    pools: list[Any] = [db._writers.sync_engine.pool, db._side.sync_engine.pool]
    proxy.silence()
    for _ in range(2):
        for each in staying:
            each.cancel()
        await asyncio.sleep(0)
    await asyncio.wait(staying, timeout=10)
    assert all(each.cancelled() for each in staying)
    closing = asyncio.create_task(db.close())
    await asyncio.wait({closing}, timeout=0.2)
    assert not closing.done()
    assert [pool.checkedout() for pool in pools] == [2, 1]
    proxy.heal()
    await closing
    assert [pool.checkedout() for pool in pools] == [0, 0]


async def test_after_a_break_the_feed_goes_on_where_it_was(proxied: tuple[Proxy, Database], feed: Feed, near: Database) -> None:
    heard = hearing(feed)
    await feed.start()
    for number in range(3):
        proxied[0].break_off()
        await say(near, str(number))
        await until(lambda number=number: len(heard) == number + 1)  # type: ignore[misc]
    assert [change.subject_id for change in heard] == ["0", "1", "2"]
    assert feed.is_trusted()


async def test_while_the_server_is_away_nothing_is_trusted_and_then_all_is_heard(
    proxied: tuple[Proxy, Database], feed: Feed, near: Database
) -> None:
    heard = hearing(feed)
    await feed.start()
    proxied[0].break_off(refuse=True)
    await say(near, "meanwhile")
    assert await until(lambda: not feed.is_trusted()) < 1.1
    with pytest.raises(TrustLost):
        await feed.wait_trusted(timeout=0.2)
    with pytest.raises(Unavailable):
        await proxied[1].ping()
    proxied[0].heal()
    await feed.wait_trusted()
    # Trust comes back with the changes, not before them.
    assert [change.subject_id for change in heard] == ["meanwhile"]
    await proxied[1].ping()


async def test_a_silent_network_is_left_for_a_new_connection(proxied: tuple[Proxy, Database], feed: Feed, near: Database) -> None:
    heard = hearing(feed)
    await feed.start()
    proxied[0].silence()
    await say(near, "meanwhile")
    assert await until(lambda: not feed.is_trusted()) < 1.1
    await asyncio.sleep(2.5)  # longer than a poll may take
    assert not feed.is_trusted()
    proxied[0].heal()
    await feed.wait_trusted()
    assert [change.subject_id for change in heard] == ["meanwhile"]


async def test_whoever_is_trusted_has_heard_all_that_was_committed_a_second_ago(
    proxied: tuple[Proxy, Database], feed: Feed, near: Database
) -> None:
    """The bound itself, sampled while the network fails in every way."""
    heard: set[str] = set()
    feed.subscribe(lambda change: heard.add(change.subject_id))
    committed: list[tuple[float, str]] = []
    await feed.start()
    done = asyncio.Event()

    async def commit() -> None:
        number = 0
        while not done.is_set():
            await say(near, str(number))
            committed.append((time.monotonic(), str(number)))
            number += 1
            await asyncio.sleep(0.01)

    async def sample() -> int:
        trusted = 0
        while not done.is_set():
            if feed.is_trusted():
                trusted += 1
                late = {name for at, name in committed if at < time.monotonic() - 1.0} - heard
                assert not late, f"trusted without having heard of {late}"
            await asyncio.sleep(0.005)
        return trusted

    async def fail() -> None:
        proxy = proxied[0]
        for failure in (proxy.silence, proxy.break_off, lambda: proxy.break_off(refuse=True)):
            failure()
            await asyncio.sleep(1.4)
            proxy.heal()
            await asyncio.sleep(0.8)
        done.set()

    _, trusted, _ = await asyncio.gather(commit(), sample(), fail())
    assert trusted > 50
    await until(lambda: {name for _, name in committed} <= heard)


async def test_a_notification_wakes_the_feed_long_before_its_next_poll(
    near: Database, emptied_postgresql: tuple[str, str]
) -> None:
    feed = Feed(near, interval=30)
    heard = hearing(feed)
    await feed.start()
    await asyncio.sleep(0.5)  # until it listens
    other = await Database.open(*emptied_postgresql)  # what a process commits itself wakes it anyway
    await say(other, "x")
    assert await until(lambda: bool(heard)) < 5
    await other.close()
    await feed.stop()


async def test_a_broken_listening_connection_is_made_anew(emptied_postgresql: tuple[str, str], near: Database) -> None:
    url, direct_url = emptied_postgresql
    async with before_postgresql(direct_url) as (proxy, through):
        db = await Database.open(url, through)
        feed = Feed(db, interval=30)
        heard = hearing(feed)
        await feed.start()
        await asyncio.sleep(0.3)
        proxy.break_off()
        await asyncio.sleep(1.8)  # until it listens again
        await say(near, "x")
        assert await until(lambda: bool(heard)) < 5
        await feed.stop()
        await db.close()


async def test_a_busy_pool_does_not_cost_trust(emptied_postgresql: tuple[str, str]) -> None:
    db = await Database.open(*emptied_postgresql, pool_size=1)
    feed = Feed(db)
    await feed.start()
    async with db.read(Actor.system()):
        await asyncio.sleep(1.5)
        assert feed.is_trusted()
    await feed.stop()
    await db.close()


async def test_a_connection_that_died_in_the_pool_is_not_the_callers_trouble(proxied: tuple[Proxy, Database]) -> None:
    proxy, db = proxied
    for _ in range(3):
        await db.ping()
        proxy.break_off()
        await asyncio.sleep(0.05)
    await db.ping()


async def test_a_connection_that_breaks_half_way_is_unavailable_and_rolls_back(
    proxied: tuple[Proxy, Database], near: Database
) -> None:
    proxy, db = proxied

    async def write() -> None:
        async with db.write(Actor.user(uuid4())) as tx:
            await note(db, tx, "token", "lost")
            proxy.break_off()

    with pytest.raises(Unavailable):
        await write()
    heard: list[str] = []
    feed = Feed(near)
    feed.subscribe(lambda change: heard.append(change.subject_id))
    await feed.start()
    assert feed.position == 0
    await feed.stop()
    await db.ping()
