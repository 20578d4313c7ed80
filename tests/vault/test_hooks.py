"""Reminders as signed messages: who is told where, once, verified as receivers do it, and what a wrong address is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from tests.support import receiver as receivers
from tests.support.receiver import Message, Receiver
from tests.support.tamper import Tamper
from tests.support.vault import OPENAI_KEY, World, value

from keybearer.access import freeze
from keybearer.domain import Caller, Role, SecretBytes
from keybearer.errors import Forbidden, Frozen, Invalid, NotFound, RateLimited
from keybearer.gateway.egress import EgressPolicy
from keybearer.gateway.hooks import HookPoster
from keybearer.gateway.upstream import Upstream
from keybearer.store.db import Actor
from keybearer.store.queries import hooks as rows
from keybearer.store.schema import notification, reminder_hook
from keybearer.vault.drafts import NewSecret
from keybearer.vault.hooks import TESTS, Hooks
from keybearer.vault.reminders import LEASE, TRIES, Reminders

NOW = datetime.now(UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@asynccontextmanager
async def reminding(world: World, clock: Clock, *allow: str) -> AsyncIterator[tuple[Reminders, Hooks]]:
    """What one process reminds people with."""
    upstream = Upstream(EgressPolicy(allow or ("127.0.0.1",)), connect_timeout=3)
    hooks = Hooks(world.db, world.keyring, HookPoster(upstream, seconds=3))
    try:
        yield Reminders(world.db, None, (30, 7, 1), "https://keys.example.com", clock, hooks=hooks), hooks
    finally:
        await upstream.close()


async def store(world: World, caller: Caller, name: str = "mine", days: int = 5, **more: Any) -> Any:
    draft = NewSecret("openai", value(OPENAI_KEY), name=name, expires_at=NOW + timedelta(days=days), **more)
    return await world.secrets.create(caller, draft)


def address(server: Receiver) -> SecretBytes:
    return SecretBytes(server.url.encode())


def verified(key: SecretBytes, message: Message) -> Any:
    return Webhook(key.reveal().decode()).verify(message.body, message.headers)


async def test_each_reminder_is_posted_once_and_verifies(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    clock = Clock()
    with receivers.running() as server:
        async with reminding(world, clock) as (one, hooks), reminding(world, clock) as (other, _):
            made = await hooks.put(ada, address(server), None)
            assert (made.hook.preview, made.hook.is_active, made.hook.kinds) == ("http://127.0.0.1", True, None)
            secret = await store(world, ada)
            await store(world, bob, "bob's")
            for _ in range(3):
                await asyncio.gather(one.turn(), other.turn())
        (message,) = server.messages
    assert message.path == "/hooks/kbtest-path-0123456789?a=b"
    told = verified(made.key, message)
    assert told["type"] == "secret.expiry"
    assert told["data"] == {
        "secret_id": str(secret.id),
        "provider": "openai",
        "name": "mine",
        "due_at": secret.expires_at.isoformat(),
        "days": 7,
        "url": f"https://keys.example.com/secrets/{secret.id}",
    }
    assert OPENAI_KEY[:12].encode() not in message.body
    with pytest.raises(WebhookVerificationError):
        Webhook(made.key.reveal().decode()).verify(message.body.replace(b"mine", b"your"), message.headers)
    assert ("user.set_webhook", "ok") in await world.recorded()


async def test_what_is_not_taken_is_tried_again_under_the_same_id_and_at_last_given_up(world: World) -> None:
    ada, clock = await world.person("ada"), Clock()
    with receivers.running(Receiver(answers=[500, 503, 301, 204], location="http://127.0.0.1:1/elsewhere")) as server:
        async with reminding(world, clock) as (found, hooks):
            made = await hooks.put(ada, address(server), ["expiry"])
            await store(world, ada, rotation_period=1)
            for minutes, messages in ((0, 1), (1, 1), (2.1, 2), (5, 2), (6.5, 3), (15, 4), (60, 4)):
                clock.now = NOW + timedelta(minutes=minutes)
                await found.turn()
                assert len(server.messages) == messages, minutes
                shown = await hooks.get(ada)
                assert shown is not None
                assert bool(shown.problem) == (messages < 4), minutes
            assert len({message.headers["webhook-id"] for message in server.messages}) == 1, "a redirect is not followed either"
            assert verified(made.key, server.messages[-1])["type"] == "secret.expiry"
            server.answers = [500] * 20
            await store(world, ada, "other")
            for hours in range(16):
                clock.now = NOW + timedelta(hours=1 + hours)
                await found.turn()
            assert len(server.messages) == 4 + TRIES


async def test_an_address_that_takes_nothing_keeps_nobody_else_waiting(world: World) -> None:
    """One that hangs was asked for each of a thousand reminders, one after the other, before anybody else's were sent."""
    ada, bob, clock = await world.person("ada"), await world.person("bob"), Clock()
    with receivers.running(Receiver(answers=[500] * 3 + [204] * 5)) as server, receivers.running() as other:
        async with reminding(world, clock) as (found, hooks):
            await hooks.put(ada, address(server), None)
            await hooks.put(bob, address(other), None)
            for number in range(5):
                await store(world, ada, f"ada's {number}")
            await store(world, bob)
            for minutes in (0, 1):
                clock.now = NOW + timedelta(minutes=minutes)
                await found.turn()
                assert (len(server.messages), len(other.messages)) == (1, 1), minutes
            for _ in range(10):
                clock.now += timedelta(minutes=10)
                await found.turn()
            assert (len(server.messages), len(other.messages)) == (8, 1)


