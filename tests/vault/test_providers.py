"""Providers and models: predefined ones with an administrator's edits, custom ones of a person and of the system."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from tests.support.vault import BROWSER, OPENAI_KEY, OTHER_OPENAI_KEY, World, value

from keybearer.access import policy
from keybearer.access.tokens import NewToken
from keybearer.domain import MEMBER_SCOPES, Caller, OwnerKind, Role, Scope
from keybearer.errors import Conflict, EgressRefused, Forbidden, Invalid, KeyMissing, NotFound, ProviderUnknown, ScopeMissing
from keybearer.store.db import Actor
from keybearer.store.queries import providers as rows
from keybearer.store.schema import secret, secret_version
from keybearer.vault import descriptions, providers
from keybearer.vault.descriptions import NewModel
from keybearer.vault.providers import NewProvider, ProviderView
from keybearer.vault.secrets import NewSecret, SecretFilter

ACME = NewProvider("acme", "https://llm.acme.example/v1/", "Acme", value("kbtest-acme-0123456789abcdef"), ("big", "small"))


async def has_key(world: World, caller: Caller, name: str) -> bool:
    return (await world.providers.get(caller, name)).has_api_key


async def test_the_predefined_ones_are_there_for_everybody(world: World) -> None:
    ada = await world.person("ada")
    views = await world.providers.list(ada)
    assert [view.name for view in views][:5] == ["openai", "anthropic", "gemini", "xai", "openrouter"]
    openai = views[0]
    assert (openai.id, openai.is_predefined, openai.owner_kind) == ("openai", True, OwnerKind.SYSTEM)
    assert (openai.base_url, openai.auth_style, openai.has_api_key) == ("https://api.openai.com", "bearer", False)
    assert "gpt-5" in openai.models
    assert all(model.is_predefined for model in await world.providers.models(ada, "openai"))


async def test_a_custom_provider_with_its_key_and_models(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    made = await world.providers.create(ada, ACME)
    assert (made.name, made.base_url, made.models) == ("acme", "https://llm.acme.example/v1", ("big", "small"))
    assert (made.owner_kind, made.is_predefined, made.has_api_key) == (OwnerKind.USER, False, True)
    assert await world.providers.get(ada, made.id) == await world.providers.get(ada, "acme") == made
    assert (await world.providers.list(ada))[-1] == made
    (key,) = (await world.secrets.list(ada)).items
    assert (key.provider, key.name, key.egress) == ("acme", "default", ("https://llm.acme.example:443",))
    provider, model = (await world.providers.registry(ada.user_id)).locate("acme/big")
    (credential,) = await world.resolver.resolve(ada.user_id, None, provider, model)
    assert credential.value.reveal() == b"kbtest-acme-0123456789abcdef"
    assert [view.name for view in await world.providers.list(bob)] == [view.name for view in await world.providers.list(ada)][:-1]
    await world.providers.create(bob, replace(ACME, base_url="https://other.example"))
    await world.providers.delete(ada, made.id)
    with pytest.raises(ProviderUnknown):
        await world.providers.get(ada, made.id)
    assert (await world.providers.get(bob, "acme")).base_url == "https://other.example"


async def test_providers_and_their_models_have_bounds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are put together for each listing: with 100 providers of 500 models each, one listing stopped everybody for seconds."""
    monkeypatch.setattr(providers, "PROVIDERS_LIMIT", 2)
    monkeypatch.setattr(descriptions, "MODELS_LIMIT", 4)
    ada, bob = await world.person("ada"), await world.person("bob")
    for name in ("acme", "beta"):
        await world.providers.create(ada, replace(ACME, name=name))
    with pytest.raises(Invalid, match="2 custom providers"):
        await world.providers.create(ada, replace(ACME, name="gamma", models=()))
    with pytest.raises(Invalid, match="4 models"):
        await world.providers.add_model(ada, "acme", "third")
    with pytest.raises(Invalid, match="4 models"):
        await world.providers.update(ada, "acme", {"models": ["big", "third", "fourth"]})
    changed = await world.providers.update(ada, "acme", {"models": ["big", "third"]})
    assert changed.models == ("big", "third")
    await world.providers.update(ada, "acme", {"models": ["big"]})
    await world.providers.add_model(ada, "beta", "third")
    await world.providers.delete(ada, "acme")
    await world.providers.create(ada, replace(ACME, name="gamma", models=("one",)))
    assert (await world.providers.create(bob, ACME)).models == ("big", "small")


