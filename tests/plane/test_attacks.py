"""What hostile clients and hostile providers tried against a running gateway, and what stopped them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

import pytest
from tests.plane.conftest import CHAT, PROMPT, House, Opener
from tests.plane.wire import Received, fixed, until

from keybearer.access.tokens import generate
from keybearer.domain import SecretBytes
from keybearer.gateway.limits import Limits
from keybearer.gateway.protocol import GatewayProtocol

SPLIT = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
"""An answer that a provider would like to see taken for the gateway's own, to the request that comes next on a proxy's connection."""


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


# --- a hostile provider -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "framed",
    [
        b"content-length: %d\r\n\r\n%b" % (len(SPLIT), SPLIT),
        b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(SPLIT), SPLIT),
    ],
    ids=["length", "chunks"],
)
@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["at once", "in pieces"])
async def test_an_interim_answer_with_a_body_says_nothing_in_our_name(house: House, framed: bytes, pause: float) -> None:
    """llhttp reads a body after 104 to 199; relayed before our own head, it would be an answer of the provider's making."""

    async def script(request: Received) -> None:
        request.writer.write(b"HTTP/1.1 104 Look\r\n" + framed)
        await asyncio.sleep(pause)
        with suppress(RuntimeError):  # closed meanwhile
            request.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(CHAT), CHAT))

    house.provider.script = script
    connection = await house.connect()
    await connection.send(house.request())
    answer = await connection.answer()
    assert (answer.status, answer.body.find(b"evil")) == (502, -1)
    assert answer["x-keybearer-request-id"], "this is the gateway's own answer"
    assert (await house.outcome())["outcome"] == "upstream_error"


@pytest.mark.parametrize("path", ["/v1/models/gpt-4o", "/v1/models", "/v1/files/file-1", "/p/openai/v1/x"])
async def test_no_cache_is_told_to_keep_what_was_read_for_one(house: House, path: str) -> None:
    """One's own provider would have said what everybody reads at that address, and one's own answers would be anybody's."""
    house.provider.script = fixed(
        b"200 OK", b"{}", b"Cache-Control: public, max-age=31536000", b"Expires: Fri, 01 Jan 2038 00:00:00 GMT"
    )
    answer = await house.ask(house.request(b"", path=path, method="GET").replace(b"Authorization: Bearer", b"X-Api-Key:"), b"GET")
    assert (answer.status, answer["cache-control"], answer["expires"]) == (200, "no-store", None)
    streamed = await house.ask(house.request())
    assert streamed["cache-control"] == "public, max-age=31536000", "POST is nothing that caches keep"


# --- a hostile client -------------------------------------------------------------------------------------------------


async def test_a_body_of_a_million_keys_holds_nobody_up(open_house: Opener) -> None:
    """Refused always, but once decoded: that took two seconds, in which no other call went on."""
    body = b'{"model":"gpt-4o-mini",' + b",".join(b'"%x":1' % number for number in range(1_000_000)) + b"}"
    async with open_house(body=2**24, buffered=2**25) as house:
        connection = await house.connect()
        began = time.thread_time()
        await connection.send(house.request(body))
        answer = await connection.answer()
        assert time.thread_time() - began < 1
        assert (answer.status, b"more than 1000 keys" in answer.body) == (400, True)


NESTED = b"[" + b"[]," * 600_000 + b"[]]"


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/chat/completions", b'{"model":"gpt-4o-mini","stream":true,"stream_options":{"x":%b}}', b"stream_options"),
        (
            "/v1beta/models/gemini/embedding-001:embedContent",
            b'{"model":"models/gemini/embedding-001","x":%b}',
            b"too many parts",
        ),
    ],
)
async def test_brackets_hold_nobody_up(open_house: Opener, path: str, body: bytes, said: bytes) -> None:
    """Decoded they take twenty times their size: 32 MB of them took everybody's turn for seconds, and most of a gigabyte."""
    async with open_house(body=2**24, buffered=2**25) as house:
        answer = await house.ask(house.request(body % NESTED, path=path))
        assert (answer.status, said in answer.body) == (400, True)
        assert house.provider.received == []


