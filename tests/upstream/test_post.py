"""Checkpoints posted to a URL: over the same egress policy as keys, and without telling its path to anybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from keybearer.errors import EgressRefused, Invalid, UpstreamError
from keybearer.gateway.egress import EgressPolicy
from keybearer.gateway.post import PostTarget
from keybearer.gateway.upstream import Upstream


class Place:
    """Takes what is posted, and answers with a status."""

    def __init__(self) -> None:
        self.status = 204
        self.taken: list[bytes] = []
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        self.taken.append(head + await reader.readexactly(length))
        writer.write(
            b"HTTP/1.1 %d x\r\nconnection: close\r\n%b\r\n"
            % (self.status, b"" if self.status == 204 else b"content-length: 0\r\n")
        )
        await writer.drain()
        writer.close()


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    found = Place()
    async with await asyncio.start_server(found.answer, "127.0.0.1", 0) as server:
        found.port = server.sockets[0].getsockname()[1]
        yield found


async def test_a_note_is_posted_as_it_is(place: Place) -> None:
    upstream = Upstream(EgressPolicy((f"127.0.0.1:{place.port}",)))
    target = PostTarget(upstream, f"http://127.0.0.1:{place.port}/log/kbtest-secret-path")
    await target.push("a note\n")
    (taken,) = place.taken
    assert taken.startswith(b"POST /log/kbtest-secret-path HTTP/1.1\r\n")
    assert taken.endswith(b"\r\n\r\na note\n")
    for status in (302, 403, 500):
        place.status = status
        with pytest.raises(UpstreamError, match=str(status)) as caught:
            await target.push("a note\n")
        assert "kbtest-secret-path" not in caught.value.message
    await upstream.close()


async def test_private_places_are_refused_unless_allowed(place: Place) -> None:
    upstream = Upstream(EgressPolicy())
    with pytest.raises(EgressRefused):
        await PostTarget(upstream, f"http://127.0.0.1:{place.port}/").push("a note\n")
    assert place.taken == []
    for url in ("https://", "ftp://example.com/x", "https://user@example.com/", "https://example.com/?key=kbtest"):
        with pytest.raises(Invalid):
            PostTarget(upstream, url)
    await upstream.close()
