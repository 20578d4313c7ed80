"""The real vault behind the gateway, on both databases: what is taken away stops working within a second, in every process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.plane.conftest import House, Opener, TwoProcesses, two_processes
from tests.plane.wire import Connection
from tests.support.vault import OPENAI_KEY, OTHER_OPENAI_KEY, value

from keybearer.access.freeze import freeze, unfreeze
from keybearer.access.tokens import AccessToken, NewToken
from keybearer.domain import Caller, Secret
from keybearer.vault.secrets import NewSecret


@dataclass
class Town(TwoProcesses):
    """A deployment of two processes, and a person with a key and a token."""

    person: Caller
    token: AccessToken
    secret: Secret
    kept: dict[int, Connection] = field(default_factory=dict)
    """By house, connections that send the same head over and over; houses without one are asked on new connections."""

    async def ask(self, house: House) -> tuple[int, str]:
        kept = self.kept.get(id(house))
        if kept is None:
            return await super().ask(house)
        await kept.send(house.request())
        return self.told(house, await kept.answer())


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
async def town(database_urls: tuple[str, str], open_house: Opener) -> AsyncIterator[Town]:
    async with two_processes(database_urls, open_house) as two:
        person = await two.vault.person("alice")
        secret = await two.vault.secrets.create(person, NewSecret("openai", value(OPENAI_KEY), save_anyway=True))
        token, two.here.token = await two.vault.tokens.create(person, NewToken("test"))
        two.there.token = two.here.token
        yield Town(two.here, two.there, two.vault, two.root, person, token, secret)


async def test_a_persons_own_key_serves_in_both_processes(town: Town) -> None:
    assert await town.ask(town.here) == await town.ask(town.there) == (200, OPENAI_KEY)


REVOCATIONS: dict[str, tuple[int, str]] = {
    "token deactivated": (401, "token_invalid"),
    "token deleted": (401, "token_invalid"),
    "token expired": (401, "token_invalid"),
    "token restricted": (403, "model_not_allowed"),
    "user disabled": (401, "token_invalid"),
    "secret deactivated": (403, "key_inactive"),
    "secret deleted": (404, "key_missing"),
    "secret replaced": (200, OTHER_OPENAI_KEY),
    "secret not for this token": (403, "key_unusable"),
    "secret not for this model": (403, "model_not_allowed"),
    "frozen": (503, "frozen"),
}


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("what", REVOCATIONS)
async def test_what_is_taken_away_stops_working_everywhere_within_a_second(town: Town, what: str, keeps: bool) -> None:  # noqa: FBT001
    for house in (town.here, town.there):
        if keeps:
            town.kept[id(house)] = await house.connect()
        for _ in range(4):  # every cache is warm, and the head is known by its spelling
            assert (await town.ask(house))[0] == 200
    await take_away(town, what)
    last = await asyncio.gather(*(town.asks_until(house, REVOCATIONS[what]) for house in (town.here, town.there)))
    assert max(last) < 1


async def take_away(town: Town, what: str) -> None:
    vault, person, token, secret = town.vault, town.person, town.token, town.secret
    in_a_moment = datetime.now(UTC) + timedelta(seconds=0.5)
    actions: dict[str, Any] = {
        "token deactivated": lambda: vault.tokens.update(person, token.id, is_active=False),
        "token deleted": lambda: vault.tokens.delete(person, token.id),
        "token expired": lambda: vault.tokens.update(person, token.id, expires_at=in_a_moment),
        "token restricted": lambda: vault.tokens.update(person, token.id, allowed_models=frozenset({"openai/gpt-4o"})),
        "user disabled": lambda: vault.users.set_active(person.user_id, False, town.root),
        "secret deactivated": lambda: vault.secrets.update(person, secret.id, {"is_active": False}),
        "secret deleted": lambda: vault.secrets.delete(person, secret.id),
        "secret replaced": lambda: vault.secrets.update(
            person, secret.id, {"value": value(OTHER_OPENAI_KEY), "save_anyway": True}
        ),
        "secret not for this token": lambda: vault.secrets.update(person, secret.id, {"allowed_tokens": ("0" * 12,)}),
        "secret not for this model": lambda: vault.secrets.update(person, secret.id, {"allowed_models": ("gpt-4o",)}),
        "frozen": lambda: freeze(vault.db, town.root),
    }
    await actions[what]()


async def test_what_is_given_back_works_again(town: Town) -> None:
    await town.vault.secrets.update(town.person, town.secret.id, {"is_active": False})
    assert await town.ask(town.there) == (403, "key_inactive")
    await town.vault.secrets.update(town.person, town.secret.id, {"is_active": True})
    await town.asks_until(town.there, (200, OPENAI_KEY))
    assert await freeze(town.vault.db, town.root)
    assert not await freeze(town.vault.db, town.root)
    await town.asks_until(town.there, (503, "frozen"))
    assert await unfreeze(town.vault.db, town.root)
    await town.asks_until(town.there, (200, OPENAI_KEY))


async def test_a_providers_new_address_gets_no_key_that_is_not_bound_to_it(town: Town) -> None:
    assert await town.ask(town.here) == (200, OPENAI_KEY)
    received = len(town.here.provider.received)
    await town.vault.allowing("127.0.0.1").providers.update(town.root, "openai", {"base_url": "http://127.0.0.1:1"})
    await town.asks_until(town.there, (403, "egress_refused"))
    await town.asks_until(town.here, (403, "egress_refused"))
    assert len(town.here.provider.received) >= received


async def test_two_peoples_tokens_never_meet_each_others_keys(town: Town) -> None:
    bob = await town.vault.person("bob")
    _, text = await town.vault.tokens.create(bob, NewToken("bob's"))
    assert await town.ask(town.here) == (200, OPENAI_KEY)
    alices, town.here.token = town.here.token, text
    assert await town.ask(town.here) == (404, "key_missing")
    await town.vault.secrets.create(bob, NewSecret("openai", value(OTHER_OPENAI_KEY), save_anyway=True))
    await town.asks_until(town.here, (200, OTHER_OPENAI_KEY))
    town.here.token = alices
    assert await town.ask(town.here) == (200, OPENAI_KEY)