FURTHER = {
    "fallback models": b'"models":["openai/gpt-5-pro"]',
    "Anthropic's way": b'"fallbacks":[{"model":"claude-opus-4"}]',
    "whichever": b'"route":"fallback"',
    "a preset": b'"preset":"mine"',
    "another case": b'"Models":["openai/gpt-5-pro"]',
    "escaped": b'"\\u006dodels":["openai/gpt-5-pro"]',
    "a letter that folds": '"model\u017f":["openai/gpt-5-pro"]'.encode(),
}


@pytest.mark.parametrize("what", FURTHER)
@pytest.mark.parametrize("limited", ["token", "key"])
async def test_a_call_limited_to_certain_models_names_no_others_to_fall_back_to(house: House, what: str, limited: str) -> None:
    """Routers and Anthropic take further models beside ``model``, which alone was checked."""
    if limited == "token":
        grant = replace(house.grant, allowed_models=frozenset({"openai/gpt-4o-mini"}))
        house.vault.grants[house.token.encode()] = grant
    else:
        house.vault.keys["openai"] = replace(house.vault.keys["openai"], allowed_models=frozenset({"gpt-4o-mini"}))
    connection = await house.connect()
    for _ in range(3):  # the way of such calls is known by then
        await connection.send(house.request())
        assert (await connection.answer()).status == 200
    await connection.send(house.request(PROMPT[:-1] + b"," + FURTHER[what] + b"}"))
    answer = await connection.answer()
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (403, "model_not_allowed")
    nested = b'{"model":"gpt-4o-mini","messages":[],"metadata":{"models":"x","route":"y"}}'
    await connection.send(house.request(nested))
    assert (await connection.answer()).status == 200
    assert len(house.provider.received) == 4


async def test_who_may_call_any_model_names_as_many_as_they_like(house: House) -> None:
    assert (await house.ask(house.request(PROMPT[:-1] + b',"models":["a/b"]}'))).status == 200


async def test_the_next_token_on_a_known_connection_is_another_person(house: House) -> None:
    """A proxy puts several people's calls on one connection; their heads differ in the token alone."""
    other, somebody = generate(), UUID(int=8)
    house.vault.grants[other.encode()] = replace(house.grant, token_id=other[3:15], user_id=somebody)
    connection = await house.connect()
    tokens = [house.token, house.token, house.token, other, house.token, other, other, other]
    for token in tokens:
        await connection.send(house.request().replace(house.token.encode(), token.encode()))
        assert (await connection.answer()).status == 200
    uses = [line for line in house.lines() if line["kind"] == "use"]
    assert [line["token_id"] for line in uses if line["request_id"]] == [token[3:15] for token in tokens]
    assert {line["token_id"]: line["user_id"] for line in uses}[other[3:15]] == str(somebody)


TAKEN_AWAY: dict[str, Callable[[House], None]] = {
    "the token": lambda house: house.vault.grants.clear(),
    "its address": lambda house: house.vault.grants.update(
        {house.token.encode(): replace(house.grant, ip_allowlist=("10.0.0.0/8",))}
    ),
    "its model": lambda house: house.vault.grants.update(
        {house.token.encode(): replace(house.grant, allowed_models=frozenset({"openai/gpt-4o"}))}
    ),
    "the key": lambda house: house.vault.keys.clear(),
    "the key's host": lambda house: house.vault.keys.update(
        {"openai": replace(house.vault.keys["openai"], egress=("https://api.openai.com:443",))}
    ),
}


@pytest.mark.parametrize("what", TAKEN_AWAY)
async def test_what_is_taken_away_is_gone_on_connections_that_know_the_way(house: House, what: str) -> None:
    connection = await house.connect()
    for _ in range(4):
        await connection.send(house.request())
        assert (await connection.answer()).status == 200
    reached = len(house.provider.received)
    TAKEN_AWAY[what](house)
    await house.note("token" if what.startswith(("the token", "its")) else "secret", house.grant.token_id, house.grant.user_id)
    for _ in range(3):
        await connection.send(house.request())
        assert (await connection.answer()).status in (401, 403, 404)
    assert len(house.provider.received) == reached


