"""OAuth tokens refreshed: once whatever the number of processes, saved before they are used, by a scripted token endpoint."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper
from tests.support.vault import World, value

from keybearer.access import freeze
from keybearer.catalog import Catalog
from keybearer.domain import Asked, Caller, Secret, SecretBytes, SecretType
from keybearer.errors import Frozen, Invalid, KeyExpired, KeyFailed, UpstreamMalformed
from keybearer.store.schema import secret
from keybearer.vault.checks import Due
from keybearer.vault.drafts import NewSecret
from keybearer.vault.resolve import Resolver
from keybearer.vault.secrets import Secrets
from keybearer.vault.token_answer import Refused, read

URL = "https://oauth.example.com/token"
FIRST = "kbtest-access-0000000000000000"
GRANTED: dict[str, Any] = {"access_token": "kbtest-access-1111111111111111", "token_type": "Bearer", "expires_in": 3600}


@dataclass
class Scripted:
    """A token endpoint whose answers a test sets; ``gate`` holds them back."""

    answers: list[tuple[int, bytes]] = field(default_factory=list)
    forms: list[dict[str, list[str]]] = field(default_factory=list)
    authorizations: list[bytes] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    mistakes: int = 0
    """Of ours, at once, instead of an answer."""

    async def post(
        self, url: str, form: SecretBytes, authorization: SecretBytes | None, owner_id: UUID | None
    ) -> tuple[int, bytes]:
        assert url == URL
        assert owner_id is not None, "a user's endpoint is held to what users may reach"
        self.forms.append(parse_qs(form.reveal().decode()))
        self.authorizations.append(b"" if authorization is None else authorization.reveal())
        if self.mistakes:
            self.mistakes -= 1
            raise ZeroDivisionError
        await self.gate.wait()
        return self.answers.pop(0)

    def grants(self, **more: Any) -> None:
        self.answers.append((200, json.dumps(GRANTED | more).encode()))


@pytest.fixture
def endpoint() -> Scripted:
    scripted = Scripted()
    scripted.gate.set()
    return scripted


def process(world: World, endpoint: Scripted) -> World:
    """One process of the deployment, with caches and objects of its own."""
    secrets = Secrets(world.db, world.keyring, Catalog.load(), endpoint=endpoint)
    return replace(world, secrets=secrets, resolver=Resolver(world.db, world.keyring, secrets))


def draft(**more: Any) -> NewSecret:
    parts = {"client_id": "kbtest-client", "client_secret": "kbtest-client-secret", "refresh_token": "kbtest-refresh-0"}
    oauth: dict[str, Any] = {name: value(text) for name, text in (parts | {"token_endpoint": URL}).items()}
    return NewSecret("google_drive", value(FIRST), oauth=oauth, save_anyway=True, **more)


async def served(world: World, caller: Caller) -> str:
    providers = (await world.providers.registry(caller.user_id)).providers
    (credential, *_) = await world.resolver.resolve(caller.user_id, None, providers["google_drive"], "")
    return credential.value.reveal().decode()


async def asked(endpoint: Scripted, times: int) -> None:
    """Wait until the endpoint was asked so often."""
    deadline = asyncio.get_running_loop().time() + 20
    while len(endpoint.forms) < times:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


async def expire(tamper: Tamper) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    await tamper(sa.update(secret).values(token_expires_at=past, refresh_at=past))


async def test_a_token_is_refreshed_and_its_rotated_refresh_token_is_used_next(
    world: World, endpoint: Scripted, tamper: Tamper
) -> None:
    here = process(world, endpoint)
    bob = await here.person("bob")
    made = await here.secrets.create(bob, draft())
    assert "https://oauth.example.com:443" in made.egress
    assert await served(here, bob) == FIRST
    endpoint.grants(refresh_token="kbtest-refresh-1")
    await here.secrets.refresher.turn()
    assert await served(here, bob) == GRANTED["access_token"]
    found = await here.secrets.get(bob, made.id)
    assert found.version == 2
    assert found.token_expires_at is not None
    assert found.refresh_at is not None
    assert found.refresh_at < found.token_expires_at
    assert found.fallback_version is None
    assert endpoint.forms[0] == {"grant_type": ["refresh_token"], "refresh_token": ["kbtest-refresh-0"]}
    assert endpoint.authorizations[0] == b"Basic " + b64encode(b"kbtest-client:kbtest-client-secret")
    await here.secrets.refresher.turn()
    assert len(endpoint.forms) == 1, "not before it is due"

    await expire(tamper)
    endpoint.grants(access_token="kbtest-access-2222222222222222")
    assert await served(here, bob) == "kbtest-access-2222222222222222", "at use, where no job did"
    assert endpoint.forms[1]["refresh_token"] == ["kbtest-refresh-1"]
    versions, _ = await here.secrets.versions.list(bob, made.id)
    assert [version.version for version in versions] == [3, 1], "what people entered is kept, what a refresh made is not"
    assert ("secret.refresh", "ok") in await here.recorded()


async def test_two_processes_at_the_same_moment_make_one_request(world: World, endpoint: Scripted, tamper: Tamper) -> None:
    one, other = process(world, endpoint), process(world, endpoint)
    bob = await one.person("bob")
    await one.secrets.create(bob, draft())
    endpoint.grants()
    await one.secrets.refresher.turn()
    await expire(tamper)
    endpoint.gate.clear()
    endpoint.grants(access_token="kbtest-access-2222222222222222")
    calls = [asyncio.create_task(served(world, bob)) for world in (one, other, one, other)]
    jobs = [asyncio.create_task(world.secrets.refresher.turn()) for world in (one, other)]
    await asyncio.sleep(0.5)
    endpoint.gate.set()
    assert set(await asyncio.gather(*calls)) == {"kbtest-access-2222222222222222"}
    await asyncio.gather(*jobs)
    assert len(endpoint.forms) == 2, "one for the first, one for the second"


async def test_a_process_that_is_killed_leaves_its_lease_and_one_that_slept_writes_nothing(
    world: World, endpoint: Scripted, tamper: Tamper
) -> None:
    slept, other = process(world, endpoint), process(world, endpoint)
    bob = await slept.person("bob")
    made = await slept.secrets.create(bob, draft())
    endpoint.gate.clear()
    endpoint.grants(access_token="kbtest-access-by-the-other-one")
    endpoint.grants(access_token="kbtest-access-by-who-slept-on")
    asleep = asyncio.create_task(slept.secrets.refresher.refresh(made.id, bob.user_id))
    await asyncio.sleep(0.2)
    assert not await other.secrets.refresher.refresh(made.id, bob.user_id), "the lease holds"
    await tamper(sa.update(secret).values(refresh_until=datetime.now(UTC) - timedelta(seconds=1)))
    awake = asyncio.create_task(other.secrets.refresher.refresh(made.id, bob.user_id))
    await asyncio.sleep(0.2)
    endpoint.gate.set()
    assert sorted([await asleep, await awake]) == [False, True]
    assert (await other.secrets.get(bob, made.id)).version == 2


async def test_a_grant_is_saved_also_if_nobody_waits_for_it_any_more(world: World, endpoint: Scripted) -> None:
    here = process(world, endpoint)
    bob = await here.person("bob")
    made = await here.secrets.create(bob, draft())
    endpoint.gate.clear()
    endpoint.grants(refresh_token="kbtest-refresh-1")
    waiting = asyncio.create_task(here.secrets.refresher.refresh(made.id, bob.user_id))
    await asked(endpoint, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    ending = asyncio.create_task(here.secrets.refresher.close())
    endpoint.gate.set()
    await ending
    assert (await here.secrets.get(bob, made.id)).version == 2


async def test_a_turn_ends_when_all_of_it_has(world: World, endpoint: Scripted) -> None:
    here = process(world, endpoint)
    bob = await here.person("bob")
    both = [await here.secrets.create(bob, draft(name=name)) for name in ("one", "other")]
    endpoint.mistakes, endpoint.answers = 1, []
    endpoint.grants()
    endpoint.gate.clear()
    turn = asyncio.create_task(here.secrets.refresher.turn())
    await asked(endpoint, 2)
    await asyncio.sleep(0.05)
    assert not turn.done(), "a mistake with one token leaves the other's refresh under way"
    endpoint.gate.set()
    with pytest.raises(ZeroDivisionError):
        await turn
    assert sorted([(await here.secrets.get(bob, made.id)).version for made in both]) == [1, 2]


async def test_what_was_granted_is_saved_before_it_is_used(world: World, endpoint: Scripted) -> None:
    here = process(world, endpoint)
    bob = await here.person("bob")
    made = await here.secrets.create(bob, draft())
    endpoint.grants(refresh_token="kbtest-refresh-1")
    assert await here.secrets.refresher.refresh(made.id, bob.user_id)  # killed here: nothing was used yet
    reborn = process(world, endpoint)
    assert await served(reborn, bob) == GRANTED["access_token"]
    endpoint.grants()
    await reborn.secrets.refresher.now(bob, made.id)
    assert endpoint.forms[-1]["refresh_token"] == ["kbtest-refresh-1"]


async def test_an_ended_grant_fails_the_secret_until_it_is_entered_again(world: World, endpoint: Scripted) -> None:
    here = process(world, endpoint)
    bob = await here.person("bob")
    made = await here.secrets.create(bob, draft())
    endpoint.answers.append((400, b'{"error": "invalid_grant", "error_description": "kbtest words of another"}'))
    await here.secrets.refresher.turn()
    found = await here.secrets.get(bob, made.id)
    assert (found.state, found.refresh_at) == ("failed", None)
    assert "invalid_grant" in found.state_reason
    assert "kbtest words" not in found.state_reason
    with pytest.raises(KeyFailed):
        await served(here, bob)
    assert ("secret.failed", "ok") in await here.recorded()
    await here.secrets.refresher.turn()
    assert len(endpoint.forms) == 1
    entered = await here.secrets.update(bob, made.id, {"oauth": {"refresh_token": value("kbtest-refresh-9")}})
    assert entered.state == "ok"
    endpoint.grants()
    await here.secrets.refresher.turn()
    assert endpoint.forms[-1]["refresh_token"] == ["kbtest-refresh-9"]


async def test_what_passes_is_tried_again_ever_more_slowly_and_recorded_once(
    world: World, endpoint: Scripted, tamper: Tamper
) -> None:
    here = process(world, endpoint)
    bob = await here.person("bob")
    made = await here.secrets.create(bob, draft())
    waits = []
    for answer in ((503, b""), (200, b"<html>"), (302, b"")):
        endpoint.answers.append(answer)
        await tamper(sa.update(secret).values(refresh_at=datetime.now(UTC)))
        await here.secrets.refresher.turn()
        found = await here.secrets.get(bob, made.id)
        assert found.refresh_at is not None
        assert found.refresh_problem
        waits.append(found.refresh_at - datetime.now(UTC))
    assert waits == sorted(waits)
    assert found.state == "ok"
    assert await served(here, bob) == FIRST, "its end is not known, so it serves"
    assert [outcome for action, outcome in await here.recorded() if action == "secret.refresh"] == ["upstream_malformed"]
    await tamper(sa.update(secret).values(token_expires_at=datetime.now(UTC)))
    with pytest.raises(KeyExpired):
        await served(here, bob)


async def fetched(world: World, caller: Caller, made: Secret) -> str:
    found = await world.resolver.fetch(a_token_of(caller), Asked(id=made.id))
    assert found.credential.expires_at is None or found.credential.expires_at > datetime.now(UTC)
    return found.credential.value.reveal().decode()


async def revealed_to_a_token(world: World, caller: Caller, made: Secret) -> str:
    return (await world.secrets.reveal(a_token_of(caller), made.id)).value.reveal().decode()


async def revealed(world: World, caller: Caller, made: Secret) -> str:
    return (await world.secrets.reveal(caller, made.id)).value.reveal().decode()


async def tried(world: World, caller: Caller, made: Secret) -> str:
    return (await world.secrets.credential(caller, made.id)).value.reveal().decode()


async def checked(world: World, caller: Caller, made: Secret) -> str:
    due = Due(made.id, caller.user_id, made.version, timedelta(hours=1), 0, made.id)
    opened = await world.secrets.checks.open(due)
    assert opened is not None
    return opened[0].value.reveal().decode()


def a_token_of(caller: Caller) -> Caller:
    return replace(caller, token_id="kbtestkbtest", session_id=None)


WAYS = (fetched, revealed_to_a_token, revealed, tried, checked)
"""By which a value leaves beside calls."""


@pytest.mark.parametrize("way", WAYS)
async def test_an_expired_token_is_refreshed_whichever_way_its_value_leaves(
    world: World, endpoint: Scripted, tamper: Tamper, way: Callable[[World, Caller, Secret], Awaitable[str]]
) -> None:
    here = process(world, endpoint)
    bob = await here.person("bob")
    made = await here.secrets.create(bob, draft(fetchable=True))
    endpoint.grants()
    await here.secrets.refresher.turn()
    await expire(tamper)
    endpoint.grants(access_token="kbtest-access-2222222222222222")
    assert await way(here, bob, made) == "kbtest-access-2222222222222222"
    assert await way(here, bob, made) == "kbtest-access-2222222222222222"
    assert len(endpoint.forms) == 2
    # Its endpoint is away: what has expired does not leave, but that its owner sees what there is.
    await expire(tamper)
    endpoint.answers.append((503, b""))
    if way is revealed:
        assert await way(here, bob, made) == "kbtest-access-2222222222222222"
    else:
        with pytest.raises(KeyExpired, match="has expired"):
            await way(here, bob, made)
    assert (await here.secrets.get(bob, made.id)).state == "ok", "nothing is wrong with the grant"


async def test_an_owner_sees_an_expired_token_while_frozen_and_its_endpoint_is_not_asked(
    world: World, endpoint: Scripted, tamper: Tamper
) -> None:
    here = process(world, endpoint)
    bob = await here.person("bob")
    made = await here.secrets.create(bob, draft(fetchable=True))
    endpoint.grants()
    await here.secrets.refresher.turn()
    await expire(tamper)
    await freeze.freeze(here.db, bob)
    assert await revealed(here, bob, made) == GRANTED["access_token"]
    for way in (revealed_to_a_token, tried):
        with pytest.raises(Frozen):
            await way(here, bob, made)
    assert len(endpoint.forms) == 1


async def test_a_value_that_cannot_be_refreshed_is_fetched_from_the_next_secret(
    world: World, endpoint: Scripted, tamper: Tamper
) -> None:
    here = process(world, endpoint)
    bob = await here.person("bob")
    await here.secrets.create(bob, draft(fetchable=True))
    endpoint.grants()
    await here.secrets.refresher.turn()
    await expire(tamper)
    await here.secrets.create(
        bob, NewSecret("google_drive", value(f"{FIRST}-next"), name="next", fetchable=True, save_anyway=True)
    )
    endpoint.answers.append((503, b""))
    asked = Asked(provider="google_drive", secret_type=SecretType.OAUTH_TOKEN)
    assert (await here.resolver.fetch(a_token_of(bob), asked)).name == "next"


async def test_who_may_change_but_not_read_is_not_sent_the_grant(world: World, endpoint: Scripted) -> None:
    here = process(world, endpoint)
    bob = await here.person("bob")
    made = await here.secrets.create(bob, draft())
    evil = {"token_endpoint": value("https://evil.example/token")}
    with pytest.raises(Invalid) as refused:
        await here.secrets.update(bob, made.id, {"oauth": evil})
    assert {wrong.field for wrong in refused.value.fields} == {"oauth.refresh_token", "oauth.client_secret"}
    anew = {"refresh_token": value("kbtest-refresh-n"), "client_secret": value("kbtest-client-secret-n")}
    moved = await here.secrets.update(bob, made.id, {"oauth": evil | anew})
    assert "https://evil.example:443" in moved.egress
    assert "https://oauth.example.com:443" not in moved.egress


async def test_an_endpoint_that_is_not_bound_is_not_asked(world: World, endpoint: Scripted, tamper: Tamper) -> None:
    here = process(world, endpoint)
    bob = await here.person("bob")
    made: Secret = await here.secrets.create(bob, draft())
    await tamper(sa.update(secret).values(egress=["https://www.googleapis.com:443", "https://evil.example:443"]))
    await here.secrets.refresher.turn()
    assert endpoint.forms == []
    assert (await here.secrets.get(bob, made.id)).state == "unreadable"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b'{"access_token": 1}', b'{"access_token": ""}', b'{"access_token": "a\\nb"}', b'{"access_token": "\\ud800"}',
        b'{"access_token": "a", "token_type": "mac"}', b'{"access_token": "a", "refresh_token": ["b"]}', b"[" * 100_000,
    ],
    ids=range(10),
)  # fmt: skip
def test_hostile_answers_grant_nothing(body: bytes) -> None:
    with pytest.raises(UpstreamMalformed):
        read(200, body, datetime.now(UTC))


@pytest.mark.parametrize("expires_in", [None, 0, -1, True, "soon", [], 1e308 * 10])
def test_without_a_usable_lifetime_a_token_is_refreshed_within_the_hour(expires_in: object) -> None:
    now = datetime.now(UTC)
    granted = read(200, json.dumps({"access_token": "a", "expires_in": expires_in}).encode(), now)
    assert granted.expires_at is None
    assert granted.refresh_at == now + timedelta(hours=1)


def test_lifetimes_are_bounded_and_may_be_text() -> None:
    now = datetime.now(UTC)
    assert read(200, b'{"access_token": "a", "expires_in": 1e18}', now).expires_at == now + timedelta(days=365)
    assert read(200, b'{"access_token": "a", "expires_in": "3600"}', now).refresh_at == now + timedelta(minutes=55)
    assert read(200, b'{"access_token": "a", "expires_in": 1}', now).refresh_at == now + timedelta(seconds=30)
    with pytest.raises(Refused):
        read(200, b'{"error": "invalid_grant"}', now)
