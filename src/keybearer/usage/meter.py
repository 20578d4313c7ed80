"""What an answer consumed, read from the answer as it passes. Pure: bytes in, a ``Usage`` out.

Nothing is decoded while bytes pass: of a stream, the first and the last event that can state usage are kept; a whole
answer is kept if it is small, else skimmed. Decoding happens once, at the end. What an answer does not say stays ``None``.

Sources, compared 2026-11-21: OpenAI API reference (chat, responses, embeddings: ``usage``), Anthropic API (messages,
streaming), Gemini API (``UsageMetadata``), OpenRouter (usage accounting: ``cost``), xAI (cost tracking:
``cost_in_usd_ticks``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from keybearer.catalog import ANTHROPIC, GEMINI
from keybearer.domain import MediaUsage, Usage
from keybearer.usage.search import USAGE, usage_at
from keybearer.usage.skim import Skimmer

_WHOLE_LIMIT: Final = 1024 * 1024  # bytes of a whole answer that are kept; decoding is fast, so only larger ones are skimmed
_PIECES_LIMIT: Final = 4_096
_EVENT_LIMIT: Final = 256 * 1024  # likewise of one event
_COST_LIMIT: Final = 10**6  # dollars of one call, likewise
_COUNT_LIMIT: Final = 10**12  # tokens; more is nonsense, and would not fit where it is stored
_MODEL_LIMIT: Final = 200
_TICKS_PER_USD: Final = 10**10

_BLANK_LINE: Final = b"\n\n"
"""Ends an event, with all providers we know. The standard has two more."""
_EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_END: Final = re.compile(rb"[\r\n]")
_DATA_LINE: Final = re.compile(rb"(?:^|[\r\n])data:")
_METADATA: Final = b'"usageMetadata"'
_GEMINI: Final = re.compile(_METADATA)
_SPACE: Final = b" \t\r\n\xef\xbb\xbf"

_READING: Final = frozenset({"embeddings", "rerank"})
"""Operations whose answers have no tokens of their own."""

_UNKNOWN, _WHOLE, _EVENTS, _SKIMMED, _LARGE_EVENT = range(5)


class _Answer(msgspec.Struct):
    """The parts of an answer, or of a stream's event, that say what it consumed."""

    usage: Any = None
    usage_metadata: Any = msgspec.field(default=None, name="usageMetadata")
    model: Any = None
    model_version: Any = msgspec.field(default=None, name="modelVersion")
    message: msgspec.Raw = msgspec.Raw(b"")
    response: msgspec.Raw = msgspec.Raw(b"")


_ANSWER: Final = msgspec.json.Decoder(_Answer)


_Count = Annotated[int, msgspec.Meta(ge=0, le=_COUNT_LIMIT)]


class _InputDetails(msgspec.Struct):
    cached_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None
    audio_tokens: Literal[0] | None = None
    image_tokens: Literal[0] | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: _Count | None = None
    audio_tokens: Literal[0] | None = None


