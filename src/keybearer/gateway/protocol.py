"""The data plane's connection: uvicorn's httptools protocol, with the gateway's paths taken out before the ASGI app.

uvicorn documents no such base class. It is pinned to one version; every method of it that touches a request is overridden
here, and ``tests/plane/test_uvicorn_contract.py`` fails when the base changes. What is kept: construction, the scope's
form, ``RequestResponseCycle`` for ASGI requests, ``_start_asgi_task``.

All requests of a connection stand in one queue of turns (``turns``); only its head writes. Deadlines (headers, body, idle;
stall, linger, shutdown) are two floats that the process's sweep looks at (``plane``).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import urllib.parse
from collections import deque
from typing import Any, NoReturn

import httptools
from uvicorn._types import ASGI3Application, HTTPScope
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from keybearer.errors import InvalidRequest, KeybearerError, Overloaded, RequestTimeout, TooLarge
from keybearer.gateway.answer import dialect_error, problem
from keybearer.gateway.exchange import Exchange
from keybearer.gateway.fetch import Fetch, is_fetch
from keybearer.gateway.fields import Headers
from keybearer.gateway.plan import dialect_of, is_gateway_path
from keybearer.gateway.plane import PLANE as PLANE  # noqa: PLC0414  # whoever runs the protocol keeps the plane there
from keybearer.gateway.plane import Plane
from keybearer.gateway.request import Head, Spelling, read_head
from keybearer.gateway.turns import AsgiTurn, Http10Cycle, Refusal, Turn

log = logging.getLogger("keybearer.gateway")

NEVER = math.inf
_READ_BYTES = 384 * 1024
"""More than one read (256 kB on uvloop) and the headers' limit together: so much without an end of headers is too much."""
_WHOLE_BYTES = 64 * 1024
"""Requests up to this size are recognised by their head's spelling; larger ones come in pieces anyway."""
_RAW_OVERHEAD = 512 * 1024
"""Bytes of chunk framing and trailers that a request may have beyond eight per byte of its body."""


class _StopParsing(Exception):  # no error: how a callback tells llhttp to stop
    """Raised through the parser when nothing more of this connection is to be read."""


