"""Keys that are tested on a schedule: by one process each, kept and told once, never while frozen, and on after a kill."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper
from tests.support.vault import ANTHROPIC_KEY, OPENAI_KEY, OTHER_OPENAI_KEY, World, value

from keybearer.access import freeze
from keybearer.catalog import Catalog
from keybearer.domain import Caller, KeySource, Role, Secret, TeamRole
from keybearer.errors import Invalid, KeyFailed, Unavailable
from keybearer.gateway.checks import Checker
from keybearer.gateway.credentials import Credentials
from keybearer.gateway.dial import Dialer
from keybearer.gateway.egress import EgressPolicy
from keybearer.gateway.prober import Prober
from keybearer.gateway.ready import now
from keybearer.gateway.refused import RefusedKeys
from keybearer.gateway.upstream import Upstream
from keybearer.mock import MockProvider, Options, start
from keybearer.store.changes import Feed
from keybearer.store.schema import secret
from keybearer.vault import checks
from keybearer.vault.descriptions import NewModel
from keybearer.vault.drafts import NewSecret
from keybearer.vault.reminders import Reminders
from keybearer.vault.retention import Retention
from keybearer.vault.secrets import Secrets

NOW = datetime.now(UTC)


@dataclass
class Site:
    """A provider whose list of valid keys can be changed, and processes that check keys there."""

    world: World
    tamper: Tamper
    provider: MockProvider
    admin: Caller
    processes: list[Checker]
    credentials: list[Credentials]

    async def knows(self, key: str) -> None:
        """Have the provider know this key and no other."""
        await self.provider.close()
        self.provider = await start(port=self.provider.port, options=Options(keys={"openai": frozenset({key})}))

    async def turn(self) -> None:
        """All processes at once, until nothing is due."""
        await asyncio.gather(*(process.turn() for process in self.processes))

    async def due(self, secret_id: UUID | None = None, **columns: Any) -> None:
        """The time of the next check has come."""
        where = secret.c.check_at.is_not(None) if secret_id is None else secret.c.id == secret_id
        await self.tamper(sa.update(secret).where(where).values(check_at=NOW - timedelta(minutes=1), **columns))

    def asked(self) -> int:
        """How often the provider was, since it was asked so last."""
        count = len(list(self.provider.requests))
        self.provider.requests.clear()
        return count

    async def told(self, caller: Caller) -> list[tuple[str, str]]:
        found = Reminders(self.world.db, None, (30, 7, 1), "https://keys.example.com")
        await found.turn()
        items, _ = await found.page(caller, None, 50)
        return [(row.name, row.kind) for row in items]


@asynccontextmanager
async def process(world: World) -> AsyncIterator[tuple[Checker, Credentials]]:
    """What one server process checks keys with."""
    feed = Feed(world.db, interval=0.02)
    upstream = Upstream(EgressPolicy(("127.0.0.1",)), read_timeout=3)
    credentials = Credentials(world.db, feed, world.tokens, world.providers, world.resolver)
    await feed.start()
    prober = Prober(upstream, upstream, Dialer(("127.0.0.1",)))
    try:
        yield Checker(credentials, prober, world.providers, world.models, world.secrets), credentials
    finally:
        credentials.close()
        await feed.stop()
        await upstream.close()


@pytest.fixture
async def site(world: World, tamper: Tamper) -> AsyncIterator[Site]:
    provider = await start()
    world = world.allowing("127.0.0.1")
    admin = await world.person("root", Role.ADMIN)
    await world.providers.update(admin, "openai", {"base_url": f"{provider.url}/openai/v1"})
    async with process(world) as one, process(world) as other:
        site = Site(world, tamper, provider, admin, [one[0], other[0]], [one[1], other[1]])
        yield site
        await site.provider.close()


async def store(site: Site, caller: Caller, name: str = "mine", **more: Any) -> Secret:
    draft = NewSecret("openai", value(OPENAI_KEY), name=name, save_anyway=True, **{"health_check_every": 24, **more})
    return await site.world.secrets.create(caller, draft)


async def test_a_key_is_checked_by_one_process_and_what_was_found_is_kept(site: Site) -> None:
    ada = await site.world.person("ada")
    kept = [await store(site, ada, f"key {number}") for number in range(6)]
    assert all(NOW <= each.next_check_at <= datetime.now(UTC) + timedelta(hours=24) for each in kept if each.next_check_at)
    assert len({each.next_check_at for each in kept}) == 6, "spread in time"
    await site.turn()
    assert site.asked() == 0, "none is due"
    await site.due()
    await site.turn()
    assert site.asked() == 6, "each once, by whichever process"
    for each in kept:
        found = await site.world.secrets.get(ada, each.id)
        assert (found.state, found.check_status, found.check_reason) == ("ok", "ok", "")
        assert found.checked_at is not None
        assert found.next_check_at is not None
        assert timedelta(hours=21) < found.next_check_at - found.checked_at < timedelta(hours=27)
    assert (await site.world.recorded()).count(("secret.test", "ok")) == 6
    await site.turn()
    assert site.asked() == 0


async def test_a_key_that_fails_is_marked_told_once_and_mended(site: Site) -> None:
    ada, bob = await site.world.person("ada"), await site.world.person("bob")
    one = await store(site, ada)
    await site.knows(OTHER_OPENAI_KEY)
    for _ in range(3):
        await site.due()
        await site.turn()
    found = await site.world.secrets.get(ada, one.id)
    assert (found.state, found.check_status) == ("failed", "invalid")
    assert "Incorrect API key" in found.state_reason
    assert OPENAI_KEY not in found.state_reason + found.check_reason
    assert found.failed_at is not None
    assert await site.told(ada) == [("mine", "failure")]
    assert await site.told(ada) == [("mine", "failure")]
    assert await site.told(bob) == []
    assert found.next_check_at is not None
    assert found.next_check_at - datetime.now(UTC) > timedelta(hours=150), "ever more seldom"
    # Paid, or whatever it was: the provider knows it again.
    await site.knows(OPENAI_KEY)
    await site.due()
    await site.turn()
    mended = await site.world.secrets.get(ada, one.id)
    assert (mended.state, mended.state_reason, mended.check_status, mended.failed_at) == ("ok", "", "ok", None)
    await site.knows(OTHER_OPENAI_KEY)
    await site.due()
    await site.turn()
    assert await site.told(ada) == [("mine", "failure")] * 2, "good, and failed again: that is news"


async def test_what_is_no_verdict_on_the_key_marks_nothing(site: Site) -> None:
    ada = await site.world.person("ada")
    for words, status in (
        ("402", "no_credit"),
        ("403", "forbidden"),
        ("429", "rate_limited"),
        ("500", "error"),
        ("drop", "unreachable"),
    ):
        one = await store(site, ada, words)
        changed = {"value": value(f"sk-kbtest-mock-{words}"), "save_anyway": True}
        await site.world.secrets.update(ada, one.id, changed)
        await site.due(one.id)
        await site.turn()
        found = await site.world.secrets.get(ada, one.id)
        assert (found.state, found.check_status) == ("ok", status)
    assert await site.told(ada) == []


async def test_none_is_checked_that_is_off_ended_deleted_or_unwanted(site: Site) -> None:
    ada = await site.world.person("ada")
    off, ended, deleted, never = [await store(site, ada, name) for name in ("off", "ended", "deleted", "never")]
    await site.world.secrets.update(ada, off.id, {"is_active": False})
    await site.world.secrets.update(ada, ended.id, {"expires_at": datetime.now(UTC) + timedelta(seconds=0.3)})
    await site.world.secrets.delete(ada, deleted.id)
    await site.world.secrets.update(ada, never.id, {"health_check_every": 0})
    undecided = await store(site, ada, "undecided", health_check_every=None)
    assert undecided.next_check_at is None
    assert (await site.world.secrets.get(ada, never.id)).next_check_at is None
    await asyncio.sleep(0.3)
    await site.due()
    await site.turn()
    assert site.asked() == 0
    await site.world.secrets.update(ada, off.id, {"is_active": True})
    await site.turn()
    assert site.asked() == 1, "switched on, it is due at once"
    with pytest.raises(Invalid):
        await site.world.secrets.update(ada, off.id, {"health_check_every": 100_000})


async def test_the_deployment_may_want_all_keys_checked(site: Site) -> None:
    ada = await site.world.person("ada")
    older = await store(site, ada, "older", health_check_every=None)
    never = await store(site, ada, "never", health_check_every=0)
    secrets = Secrets(site.world.db, site.world.keyring, Catalog.load(), Retention(checked=timedelta(hours=1)))
    site.world = replace(site.world, secrets=secrets)
    newer = await store(site, ada, "newer", health_check_every=None)
    assert newer.next_check_at is not None
    await secrets.checks.plan()
    assert (await secrets.get(ada, older.id)).next_check_at is not None
    assert (await secrets.get(ada, never.id)).next_check_at is None
    await site.due()
    async with process(site.world) as (checker, _):
        await site.turn()
        assert site.asked() == 0, "by those who have not been told so, none"
        await checker.turn()
        assert site.asked() == 2


async def test_none_leaves_a_frozen_deployment(site: Site) -> None:
    ada = await site.world.person("ada")
    one = await store(site, ada)
    await freeze.freeze(site.world.db, site.admin)
    await asyncio.sleep(0.1)
    await site.due()
    await site.turn()
    assert site.asked() == 0
    await freeze.unfreeze(site.world.db, site.admin)
    await asyncio.sleep(0.1)
    await site.turn()
    assert site.asked() == 1
    assert (await site.world.secrets.get(ada, one.id)).check_status == "ok"


async def test_a_check_of_a_killed_process_is_made_by_another_after_its_lease(site: Site) -> None:
    ada = await site.world.person("ada")
    one = await store(site, ada)
    await site.due()
    lost = await site.world.secrets.checks.take()
    assert lost is not None
    await site.turn()
    assert site.asked() == 0, "it is taken"
    await site.due()  # the lease has ended
    await site.turn()
    assert site.asked() == 1
    before = await site.world.secrets.get(ada, one.id)
    await site.world.secrets.checks.settle(lost, is_good=False)
    assert (await site.world.secrets.get(ada, one.id)).next_check_at == before.next_check_at, "who comes late settles nothing"
    assert timedelta(minutes=1) < checks.LEASE


async def test_teams_systems_and_models_keys_are_checked_too(site: Site) -> None:
    world = site.world
    ada, bob = await world.person("ada"), await world.person("bob")
    team = await world.teams.create(ada, "Search")
    await world.teams.invite(ada, team.team_id, "bob@example.com", TeamRole.MEMBER)
    await world.teams.accept(bob, team.team_id)
    teams = await store(site, ada, "team's", team_id=team.team_id)
    systems = await store(site, site.admin, "system's", system=True)
    model = await world.models.create(
        ada,
        NewModel("openai", "gpt-x", base_url="https://models.example.com/v1", api_key=value(OTHER_OPENAI_KEY), save_anyway=True),
    )
    assert model.secret_id is not None
    await world.secrets.update(ada, model.secret_id, {"health_check_every": 1})
    await site.knows(ANTHROPIC_KEY)
    await site.due()
    await site.turn()
    assert site.asked() == 2, "the model's own goes to where that is, and nowhere else"
    assert (await world.secrets.get(ada, teams.id)).state == "failed"
    assert (await world.secrets.get(site.admin, systems.id)).state == "failed"
    assert (await world.secrets.get(ada, model.secret_id)).check_status in {"dns", "timeout", "unreachable"}
    assert await site.told(ada) == [("team's", "failure")]
    assert await site.told(bob) == []
    assert await site.told(site.admin) == [("system's", "failure")]


async def test_one_that_does_not_open_or_is_kept_elsewhere(site: Site) -> None:
    ada = await site.world.person("ada")
    edited, hooked = (
        await store(site, ada, "edited"),
        await site.world.secrets.create(
            ada, NewSecret("webhook", value("whsec_a2J0ZXN0LXNpZ25pbmctc2VjcmV0LTEyMzQ="), name="signs", health_check_every=1)
        ),
    )
    await site.due()
    await site.tamper(sa.update(secret).where(secret.c.id == edited.id).values(priority=1))
    await site.turn()
    assert site.asked() == 0
    assert (await site.world.secrets.get(ada, edited.id)).state == "unreadable"
    untested = await site.world.secrets.get(ada, hooked.id)
    assert (untested.state, untested.check_status) == ("ok", None), "what has no test is not called good or bad"
    assert untested.next_check_at is not None
    assert untested.next_check_at > datetime.now(UTC)
    cooling = await store(site, ada, "cooling")
    for credentials in site.credentials:
        credentials.healths.of(cooling.id, 1).failed(429, "gpt-x", now(), 600.0)
    await site.due(cooling.id)
    await site.turn()
    assert site.asked() == 0, "its provider asked for a pause"


async def test_keys_that_are_refused_in_use_are_marked_whosesoever_they_are(site: Site) -> None:
    """The system's, which serve by KEYBEARER_FALLBACK, like a person's own; a model's own where that is; a fallback ends."""
    world = site.world.offering()
    ada = await world.person("ada")
    systems = await store(site, site.admin, "system's", system=True)
    await site.knows(ANTHROPIC_KEY)
    told = RefusedKeys(site.credentials[0], site.processes[0], world.secrets)
    openai = (await world.providers.registry(ada.user_id)).get("openai")
    (fallen,) = await world.resolver.resolve(ada.user_id, None, openai, "gpt-x")
    assert fallen.source is KeySource.SYSTEM
    told.told(fallen, 401)
    await settled(told)
    marked = await world.secrets.get(site.admin, systems.id)
    assert (marked.state, marked.failed_at is None) == ("failed", False)
    assert marked.state_reason.startswith("Refused in use (401) and in a test: ")
    assert await site.told(site.admin) == [("system's", "failure")]
    assert await site.told(ada) == []

    # A rotation whose new value is refused: the one before serves, until it is refused as well.
    mine = await store(site, ada)
    await world.secrets.versions.rotate(ada, mine.id, value(OTHER_OPENAI_KEY), overlap=timedelta(hours=1))
    new, old = await world.resolver.resolve(ada.user_id, None, openai, "gpt-x")
    assert old.is_fallback
    for credential in (old, new):
        told.told(credential, 401)
        await settled(told)
    marked = await world.secrets.get(ada, mine.id)
    assert (marked.state, marked.fallback_version, marked.fallback_until) == ("failed", None, None)
    assert ("secret.fallback_failed", "ok") in await world.recorded()
    with pytest.raises(KeyFailed):
        await world.resolver.resolve(ada.user_id, None, openai, "gpt-x")
    await told.close()


async def settled(told: RefusedKeys) -> None:
    await asyncio.gather(*told._tasks)


async def test_a_turn_ends_when_all_its_tests_have(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await site.world.person("ada")
    made = await store(site, ada)
    await site.due()
    first = site.world.secrets.checks.take
    begun: list[str] = []

    async def take() -> checks.Due | None:
        if begun:
            raise Unavailable
        begun.append("one")
        return await first()

    monkeypatch.setattr(site.world.secrets.checks, "take", take)
    with pytest.raises(Unavailable):
        await site.processes[0].turn()
    assert (await site.world.secrets.get(ada, made.id)).check_status == "ok", "the other test is not left behind"
