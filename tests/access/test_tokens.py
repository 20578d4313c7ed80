"""Access tokens as people make, use and revoke them, and as somebody with the database in their hands would forge them."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper
from tests.support.vault import World

from keybearer.access import policy
from keybearer.access.tokens import NewToken, checksum, generate
from keybearer.domain import MEMBER_SCOPES, Caller, Client, Role, Scope
from keybearer.errors import AddressRefused, Forbidden, Invalid, NotFound, ScopeMissing, TokenInvalid
from keybearer.store.schema import access_token, user

SOON = timedelta(days=1)


def now() -> datetime:
    return datetime.now(UTC)


async def calling_with(world: World, owner: Caller, new: NewToken) -> Caller:
    """The caller behind a token of ``owner``'s."""
    _, text = await world.tokens.create(owner, new)
    return policy.caller_of_grant(await world.tokens.verify(text.encode()), Client("198.51.100.7"))


async def test_a_token_carries_what_it_was_given(world: World) -> None:
    ada = await world.person("ada")
    expires = now() + SOON
    new = NewToken(
        "  ci ",
        frozenset({Scope.GATEWAY_USE, Scope.USAGE_READ}),
        frozenset({"openai"}),
        frozenset({"openai/gpt-5"}),
        ("10.0.0.7",),
        expires,
    )
    made, text = await world.tokens.create(ada, new)
    assert (made.name, made.ip_allowlist) == ("ci", ("10.0.0.7/32",))
    grant = await world.tokens.verify(text.encode())
    assert grant.scopes == {Scope.GATEWAY_USE, Scope.USAGE_READ}
    assert grant.allowed_providers == frozenset({"openai"})
    assert grant.allowed_models == frozenset({"openai/gpt-5"})
    assert grant.expires_at == expires
    assert policy.caller_of_grant(grant, Client("::ffff:10.0.0.7")).token_id == made.id
    for elsewhere in ("10.0.0.8", "", "nonsense", "::1"):
        with pytest.raises(AddressRefused):
            policy.caller_of_grant(grant, Client(elsewhere))
    assert (await world.tokens.page(ada))[0] == [made]
    assert await world.tokens.get(ada, made.id) == made


async def test_the_stored_row_does_not_hold_the_token(world: World) -> None:
    ada = await world.person("ada")
    made, text = await world.tokens.create(ada, NewToken("ci"))
    async with world.db.read(policy.actor_of(ada)) as tx:
        row = (await tx.execute(sa.select(access_token))).one()
    assert bytes(row.token_hash) == hashlib.sha256(text.encode()).digest()
    assert text[16:] not in repr(row)
    assert text[16:] not in repr(made)


@pytest.mark.parametrize("how", ["off", "deleted", "expired", "owner disabled", "other secret", "unknown"])
async def test_every_dead_token_gets_the_same_answer(world: World, how: str) -> None:
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    made, text = await world.tokens.create(ada, NewToken("ci"))
    match how:
        case "off":
            await world.tokens.update(ada, made.id, is_active=False)
        case "deleted":
            await world.tokens.delete(ada, made.id)
        case "expired":
            await world.tokens.update(ada, made.id, expires_at=now() + timedelta(seconds=0.3))
            await world.tokens.verify(text.encode())
            await asyncio.sleep(0.31)
        case "owner disabled":
            await world.users.set_active(ada.user_id, False, admin)
        case "other secret":
            text = generate()
            text = f"kb_{made.id}{text[15:48]}"
            text += checksum(text.encode())
        case "unknown":
            text = generate()
    with pytest.raises(TokenInvalid) as refused:
        await world.tokens.verify(text.encode())
    assert (refused.value.message, refused.value.hint) == (TokenInvalid().message, TokenInvalid().hint)