class _ChatCounts(msgspec.Struct):
    """What OpenAI itself says of a chat of text alone. Who says more, or something else, is not read so."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    cost: None = None
    cost_in_usd_ticks: None = None
    prompt_cache_hit_tokens: None = None


class _Chat(msgspec.Struct):
    usage: _ChatCounts
    model: str


_CHAT: Final = msgspec.json.Decoder(_Chat)


def _metadata_at(data: bytes) -> int:
    return data.find(_METADATA)


def usage_of(dialect: str, operation: str, answer: bytes) -> Usage:
    """What a whole answer says it consumed. Never raises."""
    if operation == "chat.completions":
        plain = _plain_chat(answer)
        if plain is not None:
            return plain
    return _usage(dialect, operation, (_decode(answer),))


class Meter:
    """Watches one answer. ``feed`` each piece as it passes, ``finish`` once, however the answer ended."""

    __slots__ = ("_dialect", "_find", "_first", "_held", "_kept", "_last", "_mode", "_needle", "_operation", "_size", "_skimmer")

    def __init__(self, dialect: str, operation: str, streamed: bool) -> None:  # noqa: FBT001
        """``streamed``: the client asked for a stream. What came instead, an error say, is told from its first byte."""
        self._dialect = dialect
        self._operation = operation
        self._needle, self._find = (_GEMINI, _metadata_at) if dialect == GEMINI else (USAGE, usage_at)
        self._mode = _UNKNOWN if streamed else _WHOLE
        self._kept: list[bytes] = []
        self._size = 0
        self._held = b""
        self._first: bytes | None = None
        self._last: bytes | None = None
        self._skimmer: Skimmer | None = None

    @property
    def is_between_events(self) -> bool:
        """Whether an event stream is between two events now, so that an event of our own can follow."""
        return self._mode == _EVENTS and not self._held

    def feed(self, data: bytes) -> None:
        """Take the next piece of the body. Never raises."""
        if self._mode == _EVENTS:
            if self._held or not data.endswith(_BLANK_LINE):
                self._feed_events(data)
            elif (at := self._find(data)) >= 0:
                self._note_from(data, at)
        elif self._mode == _WHOLE:
            self._feed_whole(data)
        else:
            self._feed_other(data)

    def finish(self) -> Usage:
        """What the answer says it consumed. Never raises."""
        if self._mode == _WHOLE:
            return usage_of(self._dialect, self._operation, b"".join(self._kept))
        if self._skimmer is not None and self._mode == _SKIMMED:
            return _usage(self._dialect, self._operation, (_skimmed(self._skimmer),))
        return _usage(self._dialect, self._operation, self._answers())

    # --- a whole answer -----------------------------------------------------------------------------------------------

    def _feed_whole(self, data: bytes) -> None:
        self._kept.append(data)
        self._size += len(data)
        if self._size > _WHOLE_LIMIT or len(self._kept) > _PIECES_LIMIT:
            self._mode, self._skimmer = _SKIMMED, Skimmer()
            self._skimmer.feed(b"".join(self._kept))
            self._kept.clear()

    def _feed_other(self, data: bytes) -> None:
        if self._mode == _LARGE_EVENT:
            self._feed_large_event(data)
        elif self._skimmer is not None:
            self._skimmer.feed(data)
        else:
            data = (self._held + data).lstrip(_SPACE)
            self._held = b""
            if data:
                self._mode = {b"{": _WHOLE, b"[": _SKIMMED}.get(data[:1], _EVENTS)
                self._skimmer = Skimmer() if self._mode == _SKIMMED else None
                self.feed(data)

    # --- an event stream ----------------------------------------------------------------------------------------------

    def _feed_events(self, data: bytes) -> None:
        held = self._held
        if held:
            data = held + data
        searched = max(len(held) - 3, 0)  # what was held has no end of an event, but may have a part of one
        end = 0
        if b"\r" in data:
            for match in _EVENT_END.finditer(data, searched):
                end = match.end()
        elif (last := data.rfind(_BLANK_LINE, searched)) >= 0:
            end = last + len(_BLANK_LINE)
        events, self._held = data[:end], data[end:]
        if (at := self._find(events)) >= 0:
            self._note_from(events, at)
        if len(self._held) > _EVENT_LIMIT:
            self._begin_large_event()

    def _note_from(self, events: bytes, at: int) -> None:
        """Remember whole events, of which the one at ``at`` is the first that can state usage."""
        before = -1 if b"\r" in events else events.rfind(_BLANK_LINE, 0, at)
        self._note(events[before + len(_BLANK_LINE) :] if before >= 0 else events)

    def _note(self, events: bytes) -> None:
        """Remember whole events of which one can state usage."""
        if self._first is None:
            self._first = events
        self._last = events

    def _begin_large_event(self) -> None:
        """An event that is too large to keep, an image say: skim its data line. Events have one, from all providers we know."""
        line = _DATA_LINE.search(self._held)
        data, self._held = self._held[line.end() if line else len(self._held) :], b""
        self._mode, self._skimmer = _LARGE_EVENT, Skimmer()
        self._feed_large_event(data)

    def _feed_large_event(self, data: bytes) -> None:
        end = _LINE_END.search(data)
        skimmer = self._skimmer
        if skimmer is None:
            return
        skimmer.feed(data[: end.start()] if end else data)
        if end:
            if skimmer.found:
                self._note(b"data: " + _rebuilt(skimmer) + b"\n\n")
            self._mode, self._skimmer = _EVENTS, None
            self._feed_events(data[end.start() :])

    def _answers(self) -> Iterator[_Answer]:
        """The first and the last event that state usage, decoded, in their order."""
        if self._mode == _LARGE_EVENT and self._skimmer is not None:
            self._note(b"data: " + _rebuilt(self._skimmer) + b"\n\n")
        rest = self._held if self._needle.search(self._held) else b""
        if self._first is not None:
            yield from self._stating(self._candidates(self._first))
        last = (*self._candidates(self._last or b""), *self._candidates(rest))
        yield from self._stating(reversed(last))

    def _stating(self, events: Iterable[bytes]) -> Iterator[_Answer]:
        for event in events:
            answer = _decode(_data(event))
            if _states_usage(answer):
                yield answer
                return

    def _candidates(self, text: bytes) -> list[bytes]:
        """The events that may state usage. Where line feeds alone end lines, as they do, no other event is looked at."""
        if b"\r" in text:
            return [event for event in _EVENT_END.split(text) if self._needle.search(event) is not None]
        found: list[bytes] = []
        end = -2
        for match in self._needle.finditer(text):
            if match.start() > end:
                before = text.rfind(b"\n\n", 0, match.start())
                start = 0 if before < 0 else before + 2
                end = text.find(b"\n\n", match.end())
                end = len(text) if end < 0 else end
                found.append(text[start:end])
        return found


# --- decoding ---------------------------------------------------------------------------------------------------------


def _data(event: bytes) -> bytes:
    """The data of one event: its data lines, joined (WHATWG HTML, server-sent events)."""
    return b"\n".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))


def _decode(text: bytes) -> _Answer:
    """An answer's decisive parts; wrapped ones unwrapped. Empty where the text is no such answer."""
    try:
        answer = _ANSWER.decode(text)
        wrapped = bytes(answer.message) or bytes(answer.response)
        if wrapped and answer.usage is None:
            inner = _ANSWER.decode(wrapped)
            return inner if _states_usage(inner) else answer
    except (ValueError, RecursionError):
        return _Answer()
    return answer