async def test_of_more_than_can_be_seen_ones_own_come_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await world.person("ada")
    team = (await world.teams.create(ada, "Research")).team_id
    await world.providers.create(ada, replace(ACME, name="theirs", models=("one", "two"), team_id=team))
    await world.providers.create(ada, ACME)
    names = [view.name for view in await world.providers.list(ada)]
    assert names[-2:] == ["acme", "theirs"]
    monkeypatch.setattr(rows, "PROVIDERS_SEEN", 1)
    monkeypatch.setattr(rows, "MODELS_SEEN", 3)
    views = await world.providers.list(ada)
    assert ([view.name for view in views], views[-1].models) == (names[:-1], ("big", "small"))
    monkeypatch.setattr(rows, "PROVIDERS_SEEN", 2)
    assert [view.models for view in await world.providers.list(ada)][-2:] == [("big", "small"), ("one",)]


@pytest.mark.parametrize("whose", ["one's own", "a team's", "the system's"])
async def test_a_deleted_provider_takes_its_models_own_keys_along(world: World, whose: str) -> None:
    ada = await world.person("ada", Role.ADMIN)
    place: dict[str, Any] = {"system": whose == "the system's"}
    if whose == "a team's":
        place["team_id"] = (await world.teams.create(ada, "Research")).team_id
    made = await world.providers.create(ada, replace(ACME, **place))
    keys = [
        (
            await world.models.create(ada, NewModel("acme", name, api_key=value(f"kbtest-own-{name}-0123456789"), **place))
        ).secret_id
        for name in ("large", "huge")
    ]
    await world.models.create(ada, NewModel("acme", "tiny", **place))
    elsewhere = await world.models.create(ada, NewModel("openai", "gpt-5", api_key=value(OPENAI_KEY)))
    await world.providers.delete(ada, made.id)
    assert (await world.recorded())[-3:] == [("secret.purge", "ok"), ("secret.purge", "ok"), ("provider.delete", "ok")]
    assert [model.id for model in (await world.models.list(ada))[0]] == [elsewhere.id]
    async with world.db.read(Actor.system()) as tx:
        sealed = set((await tx.execute(sa.select(secret_version.c.secret_id))).scalars())
        stored = set((await tx.execute(sa.select(secret.c.id))).scalars())
    (default,) = (await world.secrets.list(ada, SecretFilter(name="default"))).items
    assert stored == sealed == {default.id, elsewhere.secret_id}, "the person's key for the provider stays"
    for secret_id in keys:
        assert secret_id is not None
        with pytest.raises(NotFound):
            await world.secrets.get(ada, secret_id)


async def test_a_put_changes_only_the_fields_it_has(world: World) -> None:
    ada = await world.person("ada")
    made = await world.providers.create(ada, ACME)
    changed = await world.providers.update(ada, made.id, {"display_name": "Acme Inc."})
    assert changed == replace(made, display_name="Acme Inc.")
    same = await world.providers.update(
        ada,
        made.id,
        {
            "name": "acme",
            "display_name": "Acme Inc.",
            "base_url": "https://llm.acme.example/v1/",
            "api_key": value(" "),
            "auth_header": "",
        },
    )
    assert same == changed
    header = await world.providers.update(ada, "acme", {"auth_style": "header", "auth_header": "X-Api-Key"})
    assert (header.auth_style, header.auth_header) == ("header", "x-api-key")
    models = await world.providers.update(ada, "acme", {"models": ["small", "huge"]})
    assert set(models.models) == {"small", "huge"}
    assert (await world.providers.update(ada, "acme", {"models": []})).models == ()
    with pytest.raises(Invalid, match="name cannot be changed"):
        await world.providers.update(ada, "acme", {"name": "other"})
    with pytest.raises(Invalid, match="is_predefined cannot be changed"):
        await world.providers.update(ada, "acme", {"is_predefined": True})


