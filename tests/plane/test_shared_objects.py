"""Two people with one key of a team's or the system's: neither sees what the other made, on both databases and in every process."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from tests.plane.conftest import House, Opener
from tests.plane.wire import Answer, Received, until
from tests.support.vault import OPENAI_KEY, OTHER_OPENAI_KEY, World, value, world_on

from keybearer.access.tokens import NewToken
from keybearer.domain import Caller, Grade, Role
from keybearer.errors import Unavailable
from keybearer.gateway.sharing import Guard
from keybearer.store.db import Actor, Database
from keybearer.store.schema import gateway_object
from keybearer.vault.secrets import NewSecret

UPLOAD = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{"body":{"model":"gpt-4o"}}\r\n--b--\r\n'
)
EVENTS = (
    b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_9"}}\n\n',
    b'event: response.completed\ndata: {"response":{"id":"resp_9","usage":{"input_tokens":5,"output_tokens":2}}}\n\n',
)


def said(document: Any, status: bytes = b"200 OK") -> bytes:
    body = json.dumps(document).encode()
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


@dataclass
class Site:
    """A provider that numbers what it makes."""

    made: int = 0

    async def __call__(self, request: Received) -> None:
        method, path, _ = request.line.decode().split(" ")
        path = path.partition("?")[0]
        if method == "POST" and path == "/v1/responses" and b'"stream":true' in request.body:
            request.writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for event in EVENTS:
                request.writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                await request.writer.drain()
                await asyncio.sleep(0.05)
                if request.writer.is_closing():  # the client has left, and the gateway with it
                    return
            request.writer.write(b"0\r\n\r\n")
        elif method == "POST" and path in {"/v1/files", "/v1/batches", "/v1/responses"}:
            self.made += 1
            request.writer.write(said({"id": f"{path[4:8]}_{self.made}", "object": path[4:]}))
        elif path.startswith("/v1/batches/"):
            request.writer.write(said({"id": path[12:], "output_file_id": "out_1", "error_file_id": None}))
        else:
            request.writer.write(said({"path": path}))


@dataclass
class Yard:
    """Two processes, and the tokens of two people who have the same key."""

    here: House
    there: House
    vault: World
    bob: str
    carol: str
    person: Caller
    source: str

    async def ask(
        self, who: str, line: str, body: bytes = b"", content_type: str = "application/json", *, there: bool = False
    ) -> Answer:
        house = self.there if there else self.here
        lines = [f"{line} HTTP/1.1", "Host: gw", f"Authorization: Bearer {who}"]
        if body:
            lines += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
        answer = await house.ask("\r\n".join(lines).encode() + b"\r\n\r\n" + body, line.split(" ", maxsplit=1)[0].encode())
        if answer.status == 200:
            assert answer["x-keybearer-key-source"] == self.source
        return answer

    async def make(self, who: str, line: str, body: bytes = b"{}", content_type: str = "application/json") -> str:
        answer = await self.ask(who, line, body, content_type)
        assert answer.status == 200, answer.body
        return str(json.loads(answer.body)["id"])

    async def rows(self) -> list[Any]:
        async with self.vault.db.read(Actor.system()) as tx:
            return list(await tx.execute(sa.select(gateway_object).order_by(gateway_object.c.object_id)))

    def reached(self) -> int:
        return len(self.here.provider.received)


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, str(json.loads(answer.body)["error"]["code"])


def left_with(yard: Yard) -> list[dict[str, Any]]:
    """The outcomes of the uses that left for the provider."""
    return [line for line in yard.here.lines() if line["kind"] == "outcome" and line["outcome"] != "refused"]


NOT_FOUND, REFUSED = (404, "not_found"), (403, "shared_key_refused")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(params=["team", "lent", "system"])
async def yard(request: pytest.FixtureRequest, database_urls: tuple[str, str], open_house: Opener) -> AsyncIterator[Yard]:
    root_key = os.urandom(32)
    first, second = await Database.open(*database_urls), await Database.open(*database_urls)
    vault, other = await world_on(first, root_key), await world_on(second, root_key)
    if request.param == "system":
        vault, other = vault.offering(), other.offering()
    async with open_house(world=vault, interval=0.25) as here, open_house(world=other, interval=0.25) as there:
        root, ada = await vault.person("root", Role.ADMIN), await vault.person("ada")
        bob, carol = await vault.person("bob"), await vault.person("carol")
        here.provider.script = there.provider.script = Site()
        base = {"base_url": f"http://127.0.0.1:{here.provider.port}"}
        await vault.allowing("127.0.0.1").providers.update(root, "openai", base)
        if request.param == "system":
            await vault.secrets.create(root, NewSecret("openai", value(OPENAI_KEY), system=True, save_anyway=True))
        else:
            team = (await vault.teams.create(ada, "Research")).team_id
            for person, name in ((bob, "bob"), (carol, "carol")):
                await vault.teams.invite(ada, team, f"{name}@example.com")
                await vault.teams.accept(person, team)
            if request.param == "team":
                await vault.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY), team_id=team, save_anyway=True))
            else:
                lent = await vault.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY), save_anyway=True))
                await vault.shares.share(ada, lent.id, team, Grade.USE)
        tokens = [(await vault.tokens.create(person, NewToken("theirs")))[1] for person in (bob, carol)]
        there.provider = here.provider
        source = "system" if request.param == "system" else "team"
        yield Yard(here, there, vault, tokens[0], tokens[1], bob, source)
    await first.close()
    await second.close()


async def test_a_file_is_its_makers_and_nobody_elses_in_every_process(yard: Yard) -> None:
    made = await yard.make(yard.bob, "POST /v1/files", UPLOAD, "multipart/form-data; boundary=b")
    for there in (True, False):
        assert json.loads((await yard.ask(yard.bob, f"GET /v1/files/{made}", there=there)).body) == {"path": f"/v1/files/{made}"}
        assert (await yard.ask(yard.bob, f"GET /p/openai/v1/files/{made}/content", there=there)).status == 200
    before = yard.reached()
    batch = json.dumps({"input_file_id": made, "endpoint": "/v1/responses"}).encode()
    chat = json.dumps({"model": "gpt-4o", "messages": [{"content": [{"file": {"file_id": made}}]}]}).encode()
    for there in (False, True):
        for line in (
            "GET /v1/files/{}",
            "HEAD /v1/files/{}",
            "GET /v1/files/{}/content",
            "DELETE /v1/files/{}",
            "GET /p/openai/v1/files/{}",
        ):
            answer = await yard.ask(yard.carol, line.format(made), there=there)
            assert answer.status == 404, line
        assert code(await yard.ask(yard.carol, "POST /v1/batches", batch, there=there)) == NOT_FOUND
        assert code(await yard.ask(yard.carol, "POST /v1/chat/completions", chat, there=there)) == NOT_FOUND
        assert code(await yard.ask(yard.carol, "GET /v1/files", there=there)) == REFUSED
        assert code(await yard.ask(yard.bob, "GET /v1/files", there=there)) == REFUSED
    assert yard.reached() == before
    assert (await yard.ask(yard.bob, "POST /v1/chat/completions", chat)).status == 200
    (row,) = await yard.rows()
    assert (row.object_id, row.kind, row.provider) == (made, "file", "openai")
    assert (row.user_id, row.token_id) == (yard.person.user_id, yard.bob[3:15])


async def test_what_came_of_a_batch_is_its_makers_too(yard: Yard) -> None:
    file = await yard.make(yard.bob, "POST /v1/files", UPLOAD, "multipart/form-data; boundary=b")
    batch = await yard.make(yard.bob, "POST /v1/batches", json.dumps({"input_file_id": file}).encode())
    assert code(await yard.ask(yard.bob, "GET /v1/files/out_1/content")) == NOT_FOUND
    assert code(await yard.ask(yard.carol, f"GET /v1/batches/{batch}")) == NOT_FOUND
    assert code(await yard.ask(yard.carol, f"POST /v1/batches/{batch}/cancel", b"{}")) == NOT_FOUND
    assert json.loads((await yard.ask(yard.bob, f"GET /v1/batches/{batch}")).body)["output_file_id"] == "out_1"
    assert (await yard.ask(yard.bob, "GET /v1/files/out_1/content", there=True)).status == 200
    assert code(await yard.ask(yard.carol, "GET /v1/files/out_1/content", there=True)) == NOT_FOUND


async def test_a_conversation_goes_on_for_who_began_it(yard: Yard) -> None:
    first = await yard.make(yard.bob, "POST /v1/responses", b'{"model":"gpt-4o","input":"a secret"}')
    follow = json.dumps({"model": "gpt-4o", "input": "more", "previous_response_id": first}).encode()
    assert (await yard.ask(yard.bob, "POST /v1/responses", follow, there=True)).status == 200
    before = yard.reached()
    assert code(await yard.ask(yard.carol, "POST /v1/responses", follow)) == NOT_FOUND
    assert code(await yard.ask(yard.carol, "POST /p/openai/v1/responses", follow)) == NOT_FOUND
    item = b'{"model":"gpt-4o","input":[{"type":"item_reference","id":"msg_1"}]}'
    assert code(await yard.ask(yard.carol, "POST /v1/responses", item)) == REFUSED
    assert yard.reached() == before
    assert (await yard.ask(yard.bob, f"DELETE /v1/responses/{first}")).status == 200
    assert code(await yard.ask(yard.bob, f"GET /v1/responses/{first}")) == NOT_FOUND
    assert first not in [row.object_id for row in await yard.rows()]


async def test_a_streamed_answer_is_on_record_before_its_first_event_is_out(yard: Yard) -> None:
    body = b'{"model":"gpt-4o","input":"x","stream":true}'
    connection = await yard.here.connect()
    request = yard.here.request(body, path="/v1/responses").replace(yard.here.token.encode(), yard.bob.encode())
    await connection.send(request)
    reader = connection.reader.stream
    await reader.readuntil(b"response.created")
    mine = await yard.ask(yard.bob, "GET /v1/responses/resp_9", there=True)
    assert mine.status == 200, mine.body
    assert code(await yard.ask(yard.carol, "GET /v1/responses/resp_9", there=True)) == NOT_FOUND
    rest = await reader.readuntil(b"0\r\n\r\n")
    assert b"response.completed" in rest
    streamed = await yard.ask(yard.carol, "POST /v1/responses", body)
    assert streamed.body == b"".join(EVENTS)  # byte for byte, and bob's stays bob's
    assert code(await yard.ask(yard.carol, "GET /v1/responses/resp_9")) == NOT_FOUND
    await until(lambda: len(left_with(yard)) >= 2)
    assert [outcome["usage"]["output_tokens"] for outcome in left_with(yard)] == [2, 2]


async def test_a_stream_that_tells_nothing_is_read_once(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the pieces: looked at anew with each, 256 kB of them held up everybody's calls."""
    told: list[bytes] = []
    made = Guard.made

    def noted(guard: Guard, answer: bytes, *, streamed: bool) -> frozenset[tuple[str, str]]:
        told.append(answer)
        return made(guard, answer, streamed=streamed)

    async def script(request: Received) -> None:
        request.writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for piece in pieces:
            request.writer.write(piece)
            await request.writer.drain()
            await asyncio.sleep(0.002)
        request.writer.close()

    pieces = [b": 1\n\n", b'data: {"a":', b"1}\n", b"\n", b"\r\n", b"\r", b"\n: 2", b"\r\n\r", b"\n", *[b"x"] * 50]
    yard.here.provider.script = script
    monkeypatch.setattr(Guard, "made", noted)
    answer = await yard.ask(yard.bob, "POST /v1/responses", b'{"model":"gpt-4o","input":"x","stream":true}')
    assert answer.body == b"".join(pieces)
    assert b"".join(told) == answer.body.rstrip(b"x")