async def test_a_disabled_owner_and_a_lost_role_take_their_scopes_along(world: World, tamper: Tamper) -> None:
    admin, other = await world.person("admin", Role.ADMIN), await world.person("other", Role.ADMIN)
    _, text = await world.tokens.create(other, NewToken("all", frozenset(Scope)))
    assert (await world.tokens.verify(text.encode())).scopes == frozenset(Scope)
    mac = world.keyring.row_mac("user_account", other.user_id, "member", True)
    await tamper(sa.update(user).where(user.c.id == other.user_id).values(role="member", mac=mac))
    assert (await world.tokens.verify(text.encode())).scopes == MEMBER_SCOPES
    await world.users.set_active(other.user_id, False, admin)
    with pytest.raises(TokenInvalid):
        await world.tokens.verify(text.encode())
    await world.users.set_active(other.user_id, True, admin)
    await world.tokens.verify(text.encode())


EDITED: tuple[dict[str, Any], ...] = (
    {"scopes": ["admin", "gateway:use"]},
    {"scopes": {"gateway:use": 1}},
    {"scopes": [1]},
    {"allowed_providers": None},
    {"allowed_models": ["openai/gpt-5", "openai/o3"]},
    {"ip_allowlist": []},
    {"expires_at": None},
    {"expires_at": datetime(2120, 1, 1, tzinfo=UTC)},
    {"token_hash": bytes(32)},
    {"created_at": datetime(2020, 1, 1, tzinfo=UTC)},
    {"mac": bytes(32)},
    {"mac": b""},
)


async def test_a_row_edited_in_the_database_is_no_way_in(world: World, tamper: Tamper) -> None:
    ada, bob = await world.person("ada"), await world.person("bob", Role.ADMIN)
    new = NewToken(
        "ci",
        frozenset({Scope.GATEWAY_USE}),
        frozenset({"openai"}),
        frozenset({"openai/gpt-5"}),
        ("198.51.100.0/24",),
        now() + SOON,
    )
    for columns in (*EDITED, {"user_id": bob.user_id}):
        made, text = await world.tokens.create(ada, new)
        await world.tokens.verify(text.encode())
        await tamper(sa.update(access_token).where(access_token.c.id == made.id).values(**columns))
        with pytest.raises(TokenInvalid):
            await world.tokens.verify(text.encode())


async def test_a_token_switched_on_in_the_database_stays_off(world: World, tamper: Tamper) -> None:
    ada = await world.person("ada")
    made, text = await world.tokens.create(ada, NewToken("ci"))
    await world.tokens.update(ada, made.id, is_active=False)
    await tamper(sa.update(access_token).values(is_active=True))
    with pytest.raises(TokenInvalid):
        await world.tokens.verify(text.encode())


async def test_an_inserted_row_is_no_way_in(world: World, tamper: Tamper) -> None:
    """Not even one that copies a good row's MAC."""
    ada = await world.person("ada", Role.ADMIN)
    await world.tokens.create(ada, NewToken("ci"))
    text = generate()
    async with world.db.read(policy.actor_of(ada)) as tx:
        row = (await tx.execute(sa.select(access_token))).one()
    forged = dict(row._mapping) | {"id": text[3:15], "token_hash": hashlib.sha256(text.encode()).digest()}
    await tamper(sa.insert(access_token).values(**forged))
    with pytest.raises(TokenInvalid):
        await world.tokens.verify(text.encode())


async def test_an_edited_role_or_state_of_the_owner_is_no_way_in(world: World, tamper: Tamper) -> None:
    ada = await world.person("ada")
    _, text = await world.tokens.create(ada, NewToken("ci"))
    await tamper(sa.update(user).where(user.c.id == ada.user_id).values(role="admin"))
    with pytest.raises(TokenInvalid):
        await world.tokens.verify(text.encode())


async def test_an_edited_row_does_not_get_a_good_mac_by_a_change(world: World, tamper: Tamper) -> None:
    ada = await world.person("ada")
    made, text = await world.tokens.create(ada, NewToken("ci"))
    await tamper(sa.update(access_token).values(scopes=["admin"]))
    with pytest.raises(Forbidden, match="outside Keybearer"):
        await world.tokens.update(ada, made.id, name="renamed")
    with pytest.raises(TokenInvalid):
        await world.tokens.verify(text.encode())
    await world.tokens.delete(ada, made.id)


