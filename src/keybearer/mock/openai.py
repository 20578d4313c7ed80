"""The OpenAI dialect: chat completions and completions, as OpenAI, xAI, OpenRouter and the compatible endpoints speak it. Pure.

Source: https://platform.openai.com/docs/api-reference/chat. Told apart by provider: xAI leaves reasoning tokens out of
``completion_tokens`` (https://docs.x.ai), OpenRouter sends comments first, states a cost, and reports usage of streams unasked.
"""

from __future__ import annotations

from typing import Any

import msgspec

from keybearer.mock import refusal
from keybearer.mock.reply import CREATED, Prompt, Reply, Tool, ToolCall, compose, identifier, texts
from keybearer.mock.wire import SSE, Answer, Call, ProviderError, json_answer, sse

_DONE = b"data: [DONE]\n\n"
_OPENROUTER_COMMENT = b": OPENROUTER PROCESSING\n\n"
_MICRO_USD_PER_TOKEN = 2
HEADERS = (("x-request-id", refusal.REQUEST_ID), ("openai-processing-ms", "1"))


def chat(call: Call) -> Answer:
    """``POST …/chat/completions``. Raises ``ProviderError``."""
    reply = compose(_chat_prompt(call.document), call.behaviour)
    if call.document.get("stream") is True:
        return _stream(call, reply, _chat_deltas(reply), "chat.completion.chunk")
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None, "annotations": []}
    if reply.call is not None:
        message |= {"content": None, "tool_calls": [_tool_call(call, reply.call)]}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(reply)}
    return json_answer(_envelope(call, "chat.completion") | {"choices": [choice], "usage": usage(call, reply)}, headers=HEADERS)


def completions(call: Call) -> Answer:
    """``POST …/completions``, the legacy one. Raises ``ProviderError``."""
    prompt = call.document.get("prompt", "")
    text = prompt if isinstance(prompt, str) else texts(prompt)
    reply = compose(Prompt(prompt, text, limit=_limit(call.document, "max_tokens")), call.behaviour)
    if call.document.get("stream") is True:
        deltas = [{"text": piece} for piece in reply.pieces]
        return _stream(call, reply, deltas, "text_completion")
    choice = {"index": 0, "text": reply.text, "logprobs": None, "finish_reason": _finish(reply)}
    return json_answer(_envelope(call, "text_completion") | {"choices": [choice], "usage": usage(call, reply)}, headers=HEADERS)


def usage(call: Call, reply: Reply) -> dict[str, Any]:
    """Usage as this provider reports it."""
    visible = reply.text_tokens if call.provider == "xai" else reply.text_tokens + reply.reasoning_tokens
    total = reply.input_tokens + reply.text_tokens + reply.reasoning_tokens
    found: dict[str, Any] = {
        "prompt_tokens": reply.input_tokens,
        "completion_tokens": visible,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reply.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    if call.provider == "openrouter":
        found |= {"cost": total * _MICRO_USD_PER_TOKEN / 1e6, "is_byok": False}
    return found


def _chat_prompt(document: dict[str, Any]) -> Prompt:
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise ProviderError(400, "Missing required parameter: 'messages', a list of at least one message.")
    last = messages[-1]
    offered = [
        tool["function"] for tool in _list(document, "tools") if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
    ]
    choice = document.get("tool_choice", "auto")
    named = choice.get("function") if isinstance(choice, dict) else None
    wanted = document.get("response_format")
    described = wanted.get("json_schema") if isinstance(wanted, dict) else None
    return Prompt(
        said=[messages, offered],
        text=texts(last.get("content")),
        tools=tuple(Tool(str(tool.get("name", "")), tool.get("parameters")) for tool in offered),
        tool_result=texts(last.get("content")) if last.get("role") == "tool" else None,
        choice=str(named.get("name", "auto")) if isinstance(named, dict) else str(choice),
        limit=_limit(document, "max_completion_tokens") or _limit(document, "max_tokens"),
        schema=described.get("schema") if isinstance(described, dict) else None,
    )


def _limit(document: dict[str, Any], name: str) -> int | None:
    value = document.get(name)
    return value if isinstance(value, int) and value > 0 else None


def _list(document: dict[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    return value if isinstance(value, list) else []


def _envelope(call: Call, kind: str) -> dict[str, Any]:
    prefix = {"openrouter": "gen-"}.get(call.provider, "cmpl-" if kind == "text_completion" else "chatcmpl-")
    found = {
        "id": identifier(prefix, call.request.body),
        "object": kind,
        "created": CREATED,
        "model": call.model,
        "system_fingerprint": "fp_mock",
    }
    return found | {"provider": "Mock"} if call.provider == "openrouter" else found


def _finish(reply: Reply) -> str:
    return "tool_calls" if reply.call is not None else "length" if reply.truncated else "stop"


def _tool_call(call: Call, made: ToolCall) -> dict[str, Any]:
    return {
        "id": identifier("call_", call.request.body),
        "type": "function",
        "function": {"name": made.name, "arguments": made.encoded},
    }


def _chat_deltas(reply: Reply) -> list[dict[str, Any]]:
    """List the choices' changing parts of a streamed chat: the role first, then text or the tool call's arguments in pieces."""
    first: dict[str, Any] = {"delta": {"role": "assistant", "content": None if reply.call else "", "refusal": None}}
    if reply.call is None:
        return [first, *({"delta": {"content": piece}} for piece in reply.pieces)]
    arguments = reply.call.encoded
    middle = len(arguments) // 2
    named = {"index": 0, "id": identifier("call_", arguments.encode()), "type": "function"}
    opened = named | {"function": {"name": reply.call.name, "arguments": ""}}
    parts = [{"index": 0, "function": {"arguments": part}} for part in (arguments[:middle], arguments[middle:])]
    return [first, *({"delta": {"tool_calls": [part]}} for part in (opened, *parts))]


def _stream(call: Call, reply: Reply, deltas: list[dict[str, Any]], kind: str) -> Answer:
    options = call.document.get("stream_options")
    wanted = isinstance(options, dict) and options.get("include_usage") is True
    always = call.provider == "openrouter"
    base = _envelope(call, kind)
    middle = {"usage": None} if wanted else {}
    last: dict[str, Any] = {"text": ""} if kind == "text_completion" else {"delta": {}}
    choices: list[dict[str, Any]] = [{"index": 0, "logprobs": None, "finish_reason": None} | delta for delta in deltas]
    choices.append({"index": 0, "logprobs": None, "finish_reason": _finish(reply)} | last)
    events = [_OPENROUTER_COMMENT] if always else []
    events += [_chunk(base, choice, middle) for choice in choices]
    if wanted or always:
        events.append(sse(base | {"choices": [], "usage": usage(call, reply)}))
    events.append(_DONE)
    return Answer(events=tuple(events), content_type=SSE, headers=HEADERS, error_event=refusal.event(call))


def _chunk(base: dict[str, Any], choice: dict[str, Any], more: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(base | {"choices": [choice]} | more) + b"\n\n"
