"""A head that came before is known by its bytes: the same, but for the length, means the same again, and nothing else does."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.plane.conftest import House
from tests.plane.wire import until

from keybearer.gateway.exchange import Exchange
from keybearer.gateway.request import Spelling

HEAD = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\nX: content-length: 5\r\n\r\n"


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


def spelled(length: bytes = b"3", body: bytes = b"abc") -> bytes:
    return HEAD % length + body


def learned() -> Spelling:
    found = Spelling.of(spelled(), 3)
    assert found is not None
    return found


class Parsed:
    """What the parser makes of bytes."""

    def __init__(self, data: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.ends = 0
        httptools.HttpRequestParser(self).feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, b"" if name == b"Content-Length" else value))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.ends += 1


@pytest.mark.parametrize(("length", "body"), [(b"1", b"x"), (b"11", b"hello\r\n\r\nyo"), (b"60000", b"y" * 60000), (b"0", b"")])
def test_another_length_is_read_right(length: bytes, body: bytes) -> None:
    assert learned().body(spelled(length, body)) == body


@pytest.mark.parametrize(
    "data",
    [
        spelled(b"4"),
        spelled(b"2"),
        spelled(b"+3"),
        spelled(b" 3"),
        spelled(b"3 "),
        spelled(b"0x3"),
        spelled(b"3, 3"),
        spelled(b""),
        spelled(b"\xb3"),
        spelled(b"3") + b"POST",
        spelled(b"3")[:-1],
        spelled(b"1234567890"),
        spelled().replace(b"Host: a", b"Host: b"),
        spelled().replace(b"X: ", b"x: "),
        spelled().replace(b"\r\n\r\n", b"\r\nY: 1\r\n\r\n"),
        b"\r\n" + spelled(),
        b"",
    ],
)
def test_anything_else_is_left_to_the_parser(data: bytes) -> None:
    assert learned().body(data) is None


def test_only_one_whole_request_framed_by_its_length_is_learned() -> None:
    assert Spelling.of(spelled() + spelled(), 3) is None
    assert Spelling.of(spelled()[:-1], 2) is None
    assert Spelling.of(spelled(), 2) is None
    chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert Spelling.of(chunked, 3) is None


@given(st.binary(max_size=40), st.binary(max_size=5), st.integers(0, 60), st.integers(0, 5))
@example(b"abc", b"", 0, 0)
def test_what_is_recognised_means_to_the_parser_what_it_meant_before(body: bytes, noise: bytes, at: int, cut: int) -> None:
    data = spelled(b"%d" % len(body), body)
    data = data[:at] + noise + data[at + cut :]
    found = learned().body(data)
    if found is None:
        return
    parsed = Parsed(data)
    assert (parsed.ends, parsed.body, parsed.headers) == (1, found, Parsed(spelled()).headers)


async def test_a_program_that_repeats_itself_is_answered_without_the_parser(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bytes] = []
    take = Exchange.take

    def noted(exchange: Exchange, body: bytes) -> None:
        taken.append(body)
        take(exchange, body)

    monkeypatch.setattr(Exchange, "take", noted)
    connection = await house.connect()
    bodies = [json.dumps({"model": "gpt-4o-mini", "messages": [], "user": "x" * number}).encode() for number in range(40)]
    for body in bodies:
        await connection.send(house.request(body))
        assert (await connection.answer()).status == 200
    assert [request.body for request in house.provider.received] == bodies
    assert taken == bodies[2:], "the first tells what the head says, the second that it comes again"
    await until(lambda: len(house.sent()) == 2 * len(bodies))
    assert len({line["request_id"] for line in house.sent()}) == len(bodies)
    await connection.close()


CHANGES: dict[str, tuple[bytes, Any, int]] = {
    # what is new about the next request: bytes to change in its head, to what, and the answer
    "another token": (b"Bearer kb_", b"Bearer kb_0", 401),
    "no token": (b"Authorization: Bearer kb_", b"Nothing: ", 401),
    "a token elsewhere": (b"Authorization", b"Nothing", 400),
    "another path": (b"/v1/chat/completions", b"/v1/nothing", 404),
    "two lengths": (b"Content-Type", b"Content-Length: 1\r\nContent-Type", 400),
    "chunked as well": (b"Content-Type", b"Transfer-Encoding: chunked\r\nContent-Type", 400),
    "an older version": (b"HTTP/1.1", b"HTTP/1.0", 200),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_a_head_that_differs_is_read_anew(house: House, what: str) -> None:
    connection = await house.connect()
    for _ in range(4):
        await connection.send(house.request())
        assert (await connection.answer()).status == 200
    old, new, status = CHANGES[what]
    await connection.send(house.request().replace(old, new))
    assert (await connection.answer()).status == status
    await connection.close()


async def test_a_request_in_pieces_or_beside_another_goes_through_the_parser(house: House) -> None:
    connection = await house.connect()
    data = house.request()
    for _ in range(3):
        await connection.send(data)
        await connection.answer()
    for at in (1, 30, len(data) - 1):
        await connection.send(data[:at])
        await asyncio.sleep(0.02)
        await connection.send(data[at:])
        assert (await connection.answer()).status == 200
    await connection.send(data * 3)
    assert [(await connection.answer()).status for _ in range(3)] == [200] * 3
    await connection.send(data)
    assert (await connection.answer()).status == 200
    await connection.close()
