"""Secrets of teams and secrets shared with teams: who sees, uses and changes them, until when; and who tries without the right."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper
from tests.support.vault import OPENAI_KEY, OTHER_OPENAI_KEY, World, value
from tests.vault.test_teams import join

from keybearer.audit.access_log import AccessLog
from keybearer.domain import Caller, Grade, KeySource, OwnerKind, Role, Scope, Secret, TeamRole
from keybearer.errors import (
    Conflict,
    Forbidden,
    Invalid,
    KeyMissing,
    KeyUnreadable,
    NotFound,
    ProviderUnknown,
    ScopeMissing,
)
from keybearer.store.db import Actor
from keybearer.store.queries.audit import Filter
from keybearer.store.schema import change, secret_share, secret_version, team_member
from keybearer.vault.providers import NewProvider
from keybearer.vault.secrets import NewSecret, SecretFilter

NEW = NewSecret("openai", value(OPENAI_KEY), name="lent")
TEAMS = SecretFilter(owner="team")


@dataclass(frozen=True)
class Lab:
    """Ada leads a team with bob in it; eve is in another. Ada's key is shared as the test says."""

    world: World
    ada: Caller
    bob: Caller
    eve: Caller
    team: UUID
    eves: UUID
    lent: Secret

    async def serves(self, caller: Caller) -> tuple[str, str]:
        """Whose key serves a call to OpenAI, and its value."""
        openai = (await self.world.providers.registry(caller.user_id)).get("openai")
        (credential,) = await self.world.resolver.resolve(caller.user_id, None, openai, "gpt-5")
        return credential.source.value, credential.value.reveal().decode()

    async def lend(self, grade: Grade) -> None:
        await self.world.shares.share(self.ada, self.lent.id, self.team, grade)


@pytest.fixture
async def lab(world: World) -> Lab:
    ada, eve = await world.person("ada"), await world.person("eve")
    team, eves = await world.teams.create(ada, "Research"), await world.teams.create(eve, "Others")
    bob = await join(world, ada, team.team_id, "bob")
    return Lab(world, ada, bob, eve, team.team_id, eves.team_id, await world.secrets.create(ada, NEW))


CHANGES: dict[str, Callable[[Lab, Caller], Awaitable[Any]]] = {
    "rename": lambda lab, caller: lab.world.secrets.update(caller, lab.lent.id, {"name": "changed"}),
    "new value": lambda lab, caller: lab.world.secrets.update(caller, lab.lent.id, {"value": value(OTHER_OPENAI_KEY)}),
    "widen": lambda lab, caller: lab.world.secrets.update(caller, lab.lent.id, {"allowed_models": None}),
    "make fetchable": lambda lab, caller: lab.world.secrets.update(caller, lab.lent.id, {"fetchable": True}),
    "confirm address": lambda lab, caller: lab.world.secrets.confirm_egress(caller, lab.lent.id),
    "test": lambda lab, caller: lab.world.secrets.credential(caller, lab.lent.id),
    "switch off": lambda lab, caller: lab.world.secrets.update(caller, lab.lent.id, {"is_active": False}),
    "delete": lambda lab, caller: lab.world.secrets.delete(caller, lab.lent.id),
}


async def test_a_key_lent_for_use_is_used_and_nothing_else(lab: Lab) -> None:
    await lab.lend(Grade.USE)
    assert await lab.serves(lab.bob) == ("team", OPENAI_KEY)
    assert await lab.serves(lab.ada) == ("user", OPENAI_KEY)
    seen = await lab.world.secrets.get(lab.bob, lab.lent.id)
    assert (seen.access, seen.preview, seen.owner.id) == (Grade.USE, lab.lent.preview, lab.ada.user_id)
    (share,) = seen.shares
    assert (share.team_name, share.grade, share.shared_by, share.shared_by_name) == (
        "Research",
        Grade.USE,
        lab.ada.user_id,
        "ada",
    )
    assert (await lab.world.secrets.list(lab.bob, TEAMS)).items == (seen,)
    assert (await lab.world.secrets.list(lab.bob, SecretFilter(team_id=lab.team))).items == (seen,)
    assert (await lab.world.secrets.list(lab.bob)).items == ()
    assert (await lab.world.providers.get(lab.bob, "openai")).has_api_key
    for make in CHANGES.values():
        with pytest.raises(Forbidden, match="use this secret"):
            await make(lab, lab.bob)
    with pytest.raises(Forbidden, match="Only whose secret"):
        await lab.world.shares.share(lab.bob, lab.lent.id, lab.team, Grade.MANAGE)
    with pytest.raises(Forbidden, match="end a share"):
        await lab.world.shares.unshare(lab.bob, lab.lent.id, lab.team)
    assert replace(await lab.world.secrets.get(lab.ada, lab.lent.id), shares=()) == lab.lent
    assert OPENAI_KEY not in repr(seen)


