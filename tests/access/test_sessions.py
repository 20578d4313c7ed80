"""Signing in and out, as people do and as others try."""

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
from keybearer.access.limiter import PER_ACCOUNT_AND_ADDRESS
from keybearer.access.tokens import NewToken
from keybearer.domain import MEMBER_SCOPES, Client, Role, Scope
from keybearer.errors import Forbidden, Invalid, NotFound, Overloaded, RateLimited, SessionInvalid, SignInFailed
from keybearer.store.schema import session, user

WRONG = "kbtest-not the password"


async def test_sign_in_be_recognised_and_sign_out(world: World) -> None:
    ada = await world.person("ada")
    caller, cookie = await world.sessions.sign_in(" ADA@example.com", PASSWORD, BROWSER)
    assert (caller.user_id, caller.role, caller.scopes) == (ada.user_id, Role.MEMBER, MEMBER_SCOPES)
    assert len(cookie) == 43  # 32 random bytes
    assert await world.sessions.authenticate(cookie, BROWSER) == caller
    async with world.db.read(policy.actor_of(caller)) as tx:
        row = (await tx.execute(sa.select(session))).one()
    assert bytes(row.token_hash) == hashlib.sha256(cookie.encode()).digest()
    assert cookie not in repr(row)
    (view,) = (await world.sessions.page(caller))[0]
    assert (view.id, view.is_current, view.user_agent) == (caller.session_id, True, BROWSER.user_agent)
    await world.sessions.sign_out(caller)
    with pytest.raises(SessionInvalid):
        await world.sessions.authenticate(cookie, BROWSER)
    await world.sessions.sign_out(caller)


async def test_who_cannot_sign_in_learns_nothing(world: World) -> None:
    await world.person("ada")
    admin, bob = await world.person("admin", Role.ADMIN), await world.person("bob")
    await world.users.set_active(bob.user_id, False, admin)
    answers: set[object] = set()
    for email, password in (
        ("ada@example.com", WRONG),
        ("ada@example.com", ""),
        ("ada@example.com", PASSWORD + "\x00"),
        ("ada@example.com", "\ud800" * 20),
        ("bob@example.com", PASSWORD),
        ("nobody@example.com", PASSWORD),
        ("", PASSWORD),
        ("\x00", PASSWORD),
        ("\ud800", PASSWORD),
        ("x" * 100_000, PASSWORD),
        ("ada@example.com", "x" * 100_000),
    ):
        with pytest.raises(SignInFailed) as failed:
            await world.sessions.sign_in(email, password, Client(f"198.51.100.{len(answers)}", "x\x00y\ud800"))
        answers.add((failed.value.message, failed.value.hint, failed.value.fields))
    assert len(answers) == 1
    recorded = await world.recorded()
    assert recorded.count(("session.sign_in", "sign_in_failed")) == 11


@pytest.mark.parametrize("email", ["ada@example.com", "nobody@example.com"])
async def test_guessing_is_slowed_but_nobody_is_locked_out(world: World, email: str) -> None:
    await world.person("ada")
    for _ in range(PER_ACCOUNT_AND_ADDRESS.burst):
        with pytest.raises(SignInFailed):
            await world.sessions.sign_in(email, WRONG, BROWSER)
    for _ in range(3):
        with pytest.raises(RateLimited) as limited:
            await world.sessions.sign_in(email, PASSWORD, BROWSER)
        assert limited.value.retry_after
    assert (await world.recorded()).count(("session.sign_in", "rate_limited")) == 1
    if email == "ada@example.com":
        await world.sessions.sign_in(email, PASSWORD, Client("203.0.113.5"))


@pytest.mark.parametrize("how", ["sign in", "prove it again"])
async def test_an_attempt_that_nobody_had_time_for_does_not_count(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    ada = await world.person("ada")

    async def prove() -> None:
        if how == "prove it again":
            await world.users.prove(ada, "secret.export", PASSWORD)
        else:
            await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)

    with monkeypatch.context() as busy:
        busy.setattr(world.sessions.passwords, "_most", 0)
        for _ in range(2 * PER_ACCOUNT_AND_ADDRESS.burst):
            with pytest.raises(Overloaded):
                await prove()
    await prove()


async def test_attempts_at_the_same_moment_count_each(world: World) -> None:
    await world.person("ada")
    tries = [world.sessions.sign_in("ada@example.com", WRONG, BROWSER) for _ in range(12)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(result, SignInFailed) for result in results) == PER_ACCOUNT_AND_ADDRESS.burst
    assert sum(isinstance(result, RateLimited) for result in results) == 12 - PER_ACCOUNT_AND_ADDRESS.burst


async def test_signing_in_again_ends_the_browsers_last_session_and_no_other(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    _, first = await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)
    _, elsewhere = await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)
    _, bobs = await world.sessions.sign_in("bob@example.com", PASSWORD, BROWSER)
    _, second = await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER, replaces=first)
    await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER, replaces=bobs)
    assert len({first, elsewhere, second}) == 3
    with pytest.raises(SessionInvalid):
        await world.sessions.authenticate(first, BROWSER)
    assert (await world.sessions.authenticate(second, BROWSER)).user_id == ada.user_id
    await world.sessions.authenticate(elsewhere, BROWSER)
    assert (await world.sessions.authenticate(bobs, BROWSER)).user_id == bob.user_id