def _rebuilt(skimmer: Skimmer) -> bytes:
    return b"{" + b",".join(b'"' + key + b'":' + value for key, value in skimmer.found.items()) + b"}"


def _skimmed(skimmer: Skimmer) -> _Answer:
    return _decode(_rebuilt(skimmer))


def _states_usage(answer: _Answer) -> bool:
    return isinstance(answer.usage, dict) or isinstance(answer.usage_metadata, dict)


def _usage(dialect: str, operation: str, answers: Iterable[_Answer]) -> Usage:
    """One usage from one answer, or from a stream's first and last: what is said later counts, the rest stays."""
    said: dict[str, Any] = {}
    model: str | None = None
    for answer in answers:
        usage = answer.usage_metadata if dialect == GEMINI else answer.usage
        if isinstance(usage, dict):
            said = {**said, **{key: value for key, value in usage.items() if value is not None}} if said else usage
        name = answer.model_version if dialect == GEMINI else answer.model
        if isinstance(name, str):
            model = name[:_MODEL_LIMIT]
    if not said:
        return Usage(model=model)
    if dialect == ANTHROPIC:
        return _anthropic(said, model)
    return _gemini(said, operation, model) if dialect == GEMINI else _openai(said, operation, model)


def _plain_chat(answer: bytes) -> Usage | None:
    """What ``_openai`` would make of an answer in OpenAI's own form, in a third of the time; ``None``: look closer."""
    try:
        chat = _CHAT.decode(answer)
    except (ValueError, RecursionError):
        return None
    said, model = chat.usage, chat.model
    given, made, total = said.prompt_tokens, said.completion_tokens, said.total_tokens
    if total != given + made:
        return None
    cached = written = reasoning = None
    inside, outside = said.prompt_tokens_details, said.completion_tokens_details
    if inside is not None:
        cached, written = inside.cached_tokens, inside.cache_write_tokens
    if outside is not None:
        reasoning = outside.reasoning_tokens
    if max(cached or 0, written or 0, reasoning or 0) > total:
        return None
    return Usage(given, made, cached, written, reasoning, model[:_MODEL_LIMIT])