async def test_a_key_lent_for_management_is_managed_under_its_owners_key(lab: Lab) -> None:
    await lab.lend(Grade.MANAGE)
    for make in [make for what, make in CHANGES.items() if what not in {"make fetchable", "switch off", "delete"}]:
        await make(lab, lab.bob)
    with pytest.raises(Forbidden, match="Only whose secret"):  # what cannot be undone is its owner's: a value once shown is known
        await CHANGES["make fetchable"](lab, lab.bob)
    with pytest.raises(Forbidden, match="its value is not given out"):
        await lab.world.secrets.reveal(lab.bob, lab.lent.id)
    managed = await lab.world.secrets.get(lab.bob, lab.lent.id)
    assert (managed.name, managed.version, managed.access, managed.owner.id) == ("changed", 2, Grade.MANAGE, lab.ada.user_id)
    assert managed.key_id == lab.lent.key_id
    assert await lab.serves(lab.ada) == ("user", OTHER_OPENAI_KEY)
    with pytest.raises(Forbidden, match="Only whose secret"):  # management is no right to lend
        await lab.world.shares.share(lab.bob, lab.lent.id, lab.team, Grade.USE)
    await CHANGES["delete"](lab, lab.bob)
    with pytest.raises(KeyMissing):
        await lab.serves(lab.ada)


async def test_from_manage_to_use_and_back(lab: Lab) -> None:
    for grade, may in ((Grade.MANAGE, True), (Grade.USE, False), (Grade.MANAGE, True)):
        await lab.lend(grade)
        assert (await lab.world.secrets.get(lab.bob, lab.lent.id)).access is grade
        if may:
            await CHANGES["rename"](lab, lab.bob)
        else:
            with pytest.raises(Forbidden):
                await CHANGES["rename"](lab, lab.bob)


async def leave(lab: Lab) -> None:
    await lab.world.teams.remove(lab.bob, lab.team, lab.bob.user_id)


ENDS: dict[str, Callable[[Lab], Awaitable[Any]]] = {
    "the member leaves": leave,
    "the member is removed": lambda lab: lab.world.teams.remove(lab.ada, lab.team, lab.bob.user_id),
    "the share is ended": lambda lab: lab.world.shares.unshare(lab.ada, lab.lent.id, lab.team),
    "the team is deleted": lambda lab: lab.world.teams.delete(lab.ada, lab.team),
    "the secret is deleted": lambda lab: lab.world.secrets.delete(lab.ada, lab.lent.id),
}


@pytest.mark.parametrize("end", ENDS)
async def test_what_ends_access_ends_all_of_it(lab: Lab, end: str) -> None:
    await lab.lend(Grade.MANAGE)
    before = len(await lab.world.changed())
    await ENDS[end](lab)
    assert len(await lab.world.changed()) > before
    for call in (
        lambda: lab.serves(lab.bob),
        lambda: lab.world.secrets.get(lab.bob, lab.lent.id),
        lambda: CHANGES["rename"](lab, lab.bob),
    ):
        with pytest.raises((KeyMissing, NotFound)):
            await call()
    assert (await lab.world.secrets.list(lab.bob, TEAMS)).items == ()
    if end != "the secret is deleted":
        assert await lab.serves(lab.ada) == ("user", OPENAI_KEY)


async def test_who_leaves_takes_their_keys_along(lab: Lab) -> None:
    """And a new member of that team, or the same one come back, finds nothing of theirs."""
    bobs = await lab.world.secrets.create(lab.bob, NewSecret("anthropic", value("sk-ant-api03-kbtest-bobs-0123456789abcdefghij")))
    await lab.world.shares.share(lab.bob, bobs.id, lab.team, Grade.USE)
    assert [each.id for each in (await lab.world.secrets.list(lab.ada, TEAMS)).items] == [bobs.id]
    await leave(lab)
    assert (await lab.world.secrets.list(lab.ada, TEAMS)).items == ()
    await lab.world.teams.invite(lab.ada, lab.team, "bob@example.com")
    await lab.world.teams.accept(lab.bob, lab.team)
    assert (await lab.world.secrets.list(lab.ada, TEAMS)).items == ()


