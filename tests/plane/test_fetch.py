"""A secret's value fetched by a program, from the real vault on both databases: who gets it, who does not, and for how long."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from tests.plane.conftest import House, Opener
from tests.plane.wire import Answer, Connection, until
from tests.support.tamper import Tamper
from tests.support.vault import World, value, world_on
from tests.vault.test_refresh import GRANTED, Scripted, draft, process

from keybearer.access.tokens import NewToken
from keybearer.domain import Caller, Grade, Role, Scope, Secret, SecretType
from keybearer.errors import JournalFailed
from keybearer.gateway.limits import Limits
from keybearer.store import changes
from keybearer.store.db import Actor, Database
from keybearer.store.schema import deployment, secret
from keybearer.vault.secrets import NewSecret

PATH = "/api/v1/secrets/resolve"
DSN = "postgresql://kbtest:kbtest-first-value@db.example.com/app"
OTHER_DSN = "postgresql://kbtest:kbtest-second-value@db.example.com/app"
BY_PROVIDER: dict[str, Any] = {"provider": "postgresql"}
READ = frozenset({Scope.SECRETS_READ})


@dataclass
class Town:
    """A deployment of two processes, and a person with a connection string that may be fetched and a token to do so."""

    here: House
    there: House
    vault: World
    person: Caller
    admin: Caller
    secret: Secret
    kept: dict[int, Connection] = field(default_factory=dict)

    async def token(self, caller: Caller, **more: Any) -> str:
        """Make a token, and let both houses' requests carry it."""
        given: dict[str, Any] = {"scopes": READ, **more}
        _, text = await self.vault.tokens.create(caller, NewToken("fetch", **given))
        self.here.token = self.there.token = text
        return text

    async def fetch(self, asked: object = BY_PROVIDER, *headers: str, house: House | None = None) -> Answer:
        house = house or self.here
        request = house.request(json.dumps(asked).encode(), *headers, path=PATH)
        kept = self.kept.get(id(house))
        if kept is None:
            return await house.ask(request)
        await kept.send(request)
        return await kept.answer()

    async def got(self, asked: object = BY_PROVIDER, *, house: House | None = None) -> tuple[int, str]:
        """A fetch's status, and the value or the error's code; no refusal ever has a value in it."""
        answer = await self.fetch(asked, house=house)
        said = json.loads(answer.body)
        if answer.status != 200:
            assert answer["content-type"] == "application/problem+json"
            assert b"kbtest" not in answer.body
            return answer.status, said["code"]
        return 200, said["value"]

    async def gets_until(self, house: House, expected: tuple[int, str]) -> float:
        """Fetch again and again until that is the answer; the age in seconds at which the last other one was asked for."""
        clock = asyncio.get_running_loop().time
        began = asked = clock()
        last = 0.0
        while (found := await self.got(house=house)) != expected:
            last = asked - began
            assert last < 5, found
            await asyncio.sleep(0.01)
            asked = clock()
        return last


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
async def town(database_urls: tuple[str, str], open_house: Opener) -> AsyncIterator[Town]:
    root_key = os.urandom(32)
    first, second = await Database.open(*database_urls), await Database.open(*database_urls)
    vault, other = await world_on(first, root_key), await world_on(second, root_key)
    limits = Limits(hold_seconds=0.5)
    async with (
        open_house(world=vault, interval=0.25, limits=limits) as here,
        open_house(world=other, interval=0.25, limits=limits) as there,
    ):
        admin, person = await vault.person("root", Role.ADMIN), await vault.person("alice")
        made = await store(vault, person, DSN)
        town = Town(here, there, vault, person, admin, made)
        await town.token(person)
        yield town
    await first.close()
    await second.close()


async def store(vault: World, caller: Caller, text: str, **more: Any) -> Secret:
    given: dict[str, Any] = {"secret_type": SecretType.CONNECTION_STRING, "fetchable": True, "save_anyway": True, **more}
    return await vault.secrets.create(caller, NewSecret("postgresql", value(text), **given))


# --- what a program gets ------------------------------------------------------------------------------------------------


