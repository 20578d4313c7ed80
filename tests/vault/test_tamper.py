"""Somebody who can write to the database, and read all of it, gets no value and no use of one that its owner did not allow."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper, tamper_with
from tests.support.vault import OPENAI_KEY, OTHER_OPENAI_KEY, World, value

from keybearer.access import macs
from keybearer.catalog import Catalog, with_base_url
from keybearer.domain import SYSTEM_OWNER_ID, BudgetKind, BudgetSubject, Caller, Role, Secret
from keybearer.errors import EgressRefused, KeybearerError, KeyMissing, KeyUnreadable, NotFound, ProviderUnknown
from keybearer.store.db import Actor
from keybearer.store.queries import secrets as rows
from keybearer.store.schema import owner_key, provider, secret, secret_version
from keybearer.vault.adoption import Adoption
from keybearer.vault.budgets import Budgets, NewBudget
from keybearer.vault.descriptions import NewModel
from keybearer.vault.providers import NewProvider
from keybearer.vault.sealed import binding
from keybearer.vault.secrets import NewSecret

NEW = NewSecret("openai", value(OPENAI_KEY))
EVIL = "https://evil.example:443"
LATER = datetime.now(UTC) + timedelta(days=30)


async def refused(world: World, caller: Caller, made: Secret) -> KeybearerError:
    """What using the secret ends with, by either way to its value."""
    with pytest.raises(KeybearerError):
        await world.secrets.credential(caller, made.id)
    openai = (await world.providers.registry(caller.user_id)).get("openai")
    with pytest.raises(KeybearerError) as stopped:
        await world.resolver.resolve(caller.user_id, None, openai, "gpt-5")
    return stopped.value


async def envelope_of(world: World, owner: UUID, secret_id: UUID) -> Any:
    async with world.db.read(Actor.user(owner)) as tx:
        return (await tx.execute(sa.select(secret_version).where(secret_version.c.secret_id == secret_id))).one()


EDITED: tuple[dict[str, Any], ...] = (
    {"egress": ["https://api.openai.com:443", EVIL]},
    {"egress": ["https://api.openai.com:443", "not an origin"]},
    {"egress": {"https://api.openai.com:443": 1}},
    {"egress": [1]},
    {"fetchable": True},
    {"version": 2},
)


async def test_an_edited_row_opens_nothing(world: World, tamper: Tamper) -> None:
    ada = await world.person("ada")
    for columns in EDITED:
        made = await world.secrets.create(ada, NEW)
        await tamper(sa.update(secret).where(secret.c.id == made.id).values(**columns))
        assert isinstance(await refused(world, ada, made), KeyUnreadable), columns
        await world.secrets.trash.purge(ada, made.id)


RULES: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"is_active": False}, {"is_active": True}),
    ({"expires_at": LATER}, {"expires_at": None}),
    ({"expires_at": LATER}, {"expires_at": LATER + timedelta(days=9)}),
    ({"allowed_models": ["o3"]}, {"allowed_models": None}),
    ({"allowed_models": ["o3"]}, {"allowed_models": ["gpt-5", "o3"]}),
    ({"allowed_models": ["o3"]}, {"allowed_models": {"gpt-5": 1}}),
    ({"allowed_tokens": ["A" * 12]}, {"allowed_tokens": None}),
    ({"allowed_tokens": ["A" * 12]}, {"allowed_tokens": ["B" * 12]}),
    ({"priority": 900}, {"priority": 0}),
    ({"priority": 900}, {"mac": None}),
    ({"priority": 900}, {"mac": b""}),
    ({}, {"secret_type": "custom"}),
    ({}, {"reference": {"store": "elsewhere"}}),
)


async def test_what_may_be_done_with_a_secret_is_not_the_databases_to_say(world: World, tamper: Tamper) -> None:
    ada = await world.person("ada")
    for fields, edited in RULES:
        made = await world.secrets.create(ada, NEW)
        await world.secrets.update(ada, made.id, fields)
        await tamper(sa.update(secret).where(secret.c.id == made.id).values(**edited))
        with pytest.raises(KeyUnreadable):
            await world.secrets.credential(ada, made.id)
        assert (await world.secrets.get(ada, made.id)).state == "unreadable"
        if "secret_type" not in edited:
            assert isinstance(await refused(world, ada, made), KeyUnreadable), edited
        # Nor do changes make it right, but for the value entered again.
        await world.secrets.update(ada, made.id, {"description": "looked at"})
        with pytest.raises(KeyUnreadable):
            await world.secrets.update(ada, made.id, {"priority": 5})
        with pytest.raises(KeyUnreadable):
            await world.secrets.update(ada, made.id, {"fetchable": True})
        again = {"value": value(OTHER_OPENAI_KEY), "is_active": True, "allowed_models": None, "allowed_tokens": None}
        if edited.get("allowed_models") != {"gpt-5": 1}:
            assert (await world.secrets.update(ada, made.id, again)).state == "ok", edited
            assert (await world.secrets.credential(ada, made.id)).value.reveal() == OTHER_OPENAI_KEY.encode()
        await world.secrets.trash.purge(ada, made.id)


async def test_a_models_key_stays_the_models(world: World, tamper: Tamper) -> None:
    """Taken off its model in the database, it would serve every call of its owner, or of everybody where it is the system's."""
    root, ada = await world.person("root", Role.ADMIN), await world.person("ada")
    for caller, is_systems in ((ada, False), (root, True)):
        model = await world.models.create(caller, NewModel("openai", "gpt-x", api_key=value(OPENAI_KEY), system=is_systems))
        other = await world.models.create(caller, NewModel("openai", "gpt-y", api_key=value(OTHER_OPENAI_KEY), system=is_systems))
        assert model.secret_id is not None
        for edited in (None, other.id, uuid4()):
            await tamper(sa.update(secret).where(secret.c.id == model.secret_id).values(model_id=edited))
            with pytest.raises(KeyUnreadable):
                await world.secrets.credential(caller, model.secret_id)
            openai = (await world.providers.registry(ada.user_id)).get("openai")
            with pytest.raises((KeyUnreadable, KeyMissing)):
                await world.offering().resolver.resolve(ada.user_id, None, openai, "gpt-5")
        await tamper(sa.update(secret).where(secret.c.id == model.secret_id).values(model_id=model.id, state="ok"))
        assert (await world.secrets.credential(caller, model.secret_id)).value.reveal() == OPENAI_KEY.encode()
        await world.models.delete(caller, model.id)
        await world.models.delete(caller, other.id)


