"""The official SDKs, straight against the mock: what they understand, a gateway in between must keep."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types

from keybearer.mock import MockProvider

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
FUNCTION = {"name": "forecast", "description": "Tell the weather", "parameters": SCHEMA}


@pytest.fixture
async def openai_client(mock_provider: MockProvider) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=mock_provider.url + "/v1", api_key="sk-kbtest-one", max_retries=0) as client:
        yield client


@pytest.fixture
async def anthropic_client(mock_provider: MockProvider) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=mock_provider.url, api_key="sk-ant-kbtest-one", max_retries=0) as client:
        yield client


@pytest.fixture
async def genai_client(mock_provider: MockProvider) -> AsyncIterator[genai.client.AsyncClient]:
    options = types.HttpOptions(base_url=mock_provider.url)
    client = genai.Client(api_key="AIza-kbtest-one", http_options=options)
    yield client.aio
    await client.aio.aclose()
    client.close()


async def test_openai_chat(openai_client: openai.AsyncOpenAI, mock_provider: MockProvider) -> None:
    answer = await openai_client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Good day"}])
    assert answer.choices[0].message.content == "Mock answer to: Good day"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert mock_provider.requests[-1].header("authorization") == "Bearer sk-kbtest-one"


async def test_openai_streamed_chat(openai_client: openai.AsyncOpenAI) -> None:
    stream = await openai_client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "user", "content": "Good day"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Mock answer to: Good day"
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("streamed", [False, True])
async def test_openai_tools(openai_client: openai.AsyncOpenAI, *, streamed: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "How will it be?"}]
    tools: Any = [{"type": "function", "function": FUNCTION}]
    if streamed:
        async with openai_client.chat.completions.stream(model="mock", messages=messages, tools=tools) as stream:
            choice = (await stream.get_final_completion()).choices[0]
    else:
        choice = (await openai_client.chat.completions.create(model="mock", messages=messages, tools=tools)).choices[0]  # type: ignore[assignment]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    call: Any = choice.message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("forecast", '{"city":"kbtest","days":1}')
    messages += [
        choice.message.model_dump(exclude_none=True, exclude={"parsed"}),
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    last = await openai_client.chat.completions.create(model="mock", messages=messages, tools=tools)
    assert last.choices[0].message.content == "The tool answered: rain"


async def test_openai_responses(openai_client: openai.AsyncOpenAI) -> None:
    answer = await openai_client.responses.create(model="gpt-4o-mini", input="Good day")
    assert answer.output_text == "Mock answer to: Good day"
    async with openai_client.responses.stream(model="gpt-4o-mini", input="Good day") as stream:
        kinds = [event.type async for event in stream]
        streamed = await stream.get_final_response()
    assert streamed.output_text == "Mock answer to: Good day"
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert answer.usage == streamed.usage


async def test_openai_responses_tools(openai_client: openai.AsyncOpenAI) -> None:
    tools: Any = [{"type": "function", "strict": True, **FUNCTION}]
    async with openai_client.responses.stream(model="mock", input="How will it be?", tools=tools) as stream:
        streamed = await stream.get_final_response()
    call: Any = streamed.output[0]
    assert (call.type, call.name, call.arguments) == ("function_call", "forecast", '{"city":"kbtest","days":1}')
    said: Any = [
        {"role": "user", "content": "How will it be?"},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    assert (await openai_client.responses.create(model="mock", input=said, tools=tools)).output_text == "The tool answered: rain"


async def test_structured_output_in_every_dialect(
    openai_client: openai.AsyncOpenAI, anthropic_client: anthropic.AsyncAnthropic, genai_client: genai.client.AsyncClient
) -> None:
    wanted = {"city": "kbtest", "days": 1}
    asked: Any = [{"role": "user", "content": "How will it be?"}]
    described: Any = {"type": "json_schema", "json_schema": {"name": "forecast", "schema": SCHEMA}}
    chat = await openai_client.chat.completions.create(model="mock", messages=asked, response_format=described)
    assert json.loads(chat.choices[0].message.content or "") == wanted
    text: Any = {"format": {"type": "json_schema", "name": "forecast", "schema": SCHEMA}}
    assert json.loads((await openai_client.responses.create(model="mock", input="How?", text=text)).output_text) == wanted
    output: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
    message = await anthropic_client.messages.create(model="mock", max_tokens=64, messages=asked, output_config=output)
    assert message.content[0].type == "text"
    assert json.loads(message.content[0].text) == wanted
    config = types.GenerateContentConfig(response_mime_type="application/json", response_json_schema=SCHEMA)
    content = await genai_client.models.generate_content(model="mock", contents="How?", config=config)
    assert json.loads(content.text or "") == wanted


async def test_openai_completions_embeddings_moderations(openai_client: openai.AsyncOpenAI) -> None:
    completion = await openai_client.completions.create(model="mock", prompt="Good day", max_tokens=2)
    assert (completion.choices[0].text, completion.choices[0].finish_reason) == ("Mock answer ", "length")
    two = await openai_client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    assert [len(entry.embedding) for entry in two.data] == [1536, 1536]
    assert two.data[0].embedding != two.data[1].embedding
    plain = await openai_client.embeddings.create(model="m", input="one", encoding_format="float", dimensions=1536)
    assert plain.data[0].embedding == pytest.approx(two.data[0].embedding, abs=1e-6)
    verdict = await openai_client.moderations.create(input=["flowers", "violence"])
    assert [result.flagged for result in verdict.results] == [False, True]


async def test_openai_models(openai_client: openai.AsyncOpenAI) -> None:
    assert "gpt-4o-mini" in [model.id async for model in openai_client.models.list()]
    assert (await openai_client.models.retrieve("mock-chunks-3")).id == "mock-chunks-3"
    with pytest.raises(openai.NotFoundError):
        await openai_client.models.retrieve("nope")


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("mock-400", openai.BadRequestError),
        ("mock-401", openai.AuthenticationError),
        ("mock-403", openai.PermissionDeniedError),
        ("mock-404", openai.NotFoundError),
        ("mock-429", openai.RateLimitError),
        ("mock-500", openai.InternalServerError),
        ("mock-drop", openai.APIConnectionError),
    ],
)
async def test_openai_errors(openai_client: openai.AsyncOpenAI, model: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await openai_client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])


async def test_openai_error_in_mid_stream(openai_client: openai.AsyncOpenAI) -> None:
    stream = await openai_client.chat.completions.create(
        model="mock-error-3", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    with pytest.raises(openai.APIError, match="overloaded"):
        [chunk async for chunk in stream]


async def test_anthropic_messages(anthropic_client: anthropic.AsyncAnthropic, mock_provider: MockProvider) -> None:
    answer = await anthropic_client.messages.create(
        model="claude-sonnet-5-5", max_tokens=64, messages=[{"role": "user", "content": "Good day"}]
    )
    block = answer.content[0]
    assert block.type == "text"
    assert block.text == "Mock answer to: Good day"
    async with anthropic_client.messages.stream(
        model="claude-sonnet-5-5", max_tokens=64, messages=[{"role": "user", "content": "Good day"}]
    ) as stream:
        assert "".join([text async for text in stream.text_stream]) == block.text
        final = await stream.get_final_message()
    assert (final.usage.input_tokens, final.usage.output_tokens) == (answer.usage.input_tokens, answer.usage.output_tokens)
    # SDK 2.x sends API keys as Bearer.
    assert mock_provider.requests[-1].header("authorization") == "Bearer sk-ant-kbtest-one"


@pytest.mark.parametrize("streamed", [False, True])
async def test_anthropic_tools(anthropic_client: anthropic.AsyncAnthropic, *, streamed: bool) -> None:
    asked: dict[str, Any] = {
        "model": "mock",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": "How will it be?"}],
        "tools": [{"name": "forecast", "input_schema": SCHEMA}],
    }
    if streamed:
        async with anthropic_client.messages.stream(**asked) as stream:
            answer: Any = await stream.get_final_message()
    else:
        answer = await anthropic_client.messages.create(**asked)
    call = answer.content[0]
    assert (answer.stop_reason, call.name, call.input) == ("tool_use", "forecast", {"city": "kbtest", "days": 1})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    asked["messages"] += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    last = await anthropic_client.messages.create(**asked)
    assert last.content[0].text == "The tool answered: rain"


async def test_anthropic_count_and_models(anthropic_client: anthropic.AsyncAnthropic) -> None:
    counted = await anthropic_client.messages.count_tokens(model="mock", messages=[{"role": "user", "content": "Good day"}])
    assert counted.input_tokens > 0
    assert "claude-haiku-4-5" in [model.id async for model in anthropic_client.models.list(limit=1)]
    assert (await anthropic_client.models.retrieve("claude-haiku-4-5")).display_name == "claude-haiku-4-5"


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("mock-401", anthropic.AuthenticationError),
        ("mock-403", anthropic.PermissionDeniedError),
        ("mock-429", anthropic.RateLimitError),
        ("mock-500", anthropic.InternalServerError),
        ("mock-overloaded", anthropic.APIStatusError),
    ],
)
async def test_anthropic_errors(anthropic_client: anthropic.AsyncAnthropic, model: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await anthropic_client.messages.create(model=model, max_tokens=9, messages=[{"role": "user", "content": "hi"}])


async def test_anthropic_error_in_mid_stream(anthropic_client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.APIStatusError, match="verloaded"):
        async with anthropic_client.messages.stream(
            model="mock-error-4", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
        ) as stream:
            await stream.get_final_message()


async def test_gemini_content(genai_client: genai.client.AsyncClient, mock_provider: MockProvider) -> None:
    answer = await genai_client.models.generate_content(model="gemini-2.5-flash", contents="Good day")
    assert answer.text == "Mock answer to: Good day"
    pieces = [
        piece async for piece in await genai_client.models.generate_content_stream(model="gemini-2.5-flash", contents="Good day")
    ]
    assert "".join(piece.text or "" for piece in pieces) == answer.text
    assert pieces[-1].usage_metadata == answer.usage_metadata
    assert mock_provider.requests[-1].header("x-goog-api-key") == "AIza-kbtest-one"


async def test_gemini_tools(genai_client: genai.client.AsyncClient) -> None:
    declaration = types.FunctionDeclaration(name="forecast", parameters_json_schema=SCHEMA)
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[declaration])],
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )
    answer = await genai_client.models.generate_content(model="mock", contents="How will it be?", config=config)
    assert answer.function_calls is not None
    call = answer.function_calls[0]
    assert (call.name, call.args) == ("forecast", {"city": "kbtest", "days": 1})
    assert answer.candidates is not None
    assert answer.candidates[0].content is not None
    result = types.Part.from_function_response(name="forecast", response={"result": "rain"})
    contents: Any = [
        types.Content(role="user", parts=[types.Part.from_text(text="How will it be?")]),
        answer.candidates[0].content,
        types.Content(role="user", parts=[result]),
    ]
    last = await genai_client.models.generate_content(model="mock", contents=contents, config=config)
    assert last.text == 'The tool answered: {"result":"rain"}'


async def test_gemini_embeddings_count_and_models(genai_client: genai.client.AsyncClient) -> None:
    embedded = await genai_client.models.embed_content(model="text-embedding-004", contents=["one", "two"])
    assert embedded.embeddings is not None
    assert [len(entry.values or ()) for entry in embedded.embeddings] == [768, 768]
    assert (await genai_client.models.count_tokens(model="gemini-2.5-flash", contents="Good day")).total_tokens
    assert "models/gemini-2.5-flash" in [model.name async for model in await genai_client.models.list(config={"page_size": 2})]
    assert (await genai_client.models.get(model="gemini-2.5-pro")).name == "models/gemini-2.5-pro"


@pytest.mark.parametrize(("model", "code"), [("mock-401", 401), ("mock-403", 403), ("mock-429", 429), ("mock-500", 500)])
async def test_gemini_errors(genai_client: genai.client.AsyncClient, model: str, code: int) -> None:
    with pytest.raises(genai_errors.APIError) as caught:
        await genai_client.models.generate_content(model=model, contents="hi")
    assert caught.value.code == code


async def test_the_openai_sdk_on_the_compatible_endpoints(mock_provider: MockProvider) -> None:
    for path, key in (
        ("/v1beta/openai/", "AIza-kbtest"),
        ("/anthropic/v1/", "sk-ant-kbtest-"),
        ("/api/v1", "sk-or-kbtest-"),
        ("/xai/v1", "xai-kbtest-"),
    ):
        async with openai.AsyncOpenAI(base_url=mock_provider.url + path, api_key=key + "-one", max_retries=0) as client:
            answer = await client.chat.completions.create(model="mock", messages=[{"role": "user", "content": "Good day"}])
            assert answer.choices[0].message.content == "Mock answer to: Good day"
            assert [model async for model in client.models.list()]
            with pytest.raises(openai.RateLimitError):
                await client.chat.completions.create(model="mock-429", messages=[{"role": "user", "content": "hi"}])
