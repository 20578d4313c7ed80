"""What a person's program sees of one call through the gateway: six steps, and what holds each of them up."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from tests.plane.conftest import CHAT, KEY, PROMPT, USER, House, Opener
from tests.plane.wire import Received, code, fixed, until

from keybearer.errors import Unavailable
from keybearer.gateway.limits import Limits
from keybearer.store.db import Actor
from keybearer.store.schema import deployment


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


# --- the six steps ---------------------------------------------------------------------------------------------------------


async def test_a_call_reaches_the_provider_with_the_persons_key_and_comes_back_with_a_receipt(house: House) -> None:
    answer = await house.ask(house.request())
    assert (answer.status, answer.body) == (200, CHAT)
    sent = house.provider.received[0]
    assert sent.line == b"POST /v1/chat/completions HTTP/1.1"
    assert sent["authorization"] == f"Bearer {KEY}"
    assert sent["host"] == f"127.0.0.1:{house.provider.port}"
    assert sent["accept-encoding"] == "identity"
    assert sent.body == PROMPT
    assert answer["x-keybearer-key-source"] == "user"
    assert answer["x-keybearer-provider"] == "openai"
    assert answer["x-keybearer-secret-id"] == str(house.vault.keys["openai"].secret_id)
    outcome = await house.outcome()
    use = house.lines()[0]
    assert answer["x-keybearer-request-id"] == use["request_id"] == outcome["request_id"]
    assert (outcome["status"], outcome["outcome"]) == (200, "ok")
    assert outcome["usage"]["input_tokens"] == 9
    assert outcome["cost_micro_usd"] > 0


async def test_a_second_call_reads_nothing_and_makes_no_task(house: House) -> None:
    connection = await house.connect()
    await connection.send(house.request())
    await connection.answer()
    assert house.vault.reads == ["token", "registry", "key"]
    house.vault.reads.clear()

    def no_task(*_: object) -> None:
        pytest.fail("a task was made for a request whose caches are filled")

    house.plane.spawn = no_task  # type: ignore[method-assign,assignment]
    await connection.send(house.request())
    assert (await connection.answer()).status == 200
    assert house.vault.reads == []


@pytest.mark.parametrize(
    ("path", "body", "header", "sent"),
    [
        ("/v1/messages", b'{"model":"claude-sonnet-4-5","max_tokens":5,"messages":[]}', "x-api-key", KEY),
        ("/v1beta/models/gemini-2.5-flash:generateContent", b'{"contents":[]}', "x-goog-api-key", KEY),
        ("/openai/v1/embeddings", b'{"model":"text-embedding-3-small","input":"x"}', "authorization", f"Bearer {KEY}"),
    ],
)
async def test_each_provider_gets_the_key_in_its_own_header_wherever_the_token_came(
    house: House, path: str, body: bytes, header: str, sent: str
) -> None:
    for place in ("authorization: Bearer ", "x-api-key: ", "x-goog-api-key: ", "api-key: "):
        data = house.request(body, path=path).replace(b"Authorization: Bearer ", place.encode())
        assert (await house.ask(data)).status == 200
        received = house.provider.received[-1]
        names = ("authorization", "x-api-key", "x-goog-api-key", "api-key")
        assert {name: received[name] for name in names if received[name]} == {header: sent}


@pytest.mark.parametrize(
    "header", ["x-litellm-key: {}", "X-Original-Authorization: Bearer {}", "referer: https://a.example/?key={}", "x-b: a={}; b=c"]
)
async def test_a_token_goes_to_no_provider_in_whatever_header_it_came(house: House, header: str) -> None:
    connection = await house.connect()
    for _ in range(3):
        await connection.send(house.request(PROMPT, header.format(house.token)))
        answer = await connection.answer()
        assert (answer.status, code(answer)) == (400, "credentials_conflict")
    assert house.provider.received == []
    assert (await house.ask(house.request(PROMPT, "x-b: kb_ is how our tokens begin"))).status == 200


async def test_the_provider_sees_the_clients_headers_and_nothing_that_is_not_its_business(house: House) -> None:
    kept = (
        "OpenAI-Beta: assistants=v2",
        "X-Stainless-Lang: python",
        "User-Agent: kbtest/1",
        "Idempotency-Key: i1",
        "X-Odd: a  b",
    )
    dropped = """Cookie: session=kbtest
