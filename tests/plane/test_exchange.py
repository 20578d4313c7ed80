"""What a person's program sees of one call through the gateway."""

from __future__ import annotations

import asyncio
import gc
import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from tests.plane.conftest import CHAT, KEY, PROMPT, STREAM, USER, House, Opener, credential
from tests.plane.wire import Answer, Received, fixed, until

from keybearer.access.tokens import generate
from keybearer.domain import KeySource, Scope
from keybearer.errors import KeyExpired, Unavailable
from keybearer.gateway.exchange import Exchange
from keybearer.gateway.limits import Limits
from keybearer.store.db import Actor
from keybearer.store.schema import deployment

EVENTS = (
    b'data: {"id":"c","choices":[{"delta":{"content":"Hel"}}]}\n\n',
    b'data: {"id":"c","choices":[{"delta":{"content":"lo"}}]}\n\n',
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def code(answer: Answer) -> str:
    error: dict[str, Any] = json.loads(answer.body)["error"]
    assert error["hint"] or error["code"] == "x"
    return str(error["code"])


async def stream(request: Received) -> None:
    request.writer.write(STREAM_HEAD)
    for event in EVENTS:
        request.writer.write(chunk(event))
        await request.writer.drain()
        await asyncio.sleep(0.01)
    request.writer.write(chunk(b""))


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


# --- what a token and a key allow ------------------------------------------------------------------------------------------

RESTRICTIONS: list[tuple[dict[str, Any], int, str]] = [
    ({"scopes": frozenset({Scope.USAGE_READ})}, 403, "scope_missing"),
    ({"allowed_providers": frozenset({"anthropic"})}, 403, "provider_not_allowed"),
    ({"allowed_models": frozenset({"openai/gpt-4o"})}, 403, "model_not_allowed"),
    ({"ip_allowlist": ("10.0.0.0/8",)}, 403, "address_refused"),
    ({"allowed_providers": frozenset({"openai"}), "allowed_models": frozenset({"openai/gpt-4o-mini"})}, 200, ""),
    ({"ip_allowlist": ("10.0.0.0/8", "127.0.0.0/8")}, 200, ""),
]


@pytest.mark.parametrize(("restriction", "status", "expected"), RESTRICTIONS)
async def test_a_token_does_no_more_than_it_allows(house: House, restriction: dict[str, Any], status: int, expected: str) -> None:
    house.vault.grants[house.token.encode()] = replace(house.grant, **restriction)
    answer = await house.ask(house.request())
    assert answer.status == status
    if expected:
        assert code(answer) == expected
        assert house.provider.received == []
        assert house.lines() == []


async def test_an_expired_token_stops_at_its_time(house: House) -> None:
    house.vault.grants[house.token.encode()] = replace(house.grant, expires_at=datetime.now(UTC) + timedelta(seconds=0.5))
    assert (await house.ask(house.request())).status == 200
    await asyncio.sleep(0.6)
    house.vault.grants.clear()
    assert code(await house.ask(house.request())) == "token_invalid"


async def test_acting_for_others_is_refused_clearly(house: House) -> None:
    house.vault.grants[house.token.encode()] = replace(house.grant, scopes=frozenset({Scope.GATEWAY_USE, Scope.USERS_ACT_AS}))
    answer = await house.ask(house.request(PROMPT, "X-Keybearer-User: u1"))
    assert (answer.status, code(answer)) == (403, "forbidden")
    assert "not available yet" in answer.body.decode()


async def test_one_connection_may_speak_for_several_people(house: House) -> None:
    """What headers say is worked out once for equal headers, so unequal ones must be told apart in every byte."""
    other = generate()
    house.vault.grants[other.encode()] = replace(house.grant, token_id=other[3:15], allowed_models=frozenset({"openai/gpt-4o"}))
    connection = await house.connect()
    longer = PROMPT[:-1] + b" " * 7 + b"}"
    for data, status in (
        (house.request(), 200),
        (house.request(longer), 200),
        (house.request().replace(house.token.encode(), other.encode()), 403),
        (house.request(PROMPT, "X-Api-Key: " + other), 400),
        (house.request(PROMPT, "Openai-Beta: a"), 200),
        (house.request(PROMPT, "Openai-Beta: b"), 200),
        (house.request().replace(b"Host: gw", b"Host: g@w"), 400),
    ):
        await connection.send(data)
        assert (await connection.answer()).status == status
    assert [request["openai-beta"] for request in house.provider.received] == [None, None, "a", "b"]
    assert [len(request.body) for request in house.provider.received] == [len(PROMPT), len(longer), len(PROMPT), len(PROMPT)]


async def test_a_restricted_token_sees_only_its_models(house: House) -> None:
    house.vault.grants[house.token.encode()] = replace(house.grant, allowed_providers=frozenset({"gemini"}))
    answer = await house.ask(house.request(b"", path="/v1/models", method="GET"))
    assert {model["id"].partition("/")[0] for model in json.loads(answer.body)["data"]} == {"gemini"}


KEYS: list[tuple[dict[str, Any], int, str]] = [
    ({"egress": ("https://api.openai.com:443",)}, 403, "egress_refused"),
    ({"egress": ()}, 403, "egress_refused"),
    ({"allowed_models": frozenset({"gpt-4o"})}, 403, "model_not_allowed"),
    ({"key": "sk-kbtest\r\nx-injected: 1"}, 403, "key_unreadable"),
    ({"key": "sk-kbtest\0"}, 403, "key_unreadable"),
    ({"key": ""}, 403, "key_unreadable"),
    ({"allowed_models": frozenset({"gpt-4o-mini"})}, 200, ""),
]


@pytest.mark.parametrize(("changed", "status", "expected"), KEYS)
async def test_a_key_goes_nowhere_it_is_not_meant_for(house: House, changed: dict[str, Any], status: int, expected: str) -> None:
    house.vault.keys["openai"] = credential(house.vault.providers.get("openai"), **changed)
    answer = await house.ask(house.request())
    assert answer.status == status
    if expected:
        assert code(answer) == expected
        assert b"kbtest" not in answer.body
        assert house.provider.received == []
        assert house.lines() == []


async def test_no_key_and_an_expired_key_are_told_apart(house: House) -> None:
    del house.vault.keys["openai"]
    assert code(await house.ask(house.request())) == "key_missing"

    async def expired(what: str) -> None:
        if what == "key":
            raise KeyExpired

    house.vault.latch = expired
    assert code(await house.ask(house.request())) == "key_expired"


async def test_the_second_key_serves_where_the_first_does_not_allow_the_model(house: House) -> None:
    openai = house.vault.providers.get("openai")
    first = credential(openai, allowed_models=frozenset({"gpt-4o"}))
    second = credential(openai, "sk-kbtest-second-key-of-the-company", source=KeySource.SYSTEM)
    house.vault.keys["openai"], house.vault.further["openai"] = first, (second,)
    answer = await house.ask(house.request())
    assert answer["x-keybearer-key-source"] == "system"
    assert house.provider.received[0]["authorization"] == "Bearer sk-kbtest-second-key-of-the-company"


async def test_the_clients_address_counts_behind_a_declared_proxy(open_house: Opener) -> None:
    async with open_house(proxies=("127.0.0.1", "10.0.0.0/8")) as house:
        house.vault.grants[house.token.encode()] = replace(house.grant, ip_allowlist=("203.0.113.0/24",))
        assert code(await house.ask(house.request())) == "address_refused"
        assert code(await house.ask(house.request(PROMPT, "X-Forwarded-For: 203.0.113.5, 198.51.100.1"))) == "address_refused"
        assert (await house.ask(house.request(PROMPT, "X-Forwarded-For: 9.9.9.9, 203.0.113.5, 10.1.2.3"))).status == 200
        assert house.lines()[0]["client"]["ip"] == "203.0.113.5"
        api = await house.ask(b"GET /api HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.5\r\nX-Forwarded-Proto: https\r\n\r\n")
        assert json.loads(api.body) | {"body": 0} == {"path": "/api", "body": 0, "client": "203.0.113.5", "scheme": "https"}


async def test_forwarding_headers_of_anybody_else_are_hot_air(house: House) -> None:
    house.vault.grants[house.token.encode()] = replace(house.grant, ip_allowlist=("203.0.113.0/24",))
    assert code(await house.ask(house.request(PROMPT, "X-Forwarded-For: 203.0.113.5"))) == "address_refused"
    api = await house.ask(b"GET /api HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.5\r\nX-Forwarded-Proto: https\r\n\r\n")
    assert json.loads(api.body)["client"] == "127.0.0.1"
    assert json.loads(api.body)["scheme"] == "http"


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


# --- streams ---------------------------------------------------------------------------------------------------------------


async def test_a_stream_comes_as_it_comes_byte_for_byte(house: House) -> None:
    house.provider.script = stream
    connection = await house.connect()
    await connection.send(house.request(STREAM))
    assert (await connection.reader._line()).startswith(b"HTTP/1.1 200")
    while await connection.reader._line() != b"\r\n":
        pass
    for event in EVENTS:  # each in a chunk of its own: nothing was held back
        assert await connection.reader.stream.readexactly(len(chunk(event))) == chunk(event)
    assert await connection.reader.stream.readexactly(5) == b"0\r\n\r\n"
    outcome = await house.outcome()
    assert (outcome["usage"]["input_tokens"], outcome["usage"]["output_tokens"]) == (5, 2)
    assert outcome["first_byte_ms"] <= outcome["duration_ms"]


async def test_usage_that_was_not_asked_for_is_counted_and_hidden(house: House) -> None:
    house.provider.script = stream
    answer = await house.ask(house.request(b'{"model":"gpt-4o-mini","stream":true,"messages":[]}'))
    assert json.loads(house.provider.received[0].body)["stream_options"] == {"include_usage": True}
    assert answer.body == EVENTS[0] + EVENTS[1] + EVENTS[3]
    assert (await house.outcome())["usage"]["output_tokens"] == 2


async def test_a_head_without_a_body_yet_is_not_kept_from_the_client(house: House) -> None:
    go_on = asyncio.Event()

    async def hesitate(request: Received) -> None:
        request.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        await go_on.wait()
        request.writer.write(b"hello")

    house.provider.script = hesitate
    connection = await house.connect()
    await connection.send(house.request())
    assert (await asyncio.wait_for(connection.reader._line(), 2)).startswith(b"HTTP/1.1 200")
    go_on.set()


# --- a provider's errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [b"400 Bad Request", b"401 Unauthorized", b"429 Too Many Requests", b"500 Internal", b"529 "])
async def test_a_providers_error_comes_through_without_the_key(house: House, status: bytes) -> None:
    told: list[tuple[object, int]] = []
    house.credentials.on_key_refused = lambda key, number: told.append((key.secret_id, number))
    body = b'{"error":{"message":"Incorrect API key provided: %b."}}' % KEY.encode()
    house.provider.script = fixed(
        status, body, b"retry-after: 7", b"content-type: application/json", b"x-quoted: " + KEY.encode()
    )
    connection = await house.connect()
    await connection.send(house.request())
    answer = await connection.answer()
    assert answer.status == int(status[:3])
    assert answer["retry-after"] == "7"
    assert answer.body == body.replace(KEY.encode(), b"*" * len(KEY))
    assert answer["x-quoted"] == "*" * len(KEY)
    assert answer["x-keybearer-key-source"] == "user"
    outcome = await house.outcome()
    assert (outcome["status"], outcome["outcome"]) == (int(status[:3]), "upstream_error")
    assert told == ([(house.vault.keys["openai"].secret_id, 401)] if answer.status == 401 else [])
    house.provider.script = fixed(b"200 OK", CHAT)
    await connection.send(house.request())
    answer = await connection.answer()
    if status.startswith(b"429"):  # the provider said for how long it wants to be left alone
        assert (answer.status, code(answer), len(house.provider.received)) == (429, "rate_limited", 1)
        assert 0 < int(answer["retry-after"] or 0) <= 7
    else:
        assert answer.status == 200


async def test_an_error_that_cannot_be_scrubbed_is_not_shown(house: House) -> None:
    house.provider.script = fixed(b"401 Unauthorized", b"\x1f\x8b" + KEY.encode(), b"content-encoding: gzip")
    answer = await house.ask(house.request())
    assert (answer.status, code(answer)) == (502, "upstream_malformed")
    assert KEY.encode() not in answer.body


async def test_a_key_that_is_cut_across_chunks_is_masked_all_the_same(house: House) -> None:
    async def drip(request: Received) -> None:
        request.writer.write(b"HTTP/1.1 403 Forbidden\r\ntransfer-encoding: chunked\r\n\r\n")
        for byte in b"key=" + KEY.encode() + b"!":
            request.writer.write(chunk(bytes([byte])))
            await request.writer.drain()
        request.writer.write(chunk(b""))

    house.provider.script = drip
    answer = await house.ask(house.request())
    assert (answer.status, answer.body) == (403, b"key=" + b"*" * len(KEY) + b"!")


async def test_a_redirect_leads_nowhere(house: House) -> None:
    house.provider.script = fixed(b"302 Found", b"", b"location: https://evil.example/")
    answer = await house.ask(house.request())
    assert answer["location"] is None


FAILURES: list[tuple[bytes, int, str]] = [
    (b"", 502, "upstream_unreachable"),
    (b"garbage\r\n\r\n", 502, "upstream_malformed"),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", 502, "upstream_malformed"),
]


@pytest.mark.parametrize(("sent", "status", "expected"), FAILURES)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_provider_that_fails_is_an_error_in_the_dialects_shape(
    house: House, path: str, sent: bytes, status: int, expected: str
) -> None:
    async def fail(request: Received) -> None:
        request.writer.write(sent)
        request.writer.close()

    house.provider.script = fail
    body = PROMPT if "chat" in path else b'{"model":"claude-sonnet-4-5","max_tokens":5,"messages":[]}'
    answer = await house.ask(house.request(body, path=path))
    assert (answer.status, code(answer)) == (status, expected)
    assert ("type" in json.loads(answer.body)) == (path == "/v1/messages")
    assert answer["x-keybearer-secret-id"] is not None
    outcome = await house.outcome()
    assert (outcome["status"], outcome["outcome"]) == (status, "upstream_error")


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_stream_that_breaks_off_ends_with_an_error_event_and_no_last_chunk(house: House, version: bytes) -> None:
    async def cut(request: Received) -> None:
        request.writer.write(STREAM_HEAD + chunk(EVENTS[0]))
        await asyncio.sleep(0.05)
        request.writer.close()

    house.provider.script = cut
    connection = await house.connect()
    await connection.send(house.request(STREAM).replace(b"HTTP/1.1", b"HTTP/" + version, 1))
    answer = await connection.answer(may_be_cut=True)
    first, event = answer.body.split(b"\n\n", 1)
    assert first + b"\n\n" == EVENTS[0]
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "upstream_malformed"
    assert not answer.is_whole or version == b"1.0"
    assert await connection.is_closed()
    outcome = await house.outcome()
    assert (outcome["status"], outcome["outcome"]) == (200, "upstream_error")


async def test_what_breaks_off_in_the_middle_of_an_event_or_is_no_stream_is_cut_off(house: House) -> None:
    for head, sent in ((STREAM_HEAD, chunk(b'data: {"half')), (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n", b'{"half')):

        async def cut(request: Received, head: bytes = head, sent: bytes = sent) -> None:
            request.writer.write(head + sent)
            await asyncio.sleep(0.05)
            request.writer.close()

        house.provider.script = cut
        connection = await house.connect()
        await connection.send(house.request(STREAM))
        answer = await connection.answer(may_be_cut=True)
        assert not answer.is_whole
        assert b"error" not in answer.body


async def test_an_unreachable_provider_is_told(house: House) -> None:
    await house.provider.stop()
    answer = await house.ask(house.request())
    assert (answer.status, code(answer)) == (502, "upstream_unreachable")


# --- a client that leaves --------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_ends_the_upstream_call_and_what_was_used_counts(house: House) -> None:
    async def endless(request: Received) -> None:
        request.writer.write(STREAM_HEAD + chunk(EVENTS[2]))
        while not request.writer.is_closing():
            request.writer.write(chunk(EVENTS[0]))
            await asyncio.sleep(0.02)

    house.provider.script = endless
    connection = await house.connect()
    await connection.send(house.request(STREAM))
    await connection.reader.stream.readuntil(b"Hel")
    connection.writer.transport.abort()
    await asyncio.wait_for(house.provider.ended.wait(), 5)
    outcome = await house.outcome()
    assert (outcome["status"], outcome["outcome"]) == (200, "aborted")
    assert outcome["usage"]["output_tokens"] == 2


async def test_a_client_that_leaves_before_the_answer_is_a_499(house: House) -> None:
    async def never(request: Received) -> None:
        await house.provider.ended.wait()

    house.provider.script = never
    connection = await house.connect()
    await connection.send(house.request())
    await until(lambda: house.provider.received)
    connection.writer.write_eof()  # a half-close is a disconnect
    await asyncio.wait_for(house.provider.ended.wait(), 5)
    outcome = await house.outcome()
    assert (outcome["status"], outcome["outcome"]) == (499, "aborted")


@pytest.mark.parametrize("what", ["token", "registry", "key"])
async def test_a_client_that_leaves_during_a_fill_leaves_no_trace(house: House, what: str) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def latch(found: str) -> None:
        if found == what:
            reached.set()
            await go_on.wait()

    house.vault.latch = latch
    connection = await house.connect()
    await connection.send(house.request())
    await asyncio.wait_for(reached.wait(), 5)
    connection.writer.transport.abort()
    await until(lambda: not house.server.server_state.connections)
    go_on.set()
    await asyncio.sleep(0.1)
    assert house.provider.received == []
    assert house.lines() == []
    assert house.plane.budget.held == 0
    assert (await house.ask(house.request())).status == 200  # what was read serves the next


@pytest.mark.parametrize("cut", range(0, 400, 23))
async def test_a_client_may_leave_at_any_byte(house: House, cut: int) -> None:
    connection = await house.connect()
    await connection.send(house.request()[:cut])
    connection.writer.transport.abort()
    await until(lambda: not house.server.server_state.connections)
    assert house.plane.budget.held == 0


# --- back-pressure ---------------------------------------------------------------------------------------------------------


async def test_a_slow_client_slows_the_provider_and_memory_stays_bounded(house: House) -> None:
    sent = 0

    async def flood(request: Received) -> None:
        nonlocal sent
        request.writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(250):
            request.writer.write(chunk(b"x" * 65_536))
            await request.writer.drain()
            sent += 65_536
        request.writer.write(chunk(b""))

    house.provider.script = flood
    connection = await house.connect()
    connection.stop_reading()
    await connection.send(house.request())
    await asyncio.sleep(1)
    stuck = sent
    await asyncio.sleep(0.3)
    assert sent == stuck < 14 * 2**20  # what fits into the kernel's buffers, and little more
    (server_side,) = house.server.server_state.connections
    assert server_side.transport.get_write_buffer_size() < 2**20
    connection.read_on()
    assert len((await connection.answer()).body) == 250 * 65_536
    assert (await house.outcome())["outcome"] == "ok"


async def test_a_client_that_takes_nothing_at_all_is_cut_off(open_house: Opener) -> None:
    async def flood(request: Received) -> None:
        request.writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not request.writer.is_closing():
            request.writer.write(chunk(b"x" * 65_536))
            await request.writer.drain()

    async with open_house(limits=Limits(stall_seconds=0.5, sweep_seconds=0.05)) as house:
        house.provider.script = flood
        connection = await house.connect()
        connection.stop_reading()
        await connection.send(house.request())
        await asyncio.wait_for(house.provider.ended.wait(), 10)
        assert (await house.outcome())["outcome"] == "aborted"


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


async def test_a_stream_does_not_hold_on_to_the_request_that_began_it(house: House) -> None:
    go_on = asyncio.Event()

    async def hesitate(request: Received) -> None:
        request.writer.write(STREAM_HEAD + chunk(EVENTS[0]))
        await go_on.wait()
        request.writer.write(chunk(b""))

    house.provider.script = hesitate
    connection = await house.connect()
    marker = b"kbtest-prompt" * 50_000
    await connection.send(house.request(STREAM[:-1] + b',"user":"' + marker + b'"}'))
    await connection.reader.stream.readuntil(b"Hel")
    assert house.plane.budget.held == 0
    house.provider.received.clear()
    gc.collect()
    held = [
        found for found in gc.get_objects() if isinstance(found, Exchange) and marker in b"".join([*found._parts, found._sent])
    ]
    assert held == []
    go_on.set()
