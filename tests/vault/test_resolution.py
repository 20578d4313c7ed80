"""Whose key serves a call: the order, and where it stops."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper
from tests.support.vault import ANTHROPIC_KEY, OPENAI_KEY, OTHER_OPENAI_KEY, World, value

from keybearer.catalog import Provider
from keybearer.domain import SYSTEM_OWNER, Caller, Credential, KeySource, Role, SecretType
from keybearer.errors import (
    KeybearerError,
    KeyExpired,
    KeyFailed,
    KeyInactive,
    KeyMissing,
    KeyUnreadable,
    KeyUnusable,
    ModelNotAllowed,
)
from keybearer.store.schema import secret_version
from keybearer.vault.providers import NewProvider
from keybearer.vault.secrets import NewSecret

NEW = NewSecret("openai", value(OPENAI_KEY))
SYSTEM_KEY = "sk-proj-kbtest-system-0123456789abcdefghijklmnop"
TOKEN = "A" * 12


async def openai(world: World, caller: Caller) -> Provider:
    return (await world.providers.registry(caller.user_id)).get("openai")


async def resolve(world: World, caller: Caller, model: str = "gpt-5", token: str | None = TOKEN) -> tuple[Credential, ...]:
    return await world.resolver.resolve(caller.user_id, token, await openai(world, caller), model)


async def test_by_priority_then_age_and_all_that_can_serve(world: World) -> None:
    ada = await world.person("ada")
    for name, priority in (("third", 200), ("first", 1), ("second", 100), ("later", 200)):
        await world.secrets.create(ada, replace(NEW, name=name, priority=priority, value=value(f"{OPENAI_KEY}{name}")))
    off = await world.secrets.create(ada, replace(NEW, name="off", priority=0, is_active=False))
    found = await resolve(world, ada)
    assert [each.value.reveal().decode().removeprefix(OPENAI_KEY) for each in found] == ["first", "second", "third", "later"]
    assert {each.source for each in found} == {KeySource.USER}
    await world.secrets.update(ada, off.id, {"is_active": True})
    assert (await resolve(world, ada))[0].secret_id == off.id


async def test_no_key_says_where_to_add_one(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    await world.secrets.create(bob, NEW)
    await world.secrets.create(ada, NewSecret("anthropic", value(ANTHROPIC_KEY)))
    await world.secrets.create(ada, replace(NEW, secret_type=SecretType.CUSTOM))
    with pytest.raises(KeyMissing, match="OpenAI") as missing:
        await resolve(world, ada)
    assert "/secrets/new?provider=openai" in missing.value.hint


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"is_active": False}, KeyInactive),
        ({"allowed_models": ["o3"]}, ModelNotAllowed),
        ({"allowed_tokens": ["B" * 12]}, KeyUnusable),
    ],
    ids=str,
)
async def test_an_own_key_that_may_not_serve_stops_it(world: World, fields: dict[str, Any], error: type[KeybearerError]) -> None:
    """Even where the system offers one: nobody is silently served with another's key."""
    world = world.offering()
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    await world.secrets.create(admin, replace(NEW, value=value(SYSTEM_KEY), system=True))
    made = await world.secrets.create(ada, NEW)
    await world.secrets.update(ada, made.id, fields)
    with pytest.raises(error) as stopped:
        await resolve(world, ada)
    assert type(stopped.value) is error
    assert f"/secrets/{made.id}" in stopped.value.hint
    await world.secrets.create(ada, replace(NEW, name="another", priority=900, value=value(OTHER_OPENAI_KEY)))
    (credential,) = await resolve(world, ada)  # another own one is no other's
    assert credential.value.reveal() == OTHER_OPENAI_KEY.encode()


async def test_expired_and_failed_keys_stop_it(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, replace(NEW, expires_at=datetime.now(UTC) + timedelta(days=1)))
    (credential,) = await resolve(world, ada)
    assert credential.expires_at == made.expires_at
    await world.secrets.update(ada, made.id, {"expires_at": datetime.now(UTC) + timedelta(seconds=0.1)})
    await asyncio.sleep(0.11)
    with pytest.raises(KeyExpired):
        await resolve(world, ada)
    await world.secrets.update(ada, made.id, {"expires_at": None})
    await resolve(world, ada)
    await world.secrets.mark(made.id, 1, "failed", "The provider answered 401.")
    with pytest.raises(KeyFailed):
        await resolve(world, ada)
    await world.secrets.mark(made.id, 1, "ok")
    await resolve(world, ada)