async def test_models_keys_with_the_older_mac_go_on_and_are_bound_at_the_next_start(world: World, tamper: Tamper) -> None:
    ada = await world.person("ada")
    model = await world.models.create(ada, NewModel("openai", "gpt-x", api_key=value(OPENAI_KEY)))
    plain = await world.secrets.create(ada, replace(NEW, name="plain"))
    assert model.secret_id is not None

    async def row_of(secret_id: UUID) -> Any:
        async with world.db.read(Actor.user(ada.user_id)) as tx:
            return await rows.get(tx, secret_id, (ada.user_id,))

    row = await row_of(model.secret_id)
    older = world.keyring.row_mac(macs.SECRET, *macs.older_secret_fields(row))
    assert older != bytes(row.mac)
    await tamper(sa.update(secret).where(secret.c.id == model.secret_id).values(mac=older))
    assert (await world.secrets.credential(ada, model.secret_id)).value.reveal() == OPENAI_KEY.encode()
    # A key that somebody made a model's in the database is not taken for one: no model says so.
    await tamper(sa.update(secret).where(secret.c.id == plain.id).values(model_id=model.id))
    assert await Adoption(world.secrets._keeper).turn() == 1
    assert bytes((await row_of(model.secret_id)).mac) == bytes(row.mac)
    assert bytes((await row_of(plain.id)).mac) == world.keyring.row_mac(
        macs.SECRET, *macs.older_secret_fields(await row_of(plain.id))
    )
    assert await Adoption(world.secrets._keeper).turn() == 0
    await tamper(sa.update(secret).where(secret.c.id == model.secret_id).values(model_id=None))
    with pytest.raises(KeyUnreadable):
        await world.secrets.credential(ada, model.secret_id)


