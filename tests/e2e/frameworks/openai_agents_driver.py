"""OpenAI Agents: by responses, its default, and by chat completions."""

from __future__ import annotations

import asyncio

from agents import Agent, Model, ModelSettings, OpenAIChatCompletionsModel, OpenAIProvider, Runner, function_tool
from agents.run import RunConfig
from openai import AsyncOpenAI
from pydantic import BaseModel
from tests.e2e.frameworks.driving import CHAT, QUESTION, Gateway, drive


class Forecast(BaseModel):
    city: str
    days: int


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"Sunny in {city}"


def _client(gateway: Gateway) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=gateway.openai, api_key=gateway.token, max_retries=0)


def _config(gateway: Gateway) -> RunConfig:
    return RunConfig(model_provider=OpenAIProvider(openai_client=_client(gateway)))


def _asked(gateway: Gateway, model: str | Model = CHAT) -> object:
    agent = Agent(name="keybearer", instructions="Be brief.", model=model)
    done = Runner.run_sync(agent, QUESTION, run_config=_config(gateway))
    usage = done.context_wrapper.usage
    return {"text": done.final_output, "tokens": [usage.input_tokens, usage.output_tokens]}


def _streamed(gateway: Gateway, model: str | Model = CHAT) -> object:
    async def pieces() -> list[str]:
        agent = Agent(name="keybearer", model=model, model_settings=ModelSettings(include_usage=True))
        run = Runner.run_streamed(agent, QUESTION, run_config=_config(gateway))
        found = [event.data async for event in run.stream_events() if event.type == "raw_response_event"]
        return [piece.delta for piece in found if piece.type == "response.output_text.delta"]

    return "".join(asyncio.run(pieces()))


def _with_tools(gateway: Gateway, model: str | Model = CHAT) -> object:
    agent = Agent(name="keybearer", model=model, tools=[get_weather])
    return Runner.run_sync(agent, "How is the weather?", run_config=_config(gateway)).final_output


def _structured(gateway: Gateway, model: str | Model = CHAT) -> object:
    agent = Agent(name="keybearer", model=model, output_type=Forecast)
    return Runner.run_sync(agent, QUESTION, run_config=_config(gateway)).final_output_as(Forecast).model_dump()


def _completions(gateway: Gateway, model: str = CHAT) -> Model:
    return OpenAIChatCompletionsModel(model, _client(gateway))


def responses(gateway: Gateway) -> object:
    return _asked(gateway)


def responses_streamed(gateway: Gateway) -> object:
    return _streamed(gateway)


def responses_tools(gateway: Gateway) -> object:
    return _with_tools(gateway)


def responses_structured(gateway: Gateway) -> object:
    return _structured(gateway)


def chat(gateway: Gateway) -> object:
    return _asked(gateway, _completions(gateway))


def streamed(gateway: Gateway) -> object:
    return _streamed(gateway, _completions(gateway))


def tools(gateway: Gateway) -> object:
    return _with_tools(gateway, _completions(gateway))


def structured(gateway: Gateway) -> object:
    return _structured(gateway, _completions(gateway))


if __name__ == "__main__":
    drive(
        _asked,
        responses,
        responses_streamed,
        responses_tools,
        responses_structured,
        chat,
        streamed,
        tools,
        structured,
    )