async def test_an_invitation_opens_nothing(lab: Lab) -> None:
    await lab.lend(Grade.MANAGE)
    await lab.world.teams.invite(lab.ada, lab.team, "eve@example.com", TeamRole.ADMIN)
    with pytest.raises(KeyMissing):
        await lab.serves(lab.eve)
    with pytest.raises(NotFound):
        await lab.world.secrets.get(lab.eve, lab.lent.id)
    with pytest.raises(NotFound):
        await lab.world.secrets.list(lab.eve, SecretFilter(team_id=lab.team))
    with pytest.raises(NotFound):
        await lab.world.secrets.create(lab.eve, replace(NEW, team_id=lab.team))


async def test_somebody_else_gets_nowhere_with_ids(lab: Lab) -> None:
    """Foreign secret or foreign team: as unknown ones; and nobody shares what is not theirs into their own team."""
    await lab.lend(Grade.MANAGE)
    world, eve = lab.world, lab.eve
    eves = await world.secrets.create(eve, replace(NEW, name="eves"))
    for secret_id, team_id in ((lab.lent.id, lab.eves), (eves.id, lab.team), (lab.lent.id, lab.team), (uuid4(), lab.eves)):
        with pytest.raises(NotFound):
            await world.shares.share(eve, secret_id, team_id, Grade.USE)
        with pytest.raises(NotFound):
            await world.shares.unshare(eve, secret_id, team_id)
    for make in CHANGES.values():
        with pytest.raises(NotFound):
            await make(lab, eve)
    with pytest.raises(NotFound):
        await world.secrets.list(eve, SecretFilter(team_id=lab.team))
    assert (await world.secrets.list(eve, TEAMS)).items == ()
    assert (await world.secrets.get(lab.ada, lab.lent.id)).shares[0].grade is Grade.MANAGE


async def test_a_teams_own_keys(lab: Lab) -> None:
    world = lab.world
    with pytest.raises(Forbidden, match="owners and admins"):
        await world.secrets.create(lab.bob, replace(NEW, team_id=lab.team))
    made = await world.secrets.create(lab.ada, replace(NEW, name="team's", value=value(OTHER_OPENAI_KEY), team_id=lab.team))
    assert (made.owner.kind, made.owner.id) == (OwnerKind.TEAM, lab.team)
    assert made.key_id != lab.lent.key_id
    assert await lab.serves(lab.bob) == ("team", OTHER_OPENAI_KEY)
    seen = await world.secrets.get(lab.bob, made.id)
    assert (seen.access, seen.shares) == (Grade.USE, ())
    with pytest.raises(Forbidden):
        await world.secrets.update(lab.bob, made.id, {"name": "bob's"})
    for other in (lab.ada, lab.bob):  # not even its admins lend it on
        with pytest.raises(Forbidden, match="Only whose secret"):
            await world.shares.share(other, made.id, lab.team, Grade.USE)
    await world.teams.set_role(lab.ada, lab.team, lab.bob.user_id, TeamRole.ADMIN)
    assert (await world.secrets.update(lab.bob, made.id, {"name": "everybody's"})).access is Grade.MANAGE
    for outsider in (lab.eve,):
        with pytest.raises(NotFound):
            await world.secrets.get(outsider, made.id)
    await world.teams.remove(lab.ada, lab.team, lab.bob.user_id)
    with pytest.raises(NotFound):
        await world.secrets.update(lab.bob, made.id, {"name": "still mine"})
    # A deployment's administrator sees that it is there, and no more.
    root = await world.person("root", Role.ADMIN)
    assert (await world.secrets.get(root, made.id)).access is None
    with pytest.raises(NotFound):
        await world.secrets.update(root, made.id, {"name": "root's"})


async def test_a_teams_admin_ends_a_share_and_deletes_no_secret(lab: Lab) -> None:
    cleo = await join(lab.world, lab.ada, lab.team, "cleo", TeamRole.ADMIN)
    await lab.lend(Grade.USE)
    with pytest.raises(Forbidden):
        await lab.world.secrets.delete(cleo, lab.lent.id)
    await lab.world.shares.unshare(cleo, lab.lent.id, lab.team)
    with pytest.raises(KeyMissing):
        await lab.serves(lab.bob)
    assert await lab.serves(lab.ada) == ("user", OPENAI_KEY)


