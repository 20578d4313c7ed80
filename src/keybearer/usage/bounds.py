"""The most that a call may use, from its body alone: pure. What is not understood has no bound.

A token is at least one byte of text, so the body's size bounds a prompt of text. Pictures, files, stored conversations and what a
provider adds by itself have no such bound; then a model's context window is one, where it is known.
Sources: OpenAI API reference (chat completions, completions, responses, embeddings), Anthropic API reference (messages), Gemini
API reference (generateContent, whose JSON takes both spellings of a name: protobuf's JSON mapping); compared 2026-11-21.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import ceil
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

FREE: Final = frozenset({"messages.count_tokens", "countTokens", "models", "models.get"})
_BACKSLASH: Final = ord("\\")
_TOOLS_EXTRA: Final = 2048
"""Tokens that providers add of their own where there are tools: some hundred."""
_ANSWERS_LIMIT: Final = 10_000
_PARTS_LIMIT: Final = 500_000
"""Brackets and commas of a body that is decoded: some tenths of a second. Ten millions of them would hold up everybody's calls."""
_TEXT_PARTS: Final = frozenset(
    {"text", "refusal", "input_text", "output_text", "summary_text", "reasoning_text"}
    | {"tool_use", "tool_result", "thinking", "redacted_thinking"}
)
_TEXT_ITEMS: Final = frozenset(
    {"message", "function_call", "function_call_output", "reasoning", "custom_tool_call", "custom_tool_call_output"}
)
_OWN_TOOLS: Final = frozenset({"function", "custom"})
"""Tools that the client runs: what others use, the provider charges for by itself."""
_GEMINI_TEXT: Final = frozenset(
    {"text", "functionCall", "function_call", "functionResponse", "function_response", "thought", "thoughtSignature"}
    | {"thought_signature"}
)
_CHARGED_APART: Final = frozenset(
    {"web_search_options", "mcp_servers", "container", "audio", "background"}
    # OpenRouter's: other models, at their prices, and what it does beside (its documentation, compared 2026-11-21)
    | {"models", "fallbacks", "route", "preset", "plugins"}
)
_KEPT_ELSEWHERE: Final = frozenset({"previous_response_id", "conversation", "prompt", "cachedContent", "cached_content"})
_TIERS: Final[Mapping[str, frozenset[str]]] = {
    "service_tier": frozenset({"auto", "default", "flex", "standard", "standard_only"}),
    "speed": frozenset({"standard"}),
    "inference_geo": frozenset({"global"}),
}
"""Fields that choose a tier, and those that cost no more than what is listed: OpenAI's ``priority`` costs twice as much (its page of
priority processing, now fast mode, compared 2026-11-21); Anthropic's ``speed`` and ``inference_geo`` have prices of their own, too."""
_DECISIVE: Final = (
    _CHARGED_APART
    | _TIERS.keys()
    | _KEPT_ELSEWHERE
    | {"max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of", "tools", "functions"}
    | {"messages", "input", "system"}
)
"""Some readers take them in any case of letters; all are lower case but one, which stands for itself."""


class Asked(NamedTuple):
    """What a call asks for at most, in tokens. ``None``: as much as the model can."""

    given: int | None
    made: int | None
    """Of one answer."""
    answers: int = 1
    is_bounded: bool = True
    """Else nobody knows."""
    is_listed: bool = True
    """At the prices that are listed: no tier that costs more."""


_UNBOUNDED: Final = Asked(None, None, is_bounded=False)
_NOTHING: Final = Asked(0, 0)


class _Piece(msgspec.Struct):
    type: Literal["text", "refusal"]
    content: None = None


class _Message(msgspec.Struct):
    content: str | list[_Piece] | None = None


class _Tool(msgspec.Struct):
    type: Literal["function"]


class _Plain(msgspec.Struct, forbid_unknown_fields=True):
    """A chat of text with nothing special to it, as most are: read so, it costs a fifth. Others are decoded and looked at."""

    messages: list[_Message]
    model: msgspec.Raw = msgspec.Raw()
    system: str | list[_Piece] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=_ANSWERS_LIMIT)] | msgspec.UnsetType = msgspec.UNSET
    tools: list[_Tool] | None = None
    tool_choice: msgspec.Raw = msgspec.Raw()
    parallel_tool_calls: msgspec.Raw = msgspec.Raw()
    stream: msgspec.Raw = msgspec.Raw()
    stream_options: msgspec.Raw = msgspec.Raw()
    temperature: msgspec.Raw = msgspec.Raw()
    top_p: msgspec.Raw = msgspec.Raw()
    top_k: msgspec.Raw = msgspec.Raw()
    frequency_penalty: msgspec.Raw = msgspec.Raw()
    presence_penalty: msgspec.Raw = msgspec.Raw()
    stop: msgspec.Raw = msgspec.Raw()
    stop_sequences: msgspec.Raw = msgspec.Raw()
    seed: msgspec.Raw = msgspec.Raw()
    user: msgspec.Raw = msgspec.Raw()
    metadata: msgspec.Raw = msgspec.Raw()
    response_format: msgspec.Raw = msgspec.Raw()
    reasoning_effort: msgspec.Raw = msgspec.Raw()


