"""Pydantic AI: agents by chat completions, by responses and by Anthropic's messages, and its embedder."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel
from pydantic_ai import Agent, Embedder, NativeOutput
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from tests.e2e.frameworks.driving import CHAT, CLAUDE, QUESTION, VECTORS, Gateway, drive


class Forecast(BaseModel):
    city: str
    days: int


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"Sunny in {city}"


def _provider(gateway: Gateway) -> OpenAIProvider:
    return OpenAIProvider(base_url=gateway.openai, api_key=gateway.token)


def _chat(gateway: Gateway, model: str = CHAT) -> Model:
    return OpenAIChatModel(model, provider=_provider(gateway))


def _responses(gateway: Gateway) -> Model:
    return OpenAIResponsesModel(CHAT, provider=_provider(gateway))


def _anthropic(gateway: Gateway) -> Model:
    return AnthropicModel(CLAUDE, provider=AnthropicProvider(base_url=gateway.anthropic, api_key=gateway.token))


def _asked(model: Model) -> object:
    done = Agent(model).run_sync(QUESTION)
    return {"text": done.output, "tokens": [done.usage.input_tokens, done.usage.output_tokens]}


def _streamed(model: Model) -> object:
    async def pieces() -> list[str]:
        async with Agent(model).run_stream(QUESTION) as run:
            return [piece async for piece in run.stream_text(delta=True, debounce_by=None)]

    return "".join(asyncio.run(pieces()))


def _with_tools(model: Model) -> object:
    return Agent(model, tools=[get_weather]).run_sync("How is the weather?").output


def chat(gateway: Gateway) -> object:
    return _asked(_chat(gateway))


def streamed(gateway: Gateway) -> object:
    return _streamed(_chat(gateway))


def tools(gateway: Gateway) -> object:
    return _with_tools(_chat(gateway))


def structured(gateway: Gateway) -> object:
    """By a tool, as is this framework's way, and by the provider's own means."""
    by_tool = Agent(_chat(gateway), output_type=Forecast).run_sync(QUESTION).output
    native = Agent(_chat(gateway), output_type=NativeOutput(Forecast)).run_sync(QUESTION).output
    return [by_tool.model_dump(), native.model_dump()]


def responses(gateway: Gateway) -> object:
    return _asked(_responses(gateway))


def responses_streamed(gateway: Gateway) -> object:
    return _streamed(_responses(gateway))


def responses_tools(gateway: Gateway) -> object:
    return _with_tools(_responses(gateway))


def responses_structured(gateway: Gateway) -> object:
    return Agent(_responses(gateway), output_type=NativeOutput(Forecast)).run_sync(QUESTION).output.model_dump()


def anthropic(gateway: Gateway) -> object:
    return _asked(_anthropic(gateway))


def anthropic_streamed(gateway: Gateway) -> object:
    return _streamed(_anthropic(gateway))


def anthropic_tools(gateway: Gateway) -> object:
    return _with_tools(_anthropic(gateway))


def embeddings(gateway: Gateway) -> object:
    model = OpenAIEmbeddingModel(VECTORS, provider=_provider(gateway))
    return [len(vector) for vector in Embedder(model).embed_documents_sync(["one", "two"]).embeddings]


if __name__ == "__main__":
    drive(
        lambda gateway, model: _asked(_chat(gateway, model)),
        chat,
        streamed,
        tools,
        structured,
        responses,
        responses_streamed,
        responses_tools,
        responses_structured,
        anthropic,
        anthropic_streamed,
        anthropic_tools,
        embeddings,
    )
