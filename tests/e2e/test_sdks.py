"""The released official SDKs, with nothing changed but base URL and token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types
from tests.e2e.conftest import KEYS, World

QUESTION: Any = [{"role": "user", "content": "What is a keybearer?"}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(autouse=True)
def _forget(world: World) -> None:
    world.provider.forget()


@pytest.fixture
def openai_client(world: World) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{world.server.url}/v1", api_key=world.token, max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(world: World) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=f"{world.server.url}/anthropic", api_key=world.token, max_retries=0) as client:
        yield client


@pytest.fixture
def gemini_client(world: World) -> Iterator[genai.Client]:
    with genai.Client(api_key=world.token, http_options=types.HttpOptions(base_url=f"{world.server.url}/gemini")) as client:
        yield client


def assert_borne(world: World, provider: str, header: str, value: str) -> None:
    """The mock saw exactly the user's key in the provider's own header, and nothing of ours."""
    requests = world.provider.requests()
    assert requests
    for request in requests:
        headers = request["headers"]
        assert headers[header] == value
        carried = [name for name in ("authorization", "x-api-key", "x-goog-api-key", "api-key") if name in headers]
        assert carried == [header]
        assert "cookie" not in headers
        assert not [name for name in headers if name.startswith("x-keybearer")]
        assert "kb_" not in str(request)
        assert KEYS[provider] in value


OURS = {
    "cookie": "keybearer_session=kbtest",
    "x-keybearer-workflow": "wf-7",
    "x-keybearer-node": "ask",
    "x-keybearer-made-up": "1",
}


def test_what_is_for_us_alone_goes_no_further(
    world: World, openai_client: openai.OpenAI, anthropic_client: anthropic.Anthropic, gemini_client: genai.Client
) -> None:
    openai_client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, extra_headers=OURS)
    assert_borne(world, "openai", "authorization", f"Bearer {KEYS['openai']}")
    world.provider.forget()
    anthropic_client.messages.create(model="claude-sonnet-4-6", max_tokens=64, messages=QUESTION, extra_headers=OURS)
    assert_borne(world, "anthropic", "x-api-key", KEYS["anthropic"])
    world.provider.forget()
    config = types.GenerateContentConfig(http_options=types.HttpOptions(headers=OURS))
    gemini_client.models.generate_content(model="gemini-2.5-flash", contents="Hello", config=config)
    assert_borne(world, "gemini", "x-goog-api-key", KEYS["gemini"])


def test_openai_chat(world: World, openai_client: openai.OpenAI) -> None:
    raw = openai_client.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=QUESTION)
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert raw.headers["x-keybearer-key-source"] == "user"
    assert raw.headers["x-keybearer-provider"] == "openai"
    assert raw.headers["x-keybearer-request-id"]
    assert raw.headers["x-keybearer-secret-id"]
    assert_borne(world, "openai", "authorization", f"Bearer {KEYS['openai']}")


def test_openai_streams_and_tools(world: World, openai_client: openai.OpenAI) -> None:
    chunks = list(openai_client.chat.completions.create(model="openai/gpt-4o-mini", messages=QUESTION, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert all(chunk.usage is None for chunk in chunks), "usage was not asked for"
    with_usage = list(
        openai_client.chat.completions.create(
            model="gpt-4o-mini", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    assert with_usage[-1].usage is not None
    called = openai_client.chat.completions.create(
        model="gpt-4o-mini", messages=QUESTION, tools=[{"type": "function", "function": WEATHER}]
    )
    assert called.choices[0].message.tool_calls
    assert called.choices[0].message.tool_calls[0].function.name == "get_weather"  # type: ignore[union-attr]
    assert_borne(world, "openai", "authorization", f"Bearer {KEYS['openai']}")


def test_openai_embeddings_and_models(world: World, openai_client: openai.OpenAI) -> None:
    vectors = openai_client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    assert len(vectors.data) == 2
    assert_borne(world, "openai", "authorization", f"Bearer {KEYS['openai']}")
    names = [model.id for model in openai_client.models.list()]
    assert any(name.startswith("openai/") for name in names)
    assert any(name.startswith("anthropic/") for name in names)


def test_openai_sdk_reaches_other_providers(world: World, openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(model="anthropic/claude-sonnet-4-6", messages=QUESTION)
    assert answer.choices[0].message.content
    answer = openai_client.chat.completions.create(model="gemini/gemini-2.5-flash", messages=QUESTION)
    assert answer.choices[0].message.content
    targets = [request["target"] for request in world.provider.requests()]
    assert targets == ["/anthropic/v1/chat/completions", "/gemini/v1beta/openai/chat/completions"]


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("mock-401", openai.AuthenticationError),
        ("mock-403", openai.PermissionDeniedError),
        ("mock-429", openai.RateLimitError),
        ("mock-500", openai.InternalServerError),
    ],
)
def test_openai_errors_are_the_providers_own(openai_client: openai.OpenAI, model: str, error: type[openai.APIError]) -> None:
    with pytest.raises(error) as caught:
        openai_client.chat.completions.create(model=f"openai/{model}", messages=QUESTION)
    assert "kbtest" not in str(caught.value)


def test_openai_errors_of_the_gateway(world: World, openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="Secrets Vault"):
        openai_client.chat.completions.create(model="xai/grok-4", messages=QUESTION)
    with pytest.raises(openai.NotFoundError, match="provider/model"):
        openai_client.chat.completions.create(model="no-such-model", messages=QUESTION)
    with (
        openai.OpenAI(base_url=f"{world.server.url}/v1", api_key="kb_nonsense", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)
    assert world.provider.requests() == []


def test_anthropic_messages(world: World, anthropic_client: anthropic.Anthropic) -> None:
    answer = anthropic_client.messages.create(model="claude-sonnet-4-6", max_tokens=64, messages=QUESTION)
    assert answer.usage.output_tokens > 0
    with anthropic_client.messages.stream(model="claude-sonnet-4-6", max_tokens=64, messages=QUESTION) as stream:
        assert "".join(stream.text_stream)
    called = anthropic_client.messages.create(
        model="claude-sonnet-4-6", max_tokens=64, messages=QUESTION,
        tools=[{"name": "get_weather", "description": "Weather", "input_schema": WEATHER["parameters"]}],
    )  # fmt: skip
    assert called.stop_reason == "tool_use"
    assert [model.id for model in anthropic_client.models.list()]
    assert_borne(world, "anthropic", "x-api-key", KEYS["anthropic"])


def test_anthropic_under_the_plain_base_url(world: World) -> None:
    with anthropic.Anthropic(base_url=world.server.url, auth_token=world.token, api_key=None, max_retries=0) as client:
        assert client.messages.create(model="claude-sonnet-4-6", max_tokens=64, messages=QUESTION).content
    assert_borne(world, "anthropic", "x-api-key", KEYS["anthropic"])


def test_anthropic_errors(anthropic_client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.RateLimitError) as caught:
        anthropic_client.messages.create(model="mock-429", max_tokens=64, messages=QUESTION)
    assert caught.value.response.headers["retry-after"]
    with pytest.raises(anthropic.BadRequestError):
        anthropic_client.messages.create(model="x" * 10_000, max_tokens=64, messages=QUESTION)


def test_gemini(world: World, gemini_client: genai.Client) -> None:
    answer = gemini_client.models.generate_content(model="gemini-2.5-flash", contents="What is a keybearer?")
    assert answer.text
    assert answer.usage_metadata is not None
    streamed = list(gemini_client.models.generate_content_stream(model="gemini-2.5-flash", contents="Again, please."))
    assert "".join(chunk.text or "" for chunk in streamed)
    called = gemini_client.models.generate_content(
        model="gemini-2.5-flash", contents="Weather?",
        config=types.GenerateContentConfig(
            tools=[types.Tool(function_declarations=[types.FunctionDeclaration(name="get_weather", description="Weather")])],
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        ),
    )  # fmt: skip
    assert called.function_calls
    vectors = gemini_client.models.embed_content(model="gemini-embedding-001", contents=["one", "two"])
    assert vectors.embeddings
    assert list(gemini_client.models.list())
    assert_borne(world, "gemini", "x-goog-api-key", KEYS["gemini"])


def test_gemini_errors(gemini_client: genai.Client) -> None:
    with pytest.raises(genai_errors.ClientError) as caught:
        gemini_client.models.generate_content(model="mock-429", contents="Hello")
    assert caught.value.code == 429


def test_usage_and_cost_are_on_record(world: World, openai_client: openai.OpenAI) -> None:
    raw = openai_client.chat.completions.with_raw_response.create(
        model="gpt-4o-mini", messages=QUESTION, extra_headers={"x-keybearer-workflow": "wf-7", "x-keybearer-node": "ask"}
    )
    request_id = raw.headers["x-keybearer-request-id"]
    record = wait_for_usage(world, request_id)
    assert record["outcome"] == "ok"
    assert record["workflow"] == "wf-7"
    assert record["node"] == "ask"
    usage = raw.parse().usage
    assert usage is not None
    assert record["input_tokens"] == usage.prompt_tokens
    assert record["output_tokens"] == usage.completion_tokens
    assert record["cost_usd"] > 0


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
def test_streamed_usage_is_counted(
    world: World,
    dialect: str,
    openai_client: openai.OpenAI,
    anthropic_client: anthropic.Anthropic,
    gemini_client: genai.Client,
) -> None:
    before = {row["request_id"] for row in world.admin.call("GET", "/usage?limit=200")["items"]}
    if dialect == "openai":
        list(openai_client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, stream=True))
    elif dialect == "anthropic":
        list(anthropic_client.messages.create(model="claude-sonnet-4-6", max_tokens=64, messages=QUESTION, stream=True))
    else:
        list(gemini_client.models.generate_content_stream(model="gemini-2.5-flash", contents="Hello"))
    record = wait_for_usage(world, not_in=before)
    assert record["streamed"]
    assert record["input_tokens"] > 0
    assert record["output_tokens"] > 0
    assert record["cost_usd"] > 0


def wait_for_usage(world: World, request_id: str | None = None, *, not_in: set[str] | None = None) -> dict[str, Any]:
    """The usage record, as soon as its outcome is shipped."""
    import time

    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        rows = world.admin.call("GET", "/usage?limit=200")["items"]
        for row in rows:
            wanted = row["request_id"] == request_id if request_id else row["request_id"] not in (not_in or set())
            if wanted and row["outcome"] != "unknown":
                return dict(row)
        time.sleep(0.05)
    pytest.fail("no usage record arrived")