async def test_nobody_gives_a_token_more_than_they_have(world: World) -> None:
    ada = await world.person("ada")
    for scope in (Scope.ADMIN, Scope.USERS_ACT_AS):
        with pytest.raises(ScopeMissing, match=scope.value):
            await world.tokens.create(ada, NewToken("more", frozenset({scope})))
    narrow = NewToken(
        "narrow",
        frozenset({Scope.GATEWAY_USE, Scope.TOKENS_WRITE}),
        frozenset({"openai"}),
        frozenset({"openai/gpt-5"}),
        ("198.51.100.0/24",),
        now() + SOON,
    )
    limited = await calling_with(world, ada, narrow)
    await world.tokens.create(limited, replace(narrow, name="as narrow"))
    await world.tokens.create(limited, replace(narrow, ip_allowlist=("198.51.100.9",), scopes=frozenset({Scope.GATEWAY_USE})))
    for wider, error in (
        ({"scopes": frozenset({Scope.SECRETS_READ})}, ScopeMissing),
        ({"allowed_providers": None}, Forbidden),
        ({"allowed_providers": frozenset({"openai", "anthropic"})}, Forbidden),
        ({"allowed_models": None}, Forbidden),
        ({"allowed_models": frozenset({"openai/o3"})}, Forbidden),
        ({"ip_allowlist": ()}, Forbidden),
        ({"ip_allowlist": ("0.0.0.0/0",)}, Forbidden),
        ({"ip_allowlist": ("2001:db8::/32",)}, Forbidden),
        ({"expires_at": None}, Forbidden),
        ({"expires_at": now() + 2 * SOON}, Forbidden),
    ):
        with pytest.raises(error):
            await world.tokens.create(limited, replace(narrow, **wider))
    without = await calling_with(world, ada, NewToken("gateway only"))
    with pytest.raises(ScopeMissing, match="tokens:write"):
        await world.tokens.create(without, NewToken("child"))
    with pytest.raises(ScopeMissing):
        await world.tokens.page(without)


async def test_a_token_cannot_widen_itself_nor_wake_a_stronger_one(world: World) -> None:
    ada = await world.person("ada")
    strong, text = await world.tokens.create(ada, NewToken("strong", MEMBER_SCOPES))
    await world.tokens.update(ada, strong.id, is_active=False)
    limited = await calling_with(world, ada, NewToken("limited", frozenset({Scope.TOKENS_WRITE}), frozenset({"openai"})))
    assert limited.token_id is not None
    for token_id, fields in (
        (limited.token_id, {"scopes": MEMBER_SCOPES}),
        (limited.token_id, {"allowed_providers": None}),
        (strong.id, {"is_active": True}),
        (strong.id, {"expires_at": None}),
    ):
        with pytest.raises((ScopeMissing, Forbidden)):
            await world.tokens.update(limited, token_id, **fields)
    with pytest.raises(TokenInvalid):
        await world.tokens.verify(text.encode())
    await world.tokens.update(limited, strong.id, name="renamed")
    await world.tokens.delete(limited, strong.id)


async def test_a_revoked_token_makes_no_more_tokens(world: World) -> None:
    ada = await world.person("ada")
    caller = await calling_with(world, ada, NewToken("maker", frozenset({Scope.TOKENS_WRITE})))
    assert caller.token_id is not None
    await world.tokens.delete(ada, caller.token_id)
    with pytest.raises(TokenInvalid):
        await world.tokens.create(caller, NewToken("child", frozenset({Scope.TOKENS_WRITE})))


