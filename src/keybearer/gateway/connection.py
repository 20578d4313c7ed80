"""One connection to a provider, and one call on it: asyncio callbacks, no task.

A ``Call`` is what its sender holds: it can pause, resume and abort, and is cut loose from the connection the moment its
response ends, so that a late ``abort`` never meets another caller's request. A ``Connection`` serves one call at a time
and is idle in between; whatever arrives while it is idle closes it, because an answer nobody asked for would otherwise
be the answer to the next caller's question.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Protocol, cast

from keybearer.errors import KeybearerError, UpstreamError, UpstreamMalformed, UpstreamTimeout, UpstreamUnreachable
from keybearer.gateway.response import ResponseReader
from keybearer.gateway.steps import FAST, IN_A_ROW, LARGE, Steps

if TYPE_CHECKING:
    from keybearer.gateway.pool import Pool

WRITE_BYTES = 128 * 1024
"""Requests up to this size go out in one write; larger ones in pieces of this size, each waiting for the one before."""

_UNCLAIMED_SECONDS = 5.0

Request = bytes | Sequence[bytes]


class Sink(Protocol):
    """Who receives a response, called from the event loop.

    The order is ``may_send`` · (``on_response`` · ``on_wait``? · ``on_data``* · ``on_complete`` | ``on_failure``).

    ``may_send`` is called right before request bytes are written, once for each connection tried, possibly inside ``send``;
    it raises a ``KeybearerError`` to refuse. Everything else comes after ``send`` has returned. ``on_failure`` may come at
    any time, also after ``on_response``: then the client's answer is to be cut off. After ``Call.abort`` nothing comes.
    """

    def may_send(self) -> None: ...

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Take the final response's status and headers: lower-case names, hop-by-hop removed. The list is the receiver's.

        With a ``content-length`` in it exactly so many bytes follow (none after HEAD or with 304), without one as many as
        come until ``on_complete``.
        """

    def on_wait(self) -> None:
        """The head is all there is for now."""

    def on_data(self, data: bytes, ended: bool) -> None:  # noqa: FBT001  # the seam's shape
        """``ended``: nothing comes after it but ``on_complete``. Where only the connection's end ends the body, nobody can tell."""

    def on_complete(self) -> None: ...

    def on_failure(self, error: KeybearerError, sent: bool) -> None:  # noqa: FBT001  # the seam's shape
        """``sent``: request bytes may have reached the provider, so only the caller may decide to repeat it."""


class Call:
    """One request under way."""

    __slots__ = ("connection", "dialing", "head_only", "is_ended", "is_events", "is_paused", "request", "sink")

    def __init__(self, sink: Sink, request: Request, *, head_only: bool) -> None:
        self.sink = sink
        self.request: Request = request
        self.head_only = head_only
        self.connection: Connection | None = None
        self.dialing: asyncio.Task[None] | None = None
        self.is_paused = False
        self.is_ended = False
        self.is_events = False
        """Set by the sink of an event stream: if it comes fast, it may come in steps."""

    def pause_reading(self) -> None:
        """Stop reading from the provider. While paused no time-out runs: the sender watches over its own client."""
        self.is_paused = True
        if self.connection is not None:
            self.connection.pause_reading()

    def resume_reading(self) -> None:
        self.is_paused = False
        if self.connection is not None:
            self.connection.resume_reading()

    def abort(self) -> None:
        """End the call and its connection at once. The sink hears nothing more."""
        self.is_ended = True
        self.request = b""
        if self.dialing is not None:
            self.dialing.cancel()
        if self.connection is not None:
            self.connection.abort()

    def fail(self, error: KeybearerError, *, sent: bool) -> None:
        """Tell the sink, unless the call has ended already."""
        if not self.is_ended:
            self.is_ended = True
            self.request = b""
            self.sink.on_failure(error, sent)


