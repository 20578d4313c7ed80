"""One chat for all providers (MISSION G13): our request to each dialect's, each dialect's answer to ours. Pure.

A ``Chat`` goes out as a body of OpenAI's chat completions, Anthropic's messages or Gemini's generateContent; what comes back, whole or
as events, becomes one ``Reply``. Sources, compared 2026-11-21: the API references of OpenAI (chat), Anthropic (messages, streaming)
and Gemini (generateContent, function calling, thought signatures).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from keybearer.catalog import ANTHROPIC, GEMINI, OPENAI, Provider
from keybearer.errors import FieldError, Invalid, UpstreamError, UpstreamMalformed
from keybearer.gateway.endpoints import Route
from keybearer.gateway.paths import route

Finish = Literal["stop", "length", "tool_calls", "filter", "other"]
DEFAULT_MAX_TOKENS: Final = 4096
"""Anthropic wants a limit; this is sent where the caller and the model's own defaults have none."""
_OWN_LIMIT: Final = frozenset({"openai", "azure"})
"""Their newer models take ``max_completion_tokens`` only; compatible APIs mostly know the older name only."""
_TARGETS: Final = {OPENAI: b"/v1/chat/completions", ANTHROPIC: b"/v1/messages"}
_EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_EVENT_LIMIT: Final = 16 * 2**20
_KEPT_LIMIT: Final = 32 * 2**20
_DECODED_BYTES, _PARTS_LIMIT = 64 * 1024, 500_000
"""From so many bytes on brackets and commas are counted before anything is decoded; 16 MB of them would take half a gigabyte."""
_CALLS_LIMIT: Final = 10_000
"""One more than the highest index of a call."""
_PIECE_BYTES: Final = 64
"""Of memory, that an answer is put together in, and that each piece of it takes beside its text. No model says so much, but a provider
of somebody's own may go on for ever."""
_FINISHES: Final[Mapping[str, Finish]] = {
    "stop": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
    "content_filter": "filter",
    "refusal": "filter",
    "safety": "filter",
    "recitation": "filter",
    "prohibited_content": "filter",
    "blocklist": "filter",
}


class ToolCall(msgspec.Struct, frozen=True):
    """The model wants a tool called."""

    id: str
    name: str
    arguments: dict[str, Any]
    signature: str = ""
    """What the provider wants back with the call, unchanged (Gemini's ``thoughtSignature``); its models from 3 on insist."""


class Message(msgspec.Struct, frozen=True):
    """One message: of ``system``, ``user``, ``assistant`` (with the calls it made) or ``tool`` (the result of one call)."""

    role: str
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may have called; ``parameters`` is a JSON schema."""

    name: str
    description: str
    parameters: dict[str, Any]


class Chat(msgspec.Struct, frozen=True):
    """What is asked."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    temperature: float | None = None
    max_tokens: int | None = None
    streamed: bool = False


class Delta(msgspec.Struct, frozen=True):
    """More of the text."""

    text: str


# --- asking -----------------------------------------------------------------------------------------------------------


def dialect_for(provider: Provider) -> str:
    """The dialect a chat is had in: a provider's own, else OpenAI's. Raises ``Invalid`` for who has none."""
    for dialect in (provider.name, OPENAI, *provider.apis):
        if dialect in provider.apis and dialect in _ASKING:
            return dialect
    raise Invalid(f"{provider.display_name} has no models to chat with.", fields=(FieldError("modelId", "is not a chat model"),))


def asked(chat: Chat, provider: Provider, dialect: str, model: str) -> tuple[Route, bytes]:
    """Where a chat goes and with what body; ``model`` is the whole name, ``provider/model``. Raises ``Invalid``."""
    body = _ASKING[dialect](chat, provider)
    if dialect == GEMINI:
        action = b"streamGenerateContent?alt=sse" if chat.streamed else b"generateContent"
        found = msgspec.structs.replace(route(b"POST", b"/v1beta/models/m:" + action, []), model=model)
    else:
        found = route(b"POST", _TARGETS[dialect], [])
        body = {"model": model, **body}
        if chat.streamed:
            body["stream"] = True
    return found, msgspec.json.encode(body)


