"""Importing on both databases: a dry run equals the result, again changes nothing, all of a file or nothing, no value comes back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.support.vault import ANTHROPIC_KEY, OPENAI_KEY, OTHER_OPENAI_KEY, World, value

from keybearer.audit.verify import verify
from keybearer.catalog import Catalog
from keybearer.domain import Caller, Grade, Role, SecretType
from keybearer.errors import Forbidden, Invalid, NotFound, ScopeMissing, TooLarge
from keybearer.store.db import Actor
from keybearer.store.schema import change
from keybearer.vault.descriptions import NewModel
from keybearer.vault.secrets import NewSecret, SecretFilter
from keybearer.vault.transfer import imports as module
from keybearer.vault.transfer.imports import Imports, Options, Report
from keybearer.vault.transfer.items import Format

DRY = Options(dry_run=True)
ENV = f"""# keys of the workshop
export OPENAI_API_KEY="{OPENAI_KEY}"
ANTHROPIC_API_KEY='{ANTHROPIC_KEY}' # personal
OPENAI_API_KEY_2={OTHER_OPENAI_KEY}
DATABASE_URL=postgresql://kbuser:kbtest pass/word?@db.example/app
SLACK_HOOK_SECRET=whsec_kbtestA1b2C3d4A1b2C3d4
PORT=8080
"""


def importing(world: World, environment: Mapping[str, str] | None = None) -> Imports:
    return Imports(world.db, world.keyring, Catalog.load(), world.secrets, world.models, lambda: environment or {})


async def run(world: World, caller: Caller, content: str, options: Options = Options(), form: Format = "env") -> Report:  # noqa: B008
    return await importing(world).run(caller, form, content, None, options)


async def held(world: World, caller: Caller, owner: Any = "own") -> dict[tuple[str, str], tuple[str, SecretType, int]]:
    """By provider and name: the value, the type and the version of everything that somebody has."""
    page = await world.secrets.list(caller, SecretFilter(owner=owner), limit=200)
    found = {}
    for secret in page.items:
        credential = await world.secrets.credential(caller, secret.id)
        found[secret.provider, secret.name] = (credential.value.reveal().decode(), secret.secret_type, secret.version)
    return found


async def test_an_env_file_is_shown_then_stored_then_known(world: World) -> None:
    ada = await world.person("ada")
    dry = await run(world, ada, ENV, DRY)
    assert dry.dry_run
    assert dry.applied
    assert dry.counts() == {"create": 5, "unknown": 1}
    assert await held(world, ada) == {}
    assert [action for action, _ in await world.recorded() if action.startswith("secret.")] == []
    done = await run(world, ada, ENV)
    assert done.results == dry.results
    stored = await held(world, ada)
    assert stored == {
        ("openai", "default"): (OPENAI_KEY, SecretType.API_KEY, 1),
        ("openai", "openai_api_key_2"): (OTHER_OPENAI_KEY, SecretType.API_KEY, 1),
        ("anthropic", "default"): (ANTHROPIC_KEY, SecretType.API_KEY, 1),
        ("postgresql", "database_url"): ("postgresql://kbuser:kbtest pass/word?@db.example/app", SecretType.CONNECTION_STRING, 1),
        ("webhook", "slack_hook_secret"): ("whsec_kbtestA1b2C3d4A1b2C3d4", SecretType.WEBHOOK_SECRET, 1),
    }
    again = await run(world, ada, ENV)
    assert again.counts() == {"unchanged": 5, "unknown": 1}
    assert await held(world, ada) == stored
    recorded = [action for action, _ in await world.recorded() if action in {"secret.create", "secret.import"}]
    assert recorded == ["secret.create"] * 5 + ["secret.import"] * 2
    assert "kbtest" not in repr((dry, done, again))


async def test_a_file_goes_in_whole_or_not_at_all(world: World) -> None:
    ada = await world.person("ada")
    await world.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY)))
    content = (
        f"ANTHROPIC_API_KEY={ANTHROPIC_KEY}\nOPENAI_API_KEY={OTHER_OPENAI_KEY}\nXAI_API_KEY={OPENAI_KEY}\nGROQ_API_KEY=\nbroken"
    )
    before = await held(world, ada)
    for options in (DRY, Options()):
        report = await run(world, ada, content, options)
        assert not report.applied
        assert [result.outcome for result in report.results] == ["create", "conflict", "invalid", "invalid", "invalid"]
        assert "looks like a key of OpenAI" in report.results[2].reason
        assert report.results[4].place == "line 5"
        assert await held(world, ada) == before
    assert ("secret.import", "refused") in await world.recorded()
    for options in (Options(skip_failed=True, dry_run=True), Options(skip_failed=True)):
        report = await run(world, ada, content, options)
        assert report.applied
    assert (await held(world, ada)).keys() == {("openai", "default"), ("anthropic", "default")}
    replaced = await run(world, ada, f"OPENAI_API_KEY={OTHER_OPENAI_KEY}\n", Options(replace=True))
    assert replaced.counts() == {"update": 1}
    assert (await held(world, ada))["openai", "default"] == (OTHER_OPENAI_KEY, SecretType.API_KEY, 2)
    again = await run(world, ada, f"OPENAI_API_KEY={OTHER_OPENAI_KEY}\n", Options(replace=True))
    assert again.counts() == {"unchanged": 1}


async def test_names_that_stand_twice_are_the_same_or_a_question(world: World) -> None:
    ada = await world.person("ada")
    same = await run(world, ada, f"OPENAI_API_KEY={OPENAI_KEY}\nOPENAI_API_KEY={OPENAI_KEY}")
    assert [result.outcome for result in same.results] == ["create", "unchanged"]
    other = await run(world, ada, f"XAI_API_KEY=kbtest-1\nXAI_API_KEY=kbtest-2", Options(save_anyway=True, replace=True))  # noqa: F541
    assert [result.outcome for result in other.results] == ["create", "invalid"]
    assert not other.applied
    assert (await held(world, ada)).keys() == {("openai", "default")}


async def test_a_models_own_key_comes_with_it_and_serves_nothing_else(world: World) -> None:
    ada = await world.person("ada")
    model = {"provider": "openai", "name": "gpt-5", "base_url": "https://llm.example/v1", "api_key": "kbtest-model-0123456789"}
    full = {**model, "aliases": ["best"], "parameters": {"temperature": 0}}
    content = json.dumps({"secrets": [{"provider": "openai", "value": OPENAI_KEY, "tags": ["x"]}], "models": [full]})
    dry = await run(world, ada, content, DRY, "json")
    done = await run(world, ada, content, form="json")
    assert done.results == dry.results
    assert done.counts() == {"create": 2}
    (view,), _ = await world.models.list(ada)
    assert (view.base_url, view.aliases, view.has_own_key) == ("https://llm.example/v1", ("best",), True)
    registry = await world.providers.registry(ada.user_id)
    (credential,) = await world.resolver.resolve(ada.user_id, None, registry.locate("best")[0], "gpt-5")
    assert credential.value.reveal() == b"kbtest-model-0123456789"
    assert credential.egress == ("https://llm.example:443",)
    assert (await run(world, ada, content, form="json")).counts() == {"unchanged": 2}
    other = json.dumps({"models": [{**full, "api_key": "kbtest-model-9876543210"}]})
    assert (await run(world, ada, other, form="json")).counts() == {"conflict": 1}
    moved = json.dumps({"models": [{**full, "base_url": "https://other.example/v1"}]})
    assert (await run(world, ada, moved, form="json")).counts() == {"conflict": 1}


async def test_only_administrators_import_for_the_system_and_from_the_environment(world: World) -> None:
    ada, root = await world.person("ada"), await world.person("root", Role.ADMIN)
    environment = {"OPENAI_API_KEY": OPENAI_KEY, "PATH": "/kbtest", "STRIPE_KEY": ANTHROPIC_KEY, "GROQ_API_KEY": "kbtest\udcff"}
    room = importing(world, environment)
    for options in (Options(), Options(system=True), DRY):
        with pytest.raises(Forbidden):
            await room.environment(ada, options)
    with pytest.raises(Forbidden):
        await run(world, ada, ENV, Options(system=True, dry_run=True))
    with pytest.raises(NotFound):
        await run(world, ada, ENV, Options(team_id=root.user_id))
    report = await room.environment(root, Options(system=True, skip_failed=True, keep_unknown=True))
    assert [(result.label, result.outcome) for result in report.results] == [
        ("GROQ_API_KEY", "invalid"),
        ("OPENAI_API_KEY", "create"),
    ]
    assert (await held(world, root, "system")).keys() == {("openai", "default")}
    assert await held(world, root) == {}
    again = await room.environment(root, Options(system=True, skip_failed=True))
    assert again.counts() == {"invalid": 1, "unchanged": 1}
    refused = [outcome for action, outcome in await world.recorded() if action == "secret.import" and outcome != "ok"]
    assert refused == ["forbidden"] * 4 + ["not_found"]


async def test_a_team_gets_what_its_admin_imports(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    team = await world.teams.create(ada, "Workshop")
    await run(world, ada, f"OPENAI_API_KEY={OPENAI_KEY}", Options(team_id=team.team_id))
    page = await world.secrets.list(ada, SecretFilter(owner="team"))
    assert [(secret.owner.id, secret.provider) for secret in page.items] == [(team.team_id, "openai")]
    with pytest.raises(NotFound):
        await run(world, bob, f"OPENAI_API_KEY={OPENAI_KEY}", Options(team_id=team.team_id))


async def test_what_is_nobodys_key_is_kept_only_where_that_is_wanted(world: World) -> None:
    ada = await world.person("ada")
    content = "SESSION_SECRET=kbtest-session-0123456789\nPORT=8080\n"
    assert (await run(world, ada, content)).counts() == {"unknown": 2}
    assert (await run(world, ada, content, Options(keep_unknown=True))).counts() == {"create": 2}
    assert (await held(world, ada))["env", "session_secret"] == ("kbtest-session-0123456789", SecretType.CUSTOM, 1)
    assert (await run(world, ada, content, Options(keep_unknown=True))).counts() == {"unchanged": 2}
    nobody = json.dumps([{"provider": "no-such", "value": "kbtest-0123456789"}])
    (result,) = (await run(world, ada, nobody, form="json")).results
    assert result.outcome == "unknown"


@pytest.mark.parametrize(
    ("name", "provider", "stored"),
    [
        ("GEMINI_API_KEY", "gemini", "default"),
        ("GOOGLE_API_KEY", "gemini", "google_api_key"),
        ("MYAPP_XAI_API_KEY", "xai", "myapp_xai_api_key"),
        ("OPENROUTER_API_KEY", "openrouter", "default"),
        ("AZURE_OPENAI_API_KEY", "azure", "default"),
        ("AWS_BEARER_TOKEN_BEDROCK", "bedrock", "default"),
        ("llm/anthropic/api_key", "anthropic", "default"),
        ("llm/anthropic/work/api_key", "anthropic", "work"),
    ],
)
async def test_a_name_tells_whose_key_it_is(sqlite_world: World, name: str, provider: str, stored: str) -> None:
    ada = await sqlite_world.person("ada")
    parameters = {"azure": {"resource": "kbtest"}, "bedrock": {"region": "eu-west-1"}}.get(provider, {})
    content = json.dumps([{"variable": name, "value": "kbtest-0123456789abcdef", "parameters": parameters}])
    (result,) = (await run(sqlite_world, ada, content, Options(save_anyway=True), "json")).results
    assert (result.outcome, result.provider, result.name) == ("create", provider, stored)


async def test_bad_input_is_told_item_by_item_without_a_value(sqlite_world: World) -> None:
    ada = await sqlite_world.person("ada")
    long = "x" * 70_000
    content = json.dumps(
        {
            "OPENAI_API_KEY": OPENAI_KEY + "\x00",
            "ANTHROPIC_API_KEY": "kbtest\ud800",
            "XAI_API_KEY": long,
            "GROQ_API_KEY": "sk-…kbte",
            "MISTRAL_API_KEY": "kbtest 1",
            "AZURE_OPENAI_API_KEY": "0a" * 16,
            OPENAI_KEY: OPENAI_KEY,
            "a\x00b": "kbtest",
            "COHERE_API_KEY": None,
        }
    )
    report = await run(sqlite_world, ada, content, Options(save_anyway=True), "json")
    assert not report.applied
    assert [result.outcome for result in report.results[:6]] == ["invalid"] * 6
    assert [result.label for result in report.results[6:8]] == ["", ""]
    assert all(result.reason for result in report.results if result.outcome == "invalid")
    assert "kbtest" not in repr(report)
    assert await held(sqlite_world, ada) == {}


async def test_a_long_file_is_stored_in_its_order_by_few_statements(world: World, tmp_path: Path) -> None:
    """Nobody else writes meanwhile, on SQLite: it must not take as many statements as the file has entries."""
    ada = await world.person("ada")
    statements: list[str] = []
    engine = world.db._writers.sync_engine

    @sa.event.listens_for(engine, "before_cursor_execute")
    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    for kind, key, most in (("secrets", "value", 50), ("models", "api_key", 200)):
        entries = [{"provider": "openai", "name": f"n{i:03}", key: f"sk-proj-kbtest-{i:040d}"} for i in range(150)]
        content = json.dumps({kind: entries})
        statements.clear()
        assert (await run(world, ada, content, form="json")).counts() == {"create": 150}
        assert len(statements) < 300  # fifteen an entry once
        statements.clear()
        assert (await run(world, ada, content, form="json")).counts() == {"unchanged": 150}
        assert len(statements) < most
    sa.event.remove(engine, "before_cursor_execute", count)
    page = await world.secrets.list(ada, SecretFilter(), limit=150)
    assert [secret.name for secret in page.items] == [f"n{i:03}" for i in range(150)]
    names = [action for action, _ in await world.recorded() if action in {"secret.create", "model.create"}]
    assert names == ["secret.create"] * 300 + ["model.create"] * 150
    assert await world.changed() == ["user", "secret", "secret", "model"]
    assert (await verify(world.db, tmp_path)).ok


async def test_who_shares_a_replaced_key_hears_of_it(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    team = (await world.teams.create(ada, "Workshop")).team_id
    await world.teams.invite(ada, team, "bob@example.com")
    await world.teams.accept(bob, team)
    first = await world.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY)))
    lent = await world.secrets.create(ada, NewSecret("anthropic", value(ANTHROPIC_KEY)))
    await world.shares.share(ada, lent.id, team, Grade.USE)
    before = len(await world.changed())
    content = f"OPENAI_API_KEY={OTHER_OPENAI_KEY}\nANTHROPIC_API_KEY={ANTHROPIC_KEY[:-1]}x\n"
    assert (await run(world, ada, content, Options(replace=True))).counts() == {"update": 2}
    async with world.db.read(Actor.system()) as tx:
        rows = (await tx.execute(sa.select(change).order_by(change.c.id).offset(before))).all()
    assert {row.subject_id for row in rows if row.user_id == ada.user_id} == {str(first.id), str(lent.id)}
    assert bob.user_id in {row.user_id for row in rows}


async def test_an_entry_whose_provider_wants_more_is_a_question_and_the_rest_goes_in(sqlite_world: World) -> None:
    ada = await sqlite_world.person("ada")
    azure = {"provider": "azure", "value": "0a" * 16}
    content = json.dumps([azure, {"provider": "openai", "value": OPENAI_KEY}])
    report = await run(sqlite_world, ada, content, Options(skip_failed=True), "json")
    assert [result.outcome for result in report.results] == ["invalid", "create"]
    assert "parameters.resource is required" in report.results[0].reason
    assert report.results[0].preview == ""
    whole = json.dumps([{**azure, "parameters": {"resource": "kbtest"}}])
    assert (await run(sqlite_world, ada, whole, form="json")).counts() == {"create": 1}
    assert (await run(sqlite_world, ada, content, form="json")).counts() == {"unchanged": 2}


async def test_what_keeps_others_from_changing_anything_comes_last(world: World) -> None:
    """Records are numbered under one lock of the whole deployment: first all rows are written, and those of others waited for."""
    ada = await world.person("ada")
    await run(world, ada, f"OPENAI_API_KEY={OPENAI_KEY}")
    content = {
        "models": [{"provider": "openai", "name": "m", "api_key": OPENAI_KEY}],
        "secrets": [{"provider": "openai", "value": OTHER_OPENAI_KEY}, {"provider": "anthropic", "value": ANTHROPIC_KEY}],
    }
    statements: list[str] = []
    engine = world.db._writers.sync_engine

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    report = await run(world, ada, json.dumps(content), Options(replace=True), "json")
    sa.event.remove(engine, "before_cursor_execute", note)
    assert report.counts() == {"create": 2, "update": 1}
    writes = [
        number
        for number, text in enumerate(statements)
        if re.match(r"(INSERT INTO|UPDATE) (secret|secret_version|model)\b", text)
    ]
    locks = [number for number, text in enumerate(statements) if "audit_writer" in text or "pg_advisory" in text]
    assert writes[-1] < locks[0]


async def test_a_models_own_key_is_no_other_entrys(world: World) -> None:
    ada = await world.person("ada")
    model = {"provider": "openai", "name": "m", "api_key": OPENAI_KEY}
    beside = {"provider": "openai", "name": "model m", "value": OTHER_OPENAI_KEY}
    content = json.dumps({"secrets": [beside], "models": [model]})
    both = await run(world, ada, content, Options(replace=True, skip_failed=True), "json")
    assert sorted((result.kind, result.outcome) for result in both.results) == [("model", "create"), ("secret", "conflict")]
    assert (await held(world, ada))["openai", "model m"][0] == OPENAI_KEY
    await world.secrets.create(ada, NewSecret("openai", value(OTHER_OPENAI_KEY), name="model q"))
    long = [{**model, "name": "n" * 199 + end} for end in ("a", "b")]
    rest = json.dumps({"models": [{**model, "name": "q"}, *long], "secrets": [{"provider": "anthropic", "value": ANTHROPIC_KEY}]})
    report = await run(world, ada, rest, Options(skip_failed=True), "json")
    assert report.counts() == {"conflict": 2, "create": 2}
    assert ("anthropic", "default") in await held(world, ada)


async def test_a_key_in_the_place_of_a_providers_name_is_not_repeated(sqlite_world: World) -> None:
    ada = await sqlite_world.person("ada")
    wrong = {"provider": OPENAI_KEY, "name": "m", "value": OPENAI_KEY}
    for kind in ("models", "secrets"):
        report = await run(sqlite_world, ada, json.dumps({kind: [wrong, wrong]}), Options(skip_failed=True), "json")
        assert "kbtest" not in repr(report)


async def test_what_stands_twice_with_two_values_is_a_question_though_the_first_is_refused(sqlite_world: World) -> None:
    ada = await sqlite_world.person("ada")
    entries = [{"provider": "openai", "name": "a", "value": text} for text in ("kbtest nonsense", OPENAI_KEY)]
    report = await run(sqlite_world, ada, json.dumps(entries), Options(skip_failed=True), "json")
    assert report.counts() == {"invalid": 2}


async def test_what_stands_twice_is_refused_for_the_same_reason(sqlite_world: World) -> None:
    ada = await sqlite_world.person("ada")
    await sqlite_world.secrets.create(ada, NewSecret("openai", value(OTHER_OPENAI_KEY), name="taken"))
    entries: list[tuple[str, str, dict[str, Any]]] = [
        ("secrets", "invalid", {"provider": "azure", "value": "0a" * 16}),  # without its resource
        ("secrets", "invalid", {"provider": "openai", "name": "a", "value": "kbtest nonsense"}),
        ("secrets", "unknown", {"provider": "nobody", "name": "a", "value": OPENAI_KEY}),
        ("secrets", "conflict", {"provider": "openai", "name": "taken", "value": OPENAI_KEY}),
        ("models", "conflict", {"provider": "openai", "name": "m", "aliases": ["b"], "api_key": OPENAI_KEY}),
        ("models", "invalid", {"provider": "openai", "name": "n", "kind": "kbtest"}),
        ("secrets", "create", {"provider": "openai", "name": "good", "value": OPENAI_KEY}),
    ]
    await sqlite_world.models.create(ada, NewModel("openai", "other", aliases=("b",)))
    for kind, outcome, entry in entries:
        spelled = [{**entry, "name": f" {entry.get('name', 'default')} "}] if kind == "secrets" else []
        content = json.dumps({kind: [entry, entry, *spelled]})
        report = await run(sqlite_world, ada, content, Options(skip_failed=True, dry_run=True), "json")
        first, *others = report.results
        assert first.outcome == outcome
        told = ("unchanged", "It stands in the file twice.") if outcome == "create" else (outcome, first.reason)
        assert [(other.outcome, other.reason) for other in others] == [told] * len(others)


async def test_names_meet_as_they_are_stored_and_not_as_they_are_spelled(sqlite_world: World) -> None:
    ada = await sqlite_world.person("ada")
    entries = [{"provider": "openai", "name": name, "value": OPENAI_KEY} for name in ("n", " n ", "other")]
    entries.append({"provider": "openai", "name": " other", "value": OTHER_OPENAI_KEY})
    report = await run(sqlite_world, ada, json.dumps(entries), Options(skip_failed=True), "json")
    assert [result.outcome for result in report.results] == ["create", "unchanged", "create", "invalid"]
    assert sorted(name for _, name in await held(sqlite_world, ada)) == ["n", "other"]


async def test_files_are_bounded(sqlite_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await sqlite_world.person("ada")
    monkeypatch.setattr(module, "ITEMS_LIMIT", 3)
    with pytest.raises(TooLarge):
        await run(sqlite_world, ada, "A=1\nB=2\nC=3\nD=4\n")
    monkeypatch.setattr(module, "CONTENT_LIMIT", 10)
    with pytest.raises(TooLarge):
        await run(sqlite_world, ada, "A=123456789")
    with pytest.raises(Invalid):
        await run(sqlite_world, ada, "# no")


async def test_it_takes_the_scope_to_write(sqlite_world: World) -> None:
    ada = await sqlite_world.person("ada")
    weak = Caller(ada.user_id, ada.role, frozenset(), token_id="kbtestkbtest")
    with pytest.raises(ScopeMissing):
        await run(sqlite_world, weak, ENV, DRY)
