"""Keys of a team's and lent keys behind the gateway, on both databases: access ends within a second, in every process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from tests.plane.conftest import House, Opener, TwoProcesses, two_processes
from tests.plane.wire import Answer
from tests.support.vault import OPENAI_KEY, OTHER_OPENAI_KEY, value

from keybearer.access.tokens import NewToken
from keybearer.domain import Caller, Grade, Secret, TeamRole
from keybearer.vault.secrets import NewSecret


@dataclass
class Yard(TwoProcesses):
    """A deployment of two processes; ada leads a team that bob is in. Bob calls."""

    ada: Caller
    bob: Caller
    team: UUID
    lent: Secret

    @staticmethod
    def told(house: House, answer: Answer) -> tuple[int, str]:
        assert answer.status != 200 or answer["x-keybearer-key-source"] == "team"
        return TwoProcesses.told(house, answer)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
async def yard(database_urls: tuple[str, str], open_house: Opener) -> AsyncIterator[Yard]:
    async with two_processes(database_urls, open_house) as two:
        vault = two.vault
        ada, bob = await vault.person("ada"), await vault.person("bob")
        team = (await vault.teams.create(ada, "Research")).team_id
        await vault.teams.invite(ada, team, "bob@example.com")
        await vault.teams.accept(bob, team)
        lent = await vault.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY), save_anyway=True))
        await vault.shares.share(ada, lent.id, team, Grade.MANAGE)
        _, two.here.token = await vault.tokens.create(bob, NewToken("bob's"))
        two.there.token = two.here.token
        yield Yard(two.here, two.there, vault, two.root, ada, bob, team, lent)


NONE = (404, "key_missing")
ENDS: dict[str, tuple[int, str]] = {
    "bob leaves": NONE,
    "bob is removed": NONE,
    "ada ends the share": NONE,
    "ada leaves": NONE,
    "the team is deleted": NONE,
    "ada deletes the key": NONE,
    "ada switches it off": (403, "key_inactive"),
    "ada limits it to other tokens": (403, "key_unusable"),
    "ada limits it to other models": (403, "model_not_allowed"),
    "ada replaces it": (200, OTHER_OPENAI_KEY),
    "bob replaces it": (200, OTHER_OPENAI_KEY),
}


@pytest.mark.parametrize("what", ENDS)
async def test_what_ends_or_changes_a_lent_key_is_heard_everywhere_within_a_second(yard: Yard, what: str) -> None:
    for house in (yard.here, yard.there):
        assert await yard.ask(house) == (200, OPENAI_KEY)  # every cache is warm
    await happen(yard, what)
    last = await asyncio.gather(*(yard.asks_until(house, ENDS[what]) for house in (yard.here, yard.there)))
    assert max(last) < 1


async def happen(yard: Yard, what: str) -> None:
    vault, ada, bob, team, lent = yard.vault, yard.ada, yard.bob, yard.team, yard.lent
    new = {"value": value(OTHER_OPENAI_KEY), "save_anyway": True}
    if what == "ada leaves":
        await vault.teams.set_role(ada, team, bob.user_id, TeamRole.OWNER)
    happens: dict[str, Any] = {
        "bob leaves": lambda: vault.teams.remove(bob, team, bob.user_id),
        "bob is removed": lambda: vault.teams.remove(ada, team, bob.user_id),
        "ada ends the share": lambda: vault.shares.unshare(ada, lent.id, team),
        "ada leaves": lambda: vault.teams.remove(ada, team, ada.user_id),
        "the team is deleted": lambda: vault.teams.delete(ada, team),
        "ada deletes the key": lambda: vault.secrets.delete(ada, lent.id),
        "ada switches it off": lambda: vault.secrets.update(ada, lent.id, {"is_active": False}),
        "ada limits it to other tokens": lambda: vault.secrets.update(ada, lent.id, {"allowed_tokens": ("0" * 12,)}),
        "ada limits it to other models": lambda: vault.secrets.update(ada, lent.id, {"allowed_models": ("gpt-4o",)}),
        "ada replaces it": lambda: vault.secrets.update(ada, lent.id, new),
        "bob replaces it": lambda: vault.secrets.update(bob, lent.id, new),
    }
    await happens[what]()


@pytest.mark.parametrize("end", ["removed from the team", "key switched off"])
async def test_a_teams_own_key_and_who_is_in_the_team(yard: Yard, end: str) -> None:
    """Bob's second team has a key of its own; he joins, calls, and is removed, or the key is switched off."""
    second = (await yard.vault.teams.create(yard.ada, "Second")).team_id
    kept = await yard.vault.secrets.create(
        yard.ada, NewSecret("openai", value(OTHER_OPENAI_KEY), team_id=second, save_anyway=True)
    )
    for house in (yard.here, yard.there):
        assert await yard.ask(house) == (200, OPENAI_KEY)
    await yard.vault.teams.invite(yard.ada, second, "bob@example.com")
    await yard.vault.teams.accept(yard.bob, second)
    await yard.vault.teams.set_priority(yard.bob, second, 1)  # who pays changes as soon as bob says so
    last = await asyncio.gather(*(yard.asks_until(house, (200, OTHER_OPENAI_KEY)) for house in (yard.here, yard.there)))
    assert max(last) < 1
    if end == "key switched off":
        await yard.vault.secrets.update(yard.ada, kept.id, {"is_active": False})
    else:
        await yard.vault.teams.remove(yard.ada, second, yard.bob.user_id)
    last = await asyncio.gather(*(yard.asks_until(house, (200, OPENAI_KEY)) for house in (yard.here, yard.there)))
    assert max(last) < 1


async def test_who_joins_while_a_key_is_withdrawn_is_told_of_it_too(yard: Yard) -> None:
    """Joining and withdrawing race; whichever commits first, the one who joined does not go on with the key."""
    for attempt in range(6):
        cleo = await yard.vault.person(f"cleo{attempt}")
        await yard.vault.teams.invite(yard.ada, yard.team, f"cleo{attempt}@example.com")
        _, yard.here.token = await yard.vault.tokens.create(cleo, NewToken("cleo's"))
        yard.there.token = yard.here.token
        await asyncio.gather(
            yard.vault.teams.accept(cleo, yard.team),
            yard.vault.secrets.update(yard.ada, yard.lent.id, {"is_active": False}),
            *(yard.ask(house) for house in (yard.here, yard.there)),
        )
        last = await asyncio.gather(*(yard.asks_until(house, (403, "key_inactive")) for house in (yard.here, yard.there)))
        assert max(last) < 1
        await asyncio.sleep(0.3)
        assert await yard.ask(yard.here) == (403, "key_inactive")
        await yard.vault.secrets.update(yard.ada, yard.lent.id, {"is_active": True})