def _openai(chat: Chat, provider: Provider) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [_openai_message(message) for message in chat.messages]}
    if chat.tools:
        body["tools"] = [
            {"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters}}
            for tool in chat.tools
        ]
    if chat.temperature is not None:
        body["temperature"] = chat.temperature
    if chat.max_tokens is not None:
        body["max_completion_tokens" if provider.name in _OWN_LIMIT else "max_tokens"] = chat.max_tokens
    if chat.streamed and provider.apis[OPENAI].asks_usage:
        body["stream_options"] = {"include_usage": True}
    return body


def _openai_message(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": message.content}
    if not message.tool_calls:
        return {"role": message.role, "content": message.content}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _text(call.arguments)}}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": message.content or None, "tool_calls": calls}


def _anthropic(chat: Chat, provider: Provider) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": _turns(chat, _anthropic_blocks, "assistant", "content")}
    system = _system(chat)
    if system:
        body["system"] = system
    if chat.tools:
        body["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.parameters} for tool in chat.tools
        ]
    if chat.temperature is not None:
        body["temperature"] = chat.temperature
    if chat.max_tokens is not None:
        body["max_tokens"] = chat.max_tokens
    elif provider.registered is None or "max_tokens" not in provider.registered.parameters:
        body["max_tokens"] = DEFAULT_MAX_TOKENS
    return body


def _anthropic_blocks(message: Message, names: Mapping[str, str]) -> list[dict[str, Any]]:
    del names
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content}]
    blocks: list[dict[str, Any]] = [{"type": "text", "text": message.content}] if message.content else []
    return blocks + [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments} for call in message.tool_calls
    ]


def _gemini(chat: Chat, provider: Provider) -> dict[str, Any]:
    del provider
    body: dict[str, Any] = {"contents": _turns(chat, _gemini_parts, "model", "parts")}
    system = _system(chat)
    if system:
        body["systemInstruction"] = {"parts": [{"text": system}]}
    if chat.tools:
        declared = [
            {"name": tool.name, "description": tool.description, "parametersJsonSchema": tool.parameters} for tool in chat.tools
        ]
        body["tools"] = [{"functionDeclarations": declared}]
    settings = {"temperature": chat.temperature, "maxOutputTokens": chat.max_tokens}
    given = {name: value for name, value in settings.items() if value is not None}
    return body | ({"generationConfig": given} if given else {})


def _gemini_parts(message: Message, names: Mapping[str, str]) -> list[dict[str, Any]]:
    if message.role == "tool":
        answered = {"id": message.tool_call_id, "name": names[message.tool_call_id], "response": {"result": message.content}}
        return [{"functionResponse": answered}]
    parts: list[dict[str, Any]] = [{"text": message.content}] if message.content else []
    return parts + [_gemini_call(call) for call in message.tool_calls]


def _gemini_call(call: ToolCall) -> dict[str, Any]:
    """Only the first of parallel calls has a signature, and must have it in the place where it came."""
    part: dict[str, Any] = {"functionCall": {"id": call.id, "name": call.name, "args": call.arguments}}
    return part | {"thoughtSignature": call.signature} if call.signature else part


Parts = Callable[[Message, Mapping[str, str]], list[dict[str, Any]]]


def _turns(chat: Chat, parts_of: Parts, model_role: str, key: str) -> list[dict[str, Any]]:
    """Messages as turns of two sides: what follows each other of one side is one turn, as these dialects want it."""
    names = {call.id: call.name for message in chat.messages for call in message.tool_calls}
    turns: list[dict[str, Any]] = []
    for message in chat.messages:
        if message.role == "system":
            continue
        role = model_role if message.role == "assistant" else "user"
        parts = parts_of(message, names)
        if turns and turns[-1]["role"] == role:
            turns[-1][key].extend(parts)
        else:
            turns.append({"role": role, key: parts})
    return turns


def _system(chat: Chat) -> str:
    return "\n\n".join(message.content for message in chat.messages if message.role == "system")


_ASKING: Final[Mapping[str, Callable[[Chat, Provider], dict[str, Any]]]] = {
    OPENAI: _openai,
    ANTHROPIC: _anthropic,
    GEMINI: _gemini,
}


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


# --- answers ----------------------------------------------------------------------------------------------------------