X-Keybearer-Workflow: wf
X-Keybearer-Node: n
X-Keybearer-Whatever: 1
Forwarded: for=1.2.3.4
X-Forwarded-For: 1.2.3.4
X-Forwarded-Host: h
X-Real-IP: 1.2.3.4
Via: 1.1 p
Proxy-Authorization: Basic eA==
Accept-Encoding: gzip, br
TE: trailers
Keep-Alive: timeout=5
CF-Connecting-IP: 1.2.3.4
X-HTTP-Method-Override: DELETE
X-Method-Override: GET
X-Secret-Hop: 1
Connection: keep-alive, X-Secret-Hop""".splitlines()
    dropped.append(f"X-Api-Key: {house.token}")
    assert (await house.ask(house.request(PROMPT, *kept, *dropped))).status == 200
    names = [(name.decode(), value.decode()) for name, value in house.provider.received[0].headers]
    assert names == [
        ("host", f"127.0.0.1:{house.provider.port}"),
        ("accept-encoding", "identity"),
        ("authorization", f"Bearer {KEY}"),
        *((name.lower(), value) for name, _, value in (header.partition(": ") for header in kept)),
        ("content-type", "application/json"),
        ("content-length", str(len(PROMPT))),
    ]
    assert b"kb_" not in b"".join(value for _, value in house.provider.received[0].headers)
    use = house.lines()[0]
    assert (use["workflow"], use["node"], use["client"]) == ("wf", "n", {"ip": "127.0.0.1", "user_agent": "kbtest/1"})


async def test_long_and_unprintable_labels_are_cut_and_cleaned(house: House) -> None:
    assert (
        await house.ask(house.request(PROMPT, "X-Keybearer-Workflow: " + "w" * 999, "X-Keybearer-Node: a\t\xff\tb"))
    ).status == 200
    use = house.lines()[0]
    assert use["workflow"] == "w" * 128
    assert use["node"] == "a\N{REPLACEMENT CHARACTER}b"


async def test_the_receipt_is_the_gateways_whatever_client_or_provider_sent(house: House) -> None:
    house.provider.script = fixed(
        b"200 OK", CHAT, b"x-keybearer-key-source: system", b"X-Keybearer-Request-Id: forged", b"set-cookie: a=b"
    )
    answer = await house.ask(house.request(PROMPT, "X-Keybearer-Request-Id: forged", "X-Keybearer-Key-Source: system"))
    assert answer["x-keybearer-key-source"] == "user"
    assert str(answer["x-keybearer-request-id"]).startswith("req_")
    assert answer["set-cookie"] is None


async def test_model_names_lists_and_local_answers(house: House) -> None:
    body = b'{"model":"openai/gpt-4o-mini","messages":[]}'
    assert (await house.ask(house.request(body))).status == 200
    assert json.loads(house.provider.received[0].body)["model"] == "gpt-4o-mini"
    answer = await house.ask(house.request(b"", path="/v1/models", method="GET"))
    assert answer.status == 200
    assert "openai/gpt-4o-mini" in {model["id"] for model in json.loads(answer.body)["data"]}
    assert (answer["x-keybearer-key-source"], str(answer["x-keybearer-request-id"])[:4]) == (None, "req_")
    assert len(house.provider.received) == 1


async def test_request_ids_never_come_twice(house: House) -> None:
    ids = {house.plane.request_id() for _ in range(10_000)}
    assert len(ids) == 10_000
    assert all(len(found) == 28 and found[4:].isalnum() for found in ids)


async def test_the_user_of_a_grant_is_who_the_journal_names(house: House) -> None:
    await house.ask(house.request())
    use = house.lines()[0]
    assert (use["user_id"], use["token_id"], use["source"]) == (str(USER), house.grant.token_id, "user")
    assert (use["provider"], use["model"], use["operation"], use["streamed"]) == (
        "openai",
        "gpt-4o-mini",
        "chat.completions",
        False,
    )


# --- trust, freezing, the journal ------------------------------------------------------------------------------------------


async def test_without_trust_a_request_waits_and_is_then_served(house: House) -> None:
    assert (await house.ask(house.request())).status == 200
    house.feed._trusted_until = 0.0
    house.feed._interval = 60
    await house.feed.stop()
    asking = asyncio.create_task(house.ask(house.request()))
    await asyncio.sleep(0.3)
    assert not asking.done()
    assert len(house.provider.received) == 1
    house.feed._interval = 0.05
    await house.feed.start()
    assert (await asking).status == 200


async def test_without_trust_for_too_long_nothing_is_sent(open_house: Opener) -> None:
    async with open_house(limits=Limits(hold_seconds=0.3)) as house:
        await house.feed.stop()
        answer = await house.ask(house.request())
        assert (answer.status, code(answer)) == (503, "database_unreachable")
        assert house.provider.received == []


async def test_a_database_that_has_just_gone_away_is_waited_for(open_house: Opener) -> None:
    failures = 2

    async def fail(what: str) -> None:
        nonlocal failures
        if what == "key" and failures:
            failures -= 1
            raise Unavailable

    async with open_house(limits=Limits(hold_seconds=1)) as house:
        house.vault.latch = fail
        assert (await house.ask(house.request())).status == 200
        failures = 100
        house.credentials.forget()
        answer = await house.ask(house.request())
        assert (answer.status, code(answer)) == (503, "unavailable")


async def test_what_waits_when_the_process_ends_is_cancelled(house: House) -> None:
    await house.feed.stop()  # without trust a request waits
    connection = await house.connect()
    await connection.send(house.request())
    await until(lambda: bool(house.plane._tasks))
    waiting = tuple(house.plane._tasks)
    await house.plane.close()
    assert all(task.cancelled() for task in waiting)
    assert house.plane._tasks == set()
    assert house.provider.received == []


async def test_trust_that_ends_while_connecting_holds_the_key_back(house: House) -> None:
    sent: list[object] = []
    upstream = house.services.upstream
    real = upstream.send

    def send(*args: Any, **kwargs: Any) -> Any:
        sent.append(args)
        if len(sent) == 1:
            house.feed._trusted_until = 0.0  # lost after the use was noted, before the bytes are written
        return real(*args, **kwargs)

    upstream.send = send
    answer = await house.ask(house.request())
    assert answer.status == 200
    assert len(sent) == 2
    assert len(house.provider.received) == 1
    lines = house.lines()
    assert [line.get("outcome") for line in lines] == [None, "refused", None, "ok"]
    assert lines[0]["request_id"] == lines[1]["request_id"] != lines[2]["request_id"] == answer["x-keybearer-request-id"]


async def test_a_key_revoked_while_connecting_is_not_sent(house: House) -> None:
    upstream = house.services.upstream
    real = upstream.send

    def send(*args: Any, **kwargs: Any) -> Any:
        call = real(*args, **kwargs)
        house.vault.keys.clear()
        house.credentials.forget()
        return call

    upstream.send = send
    answer = await house.ask(house.request())
    assert (answer.status, code(answer)) == (404, "key_missing")
    assert house.provider.received == []
    assert [line.get("outcome") for line in house.lines()] == [None, "refused"]


async def test_a_frozen_deployment_sends_nothing_until_it_is_thawed(house: House) -> None:
    assert (await house.ask(house.request())).status == 200
    for frozen_at, status in ((datetime.now(UTC), 503), (None, 200)):
        async with house.db.write(Actor.system()) as tx:
            await tx.execute(deployment.delete())
            await tx.execute(
                deployment.insert().values(singleton=1, id=UUID(int=1), frozen_at=frozen_at, created_at=datetime.now(UTC))
            )
        await house.note("deployment", "")
        answer = await house.ask(house.request())
        assert answer.status == status
        if status == 503:
            assert code(answer) == "frozen"
    assert len(house.provider.received) == 2


async def test_a_use_that_cannot_be_written_down_is_no_use(house: House) -> None:
    await house.ask(house.request())
    house.services.journal.flush()
    journal = house.services.journal
    whole, journal._descriptor = journal._descriptor, os.open("/dev/full", os.O_WRONLY)
    answer = await house.ask(house.request())
    os.close(journal._descriptor)
    journal._descriptor = whole
    assert (answer.status, code(answer)) == (503, "journal_failed")
    assert len(house.provider.received) == 1
    assert (await house.ask(house.request())).status == 200
    await until(lambda: len(house.lines()) == 4)
    assert [line["kind"] for line in house.lines()] == ["use", "outcome"] * 2, "the refused use left nothing in the chain"


async def test_the_use_is_on_disk_before_the_provider_hears_of_it(open_house: Opener) -> None:
    seen: list[int] = []
    for durability in ("journal", "fsync"):
        async with open_house(durability=durability) as house:

            async def look(request: Received, house: House = house) -> None:
                seen.append(b"".join(path.read_bytes() for path in house.journal_dir.rglob("*.jsonl")).count(b'"kind":"use"'))
                await fixed(b"200 OK", CHAT)(request)

            house.provider.script = look
            assert (await house.ask(house.request())).status == 200
    assert seen == [1, 1]


async def test_a_mistake_of_ours_is_a_clean_503_and_leaves_the_others_alone(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    connection = await house.connect()
    real = house.services.upstream.send

    def crash(*args: object, **kwargs: object) -> None:
        house.services.upstream.send = real
        msg = f"a mistake that tells of {KEY}"
        raise RuntimeError(msg)

    house.services.upstream.send = crash
    await connection.send(house.request() + house.request())
    assert [(await connection.answer()).status for _ in range(2)] == [503, 200]
    assert "RuntimeError" in caplog.text
    assert "in crash" in caplog.text  # where it was
    assert KEY not in caplog.text
    assert [line.get("outcome") for line in house.lines()] == [None, "failed", None, "ok"]
