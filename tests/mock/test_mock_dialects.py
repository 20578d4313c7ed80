"""What no SDK test shows: odd requests, provider differences, paths that collide."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.mock.raw import BEARER, CHAT, HI, MESSAGES, X_API_KEY, X_GOOG, ask, chat, request

from keybearer.mock import MockProvider

GENERATE = "/v1beta/models/mock:generateContent"


async def test_models_under_one_path_in_three_dialects(mock_provider: MockProvider) -> None:
    for headers, key in ((BEARER, "object"), (X_API_KEY, "has_more"), (X_GOOG, "models")):
        assert key in (await ask(mock_provider, request("GET", "/v1/models", headers=headers))).json()


async def test_lists_in_pages(mock_provider: MockProvider) -> None:
    first = (await ask(mock_provider, request("GET", "/v1/models?limit=2", headers=X_API_KEY))).json()
    assert (len(first["data"]), first["has_more"]) == (2, True)
    rest = (await ask(mock_provider, request("GET", f"/v1/models?after_id={first['last_id']}", headers=X_API_KEY))).json()
    assert not {entry["id"] for entry in first["data"]} & {entry["id"] for entry in rest["data"]}
    page = (await ask(mock_provider, request("GET", "/v1beta/models?pageSize=3", headers=X_GOOG))).json()
    assert (len(page["models"]), page["nextPageToken"]) == (3, "3")
    assert (await ask(mock_provider, request("GET", f"/v1/models?limit={'9' * 5000}", headers=X_API_KEY))).status == 400


async def test_openrouter_has_its_key_endpoint_and_a_public_list(mock_provider: MockProvider) -> None:
    assert (await ask(mock_provider, request("GET", "/api/v1/models"))).status == 200
    assert (await ask(mock_provider, request("GET", "/api/v1/key"))).status == 401
    answer = await ask(mock_provider, request("GET", "/api/v1/key", headers=BEARER))
    assert answer.json()["data"]["limit_remaining"] == 9.75


async def test_openrouter_streams_begin_with_comments_and_end_with_usage_and_cost(mock_provider: MockProvider) -> None:
    answer = await ask(mock_provider, request("POST", "/api" + CHAT, {"model": "mock", "messages": HI, "stream": True}, BEARER))
    assert answer.chunks[0].startswith(b": OPENROUTER")
    usage = json.loads(answer.chunks[-2].removeprefix(b"data: "))["usage"]
    assert usage["cost"] > 0


async def test_xai_leaves_reasoning_out_of_completion_tokens(mock_provider: MockProvider) -> None:
    body = {"model": "mock-chunks-10-reasoning-30", "messages": HI}
    usage = (await ask(mock_provider, request("POST", "/xai" + CHAT, body, BEARER))).json()["usage"]
    assert usage["completion_tokens"] == 10
    assert usage["total_tokens"] == usage["prompt_tokens"] + 40


async def test_usage_of_a_stream_is_sent_only_if_asked_for(mock_provider: MockProvider) -> None:
    silent = await ask(mock_provider, chat("mock", stream=True))
    assert b"usage" not in silent.body
    asked = await ask(mock_provider, chat("mock", stream=True, stream_options={"include_usage": True}))
    chunks = [json.loads(chunk.removeprefix(b"data: ")) for chunk in asked.chunks[:-1]]
    assert [chunk["usage"] is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1]["choices"] == []


async def test_anthropic_leaves_cached_tokens_out_of_input_tokens(mock_provider: MockProvider) -> None:
    body = {"model": "mock", "max_tokens": 9, "messages": [{"role": "user", "content": "x" * 4000}]}
    usage = (await ask(mock_provider, request("POST", MESSAGES, body, X_API_KEY))).json()["usage"]
    counted = await ask(mock_provider, request("POST", MESSAGES + "/count_tokens", body, X_API_KEY))
    parts = usage["input_tokens"], usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    assert all(parts)
    assert sum(parts) == counted.json()["input_tokens"]


async def test_a_gemini_stream_is_an_array_or_events(mock_provider: MockProvider) -> None:
    contents = {"contents": [{"parts": [{"text": "hi"}]}]}
    target = "/v1beta/models/mock-chunks-6:streamGenerateContent"
    array = await ask(mock_provider, request("POST", target, contents, X_GOOG))
    assert len(array.json()) == 6
    events = await ask(mock_provider, request("POST", target + "?alt=sse", contents, X_GOOG))
    assert [json.loads(chunk.removeprefix(b"data: ")) for chunk in events.chunks] == array.json()
    assert all(chunk.endswith(b"\r\n\r\n") for chunk in events.chunks)


@pytest.mark.parametrize(
    ("target", "body", "headers"),
    [
        (CHAT, b"{", BEARER),
        (CHAT, b"[]", BEARER),
        (CHAT, b'{"model":"mock","messages":[' + b"[" * 100_000, BEARER),
        (CHAT, {"messages": HI}, BEARER),
        (CHAT, {"model": "mock"}, BEARER),
        (CHAT, {"model": "mock", "messages": []}, BEARER),
        (CHAT, {"model": "mock", "messages": ["hi"]}, BEARER),
        ("/v1/responses", {"model": "mock"}, BEARER),
        ("/v1/embeddings", {"model": "mock"}, BEARER),
        ("/v1/embeddings", {"model": "mock", "input": "hi", "dimensions": 0}, BEARER),
        ("/v1/moderations", {"model": "mock"}, BEARER),
        (MESSAGES, {"model": "mock", "messages": HI}, X_API_KEY),
        (MESSAGES, {"model": "mock", "max_tokens": 9}, X_API_KEY),
        (GENERATE, {}, X_GOOG),
        (GENERATE, {"contents": ["hi"]}, X_GOOG),
        ("/v1beta/models/mock:embedContent", {}, X_GOOG),
        ("/v1beta/models/mock:batchEmbedContents", {"requests": []}, X_GOOG),
    ],
)
async def test_wrong_bodies_are_refused(mock_provider: MockProvider, target: str, body: Any, headers: dict[str, str]) -> None:
    answer = await ask(mock_provider, request("POST", target, body, headers))
    assert answer.status == 400
    assert "error" in answer.json()


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/nothing", 404),
        ("GET", "/", 404),
        ("GET", "/v1/models/nope", 404),
    ],
)
async def test_wrong_methods_and_paths(mock_provider: MockProvider, method: str, target: str, status: int) -> None:
    assert (await ask(mock_provider, request(method, target, headers=BEARER))).status == status


async def test_another_content_type_is_refused(mock_provider: MockProvider) -> None:
    headers = BEARER | {"content-type": "text/plain"}
    assert (await ask(mock_provider, request("POST", CHAT, {"model": "mock", "messages": HI}, headers))).status == 415
