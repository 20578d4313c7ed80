"""Two people on one deployment: neither sees, uses, changes, guesses by id or tells by an error what is the other's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from tests.support.vault import OPENAI_KEY, World, value

from keybearer.domain import Caller, Role
from keybearer.errors import KeybearerError, KeyMissing, NotFound
from keybearer.vault.secrets import NewSecret, SecretFilter

Call = Callable[[World, Caller, UUID], Awaitable[Any]]

METHODS: dict[str, Call] = {
    "get": lambda world, caller, key: world.secrets.get(caller, key),
    "update nothing": lambda world, caller, key: world.secrets.update(caller, key, {}),
    "update name": lambda world, caller, key: world.secrets.update(caller, key, {"name": "mine"}),
    "update value": lambda world, caller, key: world.secrets.update(caller, key, {"value": value(OPENAI_KEY)}),
    "update wrong value": lambda world, caller, key: world.secrets.update(caller, key, {"value": value("a b")}),
    "update wrong field": lambda world, caller, key: world.secrets.update(caller, key, {"owner_id": "x"}),
    "update fetchable": lambda world, caller, key: world.secrets.update(caller, key, {"fetchable": True}),
    "confirm": lambda world, caller, key: world.secrets.confirm_egress(caller, key),
    "test": lambda world, caller, key: world.secrets.credential(caller, key),
    "delete": lambda world, caller, key: world.secrets.delete(caller, key),
}


async def answer(call: Awaitable[Any]) -> tuple[object, ...]:
    with pytest.raises(KeybearerError) as error:
        await call
    found = error.value
    return type(found), found.message, found.hint, found.fields


async def test_a_foreign_id_is_an_unknown_one_for_every_method(world: World) -> None:
    admin, ada, bob = await world.person("admin", Role.ADMIN), await world.person("ada"), await world.person("bob")
    adas = await world.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY)))
    systems = await world.secrets.create(admin, NewSecret("openai", value(OPENAI_KEY), system=True))
    expected = (NotFound, NotFound().message, NotFound().hint, ())
    for method, call in METHODS.items():
        for key in (adas.id, systems.id, uuid4()):
            assert await answer(call(world, bob, key)) == expected, method
    assert await world.secrets.get(ada, adas.id) == adas
    assert await world.secrets.get(admin, systems.id) == systems
    refusals = [record for record in await world.recorded() if record[1] == "not_found"]
    assert len(refusals) == 3 * len(METHODS)


async def test_names_and_searches_tell_nothing_of_others(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    await world.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY), name="secret project", tags=("x",)))
    for wanted in (SecretFilter(), SecretFilter(name="secret project"), SecretFilter(text="project"), SecretFilter(tag="x")):
        assert (await world.secrets.list(bob, wanted)).items == ()
    mine = await world.secrets.create(bob, NewSecret("openai", value(OPENAI_KEY), name="secret project"))
    assert [item.id for item in (await world.secrets.list(bob)).items] == [mine.id]
    assert not (await world.providers.get(bob, "anthropic")).has_api_key


async def test_a_cursor_of_anothers_listing_shows_ones_own(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    for name in ("a", "b", "c"):
        await world.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY), name=name))
    await world.secrets.create(bob, NewSecret("openai", value(OPENAI_KEY), name="z"))
    cursor = (await world.secrets.list(ada, None, None, 1)).next_cursor
    assert [item.name for item in (await world.secrets.list(bob, None, cursor)).items] == ["z"]


async def test_calls_resolve_to_ones_own_keys_only(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    adas = await world.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY)))
    openai = (await world.providers.registry(ada.user_id)).get("openai")
    with pytest.raises(KeyMissing):
        await world.resolver.resolve(bob.user_id, None, openai, "gpt-5")
    with pytest.raises(KeyMissing):
        await world.resolver.resolve(uuid4(), None, openai, "gpt-5")
    (credential,) = await world.resolver.resolve(ada.user_id, None, openai, "gpt-5")
    assert credential.secret_id == adas.id


async def test_a_foreign_id_makes_the_same_statements_as_an_unknown_one(world: World) -> None:
    """So neither takes longer; ``tests/e2e/test_two_users.py`` measures it."""
    ada, bob = await world.person("ada"), await world.person("bob")
    adas = await world.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY)))
    said: list[str] = []

    def heard(_: object, __: object, statement: str, *rest: object) -> None:
        said.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", heard)
    try:
        told = []
        for key in (adas.id, uuid4()):
            said.clear()
            await answer(world.secrets.get(bob, key))
            told.append(tuple(said))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", heard)
    assert told[0] == told[1]
    assert told[0]
