"""A secret's life: stored, listed, changed, deleted; what is shown of it and what never is."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from tests.support.vault import ANTHROPIC_KEY, BROWSER, OPENAI_KEY, OTHER_OPENAI_KEY, World, value

from keybearer.access import policy
from keybearer.access.tokens import NewToken
from keybearer.domain import SYSTEM_OWNER, Caller, OwnerKind, Role, Scope, Secret, SecretType
from keybearer.errors import (
    Conflict,
    Forbidden,
    Invalid,
    KeyDoubtful,
    KeyRefused,
    NotFound,
    ProviderUnknown,
    ScopeMissing,
)
from keybearer.store.db import Actor
from keybearer.store.schema import secret_version
from keybearer.vault.secrets import NewSecret, SecretFilter

NEW = NewSecret("openai", value(OPENAI_KEY))


def named(name: str, **fields: Any) -> NewSecret:
    return replace(NEW, name=name, **fields)


async def opened(world: World, caller: Caller, secret: Secret) -> str:
    return (await world.secrets.credential(caller, secret.id)).value.reveal().decode()


async def versions(world: World, caller: Caller) -> list[Any]:
    async with world.db.read(Actor.user(caller.user_id)) as tx:
        return list(await tx.execute(sa.select(secret_version)))


async def test_all_fields_are_kept(world: World) -> None:
    ada = await world.person("ada")
    expires = datetime.now(UTC) + timedelta(days=30)
    made = await world.secrets.create(
        ada,
        NewSecret(
            "openai",
            value(OPENAI_KEY),
            name=" cafe\u0301 ",
            description="two\nlines",
            tags=("b", "a", "b"),
            priority=5,
            allowed_models=("gpt-5", "openai/o3"),
            allowed_tokens=("A" * 12,),
            expires_at=expires,
            is_active=False,
            fetchable=True,
        ),
    )
    assert (made.provider, made.secret_type, made.name) == ("openai", SecretType.API_KEY, "café")
    assert (made.description, made.tags, made.priority) == ("two\nlines", ("b", "a"), 5)
    assert (made.allowed_models, made.allowed_tokens) == (("gpt-5", "openai/o3"), ("A" * 12,))
    assert (made.expires_at, made.is_active, made.fetchable) == (expires, False, True)
    assert (made.version, made.state, made.usage_count, made.last_used_at) == (1, "ok", 0, None)
    assert (made.owner.kind, made.owner.id, made.created_by) == (OwnerKind.USER, ada.user_id, ada.user_id)
    assert made.key_id is not None
    assert await world.secrets.get(ada, made.id) == made
    assert (await world.secrets.list(ada)).items == (made,)
    assert await opened(world, ada, made) == OPENAI_KEY


async def test_several_keys_for_a_provider_but_no_name_twice(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    await world.secrets.create(ada, NEW)
    await world.secrets.create(ada, named("second"))
    await world.secrets.create(ada, NewSecret("anthropic", value(ANTHROPIC_KEY)))
    await world.secrets.create(ada, replace(NEW, secret_type=SecretType.CUSTOM))
    await world.secrets.create(bob, NEW)
    for name in ("default", " default "):
        with pytest.raises(Conflict, match="A secret with this name"):
            await world.secrets.create(ada, named(name))
    second = (await world.secrets.list(ada, SecretFilter(name="second"))).items[0]
    with pytest.raises(Conflict, match="Another secret"):
        await world.secrets.update(ada, second.id, {"name": "default"})


async def test_one_name_from_two_tasks_at_the_same_moment(world: World) -> None:
    ada = await world.person("ada")
    results = await asyncio.gather(*(world.secrets.create(ada, NEW) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(result, Secret) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 3
    assert len(await versions(world, ada)) == 1


async def test_changes_touch_only_the_fields_given(world: World) -> None:
    ada = await world.person("ada")
    soon = datetime.now(UTC) + timedelta(days=1)
    made = await world.secrets.create(ada, named("key", tags=("a",), expires_at=soon, allowed_models=("gpt-5",)))
    changed = await world.secrets.update(ada, made.id, {"description": "new", "name": None, "tags": None})
    assert changed == replace(made, description="new", updated_at=changed.updated_at)
    lifted = await world.secrets.update(ada, made.id, {"expires_at": None, "allowed_models": None, "tags": []})
    assert (lifted.expires_at, lifted.allowed_models, lifted.tags) == (None, None, ())
    assert lifted.version == 1


@pytest.mark.parametrize("blank", ["", "   ", "\n", None])
async def test_a_blank_value_keeps_the_old_one(world: World, blank: str | None) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    kept = await world.secrets.update(ada, made.id, {"value": None if blank is None else value(blank), "priority": 7})
    assert (kept.version, kept.preview, kept.priority) == (1, made.preview, 7)
    assert await opened(world, ada, kept) == OPENAI_KEY


async def test_a_new_value_is_a_new_version_and_the_old_one_is_out_of_force(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, replace(NEW, fetchable=True))
    (before,) = await versions(world, ada)
    await world.secrets.mark(made.id, 1, "failed", "401 from the provider")
    changed = await world.secrets.update(ada, made.id, {"value": value(OTHER_OPENAI_KEY)})
    assert (changed.version, changed.state, changed.state_reason) == (2, "ok", "")
    assert (changed.fetchable, changed.egress) == (True, made.egress)
    assert changed.preview == "sk-p…dcba"
    assert await opened(world, ada, changed) == OTHER_OPENAI_KEY
    old, new = sorted(await versions(world, ada), key=lambda row: row.version)
    assert (old.version, bytes(old.envelope), old.preview) == (1, bytes(before.envelope), made.preview)
    assert old.retired_at is not None
    assert (new.version, new.retired_at) == (2, None)


async def test_whether_a_value_may_be_fetched_is_sealed_anew(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    (before,) = await versions(world, ada)
    changed = await world.secrets.update(ada, made.id, {"fetchable": True})
    (after,) = await versions(world, ada)
    assert (changed.fetchable, changed.version) == (True, 1)
    assert bytes(before.envelope) != bytes(after.envelope)
    assert await opened(world, ada, changed) == OPENAI_KEY
    again = await world.secrets.update(ada, made.id, {"fetchable": True})
    assert [bytes(row.envelope) for row in await versions(world, ada)] == [bytes(after.envelope)]
    assert again.fetchable


async def test_a_masked_value_is_never_saved(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    for text in (made.preview, "••••••••••••••••••••", "sk-proj-***", "sk-p...mnop", "************************"):
        with pytest.raises(KeyRefused):
            await world.secrets.update(ada, made.id, {"value": value(text), "save_anyway": True})
        with pytest.raises(KeyRefused):
            await world.secrets.create(ada, named("other", value=value(text), save_anyway=True))
    assert await opened(world, ada, made) == OPENAI_KEY
    short = await world.secrets.create(
        ada, NewSecret("openai", value("kbtest-short"), SecretType.CONNECTION_STRING, save_anyway=True)
    )
    assert short.preview == ""


async def test_a_key_of_another_form_is_saved_on_demand(world: World) -> None:
    ada = await world.person("ada")
    swapped = NewSecret("openai", value(ANTHROPIC_KEY))
    with pytest.raises(KeyDoubtful, match="Anthropic"):
        await world.secrets.create(ada, swapped)
    made = await world.secrets.create(ada, replace(swapped, save_anyway=True))
    with pytest.raises(KeyDoubtful):
        await world.secrets.update(ada, made.id, {"value": value("kbtest-another-form")})
    await world.secrets.update(ada, made.id, {"value": value("kbtest-another-form"), "save_anyway": True})
    with pytest.raises(KeyRefused, match="admin key"):
        await world.secrets.update(ada, made.id, {"value": value("sk-admin-kbtest-0123456789"), "save_anyway": True})


async def test_the_largest_value(world: World) -> None:
    ada = await world.person("ada")
    largest = "kbtest-" + "é" * 32764 + "x"
    assert len(largest.encode()) == 65536
    made = await world.secrets.create(ada, NewSecret("openai", value(largest), SecretType.CUSTOM))
    assert await opened(world, ada, made) == largest
    with pytest.raises(Invalid, match="65537 bytes; at most 65536"):
        await world.secrets.create(ada, NewSecret("openai", value(largest + "x"), SecretType.CUSTOM, name="more"))


WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"name": ""}, "name"),
    ({"name": "\u200b"}, "name"),
    ({"name": "x" * 201}, "name"),
    ({"name": "x" * 10_000}, "name"),
    ({"name": "a\x00b"}, "name"),
    ({"name": "\ud800"}, "name"),
    ({"name": OPENAI_KEY}, "name"),
    ({"description": "x" * 2001}, "description"),
    ({"description": "\ud800"}, "description"),
    ({"tags": ["x" * 51]}, "tags.0"),
    ({"tags": [str(number) for number in range(51)]}, "tags"),
    ({"tags": ["ok", "\x00"]}, "tags.1"),
    ({"priority": -1}, "priority"),
    ({"priority": 1001}, "priority"),
    ({"allowed_models": []}, "allowed_models"),
    ({"allowed_models": ["x\x00"]}, "allowed_models.0"),
    ({"allowed_tokens": ["kb_nope"]}, "allowed_tokens.0"),
    ({"allowed_tokens": []}, "allowed_tokens"),
    ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "expires_at"),
    ({"expires_at": datetime(2120, 1, 1)}, "expires_at"),  # noqa: DTZ001  # naive is the point
)


async def test_what_is_wrong_is_told_by_field_and_nothing_is_changed(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    for fields, field in WRONG:
        for attempt in (
            world.secrets.create(ada, replace(named("other"), **fields)),
            world.secrets.update(ada, made.id, fields),
        ):
            with pytest.raises(Invalid) as wrong:
                await attempt
            assert field in {error.field for error in wrong.value.fields}
    for name in ("secret_type", "provider", "owner_id", "egress", "version", "no such", "\ud800"):
        with pytest.raises(Invalid, match="cannot be changed") as unknown:
            await world.secrets.update(ada, made.id, {name: "x"})
        unknown.value.message.encode()
    assert (await world.secrets.list(ada)).items == (made,)


async def test_unknown_providers(world: World) -> None:
    ada = await world.person("ada")
    answers = set()
    for provider in ("nobody", "No Such", "\ud800", "", "x" * 1000):
        with pytest.raises(ProviderUnknown) as unknown:
            await world.secrets.create(ada, NewSecret(provider, value("kbtest-key"), save_anyway=True))
        unknown.value.message.encode()
        answers.add(unknown.value.hint)
    assert len(answers) == 1
    dsn = NewSecret("warehouse", value("postgresql://u:kbtest@db.example.com/x"), SecretType.CONNECTION_STRING)
    made = await world.secrets.create(ada, dsn)
    assert (made.preview, made.egress) == ("postgresql://db.example.com", ())
    with pytest.raises(ProviderUnknown):
        await world.secrets.create(ada, replace(dsn, provider="../x"))


async def test_listing_by_page_and_by_filter(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    for number in range(5):
        await world.secrets.create(
            ada, named(f"key {number}", tags=("even",) if number % 2 == 0 else (), description=f"no. 5{number}%")
        )
    await world.secrets.create(ada, NewSecret("anthropic", value(ANTHROPIC_KEY), is_active=False))
    await world.secrets.create(bob, named("bob's"))
    seen: list[str] = []
    cursor = None
    while True:
        page = await world.secrets.list(ada, None, cursor, 2)
        seen.extend(f"{item.provider}/{item.name}" for item in page.items)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [*(f"openai/key {number}" for number in range(5)), "anthropic/default"]  # as they were made

    async def names(**wanted: Any) -> list[str]:
        return [item.name for item in (await world.secrets.list(ada, SecretFilter(**wanted))).items]

    assert await names(provider="anthropic") == ["default"]
    assert await names(tag="even") == ["key 0", "key 2", "key 4"]
    assert await names(tag="ev") == []
    assert await names(text="KEY 3") == ["key 3"]
    assert await names(text="no. 51%") == ["key 1"]
    assert await names(text="%") == [f"key {number}" for number in range(5)]
    assert await names(is_active=False) == ["default"]
    assert await names(secret_type=SecretType.CUSTOM) == []
    assert await names(state="failed") == []
    assert await names(expires_before=datetime.now(UTC)) == []
    for wrong in ("", "x", "W10", "\ud800", "bnVsbA", "WyJhIl0"):
        with pytest.raises(Invalid):
            await world.secrets.list(ada, None, wrong)
    for limit in (0, 201, -1):
        with pytest.raises(Invalid):
            await world.secrets.list(ada, None, None, limit)
    with pytest.raises(Invalid):
        await names(text="\x00")


async def test_administrators_see_metadata_of_everybody_and_values_of_nobody(world: World) -> None:
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    (listed,) = (await world.secrets.list(admin, SecretFilter(owner="everyone"))).items
    assert replace(listed, key_id=made.key_id, access=made.access) == made
    assert listed.access is None
    assert (await world.secrets.get(admin, made.id)).preview == made.preview
    assert (await world.secrets.list(admin)).items == ()
    first = await world.secrets.list(admin, SecretFilter(owner="everyone"), None, 1)
    assert first.next_cursor is None
    for refused in (
        world.secrets.credential(admin, made.id),
        world.secrets.update(admin, made.id, {"fetchable": True}),
        world.secrets.update(admin, made.id, {"value": value(OTHER_OPENAI_KEY)}),
        world.secrets.confirm_egress(admin, made.id),
        world.secrets.delete(admin, made.id),
    ):
        with pytest.raises(NotFound):
            await refused
    for owner in ("system", "everyone"):
        with pytest.raises(Forbidden):
            await world.secrets.list(ada, SecretFilter(owner=owner))


async def test_system_keys_are_the_administrators(world: World) -> None:
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    made = await world.secrets.create(admin, replace(NEW, system=True))
    assert (made.owner, made.created_by) == (SYSTEM_OWNER, admin.user_id)
    assert (await world.secrets.list(admin, SecretFilter(owner="system"))).items == (made,)
    assert (await world.secrets.list(admin)).items == ()
    changed = await world.secrets.update(admin, made.id, {"value": value(OTHER_OPENAI_KEY), "fetchable": True})
    assert await opened(world, admin, changed) == OTHER_OPENAI_KEY
    with pytest.raises(Forbidden):
        await world.secrets.create(ada, named("mine", system=True))
    for refused in (
        world.secrets.get(ada, made.id),
        world.secrets.update(ada, made.id, {"is_active": False}),
        world.secrets.credential(ada, made.id),
        world.secrets.delete(ada, made.id),
    ):
        with pytest.raises(NotFound):
            await refused
    await world.secrets.delete(admin, made.id)


async def test_tokens_do_what_their_scopes_say(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    allowed = {
        Scope.GATEWAY_USE: set(),
        Scope.SECRETS_USE: {"list", "get", "test"},
        Scope.SECRETS_READ: {"list", "get"},
        Scope.SECRETS_WRITE: {"list", "get", "test", "create", "update", "confirm", "delete"},
    }
    for scope, may in allowed.items():
        _, text = await world.tokens.create(ada, NewToken(scope.value, frozenset({scope})))
        token = policy.caller_of_grant(await world.tokens.verify(text.encode()), BROWSER)
        calls = {
            "list": world.secrets.list(token),
            "get": world.secrets.get(token, made.id),
            "test": world.secrets.credential(token, made.id),
            "create": world.secrets.create(token, named(scope.value)),
            "update": world.secrets.update(token, made.id, {"priority": 1}),
            "confirm": world.secrets.confirm_egress(token, made.id),
            "delete": world.secrets.delete(token, made.id),
        }
        for name, call in calls.items():
            if name in may:
                await call
            else:
                with pytest.raises(ScopeMissing):
                    await call


async def test_changes_and_refusals_are_on_record_and_told(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    with pytest.raises(NotFound):
        await world.secrets.get(ada, uuid4())
    with pytest.raises(KeyRefused):
        await world.secrets.update(ada, made.id, {"value": value("a b")})
    await world.secrets.update(ada, made.id, {"is_active": False})
    await world.secrets.credential(ada, made.id)
    await world.secrets.delete(ada, made.id)
    assert (await world.recorded())[-6:] == [
        ("secret.create", "ok"),
        ("secret.read", "not_found"),
        ("secret.update", "key_refused"),
        ("secret.update", "ok"),
        ("secret.test", "ok"),
        ("secret.delete", "ok"),
    ]
    assert await world.changed() == ["user", "secret", "secret", "secret"]


async def test_purging_takes_the_sealed_value_along(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    await world.secrets.trash.purge(ada, made.id)
    assert await versions(world, ada) == []
    with pytest.raises(NotFound):
        await world.secrets.delete(ada, made.id)
    await world.secrets.create(ada, NEW)


async def test_changes_of_one_secret_at_the_same_moment_follow_each_other(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    await asyncio.gather(
        *(world.secrets.update(ada, made.id, {"value": value(OTHER_OPENAI_KEY + str(number))}) for number in range(4)),
        world.secrets.update(ada, made.id, {"fetchable": True}),
    )
    after = await world.secrets.get(ada, made.id)
    assert (after.version, after.fetchable) == (5, True)
    assert (await opened(world, ada, after)).startswith(OTHER_OPENAI_KEY)
    assert sorted((row.version, row.retired_at is None) for row in await versions(world, ada)) == [
        (1, False), (2, False), (3, False), (4, False), (5, True),
    ]  # fmt: skip


async def test_a_verdict_on_an_old_value_does_not_stick_to_the_new_one(world: World) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    assert await world.secrets.mark(made.id, 1, "failed", "The provider answered 401.")
    assert not await world.secrets.mark(made.id, 1, "failed", "again")
    assert (await world.secrets.get(ada, made.id)).state_reason == "The provider answered 401."
    await world.secrets.update(ada, made.id, {"value": value(OTHER_OPENAI_KEY)})
    assert not await world.secrets.mark(made.id, 1, "failed", "late")
    assert not await world.secrets.mark(uuid4(), 1, "failed", "unknown")
    assert (await world.secrets.get(ada, made.id)).state == "ok"
