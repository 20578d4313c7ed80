"""Valid requests of every endpoint and dialect, made wrong in one place or three, through real sockets to a real provider.

Never a 5xx, never a broken answer, never an access token at the provider, nothing left behind. The dice are loaded: the same
requests each time, so that a failure is one for everybody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.plane.conftest import House, Opener
from tests.plane.test_endpoints import add, form
from tests.plane.wire import Reader, Received, connect, until

from keybearer.domain import Scope
from keybearer.gateway.endpoints import AZURE_TAILS, GEMINI_ACTIONS, groups
from keybearer.gateway.limits import Limits

EACH = 4
"""Mutations of each valid request."""
AT_ONCE = 24
QUICK = Limits(header_seconds=0.6, body_seconds=0.6, linger_seconds=0.3, sweep_seconds=0.05)
TOKEN = b"TOKEN"
MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-sonnet-4-5", "gemini": "gemini-2.5-flash"}

ODD: list[bytes] = [
    *(b"\r\n", b"\n", b"\0", b"\xff", b"%00", b"%2e%2e/", b"%2F", b"//", b"..", b"#", b"?", b";", b"\t", b" ", b"{", b"\xc3\xa9"),
    *(b"?key=TOKEN", b"&x=1", b":", b"@evil.example", b"http://evil.example", b"a" * 5_000),
]
VALUES: list[Any] = [
    *(None, True, -1, 0, 1e308, 10**30, "", "x" * 10_000, "\ud800", "\0", [], {}, [[]] * 50, "../../etc", "openai/", "/", "kb_"),
    *("openai/openai/gpt-4o", "gpt-4o\r\nx: y", "anthropic/claude-sonnet-4-5", "\u202egpt", "gpt-4o-mini:free", "*", "%2e%2e"),
]
HEADERS = [
    *(
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Content-Length: 5",
        b"Content-Length: -1",
        b"Host: b",
    ),
    *(b"Connection: close", b"Connection: upgrade, x-api-key", b"Upgrade: h2c", b"Expect: 100-continue", b"Expect: 200-ok"),
    *(
        b"Authorization: Bearer TOKEN",
        b"x-api-key: TOKEN",
        b"x-goog-api-key: TOKEN",
        b"api-key: sk-kbtest-other",
        b"Cookie: a=TOKEN",
    ),
    *(
        b"x-litellm-key: TOKEN",
        b"X-Original-Authorization: Bearer TOKEN",
        b"x-goog-api-client: TOKEN",
        b"Referer: http://a/?k=TOKEN",
    ),
    *(
        b"x-keybearer-user: somebody",
        b"x-keybearer-key-source: forged",
        b"x-keybearer-workflow: \xff\0",
        b"anthropic-version: \xff",
    ),
    *(
        b"Content-Type: text/plain",
        b"Content-Type: multipart/form-data",
        b"Content-Encoding: gzip",
        b" folded",
        b"no colon",
        b": x",
    ),
    *(
        b"X-HTTP-Method-Override: DELETE",
        b"Range: bytes=0-1",
        b"If-None-Match: *",
        b"Accept: text/event-stream",
        b"x: " + b"y" * 70_000,
    ),
]
METHODS = [b"GET", b"HEAD", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"post", b"PRI", b"BREW"]


@dataclass
class Request:
    """A request in pieces that can be made wrong one by one."""

    line: bytes
    headers: list[bytes]
    body: bytes = b""
    length: bool = True
    data: bytes = field(default=b"", repr=False)

    def encoded(self) -> bytes:
        lines = [self.line + b" HTTP/1.1", *self.headers]
        if self.body and self.length:
            lines.append(b"Content-Length: %d" % len(self.body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body


def valid() -> list[Request]:
    """One request for each endpoint at each place where it can be called."""
    found = []
    for dialect, mounts, endpoints in groups():
        for mount in mounts:
            for endpoint in endpoints:
                path = (mount.path + endpoint.path).replace("{id}", "obj_1").replace("*", "a/b")
                found.append(request(f"{endpoint.method} {path}", dialect, endpoint.takes))
    for front in ("", "/gemini"):
        found += [request(f"POST {front}/v1beta/models/gemini-2.5-flash:{action}", "gemini") for action in GEMINI_ACTIONS]
    found += [request(f"POST /openai/deployments/d{tail.decode()}?api-version=1", "openai") for tail in AZURE_TAILS]
    for line in ("GET /v1/models", "GET /v1beta/models", "HEAD /anthropic", "POST /p/openai/v1/x", "DELETE /p/anthropic/v1/y"):
        found.append(request(line, "openai", "nothing"))
    return found


def request(line: str, dialect: str, takes: str = "json") -> Request:
    if takes == "nothing":
        return Request(line.encode(), _head(dialect))
    if takes == "form":
        return Request(line.encode(), _head(dialect, "multipart/form-data; boundary=b0"), form(b"gpt-4o-mini"))
    said = {
        "model": MODELS[dialect],
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "hi"}],
        "input": "hi",
        "stream": False,
    }
    document = {"contents": [{"parts": [{"text": "hi"}]}]} if dialect == "gemini" else said
    return Request(line.encode(), _head(dialect, "application/json"), json.dumps(document).encode())


def _head(dialect: str, content_type: str = "") -> list[bytes]:
    token = {"anthropic": b"x-api-key: TOKEN", "gemini": b"x-goog-api-key: TOKEN"}.get(dialect, b"Authorization: Bearer TOKEN")
    more = [b"anthropic-version: 2023-06-01"] if dialect == "anthropic" else []
    return [b"Host: gw", token, *more, *([b"Content-Type: " + content_type.encode()] if content_type else [])]


# --- mutations: of a request as it is, with dice -----------------------------------------------------------------------------

Mutation = Callable[[random.Random, Request], None]


def odd_target(dice: random.Random, request: Request) -> None:
    at = dice.randrange(1, len(request.line) + 1)
    request.line = request.line[:at] + dice.choice(ODD) + request.line[at:]


def other_method(dice: random.Random, request: Request) -> None:
    request.line = dice.choice(METHODS) + b" " + request.line.partition(b" ")[2]


def more_header(dice: random.Random, request: Request) -> None:
    request.headers.insert(dice.randrange(len(request.headers) + 1), dice.choice(HEADERS))


def less_header(dice: random.Random, request: Request) -> None:
    if request.headers:
        request.headers.pop(dice.randrange(len(request.headers)))


def odd_header(dice: random.Random, request: Request) -> None:
    if request.headers:
        index = dice.randrange(len(request.headers))
        was = request.headers[index]
        at = dice.randrange(len(was) + 1)
        request.headers[index] = was[:at] + dice.choice(ODD[:-6]) + was[at + dice.randrange(2) :]


def odd_bytes(dice: random.Random, request: Request) -> None:
    at = dice.randrange(len(request.body) + 1)
    request.body = request.body[:at] + dice.choice(ODD).replace(TOKEN, b"") + request.body[at + dice.randrange(4) :]


def odd_value(dice: random.Random, request: Request) -> None:
    try:
        document = json.loads(request.body)
    except (ValueError, RecursionError):
        odd_bytes(dice, request)
        return
    if isinstance(document, dict) and document:
        name = dice.choice([*document, "model", "stream", "stream_options", "n", "tools", "messages"])
        document[name] = dice.choice(VALUES)
        request.body = json.dumps(document).encode()
        if dice.random() < 0.2:
            request.body = request.body[:-1] + b"," + request.body[1:]  # every name twice


def cut_short(dice: random.Random, request: Request) -> None:
    request.body = request.body[: dice.randrange(len(request.body) + 1)]


def deep(dice: random.Random, request: Request) -> None:
    depth = dice.choice([100, 5_000])
    request.body = b'{"model":' + b"[" * depth + b"]" * depth + b"}"


def wrong_length(dice: random.Random, request: Request) -> None:
    request.length = False
    request.headers.append(b"Content-Length: %d" % max(0, len(request.body) + dice.choice([-3, -1, 1, 7])))


def in_chunks(dice: random.Random, request: Request) -> None:
    request.length = False
    request.headers.append(b"Transfer-Encoding: chunked")
    size, body = dice.choice([1, 7, 1000]), request.body
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    end = dice.choice([b"0\r\n\r\n", b"0\r\nx-api-key: TOKEN\r\n\r\n", b"0\r\n", b"-1\r\n", b"fffffffffffffffff\r\n"])
    request.body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


MUTATIONS: list[Mutation] = [
    *(odd_target, other_method, more_header, more_header, less_header, odd_header, odd_bytes, odd_value, odd_value),
    *(cut_short, deep, wrong_length, in_chunks),
]


def mutated(dice: random.Random, request: Request) -> tuple[str, bytes]:
    """What was done to a request, and what came of it."""
    made = Request(request.line, list(request.headers), request.body)
    done = []
    for _ in range(dice.choice([1, 1, 2, 3])):
        mutation = dice.choice(MUTATIONS)
        done.append(mutation.__name__)
        mutation(dice, made)
    return f"{request.line.decode()}: {', '.join(done)}", made.encoded()


# --- the test ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


async def served(received: Received) -> None:
    """A provider that is content with anything."""
    said = b'{"id":"x","object":"x","data":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
    body = b"" if received.line.startswith(b"HEAD ") else said
    received.writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(said), body)
    )


async def answers(house: House, data: bytes) -> list[int]:
    """What comes of these bytes on a connection of their own: statuses, read strictly to the connection's end or silence."""
    connection = await connect(house.port)
    house.connections.append(connection)
    await connection.send(data)
    is_odd = re.match(rb"[A-Z]+ [!-~]+ HTTP/1\.1\r\n", data) is None  # what is no request line may be no HEAD, either
    method = b"HEAD" if data.startswith(b"HEAD ") and not is_odd else b"POST"
    found: list[int] = []
    reader = Reader(connection.reader.stream)
    try:
        # A request that is whole is answered at once, one that is not after its deadline.
        while (
            answer := await asyncio.wait_for(reader.answer(method, may_be_cut=is_odd), 1.5 if not found else 0.05)
        ) is not None:
            if answer.status >= 200:
                found.append(answer.status)
            method = b"POST"
    except (TimeoutError, ConnectionError):
        pass
    connection.writer.transport.abort()
    return found


