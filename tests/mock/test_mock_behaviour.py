"""Misbehaviour on demand, told by the model's name or the key."""

from __future__ import annotations

import asyncio
import json
import time
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from tests.mock.raw import BEARER, HI, MESSAGES, X_API_KEY, X_GOOG, Answer, ask, chat, connect, request

from keybearer.mock import MockProvider
from keybearer.mock.behaviour import PLAIN, Behaviour, BehaviourError, of_key, of_model

GENERATE = "/v1beta/models/{}:generateContent"
CONTENTS = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
OPENROUTER = "/api/v1/chat/completions"


@pytest.mark.parametrize(
    ("model", "behaviour"),
    [
        ("gpt-4o-mini", PLAIN),
        ("mock", PLAIN),
        ("hammock-429", PLAIN),
        ("mock-429", Behaviour(status=429)),
        ("openai/mock-429-retry-7s-date", Behaviour(status=429, retry_after=7, retry_form="date")),
        ("gpt-4o-mock-chunks-200-pace-20ms", Behaviour(chunks=200, pace=0.02)),
        ("mock-slow-1.5s-cut-5", Behaviour(slow=1.5, cut_after=5)),
        ("mock-echo", Behaviour(status=401, echo_key=True)),
        ("mock-echo-500", Behaviour(status=500, echo_key=True)),
    ],
)
def test_words_of_a_model_name(model: str, behaviour: Behaviour) -> None:
    assert of_model(model) == behaviour


@pytest.mark.parametrize(
    "model", ["mock-fast", "mock-cut", "mock-cut-x", "mock-slow-2", "mock-slow-601s", "mock-99", "mock-200", "mock-"]
)
def test_words_that_mean_nothing_are_refused(model: str) -> None:
    if model == "mock-":
        assert of_model(model) is PLAIN
    else:
        with pytest.raises(BehaviourError):
            of_model(model)


def test_a_key_may_ask() -> None:
    assert of_key("sk-kbtest-mock-402") == Behaviour(status=402)
    assert of_key("sk-kbtest-mocking") is PLAIN


async def say(provider: MockProvider, dialect: str, model: str, **more: Any) -> Answer:
    """The same question in a dialect."""
    match dialect:
        case "anthropic":
            body = {"model": model, "max_tokens": 50, "messages": HI} | more
            return await ask(provider, request("POST", MESSAGES, body, X_API_KEY))
        case "gemini":
            return await ask(provider, request("POST", GENERATE.format(model), CONTENTS | more, X_GOOG))
        case "openrouter":
            return await ask(provider, request("POST", OPENROUTER, {"model": model, "messages": HI} | more, BEARER))
        case _:
            return await ask(provider, chat(model, **more))


@pytest.mark.parametrize(
    ("dialect", "model", "status", "path", "value"),
    [
        ("openai", "mock-401", 401, ("error", "code"), "invalid_api_key"),
        ("openai", "mock-403", 403, ("error", "type"), "invalid_request_error"),
        ("openai", "mock-404", 404, ("error", "code"), "model_not_found"),
        ("openai", "mock-429", 429, ("error", "code"), "rate_limit_exceeded"),
        ("openai", "mock-quota", 429, ("error", "code"), "insufficient_quota"),
        ("openai", "mock-500", 500, ("error", "type"), "server_error"),
        ("openai", "mock-overloaded", 503, ("error", "type"), "server_error"),
        ("anthropic", "mock-401", 401, ("error", "type"), "authentication_error"),
        ("anthropic", "mock-402", 402, ("error", "type"), "billing_error"),
        ("anthropic", "mock-403", 403, ("error", "type"), "permission_error"),
        ("anthropic", "mock-404", 404, ("error", "type"), "not_found_error"),
        ("anthropic", "mock-429", 429, ("error", "type"), "rate_limit_error"),
        ("anthropic", "mock-quota", 400, ("error", "type"), "invalid_request_error"),
        ("anthropic", "mock-500", 500, ("error", "type"), "api_error"),
        ("anthropic", "mock-overloaded", 529, ("error", "type"), "overloaded_error"),
        ("gemini", "mock-401", 401, ("error", "status"), "UNAUTHENTICATED"),
        ("gemini", "mock-403", 403, ("error", "status"), "PERMISSION_DENIED"),
        ("gemini", "mock-429", 429, ("error", "status"), "RESOURCE_EXHAUSTED"),
        ("gemini", "mock-500", 500, ("error", "status"), "INTERNAL"),
        ("gemini", "mock-overloaded", 503, ("error", "status"), "UNAVAILABLE"),
        ("openrouter", "mock-402", 402, ("error", "code"), 402),
        ("openrouter", "mock-quota", 402, ("error", "code"), 402),
        ("openai", "mock-what", 404, ("error", "code"), "model_not_found"),
    ],
)
async def test_errors_in_each_native_shape(
    mock_provider: MockProvider, dialect: str, model: str, status: int, path: tuple[str, str], value: Any
) -> None:
    answer = await say(mock_provider, dialect, model)
    assert answer.status == status
    assert answer.json()[path[0]][path[1]] == value


