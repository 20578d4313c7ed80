"""The load generator: N kept connections in a closed loop, prebuilt requests, every answer checked. ``python -m bench.load``.

Reads one ``Load`` as JSON from standard input, prints one ``Result`` as JSON. A process of its own, so that it can be pinned.

It is quick because the same request mostly gets the same bytes: an answer that ends in the body that was checked before
needs no parsing. Any other goes through a parser and is checked for status and content.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import httptools
import uvloop

_OK = b"HTTP/1.1 200"
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_EVENT = b"data: {"
_TAIL = 64
"""Bytes kept of what came before: the marker and the last chunk may come in pieces."""
_MOST_ERRORS = 50


@dataclass(slots=True)
class Load:
    """What to do."""

    port: int
    request: str
    """The request's bytes, base64."""
    marker: str
    """What a right answer's body must hold."""
    connections: int
    seconds: float
    warmup: float = 0.3
    stream: bool = False
    once: bool = False
    """Each connection asks once, spread over ``warmup`` seconds, instead of in a loop."""


@dataclass(slots=True)
class Result:
    """What happened."""

    requests: int = 0
    """Right answers within the measured time (all of them, with ``once``)."""
    errors: int = 0
    first_error: str = ""
    seconds: float = 0.0
    events: int = 0
    """Server-sent events that came within the measured time."""
    all_requests: int = 0
    """Right answers with those of the warm-up, for what the server's whole CPU time paid."""
    all_events: int = 0
    latency_ms: dict[str, float] = field(default_factory=dict)
    """p50, p90, p99 and max, request to last byte."""
    first_byte_ms: dict[str, float] = field(default_factory=dict)
    """Of streams."""


class Shared:
    """What the connections of one run share."""

    def __init__(self, load: Load, stop: Callable[[], None]) -> None:
        self.load = load
        self.request = base64.b64decode(load.request)
        self.marker = load.marker.encode()
        self.result = Result()
        self.latencies: list[float] = []
        self.first_bytes: list[float] = []
        self.measuring = False
        self.ending = False
        self.known_end: bytes | None = None
        """End of a whole answer that was checked: blank line and body."""
        self.last_body: bytes = b""
        self.running = 0
        self._stop = stop

    def right(self, began: float, first_byte: float) -> None:
        """Count a right answer."""
        self.result.all_requests += 1
        if self.measuring:
            now = time.perf_counter()
            self.result.requests += 1
            self.latencies.append(now - began)
            if self.load.stream:
                self.first_bytes.append(first_byte - began)

    def wrong(self, why: str) -> None:
        """Count a wrong one; too many end the run."""
        self.result.errors += 1
        self.result.first_error = self.result.first_error or why[:300]
        if self.result.errors >= _MOST_ERRORS:
            self._stop()

    def done(self) -> None:
        """A connection is done for good."""
        self.running -= 1
        if self.running == 0:
            self._stop()

    def whole(self, status: int, body: bytes) -> str:
        """Check a parsed answer; remember its end if it came twice. Returns what is wrong with it, or nothing."""
        if status != 200 or self.marker not in body:
            return f"{status}: {body[:200]!r}"
        if body == self.last_body and body:
            self.known_end = b"\r\n\r\n" + body
        self.last_body = body
        return ""


class Client(asyncio.Protocol):
    """One connection with unstreamed answers."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.buffer = b""
        self.began = 0.0
        self.first = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.ask()

    def ask(self) -> None:
        if self.shared.ending:
            self.transport.close()
            return
        self.busy = True
        self.reset()
        self.began = time.perf_counter()
        self.transport.write(self.shared.request)

    def reset(self) -> None:
        self.buffer = b""
        self.first = 0.0
        self.parser: Any = None

    def data_received(self, data: bytes) -> None:
        known = self.shared.known_end
        if self.parser is None and known is not None:
            self.buffer = self.buffer + data if self.buffer else data
            if self.buffer.startswith(_OK):
                if self.buffer.endswith(known):
                    self.answered("")
                    return
                if len(self.buffer) < len(known):
                    return
            data = self.buffer
        if self.parser is None:
            self.body: list[bytes] = []
            self.parser = httptools.HttpResponseParser(self)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.transport.abort()
            self.shared.wrong(f"not HTTP: {error}")

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.answered(self.shared.whole(self.parser.get_status_code(), b"".join(self.body)))

    def answered(self, problem: str) -> None:
        self.busy = False
        if problem:
            self.shared.wrong(problem)
        else:
            self.shared.right(self.began, self.first)
        if self.shared.load.once:
            self.transport.close()
        else:
            self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy and not self.shared.ending:
            self.shared.wrong(f"the connection ended in mid-answer: {exc}")
        self.shared.done()


class StreamClient(Client):
    """One connection with streamed answers: looks for the last chunk and counts events, without parsing."""

    def reset(self) -> None:
        self.tail = b""
        self.tail_events = 0
        self.first = 0.0

    def data_received(self, data: bytes) -> None:
        if not self.first:
            self.first = time.perf_counter()
            if not data.startswith(_OK):
                self.busy = False
                self.shared.wrong(repr(data[:200]))
                self.transport.abort()
                return
        seen = self.tail + data
        new = seen.count(_EVENT) - self.tail_events
        self.shared.result.all_events += new
        if self.shared.measuring:
            self.shared.result.events += new
        if seen.endswith(_LAST_CHUNK):
            self.answered("" if self.shared.marker in seen[-_TAIL:] else "the stream does not end right")
            return
        self.tail = seen[-_TAIL:]
        self.tail_events = self.tail.count(_EVENT)


async def drive(load: Load) -> Result:
    """Run a load."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    shared = Shared(load, stop.set)
    factory = StreamClient if load.stream else Client
    shared.running = load.connections
    shared.measuring = load.once
    began = time.perf_counter()
    for number in range(load.connections):
        if load.once:
            await asyncio.sleep(max(0.0, began + load.warmup * number / load.connections - time.perf_counter()))
        await loop.create_connection(lambda: factory(shared), "127.0.0.1", load.port)
    if not load.once:
        await _sleep(stop, load.warmup)
    shared.measuring = True
    measured = time.perf_counter()
    await _sleep(stop, load.seconds)
    shared.measuring = False
    shared.result.seconds = time.perf_counter() - (began if load.once else measured)
    shared.ending = True
    if shared.result.requests == shared.result.events == shared.result.errors == 0:
        shared.wrong("no answer within the time")
    shared.result.latency_ms = percentiles(shared.latencies)
    shared.result.first_byte_ms = percentiles(shared.first_bytes)
    return shared.result


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    """Sleep, or until the run ends early."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50, p90, p99 and max in milliseconds; empty for nothing."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    last = len(ordered) - 1
    return {name: ordered[int(last * share)] * 1000 for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))}


def main() -> None:
    """Read the load, drive it, print the result."""
    load = Load(**json.load(sys.stdin))
    gc.freeze()
    gc.disable()  # a collection would look like a slow server
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(drive(load))
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
