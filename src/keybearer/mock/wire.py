"""Requests, answers and scripts: what passes between the connection, the site and the dialects. Pure.

An ``Answer`` is what a provider says; a ``Script`` is how it is played on the wire: bytes, waits and how it ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any

import msgspec

from keybearer.mock.behaviour import PLAIN, Behaviour

JSON = "application/json"
SSE = "text/event-stream; charset=utf-8"

_REASONS = {status.value: status.phrase for status in HTTPStatus} | {529: "Overloaded"}


@dataclass(frozen=True, slots=True)
class Request:
    """One whole request. Header names are lower-case, in the order they came."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    version: str = "1.1"
    keep_alive: bool = True

    def header(self, name: str) -> str | None:
        """Return the first header of that name."""
        return next((value for key, value in self.headers if key == name), None)


@dataclass(frozen=True, slots=True)
class Call:
    """A request understood: which provider's operation, with what, behaving how."""

    provider: str
    """``openai``, ``anthropic``, ``gemini``, ``xai`` or ``openrouter``."""
    dialect: str
    """``openai``, ``anthropic`` or ``gemini``."""
    operation: str
    model: str
    document: dict[str, Any]
    """The decoded JSON body; empty where there is none."""
    request: Request
    behaviour: Behaviour
    query: Mapping[str, str]
    key: str
    """The key that was sent, for errors that echo it."""


class ProviderError(Exception):
    """The provider refuses the request. The dialect decides how it says so."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        """``reason`` is a stable word: ``key_missing``, ``key_invalid``, ``key_misplaced``, ``path``, ``method`` or empty."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Answer:
    """What a provider says. Either ``body``, or ``events`` of a stream (each with its own framing, as in ``data: …``)."""

    status: int = 200
    body: bytes = b""
    events: tuple[bytes, ...] | None = None
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    error_event: bytes = b""
    """What the dialect sends when an error strikes in mid-stream."""


class Ending(Enum):
    """What becomes of the connection after an answer."""

    KEEP = "keep"
    CLOSE = "close"
    RESET = "reset"
    STALL = "stall"


@dataclass(frozen=True, slots=True)
class Script:
    """An answer as it goes over the wire."""

    head: bytes
    """Written first: status line, headers, and the body as far as it is not paced."""
    steps: tuple[bytes, ...] = ()
    """Written one by one, ``pace`` seconds apart."""
    pace: float = 0.0
    delay: float = 0.0
    """Seconds before ``head``."""
    ending: Ending = Ending.KEEP


@dataclass(frozen=True, slots=True)
class Exchange:
    """What the site made of a request: the script to play, and what the record says."""

    script: Script
    status: int
    provider: str = ""
    operation: str = ""
    model: str = ""
    is_constant: bool = True
    """Whether the same request bytes always get this exchange."""
    is_recorded: bool = True


def json_answer(document: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """Make an unstreamed JSON answer."""
    return Answer(status, msgspec.json.encode(document), headers=headers)


def sse(document: Any, event: str = "", newline: bytes = b"\n") -> bytes:
    """One server-sent event with JSON data."""
    name = b"event: " + event.encode() + newline if event else b""
    return name + b"data: " + msgspec.json.encode(document) + newline + newline


def script(answer: Answer, request: Request, behaviour: Behaviour = PLAIN) -> Script:
    """How ``answer`` is played to ``request``, with the faults that ``behaviour`` asks for."""
    if behaviour.drop:
        return Script(b"", delay=behaviour.slow, ending=Ending.CLOSE)
    if behaviour.bad_http:
        return Script(b"HTTP/1.1 two hundred\r\nthis is no header\r\n\r\n", delay=behaviour.slow, ending=Ending.CLOSE)
    if behaviour.cookies:
        answer = _with_cookies(answer)
    if answer.events is None:
        return _whole(answer, request, behaviour)
    return _streamed(answer, answer.events, request, behaviour)


def _whole(answer: Answer, request: Request, behaviour: Behaviour) -> Script:
    body = answer.body[:-1] + b',"' if behaviour.bad_json else answer.body
    head = _head(answer, request, f"content-length: {len(body)}")
    half = body[: len(body) // 2]
    if behaviour.cut_json or behaviour.cut_after is not None:
        return Script(head + half, delay=behaviour.slow, ending=Ending.CLOSE)
    if behaviour.reset_after is not None:
        return Script(head + half, delay=behaviour.slow, ending=Ending.RESET)
    if behaviour.stall_after is not None:
        return Script(head + half, delay=behaviour.slow, ending=Ending.STALL)
    return Script(head + body, delay=behaviour.slow, ending=Ending.KEEP if request.keep_alive else Ending.CLOSE)


def _streamed(answer: Answer, events: tuple[bytes, ...], request: Request, behaviour: Behaviour) -> Script:
    chunked = request.version != "1.0"
    events, ending = _with_faults(answer, events, behaviour)
    whole = ending is Ending.KEEP
    if whole and not (request.keep_alive and chunked):
        ending = Ending.CLOSE
    steps = tuple(b"%x\r\n%b\r\n" % (len(event), event) for event in events) if chunked else events
    if whole and chunked:
        # Providers send the empty last chunk with the last event; so does this.
        steps = (*steps[:-1], steps[-1] + b"0\r\n\r\n") if steps else (b"0\r\n\r\n",)
    head = _head(answer, request, "transfer-encoding: chunked" if chunked else "")
    if behaviour.pace is None:
        return Script(head + b"".join(steps), delay=behaviour.slow, ending=ending)
    return Script(head, steps, behaviour.pace, behaviour.slow, ending)


def _with_faults(answer: Answer, events: tuple[bytes, ...], behaviour: Behaviour) -> tuple[tuple[bytes, ...], Ending]:
    """Return the events as far as they get, and how it ends."""
    if behaviour.bad_json:
        place = min(2, len(events) - 1)
        events = (*events[:place], events[place].replace(b"}", b"", 1), *events[place + 1 :])
    if behaviour.cut_json:
        place = min(2, len(events) - 1)
        return (*events[:place], events[place][: len(events[place]) // 2]), Ending.CLOSE
    if behaviour.cut_after is not None:
        return events[: behaviour.cut_after], Ending.CLOSE
    if behaviour.reset_after is not None:
        return events[: behaviour.reset_after], Ending.RESET
    if behaviour.stall_after is not None:
        return events[: behaviour.stall_after], Ending.STALL
    if behaviour.error_after is not None and answer.error_event:
        return (*events[: behaviour.error_after], answer.error_event), Ending.KEEP
    return events, Ending.KEEP


def _head(answer: Answer, request: Request, framing: str) -> bytes:
    """Status line and headers. Bytes that no header may have are dropped: an echoed key must not break the answer."""
    lines = [f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Unknown')}", f"content-type: {answer.content_type}"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    lines += [framing] if framing else []
    lines += [] if request.keep_alive and framing else ["connection: close"]
    return "\r\n".join(line.replace("\r", "").replace("\n", "") for line in lines).encode("latin-1", "replace") + b"\r\n\r\n"


def _with_cookies(answer: Answer) -> Answer:
    """Make an answer with what a gateway must not pass on: cookies, and headers that only a gateway may set."""
    forged = (
        ("set-cookie", "provider_session=kbtest-cookie; Path=/; HttpOnly"),
        ("x-keybearer-key-source", "forged"),
        ("x-keybearer-secret-id", "00000000-0000-0000-0000-000000000000"),
        ("x-keybearer-request-id", "forged"),
    )
    return Answer(answer.status, answer.body, answer.events, answer.content_type, answer.headers + forged, answer.error_event)
