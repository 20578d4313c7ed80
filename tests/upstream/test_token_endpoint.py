"""A token endpoint on loopback that is slow, talks without end, sends elsewhere, or is where nobody may send anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from keybearer.domain import SYSTEM_OWNER_ID, SecretBytes
from keybearer.errors import EgressRefused, UpstreamError, UpstreamMalformed, UpstreamTimeout
from keybearer.gateway.egress import EgressPolicy
from keybearer.gateway.token_endpoint import MOST_BYTES, TokenEndpoint
from keybearer.gateway.upstream import Upstream

FORM = SecretBytes(b"grant_type=refresh_token&refresh_token=kbtest-refresh")
BASIC = SecretBytes(b"Basic a2J0ZXN0OmtidGVzdA==")


class Endpoint:
    """Answers with what a test set; an empty answer is none."""

    def __init__(self) -> None:
        self.answer = b""
        self.heads: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(len(FORM.reveal())))
        if not self.answer:
            await reader.read()  # until the caller gives up
        writer.write(self.answer)
        try:
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    found = Endpoint()
    async with await asyncio.start_server(found.serve, "127.0.0.1", 0) as server:
        found.port = server.sockets[0].getsockname()[1]
        yield found


def answer(status: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"connection: close", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def test_a_form_is_posted_and_the_answer_is_bounded(endpoint: Endpoint) -> None:
    upstream = Upstream(EgressPolicy((f"127.0.0.1:{endpoint.port}",)))
    asking = TokenEndpoint(upstream, seconds=0.5)
    url = f"http://127.0.0.1:{endpoint.port}/token?tenant=x"
    endpoint.answer = answer(b"200 OK", b'{"access_token": "kbtest"}')
    assert await asking.post(url, FORM, BASIC, None) == (200, b'{"access_token": "kbtest"}')
    (head,) = endpoint.heads
    assert head.startswith(b"POST /token?tenant=x HTTP/1.1\r\n")
    assert b"\r\nauthorization: Basic a2J0ZXN0OmtidGVzdA==\r\n" in head
    assert head.endswith(b"\r\n\r\n" + FORM.reveal())

    endpoint.answer = answer(b"302 Found", b"", b"location: http://127.0.0.1:1/")
    assert (await asking.post(url, FORM, None, SYSTEM_OWNER_ID))[0] == 302, "told, and not followed"
    endpoint.answer = answer(b"200 OK", b"x" * (MOST_BYTES + 1))
    with pytest.raises(UpstreamMalformed):
        await asking.post(url, FORM, None, None)
    endpoint.answer = b"kbtest no http\r\n\r\n"
    with pytest.raises(UpstreamError):
        await asking.post(url, FORM, None, None)
    endpoint.answer = b""
    with pytest.raises(UpstreamTimeout):
        await asking.post(url, FORM, None, None)
    await upstream.close()


async def test_what_a_user_names_reaches_no_private_place(endpoint: Endpoint) -> None:
    upstream = Upstream(EgressPolicy((f"127.0.0.1:{endpoint.port}",)))
    with pytest.raises(EgressRefused):
        await TokenEndpoint(upstream).post(f"http://127.0.0.1:{endpoint.port}/", FORM, None, uuid4())
    assert endpoint.heads == []
    await upstream.close()
