"""Registered models where somebody has the database in their hands: what was not written here steers no call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper
from tests.support.vault import OPENAI_KEY, OTHER_OPENAI_KEY, World, value
from tests.vault.test_teams import join

from keybearer.domain import KeySource, Owner, OwnerKind, Role
from keybearer.errors import Conflict, EgressRefused, Forbidden, KeyMissing, KeyUnreadable, NotFound
from keybearer.store.schema import model, secret, secret_version
from keybearer.vault.descriptions import NewModel
from keybearer.vault.secrets import NewSecret

MINE = NewModel("openai", "gpt-5", base_url="https://llm.example/v1", api_key=value("kbtest-own-0123456789"), aliases=("best",))


async def test_a_registered_model_is_called_as_it_was_registered(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    made = await world.models.create(ada, MINE)
    registry = await world.providers.registry(ada.user_id)
    for name in ("gpt-5", "openai/gpt-5", "best"):
        provider, bare = registry.locate(name)
        assert (provider.base_url, provider.owner_id, bare) == ("https://llm.example/v1", ada.user_id, "gpt-5")
        assert provider.roots["openai"] == b"/v1"
    assert registry.locate("openai/gpt-5-mini")[0].registered is None
    (credential,) = await world.resolver.resolve(ada.user_id, None, registry.locate("best")[0], "gpt-5")
    assert (credential.source, credential.secret_id) == (KeySource.MODEL, made.secret_id)
    assert credential.egress == ("https://llm.example:443",)
    assert (await world.providers.registry(bob.user_id)).locate("gpt-5")[0].registered is None
    # A key of a model's is no key of the provider's.
    with pytest.raises(KeyMissing):
        await world.resolver.resolve(ada.user_id, None, registry.get("openai"), "o3")
    assert not (await world.providers.get(ada, "openai")).has_api_key


@pytest.mark.parametrize(
    "edit",
    [
        {"base_url": "https://evil.example"},
        {"base_url": None},
        {"secret_id": UUID(int=9)},
        {"secret_id": None},
        {"aliases": ["gpt-4o"]},
        {"auth_style": "header", "auth_header": "x-leak"},
        {"parameters": '{"user":"x"}'},
        {"mac": b"x" * 32},
        {"mac": None},
        {"provider": "groq"},
        {"name": "gpt-4o"},
    ],
    ids=str,
)
async def test_an_edited_row_steers_no_call(world: World, tamper: Tamper, edit: dict[str, Any]) -> None:
    ada = await world.person("ada")
    made = await world.models.create(ada, MINE)
    await tamper(sa.update(model).values(**edit))
    registry = await world.providers.registry(ada.user_id)
    assert registry.aliases == {}
    for name in ("openai/gpt-5", "openai/gpt-4o", "groq/gpt-5"):
        assert registry.locate(name)[0].registered is None
    with pytest.raises(NotFound):
        await world.models.get(ada, made.id)
    assert (await world.models.list(ada))[0] == ()
    await world.models.delete(ada, made.id)  # it can still be taken away


async def test_an_inserted_row_is_a_bare_name_or_nothing(world: World, tamper: Tamper) -> None:
    ada = await world.person("ada")
    await world.models.create(ada, replace(MINE, api_key=None))
    row = {"id": uuid4(), "owner_id": ada.user_id, "provider": "openai", "name": "x", "display_name": "x"}
    row |= {"created_at": (await world.models.list(ada))[0][0].created_at}
    await tamper(sa.insert(model).values(**row, base_url="https://evil.example", mac=b""))
    await tamper(sa.insert(model).values(**row | {"id": uuid4(), "name": "y"}))
    registry = await world.providers.registry(ada.user_id)
    assert registry.locate("openai/x")[0].registered is None
    assert registry.locate("openai/y")[0].registered is None
    assert {"x", "y"} & {known.name for known in registry.get("openai").models} == {"y"}


async def test_another_secret_is_not_made_a_models_own(world: World, tamper: Tamper) -> None:
    ada = await world.person("ada")
    made = await world.models.create(ada, MINE)
    other = await world.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY)))
    provider, _ = (await world.providers.registry(ada.user_id)).locate("best")
    await tamper(sa.update(secret).where(secret.c.id == made.secret_id).values(model_id=uuid4()))
    with pytest.raises(KeyMissing, match="deleted"):
        await world.resolver.resolve(ada.user_id, None, provider, "gpt-5")
    await tamper(sa.update(secret).where(secret.c.id == made.secret_id).values(model_id=None))
    await world.secrets.delete(ada, other.id)
    with pytest.raises(KeyUnreadable):  # freed, it is not as it was written, and stops resolution in the open
        await world.resolver.resolve(ada.user_id, None, (await world.providers.registry(ada.user_id)).get("openai"), "o3")


async def test_an_own_key_that_does_not_open_is_marked_and_stops_the_call(world: World, tamper: Tamper) -> None:
    ada = await world.person("ada")
    await world.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY)))
    made = await world.models.create(ada, MINE)
    provider, _ = (await world.providers.registry(ada.user_id)).locate("best")
    await tamper(sa.update(secret_version).where(secret_version.c.secret_id == made.secret_id).values(envelope=b"KB\x01\x01x"))
    with pytest.raises(KeyUnreadable):
        await world.resolver.resolve(ada.user_id, None, provider, "gpt-5")
    assert made.secret_id is not None
    assert (await world.secrets.get(ada, made.secret_id)).state == "unreadable"
    mended = await world.models.update(ada, made.id, {"api_key": value("kbtest-entered-anew-0123")})
    provider, _ = (await world.providers.registry(ada.user_id)).locate("best")
    (credential,) = await world.resolver.resolve(ada.user_id, None, provider, "gpt-5")
    assert credential.secret_id == mended.secret_id


async def test_a_kept_key_stays_bound_to_where_it_was(world: World) -> None:
    """A new address alone moves no key: who moves the model enters the key again."""
    ada = await world.person("ada")
    made = await world.models.create(ada, MINE)
    await world.models.update(ada, made.id, {"base_url": "https://elsewhere.example"})
    provider, _ = (await world.providers.registry(ada.user_id)).locate("best")
    with pytest.raises(EgressRefused) as refused:
        await world.resolver.resolve(ada.user_id, None, provider, "gpt-5")
    assert f"/models/{made.id}" in refused.value.hint
    again = {"base_url": "https://elsewhere.example", "api_key": value("kbtest-own-0123456789")}
    await world.models.update(ada, made.id, again)
    provider, _ = (await world.providers.registry(ada.user_id)).locate("best")
    (credential,) = await world.resolver.resolve(ada.user_id, None, provider, "gpt-5")
    assert credential.egress == ("https://elsewhere.example:443",)


async def test_the_systems_models_are_for_its_own_providers_and_private_hosts(world: World) -> None:
    world = world.allowing("10.0.0.0/8")
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    shared = replace(MINE, system=True, base_url="http://10.1.2.3:8000/v1", auth_style="none", api_key=None)
    made = await world.models.create(admin, shared)
    provider, _ = (await world.providers.registry(ada.user_id)).locate("best")
    (credential,) = await world.resolver.resolve(ada.user_id, None, provider, "gpt-5")
    assert (credential.source, credential.secret_id, credential.secret_version) == (KeySource.MODEL, made.id, 0)
    assert credential.egress == ("http://10.1.2.3:8000",)
    await world.models.create(ada, replace(MINE, aliases=("best",), api_key=value(OTHER_OPENAI_KEY)))
    provider, _ = (await world.providers.registry(ada.user_id)).locate("best")
    assert provider.base_url == "https://llm.example/v1"  # one's own comes before everybody's
    with pytest.raises(Conflict):
        await world.models.create(ada, replace(MINE, name="gpt-5-mini"))
    with pytest.raises(NotFound):
        await world.models.update(ada, made.id, {"aliases": ()})


async def test_a_list_of_names_takes_no_registered_model_away(world: World) -> None:
    ada = await world.person("ada")
    made = await world.models.create(ada, replace(MINE, name="of-mine"))
    await world.providers.update(ada, "openai", {"models": ["bare"]})
    await world.providers.update(ada, "openai", {"models": []})
    assert (await world.models.get(ada, made.id)).name == "of-mine"
    assert "bare" not in (await world.providers.get(ada, "openai")).models


async def test_a_teams_model_is_for_its_members(world: World) -> None:
    """Its leaders register it, its key pays for whoever is in, and one's own word and everybody's come before a team's."""
    admin, ada, eve = await world.person("admin", Role.ADMIN), await world.person("ada"), await world.person("eve")
    team = (await world.teams.create(ada, "Research")).team_id
    bob = await join(world, ada, team, "bob")
    shared = NewModel("openai", "gpt-5", api_key=value(OPENAI_KEY), team_id=team)
    made = await world.models.create(ada, shared)
    assert (made.owner_kind, made.team_id) == (OwnerKind.TEAM, team)
    for person in (ada, bob):
        provider, bare = (await world.providers.registry(person.user_id)).locate("openai/gpt-5")
        (credential,) = await world.resolver.resolve(person.user_id, None, provider, bare)
        assert (credential.source, credential.secret_id) == (KeySource.MODEL, made.secret_id)
        assert credential.owner == Owner(OwnerKind.TEAM, team)
        assert [model.id for model in (await world.models.list(person))[0]] == [made.id]
    assert (await world.providers.registry(eve.user_id)).locate("openai/gpt-5")[0].registered is None
    for stranger in (eve, admin):
        with pytest.raises(NotFound):
            await world.models.get(stranger, made.id)
    with pytest.raises(NotFound):
        await world.models.update(bob, made.id, {"display_name": "mine"})
    with pytest.raises(NotFound):
        await world.models.delete(bob, made.id)
    with pytest.raises(Forbidden):
        await world.models.create(bob, replace(shared, name="o3"))
    with pytest.raises(NotFound):
        await world.models.create(eve, replace(shared, name="o3"))

    for who, new in (
        (admin, replace(MINE, api_key=value(OTHER_OPENAI_KEY), aliases=(), system=True)),
        (bob, replace(MINE, aliases=())),
    ):
        registered = await world.models.create(who, new)
        found = (await world.providers.registry(bob.user_id)).locate("openai/gpt-5")[0].registered
        assert found is not None
        assert found.id == registered.id
    await world.models.delete(bob, registered.id)
    await world.teams.remove(ada, team, bob.user_id)
    assert made.id not in {model.id for model in (await world.models.list(bob))[0]}
    await world.models.delete(ada, made.id)
    assert made.secret_id is not None
    with pytest.raises(NotFound):
        await world.secrets.get(ada, made.secret_id)
