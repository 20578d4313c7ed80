"""Reading a few values out of JSON that is too large to keep: an incremental scanner. Pure; bounded memory; hostile input safe.

It knows brackets, strings and where keys stand, and nothing else: what is not JSON yields nothing, never an error.
"""

from __future__ import annotations

import re
from typing import Final

WANTED: Final = frozenset({b"usage", b"usageMetadata", b"model", b"modelVersion"})
ENTERED: Final = frozenset({b"message", b"response"})
"""Objects whose own keys are looked at, too: Anthropic's and OpenAI's stream events wrap the answer so."""

_KEPT_LIMIT: Final = 64 * 1024  # bytes of one value; usage objects have some hundred
_KEY_LIMIT: Final = 64
_DEPTH_LIMIT: Final = 1_000
_STEPS_LIMIT: Final = 300_000  # some 0.5 s; answers of the same size need a hundredth of it, unless they mean harm
# Possessive groups only where a repetition that fails does so before it has tried anything twice: up to Python 3.11.4 others go on from
# where they failed (CPython's issue 106052). Plain ones keep a way back for each repetition, so they are counted.
_IN_STRING: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_OTHER: Final = rb'[^"{}\[\]]++'
_WHOLE_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT: Final = _OTHER + rb"|" + _WHOLE_STRING
_FLATS: Final = rb"(?:" + _FLAT + rb"){0,256}"
_RUN: Final = re.compile(rb"(?:" + _FLAT + rb"|\{" + _FLATS + rb"\}|\[" + _FLATS + rb"\]){0,64}", re.DOTALL)
"""Numbers, whole strings and containers of nothing else, as many as follow each other: what needs no step of ours."""
_DEEP: Final = re.compile(rb'["{}\[\]]')
_HERE: Final = re.compile(rb'["{}\[\]:,]')


class Skimmer:
    """Feed it JSON in pieces; ``found`` holds the last value of each wanted key, as its text.

    Keys count at the top level, or in the elements of a top-level array (Gemini's streams without ``alt=sse``).
    """

    __slots__ = (
        "_at_key",
        "_depth",
        "_escaped",
        "_in_string",
        "_kept",
        "_key",
        "_keys_at",
        "_root",
        "_steps",
        "_value_of",
        "found",
    )

    def __init__(self) -> None:
        self.found: dict[bytes, bytes] = {}
        self._depth = 0
        self._root = 0  # depth of the outermost object: 1, or 2 inside an array
        self._keys_at = 0  # depth at which keys are looked at now
        self._in_string = False
        self._escaped = False
        self._steps = 0
        self._at_key = False
        self._key: bytearray | None = None
        self._value_of: bytes | None = None
        self._kept: bytearray | None = None

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        at, start, size = 0, 0, len(data)
        if self._steps > _STEPS_LIMIT:
            return
        if self._escaped and size:
            self._escaped, at = False, 1
            self._take_key(data[:1])
        while at < size:
            if self._in_string:
                at = self._string(data, at)
                continue
            here = self._depth == self._keys_at
            if self._depth > self._keys_at and (run := _RUN.match(data, at)) is not None:
                at = run.end()
            token = (_HERE if here else _DEEP).search(data, at)
            if token is None:
                break
            at = token.end()
            start = self._token(token[0], data, start, at)
            self._steps += 1 if self._depth <= _DEPTH_LIMIT else _STEPS_LIMIT
            if self._steps > _STEPS_LIMIT:
                self._kept = None
                return
        self._keep(data[start:])

    def _string(self, data: bytes, at: int) -> int:
        match = _IN_STRING.match(data, at)
        end = match.end() if match else at
        self._take_key(data[at:end] if self._key is not None else b"")
        if end == len(data):
            return end
        if data[end : end + 1] == b"\\":  # a backslash as the last byte: what it escapes comes with the next piece
            self._take_key(b"\\")
            self._escaped = True
            return end + 1
        self._in_string = False
        return end + 1

    def _token(self, token: bytes, data: bytes, start: int, end: int) -> int:
        """One structural byte at ``end - 1``. Returns where the text of a wanted value goes on, or starts, in ``data``."""
        here = self._depth == self._keys_at and self._depth > 0
        if token == b'"':
            self._in_string = True
            self._key = bytearray() if here and self._at_key else None
        elif token == b":" and here and self._at_key:
            return self._begin_value(end)
        elif token == b"," and here:
            self._end_value(data[start : end - 1])
            self._at_key = True
        elif token in b"{[":
            self._open(token)
        elif token in b"}]":
            if here:
                self._end_value(data[start : end - 1])
            self._close()
        return start

    def _open(self, token: bytes) -> None:
        self._depth += 1
        if self._root == 0:
            self._root = 1 if token == b"{" else 2
            self._keys_at = self._root
        elif token == b"{" and self._depth == self._root + 1 and self._value_of in ENTERED:
            self._keys_at = self._depth
        if token == b"{" and self._depth == self._keys_at:
            self._at_key, self._key, self._value_of = True, None, None

    def _close(self) -> None:
        self._depth = max(self._depth - 1, 0)
        if self._depth < self._keys_at:
            self._keys_at = self._root
            self._at_key = False

    def _begin_value(self, end: int) -> int:
        key = bytes(self._key or b"")
        self._at_key, self._key = False, None
        self._value_of = key if key in WANTED or key in ENTERED else None
        self._kept = bytearray() if key in WANTED else None
        return end

    def _end_value(self, text: bytes) -> None:
        self._keep(text)
        if self._kept is not None and self._value_of is not None:
            self.found[self._value_of] = bytes(self._kept)
        self._kept = self._value_of = None

    def _keep(self, text: bytes) -> None:
        if self._kept is not None:
            self._kept += text
            if len(self._kept) > _KEPT_LIMIT:
                self._kept = None

    def _take_key(self, text: bytes) -> None:
        if self._key is not None and len(self._key) <= _KEY_LIMIT:
            self._key += text