class Reply:
    """An answer as it is put together, from one whole body or from events."""

    def __init__(self, dialect: str) -> None:
        self.text: list[str] = []
        self.tool_calls: list[ToolCall] = []
        self.finish: Finish = "other"
        self._dialect = dialect
        self._held = bytearray()
        """What has come of an event that has not ended: of a large one, in pieces, it is not looked at over and over."""
        self._kept = self._parts = 0
        self._open: dict[int, list[str]] = {}
        """Calls whose arguments still come, by their index: id, name, JSON."""

    def take(self, body: bytes) -> None:
        """Read a whole answer. Raises ``UpstreamMalformed``."""
        document = _decoded(body)
        try:
            if self._dialect == ANTHROPIC:
                self._whole_anthropic(document)
            elif self._dialect == GEMINI:
                list(self._gemini_piece(document))
            else:
                choice = document["choices"][0]
                list(self._openai_piece(choice["message"], choice.get("finish_reason")))
                list(self._close())
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise UpstreamMalformed from error
        self._settle()

    def feed(self, data: bytes) -> Iterator[Delta | ToolCall]:
        """Read a part of an event stream; what is new. Raises ``UpstreamMalformed``, ``UpstreamError`` (the stream says so)."""
        held = self._held
        searched = max(len(held) - 3, 0)  # what was held has no end of an event, but may have a part of one
        held += data
        ends = [end.span() for end in _EVENT_END.finditer(held, searched)]
        events, at = [], 0
        for start, end in ends:
            events.append(bytes(held[at:start]))
            at = end
        del held[:at]
        if len(held) > _EVENT_LIMIT:
            raise UpstreamMalformed
        for event in events:
            said = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
            if said and said != b"[DONE]":
                try:
                    yield from self._event(_decoded(said))
                except (LookupError, TypeError, AttributeError, ValueError) as error:
                    raise UpstreamMalformed from error

    def end(self) -> Iterator[ToolCall]:
        """The stream is over: calls that are still open."""
        yield from self._close()
        self._settle()

    def _event(self, document: dict[str, Any]) -> Iterator[Delta | ToolCall]:
        if document.get("error"):
            raise _stream_error(document["error"])
        if self._dialect == ANTHROPIC:
            yield from self._anthropic_event(document)
        elif self._dialect == GEMINI:
            yield from self._gemini_piece(document)
        else:
            for choice in document.get("choices") or ():
                yield from self._openai_piece(choice.get("delta") or {}, choice.get("finish_reason"))

    def _keep(self, piece: str) -> str:
        self._kept += len(piece) + _PIECE_BYTES
        if self._kept > _KEPT_LIMIT:
            raise UpstreamMalformed("The provider's answer has no end.")
        return piece

    def _named(self, text: object) -> str:
        return self._keep(text) if isinstance(text, str) else ""

    def _brought(self, arguments: bytes) -> bytes:
        """What calls bring is kept, decoded."""
        self._parts += _parts(arguments)
        if self._parts > _PARTS_LIMIT:
            raise UpstreamMalformed("The provider's answer has no end.")
        return arguments

    def _said(self, text: object) -> Iterator[Delta]:
        if isinstance(text, str) and text:
            self._keep(text)
            self.text.append(text)
            yield Delta(text)

    def _openai_piece(self, message: dict[str, Any], finish: object) -> Iterator[Delta | ToolCall]:
        yield from self._said(message.get("content"))
        for number, call in enumerate(message.get("tool_calls") or ()):
            function = call.get("function") or {}
            index = call.get("index")
            part = self._open.setdefault(number if index is None else _index(index), ["", "", ""])
            part[0] = part[0] or self._named(call.get("id"))
            part[1] = part[1] or self._named(function.get("name"))
            part[2] += self._keep(function.get("arguments") or "")
        self._finished(finish)

    def _whole_anthropic(self, document: dict[str, Any]) -> None:
        for block in document["content"]:
            if block["type"] == "text":
                list(self._said(block["text"]))
            elif block["type"] == "tool_use":
                self.tool_calls.append(ToolCall(block["id"], block["name"], dict(block["input"])))
        self._finished(document.get("stop_reason"))

    def _anthropic_event(self, document: dict[str, Any]) -> Iterator[Delta | ToolCall]:
        kind, delta = document.get("type"), document.get("delta") or {}
        if kind == "content_block_start":
            block = document["content_block"]
            if block["type"] == "tool_use":
                self._open[_index(document["index"])] = [self._named(block["id"]), self._named(block["name"]), ""]
            elif block["type"] == "text":
                yield from self._said(block.get("text"))
        elif kind == "content_block_delta":
            if delta.get("type") == "text_delta":
                yield from self._said(delta["text"])
            elif delta.get("type") == "input_json_delta":
                self._open[document["index"]][2] += self._keep(delta["partial_json"])
        elif kind == "content_block_stop":
            yield from self._close()
        elif kind == "message_delta":
            self._finished(delta.get("stop_reason"))

    def _gemini_piece(self, document: dict[str, Any]) -> Iterator[Delta | ToolCall]:
        if (document.get("promptFeedback") or {}).get("blockReason"):
            self.finish = "filter"
        for candidate in (document.get("candidates") or ())[:1]:
            for part in (candidate.get("content") or {}).get("parts") or ():
                if "functionCall" in part:
                    made = part["functionCall"]
                    self._brought(self._keep(_text(part)).encode())
                    name = made.get("id") or f"call_{len(self.tool_calls)}"
                    signature = part.get("thoughtSignature")
                    call = ToolCall(
                        name, made["name"], dict(made.get("args") or {}), signature if isinstance(signature, str) else ""
                    )
                    self.tool_calls.append(call)
                    yield call
                elif not part.get("thought"):
                    yield from self._said(part.get("text"))
            self._finished(candidate.get("finishReason"))

    def _close(self) -> Iterator[ToolCall]:
        """The arguments of calls that were open are whole."""
        opened, self._open = self._open, {}
        for name, function, arguments in opened.values():
            made = _decoded(self._brought((arguments or "{}").encode()))
            call = ToolCall(name or f"call_{len(self.tool_calls)}", function, made)
            self.tool_calls.append(call)
            yield call

    def _finished(self, reason: object) -> None:
        if isinstance(reason, str):
            self.finish = _FINISHES.get(reason.lower(), "other")

    def _settle(self) -> None:
        if self.tool_calls and self.finish in {"stop", "other"}:  # Gemini says STOP with a call, too
            self.finish = "tool_calls"


