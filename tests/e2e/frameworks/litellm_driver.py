"""LiteLLM as a client: as OpenAI (chat, responses, embeddings), as Anthropic, and as Gemini."""

from __future__ import annotations

import json
from typing import Any

import litellm
from pydantic import BaseModel
from tests.e2e.frameworks.driving import CHAT, CLAUDE, QUESTION, VECTORS, Gateway, drive

MESSAGES = [{"role": "user", "content": QUESTION}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Forecast(BaseModel):
    city: str
    days: int


def _openai(gateway: Gateway, model: str = CHAT, **more: Any) -> Any:
    asked = {"messages": MESSAGES, "num_retries": 0, "max_retries": 0, **more}
    return litellm.completion(model=f"openai/{model}", api_base=gateway.openai, api_key=gateway.token, **asked)


def _anthropic(gateway: Gateway, **more: Any) -> Any:
    asked = {"messages": MESSAGES, "max_retries": 0, **more}
    return litellm.completion(model=f"anthropic/{CLAUDE}", api_base=gateway.anthropic, api_key=gateway.token, **asked)


def _said(answer: Any) -> object:
    return {
        "text": answer.choices[0].message.content,
        "tokens": [answer.usage.prompt_tokens, answer.usage.completion_tokens],
    }


def _joined(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def _with_tools(call: Any, gateway: Gateway) -> object:
    said = call(gateway, tools=[WEATHER]).choices[0].message
    made = said.tool_calls[0]
    result = {"role": "tool", "tool_call_id": made.id, "content": "Sunny in kbtest"}
    answer = call(gateway, messages=[*MESSAGES, said.model_dump(exclude_none=True), result], tools=[WEATHER])
    return {"tool": made.function.name, "answer": answer.choices[0].message.content}


def chat(gateway: Gateway) -> object:
    return _said(_openai(gateway))


def another_provider(gateway: Gateway) -> object:
    return _said(_openai(gateway, "gemini/gemini-2.5-flash"))


def streamed(gateway: Gateway) -> object:
    return _joined(_openai(gateway, stream=True))


def tools(gateway: Gateway) -> object:
    return _with_tools(_openai, gateway)


def structured(gateway: Gateway) -> object:
    return json.loads(_openai(gateway, response_format=Forecast).choices[0].message.content)


def responses(gateway: Gateway) -> object:
    made = litellm.responses(model=f"openai/{CHAT}", input=QUESTION, api_base=gateway.openai, api_key=gateway.token)
    return made.output[0].content[0].text


def responses_streamed(gateway: Gateway) -> object:
    events = litellm.responses(
        model=f"openai/{CHAT}", input=QUESTION, stream=True, api_base=gateway.openai, api_key=gateway.token
    )
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def embeddings(gateway: Gateway) -> object:
    made = litellm.embedding(model=f"openai/{VECTORS}", input=["one", "two"], api_base=gateway.openai, api_key=gateway.token)
    return [len(each["embedding"]) for each in made.data]


def anthropic(gateway: Gateway) -> object:
    return _said(_anthropic(gateway))


def anthropic_streamed(gateway: Gateway) -> object:
    return _joined(_anthropic(gateway, stream=True))


def anthropic_tools(gateway: Gateway) -> object:
    return _with_tools(_anthropic, gateway)


if __name__ == "__main__":
    drive(
        _openai,
        chat,
        another_provider,
        streamed,
        tools,
        structured,
        responses,
        responses_streamed,
        embeddings,
        anthropic,
        anthropic_streamed,
        anthropic_tools,
    )