class GatewayProtocol(HttpToolsProtocol):
    """One client connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # The base lets bytes after a last request pass; they are no request and may be an attack on a proxy in front.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=False)
        self.plane = plane_of(app_state)
        self.peer = ""
        self.turns: deque[Turn] = deque()
        self.receiving: Turn | None = None
        self.head: Head | None = None
        """The last request's."""
        self.spelling: Spelling | None = None
        """How ``head`` was spelled, where it was the gateway's and came a second time."""
        self.is_in_head = False
        self._is_last_queued = False
        self.is_stopped = False  # nothing more is parsed
        self.is_shutting_down = False
        self.is_write_paused = False
        self.chunk_bytes = 0
        self.raw_bytes = 0  # of the message that is arriving
        self.body_bytes = 0
        self.is_discarding = False
        self.discarded = 0
        self.read_due = NEVER
        self.write_due = NEVER

    # --- the connection -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base has it
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else ""
        self.read_due = time.monotonic() + self.plane.limits.header_seconds
        self.plane.watch(self.loop, self.connections)  # type: ignore[arg-type]  # every member is a GatewayProtocol

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the base names it
        self.connections.discard(self)
        self.is_stopped = True
        self.receiving = None
        turns, self.turns = self.turns, deque()
        for turn in turns:
            turn.on_disconnect()
        self.flow.resume_writing()  # whoever waits in drain() finds the disconnect
        self.parser = None  # type: ignore[assignment]  # breaks the cycle, as the base does

    def eof_received(self) -> None:
        """A half-close is a disconnect: the transport closes, ``connection_lost`` tells the turns."""

    def pause_writing(self) -> None:
        self.is_write_paused = True
        self.flow.pause_writing()
        self.write_due = min(self.write_due, time.monotonic() + self.plane.limits.stall_seconds)
        if self.turns:
            self.turns[0].on_pause()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        self.flow.resume_writing()
        if not (self.is_shutting_down or self.is_stopped):
            self.write_due = NEVER
        if self.turns:
            self.turns[0].on_resume()

    def shutdown(self) -> None:
        """Answers in flight may finish until the deadline; requests behind them get none, so the client may repeat them."""
        self.is_shutting_down = True
        if not self.turns:
            self.transport.close()
            return
        while len(self.turns) > 1:
            self.turns.pop().on_disconnect()
        head = self.turns[0]
        if self.receiving is not head:
            self.receiving = None
            self.is_stopped = True
        if isinstance(head, AsgiTurn):
            head.cycle.keep_alive = False
        self.write_due = time.monotonic() + self.plane.limits.shutdown_seconds

    def on_sweep(self, now: float) -> None:
        """Look at the deadlines; called every half second."""
        if now >= self.write_due:
            self.write_due = NEVER
            if self.is_shutting_down and self.turns and not self.is_write_paused:
                self.turns[0].cut_off()
            else:
                self.transport.abort()
        elif now >= self.read_due:
            if self.flow.read_paused:  # waiting for us, not for the client
                self.read_due = now + self.plane.limits.sweep_seconds
                return
            self.read_due = NEVER
            if self.receiving is not None:
                self.fail_receiving(RequestTimeout("The body did not arrive in time."))
            elif self.is_in_head and not self.turns:
                self._refuse(RequestTimeout("The headers did not arrive in time."), self.url)
            elif not self.turns:
                self.transport.close()

    # --- reading --------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.is_stopped:
            self._discard(data)
            return
        is_between = not (self.turns or self.is_in_head or self.is_discarding or self.receiving)
        if is_between and self.spelling is not None and self._take(self.spelling, data):
            return
        known, self.spelling = self.head, None
        self._parse(data)
        if is_between and known is self.head and known is not None and not self.is_stopped:
            self._learn(known, data)

    def _parse(self, data: bytes) -> None:
        self.raw_bytes += len(data)
        self.chunk_bytes = len(data)
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.is_stopped:
                self._on_parser_error(error)
            return
        if self.is_in_head:
            if self.raw_bytes > _READ_BYTES or self._head_is_too_large():
                self._refuse(_head_too_large(self.plane.limits.head_bytes), self.url)
        elif self.receiving is not None:
            self._on_partial_body(len(data))
        elif self.is_discarding:
            self._discard(data)

    def _learn(self, head: Head, data: bytes) -> None:
        """The same head came twice in a row: remember how it is spelled."""
        fields = head.fields
        if head.admission is not None and fields.keep_alive and not fields.expects_continue and len(data) <= _WHOLE_BYTES:
            self.spelling = Spelling.of(data, self.body_bytes)

    def _take(self, spelling: Spelling, data: bytes) -> bool:
        """Whether ``data`` is one whole request with the head that came before, nothing else being under way: then it is acted on."""
        head, body = self.head, spelling.body(data) if len(data) <= _WHOLE_BYTES else None
        if head is None or body is None:
            return False
        self.read_due = NEVER
        is_overloaded = self.limit_concurrency is not None and self.is_overloaded()
        kind = Fetch if is_fetch(head) else Exchange
        turn = kind(self, head, len(body), Overloaded(retry_after=1.0) if is_overloaded else None)
        self.turns.append(turn)
        turn.take(body)
        return True

    def _head_is_too_large(self) -> bool:
        """Exact where it matters: the pieces are added up only if what has arrived could be too much."""
        limit = self.plane.limits.head_bytes
        if self.raw_bytes <= limit:
            return False
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > limit

    def _on_partial_body(self, size: int) -> None:
        """A body is arriving in several pieces: its deadline, its framing overhead, and whether we still want it."""
        limits = self.plane.limits
        latest = time.monotonic() + limits.body_seconds  # however fast it came so far: who then stops holds memory, not us
        self.read_due = latest if self.read_due == NEVER else min(self.read_due + size / limits.body_rate, latest)
        if self.raw_bytes > _RAW_OVERHEAD + 8 * self.body_bytes:
            self.fail_receiving(InvalidRequest("The body has more framing than content."))
            return
        turns = self.turns
        if turns[0] is self.receiving:
            self.receiving.on_more()
        elif sum(turn.buffered for turn in turns) > limits.queued_bytes:
            self.flow.pause_reading()

    def _on_parser_error(self, error: Exception) -> None:
        """What arrived is no HTTP: in a body it spoils that request, after a last request it is ignored, else it is refused."""
        if isinstance(error, httptools.HttpParserCallbackError):
            log.error("A callback of the HTTP parser failed", exc_info=error.__context__ or error)
        if self.receiving is not None:
            self.fail_receiving(InvalidRequest("The body is malformed."))
        elif self.turns and not self.is_in_head and self._is_last_queued:
            self.is_stopped = True
        else:
            self._refuse(InvalidRequest("This is not well-formed HTTP."), self.url if self.is_in_head else b"")

    def _discard(self, data: bytes) -> None:
        self.discarded += len(data)
        if self.discarded > self.plane.limits.linger_bytes:
            self.transport.abort()

    def fail_receiving(self, error: KeybearerError) -> None:
        """Read no more of the request that is arriving; its turn answers ``error``, and the connection ends."""
        turn, self.receiving = self.receiving, None
        self.is_stopped = True
        if turn is not None:
            turn.on_malformed(error)

    def _refuse(self, error: KeybearerError, target: bytes) -> None:
        """Answer a head that is not acted on, after the answers before it; nothing more is read. ``target``: as far as known."""
        self.is_stopped = True
        self.is_in_head = False
        is_head = bool(target) and self.parser.get_method() == b"HEAD"
        if is_gateway_path(target):
            headers = [(name.lower(), value) for name, value in self.headers]
            named = dialect_of(target, headers)
            refusal = dialect_error(error, named, self.plane.request_id(), self.default_headers(), is_head=is_head)
        else:
            refusal = problem(error, self.default_headers(), is_head=is_head)
        self._enqueue(Refusal(self, refusal))

    def send_400_response(self, msg: str) -> None:
        """The base's answer to malformed input, which would write out of turn. Nothing here calls it."""
        self._refuse(InvalidRequest(msg), b"")

    # --- the parser's callbacks -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.is_stopped:
            raise _StopParsing
        self.url = b""
        self.headers = []
        self.is_in_head = True
        self.raw_bytes = self.chunk_bytes  # what came before it in the same piece is counted too: a bound, not a measure
        self.body_bytes = 0
        if not self.turns:
            self.read_due = time.monotonic() + self.plane.limits.header_seconds

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_in_head:  # else a trailer: nobody acts on those
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.is_in_head = False
        self.read_due = NEVER
        if len(self.turns) > self.plane.limits.queue:
            self.is_stopped = True  # what was taken so far is answered, then the connection ends
            raise _StopParsing
        parser = self.parser
        try:
            if self._head_is_too_large():
                raise _head_too_large(self.plane.limits.head_bytes)
            first = parser.get_method(), parser.get_http_version(), self.url
            head = self.head = read_head(first, self.headers, self.head, self.plane.limits)
            turn = self._turn_for(head, head.fields.read_length(self.headers))
        except KeybearerError as error:
            self._refuse(error, self.url)
            raise _StopParsing from None
        self._is_last_queued = not head.fields.keep_alive
        self.receiving = turn
        self._enqueue(turn)

    def on_body(self, body: bytes) -> None:
        turn = self.receiving
        if turn is None:
            if self.is_stopped:
                raise _StopParsing
            return  # of an ASGI request that was answered early
        self.body_bytes += len(body)
        turn.on_body(body)

    def on_message_complete(self) -> None:
        if self.is_stopped:
            raise _StopParsing
        turn, self.receiving = self.receiving, None
        self.is_discarding = False
        self.read_due = NEVER
        if turn is not None:
            turn.on_end()
        elif not self.turns:
            self._await_next()

    # --- the queue ------------------------------------------------------------------------------------------------------

    def _turn_for(self, head: Head, length: int | None) -> Turn:
        """Who answers this request. Raises what refuses it."""
        if is_gateway_path(head.path):  # under any decoding: the ASGI app sees none of them
            return Exchange(self, head, length, Overloaded(retry_after=1.0) if self.is_overloaded() else None)
        if is_fetch(head):
            return Fetch(self, head, length, Overloaded(retry_after=1.0) if self.is_overloaded() else None)
        limit = self.plane.limits.api_body_bytes
        if length is not None and length > limit:
            raise TooLarge(f"The body is larger than {limit} bytes.")
        return self._asgi_turn(head, length)

    def _asgi_turn(self, head: Head, length: int | None) -> AsgiTurn:
        app: ASGI3Application = service_unavailable if self.is_overloaded() else self.app
        cycle_class = Http10Cycle if head.fields.is_http10 else RequestResponseCycle
        cycle = cycle_class(
            scope=self._scope(head, length),
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=head.fields.expects_continue,
            keep_alive=head.fields.keep_alive,
            on_response=self.on_response_complete,
        )
        return AsgiTurn(self, head, cycle, app)

    def _scope(self, head: Head, length: int | None) -> HTTPScope:
        """The ASGI scope as the base builds it, with the client's address and scheme from declared proxies only."""
        proxies, fields = self.plane.proxies, head.fields
        scheme, client = self.scheme, self.client
        if fields.forwarded_for and client is not None:
            client = (proxies.client_address(self.peer, fields.forwarded_for), client[1])
        if fields.forwarded_proto in (b"http", b"https") and proxies.trusts(self.peer):
            scheme = "https" if fields.forwarded_proto == b"https" else "http"
        return {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.0" if fields.is_http10 else "1.1",
            "server": self.server,
            "client": client,
            "scheme": scheme or "http",
            "root_path": self.root_path,
            "headers": head.headers(length),
            "state": self.app_state.copy(),
            "method": head.method.decode("ascii"),
            "path": self.root_path + urllib.parse.unquote(head.path.decode("ascii")),
            "raw_path": self.root_path.encode("ascii") + head.path,
            "query_string": head.query,
        }

    def is_overloaded(self) -> bool:
        """Uvicorn's ``limit_concurrency``, for both kinds of requests."""
        limit = self.limit_concurrency
        return limit is not None and (len(self.connections) >= limit or len(self.tasks) >= limit)

    def start_asgi(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """The ASGI app has answered; it is the head's, for only the head was started."""
        turn = self.turns[0] if self.turns else None
        if isinstance(turn, AsgiTurn):
            self.finish(turn, keep_alive=turn.cycle.keep_alive)

    def _enqueue(self, turn: Turn) -> None:
        self.turns.append(turn)
        if len(self.turns) == 1:
            turn.start()

    def finish(self, turn: Turn, *, keep_alive: bool) -> None:
        """``turn`` has answered. Start the next, wait for one, or close."""
        turns = self.turns
        if not turns or turns[0] is not turn:
            return
        turns.popleft()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self.write_due = time.monotonic() + self.plane.limits.stall_seconds
            return
        is_unread = self.receiving is turn or isinstance(turn, Refusal)
        if not keep_alive or self.is_shutting_down or (self.is_stopped and not turns):
            self._close(is_unread=is_unread)
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if is_unread:  # an ASGI request answered early: the rest of its body is thrown away
            self.receiving = None
            self.is_discarding = True
            self.discarded = 0
            self.read_due = time.monotonic() + self.plane.limits.body_seconds
        elif turns:
            turns[0].start()
            if turns and turns[0] is self.receiving:
                turns[0].on_more()
        else:
            self._await_next()

    def _await_next(self) -> None:
        limits = self.plane.limits
        self.read_due = time.monotonic() + (limits.header_seconds if self.is_in_head else self.timeout_keep_alive)

    def _close(self, *, is_unread: bool) -> None:
        """End the connection after what is written. With unread input a plain close would be a reset, which can swallow it."""
        for turn in self.turns:
            turn.on_disconnect()
        self.turns.clear()
        self.receiving = None
        self.is_stopped = True
        self.read_due = NEVER
        limits = self.plane.limits
        has_unsent = self.transport.get_write_buffer_size() > 0
        self.write_due = time.monotonic() + (limits.stall_seconds if has_unsent or not is_unread else limits.linger_seconds)
        if not is_unread:
            self.transport.close()
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def default_headers(self) -> Headers:
        return self.server_state.default_headers

    # --- what the base would do and must not ----------------------------------------------------------------------------

    def timeout_keep_alive_handler(self) -> None:
        """The base's own keep-alive timer; idle connections are the sweep's business."""

    def handle_websocket_upgrade(self) -> NoReturn:
        """Upgrades are refused in ``fields``."""
        raise NotImplementedError


def _head_too_large(limit: int) -> TooLarge:
    return TooLarge(f"The headers are larger than {limit} bytes.")


def plane_of(app_state: dict[str, Any]) -> Plane:
    """The process's plane, made at its first connection from what the app's lifespan put into the state."""
    plane: Plane | None = app_state.get(PLANE)
    if plane is None:
        plane = app_state[PLANE] = Plane(app_state["services"])
    return plane
