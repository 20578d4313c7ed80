"""OpenAI's Responses API. Pure. Source: https://platform.openai.com/docs/api-reference/responses and its streaming events."""

from __future__ import annotations

from typing import Any

from keybearer.mock import refusal
from keybearer.mock.openai import HEADERS
from keybearer.mock.reply import CREATED, Prompt, Reply, Tool, compose, identifier, texts
from keybearer.mock.wire import SSE, Answer, Call, ProviderError, json_answer, sse

_PART_KEYS = ("text", "output")


def responses(call: Call) -> Answer:
    """``POST …/responses``. Raises ``ProviderError``."""
    reply = compose(_prompt(call.document), call.behaviour)
    item = _item(call, reply)
    whole = _response(call, reply, "incomplete" if reply.truncated else "completed", [item])
    if call.document.get("stream") is not True:
        return json_answer(whole, headers=HEADERS)
    begun = _response(call, reply, "in_progress", []) | {"usage": None}
    fields = [{"type": "response.created", "response": begun}, {"type": "response.in_progress", "response": begun}]
    fields += _call_events(item) if reply.call else _text_events(reply, item)
    fields.append({"type": "response.incomplete" if reply.truncated else "response.completed", "response": whole})
    events = tuple(sse(field | {"sequence_number": number}, str(field["type"])) for number, field in enumerate(fields))
    return Answer(events=events, content_type=SSE, headers=HEADERS, error_event=refusal.event(call))


def _prompt(document: dict[str, Any]) -> Prompt:
    said = document.get("input")
    if not isinstance(said, str | list) or not said:
        raise ProviderError(400, "Missing required parameter: 'input'.")
    last = said[-1] if isinstance(said, list) and isinstance(said[-1], dict) else {}
    tools = document.get("tools")
    offered = (
        [tool for tool in tools if isinstance(tool, dict) and tool.get("type") == "function"] if isinstance(tools, list) else []
    )
    choice = document.get("tool_choice", "auto")
    limit = document.get("max_output_tokens")
    text = document.get("text")
    wanted = text.get("format") if isinstance(text, dict) else None
    return Prompt(
        said=[said, document.get("instructions"), offered],
        text=said if isinstance(said, str) else texts(last.get("content")),
        tools=tuple(Tool(str(tool.get("name", "")), tool.get("parameters")) for tool in offered),
        tool_result=texts(last.get("output"), _PART_KEYS) if last.get("type") == "function_call_output" else None,
        choice=str(choice.get("name", "auto")) if isinstance(choice, dict) else str(choice),
        limit=limit if isinstance(limit, int) and limit > 0 else None,
        schema=wanted.get("schema") if isinstance(wanted, dict) else None,
    )


def _item(call: Call, reply: Reply) -> dict[str, Any]:
    if reply.call is not None:
        return {
            "type": "function_call",
            "id": identifier("fc_", call.request.body),
            "call_id": identifier("call_", call.request.body),
            "name": reply.call.name,
            "arguments": reply.call.encoded,
            "status": "completed",
        }
    return {
        "type": "message",
        "id": identifier("msg_", call.request.body),
        "role": "assistant",
        "status": "completed",
        "content": [_part(reply.text)],
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _response(call: Call, reply: Reply, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    outcome = reply.text_tokens + reply.reasoning_tokens
    return {
        "id": identifier("resp_", call.request.body),
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": call.document.get("instructions"),
        "metadata": {},
        "model": call.model,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": call.document.get("tool_choice", "auto"),
        "tools": call.document.get("tools", []),
        "top_p": 1.0,
        "store": bool(call.document.get("store", True)),
        "usage": {
            "input_tokens": reply.input_tokens,
            "input_tokens_details": {"cached_tokens": reply.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": outcome,
            "output_tokens_details": {"reasoning_tokens": reply.reasoning_tokens},
            "total_tokens": reply.input_tokens + outcome,
        },
    }


def _text_events(reply: Reply, item: dict[str, Any]) -> list[dict[str, Any]]:
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    empty = item | {"status": "in_progress", "content": []}
    return [
        {"type": "response.output_item.added", "output_index": 0, "item": empty},
        {"type": "response.content_part.added", **place, "part": _part("")},
        *({"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []} for piece in reply.pieces),
        {"type": "response.output_text.done", **place, "text": reply.text, "logprobs": []},
        {"type": "response.content_part.done", **place, "part": _part(reply.text)},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
    ]


def _call_events(item: dict[str, Any]) -> list[dict[str, Any]]:
    place = {"item_id": item["id"], "output_index": 0}
    arguments = item["arguments"]
    middle = len(arguments) // 2
    return [
        {"type": "response.output_item.added", "output_index": 0, "item": item | {"status": "in_progress", "arguments": ""}},
        *(
            {"type": "response.function_call_arguments.delta", **place, "delta": part}
            for part in (arguments[:middle], arguments[middle:])
        ),
        {"type": "response.function_call_arguments.done", **place, "name": item["name"], "arguments": arguments},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
    ]