async def test_allow_lists_of_models_and_tokens(world: World) -> None:
    ada = await world.person("ada")
    await world.secrets.create(ada, replace(NEW, name="models", allowed_models=("gpt-5", "openai/o3")))
    await world.secrets.create(ada, replace(NEW, name="token", priority=200, allowed_tokens=(TOKEN,)))
    assert len(await resolve(world, ada, "gpt-5")) == 2
    assert len(await resolve(world, ada, "o3")) == 2
    assert len(await resolve(world, ada, "gpt-4o")) == 1
    assert len(await resolve(world, ada, "")) == 1
    assert len(await resolve(world, ada, "gpt-5", None)) == 1
    with pytest.raises(ModelNotAllowed, match="no model"):
        await resolve(world, ada, "", "B" * 12)
    with pytest.raises(ModelNotAllowed):
        await resolve(world, ada, "gpt-4o", None)


@pytest.mark.parametrize("fallback", ["none", "system", "openrouter"])
async def test_the_systems_key_serves_where_both_allow_it(world: World, fallback: str) -> None:
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    await world.secrets.create(admin, replace(NEW, value=value(SYSTEM_KEY), system=True))
    world = world.offering(fallback)
    if fallback == "none":
        with pytest.raises(KeyMissing):
            await resolve(world, ada)
        return
    (credential,) = await resolve(world, ada)
    assert (credential.source, credential.owner) == (KeySource.SYSTEM, SYSTEM_OWNER)
    assert credential.value.reveal() == SYSTEM_KEY.encode()
    await world.users.set_fallback(ada, False)
    with pytest.raises(KeyMissing):
        await resolve(world, ada)
    await world.users.set_fallback(ada, True)
    own = await world.secrets.create(ada, NEW)
    (credential,) = await resolve(world, ada)
    assert (credential.source, credential.secret_id) == (KeySource.USER, own.id)


async def test_a_system_key_that_cannot_serve_is_as_none(world: World) -> None:
    world = world.offering()
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    system = await world.secrets.create(admin, replace(NEW, system=True))
    for fields in ({"is_active": False}, {"is_active": True, "allowed_models": ["o3"]}):
        await world.secrets.update(admin, system.id, fields)
        with pytest.raises(KeyMissing) as missing:
            await resolve(world, ada)
        assert str(system.id) not in missing.value.hint


async def test_the_systems_key_is_not_for_a_provider_of_ones_own(world: World) -> None:
    """Somebody who names their provider like the system's must not be sent its key, nor learn of it."""
    world = world.offering()
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    await world.providers.create(ada, NewProvider("acme", "https://llm.acme.example"))
    await world.providers.create(admin, NewProvider("acme", "https://llm.acme.example", system=True))
    await world.secrets.create(admin, NewSecret("acme", value("kbtest-acme-systems"), system=True))
    acme = (await world.providers.registry(ada.user_id)).get("acme")
    assert acme.owner_id == ada.user_id
    with pytest.raises(KeyMissing):
        await world.resolver.resolve(ada.user_id, None, acme, "big")
    assert not (await world.providers.get(ada, "acme")).has_api_key


async def test_a_value_that_does_not_open_is_marked_and_stops_it(world: World, tamper: Tamper) -> None:
    world = world.offering()
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    await world.secrets.create(admin, replace(NEW, value=value(SYSTEM_KEY), system=True))
    made = await world.secrets.create(ada, NEW)
    await tamper(sa.update(secret_version).where(secret_version.c.secret_id == made.id).values(envelope=b"KB\x01\x01damaged"))
    for _ in range(2):
        with pytest.raises(KeyUnreadable, match="enter it again") as unreadable:
            await resolve(world, ada)
        assert f"/secrets/{made.id}" in unreadable.value.hint
    assert (await world.secrets.get(ada, made.id)).state == "unreadable"
    assert (await world.recorded()).count(("secret.unreadable", "ok")) == 1
    mended = await world.secrets.update(ada, made.id, {"value": value(OPENAI_KEY)})
    assert mended.state == "ok"
    (credential,) = await resolve(world, ada)
    assert credential.source is KeySource.USER