async def test_an_address_that_is_gone_is_told_nothing_more(world: World) -> None:
    ada, clock = await world.person("ada"), Clock()
    with receivers.running(Receiver(answers=[410])) as server:
        async with reminding(world, clock) as (found, hooks):
            await hooks.put(ada, address(server), None)
            await store(world, ada)
            await found.turn()
            shown = await hooks.get(ada)
            assert shown is not None
            assert (shown.is_active, "gone" in shown.problem) == (False, True)
            await store(world, ada, "other")
            clock.now += timedelta(days=1)
            await found.turn()
            assert len(server.messages) == 1
            again = await hooks.put(ada, address(server), None)
            assert await hooks.test(ada, "msg_kbtest") == ""
            assert verified(again.key, server.messages[-1])["type"] == "keybearer.test"
            await hooks.delete(ada)
            with pytest.raises(NotFound):
                await hooks.test(ada, "msg_kbtest")
            assert len(server.messages) == 2


async def test_addresses_are_tried_at_a_persons_pace(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    with receivers.running() as server:
        async with reminding(world, Clock(), "192.0.2.1") as (_, hooks):
            for person in (ada, bob):
                await hooks.put(person, address(server), None)
            for _ in range(TESTS.rate.burst):
                assert "127.0.0.1" in await hooks.test(ada, "msg_kbtest")
            for _ in range(3):
                with pytest.raises(RateLimited):
                    await hooks.test(ada, "msg_kbtest")
            assert await hooks.test(bob, "msg_kbtest")
    outcomes = [outcome for action, outcome in await world.recorded() if action == "user.test_webhook"]
    assert outcomes == [*["ok"] * TESTS.rate.burst, "rate_limited", "ok"]


async def test_a_message_of_a_killed_process_is_sent_by_another(world: World, tamper: Tamper) -> None:
    ada, clock = await world.person("ada"), Clock()
    with receivers.running() as server:
        async with reminding(world, clock) as (found, hooks):
            await hooks.put(ada, address(server), None)
            await store(world, ada)
            await found.find()
            taken = sa.update(notification).where(notification.c.channel == "webhook")
            await tamper(taken.values(next_at=clock.now + LEASE, runner=uuid4(), attempts=1))  # and then it was killed
            await found.turn()
            assert not server.messages
            clock.now += LEASE + timedelta(seconds=1)
            await found.turn()
            await found.turn()
    assert len(server.messages) == 1


async def test_nothing_leaves_a_frozen_deployment_or_goes_where_it_may_not(world: World) -> None:
    ada, admin, clock = await world.person("ada"), await world.person("root", Role.ADMIN), Clock()
    with receivers.running() as server:
        async with reminding(world, clock) as (found, hooks), reminding(world, clock, "192.0.2.1") as (_, elsewhere):
            await hooks.put(ada, address(server), None)
            await store(world, ada)
            await freeze.freeze(world.db, admin)
            await found.turn()
            with pytest.raises(Frozen):
                await hooks.test(ada, "msg_kbtest")
            assert not server.messages
            await freeze.unfreeze(world.db, admin)
            await found.turn()
            assert len(server.messages) == 1
            assert "127.0.0.1" in await elsewhere.test(ada, "msg_kbtest"), "a private address that the operator does not allow"
            assert len(server.messages) == 1


@pytest.mark.parametrize(
    "url",
    ["", "kbtest", "ftp://kbtest.example", "https://a@kbtest.example/", "https://kbtest.example/#x", "https://kbtest.example/ x"],
)
async def test_what_is_no_address_is_refused_without_repeating_it(sqlite_world: World, url: str) -> None:
    ada = await sqlite_world.person("ada")
    with pytest.raises(Invalid) as refused:
        await Hooks(sqlite_world.db, sqlite_world.keyring, None).put(ada, SecretBytes(url.encode()), None)
    assert "kbtest" not in str(refused.value) + refused.value.message


async def test_it_is_the_persons_own_and_sealed(world: World, tamper: Tamper) -> None:
    ada, bob = await world.person("ada"), await world.person("bob", Role.ADMIN)
    clock = Clock()
    with receivers.running() as server:
        async with reminding(world, clock) as (_, hooks):
            await hooks.put(ada, address(server), None)
            assert await hooks.get(bob) is None
            token = Caller(ada.user_id, ada.role, ada.scopes, token_id="kbtestkbtest", client=ada.client)
            for refused in (hooks.put(token, address(server), None), hooks.delete(token), hooks.test(token, "msg_kbtest")):
                with pytest.raises(Forbidden):
                    await refused
            async with world.db.read(Actor.user(ada.user_id)) as tx:
                row = await rows.get(tx, ada.user_id)
            assert row is not None
            assert b"kbtest-path" not in bytes(row.envelope) + json.dumps(row.preview).encode()
            # A row that was edited opens no more, and is asked for anew.
            await tamper(sa.update(reminder_hook).values(version=row.version + 1))
            assert "enter the address again" in await hooks.test(ada, "msg_kbtest")
            assert not server.messages
            await hooks.put(ada, address(server), None)
            assert await hooks.test(ada, "msg_kbtest") == ""
    assert ("user.set_webhook", "forbidden") in await world.recorded()
