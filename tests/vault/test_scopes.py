"""Whose key serves, in every combination of what one has oneself, what one's teams have, and what the system offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, Self
from uuid import UUID

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper
from tests.support.vault import OPENAI_KEY, World, value
from tests.vault.test_teams import join

import keybearer.vault.resolve as module
from keybearer.catalog.openrouter import stand_in
from keybearer.domain import Caller, Credential, Grade, KeySource, Role, Secret
from keybearer.errors import KeybearerError, KeyInactive
from keybearer.store.schema import secret_version
from keybearer.vault.descriptions import NewModel
from keybearer.vault.secrets import NewSecret

NEW = NewSecret("openai", value(OPENAI_KEY))
TOKEN = "A" * 12
OWN = {
    "none": None,
    "ok": None,
    "off": "key_inactive",
    "expired": "key_expired",
    "failed": "key_failed",
    "unreadable": "key_unreadable",
    "other model": "model_not_allowed",
    "other token": "key_unusable",
}
"""What one's own key is like, and why it cannot serve."""
FIRST, SECOND, SYSTEM = ("none", "ok", "off"), ("none", "ok"), ("none", "ok")
FALLBACK = {"not offered": ("ok",), "allowed": ("ok",), "with openrouter": ("none", "ok", "off"), "declined": ("ok",)}
"""What the deployment offers and the user takes, and the states of the system's key for OpenRouter to try with it."""


def expected(own: str, opted: bool, first: str, second: str, system: str, fallback: str, router: str) -> str:  # noqa: FBT001
    """Who pays, or the error: the rule of resolution once more, in the words of the specification."""
    if own == "ok":
        return "own"
    if own != "none" and not opted:
        return str(OWN[own])
    if first == "ok":
        return "first team"
    if second == "ok":
        return "second team"
    if system == "ok" and fallback in {"allowed", "with openrouter"}:
        return "system"
    if router == "ok" and fallback == "with openrouter":
        return "openrouter"
    return OWN[own] or ("key_inactive" if first == "off" else "key_missing")


@dataclass
class Stage:
    """People with every kind of own key, all in two teams."""

    world: World
    admin: Caller
    people: dict[tuple[str, bool], Caller]
    teams: dict[str, UUID]
    kept: dict[str, Secret]

    async def put(self, who: str, state: str) -> None:
        """Let a team's or the system's key be none, good or switched off."""
        there = self.kept.pop(who, None)
        if there is not None:
            await self.world.secrets.delete(self.admin, there.id)
        if state != "none":
            whose: dict[str, Any] = {"team_id": self.teams[who]} if who in self.teams else {"system": True}
            if who == "openrouter":
                whose |= {"provider": who, "save_anyway": True}
            new = replace(NEW, value=value(f"{OPENAI_KEY}{who.replace(' ', '-')}"), is_active=state == "ok", **whose)
            self.kept[who] = await self.world.secrets.create(self.admin, new)


class Later(datetime):
    """A clock two hours ahead: what is to expire in one has."""

    @classmethod
    def now(cls, tz: Any = None) -> Self:
        return super().now(tz) + timedelta(hours=2)


async def _own(world: World, person: Caller, own: str, *, opted: bool, tamper: Tamper) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "off": {"is_active": False},
        "expired": {"expires_at": datetime.now(UTC) + timedelta(hours=1)},
        "other model": {"allowed_models": ("o3",)},
        "other token": {"allowed_tokens": ("B" * 12,)},
    }
    fields = kinds.get(own, {})
    made = await world.secrets.create(person, replace(NEW, value=value(f"{OPENAI_KEY}own"), fallback_allowed=opted, **fields))
    if own == "failed":
        await world.secrets.mark(made.id, 1, "failed", "The provider answered 401.")
    if own == "unreadable":
        damaged = sa.update(secret_version).where(secret_version.c.secret_id == made.id).values(envelope=b"KB\x01\x01damaged")
        await tamper(damaged)


