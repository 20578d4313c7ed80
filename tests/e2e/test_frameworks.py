"""The frameworks people build on, as released, with nothing changed but base URL and token. What each does is in `frameworks/`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.e2e.conftest import KEYS, World
from tests.support.frameworks import ENVIRONMENTS, Driven, drive

SAID = "Mock answer to: What is a keybearer?"
FORECAST = {"city": "kbtest", "days": 1}
USED = {"tool": "get_weather", "answer": "The tool answered: Sunny in kbtest"}
LAST = "The tool answered: Sunny in kbtest"
CALLED = ["get_weather", "Sunny in kbtest"]
VECTORS = [1536, 1536]

# What each case returns; of `{"text", "tokens"}` the text.
EXPECTED: dict[str, dict[str, Any]] = {
    "langchain": {
        "chat": SAID,
        "streamed": SAID,
        "tools": USED,
        "structured": FORECAST,
        "responses": SAID,
        "responses_streamed": SAID,
        "responses_tools": USED,
        "embeddings": VECTORS,
        "anthropic": SAID,
        "anthropic_streamed": SAID,
        "anthropic_tools": USED,
        "anthropic_structured": FORECAST,
    },
    "pydantic_ai": {
        "chat": SAID,
        "streamed": SAID,
        "tools": LAST,
        "structured": [FORECAST, FORECAST],
        "responses": SAID,
        "responses_streamed": SAID,
        "responses_tools": LAST,
        "responses_structured": FORECAST,
        "embeddings": VECTORS,
        "anthropic": SAID,
        "anthropic_streamed": SAID,
        "anthropic_tools": LAST,
    },
    "openai_agents": {
        "responses": SAID,
        "responses_streamed": SAID,
        "responses_tools": LAST,
        "responses_structured": FORECAST,
        "chat": SAID,
        "streamed": SAID,
        "tools": LAST,
        "structured": FORECAST,
    },
    "litellm": {
        "chat": SAID,
        "another_provider": SAID,
        "streamed": SAID,
        "tools": USED,
        "structured": FORECAST,
        "responses": SAID,
        "responses_streamed": SAID,
        "embeddings": VECTORS,
        "anthropic": SAID,
        "anthropic_streamed": SAID,
        "anthropic_tools": USED,
    },
    "llama_index": {
        "chat": SAID,
        "streamed": SAID,
        "tools": CALLED,
        "structured": FORECAST,
        "like": SAID,
        "like_streamed": SAID,
        "like_tools": CALLED,
        "responses": SAID,
        "responses_streamed": SAID,
        "embeddings": VECTORS,
    },
    "instructor": {
        "tools": FORECAST,
        "structured": FORECAST,
        "streamed": FORECAST,
        "responses": FORECAST,
        "anthropic": FORECAST,
    },
}
# Cases that every framework must end in an error of: the status it shows, and words of the answer that it passes on.
REFUSED = {
    "wrong_token": (401, "The access token is not valid"),
    "unknown_model": (404, "provider/model"),
    "limited": (429, "Rate limit reached"),
}
BORNE = {
    "openai": ("authorization", f"Bearer {KEYS['openai']}"),
    "anthropic": ("x-api-key", KEYS["anthropic"]),
    "gemini": ("authorization", f"Bearer {KEYS['gemini']}"),  # its OpenAI-compatible endpoint
}
CARRIERS = ("authorization", "x-api-key", "x-goog-api-key", "api-key")


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def framework(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def driven(framework: str, world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Driven, list[dict[str, Any]]]:
    """What a framework got, and what the provider was sent meanwhile."""
    world.provider.forget()
    found = drive(framework, world.server.url, world.token, tmp_path_factory.mktemp(framework))
    return found, world.provider.requests()


def test_it_gets_what_it_asks_for(framework: str, driven: tuple[Driven, list[dict[str, Any]]]) -> None:
    cases = driven[0].cases
    assert set(cases) == set(EXPECTED[framework]) | set(REFUSED)
    failed = {name: found["raised"] for name, found in cases.items() if name not in REFUSED and "raised" in found}
    assert not failed
    returned = {name: cases[name]["returned"] for name in EXPECTED[framework]}
    texts = {name: each["text"] if isinstance(each, dict) and "text" in each else each for name, each in returned.items()}
    assert texts == EXPECTED[framework]
    for each in returned.values():
        if isinstance(each, dict) and "tokens" in each:
            counts = each["tokens"].values() if isinstance(each["tokens"], dict) else each["tokens"]
            assert all(count > 0 for count in counts if isinstance(count, int))


def test_it_shows_what_went_wrong(driven: tuple[Driven, list[dict[str, Any]]]) -> None:
    for name, (status, words) in REFUSED.items():
        raised = driven[0].cases[name]["raised"]
        assert raised["status"] == status, raised
        assert words in raised["text"], raised
        assert all(key not in raised["text"] for key in KEYS.values())


def test_the_provider_sees_the_users_key_and_nothing_of_ours(driven: tuple[Driven, list[dict[str, Any]]]) -> None:
    _, requests = driven
    assert requests
    for request in requests:
        header, value = BORNE[request["provider"]]
        assert [name for name in CARRIERS if name in request["headers"]] == [header]
        assert request["headers"][header] == value
        assert "cookie" not in request["headers"]
        assert not [name for name in request["headers"] if name.startswith("x-keybearer")]
        assert "kb_" not in str(request)


def test_each_way_of_asking_was_taken(framework: str, driven: tuple[Driven, list[dict[str, Any]]]) -> None:
    """Streams were streams, tools were offered, and who is not let in is not passed on."""
    found, requests = driven
    bodies = [json.loads(request["body"]) for request in requests]
    streams = sum(body.get("stream") is True for body in bodies)
    assert streams >= len([name for name in found.cases if "streamed" in name])
    assert any(body.get("tools") for body in bodies)
    targets = {request["target"].partition("?")[0] for request in requests}
    wanted = {"/openai/v1/chat/completions", "/openai/v1/responses"}
    wanted |= {"/openai/v1/embeddings"} if "embeddings" in found.cases else set()
    wanted |= {"/anthropic/v1/messages"} if "anthropic" in found.cases else set()
    wanted |= {"/gemini/v1beta/openai/chat/completions"} if "another_provider" in found.cases else set()
    assert targets == wanted
    assert "no-such-model" not in {body.get("model") for body in bodies}
    if framework == "langchain":
        (vectors,) = [body for body in bodies if "embedding" in body["model"]]
        assert all(isinstance(token, int) for text in vectors["input"] for token in text), "it sends tokens, not texts"


def test_it_calls_nobody_else(driven: tuple[Driven, list[dict[str, Any]]]) -> None:
    assert driven[0].strangers == []