async def test_secrets_from_before_there_were_macs_go_on_serving(world: World, tamper: Tamper) -> None:
    """Their ids, which envelopes are bound to, are of another version: no newer secret passes for one."""
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    row, old_id = await envelope_of(world, ada.user_id, made.id), uuid4()
    async with world.db.write(Actor.user(ada.user_id)) as tx:
        key = await world.keyring.sealing_key(tx, ada.user_id)
    sealed = world.keyring.seal(key, binding(old_id, 1, made.egress, fetchable=False), OPENAI_KEY.encode())
    columns = {"owner_id": ada.user_id, "owner_key_id": key.id, "envelope": sealed, "created_at": row.created_at}
    await tamper(sa.delete(secret_version))
    await tamper(sa.update(secret).values(id=old_id, mac=None))
    await tamper(sa.insert(secret_version).values(secret_id=old_id, version=1, **columns))
    assert (await world.secrets.credential(ada, old_id)).value.reveal() == OPENAI_KEY.encode()
    # The first change gives them one, and their value stays for rolling back.
    await world.secrets.update(ada, old_id, {"priority": 3})
    await tamper(sa.update(secret).values(priority=0))
    assert (await world.secrets.get(ada, old_id)).state == "unreadable"
    await tamper(sa.update(secret).values(priority=3))
    await world.secrets.update(ada, old_id, {"value": value(OTHER_OPENAI_KEY)})
    await world.secrets.versions.rollback(ada, old_id)
    assert (await world.secrets.credential(ada, old_id)).value.reveal() == OPENAI_KEY.encode()


async def test_an_edited_envelope_opens_nothing(world: World, tamper: Tamper) -> None:
    ada = await world.person("ada")
    for where in (0, 2, 3, 10, 30, 60, 84, -1):
        made = await world.secrets.create(ada, NEW)
        raw = bytearray((await envelope_of(world, ada.user_id, made.id)).envelope)
        raw[where] ^= 1
        await tamper(sa.update(secret_version).values(envelope=bytes(raw)))
        assert isinstance(await refused(world, ada, made), KeyUnreadable), where
        await world.secrets.delete(ada, made.id)


async def test_values_do_not_move_between_records_and_owners(world: World, tamper: Tamper) -> None:
    ada, mallory = await world.person("ada"), await world.person("mallory")
    adas = await world.secrets.create(ada, NEW)
    own = await world.secrets.create(mallory, NewSecret("openai", value(OTHER_OPENAI_KEY)))
    stolen = await envelope_of(world, ada.user_id, adas.id)
    await tamper(sa.update(secret_version).where(secret_version.c.secret_id == own.id).values(envelope=stolen.envelope))
    assert isinstance(await refused(world, mallory, own), KeyUnreadable)
    # With the owner key moved along, and the whole row made hers.
    await tamper(sa.delete(secret_version).where(secret_version.c.secret_id == adas.id))
    await tamper(sa.update(owner_key).where(owner_key.c.id == stolen.owner_key_id).values(owner_id=mallory.user_id, version=9))
    await tamper(
        sa.update(secret_version)
        .where(secret_version.c.secret_id == own.id)
        .values(envelope=stolen.envelope, owner_key_id=stolen.owner_key_id)
    )
    await tamper(sa.update(secret).where(secret.c.id == own.id).values(state="ok"))
    assert isinstance(await refused(world, mallory, own), KeyUnreadable)


async def test_a_record_given_to_another_owner_opens_nothing_there(world: World, tamper: Tamper) -> None:
    ada, mallory = await world.person("ada"), await world.person("mallory")
    made = await world.secrets.create(ada, NEW)
    row = await envelope_of(world, ada.user_id, made.id)
    await tamper(sa.delete(secret_version))
    await tamper(sa.update(secret).values(owner_id=mallory.user_id))
    own = await world.secrets.create(mallory, NewSecret("openai", value(OTHER_OPENAI_KEY), name="own"))
    mallorys = await envelope_of(world, mallory.user_id, own.id)
    await tamper(
        sa.insert(secret_version).values(
            **(dict(row._mapping) | {"owner_id": mallory.user_id, "owner_key_id": mallorys.owner_key_id})
        )
    )
    with pytest.raises(KeyUnreadable):
        await world.secrets.credential(mallory, made.id)
    with pytest.raises(NotFound):
        await world.secrets.credential(ada, made.id)