async def test_a_new_value_and_a_new_address_are_used_on_connections_that_know_the_way(house: House) -> None:
    connection = await house.connect()
    for _ in range(3):
        await connection.send(house.request())
        await connection.answer()
    for number in range(3):
        value = SecretBytes(b"sk-kbtest-rotated-%d" % number)
        house.vault.keys["openai"] = replace(house.vault.keys["openai"], value=value, secret_version=number + 2)
        await house.note("secret", "", house.grant.user_id)
        await connection.send(house.request())
        assert (await connection.answer()).status == 200
        assert house.provider.received[-1]["authorization"] == f"Bearer sk-kbtest-rotated-{number}"


async def test_many_models_under_one_large_head_take_little_memory(house: House) -> None:
    """The way of each is remembered with the head's lines, of which Anthropic's are made anew for each."""
    connection = await house.connect()
    padding = [f"X-Pad-{number}: {'p' * 7000}" for number in range(8)]
    for number in range(40):
        body = b'{"model":"claude-%d","messages":[],"max_tokens":1}' % number
        await connection.send(house.request(body, *padding, path="/v1/messages"))
        assert (await connection.answer()).status == 200
    heads = [each.head for each in house.server.server_state.connections if isinstance(each, GatewayProtocol)]
    blocks = {id(course._block): len(course._block) for head in heads if head is not None for course in head.courses.values()}
    assert blocks
    assert sum(blocks.values()) < 512 * 1024


async def test_who_hoards_bodies_leaves_room_for_others(open_house: Opener) -> None:
    """Sixteen bodies, sent but for their ends, were all that the process may hold: nobody else was served as long as they stayed."""
    async with open_house(body=700_000, buffered=4_000_000) as house:
        other, body = generate(), PROMPT[:-1] + b',"x":"' + b"x" * 600_000 + b'"}'
        house.vault.grants[other.encode()] = replace(house.grant, token_id=other[3:15], user_id=UUID(int=8))
        for number in range(1, 4):
            connection = await house.connect()
            await connection.send(house.request(body)[:-10])
            await until(lambda number=number: house.plane.budget.held > number * 590_000)  # type: ignore[misc]  # its default
        connection = await house.connect()
        await connection.send(house.request(body)[:-10])
        answer = await connection.answer()
        assert (answer.status, b"too many large requests at once" in answer.body) == (503, True)
        assert (await house.ask(house.request(body).replace(house.token.encode(), other.encode()))).status == 200
        assert (await house.ask(house.request())).status == 200, "small ones are still served"
        for each in house.connections:
            await each.close()
        await until(lambda: house.plane.budget.held == 0)
        assert (await house.ask(house.request(body))).status == 200
        assert house.plane.budget._shares == {}


async def test_a_fast_beginning_earns_no_endless_pause(open_house: Opener) -> None:
    """Half a megabyte at once allowed two minutes of nothing, 32 of them two hours."""
    async with open_house(limits=Limits(body_seconds=0.3, sweep_seconds=0.05)) as house:
        connection = await house.connect()
        body = PROMPT[:-1] + b',"x":"' + b"x" * 600_000 + b'"}'
        await connection.send(house.request(body)[:-10])
        answer = await connection.answer()
        assert answer.status == 408


@pytest.mark.parametrize(
    "query", ["$httpMethod=GET", "%24HttpMethod=GET", "a=b&$httpHeaders=x-goog-api-key:1", "a;$req={}", "_method=DELETE"]
)
@pytest.mark.parametrize("path", ["/v1beta/cachedContents", "/p/openai/v1/x"])
async def test_no_query_makes_another_request_of_it(house: House, path: str, query: str) -> None:
    """Google's APIs take method, headers and body from the query: to make a cached content with a shared key would be to list all."""
    answer = await house.ask(house.request(b"{}", path=f"{path}?{query}"))
    assert (answer.status, b"another method" in answer.body) == (400, True)
    assert house.provider.received == []
