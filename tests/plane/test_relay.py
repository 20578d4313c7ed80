"""The answer's way back: streams, a provider's errors, clients that leave, and those that are slow."""

from __future__ import annotations

import asyncio
import gc
import json

import pytest
from tests.plane.conftest import CHAT, KEY, PROMPT, STREAM, House, Opener
from tests.plane.wire import STREAM_HEAD, Received, chunk, code, fixed, until

from keybearer.gateway.exchange import Exchange
from keybearer.gateway.limits import Limits

EVENTS = (
    b'data: {"id":"c","choices":[{"delta":{"content":"Hel"}}]}\n\n',
    b'data: {"id":"c","choices":[{"delta":{"content":"lo"}}]}\n\n',
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


async def stream(request: Received) -> None:
    request.writer.write(STREAM_HEAD)
    for event in EVENTS:
        request.writer.write(chunk(event))
        await request.writer.drain()
        await asyncio.sleep(0.01)
    request.writer.write(chunk(b""))


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