async def test_a_provider_moved_in_the_database_gets_no_key(world: World, tamper: Tamper) -> None:
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    await world.providers.update(admin, "openai", {"base_url": "https://api.openai.com/v1"})
    await tamper(sa.update(provider).values(base_url="https://evil.example"))
    # The row counts for nothing, so keys entered from now on do not go there either.
    openai = (await world.providers.registry(ada.user_id)).get("openai")
    assert openai.base_url == "https://api.openai.com"
    second = await world.secrets.create(ada, replace(NEW, name="second", value=value(OTHER_OPENAI_KEY)))
    assert second.egress == ("https://api.openai.com:443",)
    await world.secrets.delete(ada, second.id)
    # Nor does a moved provider with the secret's own list widened to match.
    openai = with_base_url(openai, "https://evil.example")
    with pytest.raises(EgressRefused):
        await world.resolver.resolve(ada.user_id, None, openai, "gpt-5")
    await tamper(sa.update(secret).values(egress=[EVIL]))
    with pytest.raises(KeyUnreadable):
        await world.resolver.resolve(ada.user_id, None, openai, "gpt-5")
    # Nor do the edited columns get sealed when the owner changes something.
    await tamper(sa.update(secret).values(state="ok"))
    with pytest.raises(KeyUnreadable):
        await world.secrets.update(ada, made.id, {"fetchable": True})
    await tamper(sa.update(secret).values(egress=[EVIL], fetchable=True))
    mended = await world.secrets.update(ada, made.id, {"value": value(OTHER_OPENAI_KEY)})
    assert (mended.egress, mended.fetchable) == (("https://api.openai.com:443",), False)
    # An administrator's next edit is one that counts again.
    shown = await world.providers.update(admin, "openai", {"base_url": "https://proxy.example"})
    assert shown.base_url == "https://proxy.example"


async def test_a_custom_provider_edited_or_inserted_in_the_database_is_none(world: World, tamper: Tamper) -> None:
    ada = await world.person("ada")
    made = await world.providers.create(ada, NewProvider("mine", "https://llm.example"))
    row: dict[str, Any] = {"base_url": "https://llm.example", "auth_style": "bearer", "auth_header": "authorization"}
    for edited in ({"base_url": "https://evil.example"}, {"auth_header": "x-other"}, {"owner_id": SYSTEM_OWNER_ID}):
        await tamper(sa.update(provider).values(**edited))
        with pytest.raises(ProviderUnknown):
            await world.providers.get(ada, "mine")
        await tamper(sa.update(provider).values(**row, owner_id=ada.user_id))
        assert (await world.providers.get(ada, "mine")).id == made.id
    await tamper(sa.update(provider).values(id=uuid4(), name="theirs"))
    with pytest.raises(ProviderUnknown):
        await world.providers.get(ada, "theirs")


async def test_an_earlier_envelope_put_back_opens_nothing(world: World, tamper: Tamper) -> None:
    ada = await world.person("ada")
    made = await world.secrets.create(ada, NEW)
    old = await envelope_of(world, ada.user_id, made.id)
    await world.secrets.update(ada, made.id, {"value": value(OTHER_OPENAI_KEY)})
    await tamper(sa.update(secret_version).values(envelope=old.envelope))
    assert isinstance(await refused(world, ada, made), KeyUnreadable)


async def test_a_secret_inserted_for_the_system_serves_nobody(world: World, tamper: Tamper) -> None:
    """A member's own key planted as the system's would send everybody's calls through the member's account."""
    world = world.offering()
    ada, mallory = await world.person("ada"), await world.person("mallory")
    planted = await world.secrets.create(mallory, NEW)
    row = await envelope_of(world, mallory.user_id, planted.id)
    async with world.db.read(Actor.user(mallory.user_id)) as tx:
        columns = dict((await tx.execute(sa.select(secret))).one()._mapping)
    system, new_id = UUID(int=0), uuid4()
    async with world.db.read(Actor.system()) as tx:
        system_key = (await tx.execute(sa.select(owner_key.c.id).where(owner_key.c.owner_id == system))).scalar_one()
    await tamper(sa.insert(secret).values(**(columns | {"id": new_id, "owner_id": system, "owner_kind": "system"})))
    await tamper(
        sa.insert(secret_version).values(
            **(dict(row._mapping) | {"secret_id": new_id, "owner_id": system, "owner_key_id": system_key})
        )
    )
    openai = (await world.providers.registry(ada.user_id)).get("openai")
    with pytest.raises(KeyMissing):
        await world.resolver.resolve(ada.user_id, None, openai, "gpt-5")