async def test_a_put_writes_the_callers_own_default_key(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    assert (await world.providers.update(ada, "openai", {"api_key": value(OPENAI_KEY)})).has_api_key
    assert not await has_key(world, bob, "openai")
    (first,) = (await world.secrets.list(ada)).items
    assert (first.name, first.version) == ("default", 1)
    await world.secrets.update(ada, first.id, {"is_active": False})
    assert not await has_key(world, ada, "openai")
    await world.providers.update(ada, "openai", {"api_key": value(OTHER_OPENAI_KEY)})
    (second,) = (await world.secrets.list(ada)).items
    assert (second.id, second.version, second.is_active) == (first.id, 2, True)
    results = await asyncio.gather(
        *(world.providers.update(bob, "openai", {"api_key": value(OPENAI_KEY)}) for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(result, ProviderView | Conflict) for result in results)
    assert len((await world.secrets.list(bob)).items) == 1


async def test_only_administrators_move_a_predefined_provider(world: World) -> None:
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    for fields in ({"base_url": "https://proxy.example"}, {"display_name": "Mine"}, {"auth_style": "none"}):
        with pytest.raises(Forbidden):
            await world.providers.update(ada, "openai", fields)
    with pytest.raises(Forbidden, match="only the base URL"):
        await world.providers.update(admin, "openai", {"display_name": "Ours"})
    await world.providers.update(admin, "openai", {"base_url": "https://proxy.example/openai"})
    assert (await world.providers.get(ada, "openai")).base_url == "https://proxy.example/openai"
    await world.providers.update(admin, "openai", {"base_url": "https://proxy2.example"})
    seen = await world.providers.get(ada, "openai")
    assert (seen.base_url, seen.id, seen.is_predefined) == ("https://proxy2.example", "openai", True)
    assert "gpt-5" in seen.models
    assert (await world.providers.registry(ada.user_id)).get("openai").owner_id is None
    with pytest.raises(Forbidden, match="cannot be deleted"):
        await world.providers.delete(admin, "openai")


async def test_moving_a_provider_widens_no_key_until_its_owner_agrees(world: World) -> None:
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    made = await world.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY)))
    await world.providers.update(admin, "openai", {"base_url": "https://proxy.example"})
    moved = (await world.providers.registry(ada.user_id)).get("openai")
    assert not await has_key(world, ada, "openai")
    with pytest.raises(EgressRefused, match=r"https://proxy\.example") as refused:
        await world.resolver.resolve(ada.user_id, None, moved, "gpt-5")
    assert f"/secrets/{made.id}" in refused.value.hint
    rotated = await world.secrets.update(ada, made.id, {"value": value(OTHER_OPENAI_KEY)})
    assert rotated.egress == ("https://api.openai.com:443",)  # rotating a key is no consent
    with pytest.raises(EgressRefused):
        await world.resolver.resolve(ada.user_id, None, moved, "gpt-5")
    confirmed = await world.secrets.confirm_egress(ada, made.id)
    assert confirmed.egress == ("https://proxy.example:443",)
    (credential,) = await world.resolver.resolve(ada.user_id, None, moved, "gpt-5")
    assert (credential.value.reveal(), credential.egress) == (OTHER_OPENAI_KEY.encode(), ("https://proxy.example:443",))
    assert await has_key(world, ada, "openai")


async def test_naming_address_and_key_together_is_consent(world: World) -> None:
    ada = await world.person("ada")
    await world.providers.create(ada, ACME)
    await world.providers.update(ada, "acme", {"base_url": "https://new.acme.example"})
    assert not await has_key(world, ada, "acme")
    await world.providers.update(ada, "acme", {"api_key": value("kbtest-acme-another-key")})
    assert not await has_key(world, ada, "acme")
    both = {"base_url": "https://new.acme.example", "api_key": value("kbtest-acme-a-third-key")}
    assert (await world.providers.update(ada, "acme", both)).has_api_key