def _openai(said: Mapping[str, Any], operation: str, model: str | None) -> Usage:
    """``prompt_tokens`` … of chat, completions and embeddings, ``input_tokens`` … of responses.

    Some compatible APIs leave the reasoning out of ``completion_tokens`` and count it only in ``total_tokens``. Where nothing is
    written, ``total_tokens`` may stand alone (Voyage). DeepSeek has a name of its own for what came from its cache.
    """
    given = _count(said.get("prompt_tokens", said.get("input_tokens")))
    made = _count(said.get("completion_tokens", said.get("output_tokens")))
    total = _count(said.get("total_tokens"))
    if given is None and operation in _READING:
        given = total
    inside = _part(said.get("prompt_tokens_details", said.get("input_tokens_details", said.get("input_token_details"))))
    outside = _part(said.get("completion_tokens_details", said.get("output_tokens_details")))
    reasoning = _count(outside.get("reasoning_tokens"))
    if given is not None and made is not None and total is not None and total > given + made:
        hidden = total - given - made
        made += hidden
        reasoning = max(reasoning or 0, hidden)
    usage = Usage(
        given,
        made,
        _count(inside.get("cached_tokens", said.get("prompt_cache_hit_tokens"))),
        _count(inside.get("cache_write_tokens")),
        reasoning,
        model,
        _cost(said),
    )
    media = (inside.get("audio_tokens"), inside.get("image_tokens"), outside.get("audio_tokens"))
    return _with_media(usage, *(_count(tokens) or 0 for tokens in media))


def _with_media(usage: Usage, audio: int, image: int, audio_output: int) -> Usage:
    """The same usage, where there is any with how much of it is no text."""
    if not (audio or image or audio_output):
        return usage
    return MediaUsage(**msgspec.structs.asdict(usage), audio_tokens=audio, image_tokens=image, audio_output_tokens=audio_output)


def _anthropic(said: Mapping[str, Any], model: str | None) -> Usage:
    """Here ``input_tokens`` leaves cached tokens out, read and written ones."""
    fresh = _count(said.get("input_tokens"))
    read = _count(said.get("cache_read_input_tokens"))
    written = _count(said.get("cache_creation_input_tokens"))
    return Usage(
        input_tokens=None if fresh is None else fresh + (read or 0) + (written or 0),
        output_tokens=_count(said.get("output_tokens")),
        cached_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=_count(_part(said.get("output_tokens_details")).get("thinking_tokens")),
        model=model,
        cost_usd=_cost(said),
        long_cache_write_tokens=_count(_part(said.get("cache_creation")).get("ephemeral_1h_input_tokens")),
    )


def _gemini(said: Mapping[str, Any], operation: str, model: str | None) -> Usage:
    """Zero counts are left out (protobuf's JSON mapping), so where content is generated, missing means none."""
    generated = operation in {"generateContent", "streamGenerateContent"}
    absent = 0 if generated else None
    thoughts = _count(said.get("thoughtsTokenCount"))
    prompt, tools = _count(said.get("promptTokenCount")), _count(said.get("toolUsePromptTokenCount"))
    made = _count(said.get("candidatesTokenCount"))
    usage = Usage(
        input_tokens=None if prompt is None else prompt + (tools or 0),
        output_tokens=(made or 0) + (thoughts or 0) if made is not None or thoughts is not None else absent,
        cached_tokens=_count(said.get("cachedContentTokenCount")),
        reasoning_tokens=thoughts,
        model=model,
    )
    given, answered = said.get("promptTokensDetails"), said.get("candidatesTokensDetails")
    return _with_media(usage, _modal(given, "AUDIO"), _modal(given, "IMAGE"), _modal(answered, "AUDIO"))


def _modal(details: Any, modality: str) -> int:
    """Tokens of one modality, of Gemini's ``ModalityTokenCount``s."""
    listed = details if isinstance(details, list) else ()
    return sum(_count(part.get("tokenCount")) or 0 for part in map(_part, listed) if part.get("modality") == modality)


_NO_PART: Final[Mapping[str, Any]] = {}


def _part(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _NO_PART


def _count(value: Any) -> int | None:
    """A number of tokens; ``None`` where there is none, or nonsense."""
    if type(value) is int:
        return value if 0 <= value <= _COUNT_LIMIT else None
    if isinstance(value, float) and value.is_integer():
        return _count(int(value))
    return None


def _cost(said: Mapping[str, Any]) -> float | None:
    """The cost in US dollars where the provider states one: OpenRouter's ``cost``, xAI's ``cost_in_usd_ticks``.

    With a key of the account's own at OpenRouter (``is_byok``) ``cost`` is its fee alone: what the other provider charges stands beside.
    """
    ticks = _count(said.get("cost_in_usd_ticks"))
    if ticks is not None:
        return ticks / _TICKS_PER_USD
    cost = _dollars(said.get("cost"))
    if cost is None or said.get("is_byok") is not True:
        return cost
    charged = _dollars(_part(said.get("cost_details")).get("upstream_inference_cost"))
    return None if charged is None else _dollars(cost + charged)


def _dollars(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= _COST_LIMIT else None