@pytest.fixture
async def stage(world: World, tamper: Tamper) -> Stage:
    admin = await world.person("root", Role.ADMIN)
    teams = {name: (await world.teams.create(admin, name)).team_id for name in ("second team", "first team")}
    people = {}
    for number, (own, opted) in enumerate(product(OWN, (False, True))):
        person = people[own, opted] = await world.person(f"p{number}")
        for team_id in teams.values():  # the second team first: it is their own order that counts
            await world.teams.invite(admin, team_id, f"p{number}@example.com")
        await world.teams.set_priority(person, teams["first team"], 10)
        if own != "none":
            await _own(world, person, own, opted=opted, tamper=tamper)
    return Stage(world, admin, people, teams, {})


async def _outcome(world: World, person: Caller, *, is_past_own: bool = False) -> str:
    registry = await world.providers.registry(person.user_id)
    openai = registry.get("openai")
    instead = stand_in(openai, "gpt-5", registry.get("openrouter"))
    try:
        asked = (person.user_id, TOKEN, openai, "gpt-5", instead)
        (credential, *_) = await world.resolver.resolve(*asked, is_past_own=is_past_own)
    except KeybearerError as error:
        return error.code
    return _payer(credential)


def _payer(credential: Credential) -> str:
    payer = credential.value.reveal().decode().removeprefix(OPENAI_KEY).replace("-", " ")
    assert credential.source.value == {"own": "user", "system": "system", "openrouter": "openrouter"}.get(payer, "team")
    return payer


def _states() -> Iterator[tuple[str, str, str]]:
    return product(FIRST, SECOND, SYSTEM)