async def test_retry_after_in_every_form(mock_provider: MockProvider) -> None:
    native = await say(mock_provider, "openai", "mock-429-retry-7s")
    assert (native.header("retry-after"), native.header("retry-after-ms")) == ("7", "7000")
    assert (await say(mock_provider, "anthropic", "mock-429-retry-7s")).header("retry-after") == "7"
    google = await say(mock_provider, "gemini", "mock-429-retry-7s")
    assert google.header("retry-after") is None
    assert google.json()["error"]["details"][0]["retryDelay"] == "7s"
    dated = (await say(mock_provider, "openai", "mock-429-retry-60s-date")).header("retry-after")
    assert dated is not None
    assert 55 < parsedate_to_datetime(dated).timestamp() - time.time() <= 60
    milliseconds = await say(mock_provider, "openai", "mock-429-retry-1.5s-ms")
    assert (milliseconds.header("retry-after"), milliseconds.header("retry-after-ms")) == (None, "1500")
    assert (await say(mock_provider, "anthropic", "mock-503-seconds")).header("retry-after") == "1"
    assert (await say(mock_provider, "openai", "mock-429-none")).header("retry-after") is None


async def test_an_error_echoes_the_key(mock_provider: MockProvider) -> None:
    answer = await say(mock_provider, "openai", "mock-echo")
    assert answer.status == 401
    assert "sk-kbtest-one" in answer.json()["error"]["message"]
    assert answer.header("x-echoed-credential") == "sk-kbtest-one"


async def test_a_slow_first_byte(mock_provider: MockProvider) -> None:
    begun = time.monotonic()
    assert (await say(mock_provider, "openai", "mock-slow-200ms")).status == 200
    assert time.monotonic() - begun >= 0.2


async def test_a_paced_stream_has_its_chunks_in_time(mock_provider: MockProvider) -> None:
    begun = time.monotonic()
    answer = await say(mock_provider, "openai", "mock-chunks-20-pace-10ms", stream=True)
    # The role before, the finish and [DONE] after; the last chunk ends the stream.
    assert len(answer.chunks) == 23
    assert 0.2 <= time.monotonic() - begun < 2


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "openrouter"])
async def test_streams_are_cut_after_whole_events(mock_provider: MockProvider, dialect: str) -> None:
    answer = await say(mock_provider, dialect, "mock-chunks-20-cut-5", stream=True)
    assert not answer.is_complete
    assert len(answer.chunks) == 5
    assert all(chunk.endswith(b"\n\n") for chunk in answer.chunks)


async def test_a_stream_is_cut_in_the_middle_of_json(mock_provider: MockProvider) -> None:
    answer = await say(mock_provider, "openai", "mock-cutjson", stream=True)
    assert not answer.is_complete
    assert answer.chunks[-1].startswith(b'data: {"id"')
    assert not answer.chunks[-1].endswith(b"\n\n")


@pytest.mark.parametrize("model", ["mock-cutjson", "mock-cut-5"])
async def test_a_body_is_cut_in_the_middle(mock_provider: MockProvider, model: str) -> None:
    answer = await say(mock_provider, "gemini", model)
    assert not answer.is_complete
    assert 0 < len(answer.body) < int(answer.header("content-length") or 0)