async def test_a_row_of_other_hands_gives_nothing(yard: Yard) -> None:
    made = await yard.make(yard.bob, "POST /v1/files", UPLOAD, "multipart/form-data; boundary=b")
    (row,) = await yard.rows()
    async with yard.vault.db.write(Actor.user(yard.person.user_id)) as tx:
        await tx.execute(sa.insert(gateway_object).values(**(row._asdict() | {"object_id": "file_of_others"})))
    assert code(await yard.ask(yard.bob, "GET /v1/files/file_of_others")) == NOT_FOUND
    assert (await yard.ask(yard.bob, f"GET /v1/files/{made}")).status == 200


async def test_an_own_key_is_not_restricted(yard: Yard) -> None:
    assert code(await yard.ask(yard.bob, "GET /v1/files")) == REFUSED
    await yard.vault.secrets.create(yard.person, NewSecret("openai", value(OTHER_OPENAI_KEY), save_anyway=True))
    yard.source = "user"
    request = yard.here.request(b"", path="/v1/files", method="GET").replace(yard.here.token.encode(), yard.bob.encode())
    for _ in range(100):
        if (await yard.here.ask(request)).status == 200:
            break
        await asyncio.sleep(0.05)
    assert (await yard.ask(yard.bob, "GET /v1/responses/resp_of_anybody")).status == 200
    await yard.make(yard.bob, "POST /v1/files", UPLOAD, "multipart/form-data; boundary=b")
    assert await yard.rows() == []