async def test_whatever_is_wrong_with_a_request_nothing_of_ours_breaks(
    open_house: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    dice = random.Random(42)
    cases = [mutated(dice, found) for found in valid() for _ in range(EACH)]
    dice.shuffle(cases)
    caplog.set_level(logging.WARNING)
    async with open_house(limits=QUICK) as house:
        add(house, "azure")
        house.vault.grants[house.token.encode()] = replace(house.grant, scopes=frozenset({Scope.GATEWAY_USE, Scope.SECRETS_READ}))
        house.provider.script = served
        seen: Counter[int] = Counter()
        wrong: list[str] = []
        rest = iter(cases)

        async def work() -> None:
            for what, data in rest:
                try:
                    found = await answers(house, data.replace(TOKEN, house.token.encode()))
                except Exception as error:  # noqa: BLE001  # which request it was, matters most
                    wrong.append(f"{what}: {error!r}: {data[:300]!r}")
                    continue
                seen.update(found)
                wrong.extend(f"{what}: {status}: {data[:300]!r}" for status in found if status >= 500)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        assert not wrong, "\n".join(wrong)
        assert {200, 400, 401, 404} <= seen.keys()
        sent = [
            received.line + b"\n" + b"\n".join(b": ".join(pair) for pair in received.headers)
            for received in house.provider.received
        ]
        assert len(sent) > len(cases) // 10
        assert [found for found in sent if b"kb_" in found] == []
        assert not [found for received in house.provider.received for found in [received.body] if house.token.encode() in found]
        assert [record.getMessage() for record in caplog.records if record.name.startswith("keybearer.gateway")] == []
        await until(lambda: not house.server.server_state.connections)
        await until(lambda: not house.plane._tasks)
        assert house.plane.budget.held == 0
