"""LlamaIndex: its OpenAI, OpenAI-like and responses models, and its embeddings."""

from __future__ import annotations

from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.openai import OpenAI, OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from tests.e2e.frameworks.driving import CHAT, QUESTION, VECTORS, Gateway, drive

MESSAGES = [ChatMessage(role="user", content=QUESTION)]


class Forecast(BaseModel):
    """A weather forecast."""

    city: str
    days: int


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"Sunny in {city}"


def _openai(gateway: Gateway) -> OpenAI:
    return OpenAI(model=CHAT, api_base=gateway.openai, api_key=gateway.token, max_retries=0)


def _like(gateway: Gateway, model: str = f"openai/{CHAT}") -> OpenAILike:
    return OpenAILike(
        model=model,
        api_base=gateway.openai,
        api_key=gateway.token,
        max_retries=0,
        is_chat_model=True,
        is_function_calling_model=True,
    )


def _responses(gateway: Gateway) -> OpenAIResponses:
    return OpenAIResponses(model=CHAT, api_base=gateway.openai, api_key=gateway.token, max_retries=0)


def _with_tools(model: Any) -> object:
    called = model.predict_and_call([FunctionTool.from_defaults(get_weather)], "How is the weather?")
    return called.sources[0].tool_name, called.response


def chat(gateway: Gateway) -> object:
    said = _openai(gateway).chat(MESSAGES)
    usage = said.raw.usage
    return {"text": said.message.content, "tokens": [usage.prompt_tokens, usage.completion_tokens]}


def streamed(gateway: Gateway) -> object:
    return "".join(piece.delta or "" for piece in _openai(gateway).stream_chat(MESSAGES))


def tools(gateway: Gateway) -> object:
    return _with_tools(_openai(gateway))


def structured(gateway: Gateway) -> object:
    return _openai(gateway).as_structured_llm(Forecast).chat(MESSAGES).raw.model_dump()


def like(gateway: Gateway) -> object:
    return _like(gateway).chat(MESSAGES).message.content


def like_streamed(gateway: Gateway) -> object:
    return "".join(piece.delta or "" for piece in _like(gateway).stream_chat(MESSAGES))


def like_tools(gateway: Gateway) -> object:
    return _with_tools(_like(gateway))


def responses(gateway: Gateway) -> object:
    return _responses(gateway).chat(MESSAGES).message.content


def responses_streamed(gateway: Gateway) -> object:
    return "".join(piece.delta or "" for piece in _responses(gateway).stream_chat(MESSAGES))


def embeddings(gateway: Gateway) -> object:
    model = OpenAIEmbedding(model=VECTORS, api_base=gateway.openai, api_key=gateway.token, max_retries=0)
    return [len(vector) for vector in model.get_text_embedding_batch(["one", "two"])]


if __name__ == "__main__":
    drive(
        lambda gateway, model: _like(gateway, model).chat(MESSAGES),
        chat,
        streamed,
        tools,
        structured,
        like,
        like_streamed,
        like_tools,
        responses,
        responses_streamed,
        embeddings,
    )
