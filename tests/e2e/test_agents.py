"""Claude Code and Cursor, told the gateway's address and a token: the requests that they send, in their order.

Source: Claude Code's gateway protocol reference (``ANTHROPIC_BASE_URL``, ``ANTHROPIC_AUTH_TOKEN`` or ``ANTHROPIC_API_KEY``, the
headers that a gateway must pass on, model discovery), and Cursor's documentation (override of OpenAI's base URL); read 2026-11-21.
"""

from __future__ import annotations

import json
from typing import Any

import httpx2 as httpx
import pytest
from tests.e2e.conftest import KEYS, World

BETAS = "claude-code-20250219,interleaved-thinking-2025-05-14,fine-grained-tool-streaming-2025-05-14"
SESSION = "b0f2f3f0-0000-4000-8000-000000000007"
CLAUDE_CODE = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": BETAS,
    "anthropic-dangerous-direct-browser-access": "true",
    "user-agent": "claude-cli/2.1.0 (external, cli)",
    "x-app": "cli",
    "x-claude-code-session-id": SESSION,
    "x-stainless-lang": "js",
}
ASKED: dict[str, Any] = {
    "model": "claude-sonnet-4-6",
    "max_tokens": 32_000,
    "system": [{"type": "text", "text": "You are Claude Code.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "What is here?", "cache_control": {"type": "ephemeral"}}]}
    ],
    "tools": [{"name": "Bash", "description": "Run", "input_schema": {"type": "object", "properties": {}}}],
    "metadata": {"user_id": f"session_{SESSION}"},
    "thinking": {"type": "enabled", "budget_tokens": 31_999},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
}


@pytest.mark.parametrize("base", ["", "/anthropic"])
@pytest.mark.parametrize("carrier", ["authorization", "x-api-key"])
def test_claude_code(world: World, base: str, carrier: str) -> None:
    world.provider.forget()
    token = f"Bearer {world.token}" if carrier == "authorization" else world.token
    with httpx.Client(base_url=world.server.url + base, headers={**CLAUDE_CODE, carrier: token}, timeout=30) as claude:
        assert httpx.head(f"{world.server.url}{base}/").status_code < 400
        listed = claude.get("/v1/models?limit=1000").json()
        assert "claude-haiku-4-5" in [model["id"] for model in listed["data"]]
        counted = claude.post(
            "/v1/messages/count_tokens?beta=true", json={key: ASKED[key] for key in ("model", "messages", "tools")}
        )
        assert counted.json()["input_tokens"] > 0
        body = json.dumps({**ASKED, "stream": True}).encode()
        with claude.stream(
            "POST", "/v1/messages?beta=true", content=body, headers={"content-type": "application/json"}
        ) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            said = b"".join(answer.iter_raw())
        assert said.startswith(b"event: message_start")
        assert b'"name":"Bash"' in said
        missing = claude.post("/v1/messages?beta=true", json={**ASKED, "model": "mock-404"})
        assert (missing.status_code, missing.json()["type"]) == (404, "error")
    *others, streamed, _ = world.provider.requests()
    assert [f"{request['method']} {request['target']}" for request in (*others, streamed)] == [
        "GET /anthropic/v1/models?limit=1000",
        "POST /anthropic/v1/messages/count_tokens?beta=true",
        "POST /anthropic/v1/messages?beta=true",
    ]
    for request in (*others, streamed):
        headers = request["headers"]
        assert {name: headers.get(name) for name in CLAUDE_CODE} == CLAUDE_CODE
        assert headers["x-api-key"] == KEYS["anthropic"]
        assert "authorization" not in headers
        assert "kb_" not in str(request)
    assert streamed["body"].encode() == body, "what thinking, caching and context management want goes on as it is"


def test_cursor(world: World) -> None:
    """It knows OpenAI's dialect only, and any model by a name that somebody typed in."""
    world.provider.forget()
    with httpx.Client(
        base_url=f"{world.server.url}/v1", headers={"authorization": f"Bearer {world.token}"}, timeout=30
    ) as cursor:
        names = [model["id"] for model in cursor.get("/models").json()["data"]]
        assert "openai/gpt-4o-mini" in names
        for model in ("gpt-4o-mini", "anthropic/claude-sonnet-4-6"):
            asked = {
                "model": model,
                "messages": [{"role": "user", "content": "What is here?"}],
                "stream": True,
                "stream_options": {"include_usage": True},
                "tools": [{"type": "function", "function": {"name": "read_file", "parameters": {"type": "object"}}}],
            }
            said = cursor.post("/chat/completions", json=asked).text
            assert '"name":"read_file"' in said
            assert '"usage":{' in said
            assert said.endswith("data: [DONE]\n\n")
        # For some models it sends the Responses API's body there: what the provider makes of it is the provider's.
        odd = cursor.post("/chat/completions", json={"model": "gpt-4o-mini", "input": "What is here?"})
        assert (odd.status_code, odd.json()["error"]["type"]) == (400, "invalid_request_error")
    found = [(request["target"], request["headers"]["authorization"]) for request in world.provider.requests()]
    assert found == [
        ("/openai/v1/chat/completions", f"Bearer {KEYS['openai']}"),
        ("/anthropic/v1/chat/completions", f"Bearer {KEYS['anthropic']}"),
        ("/openai/v1/chat/completions", f"Bearer {KEYS['openai']}"),
    ]
