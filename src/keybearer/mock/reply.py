"""What the mock model says, whatever the dialect: text in pieces or a tool call, and what it consumed. Pure and deterministic."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import msgspec

from keybearer.mock.behaviour import Behaviour

CREATED = 1_750_000_000
"""Unix seconds given as the time of every answer: the same request gets the same bytes."""
CHARACTERS_PER_TOKEN = 4
MOST_TEXT = 10_000_000
"""Characters, and pieces, of the longest answer."""

_WORDS = ("keys ", "go ", "in ", "once ", "and ", "never ", "come ", "out ", "by ", "accident, ")
_FILLER = "".join(_WORDS)
_DEFAULT_REASONING = 5
_DEEPEST_SCHEMA = 8
_DEFAULT_PIECES = 8


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a request offers: ``schema`` is the JSON schema of its arguments."""

    name: str
    schema: Any


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a request says, whatever the dialect."""

    said: Any
    """Everything that counts as input: messages, system prompt, tools, as decoded JSON."""
    text: str
    """The last message's text."""
    tools: tuple[Tool, ...] = ()
    tool_result: str | None = None
    """Text of the tool result that ends the conversation, if one does."""
    choice: str = "auto"
    """``auto``, ``none`` or the name of the tool that must be called."""
    limit: int | None = None
    """Most output tokens."""
    schema: Any = None
    """JSON schema that the answer's text is to fit, where the request demands one."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The call of a tool."""

    name: str
    arguments: dict[str, Any]

    @property
    def encoded(self) -> str:
        """The arguments as JSON text."""
        return msgspec.json.encode(self.arguments).decode()


@dataclass(frozen=True, slots=True)
class Reply:
    """What the mock model answers."""

    pieces: tuple[str, ...]
    call: ToolCall | None
    truncated: bool
    """Whether the limit of output tokens ended it."""
    input_tokens: int
    """All input tokens, cached ones included."""
    cached_tokens: int
    text_tokens: int
    """Output tokens without reasoning."""
    reasoning_tokens: int

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)


def compose(prompt: Prompt, behaviour: Behaviour) -> Reply:
    """Decide what to answer: a call of the first (or the demanded) tool, unless a tool result came last; else text."""
    count = tokens(prompt.said)
    cached = count // 4 if behaviour.cached is None else behaviour.cached
    reasoning = _DEFAULT_REASONING if behaviour.reasoning is None else behaviour.reasoning
    tool = _chosen(prompt)
    if tool is not None:
        example = sample(tool.schema)
        call = ToolCall(tool.name, example if isinstance(example, dict) else {})
        return Reply((), call, False, count, min(cached, count), tokens(call.arguments), reasoning)
    pieces = _pieces(prompt, behaviour)
    truncated = prompt.limit is not None and prompt.limit < len(pieces)
    pieces = pieces[: prompt.limit] if truncated else pieces
    return Reply(pieces, None, truncated, count, min(cached, count), len(pieces), reasoning)


def tokens(said: Any) -> int:
    """Count made-up, deterministic tokens: a quarter of the JSON's bytes, at least 1."""
    return max(1, len(msgspec.json.encode(said)) // CHARACTERS_PER_TOKEN)


def identifier(prefix: str, *parts: bytes) -> str:
    """Make an id in a provider's style that the request alone decides."""
    return prefix + hashlib.blake2b(b"\0".join(parts), digest_size=12).hexdigest()


def sample(schema: Any, depth: int = 0) -> Any:
    """Make the smallest value that fits a JSON schema's common keywords: required properties, enums, constants, types."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST_SCHEMA:
        return "kbtest"
    for keyword in ("const", "default"):
        if keyword in schema:
            return schema[keyword]
    enum = schema.get("enum")
    if isinstance(enum, list) and enum:
        return enum[0]
    for keyword in ("anyOf", "oneOf", "allOf"):
        options = schema.get(keyword)
        if isinstance(options, list) and options:
            return sample(options[0], depth + 1)
    return _sample_of_type(schema, depth)


def _sample_of_type(schema: Mapping[str, Any], depth: int) -> Any:
    kind = schema.get("type", "object")
    kind = str(kind[0] if isinstance(kind, list) and kind else kind).lower()  # Gemini writes types in capitals
    if kind == "object":
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        required = schema.get("required")
        names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else list(properties)
        return {name: sample(properties.get(name), depth + 1) for name in names}
    if kind == "array":
        return [sample(schema.get("items"), depth + 1)]
    return {"integer": 1, "number": 1.5, "boolean": True, "null": None}.get(kind, "kbtest")


def _chosen(prompt: Prompt) -> Tool | None:
    if not prompt.tools or prompt.choice == "none" or prompt.tool_result is not None:
        return None
    named = [tool for tool in prompt.tools if tool.name == prompt.choice]
    return (named or list(prompt.tools))[0]


def _pieces(prompt: Prompt, behaviour: Behaviour) -> tuple[str, ...]:
    if isinstance(prompt.schema, Mapping):
        return _split(msgspec.json.encode(sample(prompt.schema)).decode(), behaviour.chunks or _DEFAULT_PIECES)
    if behaviour.size is not None:
        size = min(behaviour.size, MOST_TEXT)
        text = (_FILLER * (size // len(_FILLER) + 1))[:size]
        return _split(text, behaviour.chunks or _DEFAULT_PIECES)
    if behaviour.chunks is not None:
        return tuple(islice(cycle(_WORDS), min(behaviour.chunks, MOST_TEXT)))
    if prompt.tool_result is not None:
        return _words(f"The tool answered: {prompt.tool_result[:200]}")
    return _words(f"Mock answer to: {prompt.text[:200]}")


def _words(text: str) -> tuple[str, ...]:
    *words, last = text.split(" ")
    return (*(word + " " for word in words), last)


def _split(text: str, count: int) -> tuple[str, ...]:
    count = max(1, min(count, len(text) or 1))
    step = -(-len(text) // count) or 1
    return tuple(text[start : start + step] for start in range(0, len(text), step)) or ("",)


def texts(content: Any, keys: Sequence[str] = ("text",)) -> str:
    """Join the text of a message's content: a string, or a list of parts with text under one of ``keys``."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    found = (part.get(key) for part in content if isinstance(part, dict) for key in keys)
    return " ".join(text for text in found if isinstance(text, str))