async def test_a_providers_name_is_taken_once(world: World) -> None:
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    with pytest.raises(Conflict, match="predefined"):
        await world.providers.create(ada, replace(ACME, name="openai"))
    await world.providers.create(admin, replace(ACME, name="shared", system=True, api_key=None))
    with pytest.raises(Conflict):
        await world.providers.create(ada, replace(ACME, name="shared"))
    results = await asyncio.gather(*(world.providers.create(ada, ACME) for _ in range(3)), return_exceptions=True)
    assert sum(isinstance(result, Conflict) for result in results) == 2
    assert len((await world.secrets.list(ada)).items) == 1


async def test_the_systems_providers_are_for_all_and_the_administrators_to_change(world: World) -> None:
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    with pytest.raises(Forbidden):
        await world.providers.create(ada, replace(ACME, system=True))
    made = await world.providers.create(admin, replace(ACME, system=True))
    assert (made.owner_kind, made.has_api_key) == (OwnerKind.SYSTEM, True)
    seen = await world.providers.get(ada, made.id)
    assert (seen.base_url, seen.has_api_key, seen.models) == (made.base_url, False, ("big", "small"))
    assert (await world.providers.update(ada, made.id, {"api_key": value("kbtest-adas-acme-key-01")})).has_api_key
    for fields in ({"base_url": "https://evil.example"}, {"display_name": "Mine"}):
        with pytest.raises(Forbidden):
            await world.providers.update(ada, made.id, fields)
    with pytest.raises(Forbidden):
        await world.providers.delete(ada, made.id)
    await world.providers.update(admin, made.id, {"models": ["big"]})
    assert (await world.providers.get(ada, made.id)).models == ("big",)
    await world.providers.delete(admin, made.id)
    with pytest.raises(ProviderUnknown):
        await world.providers.get(ada, made.id)


