"""What providers keep: files, batches, stored responses. Pure: an id is enough for a description, nothing is kept.

Sources: https://platform.openai.com/docs/api-reference (files, batches, responses), https://docs.anthropic.com/en/api (message batches),
https://ai.google.dev/api/files (uploads in two halves: the second goes, without a key, to the address that the first is answered).
"""

from __future__ import annotations

import re
from typing import Any

from keybearer.mock import anthropic
from keybearer.mock.openai import HEADERS
from keybearer.mock.reply import CREATED, identifier, tokens
from keybearer.mock.wire import Answer, Call, ProviderError, json_answer

CONTENT = b'{"custom_id":"kbtest-1","response":{"status_code":200,"body":{}}}\n'
"""Of every file."""
_NAMED = re.compile(r"/(?:files|batches|responses)/(?P<id>[A-Za-z0-9_-]+)")
_FILENAME = re.compile(rb'filename="([^"]*)"')
_CREATED_TEXT = "2025-06-15T15:06:40Z"


def file_create(call: Call) -> Answer:
    """OpenAI's ``POST …/files``, a form. Raises ``ProviderError``."""
    named = _FILENAME.search(call.request.body)
    if named is None:
        raise ProviderError(400, "'file' is a required property")
    name = named[1].decode("utf-8", "replace")
    return json_answer(_file(identifier("file-", call.request.body), name, len(call.request.body)), headers=HEADERS)


def file_list(_call: Call) -> Answer:
    """OpenAI's ``GET …/files``."""
    return json_answer({"object": "list", "data": [_file("file-kbtest", "kbtest.jsonl", len(CONTENT))], "has_more": False})


def file_get(call: Call) -> Answer:
    """OpenAI's ``GET …/files/{id}``."""
    return json_answer(_file(_id(call), "kbtest.jsonl", len(CONTENT)), headers=HEADERS)


def file_content(_call: Call) -> Answer:
    """OpenAI's ``GET …/files/{id}/content``."""
    return Answer(body=CONTENT, content_type="application/octet-stream", headers=HEADERS)


def file_delete(call: Call) -> Answer:
    """OpenAI's ``DELETE …/files/{id}``."""
    return json_answer({"id": _id(call), "object": "file", "deleted": True}, headers=HEADERS)


def batch_create(call: Call) -> Answer:
    """OpenAI's ``POST …/batches``. Raises ``ProviderError``."""
    source = call.document.get("input_file_id")
    if not isinstance(source, str):
        raise ProviderError(400, "Missing required parameter: 'input_file_id'.")
    return json_answer(_batch(identifier("batch_", call.request.body), source, "validating"), headers=HEADERS)


def batch_list(_call: Call) -> Answer:
    """OpenAI's ``GET …/batches``."""
    return json_answer({"object": "list", "data": [_batch("batch_kbtest", "file-kbtest", "completed")], "has_more": False})


def batch_get(call: Call) -> Answer:
    """OpenAI's ``GET …/batches/{id}``: it has just been completed."""
    return json_answer(_batch(_id(call), "file-kbtest", "completed"), headers=HEADERS)


def batch_cancel(call: Call) -> Answer:
    """OpenAI's ``POST …/batches/{id}/cancel``."""
    return json_answer(_batch(_id(call), "file-kbtest", "cancelling"), headers=HEADERS)


def response_get(call: Call) -> Answer:
    """OpenAI's ``GET …/responses/{id}``, and the answer to a cancellation."""
    usage = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
    found = {"id": _id(call), "object": "response", "created_at": CREATED, "status": "completed", "model": "mock", "output": []}
    return json_answer(found | {"usage": usage, "tools": [], "parallel_tool_calls": True, "tool_choice": "auto"}, headers=HEADERS)


def response_delete(call: Call) -> Answer:
    """OpenAI's ``DELETE …/responses/{id}``."""
    return json_answer({"id": _id(call), "object": "response", "deleted": True}, headers=HEADERS)


def response_items(call: Call) -> Answer:
    """OpenAI's ``GET …/responses/{id}/input_items``."""
    item = {"id": f"msg_{_id(call)}", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "kbtest"}]}
    page = {"object": "list", "data": [item], "first_id": item["id"], "last_id": item["id"], "has_more": False}
    return json_answer(page, headers=HEADERS)


