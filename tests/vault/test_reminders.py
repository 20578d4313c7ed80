"""Reminders of what expires or should be replaced: who hears of what, when, and that nobody hears it twice."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.support import smtp
from tests.support.vault import OPENAI_KEY, World, value

from keybearer.domain import Caller, Role, TeamRole
from keybearer.errors import Invalid, NotFound
from keybearer.gateway.mailer import Mailer
from keybearer.store.db import Actor
from keybearer.store.queries import notifications as rows
from keybearer.vault.drafts import NewSecret
from keybearer.vault.reminders import LEASE, Reminders

NOW = datetime.now(UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    def days(self, days: float) -> None:
        self.now = NOW + timedelta(days=days)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def reminders(world: World, clock: Clock, server: smtp.MailServer | None = None) -> Reminders:
    mailer = None
    if server is not None:
        mailer = Mailer(f"smtp://{smtp.USER}:{smtp.PASSWORD}@127.0.0.1:{server.port}", "Keybearer <keys@example.com>")
    return Reminders(world.db, mailer, (30, 7, 1), "https://keys.example.com", clock)


async def store(world: World, caller: Caller, name: str = "mine", **more: Any) -> Any:
    return await world.secrets.create(caller, NewSecret("openai", value(OPENAI_KEY), name=name, **more))


async def listed(found: Reminders, caller: Caller) -> list[tuple[str, str, int]]:
    items, _ = await found.page(caller, None, 50)
    return sorted((row.name, row.kind, row.days) for row in items)


async def test_each_day_reminds_once_whatever_the_number_of_processes(world: World, clock: Clock) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    secret = await store(world, ada, expires_at=NOW + timedelta(days=40))
    await store(world, ada, "never")
    with smtp.running() as server:
        processes = [reminders(world, clock, server) for _ in range(3)]
        for day, mails in ((0, 0), (11, 1), (20, 1), (34, 2), (39.5, 3), (41, 3)):
            clock.days(day)
            for _ in range(2):
                await asyncio.gather(*(process.turn() for process in processes))
            assert len(server.mails) == mails, day
    assert await listed(processes[0], ada) == [("mine", "expiry", 1), ("mine", "expiry", 7), ("mine", "expiry", 30)]
    assert await listed(processes[0], bob) == []
    mail = server.mails[0]
    assert (mail["to"], mail["from"]) == ("ada@example.com", "Keybearer <keys@example.com>")
    assert mail["subject"].startswith("Your secret 'mine' for openai expires on ")
    assert f"https://keys.example.com/secrets/{secret.id}" in mail.get_content()
    assert len({each["message-id"] for each in server.mails}) == 3
    assert not any(part in mail.as_string() for mail in server.mails for part in (OPENAI_KEY, OPENAI_KEY[:12], OPENAI_KEY[-8:]))


async def test_by_age_where_a_rotation_period_is_set(world: World, clock: Clock) -> None:
    ada = await world.person("ada")
    await store(world, ada, rotation_period=10)
    found = reminders(world, clock)
    for day in (0, 4, 9.5, 10.5, 12):
        clock.days(day)
        await found.turn()
    assert await listed(found, ada) == [("mine", "rotation", days) for days in (0, 1, 7, 30)]


async def test_a_new_expiry_is_a_new_occasion_and_an_old_one_is_dropped(world: World, clock: Clock) -> None:
    ada = await world.person("ada")
    secret = await store(world, ada, expires_at=NOW + timedelta(days=5))
    with smtp.running() as server:
        found = reminders(world, clock, server)
        await found.find()
        await world.secrets.update(ada, secret.id, {"expires_at": NOW + timedelta(days=6)})
        await found.send()
        assert not server.mails, "what is not true any more is not sent"
        await found.turn()
        assert len(server.mails) == 1
        await world.secrets.update(ada, secret.id, {"expires_at": None})
        await found.turn()
        assert len(server.mails) == 1
    await store(world, ada, "off", expires_at=NOW + timedelta(days=5), is_active=False)
    gone = await store(world, ada, "gone", expires_at=NOW + timedelta(days=5))
    await world.secrets.delete(ada, gone.id)
    await found.find()
    assert {name for name, _, _ in await listed(found, ada)} == {"mine"}


async def test_teams_tell_who_leads_them_and_the_system_its_administrators(world: World, clock: Clock) -> None:
    ada, bob, cleo = await world.person("ada"), await world.person("bob"), await world.person("cleo", Role.ADMIN)
    team = await world.teams.create(ada, "Search")
    await world.teams.invite(ada, team.team_id, "bob@example.com", TeamRole.MEMBER)
    await world.teams.accept(bob, team.team_id)
    await store(world, ada, "team's", team_id=team.team_id, expires_at=NOW + timedelta(days=5))
    await store(world, cleo, "system's", system=True, expires_at=NOW + timedelta(days=5))
    found = reminders(world, clock)
    await found.find()
    assert await listed(found, ada) == [("team's", "expiry", 7)]
    assert await listed(found, bob) == []
    assert await listed(found, cleo) == [("system's", "expiry", 7)]


async def test_who_wants_no_mail_gets_none(world: World, clock: Clock) -> None:
    ada = await world.person("ada")
    await store(world, ada, expires_at=NOW + timedelta(days=5), rotation_period=5)
    with smtp.running() as server:
        found = reminders(world, clock, server)
        assert await found.mailed(ada) == ["expiry", "rotation", "failure"]
        assert await found.set_mailed(ada, ["rotation"]) == ["rotation"]
        await found.turn()
        assert [("replaced" in mail["subject"]) for mail in server.mails] == [True]
    assert ("user.set_mailed", "ok") in await world.recorded()
    assert len(await listed(found, ada)) == 2, "the console has all"


async def test_a_mail_server_that_refuses_is_asked_again_later(world: World, clock: Clock) -> None:
    ada = await world.person("ada")
    await store(world, ada, expires_at=NOW + timedelta(days=5))
    with smtp.running(smtp.MailServer(refuses_mails=2)) as server:
        found = reminders(world, clock, server)
        for minutes, mails in ((0, 0), (1, 0), (2.1, 0), (4, 0), (6.5, 1), (60, 1)):
            clock.days(minutes / 1440)
            await found.turn()
            assert len(server.mails) == mails, minutes
        assert server.refuses_mails == 0


async def test_a_mail_that_a_killed_process_took_is_sent_by_another(world: World, clock: Clock) -> None:
    from uuid import uuid4

    ada = await world.person("ada")
    await store(world, ada, expires_at=NOW + timedelta(days=5))
    with smtp.running() as server:
        found = reminders(world, clock, server)
        await found.find()
        async with world.db.write(Actor.system()) as tx:
            taken = await rows.take(tx, uuid4(), clock.now, clock.now + LEASE, ["mail"])
        assert taken is not None
        await found.turn()
        assert not server.mails
        clock.days(LEASE / timedelta(days=1) + 0.0001)
        await found.turn()
        assert len(server.mails) == 1
        # The first one, woken, settles nothing any more.
        async with world.db.write(Actor.system()) as tx:
            await rows.settle(tx, taken, "pending", clock.now)
        await found.turn()
        assert len(server.mails) == 1


async def test_reading_is_ones_own_business(world: World, clock: Clock) -> None:
    ada, bob = await world.person("ada"), await world.person("bob", Role.ADMIN)
    await store(world, ada, expires_at=NOW + timedelta(days=5))
    found = reminders(world, clock)
    await found.find()
    ((row,), _) = await found.page(ada, None, 50)
    with pytest.raises(NotFound):
        await found.read(bob, row.id)
    await found.read(ada, row.id)
    ((row,), _) = await found.page(ada, None, 50)
    assert row.read_at == NOW


@pytest.mark.parametrize(
    ("url", "sender"),
    [("http://mail.test", "a@b.test"), ("smtp://", "a@b.test"), ("smtps://mail.test", ""), ("smtps://u:kbtest@mail.test", "me")],
)
def test_a_mailer_that_cannot_be(url: str, sender: str) -> None:
    with pytest.raises(Invalid) as error:
        Mailer(url, sender)
    assert "kbtest" not in error.value.message
