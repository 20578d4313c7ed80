"""The mock as an HTTP server: order, framing, and what it refuses to understand."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path

import pytest
import trustme
from tests.mock.raw import BEARER, CHAT, HI, ask, chat, connect, request
from tests.support.mocking import mock_provider_in_thread, until

from keybearer.mock import MockProvider, Options, start


async def test_connections_are_kept_and_the_same_request_gets_the_same_bytes(mock_provider: MockProvider) -> None:
    wire = await connect(mock_provider)
    bodies = []
    for _ in range(3):
        wire.send(chat("mock"))
        bodies.append((await wire.answer()).body)
    assert len(set(bodies)) == 1
    assert [recorded.status for recorded in mock_provider.requests] == [200, 200, 200]
    await wire.close()


async def test_pipelined_requests_are_answered_in_order_past_slow_ones(mock_provider: MockProvider) -> None:
    wire = await connect(mock_provider)
    wire.send(chat("mock-slow-100ms") + chat("mock-404") + chat("mock-chunks-3-pace-10ms", stream=True) + chat("gpt-4o"))
    statuses = [await wire.answer() for _ in range(4)]
    assert [answer.status for answer in statuses] == [200, 404, 200, 200]
    assert [answer.json()["model"] for answer in (statuses[0], statuses[3])] == ["mock-slow-100ms", "gpt-4o"]
    await wire.close()


async def test_many_pipelined_requests_are_all_answered(mock_provider: MockProvider) -> None:
    wire = await connect(mock_provider)
    wire.send(chat("mock-size-20000") * 500)
    for _ in range(500):
        assert (await wire.answer()).status == 200
    await wire.close()


async def test_a_request_in_single_bytes_is_understood(mock_provider: MockProvider) -> None:
    wire = await connect(mock_provider)
    for byte in chat("mock"):
        wire.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await wire.answer()).status == 200
    await wire.close()


async def test_chunked_requests_are_understood(mock_provider: MockProvider) -> None:
    body = json.dumps({"model": "mock", "messages": HI}).encode()
    head = request("POST", CHAT, headers=BEARER | {"content-type": "application/json", "transfer-encoding": "chunked"})
    chunked = b"%x\r\n%b\r\n" % (10, body[:10]) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 10, body[10:])
    assert (await ask(mock_provider, head + chunked)).status == 200
    assert mock_provider.requests[-1].body == body


async def test_100_continue_is_sent_before_the_body_every_time(mock_provider: MockProvider) -> None:
    whole = chat("mock", BEARER | {"expect": "100-continue"})
    head, _, body = whole.partition(b"\r\n\r\n")
    wire = await connect(mock_provider)
    for _ in range(2):
        wire.send(head + b"\r\n\r\n")
        assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.send(body)
        assert (await wire.answer()).status == 200
    await wire.close()


async def test_http_1_0_is_closed_after_its_answer_and_gets_no_chunks(mock_provider: MockProvider) -> None:
    body = {"model": "mock", "messages": HI, "stream": True}
    answer = await ask(mock_provider, request("POST", CHAT, body, BEARER, version="1.0"))
    assert answer.header("transfer-encoding") is None
    assert answer.header("connection") == "close"
    assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_connection_close_is_obeyed(mock_provider: MockProvider) -> None:
    wire = await connect(mock_provider)
    wire.send(chat("mock", BEARER | {"connection": "close"}))
    assert (await wire.answer()).header("connection") == "close"
    assert await wire.ended()
    await wire.close()


GOOD = chat("mock")
MALFORMED = {
    "not HTTP": (b"hello\r\n\r\n", 400),
    "no host": (b"GET /v1/models HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /v1/models HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
    "two lengths": (GOOD.replace(b"host:", b"content-length: 5\r\nhost:"), 400),
    "length and chunks": (GOOD.replace(b"host:", b"transfer-encoding: chunked\r\nhost:"), 400),
    "unknown coding": (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "chunks in 1.0": (b"POST /v1/chat/completions HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "negative length": (b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", 400),
    "folded header": (b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx-a: b\r\n c\r\n\r\n", 400),
    "NUL in header": (b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx-a: b\0c\r\n\r\n", 400),
    "absolute form": (b"GET http://a/v1/models HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "upgrade": (b"GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 400),
    "unknown expectation": (chat("mock", BEARER | {"expect": "a pony"}), 417),
    "huge header": (b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx-a: " + b"b" * 70_000 + b"\r\n\r\n", 431),
    "HTTP/2.0": (b"GET /v1/models HTTP/2.0\r\nhost: a\r\n\r\n", 505),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_requests_are_refused_and_the_connection_closed(mock_provider: MockProvider, name: str) -> None:
    data, status = MALFORMED[name]
    wire = await connect(mock_provider)
    wire.send(data)
    answer = await wire.answer()
    assert answer.status in ({400, status} if status == 505 else {status})
    assert answer.header("connection") == "close"
    assert await wire.ended()
    assert len(mock_provider.requests) == 0
    await wire.close()


async def test_a_malformed_request_behind_a_good_one_leaves_the_good_answer(mock_provider: MockProvider) -> None:
    wire = await connect(mock_provider)
    wire.send(chat("mock-slow-50ms") + b"nonsense\r\n\r\n")
    assert [(await wire.answer()).status for _ in range(2)] == [200, 400]
    assert await wire.ended()
    await wire.close()


async def test_a_client_that_leaves_in_mid_stream_is_recorded(mock_provider: MockProvider) -> None:
    wire = await connect(mock_provider)
    wire.send(chat("mock-chunks-1000-pace-20ms", stream=True))
    await wire.reader.readuntil(b"data: ")
    await wire.close()
    await until(lambda: mock_provider.requests[-1].outcome == "left")
    assert 1 <= mock_provider.requests[-1].steps < 1000
    assert mock_provider.open_connections == 0


async def test_a_client_that_does_not_read_does_not_fill_memory(mock_provider: MockProvider) -> None:
    wire = await connect(mock_provider)
    wire.send(chat("mock-chunks-30000-pace-0ms", stream=True))
    await until(lambda: len(mock_provider.requests) == 1)
    await asyncio.sleep(0.5)
    before = mock_provider.requests[-1].steps
    await asyncio.sleep(0.2)
    assert mock_provider.requests[-1].steps == before < 30_000
    answer = await wire.answer()
    assert answer.is_complete
    assert answer.body.endswith(b"[DONE]\n\n")
    await wire.close()


async def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = tmp_path / "mock.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
    provider = await start(options=Options(certificate=certificate))
    assert provider.url.startswith("https://")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    reader, writer = await asyncio.open_connection("127.0.0.1", provider.port, ssl=context, server_hostname="localhost")
    writer.write(request("GET", "/v1/models", headers=BEARER))
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()
    await provider.close()


async def test_requests_are_listed_and_forgotten_over_http(mock_provider: MockProvider) -> None:
    await ask(mock_provider, chat("mock"))
    listed = (await ask(mock_provider, request("GET", "/_mock/requests"))).json()["requests"]
    assert [(entry["method"], entry["target"], entry["model"], entry["outcome"]) for entry in listed] == [
        ("POST", CHAT, "mock", "done")
    ]
    assert ["authorization", "Bearer sk-kbtest-one"] in listed[0]["headers"]
    assert listed[0]["body_size"] == len(listed[0]["body"])
    await ask(mock_provider, request("DELETE", "/_mock/requests"))
    assert len(mock_provider.requests) == 0
    assert (await ask(mock_provider, request("GET", "/_mock/health"))).json() == {"status": "ok"}


async def test_the_record_is_bounded_and_can_be_off() -> None:
    for limit, kept in ((2, 2), (0, 0)):
        provider = await start(options=Options(record=limit))
        for _ in range(3):
            await ask(provider, chat("mock"))
        assert len(provider.requests) == kept
        await provider.close()


def test_a_blocking_test_has_a_mock_in_a_thread() -> None:
    with mock_provider_in_thread() as provider:
        answer = asyncio.run(ask(provider, chat("mock")))
        assert answer.status == 200
        assert provider.requests[-1].header("authorization") == "Bearer sk-kbtest-one"