async def test_a_program_fetches_its_owners_secret_by_id_by_provider_and_by_name(town: Town) -> None:
    await store(town.vault, town.person, OTHER_DSN, name="replica", priority=200)
    for asked in (BY_PROVIDER, {"id": str(town.secret.id)}, {**BY_PROVIDER, "secret_type": "connection_string", "name": None}):
        answer = await town.fetch(asked)
        assert answer.status == 200, answer.body
        said = json.loads(answer.body)
        assert said == {
            "id": str(town.secret.id),
            "provider": "postgresql",
            "secret_type": "connection_string",
            "name": "default",
            "version": 1,
            "expires_at": None,
            "value": DSN,
        }
        assert (answer["cache-control"], answer["x-content-type-options"]) == ("no-store", "nosniff")
        assert (answer["x-keybearer-key-source"], answer["x-keybearer-secret-id"]) == ("user", str(town.secret.id))
    assert await town.got({**BY_PROVIDER, "name": "replica"}) == (200, OTHER_DSN)
    assert await town.got({**BY_PROVIDER, "name": "nothing"}) == (404, "key_missing")
    assert await town.got({"provider": "postgresql", "secret_type": "custom"}) == (404, "key_missing")


async def test_the_use_is_on_record_before_the_value_leaves_and_the_value_nowhere(town: Town) -> None:
    answer = await town.fetch(BY_PROVIDER, "x-keybearer-workflow: nightly", "x-keybearer-node: copy", "user-agent: kbtest")
    outcome = await town.here.outcome()
    use = town.here.lines()[-2]
    assert (use["operation"], use["workflow"], use["node"], use["model"]) == ("fetch", "nightly", "copy", "")
    assert (use["secret_id"], use["user_id"], use["source"]) == (str(town.secret.id), str(town.person.user_id), "user")
    assert use["request_id"] == answer["x-keybearer-request-id"]
    assert use["client"] == {"ip": "127.0.0.1", "user_agent": "kbtest"}
    assert (outcome["status"], outcome["outcome"], outcome["cost_micro_usd"]) == (200, "ok", 0)
    written = b"".join(path.read_bytes() for path in town.here.journal_dir.rglob("*.jsonl"))
    assert b"first-value" not in written


async def test_many_fetches_of_one_connection_answer_in_order(town: Town) -> None:
    connection = await town.here.connect()
    asked = [BY_PROVIDER, {"id": str(uuid4())}, BY_PROVIDER, {"provider": "openai"}, BY_PROVIDER]
    await connection.send(b"".join(town.here.request(json.dumps(each).encode(), path=PATH) for each in asked))
    assert [(await connection.answer()).status for _ in asked] == [200, 404, 200, 404, 200]
    for _ in range(3):  # the head is known by its spelling now
        await connection.send(town.here.request(json.dumps(BY_PROVIDER).encode(), path=PATH))
        assert json.loads((await connection.answer()).body)["value"] == DSN


async def test_the_next_one_that_can_be_fetched_is_given(town: Town) -> None:
    await store(town.vault, town.person, OTHER_DSN, name="first", priority=1, fetchable=False)
    assert await town.got() == (200, DSN)


# --- what it does not get -----------------------------------------------------------------------------------------------

BAD: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 415, "unsupported_media_type"),
    "no JSON": (b"kbtest-pasted", 400, "invalid_json"),
    "half": (b'{"provider":', 400, "invalid_json"),
    "two objects": (b'{"provider":"postgresql"}{}', 400, "invalid_json"),
    "a list": (b"[]", 400, "invalid_json"),
    "not UTF-8": (b'{"provider":"\xff"}', 400, "invalid_json"),
    "brackets": (b"[" * 4000, 400, "invalid_json"),
    "empty": (b"{}", 422, "invalid"),
    "only a type": (b'{"secret_type":"api_key"}', 422, "invalid"),
    "both": (b'{"id":"0199a0c2-0000-7000-8000-000000000000","provider":"postgresql"}', 422, "invalid"),
    "unknown field": (b'{"provider":"postgresql","kbtest-pasted":1}', 422, "invalid"),
    "id is a number": (b'{"id":7}', 422, "invalid"),
    "id is a key": (b'{"id":"sk-kbtest-pasted"}', 422, "invalid"),
    "provider is a list": (b'{"provider":["postgresql"]}', 422, "invalid"),
    "provider is a key": (b'{"provider":"SK-kbtest-pasted"}', 422, "invalid"),
    "provider with NUL": (b'{"provider":"post\\u0000gres"}', 422, "invalid"),
    "provider too long": (b'{"provider":"' + b"a" * 65 + b'"}', 422, "invalid"),
    "unknown provider": (b'{"provider":"kbtest-nobody"}', 404, "provider_unknown"),
    "type unknown": (b'{"provider":"postgresql","secret_type":"kbtest-pasted"}', 422, "invalid"),
    "type is a list": (b'{"provider":"postgresql","secret_type":[]}', 422, "invalid"),
    "name empty": (b'{"provider":"postgresql","name":""}', 422, "invalid"),
    "name too long": (b'{"provider":"postgresql","name":"' + b"n" * 201 + b'"}', 422, "invalid"),
    "name is a number": (b'{"provider":"postgresql","name":1.5}', 422, "invalid"),
    "too large": (b'{"provider":"postgresql","name":"' + b"n" * 4096 + b'"}', 413, "too_large"),
    "much too large": (b"[" * 600_000, 413, "too_large"),
}


