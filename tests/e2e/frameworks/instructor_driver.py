"""Instructor: structured answers by tools, by JSON schema, by responses, streamed in part, and by Anthropic's messages."""

from __future__ import annotations

from typing import Any

import anthropic as anthropic_sdk
import instructor
from openai import OpenAI
from pydantic import BaseModel
from tests.e2e.frameworks.driving import CHAT, CLAUDE, QUESTION, Gateway, drive

MESSAGES: Any = [{"role": "user", "content": QUESTION}]


class Forecast(BaseModel):
    city: str
    days: int


def _client(gateway: Gateway, mode: instructor.Mode = instructor.Mode.TOOLS) -> instructor.Instructor:
    return instructor.from_openai(OpenAI(base_url=gateway.openai, api_key=gateway.token, max_retries=0), mode=mode)


def _asked(gateway: Gateway, model: str = CHAT, mode: instructor.Mode = instructor.Mode.TOOLS) -> object:
    made = _client(gateway, mode).create(model=model, messages=MESSAGES, response_model=Forecast, max_retries=1)
    return made.model_dump()


def tools(gateway: Gateway) -> object:
    return _asked(gateway)


def structured(gateway: Gateway) -> object:
    return _asked(gateway, mode=instructor.Mode.JSON_SCHEMA)


def streamed(gateway: Gateway) -> object:
    parts = list(_client(gateway).create_partial(model=CHAT, messages=MESSAGES, response_model=Forecast))
    return parts[-1].model_dump()


def responses(gateway: Gateway) -> object:
    return _asked(gateway, mode=instructor.Mode.RESPONSES_TOOLS)


def anthropic(gateway: Gateway) -> object:
    plain = anthropic_sdk.Anthropic(base_url=gateway.anthropic, api_key=gateway.token, max_retries=0)
    client = instructor.from_anthropic(plain)
    made = client.create(model=CLAUDE, max_tokens=500, messages=MESSAGES, response_model=Forecast, max_retries=1)
    return made.model_dump()


if __name__ == "__main__":
    drive(_asked, tools, structured, streamed, responses, anthropic)
