"""The first administrator by the set-up link, then accounts by administrators; races and last ones."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper
from tests.support.vault import BROWSER, PASSWORD, World

from keybearer.access import policy
from keybearer.access.tokens import NewToken
from keybearer.domain import Caller, Role, Scope
from keybearer.errors import Conflict, Forbidden, Invalid, LinkInvalid, NotFound, RateLimited, ScopeMissing, SignInFailed
from keybearer.store.db import Actor
from keybearer.store.schema import one_time_link, user


async def redeem(world: World, token: str, email: str = "ada@example.com") -> tuple[Caller, str]:
    return await world.users.redeem_setup_link(token, email, PASSWORD, "Ada", BROWSER)


async def test_the_first_administrator(world: World) -> None:
    assert not await world.users.has_admin()
    link = await world.users.issue_setup_link()
    caller, cookie = await redeem(world, link, " Ada@Example.com ")
    assert caller.is_admin
    assert (await world.sessions.authenticate(cookie, BROWSER)).user_id == caller.user_id
    ada = await world.users.get(caller.user_id)
    assert (ada.email, ada.name, ada.role, ada.is_active) == ("ada@example.com", "Ada", Role.ADMIN, True)
    assert await world.users.has_admin()
    with pytest.raises(LinkInvalid):
        await redeem(world, link, "eve@example.com")
    with pytest.raises(Conflict, match="administrator already"):
        await world.users.issue_setup_link()
    assert [record for record in await world.recorded() if record[0] != "session.sign_in"] == [
        ("setup_link.issue", "ok"),
        ("user.create", "ok"),
        ("setup_link.redeem", "link_invalid"),
    ]


async def test_a_new_link_ends_earlier_ones(world: World) -> None:
    first = await world.users.issue_setup_link()
    second = await world.users.issue_setup_link()
    with pytest.raises(LinkInvalid):
        await redeem(world, first)
    await redeem(world, second)


async def test_a_link_lasts_half_an_hour(world: World, tamper: Tamper) -> None:
    link = await world.users.issue_setup_link()
    async with world.db.read(Actor.system()) as tx:
        row = (await tx.execute(sa.select(one_time_link))).one()
    assert row.expires_at - row.created_at == timedelta(minutes=30)
    assert link.encode() not in bytes(row.token_hash)
    await tamper(sa.update(one_time_link).values(expires_at=datetime.now(UTC)))
    with pytest.raises(LinkInvalid):
        await redeem(world, link)
    assert not await world.users.has_admin()


async def test_two_redeem_one_link_at_the_same_moment(world: World) -> None:
    link = await world.users.issue_setup_link()
    tries = [redeem(world, link, f"user{number}@example.com") for number in range(5)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(result, tuple) for result in results) == 1
    assert sum(isinstance(result, LinkInvalid) for result in results) == 4
    async with world.db.read(Actor.system()) as tx:
        assert (await tx.execute(sa.select(sa.func.count()).select_from(user))).scalar_one() == 1


async def test_links_issued_at_the_same_moment_leave_one(world: World) -> None:
    links = await asyncio.gather(*(world.users.issue_setup_link() for _ in range(3)))
    results = await asyncio.gather(*(redeem(world, link) for link in links), return_exceptions=True)
    assert sum(isinstance(result, tuple) for result in results) == 1


async def test_a_mistake_in_the_form_does_not_use_the_link_up(world: World) -> None:
    link = await world.users.issue_setup_link()
    for email, password, field in (
        ("nobody", PASSWORD, "email"),
        ("ada@example.com", "short", "password"),
        ("ada@example.com", "ada@example.com", "password"),
    ):
        with pytest.raises(Invalid) as wrong:
            await world.users.redeem_setup_link(link, email, password, "", BROWSER)
        assert [error.field for error in wrong.value.fields] == [field]
    await redeem(world, link)


async def test_links_that_are_none(world: World) -> None:
    await world.users.issue_setup_link()
    for token in ("", "x", "\x00", "\ud800", "x" * 100_000):
        with pytest.raises(LinkInvalid):
            await redeem(world, token)


async def test_a_link_written_into_the_database_is_none(world: World, tamper: Tamper) -> None:
    """Whoever can write rows but has no root key does not become an administrator by it."""
    boss = await world.person("boss", Role.ADMIN)
    await tamper(sa.update(user).where(user.c.id == boss.user_id).values(role="member"))
    now = datetime.now(UTC)
    forged = hashlib.sha256(b"kbtest-forged").digest()
    await tamper(
        sa.insert(one_time_link).values(
            token_hash=forged, purpose="setup", expires_at=now + timedelta(hours=1), used_at=None, created_at=now
        )
    )
    with pytest.raises(LinkInvalid):
        await redeem(world, "kbtest-forged", "eve@example.com")


async def test_guessing_links_is_slowed(world: World) -> None:
    for _ in range(5):
        with pytest.raises(LinkInvalid):
            await redeem(world, "guess")
    with pytest.raises(RateLimited):
        await redeem(world, "guess")


async def test_administrators_make_accounts_and_nobody_else_does(world: World) -> None:
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    made = await world.users.create("Bob@example.com", PASSWORD, "", Role.MEMBER, admin)
    assert (made.email, made.name) == ("bob@example.com", "bob@example.com")
    await world.sessions.sign_in("bob@example.com", PASSWORD, BROWSER)
    assert [each.email for each in (await world.users.page(admin))[0]] == [
        "ada@example.com",
        "admin@example.com",
        "bob@example.com",
    ]
    assert (await world.users.find("BOB@example.com")).id == made.id
    with pytest.raises(Conflict, match="this e-mail address"):
        await world.users.create("bob@EXAMPLE.com", PASSWORD, "", Role.MEMBER, admin)
    _, text = await world.tokens.create(admin, NewToken("weak", frozenset({Scope.SECRETS_WRITE})))
    weak = policy.caller_of_grant(await world.tokens.verify(text.encode()), BROWSER)
    for caller, error in ((ada, Forbidden), (weak, ScopeMissing)):
        for call in (
            world.users.create("eve@example.com", PASSWORD, "", Role.ADMIN, caller),
            world.users.set_active(admin.user_id, False, caller),
            world.users.page(caller),
        ):
            with pytest.raises(error):
                await call


async def test_two_accounts_with_one_address_at_the_same_moment(world: World) -> None:
    tries = [world.users.create("ada@example.com", PASSWORD, "", Role.MEMBER, None) for _ in range(3)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(result, Conflict) for result in results) == 2


async def test_somebody_can_always_administer(world: World) -> None:
    admin, other = await world.person("admin", Role.ADMIN), await world.person("other", Role.ADMIN)
    with pytest.raises(Forbidden, match="your own"):
        await world.users.set_active(admin.user_id, False, admin)
    results = await asyncio.gather(
        world.users.set_active(other.user_id, False, admin),
        world.users.set_active(admin.user_id, False, other),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Forbidden) for result in results) == 1
    active = [each for each in (await world.users.page(admin))[0] if each.is_active]
    assert len(active) == 1
    with pytest.raises(Forbidden, match="last active"):
        await world.users.set_active(active[0].id, False, None)


async def test_an_account_edited_in_the_database_can_be_disabled_but_not_enabled(world: World, tamper: Tamper) -> None:
    admin, mallory = await world.person("admin", Role.ADMIN), await world.person("mallory")
    await tamper(sa.update(user).where(user.c.id == mallory.user_id).values(role="admin"))
    with pytest.raises(SignInFailed):
        await world.sessions.sign_in("mallory@example.com", PASSWORD, BROWSER)
    assert not (await world.users.set_active(mallory.user_id, False, admin)).is_active
    with pytest.raises(Forbidden, match="outside Keybearer"):
        await world.users.set_active(mallory.user_id, True, admin)


async def test_an_address_typed_on_another_keyboard_is_the_same(world: World) -> None:
    made = await world.users.create("Zoe\u0308@example.com", PASSWORD, "", Role.MEMBER, None)
    assert made.email == "zo\u00eb@example.com"
    for typed in ("zo\u00eb@example.com", " Zoe\u0308@example.com"):
        assert (await world.users.find(typed)).id == made.id
        caller, _ = await world.sessions.sign_in(typed, PASSWORD, BROWSER)
        assert caller.user_id == made.id


async def test_unknown_accounts(world: World) -> None:
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    with pytest.raises(NotFound):
        await world.users.set_active(uuid4(), False, admin)
    with pytest.raises(NotFound):
        await world.users.get(uuid4())
    with pytest.raises(NotFound):
        await world.users.find("nobody@example.com")
    user_after = await world.users.set_fallback(ada, False)
    assert not user_after.fallback_allowed
