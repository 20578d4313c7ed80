"""The Anthropic dialect: messages and count_tokens. Pure. Source: https://docs.anthropic.com/en/api/messages and …/streaming.

``input_tokens`` leaves out what was read from or written to the cache; those stand beside it.
"""

from __future__ import annotations

from typing import Any

from keybearer.mock import refusal
from keybearer.mock.reply import Prompt, Reply, Tool, compose, identifier, texts, tokens
from keybearer.mock.wire import SSE, Answer, Call, ProviderError, json_answer, sse

HEADERS = (("request-id", refusal.REQUEST_ID), ("anthropic-organization-id", "00000000-0000-0000-0000-00000000mock"))
_WRITTEN_SHARE = 8
"""One in so many of the tokens not read from the cache is reported as written to it."""


def messages(call: Call) -> Answer:
    """``POST /v1/messages``. Raises ``ProviderError``."""
    limit = call.document.get("max_tokens")
    if not isinstance(limit, int) or limit < 1:
        raise ProviderError(400, "max_tokens: Field required")
    reply = compose(_prompt(call.document, limit), call.behaviour)
    message = {
        "id": identifier("msg_", call.request.body),
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": [_block(call, reply)],
        "stop_reason": _stop(reply),
        "stop_sequence": None,
        "usage": _usage(reply, reply.text_tokens),
    }
    if call.document.get("stream") is not True:
        return json_answer(message, headers=HEADERS)
    return Answer(events=_events(reply, message), content_type=SSE, headers=HEADERS, error_event=refusal.event(call))


def count_tokens(call: Call) -> Answer:
    """``POST /v1/messages/count_tokens``. Raises ``ProviderError``."""
    return json_answer({"input_tokens": tokens(_prompt(call.document, None).said)}, headers=HEADERS)


def _prompt(document: dict[str, Any], limit: int | None) -> Prompt:
    said = document.get("messages")
    if not isinstance(said, list) or not said or not all(isinstance(message, dict) for message in said):
        raise ProviderError(400, "messages: Field required")
    content = said[-1].get("content")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    results = [texts(part.get("content")) for part in parts if part.get("type") == "tool_result"]
    offered = document.get("tools")
    tools = [tool for tool in offered if isinstance(tool, dict)] if isinstance(offered, list) else []
    choice = document.get("tool_choice")
    choice = choice if isinstance(choice, dict) else {}
    settings = document.get("output_config")
    wanted = settings.get("format") if isinstance(settings, dict) else document.get("output_format")
    return Prompt(
        said=[said, document.get("system"), tools],
        text=texts(content),
        tools=tuple(Tool(str(tool.get("name", "")), tool.get("input_schema")) for tool in tools),
        tool_result=results[0] if results else None,
        choice=str(choice.get("name") or choice.get("type", "auto")),
        limit=limit,
        schema=wanted.get("schema") if isinstance(wanted, dict) else None,
    )


def _block(call: Call, reply: Reply) -> dict[str, Any]:
    if reply.call is None:
        return {"type": "text", "text": reply.text}
    return {
        "type": "tool_use",
        "id": identifier("toolu_", call.request.body),
        "name": reply.call.name,
        "input": reply.call.arguments,
    }


def _stop(reply: Reply) -> str:
    return "tool_use" if reply.call is not None else "max_tokens" if reply.truncated else "end_turn"


def _usage(reply: Reply, output: int) -> dict[str, Any]:
    fresh = reply.input_tokens - reply.cached_tokens
    written = fresh // _WRITTEN_SHARE
    return {
        "input_tokens": fresh - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": reply.cached_tokens,
        "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output,
        "service_tier": "standard",
    }


def _events(reply: Reply, message: dict[str, Any]) -> tuple[bytes, ...]:
    begun = message | {"content": [], "stop_reason": None, "usage": _usage(reply, 1)}
    block = message["content"][0]
    if reply.call is None:
        empty: dict[str, Any] = {"type": "text", "text": ""}
        deltas: list[dict[str, Any]] = [{"type": "text_delta", "text": piece} for piece in reply.pieces]
    else:
        empty = block | {"input": {}}
        arguments = reply.call.encoded
        middle = len(arguments) // 2
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in ("", arguments[:middle], arguments[middle:])]
    fields: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": empty},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": message["stop_reason"], "stop_sequence": None},
            "usage": {"output_tokens": reply.text_tokens},
        },
        {"type": "message_stop"},
    ]
    return tuple(sse(field, str(field["type"])) for field in fields)
