"""One connection, many requests: order, persistence, deadlines, closing."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress

import pytest
from tests.plane.conftest import CHAT, PROMPT, House, Opener
from tests.plane.wire import Received, fixed, until

from keybearer.app import DRAIN_SECONDS
from keybearer.gateway.limits import Limits

API = b"GET /api HTTP/1.1\r\nHost: a\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"


async def answer_slowly(request: Received) -> None:
    await asyncio.sleep(0.1)
    await fixed(b"200 OK", CHAT)(request)


# --- order -----------------------------------------------------------------------------------------------------------------


async def test_pipelined_api_and_gateway_requests_are_answered_in_order(house: House) -> None:
    house.provider.script = answer_slowly
    connection = await house.connect()
    bad = house.request(b"{]")
    upload = b"POST /api/up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nHost: evil\r\nX: y\r\n\r\n"
    await connection.send(house.request() + SLOW + upload + bad + house.request() + API)
    answers = [await connection.answer() for _ in range(6)]
    assert [answer.status for answer in answers] == [200, 200, 200, 400, 200, 200]
    assert answers[0].body == answers[4].body == CHAT
    assert [json.loads(answers[place].body)["path"] for place in (1, 2, 5)] == ["/slow", "/api/up", "/api"]
    assert [name for scope in house.app.seen for name, _ in scope["headers"]].count(b"x") == 0  # trailers are nobody's headers


async def test_answers_keep_their_order_however_the_requests_are_cut_up(house: House) -> None:
    data = house.request() + API + house.request() + API
    for piece in (1, 50, 333):
        connection = await house.connect()
        for start in range(0, len(data), piece):
            connection.writer.write(data[start : start + piece])
            await asyncio.sleep(0)
        assert [(await connection.answer()).status for _ in range(4)] == [200] * 4


async def test_nothing_is_written_before_its_turn(house: House) -> None:
    house.provider.script = answer_slowly
    connection = await house.connect()
    await connection.send(house.request() + b"nonsense\r\n\r\n")
    answers = await connection.reader.all()
    assert [answer.status for answer in answers] == [200, 400]
    assert answers[1]["connection"] == "close"


async def test_more_than_sixteen_waiting_requests_end_the_connection_after_the_answers(house: House) -> None:
    house.provider.script = answer_slowly
    connection = await house.connect()
    await connection.send(house.request() + API * 40)
    answers = await connection.reader.all()
    assert [answer.status for answer in answers] == [200] * 17
    assert len(house.app.seen) == 16


async def test_sixteen_waiting_requests_are_fine(house: House) -> None:
    house.provider.script = answer_slowly
    connection = await house.connect()
    await connection.send(house.request() + API * 16)
    assert [(await connection.answer()).status for _ in range(17)] == [200] * 17
    await connection.send(API)
    assert (await connection.answer()).status == 200


# --- persistence -----------------------------------------------------------------------------------------------------------


async def test_a_connection_serves_request_after_request(house: House) -> None:
    connection = await house.connect()
    for _ in range(5):
        await connection.send(house.request())
        answer = await connection.answer()
        assert (answer.status, answer["connection"]) == (200, None)
    assert len(house.provider.received) == 5
    assert house.provider.open == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api", "/stream"])
async def test_connection_close_is_honoured(house: House, path: str) -> None:
    connection = await house.connect()
    await connection.send(house.request(PROMPT, "Connection: close", path=path))
    answer = await connection.answer()
    assert (answer.status, answer["connection"]) == (200, "close")
    assert await connection.is_closed()


async def test_bytes_after_a_last_request_are_no_request(house: House) -> None:
    connection = await house.connect()
    await connection.send(house.request(PROMPT, "Connection: close") + house.request() + API)
    assert [answer.status for answer in await connection.reader.all()] == [200]
    assert len(house.provider.received) == 1
    assert house.app.seen == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api", "/stream"])
async def test_http_1_0_is_answered_close_delimited(house: House, path: str) -> None:
    async def chunked(request: Received) -> None:
        request.writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")

    house.provider.script = chunked
    connection = await house.connect()
    await connection.send(house.request(PROMPT, "Connection: keep-alive", path=path).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    answer = await connection.answer()
    assert (answer.status, answer["connection"], answer["transfer-encoding"]) == (200, "close", None)
    assert answer.body == b"hello" if path.startswith("/v1") else json.loads(answer.body)["path"] == path
    assert await connection.is_closed()


async def test_http_1_0_needs_no_host(house: House) -> None:
    connection = await house.connect()
    await connection.send(b"GET /api HTTP/1.0\r\n\r\n")
    assert (await connection.answer()).status == 200


async def test_head_has_no_body(house: House) -> None:
    connection = await house.connect()
    await connection.send(house.request(b"", path="/openai/v1/models", method="HEAD") + house.request())
    answer = await connection.answer(b"HEAD")
    assert (answer.status, answer["content-length"]) == (200, str(len(CHAT)))
    assert (await connection.answer()).body == CHAT


async def test_an_api_request_answered_early_does_not_spoil_the_next(house: House) -> None:
    connection = await house.connect()
    head = b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n"
    await connection.send(head + b"x" * 1000)
    assert (await connection.answer()).status == 401
    await connection.send(b"x" * 299_000 + API)
    assert json.loads((await connection.answer()).body)["path"] == "/api"


async def test_the_rest_of_a_request_answered_early_is_not_read_for_ever(open_house: Opener) -> None:
    async with open_house(limits=Limits(linger_bytes=200_000)) as house:
        connection = await house.connect()
        await connection.send(b"POST /early HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;")
        assert (await connection.answer()).status == 401
        with suppress(ConnectionError):
            for _ in range(100):
                connection.writer.write(b"x" * 10_000)
                await connection.writer.drain()
                await asyncio.sleep(0.001)
        assert await connection.is_closed()


async def test_an_app_that_crashes_is_a_500_and_the_connection_ends(house: House) -> None:
    connection = await house.connect()
    await connection.send(b"GET /crash HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await connection.answer()).status == 500
    assert await connection.is_closed()


# --- 100-continue ----------------------------------------------------------------------------------------------------------


async def test_100_continue_comes_after_authentication_and_before_the_body(house: House) -> None:
    connection = await house.connect()
    head, _, _ = house.request(PROMPT, "Expect: 100-continue").partition(b"\r\n\r\n")
    await connection.send(head + b"\r\n\r\n")
    assert (await connection.answer()).status == 100
    await connection.send(PROMPT)
    assert (await connection.answer()).status == 200
    assert house.provider.received[0]["expect"] is None


@pytest.mark.parametrize(
    ("change", "status"),
    [((b"Bearer kb_", b"Bearer kc_"), 401), ((b"/v1/chat", b"/v1/frob"), 404), ((b"Length: 70", b"Length: 9999999"), 413)],
)
async def test_who_may_not_send_is_told_so_instead_of_100_continue(
    house: House, change: tuple[bytes, bytes], status: int
) -> None:
    connection = await house.connect()
    head, _, _ = house.request(PROMPT, "Expect: 100-continue").partition(b"\r\n\r\n")
    await connection.send(head.replace(*change) + b"\r\n\r\n")
    answer = await connection.answer()
    assert (answer.status, answer["connection"]) == (status, "close")


async def test_100_continue_waits_for_its_turn(house: House) -> None:
    house.provider.script = answer_slowly
    connection = await house.connect()
    head, _, _ = house.request(PROMPT, "Expect: 100-continue").partition(b"\r\n\r\n")
    await connection.send(house.request() + head + b"\r\n\r\n")
    assert [(await connection.answer()).status for _ in range(2)] == [200, 100]
    await connection.send(PROMPT)
    assert (await connection.answer()).status == 200


# --- uploads ---------------------------------------------------------------------------------------------------------------


async def test_an_upload_from_a_stranger_is_refused_before_it_is_read(house: House) -> None:
    connection = await house.connect()
    request = house.request(b" " * 900_000).replace(b"Bearer kb_", b"Bearer kc_")
    await connection.send(request[:2000])
    answer = await connection.answer()
    assert (answer.status, answer["connection"]) == (401, "close")
    await connection.send(request[2000:])  # what is still under way does not turn the answer into a reset
    assert await connection.is_closed()
    assert house.plane.budget.held == 0


async def test_all_bodies_together_are_bounded(open_house: Opener) -> None:
    async with open_house(body=700_000, buffered=1_000_000) as house:
        first, second = await house.connect(), await house.connect()
        body = PROMPT[:-1] + b',"x":"' + b"x" * 600_000 + b'"}'
        await first.send(house.request(body)[:-10])
        await until(lambda: house.plane.budget.held >= 500_000)
        await second.send(house.request(body)[:-10])
        answer = await second.answer()
        assert (answer.status, answer["retry-after"], answer["connection"]) == (503, "1", "close")
        await first.send(body[-10:])
        assert (await first.answer()).status == 200
        assert house.plane.budget.held == 0


async def test_a_body_in_tiny_chunks_is_taken_and_one_of_framing_alone_is_not(house: House) -> None:
    connection = await house.connect()
    head = house.request().partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
    await connection.send(head + b"".join(b"1\r\n%c\r\n" % byte for byte in PROMPT) + b"0\r\n\r\n")
    assert (await connection.answer()).status == 200
    await connection.send(head + b"1;" + b"x" * 600_000)
    assert (await connection.answer()).status == 400


# --- deadlines -------------------------------------------------------------------------------------------------------------

UPLOAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer TOKEN\r\n"
QUICK = Limits(header_seconds=0.3, body_seconds=0.3, stall_seconds=0.5, linger_seconds=0.3, sweep_seconds=0.05)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (b"\r\n\r\n\r\n", None),
        (b"GET /api HT", 408),
        (b"GET /api HTTP/1.1\r\nHost: a\r\nX: ", 408),
        (b"POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc", 408),
        (UPLOAD + b"Content-Length: 10\r\n\r\nabc", 408),
        (UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\n", 408),
    ],
)
async def test_who_is_too_slow_is_told_so_and_closed(open_house: Opener, sent: bytes, status: int | None) -> None:
    async with open_house(limits=QUICK) as house:
        connection = await house.connect()
        began = time.monotonic()
        await connection.send(sent.replace(b"TOKEN", house.token.encode()))
        if status is not None:
            answer = await connection.answer()
            assert (answer.status, answer["connection"]) == (status, "close")
        assert await connection.is_closed()
        assert 0.2 < time.monotonic() - began < 3
        await until(lambda: not house.server.server_state.connections)


async def test_dripping_headers_do_not_extend_the_deadline(open_house: Opener) -> None:
    async with open_house(limits=QUICK) as house:
        connection = await house.connect()
        await connection.send(b"GET /api HTTP/1.1\r\n")
        began = time.monotonic()
        while not connection.reader.stream._buffer and time.monotonic() - began < 5:
            connection.writer.write(b"X: y\r\n")
            await asyncio.sleep(0.05)
        assert (await connection.answer()).status == 408


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not(open_house: Opener) -> None:
    async with open_house(limits=QUICK, timeout_keep_alive=1) as house:
        house.provider.script = answer_slowly
        connection = await house.connect()
        await connection.send(house.request())
        assert (await connection.answer()).status == 200
        began = time.monotonic()
        assert await connection.is_closed()
        assert 0.7 < time.monotonic() - began < 4


async def test_an_answer_may_take_longer_than_any_of_the_clients_deadlines(open_house: Opener) -> None:
    async def answer_late(request: Received) -> None:
        await asyncio.sleep(1.5)
        await fixed(b"200 OK", CHAT)(request)

    async with open_house(limits=QUICK, timeout_keep_alive=1) as house:
        house.provider.script = answer_late
        assert (await house.ask(house.request())).status == 200


# --- limits and shutdown ---------------------------------------------------------------------------------------------------


async def test_limit_concurrency_holds_for_both_kinds_of_requests(open_house: Opener) -> None:
    async with open_house(limit_concurrency=2) as house:
        await house.connect()
        await asyncio.sleep(0.05)
        answer = await house.ask(house.request())
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "overloaded")
        assert (await house.ask(API)).status == 503
        assert house.provider.received == []
        assert house.app.seen == []


async def test_at_shutdown_answers_under_way_are_finished_and_idle_connections_closed(open_house: Opener) -> None:
    async def stream(request: Received) -> None:
        request.writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(5):
            request.writer.write(b"7\r\ndata: \n\r\n")
            await asyncio.sleep(0.1)
        request.writer.write(b"0\r\n\r\n")

    async with open_house(timeout_graceful_shutdown=5) as house:
        house.provider.script = stream
        idle, busy, api = await house.connect(), await house.connect(), await house.connect()
        await busy.send(house.request())
        await api.send(SLOW + API)
        await asyncio.sleep(0.15)
        house.server.should_exit = True
        assert await idle.is_closed()
        answer = await busy.answer()
        assert answer.body == b"data: \n" * 5
        assert await busy.is_closed()
        assert [answer.status for answer in await api.reader.all()] == [200]  # the one behind may be repeated elsewhere


def test_answers_are_ended_before_the_server_stops_waiting_for_them() -> None:
    assert Limits().shutdown_seconds + 2 * Limits().sweep_seconds < DRAIN_SECONDS


async def test_at_shutdown_a_stream_without_end_is_ended_with_an_error_event(open_house: Opener) -> None:
    async def endless(request: Received) -> None:
        request.writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        while not request.writer.is_closing():
            request.writer.write(b"a\r\ndata: {}\n\n\r\n")
            await asyncio.sleep(0.05)

    limits = Limits(shutdown_seconds=0.3, sweep_seconds=0.05)
    async with open_house(limits=limits, timeout_graceful_shutdown=5) as house:
        house.provider.script = endless
        connection = await house.connect()
        await connection.send(house.request(b'{"model":"gpt-4o-mini","stream":true}'))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        house.server.should_exit = True
        answer = await connection.answer(may_be_cut=True)
        assert time.monotonic() - began < 3
        assert not answer.is_whole
        assert b'"code":"unavailable"' in answer.body.rsplit(b"data: ", 1)[1]
        outcome = await house.outcome()
        assert (outcome["status"], outcome["outcome"]) == (200, "aborted")
