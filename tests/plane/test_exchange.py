"""What a person's program sees of one call through the gateway."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from uuid import uuid4

from keybearer.domain import Scope
from tests.plane.conftest import CHAT, KEY, PROMPT, House, Opener


async def test_a_call_reaches_the_provider_with_the_persons_key_and_comes_back_with_a_receipt(house: House) -> None:
    answer = await house.ask(house.request())
    assert (answer.status, answer.body) == (200, CHAT)
    sent = house.provider.received[0]
    assert sent.line == b"POST /v1/chat/completions HTTP/1.1"
    assert sent["authorization"] == f"Bearer {KEY}"
    assert sent["host"] == f"127.0.0.1:{house.provider.port}"
    assert sent["accept-encoding"] == "identity"
    assert sent.body == PROMPT
    assert answer["x-keybearer-key-source"] == "user"
    assert answer["x-keybearer-provider"] == "openai"
    assert answer["x-keybearer-secret-id"] == str(house.vault.keys["openai"].secret_id)
    outcome = await house.outcome()
    use = house.lines()[0]
    assert answer["x-keybearer-request-id"] == use["request_id"] == outcome["request_id"]
    assert (outcome["status"], outcome["outcome"]) == (200, "ok")
    assert outcome["usage"]["input_tokens"] == 9
    assert outcome["cost_micro_usd"] > 0