class Connection(asyncio.Protocol):
    """An open connection. ``pool`` hears when it becomes free and when it is gone."""

    __slots__ = (
        "_fast_reads",
        "_is_open",
        "_is_write_paused",
        "_opened_at",
        "_poll",
        "_quiet_until",
        "_read_at",
        "_read_timeout",
        "_steps",
        "_unwritten",
        "_was_heard",
        "call",
        "idle_until",
        "pool",
        "reader",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, pool: Pool, read_timeout: float, steps: Steps) -> None:
        self.pool = pool
        self._steps = steps
        self._read_at = 0.0
        """When events came last."""
        self._fast_reads = 0
        """Of events, one fast after the other, until now."""
        self.call: Call | None = None
        self.idle_until = 0.0
        self._read_timeout = read_timeout
        self.reader = ResponseReader()
        self._unwritten: deque[memoryview] = deque()
        self._is_write_paused = False
        self._was_heard = False
        self._quiet_until = 0.0
        self._opened_at = 0.0
        self._is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._is_open = True
        self._opened_at = monotonic()
        self.idle_until = self._opened_at + _UNCLAIMED_SECONDS  # not to be swept before the dialler's next step
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        if transport.get_extra_info("ssl_object") is not None:
            # While reading is paused, the TLS layer would read ahead, and at the connection's end forget what it has read.
            self.transport.set_read_buffer_limits(high=1, low=0)  # type: ignore[attr-defined]  # uvloop's and asyncio's have it
        self.pool.opened(self)

    def is_usable(self, now: float, max_age: float) -> bool:
        """Tell whether a new request may go out here.

        Bytes or an end that the kernel already holds say no, for the price of one system call: they came before the request,
        so they are no answer to it.
        """
        return (
            now < self.idle_until
            and now < self._opened_at + max_age
            and not self.transport.is_closing()
            and not self._poll.poll(0)
        )

    def start(self, call: Call) -> None:
        """Send a call's request. What ``may_send`` raises leaves the connection as it was."""
        call.sink.may_send()
        call.connection = self
        self.call = call
        self._was_heard = True
        self.reader.begin(head_only=call.head_only)
        request, call.request = call.request, b""
        if isinstance(request, bytes) and len(request) <= WRITE_BYTES:
            self.transport.write(request)
        else:
            self._write_pieces((request,) if isinstance(request, bytes) else request)
        if call.is_paused:
            self.pause_reading()

    def _write_pieces(self, request: Sequence[bytes]) -> None:
        if sum(map(len, request)) <= WRITE_BYTES:
            self.transport.write(b"".join(request))
            return
        for part in request:
            view = memoryview(part)
            self._unwritten.extend(view[start : start + WRITE_BYTES] for start in range(0, len(view), WRITE_BYTES))
        self._write_on()

    def _write_on(self) -> None:
        while self._unwritten and not self._is_write_paused:
            self.transport.write(self._unwritten.popleft())

    def pause_writing(self) -> None:
        self._is_write_paused = True

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._was_heard = True  # the provider takes bytes: it is not silent
        self._write_on()

    def pause_reading(self) -> None:
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self._was_heard = True
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        call = self.call
        if call is None:
            self.close()
            return
        self._was_heard = True
        reader = self.reader
        was_answered = reader.status
        try:
            reader.feed(data)
        except UpstreamMalformed as error:
            self.shut(error)
            return
        is_complete = reader.is_complete
        is_begun = not was_answered and reader.status
        if is_begun:
            call.sink.on_response(reader.status, reader.headers)
        pieces = reader.pieces
        if pieces:
            if call.is_events and not is_complete:
                self._pace(len(pieces), len(data))
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            if not call.is_ended:
                call.sink.on_data(body, is_complete)
        elif is_begun and not (is_complete or call.is_ended):
            call.sink.on_wait()
        if is_complete and not call.is_ended:
            self._finish(call)

    def _pace(self, events: int, size: int) -> None:
        """Where events come fast, let some gather."""
        now = monotonic()
        if events <= (now - self._read_at) * FAST:
            self._fast_reads = 0
        elif self._fast_reads < IN_A_ROW:
            self._fast_reads += 1
        elif size < LARGE:
            self.transport.pause_reading()
            self._steps.wait(self)
        self._read_at = now

    def read_on(self) -> None:
        """The next step has come."""
        call = self.call
        if not (self.transport.is_closing() or (call is not None and call.is_paused)):
            self.transport.resume_reading()

    def eof_received(self) -> bool:
        call = self.call
        if call is None:
            self.close()
            return False
        try:
            self.reader.feed_eof()
        except UpstreamError as error:
            self.shut(error)
        else:
            self._finish(call)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self.pool.gone(self)
        call, self.call = self.call, None
        if call is not None:
            call.connection = None
            call.fail(_loss(exc, is_answered=bool(self.reader.status)), sent=True)
        self._unwritten.clear()
        self.reader.close()

    def check(self, now: float) -> None:
        """Close what was idle too long, fail what was silent too long; the sweeper calls."""
        call = self.call
        if call is None:
            if now >= self.idle_until:
                self.close()
        elif self._was_heard or call.is_paused:
            self._was_heard = False
            self._quiet_until = now + self._read_timeout
        elif now >= self._quiet_until:
            what = "stopped in mid-answer" if self.reader.status else "did not begin to answer"
            self.shut(UpstreamTimeout(f"The provider {what} for {self._read_timeout:g} seconds."))

    def abort(self) -> None:
        """Close at once, for a sender who has lost interest."""
        call, self.call = self.call, None
        if call is not None:
            call.connection = None
        self.close()

    def close(self) -> None:
        """Close at once; nothing waits to be written."""
        self.pool.withdraw(self)
        self._unwritten.clear()
        self.transport.abort()

    def _finish(self, call: Call) -> None:
        """End the call; free the connection first, so that ``on_complete`` may already use it again."""
        self.call = call.connection = None
        call.is_ended = True
        reader = self.reader
        if not reader.is_reusable or self._unwritten or self._is_write_paused or self.transport.is_closing():
            self.close()
        else:
            if call.is_paused:
                self.transport.resume_reading()
            self.pool.put(self)
        call.sink.on_complete()

    def forsake(self) -> None:
        """Let go of a connection whose dialling failed or was cancelled.

        uvloop closes the transport of a cancelled dial without ``connection_lost``, even after ``connection_made``.
        """
        if self._is_open:
            self.transport.abort()
            self.connection_lost(None)

    def shut(self, error: KeybearerError) -> None:
        """Close at once and tell the sink of the call under way why."""
        call, self.call = self.call, None
        self.close()
        if call is not None:
            call.connection = None
            call.fail(error, sent=True)


def _loss(exc: Exception | None, *, is_answered: bool) -> UpstreamError:
    """Translate how a connection was lost under a call."""
    if isinstance(exc, ssl.SSLError):
        return UpstreamMalformed("The provider broke off the TLS connection.")
    if is_answered:
        return UpstreamMalformed("The provider's answer was cut off.")
    return UpstreamUnreachable("The provider closed the connection without an answer.")
