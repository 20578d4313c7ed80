"""The few keys of a JSON body that decide where a request goes, and how to change them without touching the rest.

Bodies are decoded no further than needed, and never searched for patterns: a position is used only where it is proven to
be the top-level key. A key that decides and stands twice is refused, because readers disagree on which one counts
(RFC 8259, section 4), and the provider might follow another model than the one that was checked.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from keybearer.errors import FieldError, Invalid, InvalidJson

_SPACE: Final = re.compile(rb"[ \t\r\n]*")
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_COLON: Final = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7]")
_INCLUDE_USAGE: Final = b'"stream_options":{"include_usage":true},'


class Head(msgspec.Struct):
    """The decisive keys of a request body."""

    model: str | None = None
    stream: bool | None = None
    stream_options: msgspec.Raw | msgspec.UnsetType | None = msgspec.UNSET


class _Nothing(msgspec.Struct):
    """No key decides: the body must be a JSON object."""


_HEAD: Final = msgspec.json.Decoder(Head)
_NOTHING: Final = msgspec.json.Decoder(_Nothing)
_RAW: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY: Final = msgspec.json.Decoder(dict[str, Any])
_KEY: Final = msgspec.json.Decoder(str)


def read_head(body: bytes) -> Head:
    """Decode the decisive keys. Raises ``InvalidJson``, or ``Invalid`` where one has a wrong type or stands twice."""
    try:
        head = _HEAD.decode(body)
        if not body.isascii():
            body.decode()  # msgspec does not look into strings that it skips
    except msgspec.ValidationError as error:
        raise _wrong_type(error) from None
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from None
    if not _stands_once(body):
        _check_duplicates(body)
    return head


def check_object(body: bytes) -> None:
    """Raise ``InvalidJson`` unless the body is one JSON object."""
    try:
        _NOTHING.decode(body)
        if not body.isascii():
            body.decode()
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from None


def replace_model(body: bytes, old: str, new: str) -> bytes:
    """The same body with the top-level ``model``, which is ``old``, replaced. For bodies that ``read_head`` accepted."""
    start, end = _span(body, b"model", old)
    return b"".join((body[:start], msgspec.json.encode(new), body[end:]))


def ask_usage(body: bytes, head: Head) -> bytes | None:
    """The body asking for usage at a stream's end (``stream_options.include_usage``); ``None``: it does already.

    Raises ``Invalid`` where ``stream_options`` is no object. Source: OpenAI API reference, chat completions.
    """
    options = head.stream_options
    if options is msgspec.UNSET:
        brace = body.index(b"{") + 1
        return b"".join((body[:brace], _INCLUDE_USAGE, body[brace:]))
    if options is None:
        decoded: dict[str, Any] = {}
    else:
        try:
            decoded = _ANY.decode(options)
        except msgspec.DecodeError:
            raise Invalid(fields=(FieldError("stream_options", "must be an object"),)) from None
    if decoded.get("include_usage") is True:
        return None
    start, end = _span(body, b"stream_options", None)
    return b"".join((body[:start], msgspec.json.encode({**decoded, "include_usage": True}), body[end:]))


def rename_inside(body: bytes, old: str, new: str) -> bytes:
    """Gemini's embedding and counting bodies repeat the path's model in ``model`` and ``requests[].model``: rename those, too.

    Decodes and encodes again: such bodies are rare, and their values keep their meaning. Raises ``InvalidJson``.
    """
    try:
        decoded = _ANY.decode(body)
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from None
    requests = decoded.get("requests")
    nested = decoded.get("generateContentRequest")
    for part in (decoded, nested, *(requests if isinstance(requests, list) else ())):
        if isinstance(part, dict) and part.get("model") in {old, f"models/{old}"}:
            part["model"] = f"models/{new}"
    return msgspec.json.encode(decoded)


# --- positions --------------------------------------------------------------------------------------------------------


def _stands_once(body: bytes) -> bool:
    """Whether each decisive key provably stands at most once, at any depth: the fast answer for nearly every body.

    A quotation mark inside a string is escaped, so ``"model"`` in these bytes is a whole string. No letter is escaped
    either, so no other spelling of the key exists.
    """
    return (
        body.count(b'"model"') <= 1
        and body.count(b'"stream"') <= 1
        and body.count(b'"stream_options"') <= 1
        and (b"\\u00" not in body or _ESCAPED_LETTER.search(body) is None)
    )


def _span(body: bytes, key: bytes, value: str | None) -> tuple[int, int]:
    """Where the value of a top-level key, known to be there, begins and ends."""
    quoted = b'"' + key + b'"'
    if value is not None and _stands_once(body):
        colon = _COLON.match(body, body.index(quoted) + len(quoted))
        if colon is not None:
            literal = b'"' + value.encode() + b'"'
            if body.startswith(literal, colon.end()):
                return colon.end(), colon.end() + len(literal)
    return _spans(body)[key.decode()]


def _check_duplicates(body: bytes) -> None:
    """Raise ``Invalid`` where a top-level key stands twice."""
    _spans(body)


def _spans(body: bytes) -> dict[str, tuple[int, int]]:
    """Where each top-level value stands. ``body`` is a valid JSON object. Raises ``Invalid`` where a key stands twice.

    The decoder gives each value's text, without its place. Walking over keys and values in their order finds the places;
    the walk can only fail where a key stands twice, because the decoder then kept the last value at the first place.
    """
    try:
        values = _RAW.decode(body)
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from None
    spans: dict[str, tuple[int, int]] = {}
    at = _skip(body, 0) + 1
    for key, raw in values.items():
        at = _key_at(body, at, key)
        text = bytes(raw)
        end = at + len(text)
        if not body.startswith(text, at) or body[_skip(body, end) : _skip(body, end) + 1] not in {b",", b"}"}:
            raise _twice(key)
        spans[key] = (at, end)
        at = _skip(body, end) + 1
    if values and body[at - 1 : at] != b"}":
        _key_at(body, at, None)
    return spans


def _key_at(body: bytes, at: int, expected: str | None) -> int:
    """Where the value of the key at ``at`` begins. Raises ``Invalid`` if it is another key than expected: one seen before."""
    spelled = _STRING.match(body, _skip(body, at))
    colon = _COLON.match(body, spelled.end()) if spelled else None
    if spelled is None or colon is None:
        raise InvalidJson
    key = _KEY.decode(spelled[0])
    if key != expected:
        raise _twice(key)
    return colon.end()


def _skip(body: bytes, at: int) -> int:
    match = _SPACE.match(body, at)
    return match.end() if match else at


# --- refusals ---------------------------------------------------------------------------------------------------------


def _twice(key: str) -> Invalid:
    shown = key if key in {"model", "stream", "stream_options"} else "a key"
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
