"""The Gemini dialect: generateContent, streamGenerateContent, countTokens. Pure. Source: https://ai.google.dev/api/generate-content.

A stream is server-sent events with ``?alt=sse``, else one JSON array. ``candidatesTokenCount`` leaves out the thoughts.
Field names are understood in camelCase and in snake_case, as the real API does.
"""

from __future__ import annotations

import base64
import re
from typing import Any

import msgspec

from keybearer.mock import refusal
from keybearer.mock.reply import Prompt, Reply, Tool, compose, identifier, texts, tokens
from keybearer.mock.wire import JSON, SSE, Answer, Call, ProviderError, json_answer, sse

_NEWLINE = b"\r\n"
_SIGNS = re.compile(r"gemini-[3-9]")
"""Models that refuse a running turn's calls without their signatures (https://ai.google.dev/gemini-api/docs/thought-signatures)."""
_HUMP = re.compile(r"[A-Z]")


def generate(call: Call) -> Answer:
    """``POST …:generateContent``. Raises ``ProviderError``."""
    reply = _reply(call)
    parts = _parts(call, reply)
    return json_answer(_response(call, parts, _finish(reply)) | {"usageMetadata": _usage(reply, reply.text_tokens)})


def stream(call: Call) -> Answer:
    """``POST …:streamGenerateContent``. Raises ``ProviderError``."""
    reply = _reply(call)
    lots = [_parts(call, reply)] if reply.call else [[{"text": piece}] for piece in reply.pieces]
    documents = [
        _response(call, parts, _finish(reply) if number == len(lots) else "") | {"usageMetadata": _usage(reply, number)}
        for number, parts in enumerate(lots, 1)
    ]
    documents[-1]["usageMetadata"] = _usage(reply, reply.text_tokens)
    if call.query.get("alt") == "sse":
        events = tuple(sse(document, newline=_NEWLINE) for document in documents)
        return Answer(events=events, content_type=SSE, error_event=refusal.event(call))
    encoded = [msgspec.json.encode(document) for document in documents]
    pieces = [b"[" + encoded[0], *(b",\r\n" + document for document in encoded[1:])]
    pieces[-1] += b"]"
    return Answer(events=tuple(pieces), content_type=JSON, error_event=refusal.event(call))


def _reply(call: Call) -> Reply:
    reply = compose(_prompt(call.document), call.behaviour)
    if _SIGNS.search(call.model) and not _is_signed(call.document):
        raise ProviderError(400, "Function call is missing a thought_signature in functionCall parts.")
    return reply


def _is_signed(document: dict[str, Any]) -> bool:
    """Whether each step of the running turn (after the last thing that somebody said) has its first call's signature."""
    contents = document.get("contents")
    for content in reversed(contents if isinstance(contents, list) else []):
        parts = [part for part in content.get("parts") or () if isinstance(part, dict)]
        if content.get("role") != "model" and any("text" in part for part in parts):
            return True
        calls = [part for part in parts if _get(part, "functionCall")]
        if calls and not _get(calls[0], "thoughtSignature"):
            return False
    return True


def count_tokens(call: Call) -> Answer:
    """``POST …:countTokens``. Raises ``ProviderError``."""
    inner = _get(call.document, "generateContentRequest")
    count = tokens(_prompt(inner if isinstance(inner, dict) else call.document).said)
    return json_answer({"totalTokens": count, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": count}]})


def _get(document: dict[str, Any], name: str) -> Any:
    snake = _HUMP.sub(lambda hump: "_" + hump[0].lower(), name)
    return document.get(name, document.get(snake))


def _prompt(document: dict[str, Any]) -> Prompt:
    contents = document.get("contents")
    contents = [contents] if isinstance(contents, dict) else contents
    if not isinstance(contents, list) or not contents or not all(isinstance(content, dict) for content in contents):
        raise ProviderError(400, "* GenerateContentRequest.contents: contents is not specified")
    parts = contents[-1].get("parts")
    parts = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    results = [_get(part, "functionResponse") for part in parts]
    results = [result for result in results if isinstance(result, dict)]
    tools = document.get("tools")
    offered = [
        declaration
        for tool in (tools if isinstance(tools, list) else [])
        if isinstance(tool, dict)
        for declaration in (_get(tool, "functionDeclarations") or [])
        if isinstance(declaration, dict)
    ]
    settings = _get(document, "generationConfig")
    settings = settings if isinstance(settings, dict) else {}
    limit = _get(settings, "maxOutputTokens")
    return Prompt(
        said=[contents, _get(document, "systemInstruction"), offered],
        text=texts(parts),
        tools=tuple(
            Tool(str(tool.get("name", "")), _get(tool, "parametersJsonSchema") or tool.get("parameters")) for tool in offered
        ),
        tool_result=msgspec.json.encode(results[0].get("response")).decode() if results else None,
        choice=_choice(document),
        limit=limit if isinstance(limit, int) and limit > 0 else None,
        schema=_get(settings, "responseJsonSchema") or _get(settings, "responseSchema"),
    )


def _choice(document: dict[str, Any]) -> str:
    outer = _get(document, "toolConfig")
    inner = _get(outer, "functionCallingConfig") if isinstance(outer, dict) else None
    if not isinstance(inner, dict):
        return "auto"
    allowed = _get(inner, "allowedFunctionNames")
    return str(allowed[0]) if isinstance(allowed, list) and allowed else str(inner.get("mode", "auto")).lower()


def _parts(call: Call, reply: Reply) -> list[dict[str, Any]]:
    if reply.call is None:
        return [{"text": reply.text}]
    name = identifier("", call.request.body)
    signature = base64.b64encode(f"kbtest-signature-{name}".encode()).decode()
    return [
        {
            "functionCall": {"id": name, "name": reply.call.name, "args": reply.call.arguments},
            "thoughtSignature": signature,
        }
    ]


def _finish(reply: Reply) -> str:
    return "MAX_TOKENS" if reply.truncated else "STOP"


def _response(call: Call, parts: list[dict[str, Any]], finish: str) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "modelVersion": call.model, "responseId": identifier("", call.request.body)}


def _usage(reply: Reply, visible: int) -> dict[str, Any]:
    return {
        "promptTokenCount": reply.input_tokens,
        "candidatesTokenCount": visible,
        "totalTokenCount": reply.input_tokens + visible + reply.reasoning_tokens,
        "cachedContentTokenCount": reply.cached_tokens,
        "thoughtsTokenCount": reply.reasoning_tokens,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": reply.input_tokens}],
    }
