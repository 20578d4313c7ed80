"""Exporting on both databases: to a person all, to a token what it may fetch, on record; and an import of it makes the same again."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper
from tests.support.vault import ANTHROPIC_KEY, OPENAI_KEY, OTHER_OPENAI_KEY, World, value

from keybearer.catalog import Catalog
from keybearer.domain import MEMBER_SCOPES, Caller, Role, Scope, SecretType
from keybearer.errors import Forbidden, ScopeMissing
from keybearer.store.schema import secret_version
from keybearer.vault.descriptions import NewModel
from keybearer.vault.secrets import NewSecret
from keybearer.vault.transfer.exports import Exports
from keybearer.vault.transfer.imports import Imports, Options


def exporting(world: World) -> Exports:
    return Exports(world.db, world.keyring, Catalog.load())


async def furnished(world: World) -> Caller:
    ada = await world.person("ada")
    await world.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY), fetchable=True, tags=("a", "b")))
    await world.secrets.create(ada, NewSecret("openai", value(OTHER_OPENAI_KEY), name="work $ 1", priority=5, is_active=False))
    await world.secrets.create(ada, NewSecret("azure", value("0a" * 16), parameters={"resource": "kbtest"}))
    await world.secrets.create(ada, NewSecret("vault", value('kbtest "quoted"\n\\ $HOME ü'), SecretType.CUSTOM, "odd"))
    oauth = {"refresh_token": value("kbtest-refresh-0123456789abcd"), "scopes": ["read", "write"]}
    await world.secrets.create(
        ada, NewSecret("slack", value("kbtest-slack-0123456789"), SecretType.OAUTH_TOKEN, oauth=oauth, save_anyway=True)
    )
    await world.models.create(
        ada, NewModel("openai", "gpt-5", base_url="https://llm.example/v1", api_key=value("kbtest-model-0123456789"))
    )
    return ada


@pytest.mark.parametrize("form", ["json", "csv", "env"])
async def test_a_person_gets_all_and_can_bring_it_in_again(world: World, form: Any) -> None:
    ada, bob = await furnished(world), await world.person("bob")
    await world.secrets.create(bob, NewSecret("anthropic", value(ANTHROPIC_KEY)))
    made = await exporting(world).run(ada, form)
    is_json = form == "json"
    assert made.count == (6 if is_json else 5)
    assert [(each.name, "model" in each.reason) for each in made.left_out] == ([] if is_json else [("model gpt-5", True)])
    text = made.content.reveal().decode()
    assert ANTHROPIC_KEY not in text
    assert "kbtest" not in repr(made)
    assert [action for action, _ in await world.recorded() if action == "secret.export"] == ["secret.export"] * made.count
    cleo = await world.person("cleo")
    room = Imports(world.db, world.keyring, Catalog.load(), world.secrets, world.models, dict)
    options = Options(save_anyway=True, skip_failed=True, keep_unknown=True)
    report = await room.run(cleo, form, text, None, options)
    # Only JSON has everything: of a resource the others know nothing.
    assert report.counts() == ({"create": 6} if is_json else {"create": 4, "invalid": 1})
    if is_json:
        brought = json.loads((await exporting(world).run(cleo, "json")).content.reveal())["models"]
        assert brought == json.loads(text)["models"]
        assert (brought[0]["base_url"], brought[0]["api_key"]) == ("https://llm.example/v1", "kbtest-model-0123456789")
        (view,), _ = await world.models.list(cleo, "openai")
        assert view.has_own_key
    again = json.loads((await exporting(world).run(cleo, "json")).content.reveal())["secrets"]
    mine = json.loads((await exporting(world).run(ada, "json")).content.reveal())["secrets"]
    if form == "json":
        assert again == mine
    assert {each["value"] for each in again} >= {each["value"] for each in mine if each["provider"] != "azure"}
    assert (await room.run(cleo, form, text, None, options)).counts().get("create") is None


async def test_a_token_gets_what_it_may_fetch(world: World) -> None:
    ada = await furnished(world)
    token = replace(ada, token_id="kbtestkbtest", session_id=None)
    made = await exporting(world).run(token, "json")
    assert [each["value"] for each in json.loads(made.content.reveal())["secrets"]] == [OPENAI_KEY]
    assert len(made.left_out) == 5
    bound = replace(token, allowed_providers=frozenset({"anthropic"}))
    assert (await exporting(world).run(bound, "json")).count == 0
    with pytest.raises(ScopeMissing):
        await exporting(world).run(replace(token, scopes=MEMBER_SCOPES - {Scope.SECRETS_READ}), "json")
    assert ("secret.export", "scope_missing") in await world.recorded()


async def test_a_token_gets_an_oauth_token_and_not_its_grant(world: World) -> None:
    ada = await world.person("ada")
    oauth = {"refresh_token": value("kbtest-refresh-0123456789abcd"), "client_secret": value("kbtest-client-secret")}
    draft = NewSecret(
        "slack", value("kbtest-slack-0123456789"), SecretType.OAUTH_TOKEN, oauth=oauth, save_anyway=True, fetchable=True
    )
    await world.secrets.create(ada, draft)
    for caller, has_grant in ((ada, True), (replace(ada, token_id="kbtestkbtest"), False)):
        text = (await exporting(world).run(caller, "json")).content.reveal().decode()
        assert "kbtest-slack-0123456789" in text
        assert ["kbtest-refresh" in text, "kbtest-client-secret" in text] == [has_grant] * 2


async def test_the_systems_are_the_operators_alone(world: World) -> None:
    root = await world.person("root", Role.ADMIN)
    await world.secrets.create(root, NewSecret("openai", value(OPENAI_KEY), system=True))
    assert (await exporting(world).run(root, "env", system=True)).content.reveal().decode() == f'OPENAI_API_KEY="{OPENAI_KEY}"\n'
    assert (await exporting(world).run(root, "env")).count == 0
    for caller in (replace(root, token_id="kbtestkbtest"), replace(root, session_id=root.user_id), await world.person("ada")):
        with pytest.raises(Forbidden):
            await exporting(world).run(caller, "env", system=True)


async def test_what_does_not_open_is_named_and_stops_nothing(world: World, tamper: Tamper) -> None:
    ada = await world.person("ada")
    await world.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY)))
    await tamper(sa.update(secret_version).values(envelope=b"KB" + b"x" * 200))
    await world.secrets.create(ada, NewSecret("anthropic", value(ANTHROPIC_KEY)))
    made = await exporting(world).run(ada, "json")
    assert made.count == 1
    assert [each.provider for each in made.left_out] == ["openai"]