_PLAIN: Final = msgspec.json.Decoder(_Plain)
_PLAIN_OPERATIONS: Final = frozenset({"chat.completions", "messages"})


class _Doubtful(Exception):  # never leaves this module
    """It can be read in two ways, or is of no known form."""


def asked(operation: str, method: bytes, body: bytes) -> Asked:
    """What a call of ``operation`` with this body (as it goes to the provider) asks for."""
    if operation in FREE:
        return _NOTHING
    plain = _plain(operation, body) if operation in _PLAIN_OPERATIONS else None
    if plain is not None:
        return plain
    reader = _READERS.get(operation)
    if reader is None:
        return _NOTHING if method in {b"GET", b"HEAD", b"DELETE"} and operation != "http" else _UNBOUNDED
    if sum(map(body.count, (b"{", b"[", b","))) > _PARTS_LIMIT:
        return _UNBOUNDED
    try:
        document = json.loads(body, object_pairs_hook=_unambiguous)
        if not isinstance(document, dict):
            return _UNBOUNDED
        return reader(document, len(body))._replace(is_listed=_is_listed(document))
    except (_Doubtful, ValueError, RecursionError, OverflowError):
        return _UNBOUNDED


def _plain(operation: str, body: bytes) -> Asked | None:
    """What a chat asks for that has nothing special to it; ``None``: it must be looked at."""
    try:
        chat = _PLAIN.decode(body)
    except (ValueError, RecursionError):
        return None
    if chat.max_completion_tokens is not None and operation != "chat.completions":
        return None  # nobody else bounds an answer by it
    made, completion = chat.max_tokens, chat.max_completion_tokens
    if made is not None and not _stands_once(b'"max_tokens"', body):
        return None
    if completion is not None:
        if not _stands_once(b'"max_completion_tokens"', body):
            return None
        made = completion if made is None else max(made, completion)
    answers = 1
    if chat.n is not msgspec.UNSET:
        if not _stands_once(b'"n"', body):
            return None
        answers = chat.n
    return Asked(len(body) + (_TOOLS_EXTRA if chat.tools else 0), made, answers)


def _stands_once(name: bytes, body: bytes) -> bool:
    """Of a key that stands twice, perhaps once with escapes, a decoder does not tell."""
    return body.count(name) == 1 and (_BACKSLASH not in body or b"\\u" not in body)


def _is_listed(document: Mapping[str, Any]) -> bool:
    return all(document.get(name) in (None, *usual) for name, usual in _TIERS.items())


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers disagree on which of two equal keys counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Doubtful
    return found


def _embedding(document: Mapping[str, Any], size: int) -> Asked:
    given = [document.get(name) for name in ("input", "content", "requests") if name in document]
    return Asked(size if all(map(_is_plain, given)) else None, 0)


def _is_plain(given: Any) -> bool:
    """Whether what is to be embedded is text all through."""
    if isinstance(given, str | int):
        return True
    if isinstance(given, list):
        return all(map(_is_plain, given))
    if not isinstance(given, dict):
        return False
    if "content" in given:
        return _is_plain(given["content"])
    return "parts" in given and all(_mapping(part).keys() == {"text"} for part in _parts(given))


def _chat(document: Mapping[str, Any], size: int) -> Asked:
    _check_charged(document)
    messages = _list(document.get("messages"))
    is_text = all(_is_text(_mapping(message).get("content")) for message in messages)
    made = _tightest(document, "max_tokens", "max_completion_tokens")
    return Asked(_given(document, size, is_text=is_text), made, _count(document.get("n")))


def _completion(document: Mapping[str, Any], size: int) -> Asked:
    _check_charged(document)
    prompt = document.get("prompt")
    several = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    answers = max(_count(document.get("n")), _count(document.get("best_of"))) * several
    return Asked(size, _tightest(document, "max_tokens"), min(answers, _ANSWERS_LIMIT))