def provider_words(body: bytes) -> str:
    """What a provider's error says, in its own words; empty where that is not told."""
    try:
        document = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return ""
    found = document[0] if isinstance(document, list) and document else document
    error = found.get("error", found) if isinstance(found, dict) else None
    return _message(error)


def _message(error: object) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    text = message if isinstance(message, str) else ""
    return "".join(character if character.isprintable() else " " for character in text[:300]).strip()


def _stream_error(error: object) -> UpstreamError:
    return UpstreamError(f"The provider broke off: {_message(error) or 'it gave no reason'}")


def _index(number: Any) -> int:
    """The index of a call, which is kept as well. Raises ``ValueError``, ``TypeError``."""
    if not 0 <= number < _CALLS_LIMIT:
        raise ValueError
    return int(number)


def _parts(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{") + text.count(b",")


def _decoded(text: bytes) -> dict[str, Any]:
    if len(text) > _DECODED_BYTES and _parts(text) > _PARTS_LIMIT:
        raise UpstreamMalformed
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise UpstreamMalformed from error


def check(messages: Sequence[Message]) -> None:
    """Raise ``Invalid`` unless each tool's result answers a call made before it, and somebody other than the system speaks."""
    made: set[str] = set()
    wrong: list[FieldError] = []
    for number, message in enumerate(messages):
        if message.role == "tool" and message.tool_call_id not in made:
            wrong.append(FieldError(f"messages.{number}.toolCallId", "answers no call made before it"))
        if not message.content and message.role in {"system", "user"}:
            wrong.append(FieldError(f"messages.{number}.content", "is empty"))
        if message.tool_calls and message.role != "assistant":
            wrong.append(FieldError(f"messages.{number}.toolCalls", "belong to messages of the assistant"))
        made |= {call.id for call in message.tool_calls}
    if all(message.role == "system" for message in messages):
        wrong.append(FieldError("messages", "has nothing but what the system says"))
    if wrong:
        raise Invalid(fields=tuple(wrong))