async def test_models_of_ones_own_and_for_everybody(world: World) -> None:
    admin, ada, bob = await world.person("admin", Role.ADMIN), await world.person("ada"), await world.person("bob")
    mine = await world.providers.add_model(ada, "openai", "ft:gpt-5:kbtest", "My tuned")
    shared = await world.providers.add_model(admin, "openai", "gpt-next", system=True)
    assert "ft:gpt-5:kbtest" in (await world.providers.get(ada, "openai")).models
    assert "ft:gpt-5:kbtest" not in (await world.providers.get(bob, "openai")).models
    assert "gpt-next" in (await world.providers.get(bob, "openai")).models
    assert (await world.providers.registry(ada.user_id)).locate("ft:gpt-5:kbtest")[0].name == "openai"
    for name in ("gpt-5", "ft:gpt-5:kbtest", "gpt-next"):
        with pytest.raises(Conflict):
            await world.providers.add_model(ada, "openai", name)
    with pytest.raises(Forbidden):
        await world.providers.add_model(ada, "openai", "for-all", system=True)
    for name in ("", "a b", "x\x00", "\ud800", "x" * 201):
        with pytest.raises(Invalid):
            await world.providers.add_model(ada, "openai", name)
    answers = set()
    for model_id in (UUID(mine.id), uuid4()):
        with pytest.raises(NotFound) as unknown:
            await world.models.delete(bob, model_id)
        answers.add((unknown.value.message, unknown.value.hint))
    assert len(answers) == 1
    with pytest.raises(NotFound):
        await world.models.delete(ada, UUID(shared.id))
    await world.models.delete(ada, UUID(mine.id))
    await world.models.delete(admin, UUID(shared.id))
    assert "gpt-next" not in (await world.providers.get(bob, "openai")).models
    replaced = await world.providers.update(ada, "openai", {"models": ["gpt-5", "own-1", "own-2"]})
    assert {"own-1", "own-2", "gpt-5", "o3"} <= set(replaced.models)
    fewer = await world.providers.update(ada, "openai", {"models": ["own-2"]})
    assert "own-2" in fewer.models
    assert "own-1" not in fewer.models


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "Acme Inc"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"display_name": "x\x00"}, "display_name"),
        ({"models": ("a", "b", "a")}, "models.2"),
        ({"models": ("a b",)}, "models.0"),
        ({"models": tuple(map(str, range(501)))}, "models"),
        ({"auth_style": "basic"}, "auth_style"),
        ({"auth_style": "header", "auth_header": "x y"}, "auth_header"),
        ({"auth_style": "header", "auth_header": "x\r\ny"}, "auth_header"),
        ({"base_url": "llm.acme.example"}, "base_url"),
        ({"base_url": "ftp://llm.acme.example"}, "base_url"),
        ({"base_url": "https://u:kbtest@llm.acme.example"}, "base_url"),
        ({"base_url": "https://llm.acme.example/?key=1"}, "base_url"),
        ({"base_url": "https://llm.acme.example/../x"}, "base_url"),
        ({"base_url": "https://llm.acme.example/\ud800"}, "base_url"),
        ({"base_url": "http://llm.acme.example"}, "base_url"),
        ({"base_url": "https://127.0.0.1"}, "base_url"),
        ({"base_url": "https://localhost:8000"}, "base_url"),
        ({"base_url": "https://[::1]:8000"}, "base_url"),
        ({"base_url": "https://10.0.0.7"}, "base_url"),
        ({"base_url": "https://169.254.169.254/latest"}, "base_url"),
        ({"base_url": "https://2130706433"}, "base_url"),
        ({"base_url": "https://[64:ff9b::a9fe:a9fe]"}, "base_url"),
    ],
    ids=str,
)
async def test_what_is_wrong_is_told_by_field(sqlite_world: World, fields: dict[str, Any], field: str) -> None:
    ada = await sqlite_world.person("ada")
    with pytest.raises(Invalid) as wrong:
        await sqlite_world.providers.create(ada, replace(ACME, **fields))
    assert field in {error.field for error in wrong.value.fields}
    assert (await sqlite_world.secrets.list(ada)).items == ()


async def test_private_hosts_are_for_administrators_and_only_allowed_ones(world: World) -> None:
    world = world.allowing("127.0.0.1:9000", "10.1.0.0/16", "ollama.internal")
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    system = replace(ACME, system=True, api_key=None)
    for number, url in enumerate(("http://127.0.0.1:9000", "https://10.1.2.3", "http://ollama.internal:11434/v1")):
        await world.providers.create(admin, replace(system, name=f"private{number}", base_url=url))
        with pytest.raises(Invalid):
            await world.providers.create(ada, replace(ACME, name=f"own{number}", base_url=url))
        with pytest.raises(Invalid):  # an administrator's own provider is a person's, too
            await world.providers.create(admin, replace(ACME, name=f"own{number}", base_url=url))
    for url in ("http://127.0.0.1:9001", "https://10.2.0.1", "http://169.254.169.254", "http://93.184.216.34"):
        with pytest.raises(Invalid):
            await world.providers.create(admin, replace(system, name="elsewhere", base_url=url))
    await world.providers.update(admin, "openai", {"base_url": "http://127.0.0.1:9000"})
    with pytest.raises(Invalid):
        await world.providers.update(admin, "openai", {"base_url": "http://127.0.0.1:1"})
    assert (await world.providers.get(ada, "openai")).base_url == "http://127.0.0.1:9000"


async def test_the_systems_key_counts_where_it_serves(world: World) -> None:
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    await world.secrets.create(admin, NewSecret("openai", value(OPENAI_KEY), system=True))
    assert not await has_key(world, ada, "openai")
    offering = world.offering()
    assert await has_key(offering, ada, "openai")
    await world.users.set_fallback(ada, False)
    assert not await has_key(offering, ada, "openai")
    openai = (await world.providers.registry(ada.user_id)).get("openai")
    with pytest.raises(KeyMissing):
        await offering.resolver.resolve(ada.user_id, None, openai, "gpt-5")