def response_tokens(call: Call) -> Answer:
    """OpenAI's ``POST …/responses/input_tokens``."""
    counted = {"object": "response.input_tokens", "input_tokens": tokens(call.document.get("input"))}
    return json_answer(counted, headers=HEADERS)


def message_batch_create(call: Call) -> Answer:
    """Anthropic's ``POST /v1/messages/batches``. Raises ``ProviderError``."""
    asked = call.document.get("requests")
    if not isinstance(asked, list) or not asked:
        raise ProviderError(400, "requests: Field required")
    return json_answer(_message_batch(identifier("msgbatch_", call.request.body), "in_progress"), headers=anthropic.HEADERS)


def message_batch_list(_call: Call) -> Answer:
    """Anthropic's ``GET /v1/messages/batches``."""
    found = _message_batch("msgbatch_kbtest", "ended")
    return json_answer({"data": [found], "has_more": False, "first_id": found["id"], "last_id": found["id"]})


def message_batch_get(call: Call) -> Answer:
    """Anthropic's ``GET /v1/messages/batches/{id}``, and the answer to a cancellation."""
    return json_answer(_message_batch(_id(call), "ended"), headers=anthropic.HEADERS)


def message_batch_results(_call: Call) -> Answer:
    """Anthropic's ``GET /v1/messages/batches/{id}/results``: JSON lines."""
    return Answer(body=b'{"custom_id":"kbtest-1","result":{"type":"expired"}}\n', content_type="application/x-jsonl")


def message_batch_delete(call: Call) -> Answer:
    """Anthropic's ``DELETE /v1/messages/batches/{id}``."""
    return json_answer({"id": _id(call), "type": "message_batch_deleted"}, headers=anthropic.HEADERS)


def gemini_upload(call: Call) -> Answer:
    """Gemini's ``POST /upload/…/files``, either half. Raises ``ProviderError``."""
    if "finalize" in (call.request.header("x-goog-upload-command") or ""):
        made = _gemini_file(call.query.get("upload_id", ""), len(call.request.body))
        return json_answer({"file": made}, headers=(("x-goog-upload-status", "final"),))
    if call.request.header("x-goog-upload-command") != "start":
        raise ProviderError(400, "The upload's command is missing.")
    there = f"http://{call.request.header('host')}{call.request.target.partition('?')[0]}"
    place = f"{there}?upload_id={identifier('', call.request.body)}&upload_protocol=resumable"
    return json_answer({}, headers=(("x-goog-upload-url", place), ("x-goog-upload-status", "active")))


def gemini_file_list(_call: Call) -> Answer:
    """Gemini's ``GET …/files``."""
    return json_answer({"files": [_gemini_file("kbtest", len(CONTENT))]})


def gemini_file_get(call: Call) -> Answer:
    """Gemini's ``GET …/files/{id}``."""
    return json_answer(_gemini_file(_id(call), len(CONTENT)))


def gemini_file_delete(_call: Call) -> Answer:
    """Gemini's ``DELETE …/files/{id}``."""
    return json_answer({})


def _gemini_file(identity: str, size: int) -> dict[str, Any]:
    named = {"name": f"files/{identity}", "uri": f"https://gemini.mock.invalid/v1beta/files/{identity}"}
    return named | {"mimeType": "text/plain", "sizeBytes": str(size), "createTime": _CREATED_TEXT, "state": "ACTIVE"}


def _id(call: Call) -> str:
    found = _NAMED.search(call.request.target)
    return found["id"] if found else ""


def _file(identity: str, name: str, size: int) -> dict[str, Any]:
    kept = {"id": identity, "object": "file", "bytes": size, "created_at": CREATED, "filename": name}
    return kept | {"purpose": "batch", "status": "processed"}


def _batch(identity: str, source: str, status: str) -> dict[str, Any]:
    return {
        "id": identity,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "input_file_id": source,
        "completion_window": "24h",
        "status": status,
        "output_file_id": f"file-out{identity[-8:]}" if status == "completed" else None,
        "error_file_id": None,
        "created_at": CREATED,
        "request_counts": {"total": 1, "completed": int(status == "completed"), "failed": 0},
    }


def _message_batch(identity: str, status: str) -> dict[str, Any]:
    counts = {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 1}
    made = {"id": identity, "type": "message_batch", "processing_status": status, "request_counts": counts}
    times = {"created_at": _CREATED_TEXT, "expires_at": _CREATED_TEXT, "ended_at": None, "archived_at": None}
    return made | times | {"cancel_initiated_at": None, "results_url": None}