@pytest.mark.parametrize("what", BAD)
async def test_bad_bodies(town: Town, what: str) -> None:
    body, status, code = BAD[what]
    connection = await town.here.connect()
    await connection.send(town.here.request(body, path=PATH))
    answer = await connection.answer()
    said = json.loads(answer.body)
    assert (answer.status, said["code"], said["status"]) == (status, code, status)
    assert said["hint"]
    assert "kbtest" not in json.dumps(said)
    assert town.here.lines() == []


async def test_only_the_exact_path_hands_a_value_out(town: Town) -> None:
    body = json.dumps(BY_PROVIDER).encode()
    others = [
        f"{PATH}?x=1",
        f"{PATH}?",
        f"{PATH}/",
        "/api/v1/secrets/%72esolve",
        "/api/v1/secrets//resolve",
        "/API/v1/secrets/resolve",
    ]
    for path in others:
        answer = await town.here.ask(town.here.request(body, path=path))
        assert json.loads(answer.body)["body"] == len(body), path  # the ASGI app's answer
    assert json.loads((await town.here.ask(town.here.request(body, path=PATH, method="PUT"))).body)["body"] == len(body)
    assert len(town.here.app.seen) == len(others) + 1


async def test_what_a_token_may_not(town: Town) -> None:
    async def refused(code: str, status: int = 403, **token: Any) -> None:
        await town.token(town.person, **token)
        assert await town.got() == (status, code)
        assert await town.got({"id": str(town.secret.id)}) == (status, code)

    await refused("scope_missing", scopes=frozenset({Scope.GATEWAY_USE, Scope.SECRETS_WRITE, Scope.SECRETS_USE}))
    await refused("provider_not_allowed", allowed_providers=frozenset({"openai"}))
    await refused("model_not_allowed", allowed_models=frozenset({"openai/gpt-5"}))
    await refused("address_refused", ip_allowlist=("192.0.2.0/24",))
    await town.token(town.person, ip_allowlist=("127.0.0.0/8",), allowed_providers=frozenset({"postgresql"}))
    assert await town.got() == (200, DSN)
    town.here.token = "kb_kbtest"
    assert await town.got() == (401, "token_invalid")
    answer = await town.here.ask(b"POST " + PATH.encode() + b" HTTP/1.1\r\nhost: gw\r\ncontent-length: 0\r\n\r\n")
    assert (answer.status, json.loads(answer.body)["code"]) == (401, "token_missing")
    assert answer["www-authenticate"]
    await town.token(town.person)
    answer = await town.fetch(BY_PROVIDER, "x-keybearer-user: somebody")
    assert answer.status == 403
    refusals = [record for record in town.here.services.refusals._queue if record.action == "secret.refuse"]
    assert {record.outcome for record in refusals} >= {"scope_missing", "address_refused", "token_invalid", "token_missing"}


async def test_a_stranger_learns_nothing_of_anothers_secret(town: Town) -> None:
    eve = await town.vault.person("eve")
    await town.token(eve)
    foreign = await town.fetch({"id": str(town.secret.id)})
    unknown = await town.fetch({"id": str(uuid4())})
    assert foreign.status == unknown.status == 404
    assert foreign.body == unknown.body
    assert await town.got() == (404, "key_missing")
    await town.token(town.admin)  # nor does an administrator
    assert await town.got({"id": str(town.secret.id)}) == (404, "not_found")


