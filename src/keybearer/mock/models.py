"""Lists of models, and OpenRouter's key information. Pure.

Sources: https://platform.openai.com/docs/api-reference/models, https://docs.anthropic.com/en/api/models-list,
https://ai.google.dev/api/models, https://openrouter.ai/docs/api-reference/limits.
"""

from __future__ import annotations

import re
from typing import Any

from keybearer.mock import anthropic, behaviour, openai
from keybearer.mock.reply import CREATED
from keybearer.mock.wire import Answer, Call, ProviderError, json_answer

COMPATIBLE = ("meta", "huggingface", "cohere", "voyage", "groq", "mistral", "together", "deepseek", "azure", "bedrock", "ollama")
"""Providers that speak OpenAI's dialect and nothing else that is played here; a prefix names them."""
MODELS: dict[str, tuple[str, ...]] = {
    "openai": ("gpt-5-mini", "gpt-4.1", "gpt-4o-mini", "text-embedding-3-small", "omni-moderation-latest", "mock"),
    "anthropic": ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-4-5", "mock"),
    "gemini": ("gemini-3.8-flash", "gemini-2.5-pro", "gemini-2.5-flash", "gemini-embedding-001", "mock"),
    "xai": ("grok-4.7", "grok-4-fast-reasoning", "mock"),
    "openrouter": ("openai/gpt-4o-mini", "anthropic/claude-sonnet-4.5", "mock/mock"),
    **dict.fromkeys(COMPATIBLE, ("mock",)),
}
"""The listed models. Calls work with any model's name."""

_MOST_ON_A_PAGE = 1000
_NUMBER = re.compile(r"[0-9]{1,6}")
_CREATED_TEXT = "2025-06-15T15:06:40Z"
_GEMINI_METHODS = ["generateContent", "countTokens", "createCachedContent", "batchGenerateContent"]


def openai_list(call: Call) -> Answer:
    """``GET …/models`` in the OpenAI dialect; OpenRouter adds prices."""
    entries = [_openai_model(call.provider, name) for name in MODELS[call.provider]]
    return json_answer({"object": "list", "data": entries}, headers=openai.HEADERS)


def openai_get(call: Call) -> Answer:
    """``GET …/models/{id}`` in the OpenAI dialect. Raises ``ProviderError``."""
    return json_answer(_openai_model(call.provider, _known(call)), headers=openai.HEADERS)


def anthropic_list(call: Call) -> Answer:
    """Anthropic's ``GET /v1/models``, in pages by ``limit`` and ``after_id``. Raises ``ProviderError``."""
    names = MODELS["anthropic"]
    after = call.query.get("after_id")
    start = names.index(after) + 1 if after in names else 0
    end = start + _page_size(call, "limit", 20)
    entries = [_anthropic_model(name) for name in names[start:end]]
    first, last = (entries[0]["id"], entries[-1]["id"]) if entries else (None, None)
    page = {"data": entries, "has_more": end < len(names), "first_id": first, "last_id": last}
    return json_answer(page, headers=anthropic.HEADERS)


def anthropic_get(call: Call) -> Answer:
    """Anthropic's ``GET /v1/models/{id}``. Raises ``ProviderError``."""
    return json_answer(_anthropic_model(_known(call)), headers=anthropic.HEADERS)


def gemini_list(call: Call) -> Answer:
    """Gemini's ``GET /v1beta/models``, in pages by ``pageSize`` and ``pageToken``. Raises ``ProviderError``."""
    names = MODELS["gemini"]
    token = call.query.get("pageToken", "")
    start = int(token) if _NUMBER.fullmatch(token) else 0
    end = start + _page_size(call, "pageSize", 50)
    page: dict[str, Any] = {"models": [_gemini_model(name) for name in names[start:end]]}
    if end < len(names):
        page["nextPageToken"] = str(end)
    return json_answer(page)


def gemini_get(call: Call) -> Answer:
    """Gemini's ``GET /v1beta/models/{id}``. Raises ``ProviderError``."""
    return json_answer(_gemini_model(_known(call)))


def openrouter_key(call: Call) -> Answer:
    """OpenRouter's ``GET /api/v1/key``: the only cheap call there that checks the key, as its model list is public."""
    data = {
        "label": f"{call.key[:6]}...{call.key[-3:]}",
        "usage": 0.25,
        "limit": 10,
        "limit_remaining": 9.75,
        "is_free_tier": False,
        "is_provisioning_key": False,
        "rate_limit": {"requests": -1, "interval": "10s"},
    }
    return json_answer({"data": data})


def _page_size(call: Call, name: str, default: int) -> int:
    given = call.query.get(name, str(default))
    if not _NUMBER.fullmatch(given) or not 1 <= int(given) <= _MOST_ON_A_PAGE:
        raise ProviderError(400, f"{name}: must be between 1 and {_MOST_ON_A_PAGE}")
    return int(given)


def _known(call: Call) -> str:
    """Return the model asked for, if it is listed or a mock model of any behaviour."""
    listed = MODELS[call.provider]
    if call.model in listed or behaviour.is_mock(call.model):
        return call.model
    raise ProviderError(404, f"The model '{call.model}' does not exist or you do not have access to it.")


def _openai_model(provider: str, name: str) -> dict[str, Any]:
    if provider == "openrouter":
        pricing = {"prompt": "0.000002", "completion": "0.000002", "request": "0"}
        return {"id": name, "name": name, "created": CREATED, "context_length": 128000, "pricing": pricing}
    return {"id": name, "object": "model", "created": CREATED, "owned_by": provider}


def _anthropic_model(name: str) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": _CREATED_TEXT, "lifecycle": "active"}


def _gemini_model(name: str) -> dict[str, Any]:
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": name,
        "description": "A model of the mock provider.",
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["embedContent"] if "embedding" in name else _GEMINI_METHODS,
    }
