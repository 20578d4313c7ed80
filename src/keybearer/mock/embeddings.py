"""Embeddings of OpenAI's and Gemini's dialects, and moderations: vectors that the text alone decides. Pure.

Sources: https://platform.openai.com/docs/api-reference/embeddings, …/moderations and https://ai.google.dev/api/embeddings.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from typing import Any

import msgspec

from keybearer.mock.openai import HEADERS
from keybearer.mock.reply import identifier, texts, tokens
from keybearer.mock.wire import Answer, Call, ProviderError, json_answer

_OPENAI_DIMENSIONS = 1536
_GEMINI_DIMENSIONS = 768
_MOST_DIMENSIONS = 4096
_MOST_INPUTS = 2048
_CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


def vector(said: Any, dimensions: int) -> list[float]:
    """Make a vector of length 1 that ``said`` alone decides."""
    seed = msgspec.json.encode(said)
    raw = struct.unpack(f"<{dimensions}h", hashlib.shake_256(seed).digest(dimensions * 2))
    norm = math.sqrt(sum(number * number for number in raw)) or 1.0
    return [number / norm for number in raw]


def embeddings(call: Call) -> Answer:
    """OpenAI's ``POST …/embeddings``: ``input`` is a text, token list, or list of either. Raises ``ProviderError``."""
    given = call.document.get("input")
    if not isinstance(given, str | list) or not given:
        raise ProviderError(400, "Missing required parameter: 'input'.")
    inputs = given if isinstance(given, list) and not all(isinstance(item, int) for item in given) else [given]
    if len(inputs) > _MOST_INPUTS:
        raise ProviderError(400, f"'input' array must have at most {_MOST_INPUTS} items.")
    dimensions = _dimensions(call.document.get("dimensions"), _OPENAI_DIMENSIONS)
    encode = _base64 if call.document.get("encoding_format") == "base64" else list
    data = [{"object": "embedding", "index": n, "embedding": encode(vector(item, dimensions))} for n, item in enumerate(inputs)]
    count = sum(tokens(item) for item in inputs)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return json_answer({"object": "list", "data": data, "model": call.model, "usage": usage}, headers=HEADERS)


def moderations(call: Call) -> Answer:
    """OpenAI's ``POST …/moderations``; a text with the word "violence" is flagged. Raises ``ProviderError``."""
    given = call.document.get("input")
    if not isinstance(given, str | list) or not given:
        raise ProviderError(400, "Missing required parameter: 'input'.")
    inputs = [given] if isinstance(given, str) else [item if isinstance(item, str) else texts([item]) for item in given]
    results = []
    for text in inputs:
        flags = {name: name in text.lower() for name in _CATEGORIES}
        scores = {name: 0.9 if flag else 0.0001 for name, flag in flags.items()}
        applied = {name: ["text"] for name in _CATEGORIES}
        flagged = any(flags.values())
        results.append(
            {"flagged": flagged, "categories": flags, "category_scores": scores, "category_applied_input_types": applied}
        )
    return json_answer({"id": identifier("modr-", call.request.body), "model": call.model, "results": results}, headers=HEADERS)


def embed_content(call: Call) -> Answer:
    """Gemini's ``POST …:embedContent``. Raises ``ProviderError``."""
    return json_answer({"embedding": _content_embedding(call.document)})


def batch_embed_contents(call: Call) -> Answer:
    """Gemini's ``POST …:batchEmbedContents``. Raises ``ProviderError``."""
    requests = call.document.get("requests")
    if not isinstance(requests, list) or not requests or len(requests) > _MOST_INPUTS:
        raise ProviderError(400, "* BatchEmbedContentsRequest.requests: requests is not specified")
    return json_answer({"embeddings": [_content_embedding(item if isinstance(item, dict) else {}) for item in requests]})


def _content_embedding(document: dict[str, Any]) -> dict[str, Any]:
    content = document.get("content")
    if not isinstance(content, dict):
        raise ProviderError(400, "* EmbedContentRequest.content: content is not specified")
    wanted = document.get("outputDimensionality", document.get("output_dimensionality"))
    return {"values": vector(texts(content.get("parts")), _dimensions(wanted, _GEMINI_DIMENSIONS))}


def _dimensions(wanted: Any, default: int) -> int:
    if wanted is None:
        return default
    if not isinstance(wanted, int) or not 1 <= wanted <= _MOST_DIMENSIONS:
        raise ProviderError(400, f"'dimensions' must be between 1 and {_MOST_DIMENSIONS}.")
    return wanted


def _base64(values: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
