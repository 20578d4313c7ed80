"""Teams: who is in, as what, by whose word; and what somebody tries who is not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper
from tests.support.vault import World

from keybearer.domain import Caller, Client, Role, Scope, TeamRole
from keybearer.errors import Conflict, Forbidden, Invalid, KeybearerError, NotFound, RateLimited, ScopeMissing
from keybearer.store.db import Actor
from keybearer.store.schema import owner, owner_key, team, team_member

OWNER, ADMIN, MEMBER = TeamRole.OWNER, TeamRole.ADMIN, TeamRole.MEMBER


async def join(world: World, by: Caller, team_id: UUID, name: str, role: TeamRole = MEMBER) -> Caller:
    """Somebody new who is invited, and accepts."""
    person = await world.person(name)
    await world.teams.invite(by, team_id, f"{name}@example.com", role)
    await world.teams.accept(person, team_id)
    return person


async def roles(world: World, caller: Caller, team_id: UUID) -> dict[str, str]:
    return {each.name: each.role.value for each in await world.teams.members(caller, team_id) if each.accepted_at}


async def test_a_team_from_its_first_day_to_its_last(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    made = await world.teams.create(ada, "  Research ")
    assert (made.name, made.role, made.leads) == ("Research", OWNER, True)
    invited = await world.teams.invite(ada, made.team_id, " BOB@example.com", MEMBER)
    assert (invited.user_id, invited.accepted_at) == (bob.user_id, None)

    # An invitation shows the team's name and opens nothing.
    (offer,) = await world.teams.list(bob)
    assert (offer.name, offer.accepted_at) == ("Research", None)
    with pytest.raises(NotFound):
        await world.teams.members(bob, made.team_id)
    with pytest.raises(Conflict, match="already"):
        await world.teams.invite(ada, made.team_id, "bob@example.com")
    accepted = await world.teams.accept(bob, made.team_id)
    assert accepted.accepted_at is not None
    with pytest.raises(NotFound):
        await world.teams.accept(bob, made.team_id)
    assert await roles(world, bob, made.team_id) == {"ada": "owner", "bob": "member"}

    assert (await world.teams.rename(ada, made.team_id, "Applied research")).name == "Applied research"
    assert (await world.teams.get(bob, made.team_id)).name == "Applied research"
    await world.teams.set_role(ada, made.team_id, bob.user_id, ADMIN)
    cleo = await join(world, bob, made.team_id, "cleo")
    await world.teams.remove(bob, made.team_id, cleo.user_id)
    assert await world.teams.list(cleo) == ()

    # Handing over: the last owner stays until there is another.
    for leaves in (
        world.teams.remove(ada, made.team_id, ada.user_id),
        world.teams.set_role(ada, made.team_id, ada.user_id, ADMIN),
    ):
        with pytest.raises(Forbidden, match="last"):
            await leaves
    await world.teams.set_role(ada, made.team_id, bob.user_id, OWNER)
    await world.teams.remove(ada, made.team_id, ada.user_id)
    assert await roles(world, bob, made.team_id) == {"bob": "owner"}
    await world.teams.delete(bob, made.team_id)
    assert await world.teams.list(bob) == ()
    actions = [action for action, outcome in await world.recorded() if outcome == "ok" and action.startswith("team.")]
    assert actions == [
        "team.create", "team.invite", "team.accept", "team.update", "team.set_role", "team.invite", "team.accept", "team.remove",
        "team.set_role", "team.leave", "team.delete",
    ]  # fmt: skip


async def test_a_team_is_an_owner_with_its_own_key_which_ends_with_it(world: World) -> None:
    ada = await world.person("ada")
    made = await world.teams.create(ada, "Research")
    async with world.db.write(Actor.system()) as tx:
        assert (await tx.execute(sa.select(owner.c.kind).where(owner.c.id == made.team_id))).scalar_one() == "team"
        keys = sa.select(sa.func.count()).select_from(owner_key).where(owner_key.c.owner_id == made.team_id)
        assert (await tx.execute(keys)).scalar_one() == 1
    await world.teams.delete(ada, made.team_id)
    async with world.db.write(Actor.system()) as tx:
        assert (await tx.execute(keys)).scalar_one() == 0
        assert (await tx.execute(sa.select(owner.c.kind).where(owner.c.id == made.team_id))).one_or_none() is None


Call = Callable[[World, Caller, UUID, UUID], Awaitable[Any]]
METHODS: dict[str, Call] = {
    "get": lambda world, caller, team_id, _: world.teams.get(caller, team_id),
    "members": lambda world, caller, team_id, _: world.teams.members(caller, team_id),
    "rename": lambda world, caller, team_id, _: world.teams.rename(caller, team_id, "Mine"),
    "invite": lambda world, caller, team_id, _: world.teams.invite(caller, team_id, "eve@example.com", OWNER),
    "accept": lambda world, caller, team_id, _: world.teams.accept(caller, team_id),
    "priority": lambda world, caller, team_id, _: world.teams.set_priority(caller, team_id, 1),
    "make oneself owner": lambda world, caller, team_id, _: world.teams.set_role(caller, team_id, caller.user_id, OWNER),
    "unmake the owner": lambda world, caller, team_id, ada: world.teams.set_role(caller, team_id, ada, MEMBER),
    "remove the owner": lambda world, caller, team_id, ada: world.teams.remove(caller, team_id, ada),
    "leave": lambda world, caller, team_id, _: world.teams.remove(caller, team_id, caller.user_id),
    "delete": lambda world, caller, team_id, _: world.teams.delete(caller, team_id),
}


async def answer(call: Awaitable[Any]) -> tuple[object, ...]:
    with pytest.raises(KeybearerError) as error:
        await call
    return type(error.value), error.value.message, error.value.hint, error.value.fields


async def test_a_foreign_team_is_an_unknown_one_for_every_method(world: World) -> None:
    ada, eve = await world.person("ada"), await world.person("eve", Role.ADMIN)  # an administrator is in no team by that
    made = await world.teams.create(ada, "Research")
    for method, call in METHODS.items():
        foreign = await answer(call(world, eve, made.team_id, ada.user_id))
        assert foreign == await answer(call(world, eve, uuid4(), ada.user_id)), method
        assert foreign[0] is NotFound, method
    assert await roles(world, ada, made.team_id) == {"ada": "owner"}


@pytest.mark.parametrize(
    ("role", "may"),
    [
        (MEMBER, {"get", "members", "priority", "leave"}),
        (ADMIN, {"get", "members", "priority", "leave", "rename"}),
    ],
)
async def test_nobody_raises_themselves(world: World, role: TeamRole, may: set[str]) -> None:
    ada = await world.person("ada")
    await world.person("eve")
    made = await world.teams.create(ada, "Research")
    bob = await join(world, ada, made.team_id, "bob", role)
    for method in [name for name in METHODS if name not in may]:
        with pytest.raises((Forbidden, NotFound)):
            await METHODS[method](world, bob, made.team_id, ada.user_id)
    assert await roles(world, ada, made.team_id) == {"ada": "owner", "bob": role.value}
    refused = [record for record in await world.recorded() if record[1] in {"forbidden", "not_found"}]
    assert len(refused) == len(METHODS) - len(may)
    for method in sorted(may - {"leave"}):
        await METHODS[method](world, bob, made.team_id, ada.user_id)
    await METHODS["leave"](world, bob, made.team_id, ada.user_id)


async def test_an_admin_gives_no_more_than_admin(world: World) -> None:
    ada = await world.person("ada")
    await world.person("eve")
    made = await world.teams.create(ada, "Research")
    bob = await join(world, ada, made.team_id, "bob", ADMIN)
    cleo = await join(world, bob, made.team_id, "cleo")
    with pytest.raises(Forbidden):
        await world.teams.invite(bob, made.team_id, "eve@example.com", OWNER)
    with pytest.raises(Forbidden):
        await world.teams.set_role(bob, made.team_id, cleo.user_id, OWNER)
    await world.teams.set_role(bob, made.team_id, cleo.user_id, ADMIN)
    await world.teams.invite(bob, made.team_id, "eve@example.com", ADMIN)


async def test_an_invited_owner_is_no_owner_yet(world: World) -> None:
    ada = await world.person("ada")
    await world.person("bob")
    made = await world.teams.create(ada, "Research")
    await world.teams.invite(ada, made.team_id, "bob@example.com", OWNER)
    with pytest.raises(Forbidden, match="last"):
        await world.teams.remove(ada, made.team_id, ada.user_id)


async def test_an_administrator_adds_people_at_once_to_the_team_they_lead(world: World) -> None:
    root, bob = await world.person("root", Role.ADMIN), await world.person("bob")
    made = await world.teams.create(root, "Everybody")
    added = await world.teams.invite(root, made.team_id, "bob@example.com")
    assert added.accepted_at is not None
    assert await roles(world, bob, made.team_id) == {"root": "owner", "bob": "member"}


async def test_invitations_are_no_directory(world: World) -> None:
    ada, gone = await world.person("ada"), await world.person("gone")
    made = await world.teams.create(ada, "Research")
    await world.users.set_active(gone.user_id, False, None)
    told = {await answer(world.teams.invite(ada, made.team_id, f"{name}@example.com")) for name in ("gone", "nobody")}
    assert len(told) == 1
    ada = Caller(ada.user_id, ada.role, ada.scopes, client=Client("198.51.100.9"))
    refusals = []
    for number in range(40):
        with pytest.raises((Invalid, RateLimited)) as refused:
            await world.teams.invite(ada, made.team_id, f"nobody{number}@example.com")
        refusals.append(refused.type)
    assert refusals[0] is Invalid
    assert refusals.count(Invalid) <= 30
    assert refusals[-1] is RateLimited


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 201, "\u202eabc", "sk-proj-kbtest-openai-0123456789abcdefghijklmnop"])
async def test_names_that_are_none(sqlite_world: World, name: str) -> None:
    ada = await sqlite_world.person("ada")
    with pytest.raises(Invalid) as wrong:
        await sqlite_world.teams.create(ada, name)
    assert [field.field for field in wrong.value.fields] == ["name"]
    assert await sqlite_world.teams.list(ada) == ()


async def test_bad_input_changes_nothing(sqlite_world: World) -> None:
    world = sqlite_world
    ada = await world.person("ada")
    made = await world.teams.create(ada, "Research")
    for email in ("", "x", "a b@example.com", "ada@exam\x00ple.com", "\ud800@example.com"):
        with pytest.raises(Invalid):
            await world.teams.invite(ada, made.team_id, email)
    for priority in (-1, 1001):
        with pytest.raises(Invalid):
            await world.teams.set_priority(ada, made.team_id, priority)
    with pytest.raises(Conflict):
        await world.teams.invite(ada, made.team_id, "ada@example.com")
    with pytest.raises(NotFound):
        await world.teams.set_role(ada, made.team_id, uuid4(), ADMIN)


async def test_a_token_needs_the_scope(world: World) -> None:
    ada = await world.person("ada")
    made = await world.teams.create(ada, "Research")
    weak = Caller(ada.user_id, ada.role, frozenset(set(Scope) - {Scope.TEAMS_WRITE, Scope.ADMIN}), token_id="A" * 12)
    for method, call in METHODS.items():
        if method in {"get", "members"}:
            await call(world, weak, made.team_id, ada.user_id)
            continue
        with pytest.raises(ScopeMissing):
            await call(world, weak, made.team_id, ada.user_id)
    with pytest.raises(ScopeMissing):
        await world.teams.list(Caller(ada.user_id, ada.role, frozenset({Scope.GATEWAY_USE}), token_id="A" * 12))


async def test_rows_that_somebody_wrote_into_the_database_open_nothing(world: World, tamper: Tamper) -> None:
    """The database's writer makes eve a member, and bob an owner; neither comes to be, and what they did can be undone."""
    ada, eve = await world.person("ada"), await world.person("eve")
    made = await world.teams.create(ada, "Research")
    bob = await join(world, ada, made.team_id, "bob")
    await tamper(
        sa.insert(team_member).from_select(
            [column.name for column in team_member.c],
            sa.select(*(sa.literal(eve.user_id, sa.Uuid()) if column.name == "user_id" else column for column in team_member.c))
            .where(team_member.c.user_id == ada.user_id),
        )
    )  # fmt: skip
    assert await world.teams.list(eve) == ()
    with pytest.raises(NotFound):
        await world.teams.delete(eve, made.team_id)
    assert await roles(world, ada, made.team_id) == {"ada": "owner", "bob": "member"}

    await tamper(sa.update(team_member).where(team_member.c.user_id == bob.user_id).values(role="owner"))
    with pytest.raises(NotFound):
        await world.teams.delete(bob, made.team_id)
    with pytest.raises(Forbidden, match="last"):  # the forged owner does not count as the other one
        await world.teams.remove(ada, made.team_id, ada.user_id)
    await world.teams.remove(ada, made.team_id, bob.user_id)
    await world.teams.invite(ada, made.team_id, "eve@example.com")  # in the place of the forged row
    await world.teams.accept(eve, made.team_id)
    assert await roles(world, ada, made.team_id) == {"ada": "owner", "eve": "member"}

    await tamper(sa.update(team).values(name="Somebody else's"))
    assert await world.teams.list(ada) == ()
