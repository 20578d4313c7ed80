"""How calls end, and what is on record of it: each dialect, streamed and not, served, left by the client, refused, and cut off."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

import msgspec
import pytest
from tests.plane.conftest import House
from tests.plane.wire import STREAM_HEAD, Received, chunk, fixed
from tests.pure.test_meter import ANSWERS, RECORDED

from keybearer.domain import Usage


class Kind(NamedTuple):
    """One way to ask: where, and the recorded answers to it."""

    path: str
    body: dict[str, Any]
    whole: str
    stream: str
    begun: str
    """A stream that broke off."""
    error: str
    streamed_path: str = ""


KINDS = {
    "chat": Kind(
        "/v1/chat/completions",
        {"model": "gpt-4o", "messages": [], "stream_options": {"include_usage": True}},
        *("openai-chat-tools.json", "openai-chat.sse", "openai-chat-aborted.sse", "openai-error.json"),
    ),
    "responses": Kind(
        "/v1/responses",
        {"model": "gpt-5", "input": "x"},
        *("openai-responses.json", "openai-responses.sse", "openai-responses-aborted.sse", "openai-error.json"),
    ),
    "messages": Kind(
        "/v1/messages",
        {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": []},
        *("anthropic-messages.json", "anthropic-messages.sse", "anthropic-messages-aborted.sse", "anthropic-error.json"),
    ),
    "gemini": Kind(
        "/v1beta/models/gemini-2.5-flash:generateContent",
        {"contents": []},
        *("gemini-generate.json", "gemini-stream.sse", "gemini-stream-aborted.sse", "gemini-error.json"),
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
    ),
}
TYPES = {False: b"application/json", True: b"text/event-stream"}


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


def said(name: str) -> bytes:
    return (ANSWERS / name).read_bytes()


def request(house: House, kind: Kind, *, streamed: bool) -> bytes:
    if streamed and kind.streamed_path:
        return house.request(json.dumps(kind.body).encode(), path=kind.streamed_path)
    body = {name: value for name, value in kind.body.items() if streamed or name != "stream_options"}
    return house.request(json.dumps(body | ({"stream": True} if streamed else {})).encode(), path=kind.path)


def counted(outcome: dict[str, Any], usage: Usage) -> None:
    """What is on record is what the answer said, and its cost is unknown where that was not enough."""
    assert outcome["usage"] == msgspec.to_builtins(usage)
    is_known = usage.input_tokens is not None and usage.output_tokens is not None
    assert (outcome["cost_micro_usd"] is not None) is is_known
    assert outcome["cost_micro_usd"] != 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", KINDS)
async def test_served(house: House, name: str, streamed: bool) -> None:  # noqa: FBT001
    kind = KINDS[name]
    answer = kind.stream if streamed else kind.whole
    house.provider.script = fixed(b"200 OK", said(answer), b"content-type: " + TYPES[streamed])
    assert (await house.ask(request(house, kind, streamed=streamed))).body == said(answer)
    outcome = await house.outcome()
    assert (outcome["status"], outcome["outcome"]) == (200, "ok")
    counted(outcome, RECORDED[answer][2])
    assert outcome["cost_micro_usd"] > 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", KINDS)
async def test_left_by_the_client(house: House, name: str, streamed: bool) -> None:  # noqa: FBT001
    """What came until then counts, as far as it says; the provider's call ends."""
    kind = KINDS[name]
    sent = said(kind.begun) if streamed else said(kind.whole)[:-20]

    async def go_on(request: Received) -> None:
        request.writer.write(
            STREAM_HEAD + chunk(sent) if streamed else b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(sent) + 20) + sent
        )
        await house.provider.ended.wait()

    house.provider.script = go_on
    connection = await house.connect()
    await connection.send(request(house, kind, streamed=streamed))
    await connection.reader.stream.readuntil(sent[-60:])
    connection.writer.transport.abort()
    await asyncio.wait_for(house.provider.ended.wait(), 5)
    outcome = await house.outcome()
    assert (outcome["status"], outcome["outcome"]) == (200, "aborted")
    counted(outcome, RECORDED[kind.begun][2] if streamed else Usage())


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", KINDS)
async def test_refused_by_the_provider(house: House, name: str, streamed: bool) -> None:  # noqa: FBT001
    kind = KINDS[name]
    house.provider.script = fixed(b"400 Bad Request", said(kind.error), b"content-type: application/json")
    answer = await house.ask(request(house, kind, streamed=streamed))
    assert (answer.status, answer.body) == (400, said(kind.error))
    outcome = await house.outcome()
    assert (outcome["status"], outcome["outcome"]) == (400, "upstream_error")
    counted(outcome, Usage())


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", KINDS)
async def test_cut_off_by_the_provider(house: House, name: str, streamed: bool) -> None:  # noqa: FBT001
    kind = KINDS[name]
    sent = said(kind.begun) if streamed else said(kind.whole)[:-20]

    async def cut(request: Received) -> None:
        request.writer.write(
            STREAM_HEAD + chunk(sent) if streamed else b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(sent) + 20) + sent
        )
        await request.writer.drain()
        request.writer.close()

    house.provider.script = cut
    connection = await house.connect()
    await connection.send(request(house, kind, streamed=streamed))
    assert not (await connection.answer(may_be_cut=True)).is_whole
    outcome = await house.outcome()
    assert (outcome["status"], outcome["outcome"]) == (200, "upstream_error")
    counted(outcome, RECORDED[kind.begun][2] if streamed else Usage())
