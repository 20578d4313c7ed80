"""Malformed and ambiguous requests, each with its right answer, on plain and TLS sockets; none reaches app or provider."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from tests.plane.conftest import House, Opener


class Case(NamedTuple):
    name: str
    data: bytes
    status: int
    code: str


GET = b"GET /api HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer TOKEN\r\nContent-Type: application/json\r\n"
END = b"\r\n"


def malformed(name: str, data: bytes, status: int = 400, code: str = "invalid_request") -> Case:
    return Case(name, data, status, code)


CASES = [
    # the first line
    malformed("no HTTP at all", b"hello there\r\n\r\n"),
    malformed("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60)),
    malformed("HTTP/0.9", b"GET /api\r\n\r\n"),
    malformed("version 0.9 spelled out", b"GET /api HTTP/0.9\r\nHost: a\r\n\r\n"),
    malformed("version 1.2", b"GET /api HTTP/1.2\r\nHost: a\r\n\r\n"),
    malformed("version 2.0", b"GET /api HTTP/2.0\r\nHost: a\r\n\r\n"),
    malformed("version 1.10", b"GET /api HTTP/1.10\r\nHost: a\r\n\r\n"),
    malformed("HTTP/2 by prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    malformed("lower-case protocol", b"GET /api http/1.1\r\nHost: a\r\n\r\n"),
    malformed("unknown method", b"FROB /api HTTP/1.1\r\nHost: a\r\n\r\n"),
    malformed("lower-case method", b"get /api HTTP/1.1\r\nHost: a\r\n\r\n"),
    malformed("tab for space", b"GET\t/api HTTP/1.1\r\nHost: a\r\n\r\n"),
    malformed("space in target", b"GET /api x HTTP/1.1\r\nHost: a\r\n\r\n"),
    malformed("bare LF after first line", b"GET /api HTTP/1.1\nHost: a\r\n\r\n"),
    malformed("absolute form", b"GET http://a/api HTTP/1.1\r\nHost: a\r\n\r\n"),
    malformed("absolute form of a gateway path", b"POST http://a/v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n"),
    malformed("asterisk form", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
    malformed("authority form", b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n"),
    malformed("CONNECT to a path", b"CONNECT /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"),
    malformed("fragment", b"GET /api#x HTTP/1.1\r\nHost: a\r\n\r\n"),
    malformed("UTF-8 in target", "GET /äpi HTTP/1.1\r\nHost: a\r\n\r\n".encode()),
    malformed("NUL in target", b"GET /a\0pi HTTP/1.1\r\nHost: a\r\n\r\n"),
    malformed("DEL in target", b"GET /a\x7fpi HTTP/1.1\r\nHost: a\r\n\r\n"),
    malformed("long target", b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 413, "too_large"),
    # headers
    malformed("no Host", b"GET /api HTTP/1.1\r\n\r\n"),
    malformed("two Hosts", GET + b"Host: a\r\n\r\n"),
    malformed("two different Hosts", GET + b"hOST: b\r\n\r\n"),
    malformed("list of Hosts", GET.replace(b"a\r\n", b"a, b\r\n") + END),
    malformed("user in Host", GET.replace(b"a\r\n", b"u@a\r\n") + END),
    malformed("path in Host", GET.replace(b"a\r\n", b"a/b\r\n") + END),
    malformed("empty Host", b"GET /api HTTP/1.1\r\nHost: \r\n\r\n"),
    malformed("obs-fold", GET + b"X: a\r\n b\r\n\r\n"),
    malformed("obs-fold with a tab", GET + b"X: a\r\n\tb\r\n\r\n"),
    malformed("obs-fold of an empty value", GET + b"X:\r\n b\r\n\r\n"),
    malformed("folded first header", b"GET /api HTTP/1.1\r\n Host: a\r\n\r\n"),
    malformed("bare LF after a header", GET + b"X: a\nY: b\r\n\r\n"),
    malformed("bare CR in a value", GET + b"X: a\rY: b\r\n\r\n"),
    malformed("bare CR before CRLF", GET + b"X: a\r\r\n\r\n"),
    malformed("NUL in a value", GET + b"X: a\0b\r\n\r\n"),
    malformed("control character in a value", GET + b"X: a\x01b\r\n\r\n"),
    malformed("space before the colon", GET + b"X : a\r\n\r\n"),
    malformed("space in a name", GET + b"X Y: a\r\n\r\n"),
    malformed("no colon", GET + b"Xabc\r\n\r\n"),
    malformed("empty name", GET + b": a\r\n\r\n"),
    malformed("non-ASCII name", GET + b"X\xe4: a\r\n\r\n"),
    malformed("too many headers", GET + b"".join(b"X%d: a\r\n" % number for number in range(200)) + END, 413, "too_large"),
    malformed("one huge header", GET + b"X: " + b"a" * 70_000 + b"\r\n\r\n", 413, "too_large"),
    malformed("headers over 64 kB", GET + b"".join(b"X%d: %b\r\n" % (n, b"a" * 7000) for n in range(10)) + END, 413, "too_large"),
    malformed("Upgrade to websocket", GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"),
    malformed("Upgrade to h2c", POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}"),
    malformed("Upgrade without Connection", GET + b"Upgrade: websocket\r\n\r\n"),
    malformed("unknown expectation", POST + b"Expect: 200-ok\r\nContent-Length: 2\r\n\r\n{}"),
    malformed("two expectations", POST + b"Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"),
    malformed("two content types", POST + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}"),
    # framing
    malformed("both lengths", POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    malformed("both lengths, other order", POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    malformed("two lengths", POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
    malformed("the same length twice", POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}"),
    malformed("list of lengths", POST + b"Content-Length: 2, 2\r\n\r\n{}"),
    malformed("signed length", POST + b"Content-Length: +2\r\n\r\n{}"),
    malformed("negative length", POST + b"Content-Length: -2\r\n\r\n{}"),
    malformed("hexadecimal length", POST + b"Content-Length: 0x2\r\n\r\n{}"),
    malformed("empty length", POST + b"Content-Length: \r\n\r\n{}"),
    malformed("overflowing length", POST + b"Content-Length: 18446744073709551618\r\n\r\n{}"),
    malformed("gzip coding", POST + b"Transfer-Encoding: gzip\r\n\r\n"),
    malformed("gzip, chunked", POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    malformed("chunked, gzip", POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    malformed("identity coding", POST + b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}"),
    malformed("chunked twice", POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    malformed("xchunked", POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    malformed("chunked after a vertical tab", POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    malformed("chunked on HTTP/1.0", POST.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    malformed("bad chunk size", POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
    malformed("bare LF in chunk size", POST + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n"),
    malformed("overflowing chunk size", POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff2\r\n{}\r\n0\r\n\r\n"),
    malformed("chunk longer than its size", POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n"),
    malformed("space before chunk size's end", POST + b"Transfer-Encoding: chunked\r\n\r\n2 \r\n{}\r\n0\r\n\r\n"),
    # sizes
    malformed("gateway body over the limit", POST + b"Content-Length: 99999999\r\n\r\n{", 413, "too_large"),
    malformed("app body over the limit", b"POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n{", 413, "too_large"),
    malformed(
        "gateway chunks over the limit",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b" " * 65536 + END) * 20,
        413,
        "too_large",
    ),
    # credentials
    malformed(
        "no token", POST.replace(b"Authorization: Bearer TOKEN\r\n", b"") + b"Content-Length: 2\r\n\r\n{}", 401, "token_missing"
    ),
    malformed("empty token", POST.replace(b"Bearer TOKEN", b"Bearer ") + b"Content-Length: 2\r\n\r\n{}", 401, "token_missing"),
    malformed("Basic", POST.replace(b"Bearer TOKEN", b"Basic dTpw") + b"Content-Length: 2\r\n\r\n{}", 401, "token_invalid"),
    malformed("mistyped token", POST.replace(b"TOKEN", b"TOKEN1") + b"Content-Length: 2\r\n\r\n{}", 401, "token_invalid"),
    malformed("two different tokens", POST + b"X-Api-Key: sk-other\r\nContent-Length: 2\r\n\r\n{}", 400, "credentials_conflict"),
    malformed(
        "the same header twice", POST + b"Authorization: Bearer TOKEN\r\nContent-Length: 2\r\n\r\n{}", 400, "credentials_conflict"
    ),
    malformed(
        "token in the path",
        POST.replace(b"completions ", b"completions/TOKEN ") + b"Content-Length: 2\r\n\r\n{}",
        400,
        "credentials_conflict",
    ),
    malformed(
        "token in the query",
        POST.replace(b"completions ", b"completions?x=TOKEN ") + b"Content-Length: 2\r\n\r\n{}",
        400,
        "credentials_conflict",
    ),
    malformed("key in the query", POST.replace(b"completions ", b"completions?key=AIza ") + b"Content-Length: 2\r\n\r\n{}"),
    malformed("acting for a user", POST + b"X-Keybearer-User: u1\r\nContent-Length: 2\r\n\r\n{}", 403, "scope_missing"),
    # gateway paths under another spelling never reach the app
    malformed("escaped path", POST.replace(b"/v1/", b"/%761/") + b"Content-Length: 2\r\n\r\n{}", 404, "route_unknown"),
    malformed("twice escaped path", POST.replace(b"/v1/", b"/%25761/") + b"Content-Length: 2\r\n\r\n{}", 404, "route_unknown"),
    malformed("escaped slash", POST.replace(b"/v1/", b"/v1%2f") + b"Content-Length: 2\r\n\r\n{}", 404, "route_unknown"),
    malformed("doubled slash", POST.replace(b"/v1/", b"//v1/") + b"Content-Length: 2\r\n\r\n{}", 404, "route_unknown"),
    malformed("dot segment", POST.replace(b"/v1/", b"/api/../v1/") + b"Content-Length: 2\r\n\r\n{}", 404, "route_unknown"),
    malformed("backslash", POST.replace(b"/v1/", b"/\\v1/") + b"Content-Length: 2\r\n\r\n{}", 404, "route_unknown"),
    malformed("upper case", POST.replace(b"/v1/", b"/V1/") + b"Content-Length: 2\r\n\r\n{}", 404, "route_unknown"),
    malformed("unknown route", POST.replace(b"chat/completions", b"frob") + b"Content-Length: 2\r\n\r\n{}", 404, "route_unknown"),
    malformed(
        "wrong method",
        b"DELETE /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer TOKEN\r\n\r\n",
        405,
        "method_not_allowed",
    ),
    # bodies
    malformed("no JSON", POST + b"Content-Length: 2\r\n\r\n{]", 400, "invalid_json"),
    malformed("no body", POST + b"Content-Length: 0\r\n\r\n", 400, "invalid_json"),
    malformed(
        "wrong type",
        POST.replace(b"application/json", b"text/plain") + b"Content-Length: 2\r\n\r\n{}",
        415,
        "unsupported_media_type",
    ),
    malformed("no model", POST + b"Content-Length: 2\r\n\r\n{}", 400, "invalid"),
    malformed("unknown model", POST + b'Content-Length: 16\r\n\r\n{"model":"frob"}', 404, "model_not_found"),
    malformed(
        "body where none belongs",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer TOKEN\r\nContent-Length: 2\r\n\r\n{}",
    ),
]


@pytest.fixture(params=["plain", "tls"])
async def house(request: pytest.FixtureRequest, open_house: Opener) -> AsyncIterator[House]:
    async with open_house(tls=request.param == "tls") as opened:
        yield opened


async def test_every_malformed_or_ambiguous_request_gets_its_right_answer(house: House) -> None:
    wrong = []
    for case in CASES:
        connection = await house.connect()
        await connection.send(case.data.replace(b"TOKEN", house.token.encode()))
        found = await connection.answer()
        await connection.close()
        if found.status != case.status or f'"{case.code}"'.encode() not in found.body or b'"hint"' not in found.body:
            wrong.append(f"{case.name}: {found.status} {found.body[:200]!r}")
    assert wrong == []
    assert house.app.seen == []
    assert house.provider.received == []
    assert house.lines() == []


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/chat/completions", {"error"}),
        ("/v1/messages", {"type", "error", "request_id"}),
        ("/v1beta/models/gemini-2.5-flash:generateContent", {"error"}),
        ("/api/v1/secrets", {"type", "title", "status", "detail", "code", "hint"}),
    ],
)
@pytest.mark.parametrize(
    "wrong", ["Host: a\r\nHost: b\r\n\r\n", "Host: a\r\nX: a\x01b\r\n\r\n", "Host: a\r\nX: " + "a" * 70_000 + "\r\n\r\n"]
)
async def test_a_head_that_is_refused_is_answered_in_the_shape_of_what_was_called(
    house: House, path: str, shape: set[str], wrong: str
) -> None:
    found = await house.ask(f"POST {path} HTTP/1.1\r\n{wrong}".encode())
    assert set(json.loads(found.body)) == shape
    assert found["content-type"] == ("application/problem+json" if "title" in shape else "application/json")
    assert (found["x-keybearer-request-id"] is not None) == ("error" in shape)
    if "gemini" in path:
        assert json.loads(found.body)["error"]["status"] == "INVALID_ARGUMENT"


async def test_what_follows_a_gateway_request_and_is_no_http_is_no_gateway_request(house: House) -> None:
    connection = await house.connect()
    await connection.send(house.request() + b"\x16\x03\x01 what is this\r\n\r\n")
    assert (await connection.answer()).status == 200
    assert json.loads((await connection.answer()).body)["title"] == "Bad Request"


@pytest.mark.parametrize("piece", [1, 7])
async def test_it_makes_no_difference_in_how_many_pieces_they_come(house: House, piece: int) -> None:
    wrong = []
    for case in CASES:
        if len(case.data) > 1000:
            continue
        connection = await house.connect()
        data = case.data.replace(b"TOKEN", house.token.encode())
        for start in range(0, len(data), piece):
            connection.writer.write(data[start : start + piece])
        found = await connection.answer()
        await connection.close()
        if found.status != case.status:
            wrong.append(f"{case.name}: {found.status} {found.body[:200]!r}")
    assert wrong == []
    assert house.app.seen == []
    assert house.provider.received == []