def _responses(document: Mapping[str, Any], size: int) -> Asked:
    _check_charged(document)
    given = document.get("input")
    is_text = given is None or isinstance(given, str)
    if isinstance(given, list):
        is_text = all(_is_text_item(_mapping(item)) for item in given)
    return Asked(_given(document, size, is_text=is_text), _tightest(document, "max_output_tokens"))


def _is_text_item(item: Mapping[str, Any]) -> bool:
    kind = item.get("type", "message")
    return kind in _TEXT_ITEMS and _is_text(item.get("content")) and _is_text(item.get("output"))


def _messages(document: Mapping[str, Any], size: int) -> Asked:
    _check_charged(document)
    contents = [_mapping(message).get("content") for message in _list(document.get("messages"))]
    is_text = all(map(_is_text, [*contents, document.get("system")]))
    return Asked(_given(document, size, is_text=is_text), _tightest(document, "max_tokens"))


def _generate(document: Mapping[str, Any], size: int) -> Asked:
    for tool in _list(document.get("tools")):
        if not _mapping(tool).keys() <= {"functionDeclarations", "function_declarations"}:
            raise _Doubtful
    contents = _list(document.get("contents", []))
    if isinstance(document.get("contents"), dict):
        contents = [document["contents"]]
    system = [document[name] for name in ("systemInstruction", "system_instruction") if name in document]
    parts = [part for content in (*contents, *system) for part in _parts(_mapping(content))]
    is_text = all(_mapping(part).keys() <= _GEMINI_TEXT for part in parts)
    is_text = is_text and _KEPT_ELSEWHERE.isdisjoint(document)
    configs = [_mapping(document[name]) for name in ("generationConfig", "generation_config") if name in document]
    if len(configs) > 1:
        raise _Doubtful
    config = configs[0] if configs else {}
    answers = max(_count(config.get("candidateCount")), _count(config.get("candidate_count")))
    return Asked(_given(document, size, is_text=is_text), _tightest(config, "maxOutputTokens", "max_output_tokens"), answers)


def _parts(content: Mapping[str, Any]) -> list[Any]:
    parts = content.get("parts", [])
    return [parts] if isinstance(parts, dict) else _list(parts)


_READERS: Final = {
    "chat.completions": _chat,
    "completions": _completion,
    "responses": _responses,
    "messages": _messages,
    "generateContent": _generate,
    "streamGenerateContent": _generate,
    "embeddings": _embedding,
    "embedContent": _embedding,
    "batchEmbedContents": _embedding,
    "moderations": _embedding,
}


def _check_charged(document: Mapping[str, Any]) -> None:
    """Raise ``_Doubtful`` where the provider does something that it charges for by itself, or may read another key than we."""
    if any(key not in _DECISIVE and key.casefold() in _DECISIVE for key in document):
        raise _Doubtful
    if any(document.get(name) for name in _CHARGED_APART):
        raise _Doubtful
    for tool in _list(document.get("tools")):
        if _mapping(tool).get("type", "custom") not in _OWN_TOOLS:
            raise _Doubtful


def _given(document: Mapping[str, Any], size: int, *, is_text: bool) -> int | None:
    if not is_text or any(document.get(name) for name in _KEPT_ELSEWHERE):
        return None
    return size + (_TOOLS_EXTRA if document.get("tools") or document.get("functions") else 0)


def _is_text(content: Any) -> bool:
    """Whether a message's content is text all through."""
    if content is None or isinstance(content, str):
        return True
    if not isinstance(content, list):
        return False
    return all(
        isinstance(piece, str)
        or (isinstance(piece, dict) and piece.get("type") in _TEXT_PARTS and _is_text(piece.get("content")))
        for piece in content
    )


def _tightest(document: Mapping[str, Any], *names: str) -> int | None:
    """The most tokens of an answer that the call states. Of two spellings the larger counts: either may be the one that is read."""
    stated = [document[name] for name in names if document.get(name) is not None]
    if not stated:
        return None
    if not all(isinstance(number, int | float) and not isinstance(number, bool) and number >= 0 for number in stated):
        raise _Doubtful
    largest: float = max(stated)
    return ceil(largest)


def _count(number: Any) -> int:
    """How many answers are asked for: one, if it is not said."""
    if number is None:
        return 1
    if not isinstance(number, int | float) or isinstance(number, bool) or not 0 <= number <= _ANSWERS_LIMIT:
        raise _Doubtful
    return max(1, ceil(number))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Doubtful
    return value
