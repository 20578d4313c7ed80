"""OpenAI's images and audio: the same picture and the same sound for everybody. Pure.

Sources: https://platform.openai.com/docs/api-reference/images and …/audio.
"""

from __future__ import annotations

import base64
from typing import Any

from keybearer.mock import refusal
from keybearer.mock.openai import HEADERS
from keybearer.mock.reply import CREATED, tokens
from keybearer.mock.wire import SSE, Answer, Call, ProviderError, json_answer, sse

PICTURE = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
SOUND = b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(range(256)) * 4
_IMAGE_TOKENS = 272
_TEXT = "Keys go in once."


def images(call: Call) -> Answer:
    """``POST …/images/generations``, ``…/edits`` and ``…/variations``."""
    drawn = base64.b64encode(PICTURE).decode()
    usage = _image_usage(call)
    if call.document.get("stream") is True:
        fields = {"b64_json": drawn, "created_at": CREATED, "usage": usage}
        done = {"type": "image_generation.completed"} | fields
        return Answer(
            events=(sse(done, "image_generation.completed"),), content_type=SSE, headers=HEADERS, error_event=refusal.event(call)
        )
    return json_answer({"created": CREATED, "data": [{"b64_json": drawn}], "usage": usage}, headers=HEADERS)


def speech(call: Call) -> Answer:
    """``POST …/audio/speech``: sound, or its stream of events. Raises ``ProviderError``."""
    said = call.document.get("input")
    if not isinstance(said, str) or not said:
        raise ProviderError(400, "Missing required parameter: 'input'.")
    if call.document.get("stream_format") != "sse":
        return Answer(body=SOUND, content_type="audio/mpeg", headers=HEADERS)
    given, made = tokens(said), len(SOUND) // 10
    usage = {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
    fields: tuple[dict[str, Any], ...] = (
        {"type": "speech.audio.delta", "audio": base64.b64encode(SOUND).decode()},
        {"type": "speech.audio.done", "usage": usage},
    )
    events = tuple(sse(field, field["type"]) for field in fields)
    return Answer(events=events, content_type=SSE, headers=HEADERS, error_event=refusal.event(call))


def transcription(call: Call) -> Answer:
    """``POST …/audio/transcriptions`` and ``…/translations``, a form."""
    heard = max(1, len(call.request.body) // 100)
    usage = {"type": "tokens", "input_tokens": heard, "output_tokens": tokens(_TEXT), "total_tokens": heard + tokens(_TEXT)}
    return json_answer(
        {"text": _TEXT, "usage": usage | {"input_token_details": {"text_tokens": 0, "audio_tokens": heard}}}, headers=HEADERS
    )


def _image_usage(call: Call) -> dict[str, Any]:
    given = tokens(call.document.get("prompt"))
    details = {"text_tokens": given, "image_tokens": 0}
    return {
        "input_tokens": given,
        "output_tokens": _IMAGE_TOKENS,
        "total_tokens": given + _IMAGE_TOKENS,
        "input_tokens_details": details,
    }