async def test_changes_touch_only_the_fields_given(world: World) -> None:
    ada = await world.person("ada")
    made, _ = await world.tokens.create(ada, NewToken("ci", allowed_providers=frozenset({"openai"}), expires_at=now() + SOON))
    renamed = await world.tokens.update(ada, made.id, name="new name", is_active=None)
    assert renamed == replace(made, name="new name")
    lifted = await world.tokens.update(ada, made.id, allowed_providers=None, expires_at=None)
    assert (lifted.allowed_providers, lifted.expires_at) == (None, None)
    with pytest.raises(Invalid, match="last_used_at cannot be changed"):
        await world.tokens.update(ada, made.id, last_used_at=now())


WRONG: tuple[tuple[NewToken, str], ...] = (
    (NewToken(""), "name"),
    (NewToken("x" * 201), "name"),
    (NewToken("a\x00b"), "name"),
    (NewToken("\ud800"), "name"),
    (NewToken("x", frozenset()), "scopes"),
    (NewToken("x", allowed_providers=frozenset()), "allowed_providers"),
    (NewToken("x", allowed_providers=frozenset({"Open AI"})), "allowed_providers.0"),
    (NewToken("x", allowed_models=frozenset({"gpt-5"})), "allowed_models.0"),
    (NewToken("x", ip_allowlist=("10.0.0.0/33",)), "ip_allowlist.0"),
    (NewToken("x", ip_allowlist=("\ud800",)), "ip_allowlist.0"),
    (NewToken("x", expires_at=datetime(2020, 1, 1, tzinfo=UTC)), "expires_at"),
    (NewToken("x", expires_at=datetime(2120, 1, 1)), "expires_at"),  # noqa: DTZ001  # naive is the point
)


async def test_what_is_wrong_is_told_by_field(world: World) -> None:
    ada = await world.person("ada")
    for new, field in WRONG:
        with pytest.raises(Invalid) as wrong:
            await world.tokens.create(ada, new)
        assert field in {error.field for error in wrong.value.fields}


async def test_tokens_of_others_are_as_unknown_ones(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    made, text = await world.tokens.create(ada, NewToken("ada's"))
    answers = []
    for token_id in (made.id, "0" * 12, "'; DROP", "\ud800", ""):
        for call in (
            world.tokens.get(bob, token_id),
            world.tokens.update(bob, token_id, name="mine"),
            world.tokens.update(bob, token_id, is_active=False),
            world.tokens.delete(bob, token_id),
        ):
            with pytest.raises(NotFound) as unknown:
                await call
            answers.append((unknown.value.message, unknown.value.hint))
    assert len(set(answers)) == 1
    assert (await world.tokens.page(bob))[0] == []
    with pytest.raises(Forbidden):
        await world.tokens.page(bob, ada.user_id)
    await world.tokens.verify(text.encode())


async def test_an_administrator_sees_and_revokes_tokens_of_others_but_gives_them_nothing(world: World) -> None:
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    made, text = await world.tokens.create(ada, NewToken("ada's"))
    assert (await world.tokens.page(admin, ada.user_id))[0] == [made]
    assert await world.tokens.get(admin, made.id) == made
    for fields in ({"scopes": frozenset({Scope.ADMIN})}, {"is_active": True}, {"name": "x"}):
        with pytest.raises(NotFound):
            await world.tokens.update(admin, made.id, **fields)
    await world.tokens.update(admin, made.id, is_active=False)
    with pytest.raises(TokenInvalid):
        await world.tokens.verify(text.encode())
    await world.tokens.delete(admin, made.id)


async def test_changes_and_refusals_are_on_record(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    made, _ = await world.tokens.create(ada, NewToken("ci"))
    with pytest.raises(NotFound):
        await world.tokens.delete(bob, made.id)
    await world.tokens.update(ada, made.id, is_active=False)
    await world.tokens.delete(ada, made.id)
    assert (await world.recorded())[-4:] == [
        ("token.create", "ok"),
        ("token.delete", "not_found"),
        ("token.update", "ok"),
        ("token.delete", "ok"),
    ]
    assert await world.changed() == ["user", "user", "token", "token", "token"]