async def test_a_teams_value_goes_to_its_members_and_a_lent_one_to_nobody(town: Town) -> None:
    vault, bob = town.vault, await town.vault.person("bob")
    team = (await vault.teams.create(town.person, "Data")).team_id
    await vault.teams.invite(town.person, team, "bob@example.com")
    await vault.teams.accept(bob, team)
    await vault.shares.share(town.person, town.secret.id, team, Grade.MANAGE)
    await town.token(bob)
    assert await town.got({"id": str(town.secret.id)}) == (403, "forbidden")
    assert await town.got() == (404, "key_missing")
    of_team = await store(vault, town.person, OTHER_DSN, team_id=team)
    await town.gets_until(town.here, (200, OTHER_DSN))
    answer = await town.fetch({"id": str(of_team.id)})
    assert (answer.status, answer["x-keybearer-key-source"]) == (200, "team")
    await vault.teams.remove(town.person, team, bob.user_id)
    assert await town.gets_until(town.here, (404, "key_missing")) < 1
    await asyncio.sleep(1)  # what was cached by id is heard of on its own, within the bound
    assert await town.got({"id": str(of_team.id)}) == (404, "not_found")


async def test_the_systems_value_only_where_both_sides_allow_it(town: Town, open_house: Opener) -> None:
    await town.vault.secrets.delete(town.person, town.secret.id)
    system = await store(town.vault, town.admin, OTHER_DSN, system=True)
    await town.gets_until(town.here, (404, "key_missing"))
    assert await town.got({"id": str(system.id)}) == (404, "not_found")
    async with open_house(world=town.vault.offering()) as house:
        house.token = town.here.token
        assert await town.got(house=house) == (200, OTHER_DSN)
        await town.vault.users.set_fallback(town.person, False)
        assert await town.gets_until(house, (404, "key_missing")) < 1
        await town.vault.users.set_fallback(town.person, True)
        await town.gets_until(house, (200, OTHER_DSN))
        assert await town.got({"id": str(system.id)}, house=house) == (200, OTHER_DSN)
        await town.vault.secrets.update(town.admin, system.id, {"is_active": False})
        assert await town.gets_until(house, (404, "key_missing")) < 1  # what is wrong with it is not the caller's to know


async def test_an_expired_oauth_token_is_refreshed_before_it_is_given_out(town: Town, open_house: Opener, tamper: Tamper) -> None:
    endpoint = Scripted()
    endpoint.gate.set()
    async with open_house(world=process(town.vault, endpoint)) as house:
        house.token = town.here.token
        made = await town.vault.secrets.create(town.person, draft(fetchable=True))
        past = datetime.now(UTC) - timedelta(seconds=1)
        await tamper(sa.update(secret).where(secret.c.id == made.id).values(token_expires_at=past, refresh_at=past))
        endpoint.answers.append((503, b""))
        assert await town.got({"id": str(made.id)}, house=house) == (403, "key_expired")
        await tamper(sa.update(secret).where(secret.c.id == made.id).values(refresh_at=past))
        endpoint.grants()
        assert await town.got({"id": str(made.id)}, house=house) == (200, GRANTED["access_token"])


# --- for how long -------------------------------------------------------------------------------------------------------


async def freeze(town: Town) -> None:
    async with town.vault.db.write(Actor.system()) as tx:
        await tx.execute(deployment.update().values(frozen_at=datetime.now(UTC)))
        await changes.note(town.vault.db, tx, "deployment", "")


async def change_secret(town: Town, **fields: Any) -> None:
    await town.vault.secrets.update(town.person, town.secret.id, fields)


async def drop_token(town: Town) -> None:
    await town.vault.tokens.delete(town.person, town.here.token[3:15])


async def disable_person(town: Town) -> None:
    await town.vault.users.set_active(town.person.user_id, False, town.admin)


async def mark_failed(town: Town) -> None:
    await town.vault.secrets.mark(town.secret.id, 1, "failed", "kbtest")


async def delete_secret(town: Town) -> None:
    await town.vault.secrets.delete(town.person, town.secret.id)


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=0.5)


