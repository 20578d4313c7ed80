"""What a request asks the mock provider to do: read from the model's name, or from the key. Pure.

The words and their meaning stand in one table, in the package's docstring.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

_ASKS = re.compile(r"(?:^|[/-])mock(?:-(?P<words>[A-Za-z0-9.-]+))?$")
_KEY_ASKS = re.compile(r"kbtest-(?P<name>mock(?:-[A-Za-z0-9.]+)+)$")
_STATUS = re.compile(r"[45][0-9]{2}")
_SECONDS = re.compile(r"(?P<number>[0-9]{1,6}(?:\.[0-9]{1,3})?)(?P<unit>ms|s)")
_COUNT = re.compile(r"[0-9]{1,7}")

OK = 200
LONGEST_WAIT = 600.0
"""Seconds; a longer ``slow`` or ``pace`` is not understood."""


class BehaviourError(ValueError):
    """A mock model's name has a word that means nothing."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How to answer. The default is a plain, quick, correct answer."""

    status: int = OK
    overloaded: bool = False
    """503, or Anthropic's 529."""
    quota: bool = False
    """The account has no credit: OpenAI says so by 429."""
    retry_after: float = 1.0
    """Seconds, for 429 and 503."""
    retry_form: str = "native"
    """``native``, ``seconds``, ``date``, ``ms`` or ``none``: how ``retry_after`` is told."""
    echo_key: bool = False
    cookies: bool = False
    redirect: bool = False
    bad_json: bool = False
    bad_http: bool = False
    drop: bool = False
    """Close without an answer."""
    cut_json: bool = False
    cut_after: int | None = None
    """Events of the stream after which the connection is closed."""
    reset_after: int | None = None
    """Likewise, but with a TCP reset."""
    stall_after: int | None = None
    error_after: int | None = None
    slow: float = 0.0
    """Seconds before the first byte."""
    pace: float | None = None
    """Seconds between events; ``None``: all events in one write."""
    chunks: int | None = None
    """Pieces of text in the answer."""
    size: int | None = None
    """Characters of text in the answer."""
    cached: int | None = None
    """Cached input tokens to report; by default a quarter of the input."""
    reasoning: int | None = None
    """Reasoning tokens to report; by default 5."""

    @property
    def is_error(self) -> bool:
        """Whether the answer is an error from its first byte on."""
        return self.status != OK or self.overloaded or self.quota


PLAIN = Behaviour()

# Words that stand alone, and what they set.
_FLAGS: dict[str, dict[str, Any]] = {
    "overloaded": {"overloaded": True},
    "quota": {"quota": True},
    "echo": {"echo_key": True},
    "cookie": {"cookies": True},
    "redirect": {"redirect": True},
    "badjson": {"bad_json": True},
    "badhttp": {"bad_http": True},
    "drop": {"drop": True},
    "cutjson": {"cut_json": True},
    "seconds": {"retry_form": "seconds"},
    "date": {"retry_form": "date"},
    "ms": {"retry_form": "ms"},
    "none": {"retry_form": "none"},
}
# Words that a count follows, words that a duration follows, and the field they set.
_COUNTED = {
    "chunks": "chunks",
    "size": "size",
    "cut": "cut_after",
    "reset": "reset_after",
    "stall": "stall_after",
    "error": "error_after",
    "cached": "cached",
    "reasoning": "reasoning",
}
_TIMED = {"slow": "slow", "pace": "pace", "retry": "retry_after"}


def is_mock(model: str) -> bool:
    """Whether a model's name is one of the mock's own."""
    return _ASKS.search(model) is not None


def of_model(model: str) -> Behaviour:
    """Read what a model's name asks for; any other name than ``…mock[-word…]`` asks for nothing. Raises ``BehaviourError``."""
    asked = _ASKS.search(model)
    if asked is None or asked["words"] is None:
        return PLAIN
    fields: dict[str, Any] = {}
    words = iter(asked["words"].split("-"))
    for word in words:
        if word in _FLAGS:
            fields |= _FLAGS[word]
        elif _STATUS.fullmatch(word):
            fields["status"] = int(word)
        elif word in _COUNTED:
            fields[_COUNTED[word]] = _count(word, next(words, ""))
        elif word in _TIMED:
            fields[_TIMED[word]] = _seconds(word, next(words, ""))
        else:
            message = f"the mock provider does not know the word {word!r} in the model name {model!r}"
            raise BehaviourError(message)
    behaviour = Behaviour(**fields)
    return replace(behaviour, status=401) if behaviour.echo_key and not behaviour.is_error else behaviour


def of_key(key: str) -> Behaviour:
    """Read what a key asks for (``…kbtest-mock-429``), for calls without a model: connection tests. Raises ``BehaviourError``."""
    asked = _KEY_ASKS.search(key)
    return of_model(asked["name"]) if asked else PLAIN


def _count(word: str, value: str) -> int:
    if not _COUNT.fullmatch(value):
        message = f"{word!r} needs a count after it, for example {word}-5"
        raise BehaviourError(message)
    return int(value)


def _seconds(word: str, value: str) -> float:
    found = _SECONDS.fullmatch(value)
    seconds = float(found["number"]) / (1000 if found["unit"] == "ms" else 1) if found else -1.0
    if not 0 <= seconds <= LONGEST_WAIT:
        message = f"{word!r} needs a time up to {LONGEST_WAIT:.0f} s after it, for example {word}-20ms or {word}-2s"
        raise BehaviourError(message)
    return seconds
