"""Secrets whose value is kept elsewhere: in a real OpenBao, in AWS as moto plays it, in the server's environment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from tests.support import aws as moto
from tests.support import openbao as bao
from tests.support.aws import REGION, Aws
from tests.support.openbao import OpenBao
from tests.support.tamper import Tamper
from tests.support.vault import ANTHROPIC_KEY, OPENAI_KEY, OTHER_OPENAI_KEY, World, value

from keybearer.catalog import Catalog
from keybearer.crypto.kms.openbao import Access
from keybearer.domain import Caller, Credential, Role, SecretBytes
from keybearer.errors import (
    Conflict,
    Forbidden,
    Invalid,
    KeybearerError,
    KeyMissing,
    KeyUnreadable,
    ReferenceDenied,
    ReferenceMissing,
    ReferenceUnreachable,
    ReferenceWrong,
    SettingsInvalid,
)
from keybearer.store.changes import EVERYTHING, Change
from keybearer.store.schema import secret, secret_version
from keybearer.vault.drafts import NewSecret
from keybearer.vault.external import External, Wanted
from keybearer.vault.references import Leaves, checked
from keybearer.vault.resolve import Resolver
from keybearer.vault.secrets import Secrets
from keybearer.vault.stores import Environment, Store
from keybearer.vault.stores.aws import SecretsManager
from keybearer.vault.stores.openbao import KeyValue

READ_ALL = 'path "secret/data/*" { capabilities = ["read"] }'
PREFIXES = ("openbao:secret/people/{owner}/", f"aws:{REGION}/people/{{owner}}/")
SHARED = "openbao:secret/shared/openai#key"


@pytest.fixture(scope="module")
def openbao() -> Iterator[OpenBao]:
    with bao.running() as running:
        yield running


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    with pytest.MonkeyPatch.context() as patch, moto.running(patch) as running:
        yield running


@pytest.fixture(scope="module")
def stores(openbao: OpenBao, aws: Aws) -> dict[str, Store]:
    openbao.call("POST", "secret/data/shared/openai", {"data": {"key": OPENAI_KEY, "number": 7}})
    return {
        "env": Environment({"SYSTEMS_KEY": value(OTHER_OPENAI_KEY)}),
        "openbao": KeyValue(Access(openbao.address, value(openbao.token_for(READ_ALL)))),
        "aws": SecretsManager(endpoint=aws.endpoint),
    }


@pytest.fixture
def pointing(world: World, stores: dict[str, Store]) -> World:
    return pointing_to(world, stores)


def pointing_to(world: World, stores: dict[str, Store], prefixes: tuple[str, ...] = PREFIXES) -> World:
    """The same deployment whose operator lets secrets point elsewhere."""
    external = External(Leaves(("aws", "openbao"), ("SYSTEMS_KEY", "UNSET"), prefixes), stores)
    secrets = Secrets(world.db, world.keyring, Catalog.load(), external=external)
    return replace(world, secrets=secrets, resolver=Resolver(world.db, world.keyring, secrets, "system"))


async def serving(world: World, caller: Caller, provider: str = "openai") -> tuple[Credential, ...]:
    found = await world.providers.registry(caller.user_id)
    return await world.resolver.resolve(caller.user_id, None, found.providers[provider], "gpt-4o-mini")


async def test_a_secret_serves_with_what_openbao_holds_and_nothing_of_it_is_stored(
    pointing: World, openbao: OpenBao, tamper: Tamper
) -> None:
    ada = await pointing.person("ada", Role.ADMIN)
    made = await pointing.secrets.create(ada, NewSecret("openai", reference=SHARED))
    assert made.preview == ""
    assert dict(made.reference or ()) == {
        "source": "openbao", "mount": "secret", "path": "shared/openai", "key": "key", "leave": "admin",
    }  # fmt: skip
    (credential,) = await serving(pointing, ada)
    assert credential.value.reveal().decode() == OPENAI_KEY
    assert credential.expires_at is not None, "what caches it must ask again within a minute"
    assert ("secret.create", "ok") in await pointing.recorded()

    async with pointing.db.read(pointing_actor(ada)) as tx:
        (row,) = (await tx.execute(sa.select(secret_version))).all()
    assert OPENAI_KEY.encode() not in bytes(row.envelope)


def pointing_actor(caller: Caller) -> Any:
    from keybearer.vault.keeper import sealing_actor

    return sealing_actor(caller)


async def test_aws_gives_the_text_or_one_key_of_its_json(pointing: World, aws: Aws) -> None:
    ada = await pointing.person("ada", Role.ADMIN)
    client = _secrets_manager(aws)
    name = f"apps/{ada.user_id}"
    client.create_secret(Name=name, SecretString=f'{{"api_key": "{OPENAI_KEY}"}}')
    client.create_secret(Name=f"{name}-bare", SecretString=ANTHROPIC_KEY + "\n")
    await pointing.secrets.create(
        ada, NewSecret("openai", reference={"source": "aws", "region": REGION, "id": name, "key": "api_key"})
    )
    await pointing.secrets.create(ada, NewSecret("anthropic", reference=f"aws:{REGION}/{name}-bare"))
    assert (await serving(pointing, ada))[0].value.reveal().decode() == OPENAI_KEY
    assert (await serving(pointing, ada, "anthropic"))[0].value.reveal().decode() == ANTHROPIC_KEY


def _secrets_manager(aws: Aws) -> Any:
    import boto3

    return boto3.client("secretsmanager", region_name=REGION, endpoint_url=aws.endpoint)


async def test_only_system_secrets_of_administrators_point_to_the_environment(pointing: World) -> None:
    ada, bob = await pointing.person("ada", Role.ADMIN), await pointing.person("bob")
    with pytest.raises(Forbidden):
        await pointing.secrets.create(ada, NewSecret("openai", reference="env:SYSTEMS_KEY"))
    with pytest.raises(Forbidden):
        await pointing.secrets.create(bob, NewSecret("openai", reference="env:SYSTEMS_KEY"))
    with pytest.raises(Forbidden):
        await pointing.secrets.create(bob, NewSecret("openai", reference="env:SYSTEMS_KEY", system=True))
    with pytest.raises(Forbidden, match="may not be pointed to"):
        await pointing.secrets.create(ada, NewSecret("openai", reference="env:PATH", system=True))
    with pytest.raises(ReferenceMissing):
        await pointing.secrets.create(ada, NewSecret("openai", reference="env:UNSET", system=True))
    await pointing.secrets.create(ada, NewSecret("openai", reference="env:SYSTEMS_KEY", system=True))
    assert (await serving(pointing, bob))[0].value.reveal().decode() == OTHER_OPENAI_KEY


async def test_nobody_reads_through_a_reference_what_was_not_given_to_them(pointing: World, openbao: OpenBao) -> None:
    bob, eve = await pointing.person("bob"), await pointing.person("eve")
    for person, key in ((bob, OPENAI_KEY), (eve, OTHER_OPENAI_KEY)):
        openbao.call("POST", f"secret/data/people/{person.user_id}/openai", {"data": {"key": key}})
    mine = f"openbao:secret/people/{bob.user_id}/openai#key"
    made = await pointing.secrets.create(bob, NewSecret("openai", reference=mine))
    assert dict(made.reference or ())["leave"] == "prefix"
    assert (await serving(pointing, bob))[0].value.reveal().decode() == OPENAI_KEY
    for reference in (mine, SHARED, f"openbao:secret/people/{eve.user_id}/../{bob.user_id}/openai#key", "aws:eu-central-1/x"):
        with pytest.raises((Forbidden, Invalid)):
            await pointing.secrets.create(eve, NewSecret("openai", reference=reference))
    theirs = await pointing.secrets.create(eve, NewSecret("openai", value=value(OTHER_OPENAI_KEY)))
    with pytest.raises(Forbidden):
        await pointing.secrets.update(eve, theirs.id, {"reference": mine})
    assert ("secret.create", "forbidden") in await pointing.recorded()
    assert (await serving(pointing, eve))[0].value.reveal().decode() == OTHER_OPENAI_KEY


async def test_an_administrators_token_without_the_scope_cannot_point(pointing: World) -> None:
    ada = await pointing.person("ada", Role.ADMIN)
    token = replace(ada, scopes=frozenset(scope for scope in ada.scopes if scope.value != "admin"), token_id="kbtest000000")
    with pytest.raises(Forbidden):
        await pointing.secrets.create(token, NewSecret("openai", reference=SHARED))


async def test_a_teams_admin_is_not_handed_what_an_administrator_lets_the_team_use(pointing: World) -> None:
    ada = await pointing.person("ada", Role.ADMIN)
    team = await pointing.teams.create(ada, "Models")
    made = await pointing.secrets.create(ada, NewSecret("openai", reference=SHARED, team_id=team.team_id))
    lead = replace(ada, role=Role.MEMBER)  # one who leads the team, and is no administrator
    for change in ({"fetchable": True}, {"parameters": {"resource": "mine"}}):
        with pytest.raises(KeybearerError) as refused:
            await pointing.secrets.update(lead, made.id, change)
        assert isinstance(refused.value, Forbidden)
    with pytest.raises(Forbidden):
        await pointing.secrets.confirm_egress(lead, made.id)
    await pointing.secrets.update(lead, made.id, {"value": value(OTHER_OPENAI_KEY)})
    with pytest.raises(Forbidden):
        await pointing.secrets.versions.rollback(lead, made.id)
    assert (await pointing.secrets.get(ada, made.id)).reference is None


async def test_who_writes_the_database_points_nothing_elsewhere(pointing: World, tamper: Tamper) -> None:
    ada = await pointing.person("ada", Role.ADMIN)
    made = await pointing.secrets.create(ada, NewSecret("openai", reference=SHARED))
    other = {"source": "openbao", "mount": "secret", "path": "finance/bank", "key": "key", "leave": "admin"}
    for columns in ({"reference": other}, {"reference": None}):
        await tamper(sa.update(secret).values(**columns))
        with pytest.raises(KeyUnreadable):
            await serving(pointing, ada)
    plain = await pointing.secrets.create(ada, NewSecret("anthropic", value(ANTHROPIC_KEY)))
    await tamper(sa.update(secret).where(secret.c.id == plain.id).values(reference=other))
    with pytest.raises(KeyUnreadable):
        await serving(pointing, ada, "anthropic")
    assert made.id != plain.id


async def test_each_failure_is_told_apart(pointing: World, openbao: OpenBao, aws: Aws) -> None:
    ada = await pointing.person("ada", Role.ADMIN)
    wrong = {
        "openbao:secret/nowhere#key": ReferenceMissing,
        "openbao:other/shared/openai#key": ReferenceDenied,  # no policy says anything about it
        "openbao:secret/shared/openai#missing": ReferenceWrong,
        "openbao:secret/shared/openai#number": ReferenceWrong,
        "openbao:secret/shared/openai": ReferenceWrong,
        f"aws:{REGION}/nowhere": ReferenceMissing,
    }
    for reference, error in wrong.items():
        with pytest.raises(error) as told:
            await pointing.secrets.create(ada, NewSecret("openai", reference=reference))
        assert told.value.hint
        assert OPENAI_KEY not in f"{told.value} {told.value.hint}"
    _secrets_manager(aws).create_secret(Name=f"text-{ada.user_id}", SecretString="kbtest-no json")
    with pytest.raises(ReferenceWrong, match="not JSON"):
        await pointing.secrets.create(ada, NewSecret("openai", reference=f"aws:{REGION}/text-{ada.user_id}#key"))
    nobody: dict[str, Store] = {
        "openbao": KeyValue(Access("http://127.0.0.1:9", value("kbtest-token")), timeout=1),
        "aws": SecretsManager(endpoint="http://127.0.0.1:9", timeout=1),
    }
    for reference in (SHARED, f"aws:{REGION}/x"):
        with pytest.raises(ReferenceUnreachable):
            await pointing_to(pointing, nobody).secrets.create(ada, NewSecret("openai", reference=reference))
    refused: dict[str, Store] = {"openbao": KeyValue(Access(openbao.address, value("kbtest-wrong-token")))}
    with pytest.raises(ReferenceDenied):
        await pointing_to(pointing, refused).secrets.create(ada, NewSecret("openai", reference=SHARED))
    with pytest.raises(Invalid):
        await pointing.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY), reference=SHARED))
    assert not (await pointing.secrets.list(ada)).items, "nothing half done"


async def test_an_approle_reads_too(world: World, openbao: OpenBao) -> None:
    openbao.call("PUT", "sys/policies/acl/kbtest-kv", {"policy": READ_ALL})
    openbao.call("POST", "auth/approle/role/kbtest-kv", {"token_policies": ["kbtest-kv"], "token_ttl": "1m"})
    role = openbao.call("GET", "auth/approle/role/kbtest-kv/role-id")["data"]["role_id"]
    secret_id = openbao.call("POST", "auth/approle/role/kbtest-kv/secret-id", {})["data"]["secret_id"]
    openbao.call("POST", "secret/data/shared/openai", {"data": {"key": OPENAI_KEY, "number": 7}})
    pointing = pointing_to(world, {"openbao": KeyValue(Access(openbao.address, None, role, value(secret_id)))})
    ada = await pointing.person("ada", Role.ADMIN)
    await pointing.secrets.create(ada, NewSecret("openai", reference=SHARED))
    assert (await serving(pointing, ada))[0].value.reveal().decode() == OPENAI_KEY


async def test_a_store_that_is_down_stops_no_secret_that_holds_its_value(pointing: World) -> None:
    ada = await pointing.person("ada", Role.ADMIN)
    await pointing.secrets.create(ada, NewSecret("openai", name="first", reference=SHARED, priority=1))
    await pointing.secrets.create(ada, NewSecret("openai", value(OTHER_OPENAI_KEY), name="second", priority=2))
    down = pointing_to(pointing, {"openbao": KeyValue(Access("http://127.0.0.1:9", value("kbtest-token")), timeout=1)})
    assert [found.value.reveal().decode() for found in await serving(down, ada)] == [OTHER_OPENAI_KEY]
    for made in (await pointing.secrets.list(ada)).items:
        if made.name == "second":
            await pointing.secrets.delete(ada, made.id)
    with pytest.raises(ReferenceUnreachable):
        await serving(down, ada)


async def test_an_own_reference_that_fails_stops_the_call_unless_another_key_was_allowed(pointing: World) -> None:
    ada = await pointing.person("ada", Role.ADMIN)
    made = await pointing.secrets.create(ada, NewSecret("openai", reference=SHARED))
    await pointing.secrets.create(ada, NewSecret("openai", value(OTHER_OPENAI_KEY), system=True))
    down = pointing_to(pointing, {})
    with pytest.raises(ReferenceUnreachable):
        await serving(down, ada)
    await pointing.secrets.update(ada, made.id, {"fallback_allowed": True})
    assert (await serving(down, ada))[0].value.reveal().decode() == OTHER_OPENAI_KEY


async def test_what_the_operator_takes_back_is_not_read_any_more(
    pointing: World, stores: dict[str, Store], openbao: OpenBao
) -> None:
    bob = await pointing.person("bob")
    openbao.call("POST", f"secret/data/people/{bob.user_id}/openai", {"data": {"key": OPENAI_KEY}})
    await pointing.secrets.create(bob, NewSecret("openai", reference=f"openbao:secret/people/{bob.user_id}/openai#key"))
    with pytest.raises(ReferenceDenied):
        await serving(pointing_to(pointing, stores, ()), bob)


async def test_a_value_is_fetched_once_for_all_and_forgotten_on_a_change(stores: dict[str, Store]) -> None:
    class Counting:
        def __init__(self) -> None:
            self.count = 0

        async def read(self, reference: Any) -> SecretBytes:
            self.count += 1
            return await stores["openbao"].read(reference)

    import asyncio
    from uuid import uuid4

    from keybearer.domain import SecretType

    counting = Counting()
    external = External(Leaves(("openbao",), (), ("openbao:secret/shared/{owner}/",)), {"openbao": counting})
    wanted = Wanted(replace(checked(SHARED), leave="admin"), uuid4(), SecretType.API_KEY)
    key = (uuid4(), 1)
    await asyncio.gather(*(external.value(key, wanted) for _ in range(20)))
    assert counting.count == 1
    await external.value(key, wanted)
    assert counting.count == 1
    for count, told in enumerate((Change(1, "secret", str(key[0]), None), Change(2, EVERYTHING, "", None)), start=2):
        external.forget(told)
        await external.value(key, wanted)
        assert counting.count == count, told.subject
    await external.value((uuid4(), 1), wanted)
    assert counting.count == 4, "what one secret was given is no other's, whatever it points to"


@pytest.mark.parametrize(
    "reference",
    [
        "", "gcp:x/y", "aws:eu-central-1", "aws:evil.example.com#/x", "aws:eu-central-1/a b", "openbao:secret/", "openbao:/x",
        "openbao:secret/../sys/x", "openbao:secret/a/./b", "openbao:secret/a//b", "openbao:secret/a%2e", "openbao:secret/a?b", "env:",
        "env:A-B", "env:A\nB", {"source": "aws", "region": "eu-central-1", "id": "x", "path": "y"}, {"source": 1},
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused_by_field(reference: Any) -> None:
    with pytest.raises(Invalid) as told:
        checked(reference)
    assert all(field.field.startswith("reference") for field in told.value.fields)


@pytest.mark.parametrize(
    ("sources", "variables", "prefixes"),
    [
        (("vault",), (), ()), ((), ("KEYBEARER_ROOT_KEY",), ()), ((), ("keybearer_root_key",), ()), ((), ("A B",), ()),
        ((), (), ("openbao:secret/people/",)), ((), (), ("openbao:secret/people/{owner}",)), ((), (), ("openbao:secret/x{owner}/",)),
        ((), (), ("env:{owner}/",)), ((), (), ("openbao:/{owner}/",)),
    ],
)  # fmt: skip
def test_settings_that_would_open_too_much_are_refused(
    sources: tuple[str, ...], variables: tuple[str, ...], prefixes: tuple[str, ...]
) -> None:
    with pytest.raises(SettingsInvalid):
        Leaves(sources, variables, prefixes)


async def test_a_rotation_takes_the_reference_away_and_rolling_back_brings_it_back(pointing: World) -> None:
    ada = await pointing.person("ada", Role.ADMIN)
    made = await pointing.secrets.create(ada, NewSecret("openai", reference=SHARED))
    with pytest.raises(Conflict):
        await pointing.secrets.create(ada, NewSecret("openai", reference=SHARED))
    rotated = await pointing.secrets.versions.rotate(ada, made.id, value(OTHER_OPENAI_KEY))
    assert rotated.reference is None
    assert (await serving(pointing, ada))[0].value.reveal().decode() == OTHER_OPENAI_KEY
    back = await pointing.secrets.versions.rollback(ada, made.id)
    assert back.reference == made.reference
    assert (await serving(pointing, ada))[0].value.reveal().decode() == OPENAI_KEY
    await pointing.secrets.delete(ada, made.id)
    with pytest.raises(KeyMissing):
        await serving(pointing, ada)
    await pointing.secrets.trash.restore(ada, made.id)
    await pointing.secrets.update(ada, made.id, {"fetchable": True})
    assert (await pointing.secrets.reveal(ada, made.id)).value.reveal().decode() == OPENAI_KEY