async def test_a_teams_provider_is_its_members_to_call_and_its_admins_to_change(lab: Lab) -> None:
    world = lab.world.allowing()
    new = NewProvider("acme", "https://llm.acme.example", models=("big",), team_id=lab.team)
    with pytest.raises(Forbidden):
        await world.providers.create(lab.bob, new)
    made = await world.providers.create(lab.ada, new)
    assert (made.owner_kind, made.team_id) == (OwnerKind.TEAM, lab.team)
    await world.secrets.create(lab.ada, NewSecret("acme", value("kbtest-acme-teams"), team_id=lab.team))
    seen = await world.providers.get(lab.bob, "acme")
    assert (seen.has_api_key, seen.models, seen.owner_kind) == (True, ("big",), OwnerKind.TEAM)
    acme = (await world.providers.registry(lab.bob.user_id)).get("acme")
    (credential,) = await world.resolver.resolve(lab.bob.user_id, None, acme, "big")
    assert (credential.source, credential.value.reveal()) == (KeySource.TEAM, b"kbtest-acme-teams")
    with pytest.raises(Forbidden):
        await world.providers.update(lab.bob, "acme", {"base_url": "https://evil.example"})
    with pytest.raises(Forbidden):
        await world.providers.delete(lab.bob, "acme")
    with pytest.raises(ProviderUnknown):
        await world.providers.get(lab.eve, made.id)
    # A team's provider of the system's name hides nothing.
    root = await world.person("root", Role.ADMIN)
    await world.providers.create(root, NewProvider("acme", "https://llm.company.example", system=True))
    assert (await world.providers.registry(lab.bob.user_id)).get("acme").base_url == "https://llm.company.example"


async def test_anothers_provider_of_the_same_name_gets_no_key_of_the_teams(lab: Lab) -> None:
    world = lab.world.allowing()
    await world.providers.create(lab.bob, NewProvider("acme", "https://llm.acme.example"))
    await world.providers.create(lab.ada, NewProvider("acme", "https://llm.acme.example", team_id=lab.team))
    await world.secrets.create(lab.ada, NewSecret("acme", value("kbtest-acme-teams"), team_id=lab.team))
    acme = (await world.providers.registry(lab.bob.user_id)).get("acme")
    assert acme.owner_id == lab.bob.user_id
    with pytest.raises(KeyMissing):
        await world.resolver.resolve(lab.bob.user_id, None, acme, "big")


async def test_a_key_for_a_provider_of_ones_own_is_not_lent(lab: Lab) -> None:
    world = lab.world.allowing()
    await world.providers.create(lab.ada, NewProvider("mine", "https://llm.mine.example"))
    made = await world.secrets.create(lab.ada, NewSecret("mine", value("kbtest-mine")))
    with pytest.raises(Invalid, match="custom provider"):
        await world.shares.share(lab.ada, made.id, lab.team, Grade.USE)


async def test_a_token_needs_both_scopes_to_lend(lab: Lab) -> None:
    for missing in (Scope.SECRETS_WRITE, Scope.TEAMS_WRITE):
        weak = replace(lab.ada, scopes=frozenset(Scope) - {missing, Scope.ADMIN}, token_id="A" * 12)
        with pytest.raises(ScopeMissing):
            await lab.world.shares.share(weak, lab.lent.id, lab.team, Grade.USE)


async def test_whose_key_is_used_and_who_leads_the_team_see_what_was_done(lab: Lab) -> None:
    """Changes of a lent key are on its owner's record; a team's on that of whoever leads it; members see their own."""
    await lab.lend(Grade.MANAGE)
    await CHANGES["rename"](lab, lab.bob)
    made = await lab.world.secrets.create(lab.ada, replace(NEW, name="team's", team_id=lab.team))
    log = AccessLog(lab.world.db)

    async def seen(caller: Caller, secret_id: UUID) -> list[tuple[str, UUID | None]]:
        found, _ = await log.page(caller, Filter(None, await lab.world.teams.led(caller), secret_id=secret_id))
        return [(each.action, each.user_id) for each in reversed(found)]

    hers = await seen(lab.ada, lab.lent.id)
    assert [action for action, _ in hers] == ["secret.create", "secret.share", "secret.update"]
    assert hers[-1][1] == lab.bob.user_id
    assert [action for action, _ in await seen(lab.bob, lab.lent.id)] == ["secret.update"]
    cleo = await join(lab.world, lab.ada, lab.team, "cleo", TeamRole.ADMIN)
    assert [action for action, _ in await seen(cleo, made.id)] == ["secret.create"]
    assert await seen(lab.bob, made.id) == []
    assert await seen(lab.eve, made.id) == []


