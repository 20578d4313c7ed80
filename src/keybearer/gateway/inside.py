"""A gateway call made from inside the process: the same ``Exchange``, on a connection that is no socket.

So resolution, policy, journal, receipt, failover and revocation are those of every call, and nothing goes over the network but the
call to the provider. What the exchange writes is read here as a client would read it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from keybearer import __version__
from keybearer.domain import Client
from keybearer.errors import KeybearerError, UpstreamError
from keybearer.gateway.allowance import check_scope
from keybearer.gateway.endpoints import Route
from keybearer.gateway.exchange import Exchange
from keybearer.gateway.fields import Fields, Headers
from keybearer.gateway.plane import Plane
from keybearer.gateway.ready import Admission, now
from keybearer.gateway.request import Head
from keybearer.gateway.turns import Connection, Turn
from keybearer.gateway.use import Wait

Admit = Callable[[], Awaitable[Admission]]

_HELD_BYTES = 64 * 1024
"""Of an answer that is not taken: then the provider is read no further."""
_USER_AGENT = f"keybearer/{__version__}".encode()
_CUT_OFF = "The provider's answer broke off."


class Inside:
    """One call. ``begin``, then ``answered``, then ``body`` or ``whole``; ``close`` whatever happens."""

    def __init__(self, plane: Plane, client: Client) -> None:
        """``client``: who asks, as it goes on record."""
        self.plane = plane
        self.loop = asyncio.get_running_loop()
        self.peer = client.ip
        self.is_write_paused = False
        self.transport = cast("asyncio.Transport", self)  # of which an exchange uses write and abort
        self.flow = FlowControl(cast("asyncio.Transport", self))
        self.admit: Admit | None = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self._client = client
        self._parser = httptools.HttpResponseParser(self)
        self._turn: _Turn | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._news = asyncio.Event()
        self._error: KeybearerError | None = None
        self._is_begun = False
        self._is_whole = False
        self._is_over = False

    def begin(self, route: Route, body: bytes, said: Headers, admit: Admit | None) -> None:
        """Send a request. ``said``: what names the caller, workflow and node; ``admit`` gives the admission of who has no token."""
        self.admit = admit
        sent = [(b"Host", b"inside"), (b"Content-Type", b"application/json"), (b"User-Agent", _USER_AGENT), *said]
        head = Head(route.method, b"/inside", Fields(sent, is_http10=False))
        head.fields.client = self._client
        head.route = route
        turn = self._turn = _Turn(cast("Connection", self), head, len(body))
        turn.take(body)

    async def answered(self) -> int:
        """Wait for the answer's head; its status. Raises why there is none."""
        while not self._is_begun:
            await self._next()
        return self.status

    async def body(self) -> AsyncIterator[bytes]:
        """The answer's body as it comes. Raises ``UpstreamError`` where it breaks off."""
        while self._held or not self._is_whole:
            if not self._held:
                await self._next()
                continue
            data, self._held, self._held_bytes = b"".join(self._held), [], 0
            if self.is_write_paused:
                self.is_write_paused = False
                if self._turn is not None:
                    self._turn.on_resume()
            yield data

    async def whole(self, limit: int) -> bytes:
        """All of the body, or as much of it as ``limit`` bytes."""
        parts: list[bytes] = []
        size = 0
        async for data in self.body():
            parts.append(data)
            size += len(data)
            if size >= limit:
                break
        return b"".join(parts)[:limit]

    def close(self) -> None:
        """Nobody waits any more: if the call is still under way, it ends, as if a client had gone."""
        turn, self._turn = self._turn, None
        if turn is not None and not self._is_over:
            self._is_over = True
            turn.on_disconnect()

    async def _next(self) -> None:
        if self._error is not None:
            raise self._error
        if self._is_over and not self._is_whole:
            raise UpstreamError(_CUT_OFF)
        self._news.clear()
        await self._news.wait()

    # --- what an exchange asks of its connection ------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """A part of the answer."""
        if self._error is None:
            self._parser.feed_data(data)
            self._news.set()

    def abort(self) -> None:
        """The answer cannot be finished."""
        self._is_over = True
        self._news.set()

    def finish(self, turn: Turn, *, keep_alive: bool) -> None:  # noqa: ARG002  # as a connection has it
        """The answer is written as a whole."""
        self._is_over = True
        self._news.set()

    def refused(self, error: KeybearerError) -> None:
        """The call is refused by ourselves: that error, not its form in some dialect, is what is told."""
        self._error = error

    def fail_receiving(self, error: KeybearerError) -> None:
        """A request from inside has arrived as a whole."""
        self.refused(error)
        self._news.set()

    def default_headers(self) -> Headers:
        return []

    def start_asgi(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Only the gateway is called from inside."""
        raise NotImplementedError

    def pause_reading(self) -> None:
        """A transport's, for ``FlowControl``: nothing is read here."""

    resume_reading = pause_reading

    # --- the parser's callbacks -----------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._is_begun = True

    def on_body(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > _HELD_BYTES and not self.is_write_paused:
            self.is_write_paused = True
            if self._turn is not None:
                self._turn.on_pause()

    def on_message_complete(self) -> None:
        self._is_whole = True


class _Turn(Exchange):
    """The exchange, whose own refusals are told as what they are."""

    __slots__ = ()

    def _authenticate(self) -> Admission:
        admit, known = cast("Inside", self.connection).admit, self._head.admission
        if admit is not None and (known is None or known.is_dropped or known.until <= now()):
            raise Wait(self._admit(admit))
        return super()._authenticate()

    async def _admit(self, admit: Admit) -> None:
        admission = await admit()
        check_scope(admission.grant, self._head.fields.acts_as)
        self._head.admission = admission
        self._head.courses.clear()

    def refuse(self, error: KeybearerError) -> None:
        if not self._is_over:
            cast("Inside", self.connection).refused(error)
        super().refuse(error)
