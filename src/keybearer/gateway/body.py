"""The few keys of a JSON body that decide where a request goes, and how to change them without touching the rest.

Bodies are decoded no further than needed, and never searched for patterns: a position is used only where it is proven to
be the top-level key. A key that decides and stands twice is refused, because readers disagree on which one counts
(RFC 8259, section 4), and the provider might follow another model than the one that was checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from keybearer.errors import FieldError, Invalid, InvalidJson

_SPACE: Final = re.compile(rb"[ \t\r\n]*")
# Possessive: with a way back kept for each byte, one long key costs 120 times its size in memory.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_COLON: Final = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_ESCAPED_LETTER: Final = re.compile(rb"\\u(?:00[4-7]|017[Ff])")
_LONG_S: Final = "\u017f".encode()
"""A letter that case folding makes an ``s``: providers written in Go take it for one in a key."""
_INCLUDE_USAGE: Final = b'"stream_options":{"include_usage":true},'

_SMALL: Final = 4096
"""Bytes. Measured: looking for needles costs 0.5 to 4 ns a byte, decoding 0.25, walking over the keys 1 µs a key."""
_KEYS_LIMIT: Final = 1_000  # no request has so many; a million of them would hold up everybody's calls for seconds
_PARTS_LIMIT: Final = 500_000
"""Brackets and commas of a body that is decoded as a whole: some tenths of a second, and 50 MB."""

_ABSENT: Final = msgspec.Raw(b"")
_DECISIVE: Final = frozenset({"model", "stream", "stream_options"})


class Head(msgspec.Struct):
    """The decisive keys of a request body. ``UNSET`` (and empty ``stream_options``): the key does not stand there at all."""

    model: str | msgspec.UnsetType | None = msgspec.UNSET
    stream: bool | msgspec.UnsetType | None = msgspec.UNSET
    stream_options: msgspec.Raw = _ABSENT


class _Nothing(msgspec.Struct):
    """No key decides: the body must be a JSON object."""


_HEAD: Final = msgspec.json.Decoder(Head)
_NOTHING: Final = msgspec.json.Decoder(_Nothing)
_RAW: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FURTHER_MODELS: Final = frozenset({"models", "fallbacks", "route", "preset"})
_FURTHER_NEEDLE: Final = re.compile(rb'"(?:model[^"]|fallbac|route|pre)|\\u', re.IGNORECASE)
_ANY: Final = msgspec.json.Decoder(dict[str, Any])
_KEY: Final = msgspec.json.Decoder(str)
_STREAM: Final = {b"true": True, b"false": False}

Spans = dict[str, tuple[int, int]]
"""By top-level key, where its value begins and ends."""


class Document:
    """A request body with its decisive keys. Raises at construction: ``InvalidJson``, ``Invalid`` (wrong type, stands twice)."""

    __slots__ = ("_compact", "_edits", "_spans", "body", "head")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self._edits: list[tuple[int, int, bytes]] = []
        self._spans: Spans | None = None
        self._compact: Mapping[str, msgspec.Raw] | None = None
        """The top-level keys of a body without white space around them and their values."""
        try:
            if not body.isascii():
                body.decode()  # msgspec does not look into strings that it skips
            values = decode_keys(body)
            if _is_compact(body, values):
                self._compact = values
            else:
                if len(body) <= _SMALL:
                    self.head = _HEAD.decode(body)
                    if _stand_once(body, self.head):
                        return
                self._spans = _walk(body, values)
            self.head = _head(values)
        except msgspec.ValidationError as error:
            raise _wrong_type(error) from None
        except (ValueError, RecursionError) as error:
            raise _not_json(error) from None

    def rename(self, model: str) -> None:
        """Replace the top-level ``model``, which is a string."""
        start, end = self._model_span()
        self._edits.append((start, end, msgspec.json.encode(model)))

    def put_defaults(self, defaults: Mapping[str, Any]) -> None:
        """Add the top-level keys of ``defaults`` that do not stand there; in any case of letters, as some providers read them."""
        there = {key.casefold() for key in _RAW.decode(self.body)}
        missing = {key: value for key, value in defaults.items() if key.casefold() not in there}
        if missing:
            brace = self.body.index(b"{") + 1
            self._edits.append((brace, brace, msgspec.json.encode(missing)[1:-1] + b","))  # other keys follow: there is a model

    def ask_usage(self) -> bool:
        """Ask for the usage event at a stream's end (``stream_options.include_usage``); ``False``: the body does already.

        Raises ``Invalid`` where ``stream_options`` is no object. Source: OpenAI API reference, chat completions.
        """
        options = bytes(self.head.stream_options)
        if not options:
            brace = self.body.index(b"{") + 1
            self._edits.append((brace, brace, _INCLUDE_USAGE))  # other keys follow: there is a model
            return True
        if len(options) > _SMALL:  # decoded, brackets take twenty times their size, and other calls wait
            raise Invalid(fields=(FieldError("stream_options", "is too large"),))
        try:
            decoded = {} if options == b"null" else _ANY.decode(options)
        except msgspec.DecodeError:
            raise Invalid(fields=(FieldError("stream_options", "must be an object"),)) from None
        if decoded.get("include_usage") is True:
            return False
        start, end = self._span("stream_options")
        self._edits.append((start, end, msgspec.json.encode({**decoded, "include_usage": True})))
        return True

    def names_further_models(self) -> bool:
        """Whether the body lets the provider follow another model than ``model``.

        OpenRouter takes ``models``, ``route`` and ``preset``, its and Anthropic's messages ``fallbacks`` (their documentation of model
        routing, compared 2026-11-21).
        """
        if len(self.body) <= _SMALL and _FURTHER_NEEDLE.search(self.body) is None:
            return False
        return not _FURTHER_MODELS.isdisjoint(key.casefold() for key in _RAW.decode(self.body))

    def spliced(self) -> bytes:
        """The body with the changes made, every other byte as it came."""
        if not self._edits:
            return self.body
        if len(self._edits) == 1:
            start, end, text = self._edits[0]
            return b"".join((self.body[:start], text, self.body[end:]))
        pieces: list[bytes] = []
        at = 0
        for start, end, text in sorted(self._edits):
            pieces += (self.body[at:start], text)
            at = end
        pieces.append(self.body[at:])
        return b"".join(pieces)

    def _model_span(self) -> tuple[int, int]:
        if self._compact is not None:
            return _compact_span(self._compact, "model")
        if self._spans is None:
            # Proven to stand once, so this is the key; the two ways in which encoders write a colon.
            at = self.body.index(b'"model"') + len(b'"model"')
            literal = b'"%b"' % str(self.head.model).encode()
            for colon in (b":", b": "):
                if self.body.startswith(colon + literal, at):
                    return at + len(colon), at + len(colon) + len(literal)
        return self._span("model")

    def _span(self, name: str) -> tuple[int, int]:
        """Where the value of a key begins and ends that stands there."""
        if self._compact is not None:
            return _compact_span(self._compact, name)
        if self._spans is None:
            self._spans = _walk(self.body, _RAW.decode(self.body))
        return self._spans[name]


def decode_keys(text: bytes) -> dict[str, msgspec.Raw]:
    """The top-level keys of a JSON object, of which it may have a thousand, with their values' text.

    Raises ``Invalid`` for more, before they are decoded, and what msgspec raises.
    """
    if len(text) <= _SMALL:
        return _RAW.decode(text)
    count = 0

    def counted(_type: type, key: str) -> _Key:
        nonlocal count
        count += 1
        if count > _KEYS_LIMIT:
            raise ValueError
        return _Key(key)

    try:
        found: dict[str, msgspec.Raw] = msgspec.json.decode(text, type=dict[_Key, msgspec.Raw], dec_hook=counted)
    except msgspec.ValidationError:
        if count <= _KEYS_LIMIT:
            raise
        raise Invalid(
            f"The body has more than {_KEYS_LIMIT} keys at its top level.", hint="Send what the API documents."
        ) from None
    return found


class _Key(str):
    """A key that is counted: msgspec asks how to make what it does not know itself."""

    __slots__ = ()


def check_object(body: bytes) -> None:
    """Raise ``InvalidJson`` unless the body is one JSON object."""
    try:
        _NOTHING.decode(body)
        if not body.isascii():
            body.decode()
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from None


def rename_inside(body: bytes, old: str, new: str) -> bytes:
    """Gemini's embedding and counting bodies repeat the path's model in ``model`` and ``requests[].model``: rename those, too.

    Decodes and encodes again: such bodies are rare, and their values keep their meaning. Raises ``InvalidJson``, ``Invalid``.
    """
    if body.count(b"[") + body.count(b"{") + body.count(b",") > _PARTS_LIMIT:
        raise Invalid(
            "The body has too many parts to put another model's name into it.", hint="Name the model as the provider does."
        )
    try:
        decoded = _ANY.decode(body)
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from None
    requests = decoded.get("requests")
    nested = decoded.get("generateContentRequest")
    for part in (decoded, nested, *(requests if isinstance(requests, list) else ())):
        if isinstance(part, dict) and part.get("model") in (old, f"models/{old}"):
            part["model"] = f"models/{new}"
    return msgspec.json.encode(decoded)


# --- positions --------------------------------------------------------------------------------------------------------


def _stand_once(body: bytes, head: Head) -> bool:
    """Whether each decisive key provably stands at most once, at any depth: the fast answer for nearly every small body.

    A quotation mark inside a string is escaped, so ``"model"`` in these bytes is a whole string. No letter is escaped
    either, nor is one there that folds to an ASCII one, so no other spelling of the key exists. What was not decoded does
    not stand at the top level at all. Case does not tell keys apart here: providers written in Go take ``"Model"`` for ``"model"``.
    """
    lowered = body.lower()
    if head.model is not msgspec.UNSET and lowered.count(b'"model"') > 1:
        return False
    if head.stream is not msgspec.UNSET and lowered.count(b'"stream"') > 1:
        return False
    if head.stream_options is not _ABSENT and lowered.count(b'"stream_options"') > 1:
        return False
    # One byte is found by memchr, ten times as fast as three.
    return (b"\\" not in body or _ESCAPED_LETTER.search(body) is None) and _LONG_S not in body


def _is_compact(body: bytes, values: Mapping[str, msgspec.Raw]) -> bool:
    """Whether a body has no white space around its keys and values, as SDKs write it, and no key twice.

    The sizes add up to the body's only if no key stands twice, none has an escape and there is no white space: each of these makes
    the body longer than what the decoder kept of it.
    """
    if 1 + sum(map(len, values)) + sum(map(len, values.values())) + 4 * len(values) != len(body):
        return False
    names = "".join(values)
    return (names.isascii() and names.islower()) or not any(_is_misspelled(key, values) for key in values)


def _is_misspelled(key: str, values: Mapping[str, msgspec.Raw]) -> bool:
    """Whether a key differs from a decisive one in case only, and both stand there."""
    folded = key.casefold()
    return folded != key and folded in _DECISIVE and folded in values


def _compact_span(values: Mapping[str, msgspec.Raw], name: str) -> tuple[int, int]:
    """Where a value stands in a body of which ``_is_compact`` is true."""
    end = 0
    for key, raw in values.items():
        start = end + len(key) + 4
        end = start + len(raw)
        if key == name:
            return start, end
    raise KeyError(name)


def _head(values: Mapping[str, msgspec.Raw]) -> Head:
    """The decisive keys, out of all. Raises ``msgspec.ValidationError``."""
    if "stream_options" not in values and "model" in values:  # as most are: one look-up is cheaper than decoding anew
        stream = _STREAM.get(bytes(values["stream"])) if "stream" in values else msgspec.UNSET
        model = bytes(values["model"])
        if stream is not None and model[:1] == b'"':
            return Head(_KEY.decode(model), stream)
    decisive = {key: raw for key, raw in values.items() if key in _DECISIVE}
    return _HEAD.decode(msgspec.json.encode(decisive))


def _walk(body: bytes, values: Mapping[str, msgspec.Raw]) -> Spans:
    """Where each top-level value stands. ``values`` are those of ``body``. Raises ``Invalid`` where a key stands twice.

    The decoder gives each value's text, without its place. Walking over keys and values in their order finds the places;
    the walk can only fail where a key stands twice, because the decoder then kept the last value at the first place.
    """
    spans: Spans = {}
    at = _skip(body, 0) + 1
    for key, raw in values.items():
        if _is_misspelled(key, values):
            raise _twice(key.casefold())
        at = _key_at(body, at, key)
        text = bytes(raw)
        end = at + len(text)
        if not body.startswith(text, at):
            raise _twice(key)
        spans[key] = (at, end)
        at = _skip(body, end)
        if body[at : at + 1] not in {b",", b"}"}:
            raise _twice(key)
        at += 1
    if values and body[at - 1 : at] != b"}":
        _key_at(body, at, None)
    return spans


def _key_at(body: bytes, at: int, expected: str | None) -> int:
    """Where the value of the key at ``at`` begins. Raises ``Invalid`` if it is another key than expected: one seen before."""
    at = _skip(body, at)
    if expected is not None:
        plain = b'"%b":' % expected.encode()
        if body.startswith(plain, at):  # a key with anything to escape is never spelled so
            return _skip(body, at + len(plain))
    spelled = _STRING.match(body, at)
    colon = _COLON.match(body, spelled.end()) if spelled else None
    if spelled is None or colon is None:
        raise InvalidJson
    key = _KEY.decode(spelled[0])
    if key != expected:
        raise _twice(key)
    return colon.end()


def _skip(body: bytes, at: int) -> int:
    """Past white space, of which there is mostly none."""
    if body[at : at + 1] not in {b" ", b"\t", b"\r", b"\n"}:
        return at
    match = _SPACE.match(body, at)
    return match.end() if match else at


# --- refusals ---------------------------------------------------------------------------------------------------------


def _twice(key: str) -> Invalid:
    shown = key if key in _DECISIVE else "a key"
    return Invalid(
        f"The body has {shown} twice at its top level.",
        hint="Send each key once: readers of JSON disagree on which of two counts.",
        fields=(FieldError(shown if shown == key else "", "stands twice"),),
    )


def _not_json(error: Exception) -> InvalidJson:
    if isinstance(error, RecursionError):
        return InvalidJson("The body is nested too deeply.")
    if isinstance(error, UnicodeDecodeError):
        return InvalidJson("The body is not valid UTF-8.")
    if isinstance(error, msgspec.ValidationError):
        return InvalidJson("The body is not a JSON object.")
    return InvalidJson(f"The body is not valid JSON: {_reason(error)}")


def _reason(error: Exception) -> str:
    """The decoder's own words name a kind of fault and a position, never what stands there."""
    text = str(error)
    if "truncated" in text:
        return "it ends too early, or has half of a surrogate pair."
    return text.removeprefix("JSON is malformed: ") + "."


def _wrong_type(error: msgspec.ValidationError) -> Invalid:
    words, _, path = str(error).partition(" - at `$.")
    if not path:
        return InvalidJson("The body is not a JSON object.")
    field = path.rstrip("`")
    return Invalid(f"The field '{field}' has a wrong type: {words.lower()}.", fields=(FieldError(field, words),))