async def test_tokens_do_what_their_scopes_say(world: World) -> None:
    ada = await world.person("ada")
    await world.providers.create(ada, ACME)

    async def token(*without: Scope) -> Caller:
        _, text = await world.tokens.create(ada, NewToken("t", MEMBER_SCOPES - set(without)))
        return policy.caller_of_grant(await world.tokens.verify(text.encode()), BROWSER)

    no_providers, no_models, no_secrets = (
        await token(Scope.PROVIDERS_WRITE),
        await token(Scope.MODELS_WRITE),
        await token(Scope.SECRETS_WRITE),
    )
    for call in (
        world.providers.create(no_providers, replace(ACME, name="x")),
        world.providers.update(no_providers, "acme", {"display_name": "x"}),
        world.providers.delete(no_providers, "acme"),
        world.providers.add_model(no_models, "acme", "x"),
        world.models.delete(no_models, uuid4()),
        world.providers.update(no_secrets, "acme", {"api_key": value("kbtest-acme-0123")}),
        world.providers.create(no_secrets, replace(ACME, name="x")),
    ):
        with pytest.raises(ScopeMissing):
            await call
    assert [view.name for view in await world.providers.list(ada) if not view.is_predefined] == ["acme"]


async def test_providers_of_others_are_as_unknown_ones(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    made = await world.providers.create(ada, ACME)
    answers = set()
    for key in (made.id, "acme", str(uuid4()), "nobody", "", "\ud800", "../x"):
        for call in (
            world.providers.get(bob, key),
            world.providers.find(bob, key),
            world.providers.models(bob, key),
            world.providers.update(bob, key, {"base_url": "https://evil.example"}),
            world.providers.update(bob, key, {"models": ["x"]}),
            world.providers.update(bob, key, {"api_key": value("kbtest-bobs-0123456789")}),
            world.providers.add_model(bob, key, "x"),
            world.providers.delete(bob, key),
        ):
            with pytest.raises(ProviderUnknown) as unknown:
                await call
            answers.add((unknown.value.message, unknown.value.hint))
    assert len(answers) == 1
    assert (await world.secrets.list(bob)).items == ()
    assert (await world.providers.get(ada, made.id)) == made


async def test_changes_are_on_record_and_told(world: World) -> None:
    ada = await world.person("ada")
    await world.providers.create(ada, replace(ACME, api_key=None))
    await world.providers.update(ada, "acme", {"base_url": "https://x.example", "models": ["big"]})
    await world.providers.add_model(ada, "acme", "new")
    with pytest.raises(Forbidden):
        await world.providers.delete(ada, "openai")
    await world.providers.delete(ada, "acme")
    assert (await world.recorded())[-6:] == [
        ("provider.create", "ok"),
        ("provider.update", "ok"),
        ("provider.set_models", "ok"),
        ("model.create", "ok"),
        ("provider.delete", "forbidden"),
        ("provider.delete", "ok"),
    ]
    assert await world.changed() == ["user", "provider", "provider", "provider", "model", "provider"]


async def test_a_custom_providers_key_stays_when_the_provider_goes(world: World) -> None:
    """And serves nobody: not even a provider of the same name elsewhere."""
    ada = await world.person("ada")
    await world.providers.create(ada, ACME)
    await world.providers.delete(ada, "acme")
    (left,) = (await world.secrets.list(ada, SecretFilter(provider="acme"))).items
    await world.secrets.update(ada, left.id, {"description": "of old", "value": value("kbtest-acme-yet-another")})
    with pytest.raises(ProviderUnknown):
        await world.secrets.confirm_egress(ada, left.id)
    await world.providers.create(ada, replace(ACME, base_url="https://elsewhere.example", api_key=None))
    elsewhere = (await world.providers.registry(ada.user_id)).get("acme")
    with pytest.raises(EgressRefused):
        await world.resolver.resolve(ada.user_id, None, elsewhere, "big")