NONSENSE = (
    ("priority", "1.5", True),
    ("priority", "'first'", True),
    ("priority", "x'00'", True),
    ("version", "1.5", True),
    ("fallback_version", "'none'", True),
    ("is_active", "'perhaps'", False),
    ("expires_at", "'never'", True),
    ("expires_at", "'2099-01-01'", True),
    ("deleted_at", "7", None),
    ("model_id", "'mine'", None),
    ("allowed_models", "'[\"gpt-5\"'", True),
    ("allowed_tokens", "3.5", True),
    ("owner_kind", "'king'", True),
    ("secret_type", "'riddle'", None),
    ("mac", "1.5", True),
    ("mac", "99999999999", True),
    ("egress", "'{'", False),
    ("reference", "'[1]'", True),
    ("tags", "'{\"a\": 1}'", False),
    ("oauth", "'[1'", False),
    ("usage_count", "'many'", False),
    ("rotation_period", "-3.5", False),
    ("token_expires_at", "'2020-01-01'", False),
    ("created_by", "'somebody'", False),
    ("last_used_at", "'yesterday'", False),
    ("name", "CAST(x'6b62ff' AS TEXT)", False),  # no UTF-8
    ("description", "CAST(x'6b62ff' AS TEXT)", False),
    ("provider", "CAST(x'6b62ff' AS TEXT)", None),
    ("secret_type", "CAST(x'6b62ff' AS TEXT)", None),
    ("owner_kind", "CAST(x'6b62ff' AS TEXT)", True),
    ("state", "CAST(x'6b62ff' AS TEXT)", None),
    ("preview", "CAST(x'6b62ff' AS TEXT)", False),
    ("expires_at", "CAST(x'6b62ff' AS TEXT)", True),
    ("allowed_models", "CAST(x'5b22ff225d' AS TEXT)", True),
    ("model_id", "CAST(x'6b62ff' AS TEXT)", None),
)
"""A column of a secret, what its row holds there in SQL, whether that makes it unreadable; ``None``: no listing has it, or no call asks."""


@pytest.mark.parametrize(("column", "held", "is_unreadable"), NONSENSE)
async def test_a_row_that_holds_what_no_column_of_ours_does_takes_no_other_along(
    sqlite_world: World, tmp_path: Path, *, column: str, held: str, is_unreadable: bool | None
) -> None:
    """SQLite lets anything into any column."""
    world = sqlite_world
    ada = await world.person("ada")
    bad, good = [await world.secrets.create(ada, replace(NEW, name=name)) for name in ("bad", "good")]
    await tamper_with(sa.make_url(f"sqlite+aiosqlite:///{tmp_path}/keybearer.db"))(
        sa.text(f"UPDATE secret SET {column} = {held} WHERE name = 'bad'")  # from the table above
    )
    seen = {each.id: each for each in (await world.secrets.list(ada)).items}
    assert seen[good.id].state == "ok"
    if is_unreadable is not None:
        assert (seen[bad.id].state == "unreadable") is is_unreadable
    openai = (await world.providers.registry(ada.user_id)).get("openai")
    served = {each.secret_id for each in await world.resolver.resolve(ada.user_id, None, openai, "gpt-5")}
    assert good.id in served
    assert bad.id not in served or is_unreadable is False
    if is_unreadable and column != "expires_at":
        with pytest.raises(KeyUnreadable):
            await world.secrets.credential(ada, bad.id)
        # Entered again it is right again; a row of no kind that there is can still be deleted.
        if column in {"priority", "fallback_version", "mac"}:
            assert (await world.secrets.update(ada, bad.id, {"value": value(OTHER_OPENAI_KEY)})).state == "ok"
    if column != "deleted_at":
        await world.secrets.delete(ada, bad.id)


@pytest.mark.parametrize(
    "edit", ["subject = 'everything'", "kind = 'many'", "amount = 1.5", "amount = 'x'", "created_at = 'once'"]
)
async def test_an_edited_limit_leaves_the_others_as_they_are(world: World, tamper: Tamper, edit: str) -> None:
    """All limits are read at once, at the start too."""

    async def alone() -> None:
        return None

    budgets = Budgets(world.db, world.keyring, Catalog.load(), alone)
    ada = await world.person("ada")
    for kind in (BudgetKind.USD_DAY, BudgetKind.USD_MONTH):
        await budgets.create(ada, NewBudget(BudgetSubject.USER, kind, Decimal(5)))
    edited = sa.text(f"UPDATE budget SET {edit} WHERE kind = 'usd_day'")  # from the table above
    if world.db.name == "postgresql" and ("1.5" in edit or "'x'" in edit or "'once'" in edit):
        edited = sa.text("UPDATE budget SET amount = 1 WHERE kind = 'usd_day'")  # it holds columns to their types
    await tamper(edited)
    found, _ = await budgets.page(ada)
    assert sorted(limit.is_tampered for limit in found) == [False, True]
    assert [limit.amount for limit in found if not limit.is_tampered] == [5_000_000]
