"""Which keys the mock accepts, and where."""

from __future__ import annotations

import pytest
from tests.mock.raw import BEARER, CHAT, HI, MESSAGES, X_API_KEY, X_GOOG, ask, request

from keybearer.mock import MockProvider, Options, parse_keys, start
from keybearer.mock.routes import PROVIDERS

BODY = {"model": "mock", "max_tokens": 9, "messages": HI}
GENERATE = "/v1beta/models/mock:generateContent"
CONTENTS = {"contents": [{"parts": [{"text": "hi"}]}]}


@pytest.mark.parametrize(
    ("target", "body", "headers", "status"),
    [
        (CHAT, BODY, BEARER, 200),
        (CHAT, BODY, {}, 401),
        (CHAT, BODY, {"authorization": "Bearer sk-real"}, 401),
        (CHAT, BODY, {"authorization": "Bearer "}, 401),
        (CHAT, BODY, {"authorization": "Basic c2sta2J0ZXN0LW9uZQ=="}, 401),
        (CHAT, BODY, {"x-api-key": "sk-kbtest-one"}, 401),
        (CHAT, BODY, BEARER | {"x-api-key": "sk-kbtest-one"}, 401),
        (CHAT, BODY, BEARER | {"api-key": "sk-kbtest-one"}, 401),
        (CHAT + "?key=kbtest-one", BODY, BEARER, 401),
        (MESSAGES, BODY, X_API_KEY, 200),
        (MESSAGES, BODY, {"anthropic-version": "2023-06-01"}, 401),
        (MESSAGES, BODY, BEARER | {"anthropic-version": "2023-06-01"}, 200),
        (MESSAGES, BODY, BEARER | X_API_KEY, 401),
        (MESSAGES, BODY, X_API_KEY | {"x-goog-api-key": "kbtest-one"}, 401),
        (MESSAGES, BODY, {"x-api-key": "sk-real", "anthropic-version": "2023-06-01"}, 401),
        (MESSAGES, BODY, {"x-api-key": "sk-ant-kbtest-one"}, 400),
        (GENERATE, CONTENTS, X_GOOG, 200),
        (GENERATE, CONTENTS, {}, 403),
        (GENERATE, CONTENTS, BEARER, 401),
        (GENERATE + "?key=AIza-kbtest-one", CONTENTS, {}, 401),
        (GENERATE, CONTENTS, {"x-goog-api-key": "AIza-real"}, 400),
        ("/v1beta/openai/chat/completions", BODY, BEARER, 200),
        ("/v1beta/openai/chat/completions", BODY, X_GOOG, 401),
        ("/xai/v1/chat/completions", BODY, {"authorization": "Bearer xai-real"}, 400),
    ],
)
async def test_a_key_counts_in_the_providers_own_header_only(
    mock_provider: MockProvider, target: str, body: dict[str, object], headers: dict[str, str], status: int
) -> None:
    answer = await ask(mock_provider, request("POST", target, body, headers))
    assert answer.status == status
    assert "sk-real" not in answer.body.decode()
    assert "AIza-real" not in answer.body.decode()


async def test_gemini_calls_an_unknown_key_an_invalid_argument(mock_provider: MockProvider) -> None:
    answer = await ask(mock_provider, request("POST", GENERATE, CONTENTS, {"x-goog-api-key": "AIza-real"}))
    error = answer.json()["error"]
    assert (error["code"], error["status"], error["details"][0]["reason"]) == (400, "INVALID_ARGUMENT", "API_KEY_INVALID")


async def test_geminis_compatible_endpoint_wraps_errors_in_an_array(mock_provider: MockProvider) -> None:
    answer = await ask(
        mock_provider, request("POST", "/v1beta/openai/chat/completions", BODY, {"authorization": "Bearer AIza-real"})
    )
    assert answer.status == 400
    assert answer.json()[0]["error"]["status"] == "INVALID_ARGUMENT"


async def test_given_keys_are_the_only_ones_for_their_provider() -> None:
    provider = await start(options=Options(keys=parse_keys(["openai=kbtest-a", "xai=kbtest-b", "openai=kbtest-c"])))
    for key, status, name in (
        ("kbtest-a", 200, "openai"),
        ("kbtest-c", 200, "openai"),
        ("kbtest-b", 200, "xai"),
        ("kbtest-d", 401, "openai"),
    ):
        answer = await ask(provider, request("POST", CHAT, BODY, {"authorization": f"Bearer {key}"}))
        assert answer.status == status
        assert provider.requests[-1].provider == name
    # The path's prefix decides before the key does; providers without given keys take any test key.
    assert (await ask(provider, request("POST", "/openai" + CHAT, BODY, {"authorization": "Bearer kbtest-b"}))).status == 401
    assert (await ask(provider, request("POST", MESSAGES, BODY, X_API_KEY))).status == 200
    await provider.close()


async def test_the_provider_is_told_by_path_prefix_or_key(mock_provider: MockProvider) -> None:
    for target, key, name in (
        (CHAT, "sk-kbtest-one", "openai"),
        (CHAT, "xai-kbtest-one", "xai"),
        (CHAT, "sk-ant-kbtest-one", "anthropic"),
        ("/xai" + CHAT, "sk-kbtest-one", "xai"),
        ("/api" + CHAT, "sk-or-kbtest-one", "openrouter"),
        ("/v1beta/openai/chat/completions", "AIza-kbtest-one", "gemini"),
    ):
        assert (await ask(mock_provider, request("POST", target, BODY, {"authorization": f"Bearer {key}"}))).status == 200
        assert mock_provider.requests[-1].provider == name


@pytest.mark.parametrize("text", ["openai", "openai=", "nobody=kbtest-a", "=kbtest-a"])
def test_wrong_key_options_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=PROVIDERS[0]):
        parse_keys([text])