REVOCATIONS: dict[str, tuple[Callable[[Town], Awaitable[None]], tuple[int, str]]] = {
    "token deleted": (drop_token, (401, "token_invalid")),
    "person disabled": (disable_person, (401, "token_invalid")),
    "switched off": (lambda town: change_secret(town, is_active=False), (403, "key_inactive")),
    "not fetchable": (lambda town: change_secret(town, fetchable=False), (403, "not_fetchable")),
    "not for this token": (lambda town: change_secret(town, allowed_tokens=("0" * 12,)), (403, "key_unusable")),
    "for models only": (lambda town: change_secret(town, allowed_models=("gpt-5",)), (403, "model_not_allowed")),
    "expired": (lambda town: change_secret(town, expires_at=soon()), (403, "key_expired")),
    "failed": (mark_failed, (403, "key_failed")),
    "deleted": (delete_secret, (404, "key_missing")),
    "replaced": (lambda town: change_secret(town, value=value(OTHER_DSN)), (200, OTHER_DSN)),
    "frozen": (freeze, (503, "frozen")),
}


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("what", REVOCATIONS)
async def test_what_is_taken_away_is_not_given_out_within_a_second(town: Town, what: str, keeps: bool) -> None:  # noqa: FBT001
    take_away, expected = REVOCATIONS[what]
    for house in (town.here, town.there):
        if keeps:
            town.kept[id(house)] = await house.connect()
        for _ in range(4):  # every cache is warm, and the head is known by its spelling
            assert await town.got(house=house) == (200, DSN)
    await take_away(town)
    last = await asyncio.gather(*(town.gets_until(house, expected) for house in (town.here, town.there)))
    assert max(last) < 1


async def test_without_a_poll_of_changes_it_is_held_and_then_refused(town: Town) -> None:
    assert await town.got() == (200, DSN)
    await town.here.feed.stop()
    await until(lambda: not town.here.feed.is_trusted())
    assert await town.got() == (503, "database_unreachable")
    await town.here.feed.start()
    assert await town.got() == (200, DSN)


async def test_what_cannot_be_recorded_is_not_given_out(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await town.got() == (200, DSN)

    def fail(data: bytes) -> None:
        raise JournalFailed

    with monkeypatch.context() as broken:
        broken.setattr(town.here.services.journal, "_write", fail)
        assert await town.got() == (503, "journal_failed")
    assert await town.got() == (200, DSN)


async def test_a_change_between_record_and_answer_is_heard(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await town.got() == (200, DSN)
    journal, depart = town.here.services.journal, town.here.services.journal.depart

    def overtaken(line: bytes, departure: Any) -> None:
        town.here.credentials.forget()  # as the feed does, just before the bytes would be written
        depart(line, departure)

    with monkeypatch.context() as patched:
        patched.setattr(journal, "depart", overtaken)
        assert await town.got() == (503, "unavailable")
    outcomes = [line["outcome"] for line in town.here.lines() if line["kind"] == "outcome"]
    first = outcomes.index("ok")  # a cold call may begin anew when a change overtakes it
    assert set(outcomes[first + 1 :]) == {"refused"}


async def test_a_client_that_left_gets_nothing_and_the_use_says_so(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await town.got() == (200, DSN)
    waiting: list[tuple[bytes, Any]] = []
    with monkeypatch.context() as patched:
        patched.setattr(town.here.services.journal, "depart", lambda *given: waiting.append(given))
        connection = await town.here.connect()
        await connection.send(town.here.request(json.dumps(BY_PROVIDER).encode(), path=PATH))
        await until(lambda: bool(waiting))
        await connection.close()
        await until(lambda: waiting[0][1]._is_over)
    town.here.services.journal.depart(*waiting[0])
    request_id = waiting[0][1].request_id
    await until(lambda: [line["kind"] for line in town.here.lines() if line["request_id"] == request_id] == ["use", "outcome"])
    assert (town.here.lines()[-1]["status"], town.here.lines()[-1]["outcome"]) == (499, "aborted")


async def test_whoever_writes_to_the_database_makes_nothing_fetchable(town: Town, tamper: Tamper) -> None:
    await change_secret(town, fetchable=False)
    assert await town.got() == (403, "not_fetchable")
    await tamper(sa.update(secret).values(fetchable=True))
    assert await town.got() == (403, "key_unreadable")