async def test_a_stream_is_reset(mock_provider: MockProvider) -> None:
    wire = await connect(mock_provider)
    wire.send(chat("mock-chunks-20-reset-5", stream=True))
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(wire.reader.readuntil(b"[DONE]"), 10)
    wire.writer.transport.abort()


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_stalls_until_the_client_leaves(mock_provider: MockProvider, *, stream: bool) -> None:
    wire = await connect(mock_provider)
    wire.send(chat("mock-stall-2", stream=stream))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wire.answer(), 0.3)
    assert mock_provider.requests[-1].outcome == "answering"
    await wire.close()


@pytest.mark.parametrize(
    ("dialect", "marker"),
    [("openai", b'"error":{"message"'), ("anthropic", b"event: error\ndata: "), ("openrouter", b'"code":503')],
)
async def test_an_error_event_in_mid_stream(mock_provider: MockProvider, dialect: str, marker: bytes) -> None:
    answer = await say(mock_provider, dialect, "mock-chunks-20-error-5", stream=True)
    assert answer.status == 200
    assert len(answer.chunks) == 6
    assert marker in answer.chunks[-1]


@pytest.mark.parametrize("after", [0, 3])
async def test_an_error_in_a_gemini_array_leaves_valid_json(mock_provider: MockProvider, after: int) -> None:
    target = f"/v1beta/models/mock-chunks-9-error-{after}:streamGenerateContent"
    answer = await ask(mock_provider, request("POST", target, CONTENTS, X_GOOG))
    assert answer.json()[after]["error"]["status"] == "UNAVAILABLE"


async def test_malformed_json(mock_provider: MockProvider) -> None:
    answer = await say(mock_provider, "openai", "mock-badjson")
    assert answer.is_complete
    with pytest.raises(json.JSONDecodeError):
        answer.json()
    streamed = await say(mock_provider, "openai", "mock-badjson", stream=True)
    broken = [chunk for chunk in streamed.chunks[:-1] if not _parses(chunk)]
    assert len(broken) == 1
    assert streamed.chunks[-1].endswith(b"[DONE]\n\n")


def _parses(event: bytes) -> bool:
    try:
        json.loads(event.removeprefix(b"data: "))
    except json.JSONDecodeError:
        return False
    return True


async def test_no_http_and_no_answer_at_all(mock_provider: MockProvider) -> None:
    for model, first in (("mock-badhttp", b"HTTP/1.1 two"), ("mock-drop", b"")):
        wire = await connect(mock_provider)
        wire.send(chat(model))
        assert (await asyncio.wait_for(wire.reader.read(), 5)).startswith(first)
        await wire.close()


async def test_a_redirect_leads_to_where_following_it_is_seen(mock_provider: MockProvider) -> None:
    answer = await say(mock_provider, "openai", "mock-redirect")
    assert answer.status == 307
    assert answer.header("location") == "http://mock.test/_mock/redirected"
    await ask(mock_provider, request("POST", "/_mock/redirected", {}, BEARER))
    assert mock_provider.requests[-1].target == "/_mock/redirected"


async def test_cookies_and_forged_headers(mock_provider: MockProvider) -> None:
    answer = await say(mock_provider, "openai", "mock-cookie", stream=True)
    assert answer.status == 200
    assert "kbtest-cookie" in (answer.header("set-cookie") or "")
    assert answer.header("x-keybearer-key-source") == "forged"


async def test_calls_without_a_model_are_told_by_the_key(mock_provider: MockProvider) -> None:
    for key, status in (("sk-kbtest-mock-402", 402), ("sk-kbtest-mock-403", 403), ("sk-kbtest-fine", 200)):
        answer = await ask(mock_provider, request("GET", "/v1/models", headers={"authorization": f"Bearer {key}"}))
        assert answer.status == status


async def test_sizes_and_usage_on_demand(mock_provider: MockProvider) -> None:
    answer = (await say(mock_provider, "openai", "mock-size-5000-chunks-40-cached-3-reasoning-7")).json()
    assert len(answer["choices"][0]["message"]["content"]) == 5000
    usage = answer["usage"]
    assert usage["completion_tokens"] == 47
    assert usage["prompt_tokens_details"]["cached_tokens"] == 3
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 7
    assert usage["total_tokens"] == usage["prompt_tokens"] + 47
