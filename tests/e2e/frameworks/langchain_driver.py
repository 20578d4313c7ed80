"""LangChain: langchain-openai by chat completions and by responses, its embeddings, and langchain-anthropic."""

from __future__ import annotations

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from tests.e2e.frameworks.driving import CHAT, CLAUDE, QUESTION, VECTORS, Gateway, drive


class Forecast(BaseModel):
    """A weather forecast."""

    city: str
    days: int


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"Sunny in {city}"


def _openai(gateway: Gateway, model: str = CHAT, *, responses: bool = False) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=gateway.openai, api_key=gateway.token, max_retries=0, use_responses_api=responses)


def _anthropic(gateway: Gateway) -> ChatAnthropic:
    return ChatAnthropic(model_name=CLAUDE, base_url=gateway.anthropic, api_key=gateway.token, max_retries=0)


def _with_tools(model: ChatOpenAI | ChatAnthropic) -> object:
    """A turn with a tool: the call, the tool's answer, the last word."""
    asked = HumanMessage("How is the weather?")
    bound = model.bind_tools([get_weather])
    said = bound.invoke([asked])
    done = get_weather.invoke(said.tool_calls[0])
    return {"tool": said.tool_calls[0]["name"], "answer": bound.invoke([asked, said, done]).text}


def chat(gateway: Gateway) -> object:
    said = _openai(gateway).invoke(QUESTION)
    return {"text": said.text, "tokens": said.usage_metadata}


def streamed(gateway: Gateway) -> object:
    pieces = list(_openai(gateway).stream(QUESTION, stream_usage=True))
    usage = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    return {"text": "".join(piece.text for piece in pieces), "tokens": usage[-1], "pieces": len(pieces)}


def tools(gateway: Gateway) -> object:
    return _with_tools(_openai(gateway))


def structured(gateway: Gateway) -> object:
    return _openai(gateway).with_structured_output(Forecast).invoke(QUESTION).model_dump()


def responses(gateway: Gateway) -> object:
    return _openai(gateway, responses=True).invoke(QUESTION).text


def responses_streamed(gateway: Gateway) -> object:
    return "".join(piece.text for piece in _openai(gateway, responses=True).stream(QUESTION))


def responses_tools(gateway: Gateway) -> object:
    return _with_tools(_openai(gateway, responses=True))


def embeddings(gateway: Gateway) -> object:
    vectors = OpenAIEmbeddings(model=VECTORS, base_url=gateway.openai, api_key=gateway.token, max_retries=0)
    return [len(vector) for vector in vectors.embed_documents(["one", "two"])]


def anthropic(gateway: Gateway) -> object:
    said = _anthropic(gateway).invoke(QUESTION)
    return {"text": said.text, "tokens": said.usage_metadata}


def anthropic_streamed(gateway: Gateway) -> object:
    return "".join(piece.text for piece in _anthropic(gateway).stream(QUESTION))


def anthropic_tools(gateway: Gateway) -> object:
    return _with_tools(_anthropic(gateway))


def anthropic_structured(gateway: Gateway) -> object:
    return _anthropic(gateway).with_structured_output(Forecast).invoke(QUESTION).model_dump()


if __name__ == "__main__":
    drive(
        lambda gateway, model: _openai(gateway, model).invoke(QUESTION),
        chat,
        streamed,
        tools,
        structured,
        responses,
        responses_streamed,
        responses_tools,
        embeddings,
        anthropic,
        anthropic_streamed,
        anthropic_tools,
        anthropic_structured,
    )
