"""What stands in a connection's queue: a *turn* is one request, whoever answers it. Only the head of the queue writes.

``AsgiTurn`` hands a request to the ASGI app through uvicorn's own cycle; ``Refusal`` answers a request that is not acted on;
``Exchange`` (in ``exchange``) is a gateway request.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from uvicorn._types import ASGI3Application, ASGISendEvent, HTTPResponseStartEvent
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from keybearer.errors import KeybearerError, TooLarge
from keybearer.gateway.answer import problem
from keybearer.gateway.fields import Headers
from keybearer.gateway.request import Head

if TYPE_CHECKING:
    from keybearer.gateway.plane import Plane


class Turn(Protocol):
    """One request in the queue of a connection."""

    @property
    def buffered(self) -> int:
        """Body bytes held and not yet passed on."""

    def start(self) -> None:
        """Is at the head of the queue: may act and write."""

    def on_body(self, data: bytes) -> None: ...

    def on_more(self) -> None:
        """At the head, and what has arrived so far is not the whole request."""

    def on_end(self) -> None:
        """The request has arrived as a whole."""

    def on_malformed(self, error: KeybearerError) -> None:
        """The rest of the body will not be read: malformed, too large or too slow. Answer in turn if still possible; close."""

    def on_disconnect(self) -> None:
        """The client is gone."""

    def on_pause(self) -> None:
        """The client reads more slowly than we write."""

    def on_resume(self) -> None: ...

    def cut_off(self) -> None:
        """Time is up (shutdown): end the answer now."""


class Connection(Protocol):
    """What a turn needs of its connection; ``protocol.GatewayProtocol`` is it."""

    plane: Plane
    transport: asyncio.Transport
    flow: FlowControl
    loop: asyncio.AbstractEventLoop
    peer: str
    is_write_paused: bool

    def finish(self, turn: Turn, *, keep_alive: bool) -> None:
        """The answer has been written as a whole. Without ``keep_alive`` the connection ends with it."""

    def write(self, data: bytes) -> None: ...

    def fail_receiving(self, error: KeybearerError) -> None:
        """Read no more of the request that is arriving; its turn answers ``error``."""

    def start_asgi(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None: ...

    def default_headers(self) -> Headers:
        """Date and what else the server puts on its own answers."""


class Refusal:
    """A request that is answered without being acted on; the connection ends with it."""

    __slots__ = ("_answer", "_connection", "buffered")

    def __init__(self, connection: Connection, answer: bytes) -> None:
        self._connection = connection
        self._answer = answer
        self.buffered = 0

    def start(self) -> None:
        self._connection.write(self._answer)
        self._connection.finish(self, keep_alive=False)

    def on_body(self, data: bytes) -> None: ...

    def on_more(self) -> None: ...

    def on_end(self) -> None: ...

    def on_malformed(self, error: KeybearerError) -> None: ...

    def on_disconnect(self) -> None: ...

    def on_pause(self) -> None: ...

    def on_resume(self) -> None: ...

    def cut_off(self) -> None: ...


class AsgiTurn:
    """A request that the ASGI app answers, in a task of its own, through uvicorn's cycle."""

    __slots__ = ("_app", "_connection", "_fault", "_head", "_is_started", "_limit", "_received", "cycle")

    def __init__(self, connection: Connection, head: Head, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._connection = connection
        self._head = head
        self._app = app
        self._received = 0
        self._is_started = False
        self._fault: KeybearerError | None = None
        self._limit = connection.plane.limits.api_body_bytes
        self.cycle = cycle

    @property
    def buffered(self) -> int:
        return len(self.cycle.body)

    def start(self) -> None:
        self._is_started = True
        if self._fault is not None:
            self._refuse(self._fault)
        else:
            self._connection.start_asgi(self.cycle, self._app)

    def on_body(self, data: bytes) -> None:
        cycle = self.cycle
        if cycle.response_complete or cycle.disconnected:
            return
        self._received += len(data)
        if self._received > self._limit:
            self._connection.fail_receiving(TooLarge(f"The body is larger than {self._limit} bytes."))
            return
        cycle.body += data
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self._connection.flow.pause_reading()  # the app's next receive() resumes
        cycle.message_event.set()

    def on_more(self) -> None: ...

    def on_end(self) -> None:
        self.cycle.more_body = False
        self.cycle.message_event.set()

    def on_malformed(self, error: KeybearerError) -> None:
        if self._is_started:
            self._refuse(error)
        else:
            self._fault = error

    def _refuse(self, error: KeybearerError) -> None:
        """The app hears of a disconnect, which also silences it, so that the answer here is the only one."""
        cycle = self.cycle
        if cycle.response_complete or cycle.disconnected:
            return
        self.on_disconnect()
        if not cycle.response_started:
            connection = self._connection
            connection.write(problem(error, connection.default_headers(), is_head=self._head.method == b"HEAD"))
        self._connection.finish(self, keep_alive=False)

    def on_disconnect(self) -> None:
        if not self.cycle.response_complete:
            self.cycle.disconnected = True
        self.cycle.message_event.set()

    def on_pause(self) -> None: ...  # the cycle waits in FlowControl.drain

    def on_resume(self) -> None: ...

    def cut_off(self) -> None:
        self.on_disconnect()
        self._connection.transport.abort()


class Http10Cycle(RequestResponseCycle):
    """uvicorn chunks an answer of unknown length even for HTTP/1.0, which knows no chunks: hold it and state its length."""

    _held: HTTPResponseStartEvent | None = None

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            if not any(name.lower() == b"content-length" for name, _ in message.get("headers", [])):
                self._held = message
                self._parts = bytearray()
                return
        elif message["type"] == "http.response.body" and self._held is not None:
            self._parts += message.get("body", b"")
            if message.get("more_body", False):
                return
            start, self._held = self._held, None
            start["headers"] = [*start.get("headers", []), (b"content-length", b"%d" % len(self._parts))]
            await super().send(start)
            message["body"] = bytes(self._parts)
        await super().send(message)