async def test_every_member_hears_of_a_change_and_nobody_else(lab: Lab) -> None:
    """Also of the teams that whoever changes it cannot see: ada lends to two teams, bob of one of them changes the key."""
    other = await lab.world.teams.create(lab.ada, "Second")
    cleo = await join(lab.world, lab.ada, other.team_id, "cleo")
    await lab.lend(Grade.MANAGE)
    await lab.world.shares.share(lab.ada, lab.lent.id, other.team_id, Grade.USE)
    assert await lab.serves(cleo) == ("team", OPENAI_KEY)

    async def told(call: Awaitable[Any]) -> set[UUID | None]:
        async with lab.world.db.read(Actor.system()) as tx:
            last = (await tx.execute(sa.select(sa.func.max(change.c.id)))).scalar_one()
        await call
        async with lab.world.db.read(Actor.system()) as tx:
            return set((await tx.execute(sa.select(change.c.user_id).where(change.c.id > last))).scalars())

    everybody = {lab.ada.user_id, lab.bob.user_id, cleo.user_id}
    assert await told(CHANGES["rename"](lab, lab.bob)) == everybody
    assert await told(lab.world.secrets.mark(lab.lent.id, 1, "failed")) == everybody
    assert await told(lab.world.shares.unshare(lab.ada, lab.lent.id, other.team_id)) == {lab.ada.user_id, cleo.user_id}
    assert await told(leave(lab)) == {lab.ada.user_id, lab.bob.user_id}
    assert await told(CHANGES["rename"](lab, lab.ada)) == {lab.ada.user_id}


async def test_a_share_that_somebody_wrote_into_the_database_opens_nothing(lab: Lab, tamper: Tamper) -> None:
    """Neither one that was never made, nor one raised from use to management, nor one moved to another team; and it is told."""
    await lab.lend(Grade.USE)
    await tamper(sa.update(secret_share).values(grade="manage"))
    with pytest.raises(KeyMissing):
        await lab.serves(lab.bob)
    with pytest.raises(NotFound):
        await CHANGES["rename"](lab, lab.bob)
    assert [record for record in await lab.world.recorded() if record[0] == "team.alarm"] == [("team.alarm", "tampered")]
    with pytest.raises(KeyMissing):
        await lab.serves(lab.bob)
    assert [record[0] for record in await lab.world.recorded()].count("team.alarm") == 1  # once a process
    await tamper(sa.update(secret_share).values(grade="use"))
    assert await lab.serves(lab.bob) == ("team", OPENAI_KEY)
    await tamper(sa.update(secret_share).values(team_id=lab.eves))
    with pytest.raises(KeyMissing):
        await lab.serves(lab.eve)
    assert (await lab.world.secrets.list(lab.eve, TEAMS)).items == ()


async def test_a_membership_that_somebody_wrote_into_the_database_opens_no_key(lab: Lab, tamper: Tamper) -> None:
    await lab.lend(Grade.USE)
    forged = {
        "team_id": lab.team, "user_id": lab.eve.user_id, "role": "owner", "priority": 0, "added_by": lab.ada.user_id,
        "accepted_at": lab.lent.created_at, "created_at": lab.lent.created_at, "mac": b"kbtest" * 6,
    }  # fmt: skip
    await tamper(sa.insert(team_member).values(**forged))
    with pytest.raises(KeyMissing):
        await lab.serves(lab.eve)
    with pytest.raises(NotFound):
        await lab.world.secrets.get(lab.eve, lab.lent.id)
    assert ("team.alarm", "tampered") in await lab.world.recorded()


async def test_a_secret_moved_to_a_team_in_the_database_does_not_open(lab: Lab, tamper: Tamper) -> None:
    """Its envelope is bound to its owner: ciphertext does not follow a changed owner column."""
    teams = await lab.world.secrets.create(lab.eve, replace(NEW, name="eve's team's", team_id=lab.eves))
    await tamper(
        sa.update(secret_version)
        .where(secret_version.c.secret_id == teams.id)
        .values(
            envelope=sa.select(secret_version.c.envelope)
            .where(secret_version.c.secret_id == lab.lent.id)
            .correlate(None)
            .scalar_subquery()
        )
    )
    with pytest.raises(KeyUnreadable):
        await lab.serves(lab.eve)


async def test_names_are_unique_in_a_team_as_anywhere(lab: Lab) -> None:
    await lab.world.secrets.create(lab.ada, replace(NEW, team_id=lab.team))
    with pytest.raises(Conflict):
        await lab.world.secrets.create(lab.ada, replace(NEW, team_id=lab.team))