async def test_what_could_not_be_made_is_not_recorded(yard: Yard) -> None:
    async def refused(request: Received) -> None:
        request.writer.write(said({"id": "file_1", "error": {"message": "no"}}, b"400 Bad Request"))

    yard.here.provider.script = refused
    answer = await yard.ask(yard.bob, "POST /v1/files", UPLOAD, "multipart/form-data; boundary=b")
    assert (answer.status, json.loads(answer.body)["error"]) == (400, {"message": "no"})
    assert await yard.rows() == []


async def test_an_answer_that_breaks_off_is_nobodys(yard: Yard) -> None:
    async def broken(request: Received) -> None:
        request.writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"id":"file_1"')
        await request.writer.drain()
        request.writer.close()

    yard.here.provider.script = broken
    answer = await yard.ask(yard.bob, "POST /v1/files", UPLOAD, "multipart/form-data; boundary=b")
    assert answer.status == 502
    assert await yard.rows() == []


async def test_while_the_database_is_away_an_answer_waits_then_goes_on_and_is_nobodys(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keybearer.gateway.objects._RETRY_SECONDS", 0.01)
    objects = yard.here.services.objects
    monkeypatch.setattr(objects, "_db", Away(objects._db))
    answer = await yard.ask(yard.bob, "POST /v1/files", UPLOAD, "multipart/form-data; boundary=b")
    assert answer.status == 200
    assert objects._db.tried > 1
    monkeypatch.undo()
    assert await yard.rows() == []
    assert code(await yard.ask(yard.bob, f"GET /v1/files/{json.loads(answer.body)['id']}")) == NOT_FOUND


async def test_who_leaves_while_it_is_being_recorded_has_it_still(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    objects, may_go, done = yard.here.services.objects, asyncio.Event(), asyncio.Event()
    record = objects.record

    async def slowly(*given: Any) -> bool:
        await may_go.wait()
        try:
            return bool(await record(*given))
        finally:
            done.set()

    monkeypatch.setattr(objects, "record", slowly)
    connection = await yard.here.connect()
    request = yard.here.request(b'{"model":"gpt-4o","input":"x","stream":true}', path="/v1/responses")
    await connection.send(request.replace(yard.here.token.encode(), yard.bob.encode()))
    await until(lambda: yard.reached() == 1)
    await asyncio.sleep(0.1)
    await connection.close()
    await until(lambda: any(line["kind"] == "outcome" for line in yard.here.lines()))
    may_go.set()
    await until(done.is_set)  # not only committed: its connection is to be back before the database is closed
    assert [row.object_id for row in await yard.rows()] == ["resp_9"]
    *before, last = [line["outcome"] for line in yard.here.lines() if line["kind"] == "outcome"]
    assert last == "aborted"
    assert set(before) <= {"refused"}  # trust may be lost on a busy machine: then the use began anew


async def test_old_responses_are_forgotten_and_files_are_not(yard: Yard) -> None:
    file = await yard.make(yard.bob, "POST /v1/files", UPLOAD, "multipart/form-data; boundary=b")
    await yard.make(yard.bob, "POST /v1/responses", b'{"model":"gpt-4o","input":"old"}')
    rows = await yard.rows()
    old = datetime.now(UTC) - timedelta(days=61)
    async with yard.vault.db.write(Actor.user(yard.person.user_id)) as tx:
        for row in rows:
            await tx.execute(sa.delete(gateway_object).where(gateway_object.c.object_id == row.object_id))
            await tx.execute(sa.insert(gateway_object).values(**(row._asdict() | {"created_at": old})))
    fresh = await yard.make(yard.bob, "POST /v1/responses", b'{"model":"gpt-4o","input":"new"}')
    await yard.here.services.objects.prune()
    assert {row.object_id for row in await yard.rows()} == {file, fresh}


class Away:
    """A database that cannot be written to."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.tried = 0

    def read(self, actor: Actor) -> Any:
        return self._db.read(actor)

    def write(self, _actor: Actor) -> Any:
        self.tried += 1
        raise Unavailable