async def test_sessions_time_out_unused_and_in_any_case(world: World, tamper: Tamper) -> None:
    await world.person("ada")
    caller, cookie = await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)
    now = datetime.now(UTC)
    await tamper(sa.update(session).values(last_seen_at=now - timedelta(minutes=59)))
    await world.sessions.authenticate(cookie, BROWSER)
    (view,) = (await world.sessions.page(caller))[0]
    assert view.last_seen_at >= now  # using it has prolonged it
    await tamper(sa.update(session).values(last_seen_at=now - timedelta(minutes=61)))
    with pytest.raises(SessionInvalid):
        await world.sessions.authenticate(cookie, BROWSER)
    assert (await world.sessions.page(caller))[0] == []
    world.sessions.absolute = timedelta(seconds=0.2)
    _, brief = await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)
    await world.sessions.authenticate(brief, BROWSER)
    await asyncio.sleep(0.21)
    with pytest.raises(SessionInvalid):
        await world.sessions.authenticate(brief, BROWSER)


async def test_a_row_edited_or_inserted_in_the_database_is_no_way_in(world: World, tamper: Tamper) -> None:
    ada, admin = await world.person("ada"), await world.person("admin", Role.ADMIN)
    for columns in (
        {"user_id": admin.user_id},
        {"expires_at": datetime(2120, 1, 1, tzinfo=UTC)},
        {"created_at": datetime(2020, 1, 1, tzinfo=UTC)},
        {"id": uuid4()},
        {"mac": bytes(32)},
    ):
        caller, cookie = await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)
        await tamper(sa.update(session).where(session.c.id == caller.session_id).values(**columns))
        with pytest.raises(SessionInvalid):
            await world.sessions.authenticate(cookie, BROWSER)
    caller, cookie = await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)
    async with world.db.read(policy.actor_of(caller)) as tx:
        row = (await tx.execute(sa.select(session).where(session.c.id == caller.session_id))).one()
    forged = dict(row._mapping) | {"id": uuid4(), "token_hash": hashlib.sha256(b"forged").digest()}
    await tamper(sa.insert(session).values(**forged))
    with pytest.raises(SessionInvalid):
        await world.sessions.authenticate("forged", BROWSER)
    await tamper(sa.update(user).where(user.c.id == ada.user_id).values(role="admin"))
    with pytest.raises(SessionInvalid):
        await world.sessions.authenticate(cookie, BROWSER)


async def test_cookies_that_are_none(world: World) -> None:
    for cookie in ("", "x", "\x00", "\ud800", "x" * 100_000):
        with pytest.raises(SessionInvalid):
            await world.sessions.authenticate(cookie, BROWSER)


async def test_revoke_ones_own_sessions_only(world: World) -> None:
    await world.person("ada")
    await world.person("bob")
    ada, _ = await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)
    _, lost = await world.sessions.sign_in("ada@example.com", PASSWORD, Client("203.0.113.5", "a lost laptop"))
    bob, bobs = await world.sessions.sign_in("bob@example.com", PASSWORD, BROWSER)
    (found,) = [view for view in (await world.sessions.page(ada))[0] if not view.is_current]
    await world.sessions.revoke(ada, found.id)
    with pytest.raises(SessionInvalid):
        await world.sessions.authenticate(lost, BROWSER)
    assert bob.session_id is not None
    answers = set()
    for foreign in (bob.session_id, uuid4()):
        with pytest.raises(NotFound) as unknown:
            await world.sessions.revoke(ada, foreign)
        answers.add((unknown.value.message, unknown.value.hint))
    assert len(answers) == 1
    await world.sessions.authenticate(bobs, BROWSER)
    assert [record for record in await world.recorded() if record[0] == "session.revoke"] == [
        ("session.revoke", "ok"),
        ("session.revoke", "not_found"),
        ("session.revoke", "not_found"),
    ]


async def test_a_disabled_account_is_out_at_once(world: World) -> None:
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    _, cookie = await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)
    await world.users.set_active(ada.user_id, False, admin)
    with pytest.raises(SessionInvalid):
        await world.sessions.authenticate(cookie, BROWSER)


async def test_changing_the_password_ends_the_other_sessions(world: World) -> None:
    await world.person("ada")
    caller, cookie = await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)
    _, other = await world.sessions.sign_in("ada@example.com", PASSWORD, Client("203.0.113.5"))
    for current, new, field in (
        (WRONG, "kbtest-a new password", "current_password"),
        (PASSWORD, "short", "new_password"),
        (PASSWORD, "ada@example.com", "new_password"),
    ):
        with pytest.raises(Invalid) as wrong:
            await world.users.change_password(caller, current, new)
        assert [error.field for error in wrong.value.fields] == [field]
    await world.sessions.authenticate(other, BROWSER)
    await world.users.change_password(caller, PASSWORD, "kbtest-a new password")
    await world.sessions.authenticate(cookie, BROWSER)
    with pytest.raises(SessionInvalid):
        await world.sessions.authenticate(other, BROWSER)
    with pytest.raises(SignInFailed):
        await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)
    await world.sessions.sign_in("ada@example.com", "kbtest-a new password", BROWSER)


async def test_what_is_for_people_is_not_for_tokens(world: World) -> None:
    ada = await world.person("ada")
    _, text = await world.tokens.create(ada, NewToken("all", MEMBER_SCOPES))
    token = policy.caller_of_grant(await world.tokens.verify(text.encode()), BROWSER)
    assert Scope.SECRETS_WRITE in token.scopes
    for call in (
        world.sessions.page(token),
        world.sessions.revoke(token, uuid4()),
        world.users.change_password(token, PASSWORD, "kbtest-a new password"),
        world.users.set_fallback(token, False),
    ):
        with pytest.raises(Forbidden, match="access token"):
            await call