async def test_every_combination(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,152 of them. One's own key that cannot serve stops the call, unless one has said that others may pay instead."""
    monkeypatch.setattr(module, "datetime", Later)
    tried = 0
    for fallback, routers in FALLBACK.items():
        world = stage.world.offering({"not offered": "none", "allowed": "system"}.get(fallback, "openrouter"))
        if fallback == "declined":
            for person in stage.people.values():
                await stage.world.users.set_fallback(person, False)
        for router in routers:
            await stage.put("openrouter", router)
            for first, second, system in _states():
                for who, state in (("first team", first), ("second team", second), ("system", system)):
                    await stage.put(who, state)
                for (own, opted), person in stage.people.items():
                    case = (own, opted, first, second, system, fallback, router)
                    assert await _outcome(world, person) == expected(*case), case
                    tried += 1
    assert tried == 16 * 12 * 6


async def test_past_ones_own_keys_others_serve_where_all_of_them_say_so(stage: Stage) -> None:
    """As where they are at their limits: whatever state they are in, none of them is taken."""
    world = stage.world.offering()
    for first, system in product(("none", "ok"), ("none", "ok")):
        await stage.put("first team", first)
        await stage.put("system", system)
        for (own, opted), person in stage.people.items():
            others = {"first team": first, "system": system}
            payer = next(
                (who for who, state in others.items() if state == "ok"), "key_missing" if own == "none" else "key_unusable"
            )
            wanted = payer if own == "none" or opted else "key_unusable"
            assert await _outcome(world, person, is_past_own=True) == wanted, (own, opted, first, system)


MODELS_KEY: dict[str, tuple[dict[str, Any], str]] = {
    "ok": ({}, "ok"),
    "off": ({"is_active": False}, "key_inactive"),
    "expired": ({"expires_at": datetime.now(UTC) + timedelta(hours=1)}, "key_expired"),
    "other model": ({"allowed_models": ("o3",)}, "model_not_allowed"),
    "other token": ({"allowed_tokens": ("B" * 12,)}, "key_unusable"),
    "failed": ({}, "key_failed"),
    "unreadable": ({}, "key_unreadable"),
    "deleted": ({}, "key_missing"),
}


async def test_a_models_own_key_that_cannot_serve_stops_the_call_whatever_is_wrong_with_it(
    world: World, tamper: Tamper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the one whose model it is said that others may pay instead of their keys, and has another that is good."""
    world = world.offering("openrouter")
    admin, ada = await world.person("root", Role.ADMIN), await world.person("ada")
    await world.secrets.create(admin, replace(NEW, system=True))
    await world.secrets.create(ada, replace(NEW, value=value(f"{OPENAI_KEY}own"), fallback_allowed=True))
    for state, (fields, outcome) in MODELS_KEY.items():
        made = await world.models.create(ada, NewModel("openai", "gpt-5", api_key=value(f"{OPENAI_KEY}models")))
        assert made.secret_id is not None
        await world.secrets.update(ada, made.secret_id, {"fallback_allowed": True, **fields})
        if state == "failed":
            await world.secrets.mark(made.secret_id, 1, "failed", "The provider answered 401.")
        if state == "unreadable":
            damaged = sa.update(secret_version).where(secret_version.c.secret_id == made.secret_id)
            await tamper(damaged.values(envelope=b"KB\x01\x01damaged"))
        if state == "deleted":
            await world.secrets.delete(ada, made.secret_id)
        called, _ = (await world.providers.registry(ada.user_id)).locate("openai/gpt-5")
        with monkeypatch.context() as later:
            later.setattr(module, "datetime", Later)
            if outcome == "ok":
                (credential,) = await world.resolver.resolve(ada.user_id, TOKEN, called, "gpt-5")
                assert (credential.source, credential.may_fall_back) == (KeySource.MODEL, False)
            else:
                with pytest.raises(KeybearerError) as stopped:
                    await world.resolver.resolve(ada.user_id, TOKEN, called, "gpt-5")
                assert stopped.value.code == outcome, state
        await world.models.delete(ada, made.id)


@pytest.mark.parametrize("state", ["ok", "off"])
async def test_a_models_own_key_comes_before_everything_and_is_replaced_by_nothing(stage: Stage, state: str) -> None:
    """Whatever one has oneself: where the model has a key of its own, that one pays, or nobody."""
    world = stage.world.offering("openrouter")
    for who in ("first team", "system", "openrouter"):
        await stage.put(who, "ok")
    for (own, opted), person in stage.people.items():
        made = await world.models.create(person, NewModel("openai", "gpt-5", api_key=value(f"{OPENAI_KEY}models")))
        assert made.secret_id is not None
        await world.secrets.update(person, made.secret_id, {"is_active": state == "ok"})
        registry = await world.providers.registry(person.user_id)
        called, _ = registry.locate("openai/gpt-5")
        instead = stand_in(called, "gpt-5", registry.get("openrouter"))
        if state == "off":
            with pytest.raises(KeyInactive):
                await world.resolver.resolve(person.user_id, TOKEN, called, "gpt-5", instead)
        else:
            (credential,) = await world.resolver.resolve(person.user_id, TOKEN, called, "gpt-5", instead)
            assert (credential.source, credential.secret_id) == (KeySource.MODEL, made.secret_id), (own, opted)


async def test_teams_serve_in_ones_own_order_then_by_when_they_were_joined(world: World) -> None:
    ada = await world.person("ada")
    team_ids = [(await world.teams.create(ada, name)).team_id for name in ("one", "two", "three")]
    bob = await join(world, ada, team_ids[0], "bob")
    for number, team_id in enumerate(team_ids):
        if number:
            await world.teams.invite(ada, team_id, "bob@example.com")
            await world.teams.accept(bob, team_id)
        await world.secrets.create(ada, replace(NEW, value=value(f"{OPENAI_KEY}{number}"), team_id=team_id))

    openai = (await world.providers.registry(bob.user_id)).get("openai")
    (only,) = await world.resolver.resolve(bob.user_id, None, openai, "gpt-5")  # failover stays inside one team
    assert only.value.reveal().decode() == f"{OPENAI_KEY}0"
    await world.teams.set_priority(bob, team_ids[2], 5)
    assert await _last(world, bob) == "2"
    await world.teams.set_priority(bob, team_ids[1], 4)
    assert await _last(world, bob) == "1"
    assert [team.name for team in await world.teams.list(bob)] == ["two", "three", "one"]
    assert [team.name for team in await world.teams.list(ada)] == ["one", "two", "three"]  # it is bob's order, nobody else's
    await world.teams.remove(bob, team_ids[1], bob.user_id)
    assert await _last(world, bob) == "2"


async def _last(world: World, person: Caller) -> str:
    openai = (await world.providers.registry(person.user_id)).get("openai")
    (credential, *_) = await world.resolver.resolve(person.user_id, None, openai, "gpt-5")
    return credential.value.reveal().decode()[-1]


async def test_inside_a_team_its_own_and_lent_keys_serve_by_priority(world: World) -> None:
    ada = await world.person("ada")
    team_id = (await world.teams.create(ada, "Research")).team_id
    bob = await join(world, ada, team_id, "bob")
    await world.secrets.create(ada, replace(NEW, value=value(f"{OPENAI_KEY}2"), priority=20, team_id=team_id))
    for number, grade in ((1, Grade.USE), (3, Grade.MANAGE)):
        lent = await world.secrets.create(
            ada, replace(NEW, name=f"lent {number}", value=value(f"{OPENAI_KEY}{number}"), priority=10 * number)
        )
        await world.shares.share(ada, lent.id, team_id, grade)
    openai = (await world.providers.registry(bob.user_id)).get("openai")
    found = await world.resolver.resolve(bob.user_id, None, openai, "gpt-5")
    assert [each.value.reveal().decode()[-1] for each in found] == ["1", "2", "3"]
    assert {each.source.value for each in found} == {"team"}
    assert {each.owner.id for each in found} == {ada.user_id, team_id}  # the record says who paid


@pytest.mark.parametrize("where", ["team's own", "lent"])
async def test_limits_of_a_teams_key_hold_for_its_members(world: World, where: str) -> None:
    """Allowed models and tokens are no less strict because the key is somebody else's."""
    ada = await world.person("ada")
    team_id = (await world.teams.create(ada, "Research")).team_id
    bob = await join(world, ada, team_id, "bob")
    whose: dict[str, Any] = {"team_id": team_id} if where == "team's own" else {}
    made = await world.secrets.create(ada, replace(NEW, **whose))
    if where == "lent":
        await world.shares.share(ada, made.id, team_id, Grade.USE)
    openai = (await world.providers.registry(bob.user_id)).get("openai")

    async def code(model: str, token: str | None) -> str:
        try:
            await world.resolver.resolve(bob.user_id, token, openai, model)
        except KeybearerError as error:
            return error.code if "of your team Research" in error.message else error.message
        return "ok"

    for fields, outcomes in (
        ({}, ("ok", "ok", "ok", "ok")),
        ({"allowed_models": ("gpt-5",)}, ("ok", "model_not_allowed", "model_not_allowed", "ok")),
        ({"allowed_tokens": (TOKEN,)}, ("key_unusable", "key_unusable", "key_unusable", "key_unusable")),
    ):
        await world.secrets.update(ada, made.id, {"allowed_models": None, "allowed_tokens": None} | fields)
        if "allowed_tokens" in fields:
            assert await code("gpt-5", TOKEN) == "ok"
        found = [await code(model, None) for model in ("gpt-5", "o3", "", "gpt-5")]
        assert tuple(found) == outcomes, fields


async def test_one_own_key_without_consent_stops_the_call_whatever_the_others_say(world: World) -> None:
    ada = await world.person("ada")
    team_id = (await world.teams.create(ada, "Research")).team_id
    bob = await join(world, ada, team_id, "bob")
    await world.secrets.create(ada, replace(NEW, value=value(f"{OPENAI_KEY}team"), team_id=team_id))
    first = await world.secrets.create(bob, replace(NEW, name="first", is_active=False, fallback_allowed=True))
    second = await world.secrets.create(bob, replace(NEW, name="second", priority=200, is_active=False))
    openai = (await world.providers.registry(bob.user_id)).get("openai")
    with pytest.raises(KeybearerError, match="'second'"):
        await world.resolver.resolve(bob.user_id, None, openai, "gpt-5")
    await world.secrets.update(bob, second.id, {"fallback_allowed": True})
    (credential,) = await world.resolver.resolve(bob.user_id, None, openai, "gpt-5")
    assert credential.owner.id == team_id
    await world.secrets.update(bob, first.id, {"is_active": True})
    (credential,) = await world.resolver.resolve(bob.user_id, None, openai, "gpt-5")
    assert credential.secret_id == first.id
